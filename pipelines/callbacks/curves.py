"""``pictures/curves.png``, drawn while a training goes on."""

from __future__ import annotations

import time
from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from pipelines.outputs.curves import curves_figure, read_rows
from pipelines.outputs.sheets import save_png
from pipelines.run.saves import left_out_if_full

SHARE = 0.03  # of the training's time that drawing may take


class Curves(Callback):
    """Draws the curves at each epoch's end, unless epochs are so short that drawing would slow them down.

    Args:
        directory: The run's.
    """

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self.directory = directory
        self._next = 0.0  # when drawing is due again

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw, where it is due."""
        if time.monotonic() >= self._next:
            self._draw(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw the whole training."""
        self._draw(trainer, pl_module)

    def _draw(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        began = time.monotonic()
        rows = read_rows(self.directory / "metrics.csv") if trainer.is_global_zero else []
        if len({row.get("epoch") for row in rows}) < 2:
            return  # one epoch is no curve
        steps = max(1.0, trainer.num_training_batches / trainer.accumulate_grad_batches)
        task = pl_module.taught
        file = self.directory / "pictures" / "curves.png"
        with left_out_if_full(file):
            save_png(curves_figure(rows, task.monitor, task.mode, steps), file)
        self._next = time.monotonic() + (time.monotonic() - began) / SHARE
