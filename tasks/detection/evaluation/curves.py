"""What a table of average precision does not say: curves, thresholds, confusions, kinds of errors, at an IoU of 0.5.

All of it comes from one matching of detections and annotations, see `tasks.detection.evaluation.matching`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tasks.detection.evaluation.matching import Bools, Floats, Ints, Matching, assign

DEFAULT_THRESHOLD = 0.5  # where there is nothing to choose a threshold by
RECALLS = np.linspace(0, 1, 101)  # COCO's


@dataclass(frozen=True)
class Curve:
    """Precision and recall of one class down its ranking of n detections (those that only found a crowd left out).

    Attributes:
        scores: float32 (n,), falling.
        hits: int64 (n,), true positives among the first 1, 2, ... n.
        num_truths: Annotations.
    """

    scores: NDArray[np.float32]
    hits: Ints
    num_truths: int

    @property
    def precision(self) -> Floats:
        """float64 (n,)."""
        return self.hits / np.arange(1, len(self.hits) + 1)

    @property
    def recall(self) -> Floats:
        """float64 (n,), NaN without annotations."""
        return self.hits / (self.num_truths or np.nan)

    @property
    def f1(self) -> Floats:
        """float64 (n,), NaN without annotations."""
        return 2 * self.hits / (np.arange(1, len(self.hits) + 1) + (self.num_truths or np.nan))

    @property
    def is_last(self) -> Bools:
        """Where a threshold can lie, bool (n,): at the last of equal scores."""
        return np.append(self.scores[1:] != self.scores[:-1], np.ones(len(self.scores[:1]), np.bool_))

    def interpolated(self) -> Floats:
        """float64 (101,): the highest precision at recalls of at least 0, 0.01, ... 1; NaN without annotations."""
        if not self.num_truths:
            return np.full(len(RECALLS), np.nan)
        envelope = np.maximum.accumulate(self.precision[::-1])[::-1]
        return np.append(envelope, 0.0)[np.searchsorted(self.recall, RECALLS)]

    def average_precision(self) -> float:
        """COCO's average precision, NaN without annotations."""
        return float(self.interpolated().mean())

    def f1_at(self, confidences: ArrayLike) -> Floats:
        """F1 of the detections with these confidences or more; 0 where there are none, NaN without annotations."""
        count = np.searchsorted(-self.scores, -np.asarray(confidences, np.float64), side="right")
        return np.append(0.0 if self.num_truths else np.nan, self.f1)[count]


def precision_recall(matching: Matching) -> list[Curve]:
    """The curve of each class."""
    counted = np.flatnonzero(~matching.ignored)
    order = counted[np.argsort(matching.labels[counted], kind="stable")]
    bounds = np.searchsorted(matching.labels[order], np.arange(matching.num_classes + 1))
    parts = [order[start:end] for start, end in pairwise(bounds)]
    return [
        Curve(matching.scores[part], np.cumsum(matching.hit[part]), int(number))
        for part, number in zip(parts, matching.num_truths, strict=True)
    ]


@dataclass(frozen=True)
class Thresholds:
    """Confidence thresholds of highest F1; plain numbers, for a checkpoint.

    Attributes:
        per_class: One for each class; `overall` where a class has no annotation or was never found.
        overall: One for all classes, by the mean of F1 over the classes that have annotations; 0.5 if nothing was
            ever found.
        f1: F1 of each class at its threshold, NaN without annotations.
        overall_f1: The mean F1 at `overall`, NaN without annotations.
    """

    per_class: list[float]
    overall: float
    f1: list[float]
    overall_f1: float


def best_thresholds(curves: Sequence[Curve]) -> Thresholds:
    """The thresholds with the highest F1 on these curves: exact, and of equal ones the highest.

    Each is the score of a detection, which it keeps (``score >= threshold``). For one class, it is also the
    threshold with the highest TP / (TP + FP + FN), which is F1 / (2 - F1).
    """
    overall, overall_f1 = _best_overall([curve for curve in curves if curve.num_truths])
    per_class, f1 = [], []
    for curve in curves:
        threshold, highest = _best_of(curve, overall)
        per_class.append(threshold)
        f1.append(highest)
    return Thresholds(per_class, overall, f1, overall_f1)


def _best_of(curve: Curve, otherwise: float) -> tuple[float, float]:
    """A class's threshold of highest F1, and that F1; `otherwise` where it has no annotation or was never found."""
    if not curve.num_truths:
        return otherwise, np.nan
    if not curve.hits[-1:].any():
        return otherwise, 0.0
    possible = np.flatnonzero(curve.is_last)
    best = possible[np.argmax(curve.f1[possible])]
    return float(curve.scores[best]), float(curve.f1[best])


def _best_overall(curves: Sequence[Curve]) -> tuple[float, float]:
    """One threshold for classes with annotations, by the mean of their F1, and that mean; NaN without such classes."""
    if not curves:
        return DEFAULT_THRESHOLD, np.nan
    if not any(curve.hits[-1:].any() for curve in curves):
        return DEFAULT_THRESHOLD, 0.0
    scores = np.concatenate([curve.scores for curve in curves])
    order = np.argsort(-scores, kind="stable")
    # Going down the common ranking, each detection changes the F1 of its own class only.
    steps = np.concatenate([np.diff(curve.f1, prepend=0.0) for curve in curves])[order]
    mean = np.cumsum(steps) / len(curves)
    scores = scores[order]
    possible = np.flatnonzero(np.append(scores[1:] != scores[:-1], True))  # the last of equal scores
    best = possible[np.argmax(mean[possible])]
    return float(scores[best]), float(mean[best])


def f1_over_confidence(curves: Sequence[Curve], confidences: ArrayLike) -> Floats:
    """float64 (K, C): F1 of each class at C confidence thresholds; rows of NaN for classes without annotations."""
    return np.stack([curve.f1_at(confidences) for curve in curves])


def confusion_matrix(matching: Matching, thresholds: ArrayLike) -> Ints:
    """int64 (K + 1, K + 1): rows the annotated class, columns the detected one, the last of both is background.

    On the diagonal are the true positives of the matching within classes, so each column adds up to the detections
    of a class and each row to its annotations, as in precision and recall. What is left of both is then matched
    regardless of class, in the order of falling score and from the matching's IoU threshold on: confused classes.
    What is left after that is a false alarm (last row) or a miss (last column). Crowds are in no cell.

    Args:
        matching: Of detections and annotations.
        thresholds: Confidences from which on detections count, one or K.
    """
    background = matching.num_classes
    kept = matching.kept(thresholds)
    found = matching.found(kept)
    wrong = kept & (matching.truth < 0)
    missed = ~found & ~matching.crowd
    detection, truth = matching.pairs
    left = wrong[detection] & missed[truth] & (matching.pair_iou >= matching.iou_threshold)
    taken = assign(detection[left], truth[left], matching.pair_iou[left], len(wrong), matching.crowd)
    confused = taken >= 0
    missed[taken[confused]] = False
    hits, alarms = matching.labels[kept & matching.hit], matching.labels[wrong & ~confused]
    misses = matching.true_labels[missed]
    rows = np.concatenate([hits, matching.true_labels[taken[confused]], np.full(len(alarms), background), misses])
    columns = np.concatenate([hits, matching.labels[confused], alarms, np.full(len(misses), background)])
    size = background + 1
    return np.bincount(rows * size + columns, minlength=size * size).reshape(size, size)


def error_kinds(matching: Matching, thresholds: ArrayLike) -> dict[str, Ints]:
    """Counts (K,) of what is right and of the kinds of errors of TIDE, by class.

    Bolya et al. 2020, "TIDE: A General Toolbox for Identifying Object Detection Errors",
    https://arxiv.org/abs/2008.08115; TIDE weighs each kind by the average precision that it costs, here they are
    counted at a confidence threshold. With t the matching's IoU threshold (TIDE's foreground) and 0.1 its background,
    a detection that is wrong is, by the first that holds:

    - ``localization``: its best overlap with an annotation of its class is from 0.1 to below t;
    - ``class``: it overlaps one of another class by t or more;
    - ``duplicate``: it overlaps one of its class by t or more, which a detection of higher score has found;
    - ``background``: it overlaps none by 0.1 or more;
    - ``both``: it overlaps one of another class by 0.1 to below t: wrong place and wrong class.

    ``missed`` are annotations that were not found and that no localization or class error stands for. ``correct`` are
    the true positives. The errors but ``missed`` add up to the false positives; crowds are left out.

    Args:
        matching: Of detections and annotations, with an IoU threshold above 0.1.
        thresholds: Confidences from which on detections count, one or K.
    """
    kept = matching.kept(thresholds)
    wrong = kept & (matching.truth < 0)
    (detection, truth), iou = matching.pairs, matching.pair_iou
    same = matching.labels[detection] == matching.true_labels[truth]
    usable = wrong[detection] & ~matching.crowd[truth]
    own_iou, own = _best(detection, truth, iou, usable & same, len(wrong))
    other_iou, other = _best(detection, truth, iou, usable & ~same, len(wrong))
    foreground = matching.iou_threshold
    rest = wrong.copy()
    kinds: dict[str, Bools] = {}
    for kind, holds in (
        ("localization", (own_iou > 0) & (own_iou < foreground)),
        ("class", other_iou >= foreground),
        ("duplicate", own_iou >= foreground),
        ("background", other_iou == 0),
        ("both", other_iou > 0),
    ):
        kinds[kind] = rest & holds
        rest &= ~holds
    missed = ~matching.found(kept) & ~matching.crowd
    missed[own[kinds["localization"]]] = False
    missed[other[kinds["class"]]] = False
    counted = {"correct": matching.labels[kept & matching.hit]}
    counted |= {kind: matching.labels[which] for kind, which in kinds.items()}
    counted["missed"] = matching.true_labels[missed]
    return {kind: np.bincount(labels, minlength=matching.num_classes) for kind, labels in counted.items()}


def _best(detection: Ints, truth: Ints, iou: Floats, which: Bools, size: int) -> tuple[Floats, Ints]:
    """Highest IoU of each detection among some pairs, and with which annotation; 0 and -1 without a pair."""
    rows = np.flatnonzero(which)
    rows = rows[np.argsort(iou[rows], kind="stable")]
    best, partner = np.zeros(size), np.full(size, -1)
    best[detection[rows]], partner[detection[rows]] = iou[rows], truth[rows]  # the last of each, the highest, stays
    return best, partner


def ap_dsb(matching: Matching, thresholds: ArrayLike, *, by_image: bool = False) -> float:
    """TP / (TP + FP + FN), what work on the Data Science Bowl's nuclei calls average precision; NaN without objects.

    As in Schmidt et al. 2018, "Cell Detection with Star-convex Polygons", https://arxiv.org/abs/1806.03535: pooled
    over all images, or the mean over the images that have an annotation or a detection (`by_image`).

    The matching is the greedy one by score. Where annotated masks do not overlap, it finds as many as an optimal
    one: at an IoU above 0.5 more than half of the detection lies on the annotation, so there is one annotation that it
    can find, and each is found if any detection can. For boxes, and for annotations that overlap, an optimal matching
    can find more.

    Args:
        matching: Of detections and annotations.
        thresholds: Confidences from which on detections count, one or K.
        by_image: The mean of the images' values in place of the pooled one.
    """
    kept = matching.kept(thresholds)
    hits, wrong = (
        np.bincount(matching.image[which], minlength=matching.num_images)
        for which in (kept & matching.hit, kept & (matching.truth < 0))
    )
    truths = np.bincount(matching.true_image[~matching.crowd], minlength=matching.num_images)
    total = truths + wrong  # TP + FN, and FP
    if by_image:
        return float((hits[total > 0] / total[total > 0]).mean()) if total.any() else float("nan")
    return float(hits.sum() / total.sum()) if total.any() else float("nan")
