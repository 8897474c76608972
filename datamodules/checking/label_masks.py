"""Regions of masks that a network's predictions contradict."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from datamodules.common.batch import IGNORE

_TEMPERATURE = 0.1
_THICK = 5  # pixels; borders of objects are doubtful everywhere
_SURE = 0.8  # of the usual probability of a class
_LEAST = 0.005  # of a picture's labeled pixels

Probabilities = npt.NDArray[np.float32]  # (K, H, W)
Labels = npt.NDArray[np.int64]  # (H, W), 255: ignored


class Region(NamedTuple):
    """Neighboring pixels of one label that are likelier another class."""

    label: int
    other: int
    part: float  # of the picture's labeled pixels
    box: tuple[int, int, int, int]  # x1 y1 x2 y2, pixel edges


class Confidence:
    """How probable each class is on the pixels labeled with it, as a mean over pictures."""

    def __init__(self, num_classes: int) -> None:
        self._total, self._count = np.zeros(num_classes), np.zeros(num_classes)

    def add(self, probabilities: Probabilities, labels: Labels) -> None:
        """Count a picture."""
        given = labels[labels != IGNORE]
        own = _own(probabilities, labels)
        self._total += np.bincount(given, own, minlength=len(self._total))
        self._count += np.bincount(given, minlength=len(self._count))

    def usual(self) -> npt.NDArray[np.float64]:
        """The mean of each class, float64 (K,); infinite for classes without a pixel."""
        return np.where(self._count > 0, self._total / np.maximum(self._count, 1), np.inf)


def _own(probabilities: Probabilities, labels: Labels) -> Probabilities:
    """The probability of the label on each labeled pixel, float32 (n,)."""
    rows, columns = np.nonzero(labels != IGNORE)
    return probabilities[labels[rows, columns], rows, columns]


def label_quality(probabilities: Probabilities, labels: Labels) -> float:
    """The softmin of the labels' probabilities over the pixels, 0 to 1; 1 without a labeled pixel.

    Lad and Mueller 2023 (https://arxiv.org/abs/2307.05080): the score that finds wrong masks best, cleanlab's.
    """
    own = _own(probabilities, labels).astype(np.float64)
    if not len(own):
        return 1.0
    weights = np.exp((1 - own) / _TEMPERATURE)
    return float((own * weights).sum() / weights.sum())


def doubtful_regions(probabilities: Probabilities, labels: Labels, usual: npt.NDArray[np.float64]) -> list[Region]:
    """Regions that are predicted another class, as surely as is usual for that class; the largest first.

    Confident learning (see ``labels.doubtful``) for regions in place of pixels: the mean probability of a region must
    come near that of the class on pixels labeled with it. Only regions that are at least 5 pixels thick and half a
    percent of the picture count: along borders all masks differ.
    """
    labeled = labels != IGNORE
    likelier = probabilities.argmax(0)
    code = np.where(labeled & (likelier != labels), labels * len(probabilities) + likelier, -1)
    pixels = int(labeled.sum())
    kernel = np.ones((_THICK, _THICK), np.uint8)
    found = []
    for number in np.unique(code[code >= 0]).tolist():
        label, other = divmod(number, len(probabilities))
        thick = cv2.morphologyEx((code == number).astype(np.uint8), cv2.MORPH_OPEN, kernel)
        _, regions, stats, _ = cv2.connectedComponentsWithStats(thick)
        for region, (x, y, width, height, area) in enumerate(stats.tolist()):
            if region == 0 or area < _LEAST * pixels:  # 0 is all the rest
                continue
            inside = probabilities[other, y : y + height, x : x + width]
            if inside[regions[y : y + height, x : x + width] == region].mean() >= _SURE * usual[other]:
                found.append(Region(label, other, area / pixels, (x, y, x + width, y + height)))
    return sorted(found, key=lambda region: -region.part)
