"""faster-coco-eval's evaluation, fed with flat columns: COCO's tables of precision and recall, as of pycocotools."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from faster_coco_eval import COCOeval_faster

from datamodules.common import rle
from tasks.detection.evaluation.matching import Floats, corner_and_size, iou_by_image, ranked
from tasks.detection.evaluation.objects import Objects

ALL_SIZES = (0.0, 1e10)


def coco_evaluate(
    predicted: Objects,
    true: Objects,
    num_classes: int,
    *,
    masks: bool,
    sizes: Sequence[tuple[float, float]],
    max_detections: Sequence[int],
    iou_thresholds: Floats,
) -> tuple[Floats, Floats]:
    """COCO's table of precisions and recalls, equal to pycocotools; NaN for classes (and sizes) without annotations.

    Args:
        predicted: Detections; of equal scores, those of lower images and then of lower places come first.
        true: Annotations.
        num_classes: K.
        masks: Compare masks in place of boxes.
        sizes: Areas from and to, beside that of all sizes, which comes first: A in all.
        max_detections: M numbers of detections of an image and class, rising.
        iou_thresholds: float64 (T,).

    Returns:
        Precision float64 (T, 101, K, A, M) at the recalls 0, 0.01, ... 1, and recall float64 (T, K, A, M).
    """
    shape = (len(iou_thresholds), num_classes, 1 + len(sizes), len(max_detections))
    precision, recall = np.full((shape[0], 101, *shape[1:]), np.nan), np.full(shape, np.nan)
    predicted = ranked(predicted, num_classes, max_detections[-1])
    pairs = zip(_by_class(predicted, num_classes), _by_class(true, num_classes), strict=True)
    for number, (detections, truths) in enumerate(pairs):
        if truths.crowd.all():
            continue
        evaluation = _Evaluation(detections, truths, masks)
        settings = evaluation.params
        settings.imgIds, settings.catIds = np.union1d(detections.image, truths.image).tolist(), [0]
        settings.areaRng = [list(size) for size in (ALL_SIZES, *sizes)]
        settings.maxDets, settings.iouThrs = list(max_detections), iou_thresholds
        evaluation.evaluate()
        evaluation.accumulate()
        for table, name in ((precision, "precision"), (recall, "recall")):
            values = evaluation.eval[name][..., 0, :, :]
            table[..., number, :, :] = np.where(values < 0, np.nan, values)
    return precision, recall


def _by_class(objects: Objects, num_classes: int) -> Iterator[Objects]:
    order = np.argsort(objects.labels, kind="stable")
    bounds = np.searchsorted(objects.labels[order], np.arange(num_classes + 1))
    return (objects.take(order[start:end]) for start, end in pairwise(bounds))


class _Evaluation(COCOeval_faster):
    """COCO's evaluation of one class, fed with overlaps and areas that are computed here for all images.

    Fed as COCO files are, it spends half of its time on Python's side, with indices and with lookups for each image
    and class; and all classes at once fill gigabytes, though most images have few of many classes. It is told that
    all are boxes, which matters for the overlaps only.
    """

    def __init__(self, detections: Objects, truths: Objects, masks: bool) -> None:
        super().__init__(_Annotations(truths, masks), _Annotations(detections, masks), "bbox")
        self.tables = {image: iou.tolist() for image, _, _, iou in iou_by_image(detections, truths, masks)}

    def computeIoU(self, imgId: int, catId: int) -> list[list[float]]:
        """The overlaps of an image's detections, in the order of falling score, with its annotations."""
        table: list[list[float]] = self.tables.get(imgId, [])
        return table


class _Annotations:
    """As much of a COCO data set as its evaluation asks for."""

    def __init__(self, objects: Objects, masks: bool) -> None:
        area = rle.areas(objects.masks.tolist()) if masks else corner_and_size(objects.boxes)[:, 2:].prod(1)
        area = np.where(np.isnan(objects.area), area, objects.area)
        columns = [column.tolist() for column in (objects.image, objects.scores, objects.crowd, area)]
        self.annotations = [
            {"id": i, "image_id": image, "category_id": 0, "score": score, "iscrowd": int(crowd), "area": size}
            for i, (image, score, crowd, size) in enumerate(zip(*columns, strict=True), 1)  # 0 would mean unmatched
        ]

    def getImgIds(self) -> list[int]:
        return []  # set in the evaluation's parameters

    def getCatIds(self) -> list[int]:
        return []

    def getAnnIds(self, imgIds: Any, catIds: Any) -> None:
        return None  # all

    def loadAnns(self, ids: Any) -> list[dict[str, Any]]:
        return self.annotations
