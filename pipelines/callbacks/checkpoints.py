"""The two checkpoints of a run: ``best`` by the task's metric, ``last`` to go on from."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Checkpoint, ModelCheckpoint
from torch import Tensor


class KeepBest(ModelCheckpoint):
    """Lightning's ModelCheckpoint, but on a tie the later model is kept.

    A small validation set reaches its ceiling early (1.0 of 180 images), while the model still improves.
    """

    def check_monitor_top_k(self, trainer: pl.Trainer, current: Tensor | None = None) -> bool:
        """Whether to save: as good as the best, or better."""
        if current is not None and self.best_model_score is not None and bool(current == self.best_model_score):
            return True
        return bool(super().check_monitor_top_k(trainer, current))


class SaveLast(Checkpoint):
    """Writes ``last.ckpt``, always behind a complete optimiser step: accumulated gradients are in no checkpoint.

    Lightning's ModelCheckpoint has either a time interval or the epoch's end, and its time interval may fall between
    two batches of one accumulated step.

    Args:
        directory: The run's ``checkpoints`` folder.
        every_minutes: Save inside an epoch after so many minutes; 0 for never.
        every_n_steps: Save inside an epoch after so many optimiser steps.
    """

    def __init__(self, directory: Path, every_minutes: float, every_n_steps: int | None) -> None:
        super().__init__()
        self.path = directory / "last.ckpt"
        self.every_minutes, self.every_n_steps = every_minutes, every_n_steps
        self._seen_step = -1
        self._saved_at = time.monotonic()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if an optimiser step was completed and it is time; the epoch's last batch is left to the epoch's end."""
        step = trainer.global_step
        if step == self._seen_step or trainer.is_last_batch:
            return
        self._seen_step = step
        due = self.every_n_steps is not None and step % self.every_n_steps == 0
        if not due and self.every_minutes and step % trainer.log_every_n_steps == 0:
            # Clocks differ between ranks: rank 0's decides, and only now and then, since asking is a sync.
            elapsed = time.monotonic() - self._saved_at
            due = trainer.strategy.broadcast(elapsed >= 60 * self.every_minutes)
        if due:
            self._save(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save."""
        self._save(trainer)

    def _save(self, trainer: pl.Trainer) -> None:
        trainer.save_checkpoint(self.path)
        self._saved_at = time.monotonic()
