"""Pictures of a run as PNG files and, where W&B is on, there too; the task supplies captions, this file draws."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from PIL import Image
from pytorch_lightning.callbacks import Callback

from datamodules.common.files import atomic_path
from pipelines.callbacks.kept import Kept, PredictionTable, kept_of, sample_of
from pipelines.callbacks.originals import as_pictures, class_names_of, palette_of, records_of
from pipelines.outputs.detection_figures import detection_figures
from pipelines.outputs.drawing import annotation_of, drawn, rescaled
from pipelines.outputs.figures import confusion_matrix_figure, iou_bars, reliability_diagram
from pipelines.outputs.palettes import Palette
from pipelines.outputs.panels import panels
from pipelines.outputs.sheets import Picture, image_grid, is_wrong, rgb, save_png, scaled, sheet
from pipelines.run.saves import left_out_if_full
from pipelines.run.wandb_media import Overlaid, log_image, log_overlaid

MAX_IMAGES = 32
MAX_PAIRS = 12  # training images that are shown beside their annotations
NUM_PANELS = 8


class Pictures(Callback):
    """Draws the first training batch as the model sees it, fixed evaluation images, and what the metrics can show.

    Where a prediction can be drawn over its image (``outputs.panels``), 8 validation images, the same ones each time,
    become panels of image, truth, prediction and error. They come from all over the split: neighbors are often frames
    of one video. Drawing takes its time, so it is done at the validations number 1, 2, 4, 8, ... of a process and at
    its end: ``val_panels.png`` is the latest, ``val_panels/`` has one file for each epoch drawn, and W&B shows them
    under one key, and the same images with overlays of its own under ``val_overlays``. Everything else is drawn once,
    at the end.

    Args:
        directory: Where the PNG files go.
        table_rows: Rows of the prediction table in W&B.
        table_pictures: The first rows that have a picture.
    """

    def __init__(self, directory: Path, table_rows: int, table_pictures: int = 0) -> None:
        super().__init__()
        self.directory = directory
        self._table = PredictionTable(table_rows, table_pictures)
        self._drawn = False
        self._samples: list[tuple[NDArray[np.uint8], str, bool]] = []
        self._kept: list[Kept] = []
        self._validations = 0
        self._epoch = 0  # of the last validation

    def _save(self, trainer: pl.Trainer, name: str, picture: NDArray[np.uint8]) -> None:
        file = self.directory / f"{name}.png"
        with left_out_if_full(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            save_png(picture, file)
            log_image(trainer.loggers, name, picture, max(0, trainer.global_step - 1))

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Draw one batch, behind all augmentation on the CPU and on the device."""
        if self._drawn or not trainer.is_global_zero:
            return
        self._drawn = True
        names = class_names_of(trainer)
        captions = pl_module.taught.captions(batch, None, names)
        if annotation_of(batch, 0):
            picture = _pairs(batch, captions, palette_of(trainer), names)
        else:
            picture = image_grid(as_pictures(batch["image"][:MAX_IMAGES]), captions[:MAX_IMAGES])
        self._save(trainer, "train_batch", picture)

    def _start(self) -> None:
        self._table.start()
        self._samples, self._kept = [], []

    def _collect(self, trainer: pl.Trainer, task: Any, outputs: Any, batch: Any) -> None:
        if not trainer.is_global_zero or trainer.sanity_checking:
            return
        names = class_names_of(trainer)
        if outputs and annotation_of(outputs, 0):
            self._keep(trainer, task, outputs, batch, names)
        elif places := _places(trainer, batch, MAX_IMAGES, len(self._samples)):
            some, predictions = (_some(values, places) for values in (batch, outputs))
            wrong = map(is_wrong, task.rows(some, predictions, names))
            captions = task.captions(some, predictions, names)
            self._samples += zip(as_pictures(some["image"]), captions, wrong, strict=True)
        self._table.add(trainer, task, outputs, batch, names)

    def _keep(self, trainer: pl.Trainer, task: Any, outputs: Any, batch: Any, names: list[str]) -> None:
        """Keep those images of a batch that become panels."""
        places = _places(trainer, batch, NUM_PANELS, len(self._kept))
        if not places:
            return
        some, predictions = ({k: [v[i] for i in places] for k, v in d.items()} for d in (batch, outputs))
        for i, caption in enumerate(task.captions(some, predictions, names)):
            self._kept.append(kept_of(task, some, predictions, i, caption))

    def _draw_panels(self, trainer: pl.Trainer, task: Any, stage: str) -> None:
        if not self._kept or not trainer.is_global_zero:
            return
        names = class_names_of(trainer)
        samples = [sample_of(kept, task, names) for kept in self._kept]
        self._save(trainer, f"{stage}_panels", panels(samples, palette_of(trainer), names))
        overlaid = [Overlaid(*sample) for sample in samples]
        log_overlaid(trainer.loggers, f"{stage}_overlays", overlaid, names, max(0, trainer.global_step - 1))
        if trainer.state.fn == "fit":
            folder = self.directory / f"{stage}_panels"
            file = folder / f"epoch_{self._epoch:04d}.png"
            with left_out_if_full(file), atomic_path(file) as path:
                shutil.copyfile(f"{folder}.png", path)
        self._kept = []

    def _draw(self, trainer: pl.Trainer, task: Any, stage: str) -> None:
        if not trainer.is_global_zero:
            return
        if self._samples:
            images, captions, wrong = zip(*self._samples, strict=True)
            self._save(trainer, f"{stage}_predictions", image_grid(np.stack(images), captions, wrong=wrong))
        self._draw_panels(trainer, task, stage)
        for name, picture in _metric_figures(task.eval_metrics, class_names_of(trainer), palette_of(trainer)).items():
            self._save(trainer, f"{stage}_{name}", picture)
        step = max(0, trainer.global_step - 1)
        self._table.log(trainer, task, f"{stage}_predictions_table", step)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start empty."""
        self._start()
        self._epoch = trainer.current_epoch

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
        self._collect(trainer, pl_module.taught, outputs, batch)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw for the ``validate`` command; ``fit`` draws panels now and then, and the rest once, at its end."""
        if trainer.state.fn == "validate":
            self._draw(trainer, pl_module.taught, "val")
        elif not trainer.sanity_checking:
            self._validations += 1
            if self._validations & (self._validations - 1) == 0:  # a power of two
                self._draw_panels(trainer, pl_module.taught, "val")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw the last validation."""
        if self._validations:
            self._draw(trainer, pl_module.taught, "val")

    on_test_start = on_validation_start
    on_test_batch_end = on_validation_batch_end

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw."""
        self._draw(trainer, pl_module.taught, "test")


def _places(trainer: pl.Trainer, batch: dict[str, Any], count: int, have: int) -> list[int]:
    """Which images of a batch are shown, of ``count`` from all over those that rank 0 evaluates, ``have`` being kept.

    Neighbors are often of one class, or frames of one video. Where the data does not say what it has, the first ones.
    """
    records = records_of(trainer, "test" if trainer.testing else "val")
    numbers = batch["id"].tolist()
    if not records:
        return list(range(len(numbers)))[: count - have]
    mine = range(0, len(records), trainer.world_size)
    wanted = {mine[i * len(mine) // count] for i in range(count)}
    return [i for i, number in enumerate(numbers) if number in wanted][: count - have]


def _metric_figures(metrics: Any, class_names: list[str], palette: Palette) -> dict[str, Picture]:
    """What the metrics can show, by the figures' names; tasks have some of these each."""
    figures = {}
    if hasattr(metrics, "confusion"):
        figures["confusion_matrix"] = confusion_matrix_figure(_array(metrics.confusion), class_names)
    iou = metrics.per_class().get("iou") if hasattr(metrics, "per_class") else None
    if iou is not None:
        figures["class_iou"] = iou_bars([np.nan if value is None else float(value) for value in iou], class_names)
    report = metrics.report() if hasattr(metrics, "report") else None
    if report is not None:
        figures |= detection_figures(report, class_names, palette)
    if hasattr(metrics, "calibration"):
        confidence, accuracy, counts = (_array(values) for values in metrics.calibration)
        figures["calibration"] = reliability_diagram(confidence, accuracy, counts)
    return figures


def _pairs(batch: Any, captions: list[str], palette: Palette, names: list[str]) -> NDArray[np.uint8]:
    """Training images beside the same with their annotations."""
    tiles = []
    for i, image in enumerate(as_pictures(batch["image"][:MAX_PAIRS])):
        plain = np.asarray(scaled(rgb(image)))
        truth = rescaled(annotation_of(batch, i), image.shape[:2], plain.shape[:2])
        gap = np.full((len(plain), 2, 3), 255, np.uint8)
        tiles.append(Image.fromarray(np.concatenate([plain, gap, drawn(plain, truth, palette, names)], axis=1)))
    return sheet(tiles, captions[: len(tiles)] if any(captions) else None, columns=3)


def _some(values: Mapping[str, Any], places: list[int]) -> dict[str, Any]:
    """Some images of a batch or of predictions: tensors and lists have one entry an image."""
    return {
        key: value[places] if hasattr(value, "shape") else [value[i] for i in places] for key, value in values.items()
    }


def _array(values: Any) -> NDArray[Any]:
    return np.asarray(values.cpu() if isinstance(values, torch.Tensor) else values)
