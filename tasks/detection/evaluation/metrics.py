"""COCO's metrics of boxes and masks: kept as flat columns on the CPU, gathered once, computed on one rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torchmetrics import Metric

from datamodules.common.errors import UserError
from tasks.detection.evaluation.coco import coco_evaluate
from tasks.detection.evaluation.curves import (
    Curve,
    Thresholds,
    ap_dsb,
    best_thresholds,
    confusion_matrix,
    error_kinds,
    precision_recall,
)
from tasks.detection.evaluation.gathering import Seen, on_rank_zero
from tasks.detection.evaluation.matching import Floats, Ints, Matching, match
from tasks.detection.evaluation.objects import check_mask_sizes, predicted_objects, true_objects

IouType = Literal["bbox", "segm"]
COCO_SIZES = {"small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)}
COCO_IOUS = tuple(np.linspace(0.5, 0.95, 10).tolist())
PREFIX: dict[IouType, str] = {"bbox": "", "segm": "mask_"}

Values = dict[str, float]
"""Metrics by name."""
Columns = dict[str, list[Any]]
"""Metrics by name, one number for each class."""


@dataclass(frozen=True)
class _Outcome:
    """What is computed on rank 0 and told to all."""

    values: Values
    per_class: Columns
    thresholds: dict[IouType, Thresholds]


@dataclass(frozen=True)
class Report:
    """What a table of average precision does not say, at an IoU of 0.5; see `tasks.detection.evaluation.curves`.

    Attributes:
        curves: Precision and recall of each class.
        thresholds: The confidences of highest F1 on these images.
        used: The confidences float64 (K,) that the two tables are taken at.
        confusion: int64 (K + 1, K + 1), rows the annotated class, columns the detected one, the last is background.
        errors: Kinds of errors and `correct`, each int64 (K,).
    """

    curves: list[Curve]
    thresholds: Thresholds
    used: Floats
    confusion: Ints
    errors: dict[str, Ints]


class CocoMetrics(Metric):
    """COCO's mean average precision and recall, equal to pycocotools, and what follows from the matching at IoU 0.5.

    `compute` gives float32 scalars on the CPU, the same names always and on all ranks. Each is the mean over the
    classes that have annotations; NaN (where COCO has -1) if none has:
    `map` over the IoU thresholds, `map_50`, `map_75` (NaN if the threshold is not among them), `map_{size}` of objects
    of a size, `mar_{n}` recall with at most n detections of an image and class, `mar_{size}`; `f1` with each class at
    its threshold; `ap_dsb`, TP / (TP + FP + FN) of all classes together at these thresholds. For masks the names
    start with `mask_`. The thresholds are those of `at` if that is set, else the best ones of the very images seen.

    Average precision takes in all detections, whatever their score. Sizes are those of the annotations' ``area``,
    without one of their boxes (for masks: of their masks), and of the detections. Images are evaluated in the order
    of their ids, so detections of equal score are ranked in one way, however images are spread over ranks. States are
    plain attributes, which weight averaging leaves alone and no checkpoint holds.

    Attributes:
        thresholds: For ``bbox`` and ``segm``: confidences of highest F1, as of the last `compute`; on all ranks.
        matchings: For ``bbox`` and ``segm``: the matching at IoU 0.5 of all images, as of the last `compute`, for
            the curves and tables of `tasks.detection.evaluation.curves`; on rank 0 alone, elsewhere empty.
        at: Thresholds to take `f1` and `ap_dsb` at, for example those in a checkpoint, chosen on other images.
    """

    full_state_update = False

    def __init__(
        self,
        num_classes: int,
        iou_type: IouType | Sequence[IouType] = "bbox",
        max_detections: int = 100,
        size_ranges: Mapping[str, tuple[float, float]] | None = None,
        iou_thresholds: Sequence[float] = COCO_IOUS,
        *,
        sync: bool = True,
    ) -> None:
        """Start empty; see the class for what is computed.

        Args:
            num_classes: K.
            iou_type: ``bbox`` for boxes, ``segm`` for masks, or both.
            max_detections: Of each image and class, the highest-scoring ones are evaluated.
            size_ranges: Names, and areas in pixels from and to (both belong to the range); COCO's small, medium and
                large if None.
            iou_thresholds: IoU thresholds in [0, 1], rising.
            sync: Whether `compute` gathers from all ranks; without it for what one rank alone looks at.

        Raises:
            UserError: If a setting makes no sense.
        """
        # This class gathers by itself. A cached value would let ranks disagree on whether to gather.
        super().__init__(sync_on_compute=False, compute_with_cache=False)
        self.num_classes = num_classes
        self.iou_types: tuple[IouType, ...] = (iou_type,) if isinstance(iou_type, str) else tuple(sorted(iou_type))
        self.max_detections = max_detections
        self.size_ranges = dict(COCO_SIZES if size_ranges is None else size_ranges)
        self.iou_thresholds = np.asarray(iou_thresholds, np.float64)
        self._gathers = sync
        self._check()
        self.at: Mapping[IouType, Thresholds] | None = None
        self._parts: list[Seen] = []
        self._outcome: _Outcome | None = None
        self.matchings: dict[IouType, Matching] = {}

    def _check(self) -> None:
        if not self.iou_types or set(self.iou_types) - set(PREFIX):
            raise UserError(f"iou_type is {list(self.iou_types)}; it must be bbox, segm or both.")
        if self.max_detections < 1:
            raise UserError(f"model.max_detections is {self.max_detections}; it must be at least 1.")
        for name, (low, high) in self.size_ranges.items():
            if not 0 <= low < high:
                raise UserError(
                    f"model.size_ranges.{name} is {low:g} to {high:g}; give a smaller and a larger area in pixels,"
                    " for example [0, 1024] for all up to 32 x 32."
                )
        ious = self.iou_thresholds
        if not len(ious) or (np.diff(ious) <= 0).any() or not ((ious >= 0) & (ious <= 1)).all():
            raise UserError(f"iou_thresholds are {ious.tolist()}; they must rise, within 0 to 1.")

    @property
    def recall_counts(self) -> list[int]:
        """Numbers of detections that recall is given for: 1, 10 and the most."""
        return sorted({1, 10, self.max_detections} & set(range(self.max_detections + 1)))

    @property
    def thresholds(self) -> dict[IouType, Thresholds]:
        """See the class; empty before `compute`."""
        return {} if self._outcome is None else self._outcome.thresholds

    def update(
        self,
        predictions: Mapping[str, Sequence[Any]],
        targets: Sequence[Mapping[str, Any]],
        image_ids: Tensor | Sequence[int],
    ) -> None:
        """Add a batch of B images, all in pixels of the original pictures.

        Args:
            predictions: Lists of B tensors: ``boxes`` float (n, 4) x1 y1 x2 y2, ``scores`` float (n,), ``labels`` int
                (n,) 0 to K - 1; for masks ``masks``, bool or uint8 (n, H, W), or lists of n run-length encodings.
            targets: B dicts: ``boxes`` float (N, 4), ``labels`` int (N,); optional ``iscrowd`` (N,) and ``area``
                (N,) in pixels; for masks ``masks`` int (L, H, W), object numbers 1 to N in layers, 0 none.
            image_ids: B numbers, each image's own.

        Raises:
            UserError: If a label is not in 0 to K - 1, or masks are missing or of another size.
        """
        images = np.asarray(image_ids.tolist() if isinstance(image_ids, Tensor) else image_ids, np.int64)
        if not len(images) == len(targets) == len(predictions["scores"]):
            sizes = f"{len(predictions['scores'])} predictions, {len(targets)} targets and {len(images)} ids"
            raise UserError(f"The metric was given {sizes} of images; they must be as many.")
        if not len(images):
            return
        masks = "segm" in self.iou_types
        predicted = predicted_objects(predictions, images, self.num_classes, masks=masks)
        true = true_objects(targets, images, self.num_classes, masks=masks)
        if masks:
            check_mask_sizes(predicted, true)
        self._parts.append(Seen(images, predicted, true))

    def reset(self) -> None:
        """Forget all images and results."""
        super().reset()
        self._parts, self._outcome, self.matchings = [], None, {}

    def compute(self) -> dict[str, Tensor]:
        """All metrics by name, over all ranks; every rank has to call it, those without images too.

        Raises:
            UserError: If two images have the same id.
        """
        self._parts = [Seen.join(self._parts)]
        self._outcome = on_rank_zero(self._evaluate, self._parts[0], sync=self._gathers)
        return {name: torch.tensor(value, dtype=torch.float32) for name, value in self._outcome.values.items()}

    def per_class(self) -> Columns:
        """Columns by class number, as of the last `compute` (none before), on all ranks; NaN without annotations.

        `ap`, `ap_50`, `ap_75`, `ar` (recall with the most detections), `f1` and its `threshold`, and at that
        threshold `number_correct` and `number_{kind}` of each kind of errors (see `error_kinds`), for masks with
        `mask_` before the name; `boxes`, the number of annotations that are no crowds.
        """
        return {} if self._outcome is None else self._outcome.per_class

    def report(self, kind: IouType | None = None, thresholds: ArrayLike | None = None) -> Report | None:
        """Curves, best thresholds, confusion matrix and kinds of errors, as of the last `compute`.

        Args:
            kind: Of boxes or of masks; by default of masks where they are evaluated.
            thresholds: Confidences that the tables are taken at, one or K; by default those of `at`, else the best.

        Returns:
            None before `compute`, and on all ranks but 0.
        """
        kind = kind or self.iou_types[-1]
        matching = self.matchings.get(kind)
        if matching is None:
            return None
        curves = precision_recall(matching)
        best = self.thresholds[kind]
        if thresholds is None:
            thresholds = (best if self.at is None else self.at[kind]).per_class
        used = np.broadcast_to(np.asarray(thresholds, np.float64), self.num_classes)
        return Report(curves, best, used, confusion_matrix(matching, used), error_kinds(matching, used))

    def _evaluate(self, parts: Sequence[Seen]) -> _Outcome:
        seen = Seen.join(parts).in_order()
        outcome = _Outcome({}, {}, {})
        for kind in self.iou_types:
            matching = match(
                seen.predicted,
                seen.true,
                self.num_classes,
                len(seen.images),
                masks=kind == "segm",
                max_detections=self.max_detections,
            )
            self.matchings[kind] = matching
            outcome.thresholds[kind] = best_thresholds(precision_recall(matching))
            used = outcome.thresholds[kind] if self.at is None else self.at[kind]
            for values, columns in (self._averages(kind, seen), _at_thresholds(matching, used.per_class)):
                outcome.values.update({PREFIX[kind] + name: value for name, value in values.items()})
                outcome.per_class.update({PREFIX[kind] + name: column for name, column in columns.items()})
        no_crowds = seen.true.labels[~seen.true.crowd]
        outcome.per_class["boxes"] = np.bincount(no_crowds, minlength=self.num_classes).tolist()
        return outcome

    def _averages(self, kind: IouType, seen: Seen) -> tuple[Values, Columns]:
        """Average precision and recall, from COCO's tables."""
        precision, recall = coco_evaluate(
            seen.predicted,
            seen.true,
            self.num_classes,
            masks=kind == "segm",
            sizes=list(self.size_ranges.values()),
            max_detections=self.recall_counts,
            iou_thresholds=self.iou_thresholds,
        )
        average, reached = precision.mean(1), recall.mean(0)  # (T, K, A, M) and (K, A, M); a class is NaN or not
        by_class: dict[str, Floats] = {"ap": average[:, :, 0, -1].mean(0)}
        for name, iou in (("ap_50", 0.5), ("ap_75", 0.75)):
            which = np.flatnonzero(np.isclose(self.iou_thresholds, iou))
            by_class[name] = average[which[0], :, 0, -1] if len(which) else np.full(self.num_classes, np.nan)
        values = {"m" + name: _mean(column) for name, column in by_class.items()}
        values |= {f"map_{size}": _mean(average[:, :, i, -1]) for i, size in enumerate(self.size_ranges, 1)}
        values |= {f"mar_{count}": _mean(reached[:, 0, i]) for i, count in enumerate(self.recall_counts)}
        values |= {f"mar_{size}": _mean(reached[:, i, -1]) for i, size in enumerate(self.size_ranges, 1)}
        by_class["ar"] = reached[:, 0, -1]
        return values, {name: column.tolist() for name, column in by_class.items()}


def _at_thresholds(matching: Matching, thresholds: list[float]) -> tuple[Values, Columns]:
    """F1, the Data Science Bowl's precision and kinds of errors, each class at its confidence threshold."""
    curves = precision_recall(matching)
    f1 = [float(curve.f1_at(threshold)) for curve, threshold in zip(curves, thresholds, strict=True)]
    values = {"f1": _mean(np.asarray(f1)), "ap_dsb": ap_dsb(matching, thresholds)}
    columns: Columns = {"f1": f1, "threshold": list(thresholds)}
    columns |= {f"number_{kind}": counts.tolist() for kind, counts in error_kinds(matching, thresholds).items()}
    return values, columns


def _mean(values: NDArray[Any]) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")
