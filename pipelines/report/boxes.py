"""Detected objects: what is measured of each image, and what a report says of them.

Of each of N images: ``each.boxes`` float32 (D, 4), ``each.scores`` float32 and ``each.labels`` int32 of what was
detected, in the order of falling score; ``each.truth_boxes``, ``each.truth_labels``, ``each.truth_crowd`` uint8 and
``each.truth_area`` float32 of what is annotated; ``each.pairs`` int32 (P, 2) and ``each.pair_iou`` float32, detections
and annotations of the image, by their numbers in it, that overlap by 0.1 or more: by their masks, where masks are
learned, else by their boxes. ``facts`` has the ``thresholds`` of the classes, from the validation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

from pipelines.report.collect import hash_of
from pipelines.report.measured import Measured
from pipelines.report.scoring import Scorer
from pipelines.scorers import average_precision
from tasks.calibration import AT, lowest
from tasks.detection.evaluation.matching import Matching, assign

MAIN = "map"
REPLICATES = 500  # each ranks all boxes again
IOUS = np.linspace(0.5, 0.95, 10)  # COCO's

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def collect(batch: Mapping[str, Any], outputs: Mapping[str, Any], classes: int, divisor: float) -> dict[str, Any]:
    """What is kept of a batch; see ``images.collect``."""
    kept: dict[str, list[Any]] = {
        "boxes": [boxes.cpu().numpy().astype(np.float32).reshape(-1, 4) for boxes in outputs["boxes"]],
        "scores": [scores.cpu().numpy().astype(np.float32) for scores in outputs["scores"]],
        "labels": [labels.cpu().numpy().astype(np.int32) for labels in outputs["labels"]],
    }
    truths = [{key: np.asarray(value) for key, value in target.items()} for target in batch["target"]]
    boxes = [truth["boxes"].astype(np.float32).reshape(-1, 4) for truth in truths]
    labels = [truth["labels"].astype(np.int32) for truth in truths]
    sides = [of_image[:, 2:] - of_image[:, :2] for of_image in boxes]
    kept |= {
        "truth_boxes": boxes,
        "truth_labels": labels,
        "truth_crowd": [np.asarray(t.get("iscrowd", np.zeros(len(t["labels"]))), np.uint8) for t in truths],
        "truth_area": [np.asarray(t.get("area", s.prod(1)), np.float32) for t, s in zip(truths, sides, strict=True)],
    }
    return {**kept, "truth_hash": np.array([hash_of(*both) for both in zip(boxes, labels, strict=True)], np.int64)}


def finished(measured: Measured, task: Any) -> Measured:
    """With the pairs that the task's metric found, and the thresholds of its checkpoint."""
    metrics = task.eval_metrics
    matching: Matching = metrics.matchings[metrics.iou_types[-1]]
    of_detection, of_truth = (_numbers_in_image(image) for image in (matching.image, matching.true_image))
    detection, truth = matching.pairs
    image = matching.image[detection]
    order = np.argsort(image, kind="stable")
    pairs = np.stack([of_detection[detection], of_truth[truth]], 1).astype(np.int32)[order]
    each = {**measured.each, "pairs": pairs, "pair_iou": matching.pair_iou.astype(np.float32)[order]}
    number = np.bincount(image, minlength=len(measured))
    counts = {**measured.counts, "pairs": number, "pair_iou": number}
    facts = {**measured.facts, "thresholds": task.thresholds().tolist(), "masks": metrics.iou_types[-1] == "segm"}
    return replace(measured, facts=facts, each=each, counts=counts)


def _numbers_in_image(image: Ints) -> Ints:
    """Of objects (D,) with the images they are in: the number of each within its image."""
    order = np.argsort(image, kind="stable")
    numbers = np.empty(len(image), np.int64)
    numbers[order] = np.arange(len(image)) - np.searchsorted(image[order], image[order])
    return numbers


def matching_of(measured: Measured, iou: float = 0.5, ignored: NDArray[np.bool_] | None = None) -> Matching:
    """Which detection found which annotation, at an IoU; ``ignored`` annotations (T,) only where no other is left."""
    image, true_image = measured.image_of("scores"), measured.image_of("truth_labels")
    scores, labels = measured.each["scores"], measured.each["labels"].astype(np.int64)
    true_labels, crowd = measured.each["truth_labels"].astype(np.int64), measured.each["truth_crowd"] != 0
    order = np.lexsort((image, -scores))
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    first, first_true = (
        np.cumsum(measured.counts[name]) - measured.counts[name] for name in ("scores", "truth_labels")
    )
    of_pair = measured.image_of("pairs")
    detection = place[first[of_pair] + measured.each["pairs"][:, 0]]
    truth = first_true[of_pair] + measured.each["pairs"][:, 1]
    overlap = measured.each["pair_iou"].astype(np.float64)
    labels = labels[order]
    same = (labels[detection] == true_labels[truth]) & (overlap >= iou - 1e-6)
    found = assign(detection[same], truth[same], overlap[same], len(order), crowd, ignored)
    pairs = np.stack([detection, truth])
    classes, images = len(measured.class_names), len(measured)
    return Matching(
        classes, images, iou, image[order], labels, scores[order], found, true_image, true_labels, crowd, pairs, overlap
    )


def thresholds(measured: Measured) -> Floats:
    """The confidence from which on objects of each class are shown, (K,)."""
    return np.asarray(measured.facts["thresholds"], np.float64)


def by_class(image: Ints, labels: Ints, measured: Measured) -> Ints:
    """How many of some objects, given by image and class, are in each image and of each class, (N, K)."""
    table = np.zeros((len(measured), len(measured.class_names)), np.int64)
    np.add.at(table, (image, labels), 1)
    return table


def scorer(measured: Measured) -> Scorer:
    """AP50 and mAP."""
    precision = _average_precisions(measured, IOUS)

    def score(counts: NDArray[Any]) -> dict[str, Floats]:
        table = precision(counts)
        return {"map": table.mean(1), "map_50": table[:, 0]}

    return score


def scorer_50(measured: Measured) -> Scorer:
    """AP50 alone, which costs a tenth of both."""
    precision = _average_precisions(measured, IOUS[:1])
    return lambda counts: {"map_50": precision(counts)[:, 0]}


def _average_precisions(measured: Measured, ious: Floats) -> Callable[[NDArray[Any]], Floats]:
    """Of counts of images (R, N) the mean average precision at T IoUs, (R, T)."""
    each = [matching_of(measured, float(iou)) for iou in ious]
    one = each[0]
    hit, ignored = np.stack([m.hit for m in each]), np.stack([m.ignored for m in each])
    truths = by_class(one.true_image[~one.crowd], one.true_labels[~one.crowd], measured)
    return lambda counts: average_precision(counts, one.image, one.labels, hit, ignored, truths)


def size_scorer(measured: Measured, low: float, high: float, ious: Floats = IOUS[:1]) -> Scorer:
    """COCO's average precision of the objects with an area from ``low`` to ``high`` pixels: the mean over ``ious``.

    Other objects, what finds them, and what finds nothing and has another area itself count neither way. The area of
    what was detected is that of its box.
    """
    area = measured.each["truth_area"]
    outside = (area < low) | (area > high) | (measured.each["truth_crowd"] != 0)
    each = [matching_of(measured, float(iou), outside) for iou in ious]
    one = each[0]
    order = np.lexsort((measured.image_of("scores"), -measured.each["scores"]))
    sides = (measured.each["boxes"][:, 2:] - measured.each["boxes"][:, :2])[order]
    other = (sides.prod(1) < low) | (sides.prod(1) > high)
    hit = np.stack([(m.truth >= 0) & ~outside[m.truth] for m in each])
    ignored = np.stack([np.where(m.truth >= 0, outside[m.truth], other) for m in each])
    truths = by_class(one.true_image[~outside], one.true_labels[~outside], measured)
    return lambda counts: {"ap": average_precision(counts, one.image, one.labels, hit, ignored, truths).mean(1)}


def confidences(measured: Measured, temperature: float = 1.0) -> tuple[Floats, NDArray[np.bool_], Ints]:
    """Of each detection its score, whether it is right at an IoU of 0.5, and its image; those of crowds left out.

    Args:
        measured: The images.
        temperature: What the logits of the scores are divided by.
    """
    matching = matching_of(measured)
    kept = ~matching.ignored
    return expit(_logits(matching.scores[kept]) / temperature), matching.hit[kept], matching.image[kept]


def _logits(scores: NDArray[Any]) -> Floats:
    return np.asarray(logit(np.clip(scores.astype(np.float64), 1e-7, 1 - 1e-7)))


def likelihood(scores: Floats, right: NDArray[np.bool_], temperature: float = 1.0) -> float:
    """Mean negative log-likelihood of being right, of scores whose logits are divided by a temperature."""
    logits = _logits(scores) / temperature
    return float(np.logaddexp(0, np.where(right, -logits, logits)).mean())


def temperature_of(measured: Measured) -> float:
    """The temperature at which the scores say best how often a detection is right; 1 where there is none."""
    scores, right, _ = confidences(measured)
    return lowest(np.array([likelihood(scores, right, t) for t in AT])) if len(scores) else 1.0
