"""Kinds of errors of masks, a counterpart of TIDE's for boxes, and which regions are found, by size.

A region is a connected part (8 neighbors) of one class of the truth, or of the prediction. Both are looked at in the
small maps that ``pixels`` keeps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from datamodules.common.batch import IGNORE

#: Kinds of wrong pixels with what they mean, the first that holds.
KINDS = {
    "boundary": "its class begins within the tolerance: the edge of a region is a little off",
    "class": "the true region is not found, and the predicted one stands for nothing: one class in place of another",
    "missed region": "the true region is mostly not found, and lies in one that is right",
    "invented region": "the predicted region is mostly wrong, and lies in a true one that is found",
    "extent": "both regions are mostly right, but end elsewhere, by more than the tolerance",
    "uncovered": "no class is predicted",
}
TOLERANCE = 0.0075  # of the diagonal, as Csurka et al. 2013, https://doi.org/10.5244/C.27.32
FOUND = 0.5  # part of a region that has to be right
LEAST = 12  # pixels of a region that is counted as found or not

Mask = NDArray[np.uint8]


class Region(NamedTuple):
    """A true region: its class, the fraction of the image that it covers, and the fraction of it that is right."""

    label: int
    area: float
    right: float


@dataclass(frozen=True)
class Errors:
    """Of one image: fractions of its annotated pixels by kind of error, and its true regions."""

    kinds: dict[str, float]
    regions: list[Region]


def errors_of(truth: Mask, found: Mask) -> Errors:
    """Kinds of errors of one image.

    Args:
        truth: uint8 (H, W), classes, 255 where ignored.
        found: uint8 (H, W), classes, 255 where nothing is predicted.
    """
    annotated = truth != IGNORE
    right = annotated & (truth == found)
    radius = max(1, math.ceil(TOLERANCE * math.hypot(*truth.shape)))
    recall, regions = _shares(truth, right, annotated)
    precision, _ = _shares(np.where(annotated, found, np.uint8(IGNORE)), right, annotated)
    rest = annotated & ~right
    total = max(1, int(annotated.sum()))
    kinds = dict.fromkeys(KINDS, 0.0)
    lost, wrong = recall < FOUND, precision < FOUND
    holds = {
        "uncovered": found == IGNORE,
        "boundary": _near(truth, found, rest, radius),
        "class": lost & wrong,
        "missed region": lost,
        "invented region": wrong,
        "extent": np.ones_like(rest),
    }
    for kind, of_kind in holds.items():
        kinds[kind] = float((rest & of_kind).sum() / total)
        rest &= ~of_kind
    return Errors(kinds, regions)


def _shares(
    labels: Mask, right: NDArray[np.bool_], annotated: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], list[Region]]:
    """At each pixel which fraction of its region is right, (H, W); and the regions that are large enough."""
    share = np.ones(labels.shape)
    regions = []
    total = max(1, int(annotated.sum()))
    for label in np.unique(labels[annotated]).tolist():
        if label == IGNORE:
            continue
        count, numbers = cv2.connectedComponents((labels == label).astype(np.uint8), connectivity=8)
        area = np.bincount(numbers.ravel(), minlength=count)
        hits = np.bincount(numbers.ravel(), weights=right.ravel(), minlength=count)
        fraction = hits / np.maximum(area, 1)
        inside = numbers > 0
        share[inside] = fraction[numbers[inside]]
        regions += [
            Region(label, float(area[i] / total), float(fraction[i])) for i in range(1, count) if area[i] >= LEAST
        ]
    return share, regions


def _near(truth: Mask, found: Mask, wrong: NDArray[np.bool_], radius: int) -> NDArray[np.bool_]:
    """Which wrong pixels have their predicted class in the truth, or their true class in the prediction, that near."""
    disk = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    near = np.zeros(truth.shape, bool)
    for label in np.unique(np.concatenate([truth[wrong], found[wrong]])).tolist():
        if label == IGNORE:
            continue
        for here, there in ((truth, found), (found, truth)):
            around = cv2.dilate((here == label).astype(np.uint8), disk) > 0
            near |= wrong & (there == label) & around
    return near
