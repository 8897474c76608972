"""Leaves a noisy student's run with an ordinary checkpoint of the student."""

from __future__ import annotations

from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from pipelines.run.student import write_student


class WriteStudent(Callback):
    """Writes ``student.ckpt`` when the training has ended.

    Args:
        checkpoints: The run's folder of checkpoints.
    """

    def __init__(self, checkpoints: Path) -> None:
        super().__init__()
        self.checkpoints = checkpoints

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Copy the best checkpoint, or the last without one."""
        if trainer.is_global_zero:
            write_student(self.checkpoints)
