"""What is kept of an evaluated image until it is drawn, and the table of predictions in W&B."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytorch_lightning as pl

from pipelines.callbacks.originals import Original, class_names_of
from pipelines.outputs.detections import drawable
from pipelines.outputs.drawing import Annotation, annotation_of, rescaled, resized
from pipelines.outputs.panels import Sample, display_size
from pipelines.run.wandb_media import Overlaid, log_table, trackers

UNKNOWN = np.full((1, 1, 3), 128, np.uint8)  # shown for an image that cannot be had any more
TABLE_SIDE = 256  # of the pictures in the table


@dataclass(frozen=True)
class Kept:
    """What is left of an evaluated image until its panel is drawn: a few small arrays on the CPU.

    Attributes:
        original: Where its pixels come from.
        size: Height and width at which it is drawn.
        truth: What is true of it at that size; None where that is not known.
        prediction: What was predicted, at the same size; nothing of a detector.
        caption: The task's.
        found: All objects of a detector: its thresholds come with the validation's end.
    """

    original: Original
    size: tuple[int, int]
    truth: Annotation | None
    prediction: Annotation
    caption: str
    found: dict[str, Any] | None = None


def kept_of(
    task: Any,
    batch: Mapping[str, Any],
    predictions: Mapping[str, Any],
    index: int,
    caption: str,
    side: int | None = None,
) -> Kept:
    """What is needed to draw one image of a batch later; at most ``side`` pixels, the size of a panel by default."""
    original = Original.of(batch, index)
    size = display_size(original.size) if side is None else _within(original.size, side)
    truth = rescaled(annotation_of(batch["target"][index]), original.size, size) if "target" in batch else None
    if task.finds_boxes:
        found = {key: values[index] for key, values in predictions.items()}
        return Kept(original, size, truth, {}, caption, found)
    return Kept(original, size, truth, rescaled(annotation_of(predictions, index), original.size, size), caption)


def sample_of(kept: Kept, task: Any, class_names: list[str]) -> Sample:
    """One row of the panels."""
    original, prediction, caption = kept.original, kept.prediction, kept.caption
    if kept.found is not None:
        shown = task.shown({key: [value] for key, value in kept.found.items()})
        caption = task.captions({"path": [original.path]}, shown, class_names)[0]
        prediction = rescaled(drawable(shown, 0), original.size, kept.size)
    image = original.pixels()
    return Sample(resized(UNKNOWN if image is None else image, kept.size), kept.truth, prediction, caption)


def _within(size: tuple[int, int], side: int) -> tuple[int, int]:
    factor = min(1.0, side / max(size))
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


class PredictionTable:
    """Rows of the first evaluated images in W&B, the first of them with pictures, truth and prediction over them.

    Args:
        rows: At most so many rows.
        pictures: The first rows that have a picture.
    """

    def __init__(self, rows: int, pictures: int) -> None:
        self.rows, self.pictures = rows, pictures
        self.start()

    def start(self) -> None:
        """Start empty."""
        self._rows: list[dict[str, Any]] = []
        self._kept: list[Kept] = []

    def add(self, trainer: pl.Trainer, task: Any, outputs: Any, batch: Any, class_names: list[str]) -> None:
        """Keep what there is room for of a batch."""
        room = self.rows - len(self._rows)
        if room <= 0:
            return
        added = task.rows(batch, outputs, class_names)[:room]
        self._rows += added
        if trackers(trainer.loggers):
            count = min(self.pictures - len(self._kept), len(added))
            self._kept += [kept_of(task, batch, outputs or {}, i, "", TABLE_SIDE) for i in range(count)]

    def log(self, trainer: pl.Trainer, task: Any, key: str, step: int) -> None:
        """Show the table, if there is something to show."""
        if not self._rows:
            return
        names = class_names_of(trainer)
        columns = list(dict.fromkeys(key for row in self._rows for key in row))
        rows = [[row.get(column) for column in columns] for row in self._rows]
        if self._kept:
            pictures: list[Overlaid | None] = [Overlaid(*sample_of(kept, task, names)) for kept in self._kept]
            pictures += [None] * (len(rows) - len(pictures))
            columns = ["picture", *columns]
            rows = [[picture, *row] for picture, row in zip(pictures, rows, strict=True)]
        log_table(trainer.loggers, key, columns, rows, step, names)
