"""The ``last`` checkpoint: at each epoch's end and, in long epochs, every few minutes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Checkpoint


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
