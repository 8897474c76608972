"""Which detection found which annotation, by COCO's rules: the ground that curves and tables of errors stand on.

Within an image and class, detections in the order of falling score take the free annotation that they overlap most; a
detection that finds only a crowd is neither right nor wrong. As earlier choices never depend on later ones, one
matching holds for every confidence threshold.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from datamodules.common import rle
from tasks.detection.evaluation.objects import Objects

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

BACKGROUND_IOU = 0.1  # what overlaps less is background, as in TIDE


@dataclass(frozen=True)
class Matching:
    """D detections in the order of falling score, T annotations, and which belong together.

    Attributes:
        num_classes: K.
        num_images: Images, those without any object included.
        iou_threshold: From which IoU on a detection can find an annotation.
        image: int64 (D,), positions of the images.
        labels: int64 (D,).
        scores: float32 (D,), falling.
        truth: int64 (D,), the annotation of the same class that the detection found; -1 where it found none.
        true_image: int64 (T,), positions of the images.
        true_labels: int64 (T,).
        crowd: bool (T,).
        pairs: int64 (2, P), detection and annotation of each pair in one image with an IoU of 0.1 or more, of the
            same class or not; over a crowd, intersection over the detection's own area takes the place of the IoU.
        pair_iou: float64 (P,).
    """

    num_classes: int
    num_images: int
    iou_threshold: float
    image: Ints
    labels: Ints
    scores: NDArray[np.float32]
    truth: Ints
    true_image: Ints
    true_labels: Ints
    crowd: Bools
    pairs: Ints
    pair_iou: Floats

    @cached_property
    def hit(self) -> Bools:
        """True positives, bool (D,)."""
        return (self.truth >= 0) & ~self.ignored

    @cached_property
    def ignored(self) -> Bools:
        """Detections that found a crowd and count neither way, bool (D,)."""
        return np.append(self.crowd, False)[self.truth]  # -1 is the last

    @cached_property
    def num_truths(self) -> Ints:
        """int64 (K,), annotations of each class, without crowds."""
        return np.bincount(self.true_labels[~self.crowd], minlength=self.num_classes)

    def kept(self, thresholds: ArrayLike) -> Bools:
        """Which detections, bool (D,), have a score of the threshold or above: one for all, or one for each class."""
        return self.scores >= np.broadcast_to(np.asarray(thresholds, np.float64), self.num_classes)[self.labels]

    def found(self, kept: Bools) -> Bools:
        """Which annotations, bool (T,), the `kept` detections (D,) found."""
        result = np.zeros(len(self.crowd), np.bool_)
        result[self.truth[kept & self.hit]] = True
        return result


def match(
    predicted: Objects,
    true: Objects,
    num_classes: int,
    num_images: int,
    *,
    masks: bool = False,
    iou_threshold: float = 0.5,
    max_detections: int = 100,
) -> Matching:
    """Match by COCO's rules, those of `COCOeval` for objects of all sizes.

    Args:
        predicted: Detections.
        true: Annotations.
        num_classes: K.
        num_images: I; ``image`` of the objects is in 0 to I - 1.
        masks: Compare masks in place of boxes.
        iou_threshold: At least 0.1.
        max_detections: Of each image and class, the highest-scoring ones are taken.
    """
    predicted = ranked(predicted, num_classes, max_detections)
    detection, truth, iou = _overlaps(predicted, true, masks)
    same = (predicted.labels[detection] == true.labels[truth]) & (iou >= min(iou_threshold, 1 - 1e-10))
    return Matching(
        num_classes,
        num_images,
        iou_threshold,
        predicted.image,
        predicted.labels.astype(np.int64),
        predicted.scores,
        assign(detection[same], truth[same], iou[same], len(predicted), true.crowd),
        true.image,
        true.labels.astype(np.int64),
        true.crowd,
        np.stack([detection, truth]),
        iou,
    )


def ranked(predicted: Objects, num_classes: int, max_detections: int) -> Objects:
    """The highest-scoring ones of each image and class, all in the order of falling score.

    Of equal scores, those of lower images and then those of lower places come first, as in COCO's evaluation.
    """
    order = np.lexsort((predicted.image, -predicted.scores))  # stable
    group = (predicted.image * num_classes + predicted.labels)[order]
    by_group = np.argsort(group, kind="stable")
    rank = np.empty(len(order), np.int64)
    rank[by_group] = np.arange(len(order)) - np.searchsorted(group[by_group], group[by_group])
    return predicted.take(order[rank < max_detections])


def iou_by_image(predicted: Objects, true: Objects, masks: bool) -> Iterator[tuple[int, Ints, Ints, Floats]]:
    """Images that have both detections and annotations: the image, the places of its n and m, their IoU (n, m).

    Over a crowd, intersection over the detection's own area takes the place of the IoU.
    """
    images = np.intersect1d(predicted.image, true.image)
    columns: list[Any] = [images.tolist()]
    shapes: list[Any] = []
    for objects in (predicted, true):
        order = np.argsort(objects.image, kind="stable")
        bounds = np.searchsorted(objects.image[order], np.stack([images, images + 1]))
        columns.append([slice(*ends) for ends in bounds.T.tolist()])
        shapes.append(objects.masks[order].tolist() if masks else corner_and_size(objects.boxes[order]))
        shapes.append(order)
    left, places, right, true_places = shapes
    crowd = true.crowd[true_places].astype(np.int64).tolist()
    for image, rows, others in zip(*columns, strict=True):
        yield image, places[rows], true_places[others], rle.iou(left[rows], right[others], crowd[others])


def _overlaps(predicted: Objects, true: Objects, masks: bool) -> tuple[Ints, Ints, Floats]:
    """Detection, annotation and IoU of the pairs with 0.1 or more."""
    parts = [(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))]
    for _, detections, truths, iou in iou_by_image(predicted, true, masks):
        rows, columns = np.nonzero(iou >= BACKGROUND_IOU)
        parts.append((detections[rows], truths[columns], iou[rows, columns]))
    detection, truth, iou = (np.concatenate(column) for column in zip(*parts, strict=True))
    return detection, truth, iou


def corner_and_size(boxes: NDArray[np.float32]) -> Floats:
    """float64 (N, 4): x y width height, as COCO has them."""
    result = boxes.astype(np.float64)
    result[:, 2:] -= result[:, :2]
    return result


def assign(
    detection: Ints, truth: Ints, iou: Floats, num_detections: int, crowd: Bools, ignored: Bools | None = None
) -> Ints:
    """The annotation that each detection takes, -1 for none: in turn, the free one with the highest IoU.

    A crowd is taken only where nothing else is free, and stays free. Of equal IoUs COCO takes the later annotation.
    So is what else is ``ignored`` (T,), for example objects of other sizes, which does not stay free.
    """
    last_choice = crowd if ignored is None else crowd | ignored
    order = np.lexsort((-truth, -iou, last_choice[truth], detection))
    result = np.full(num_detections, -1)
    taken = crowd.tolist()  # of no further use: whether it is a crowd is looked at first
    last = -1
    choices = (detection[order].tolist(), truth[order].tolist(), crowd[truth[order]].tolist())
    for number, candidate, is_crowd in zip(*choices, strict=True):
        if number != last and (is_crowd or not taken[candidate]):
            last, taken[candidate], result[number] = number, True, candidate
    return result
