"""What a model says of one picture, in its original pixels and with the names of its classes."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from datamodules.common import rle
from datamodules.common.batch import IGNORE
from pipelines.api.base import Picture, Result, import_supervision
from pipelines.callbacks.overlays import ImageFiles
from pipelines.outputs.drawing import captioned, drawn
from pipelines.outputs.formats.coco import nine_digits, plain_mask, to_xywh

SURE = 0.5  # probability from which on an image has a label, where it may have several


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class ClassificationResult(Result):
    """The classes of a picture.

    Attributes:
        probabilities: float32 (K,).
        multi_label: Whether it may have several classes.
    """

    probabilities: NDArray[np.float32]
    multi_label: bool = False

    @property
    def labels(self) -> list[int]:
        """Numbers of its classes: the most probable one, or all of at least a half if multi-label."""
        if self.multi_label:
            return [int(k) for k in np.flatnonzero(self.probabilities >= SURE)]
        return [self.label]

    @property
    def names(self) -> list[str]:
        """Names of ``labels``."""
        return [self.class_names[k] for k in self.labels]

    @property
    def label(self) -> int:
        """Number of the most probable class."""
        return int(self.probabilities.argmax())

    @property
    def class_name(self) -> str:
        """Name of the most probable class."""
        return self.class_names[self.label]

    @property
    def probability(self) -> float:
        """Of the most probable class."""
        return float(self.probabilities[self.label])

    def top(self, number: int = 5) -> list[tuple[str, float]]:
        """The most probable classes with their probabilities, the best first."""
        order = np.argsort(-self.probabilities, kind="stable")[:number]
        return [(self.class_names[k], float(self.probabilities[k])) for k in order]

    def summary(self) -> str:
        """The classes with their probabilities."""
        return ", ".join(f"{self.class_names[k]} {self.probabilities[k]:.2f}" for k in self.labels) or "no class"

    def to_coco(self, image_id: int = 1) -> list[dict[str, Any]]:
        """One dict a label: ``image_id``, ``category_id`` and ``score``."""
        scores = [(k, nine_digits(float(self.probabilities[k]))) for k in self.labels]
        return [{"image_id": image_id, "category_id": self.category_ids[k], "score": score} for k, score in scores]

    def plot(self) -> Picture:
        """The picture with its classes and their probabilities written into a corner."""
        return captioned(self.pixels(), self.summary())

    def to_supervision(self) -> Any:
        """``supervision.Classifications`` of all classes, the most probable first."""
        order = np.argsort(-self.probabilities, kind="stable")
        return import_supervision().Classifications(class_id=order, confidence=self.probabilities[order])

    def _json(self) -> dict[str, Any]:
        pairs = zip(self.class_names, self.probabilities.tolist(), strict=True)
        return {"labels": self.names, "probabilities": {name: nine_digits(p) for name, p in pairs}}

    def _write(self, files: ImageFiles) -> None:
        files.write_picture(self.plot())


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class DetectionResult(Result):
    """The objects of a picture, the surest first.

    Attributes:
        boxes: float32 (N, 4), x1 y1 x2 y2 in original pixels, edges.
        scores: float32 (N,).
        labels: int64 (N,), numbers of the classes.
        run_lengths: Of instance masks: N of COCO's compressed run lengths.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]
    run_lengths: tuple[dict[str, Any], ...] | None = None

    def __len__(self) -> int:
        return len(self.boxes)

    @property
    def names(self) -> list[str]:
        """The objects' N classes."""
        return [self.class_names[k] for k in self.labels]

    @property
    def masks(self) -> NDArray[np.bool_] | None:
        """Instance masks, bool (N, H, W), made of ``run_lengths``; None for boxes alone."""
        return None if self.run_lengths is None else rle.decoded(self.run_lengths, *self.size)

    def summary(self) -> str:
        """How many objects of which class."""
        counts = Counter(self.names).most_common()
        return ", ".join(f"{count} {name}" for name, count in counts) or "no object"

    def to_coco(self, image_id: int = 1) -> list[dict[str, Any]]:
        """One dict an object: ``image_id``, ``category_id``, ``bbox`` (x, y, width, height), ``score``, a mask."""
        found = []
        for i, (box, label) in enumerate(zip(self.boxes.astype(np.float64).tolist(), self.labels, strict=True)):
            score = nine_digits(float(self.scores[i]))
            one = {"image_id": image_id, "category_id": self.category_ids[label], "bbox": to_xywh(box), "score": score}
            mask = {} if self.run_lengths is None else {"segmentation": plain_mask(self.run_lengths[i])}
            found.append({**one, **mask})
        return found

    def plot(self) -> Picture:
        """The picture with boxes, names and scores, and the masks."""
        return drawn(self.pixels(), self._annotation(), self.palette(), self.class_names)

    def to_supervision(self) -> Any:
        """``supervision.Detections``, with ``class_name`` in its data."""
        return import_supervision().Detections(
            xyxy=self.boxes.reshape(-1, 4),
            mask=self.masks,
            confidence=self.scores,
            class_id=self.labels,
            data={"class_name": np.array(self.names, dtype=str)},
        )

    def _annotation(self) -> dict[str, NDArray[Any]]:
        found: dict[str, Any] = {"boxes": self.boxes, "labels": self.labels, "scores": self.scores}
        return found if self.masks is None else {**found, "masks": self.masks}

    def _write(self, files: ImageFiles) -> None:
        files.write_overlay(self._annotation())


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class SegmentationResult(Result):
    """The class of each pixel.

    Attributes:
        mask: uint8 (H, W), numbers of the classes; multi-label (K, H, W) of 0 and 1.
    """

    mask: NDArray[np.uint8]

    def mask_of(self, label: int) -> NDArray[np.bool_]:
        """Where a class is: bool (H, W)."""
        return np.asarray(self.mask == label if self.mask.ndim == 2 else self.mask[label] == 1)

    @property
    def labels(self) -> list[int]:
        """Numbers of the classes that are in the picture."""
        if self.mask.ndim == 3:
            return [int(k) for k in np.flatnonzero(self.mask.any((1, 2)))]
        return [int(k) for k in np.unique(self.mask) if k != IGNORE]

    @property
    def areas(self) -> dict[str, float]:
        """The fraction of the picture that each class covers, 0 to 1."""
        return {name: float(self.mask_of(k).mean()) for k, name in enumerate(self.class_names)}

    def summary(self) -> str:
        """The classes that are there, with their parts of the picture."""
        areas = self.areas
        return ", ".join(f"{self.class_names[k]} {areas[self.class_names[k]]:.0%}" for k in self.labels)

    def to_coco(self, image_id: int = 1) -> list[dict[str, Any]]:
        """One dict a class that is there: ``image_id``, ``category_id``, and run lengths as ``segmentation``."""
        return [
            {"image_id": image_id, "category_id": self.category_ids[k], "segmentation": plain_mask(mask)}
            for k, mask in zip(self.labels, self._run_lengths(), strict=True)
        ]

    def plot(self) -> Picture:
        """The picture with the classes in translucent colors."""
        return drawn(self.pixels(), {"mask": self.mask}, self.palette(), self.class_names)

    def to_supervision(self) -> Any:
        """``supervision.Detections``, one a class that is there: its mask, the box around it, and no score."""
        supervision = import_supervision()
        masks = np.array([self.mask_of(k) for k in self.labels], bool).reshape(-1, *self.size)
        names = np.array([self.class_names[k] for k in self.labels], dtype=str)
        return supervision.Detections(
            xyxy=supervision.mask_to_xyxy(masks).astype(np.float32).reshape(-1, 4),
            mask=masks,
            class_id=np.array(self.labels, np.int64),
            data={"class_name": names},
        )

    def _run_lengths(self) -> list[dict[str, Any]]:
        return rle.of_masks(torch.from_numpy(np.array([self.mask_of(k) for k in self.labels]).reshape(-1, *self.size)))

    def _write(self, files: ImageFiles) -> None:
        files.write_mask(self.mask)
