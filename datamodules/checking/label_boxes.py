"""Labeled boxes that a detector's predictions contradict."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from datamodules.checking.boxes import overlaps
from datamodules.checking.findings import Finding

_SAME, _NEAR = 0.5, 0.2  # IoU from which two boxes are of one object, and from which they may be meant for it
_IN_CROWD = 0.5  # of a predicted box, from which it belongs to a crowd


class Pair(NamedTuple):
    """The labels of a picture and what is predicted on it, in its original pixels.

    Attributes:
        path: Of the picture.
        boxes: Labeled, float32 (N, 4), x1 y1 x2 y2.
        labels: int64 (N,).
        iscrowd: uint8 (N,).
        found: Predicted boxes, float32 (P, 4).
        classes: Their classes, int64 (P,).
        scores: float32 (P,).
    """

    path: str
    boxes: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    iscrowd: npt.NDArray[np.uint8]
    found: npt.NDArray[np.float32]
    classes: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float32]


def box_label_findings(pairs: Sequence[Pair], split: str, names: Sequence[str]) -> list[Finding]:
    """Objects that were overlooked, have another class, or a box in a wrong place; the surest first.

    The three kinds are those of ObjectLab (Tkachenko et al. 2023, https://arxiv.org/abs/2309.00832), cleanlab's method.
    There a prediction is sure from a fixed probability on, which many detectors never reach; here it is sure where it
    reaches the usual score of its class, the mean over the labeled boxes that the class's predictions agree with, as in
    confident learning.

    Args:
        pairs: Of the pictures of one split.
        split: Its name.
        names: The K classes.
    """
    usual = _usual_scores(pairs, len(names))
    found = [
        (score, Finding(kind, message, pair.path, split, (box[0], box[1], box[2], box[3])))
        for pair in pairs
        for kind, score, box, message in _of_picture(pair, usual, names)
    ]
    return [finding for _, finding in sorted(found, key=lambda one: -one[0])]


def _usual_scores(pairs: Sequence[Pair], num_classes: int) -> npt.NDArray[np.float64]:
    """Of each class, float64 (K,): the mean best score on labeled boxes of it; infinite where none was found."""
    total, count = np.zeros(num_classes), np.zeros(num_classes)
    for pair in pairs:
        agree = (overlaps(pair.boxes, pair.found) >= _SAME) & (pair.labels[:, None] == pair.classes)
        best = np.where(agree, pair.scores, -1.0).max(1, initial=-1.0)
        hit = (best >= 0) & (pair.iscrowd == 0)
        np.add.at(total, pair.labels[hit], best[hit])
        np.add.at(count, pair.labels[hit], 1)
    return np.where(count > 0, total / np.maximum(count, 1) - 1e-6, np.inf)  # a mean of equal numbers is rounded


Wrong = tuple[str, float, list[float], str]  # kind, score of the prediction, box, message


def _of_picture(pair: Pair, usual: npt.NDArray[np.float64], names: Sequence[str]) -> Iterator[Wrong]:
    iou = overlaps(pair.boxes, pair.found)  # (N, P)
    sure = (pair.scores >= usual[pair.classes]) & ~_in_crowds(pair)
    closest = iou.max(0, initial=0.0)
    single = np.flatnonzero(pair.iscrowd == 0)
    for new in _apart(np.flatnonzero(sure & (closest < _NEAR)), pair):
        message = f"no label, predicted {names[pair.classes[new]]} ({pair.scores[new]:.0%})"
        yield "label-overlooked", float(pair.scores[new]), pair.found[new].tolist(), message
    for j in single.tolist():
        own = pair.classes == pair.labels[j]
        agrees = float(np.where(own & (iou[j] >= _SAME), pair.scores, 0.0).max(initial=0.0))
        box, name = pair.boxes[j].tolist(), names[pair.labels[j]]
        i = _best(~own & sure & (iou[j] >= _SAME) & (iou[j] == closest), pair)
        if i is not None and pair.scores[i] > agrees:
            yield (
                "label",
                float(pair.scores[i]),
                box,
                (f"labeled {name} ({agrees:.0%}), predicted {names[pair.classes[i]]} ({pair.scores[i]:.0%})"),
            )
            continue
        i = _best(own & sure & (iou[j] >= _NEAR) & (closest < _SAME) & (iou[j] == closest), pair)
        if i is not None and not agrees:
            at = " ".join(f"{value:.0f}" for value in pair.found[i].tolist())
            message = f"this {name} is predicted at {at} ({pair.scores[i]:.0%}), IoU {iou[j, i]:.2f}"
            yield "label-place", float(pair.scores[i]), box, message


def _in_crowds(pair: Pair) -> npt.NDArray[np.bool_]:
    """Which predictions lie in a crowd, where not each object has a box."""
    crowds = pair.boxes[pair.iscrowd == 1]
    low = np.maximum(crowds[:, None, :2], pair.found[:, :2])
    high = np.minimum(crowds[:, None, 2:], pair.found[:, 2:])
    area = np.maximum(np.prod(pair.found[:, 2:] - pair.found[:, :2], axis=1), 1e-9)
    part: npt.NDArray[np.float64] = np.clip(high - low, 0, None).prod(2) / area
    return np.asarray((part >= _IN_CROWD).any(0))


def _best(which: npt.NDArray[np.bool_], pair: Pair) -> int | None:
    """The prediction of the highest score among some."""
    places = np.flatnonzero(which)
    return int(places[pair.scores[places].argmax()]) if len(places) else None


def _apart(places: npt.NDArray[np.int64], pair: Pair) -> list[int]:
    """Of predictions of one object that with the highest score."""
    kept: list[int] = []
    for i in places[np.argsort(-pair.scores[places], kind="stable")].tolist():
        if not (overlaps(pair.found[kept], pair.found[[i]]) >= _SAME).any():
            kept.append(i)
    return kept
