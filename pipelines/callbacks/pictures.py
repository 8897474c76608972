"""Pictures of a run as PNG files and, where W&B is on, there too; the task supplies captions, this file draws."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from pytorch_lightning.callbacks import Callback

from pipelines.loggers import log_image, log_table
from pipelines.pictures import confusion_matrix_figure, image_grid, reliability_diagram, save_png

MAX_IMAGES = 32


class Pictures(Callback):
    """Draws the first training batch as the model sees it, fixed evaluation images, and what the metrics can show.

    Args:
        directory: Where the PNG files go.
        table_rows: Rows of the prediction table in W&B.
    """

    def __init__(self, directory: Path, table_rows: int) -> None:
        super().__init__()
        self.directory, self.table_rows = directory, table_rows
        self._drawn = False
        self._table: list[dict[str, Any]] = []
        self._samples: tuple[NDArray[np.uint8], list[str]] | None = None

    def _names(self, trainer: pl.Trainer) -> list[str]:
        return list(getattr(getattr(trainer, "datamodule", None), "class_names", None) or [])

    def _save(self, trainer: pl.Trainer, name: str, picture: NDArray[np.uint8]) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        save_png(picture, self.directory / f"{name}.png")
        log_image(trainer.loggers, name, picture, max(0, trainer.global_step - 1))

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Draw one batch, behind all augmentation on the CPU and on the device."""
        if self._drawn or not trainer.is_global_zero:
            return
        self._drawn = True
        captions = pl_module.captions(batch, None, self._names(trainer))[:MAX_IMAGES]
        self._save(trainer, "train_batch", image_grid(as_pictures(batch["image"][:MAX_IMAGES]), captions))

    def _start(self) -> None:
        self._table, self._samples = [], None

    def _collect(self, trainer: pl.Trainer, task: Any, outputs: Any, batch: Any) -> None:
        if not trainer.is_global_zero or trainer.sanity_checking:
            return
        names = self._names(trainer)
        if self._samples is None:
            some = {k: v[:MAX_IMAGES] for k, v in batch.items()}
            predictions = {k: v[:MAX_IMAGES] for k, v in outputs.items()}
            self._samples = (as_pictures(some["image"]), task.captions(some, predictions, names))
        if len(self._table) < self.table_rows:
            self._table += task.rows(batch, outputs, names)[: self.table_rows - len(self._table)]

    def _draw(self, trainer: pl.Trainer, task: Any, stage: str) -> None:
        if not trainer.is_global_zero:
            return
        if self._samples is not None:
            self._save(trainer, f"{stage}_predictions", image_grid(*self._samples))
        metrics = task.eval_metrics
        if hasattr(metrics, "confusion"):
            picture = confusion_matrix_figure(metrics.confusion.numpy(), self._names(trainer))
            self._save(trainer, f"{stage}_confusion_matrix", picture)
        if hasattr(metrics, "calibration"):
            self._save(trainer, f"{stage}_calibration", reliability_diagram(*(b.numpy() for b in metrics.calibration)))
        if self._table:
            columns = list(dict.fromkeys(key for row in self._table for key in row))
            rows = [[row.get(c) for c in columns] for row in self._table]
            log_table(trainer.loggers, f"{stage}_predictions_table", columns, rows, max(0, trainer.global_step - 1))

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start empty."""
        self._start()

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the first images and rows."""
        self._collect(trainer, pl_module, outputs, batch)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw for the ``validate`` command; ``fit`` draws once, at its end, since drawing takes its time."""
        if trainer.state.fn == "validate":
            self._draw(trainer, pl_module, "val")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw the last validation."""
        if self._samples is not None:
            self._draw(trainer, pl_module, "val")

    on_test_start = on_validation_start
    on_test_batch_end = on_validation_batch_end

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw."""
        self._draw(trainer, pl_module, "test")


def as_pictures(image: torch.Tensor) -> NDArray[np.uint8]:
    """A batch (B, C, H, W), uint8 or float in [0, 1], as uint8 (B, H, W, 3), or (B, H, W, 1) of its first channel."""
    if image.is_floating_point():
        image = (image.detach().float().clamp(0, 1) * 255).round().to(torch.uint8)
    channels = 3 if image.shape[1] == 3 else 1
    return image[:, :channels].permute(0, 2, 3, 1).cpu().numpy()
