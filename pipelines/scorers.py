"""What a model scores on a set of images, and on any resample of them: counts of the images in, scores out.

Pure functions of arrays. A resample of the bootstrap is given by how often each image was drawn, (R, N) for R resamples
of N images; the metric of an image drawn twice is that of two such images.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Counts = NDArray[Any]
CELLS = 4_000_000  # numbers of a table that is worked on at once
RECALLS = np.linspace(0, 1, 101)  # COCO's


def accuracy(counts: Counts, right: NDArray[np.bool_]) -> Floats:
    """Fraction of the images that are right.

    Args:
        counts: (R, N).
        right: bool (N,).

    Returns:
        float64 (R,).
    """
    fraction: Floats = counts @ right.astype(np.float64) / counts.sum(1)
    return fraction


def mean_iou(counts: Counts, confusion: NDArray[Any]) -> Floats:
    """Mean over the classes of intersection over union, of all pixels together; classes that do not occur do not count.

    Args:
        counts: (R, N).
        confusion: (N, K, K), pixels of each image, rows the true classes.

    Returns:
        float64 (R,).
    """
    hits = confusion.diagonal(axis1=1, axis2=2)
    return mean_of_known(class_ious(counts, hits, confusion.sum(1) + confusion.sum(2) - hits))


def class_ious(counts: Counts, hits: NDArray[Any], union: NDArray[Any]) -> Floats:
    """Intersection over union of each class, of all pixels together; NaN for classes that do not occur.

    Args:
        counts: (R, N).
        hits: (N, K), right pixels of each image.
        union: (N, K), pixels of the class in truth or prediction.

    Returns:
        float64 (R, K).
    """
    weights = np.asarray(counts, np.float64)
    right, all_of_them = weights @ hits.astype(np.float64), weights @ union.astype(np.float64)
    iou: Floats = np.where(all_of_them > 0, right / np.maximum(all_of_them, 1), np.nan)
    return iou


def f1_of_counts(counts: Counts, hits: Any, predicted: Any, actual: Any) -> Floats:
    """F1 of each class, NaN for classes that neither occur nor are predicted.

    Args:
        counts: (R, N).
        hits: (N, K), arrays or sparse matrices: what is right of each image and class.
        predicted: What is predicted.
        actual: What is true.

    Returns:
        float64 (R, K).
    """
    weights = np.asarray(counts, np.float64)
    right, total = weights @ hits, weights @ predicted + weights @ actual
    f1: Floats = np.where(total > 0, 2 * right / np.maximum(total, 1), np.nan)
    return f1


def average_precision(
    counts: Counts,
    image: NDArray[Any],
    labels: NDArray[Any],
    hit: NDArray[np.bool_],
    ignored: NDArray[np.bool_],
    truths: NDArray[Any],
) -> Floats:
    """COCO's mean average precision at each IoU threshold; with counts of 1 that of ``CocoMetrics``.

    Detections are matched within their image, which does not depend on how often the image counts. Ranked once,
    weighted by the counts, interpolated at 101 recalls. Only hits matter to the interpolation: between two of them
    precision falls.

    Args:
        counts: (R, N).
        image: int64 (D,), of each detection, in the order of falling score.
        labels: int64 (D,), classes.
        hit: bool (T, D), whether each found an annotation, at each IoU threshold.
        ignored: bool (T, D), whether it counts neither way (it found a crowd).
        truths: (N, K), annotations of each image and class, without crowds.

    Returns:
        float64 (R, T), means over the classes that have annotations in the resample; NaN without any.
    """
    classes = truths.shape[1]
    known = [k for k in range(classes) if truths[:, k].any()]
    found = np.full((len(counts), len(known), len(hit)), np.nan)
    for number, k in enumerate(known):
        mine = np.flatnonzero(labels == k)
        last = np.flatnonzero(hit[:, mine].any(0))
        mine = mine[: last[-1] + 1] if len(last) else mine[:0]  # what is ranked below the last hit changes nothing
        total = counts @ truths[:, k].astype(np.float64)
        step = max(1, CELLS // max(1, len(mine)))
        for first in range(0, len(counts), step):
            block = slice(first, first + step)
            weight = counts[block][:, image[mine]].astype(np.float64)
            found[block, number] = _interpolated(weight, hit[:, mine], ignored[:, mine], total[block])
    return np.stack([mean_of_known(found[:, :, t]) for t in range(len(hit))], 1)


def _interpolated(weight: Floats, hit: NDArray[np.bool_], ignored: NDArray[np.bool_], total: Floats) -> Floats:
    """Average precision (R, T) of one class from the detections' weights (R, D); NaN where nothing is to be found."""
    result = np.zeros((len(weight), len(hit)))
    all_seen = np.cumsum(weight, 1)
    for t in range(len(hit)):
        at = np.flatnonzero(hit[t])
        if not len(at):
            continue
        seen = np.cumsum(np.where(ignored[t], 0, weight), 1) if ignored[t].any() else all_seen
        right = np.cumsum(weight[:, at], 1)
        precision = right / (seen[:, at] + np.spacing(1))
        best = np.maximum.accumulate(precision[:, ::-1], 1)[:, ::-1]
        # How many of the recalls are reached with each hit.
        reached = np.searchsorted(RECALLS, right / np.maximum(total, 1)[:, None], side="right")
        result[:, t] = (best * np.diff(reached, axis=1, prepend=0)).sum(1) / len(RECALLS)
    result[total == 0] = np.nan
    return result


def mean_of_known(values: Floats) -> Floats:
    """Mean over the columns that are not NaN."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a row without any is NaN
        mean: Floats = np.nanmean(values, 1)
    return mean
