"""The two checkpoints of a run: ``best`` by the task's metric, ``last`` to go on from."""

from __future__ import annotations

import copy
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Checkpoint, ModelCheckpoint
from pytorch_lightning.utilities import rank_zero_info
from pytorch_lightning.utilities.exceptions import SIGTERMException
from torch import Tensor

from datamodules.common.errors import UserError
from pipelines.run.checkpoints import TRIAL
from pipelines.run.saves import unsaved


class KeepBest(ModelCheckpoint):
    """Lightning's ModelCheckpoint, but on a tie the later model is kept.

    A small validation set reaches its ceiling early (1.0 of 180 images), while the model still improves.
    """

    def check_monitor_top_k(self, trainer: pl.Trainer, current: Tensor | None = None) -> bool:
        """Whether to save: as good as the best, or better.

        Not where the metric is undefined (NaN), nor where the last steps were skipped: they burst the weights.
        """
        is_undefined = current is not None and bool(current.isnan())
        if is_undefined or getattr(trainer.lightning_module, "skipped_in_a_row", 0) > 1:
            return False
        if current is not None and self.best_model_score is not None and bool(current == self.best_model_score):
            return True
        return bool(super().check_monitor_top_k(trainer, current))

    def _update_best_and_save(
        self, current: Tensor, trainer: pl.Trainer, monitor_candidates: dict[str, Tensor]
    ) -> None:
        """Where the file could not be written, the older one stays the best: the next that is better replaces it."""
        names = ("best_k_models", "kth_best_model_path", "kth_value", "best_model_path", "best_model_score")
        before = {name: copy.copy(getattr(self, name)) for name in names}
        super()._update_best_and_save(current, trainer, monitor_candidates)
        if unsaved(trainer, self.best_model_path):
            for name, value in before.items():
                setattr(self, name, value)


class SaveLast(Checkpoint):
    """Writes ``last.ckpt``, always behind a complete optimizer step: accumulated gradients are in no checkpoint.

    Lightning's ModelCheckpoint has either a time interval or the epoch's end, and its time interval may fall between
    two batches of one accumulated step.

    Ctrl-C, and SIGTERM and SIGUSR1, by which a cluster takes a job back, save behind the next complete step and end the
    process with 128 plus the signal's number. A second Ctrl-C, and one in a validation, ends it at once. It is enough
    that one rank gets the signal. Lightning's own handler saves nothing, ends with 0, and sends from inside the handler
    to ranks that may not be listening.

    A validation that follows a step is waited for. Nothing is saved behind a step that was skipped, since the step
    before may have burst the weights: the next good step is waited for, or the end of the training.

    Args:
        directory: The run's ``checkpoints`` folder.
        every_minutes: Save inside an epoch after so many minutes; 0 for never.
        every_n_steps: Save inside an epoch after so many optimizer steps.
        handle_signals: False leaves the signals to Lightning's own requeueing.
    """

    def __init__(
        self, directory: Path, every_minutes: float, every_n_steps: int | None, *, handle_signals: bool = True
    ) -> None:
        super().__init__()
        self.handle_signals = handle_signals
        self.path = directory / "last.ckpt"
        self.every_minutes, self.every_n_steps = every_minutes, every_n_steps
        self._seen_step = -1
        self._saved_at = time.monotonic()
        self._due = self._waits_for_validation = False
        self._signal: int | None = None
        self._validates = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Try a checkpoint, and take the signals over; Lightning puts back what was there before it.

        Raises:
            UserError: If a callback's state or a hyper-parameter could not be read back.
        """
        trainer.save_checkpoint(TRIAL)  # what could not be read back is refused now, not after hours
        self._signal, self._validates = None, False
        self._seen_step = trainer.global_step  # else the first batch of several accumulated ones would count as a step
        if not self.handle_signals:
            return
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
                signal.signal(number, self._note)

    def _note(self, number: int, frame: Any) -> None:
        if number == signal.SIGINT:
            if self._validates or self._signal is not None:
                raise KeyboardInterrupt
            print("\nCtrl-C: saving behind the next step; once more ends at once.", file=sys.stderr, flush=True)
        self._signal = number

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """From here on there is no step behind which to save."""
        self._validates = True

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if an optimizer step was completed and it is time; the epoch's last batch is left to the epoch's end."""
        step = trainer.global_step
        if step == self._seen_step or trainer.is_last_batch:
            return
        self._seen_step = step
        wanted = self.every_n_steps is not None and step % self.every_n_steps == 0
        if not wanted and self.every_minutes and step % trainer.log_every_n_steps == 0:
            # Clocks differ between ranks: rank 0's decides, and only now and then, since asking is a sync.
            elapsed = time.monotonic() - self._saved_at
            wanted = trainer.strategy.broadcast(elapsed >= 60 * self.every_minutes)
        if self._validation_follows(trainer):  # it belongs to this step: a resumed run would not do it
            self._due = self._due or wanted
            self._waits_for_validation = True
        else:
            self._save_if(trainer, pl_module, wanted or self._due)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save behind a validation inside an epoch what had to wait for it."""
        self._validates = False
        if self._waits_for_validation:
            self._waits_for_validation = False
            self._save_if(trainer, pl_module, self._due)

    @staticmethod
    def _validation_follows(trainer: pl.Trainer) -> bool:
        # Lightning says so nowhere else; tests/pipelines/test_resume.py fails where this changes.
        loop = trainer.fit_loop
        return loop._data_fetcher is not None and loop.epoch_loop._should_check_val_fx(loop._data_fetcher)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save."""
        self._save_if(trainer, pl_module, True)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save what the last epoch's end could not.

        Raises:
            UserError: If it could not be written again.
        """
        failed = unsaved(trainer, self.path)
        if (self._due or failed) and getattr(pl_module, "skipped_in_a_row", 0) < 2:
            self._save(trainer)
            if failed := unsaved(trainer, self.path):
                raise UserError(f"{failed} The training has ended, and its last weights are in no file.")

    def _save_if(self, trainer: pl.Trainer, pl_module: pl.LightningModule, wanted: bool) -> None:
        asked = self._asked(trainer)
        if not (wanted or asked):
            return
        if getattr(pl_module, "skipped_in_a_row", 0):
            self._due = True
            return
        self._save(trainer)
        if asked:
            self._stop(trainer)

    def _asked(self, trainer: pl.Trainer) -> bool:
        """Whether any rank has got a signal; all ask behind the same step.

        With several ranks that is a sync a step; Lightning, too, asks rank 0 for the signal in front of each batch.
        """
        asked = self._signal is not None
        return trainer.strategy.reduce_boolean_decision(asked, all=False) if trainer.world_size > 1 else asked

    def _stop(self, trainer: pl.Trainer) -> None:
        number = signal.Signals(self._signal or signal.SIGTERM)
        if problem := unsaved(trainer, self.path):
            rank_zero_info(f"{number.name}: nothing could be saved: {problem}")
        elif number != signal.SIGINT:  # who pressed Ctrl-C sees the training's last block
            rank_zero_info(f"{number.name}: saved {self.path}; --resume auto goes on from there.")
        raise SIGTERMException(128 + number)

    def _save(self, trainer: pl.Trainer) -> None:
        trainer.save_checkpoint(self.path)
        self._saved_at, self._due = time.monotonic(), False
