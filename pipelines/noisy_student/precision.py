"""Thresholds that keep a target precision, shown on labeled images that the teacher was not trained on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Integers = NDArray[np.int64]

LEVELS = 50  # thresholds tried a group, from the strictest down


@dataclass(frozen=True)
class Evaluated:
    """Labels of validation images: their classes int64 (V,), confidences (V,), and whether each is right, bool (V,)."""

    guess: Integers
    confidence: Floats
    right: NDArray[np.bool_]


def evaluated(probabilities: Floats, truth: Integers) -> Evaluated:
    """A teacher on labeled images: its probabilities (V, K), and the true classes int64 (V,)."""
    guess = probabilities.argmax(1)
    return Evaluated(guess, probabilities.max(1), guess == truth)


def needed_samples(precision: float, confidence: float) -> int:
    """Least number of samples, all right, whose bound reaches the target: 59 for 0.95 at 95 %."""
    return math.ceil(math.log(1 - confidence) / math.log(precision) - 1e-9)


def lower_bound(right: int, total: int, confidence: float) -> float:
    """The exact one-sided lower bound of a fraction (Clopper and Pearson 1934)."""
    from scipy.special import betaincinv  # scipy.stats.beta.ppf is this, and twenty times as slow

    return 0.0 if right == 0 else float(betaincinv(right, total - right + 1, 1 - confidence))


def strictest_down(
    levels: Floats, confidence: Floats, right: NDArray[np.bool_], precision: float, level: float
) -> float:
    """The lowest threshold whose precision is shown, by fixed-sequence testing; infinity where none is.

    The levels are tested from the strictest down, each at the full error rate, until the first failure; so all that
    passed hold together at ``level``. Levels with fewer samples than could pass are not tested. They must not depend on
    the correctness of these samples; for the levels that are not tested it is assumed that precision does not fall with
    confidence.

    Args:
        levels: Thresholds.
        confidence: Of the validation samples, (V,).
        right: Whether each was labeled correctly, (V,).
        precision: The target.
        level: Probability with which it is kept.
    """
    least = needed_samples(precision, level)
    found = math.inf
    for threshold in np.sort(np.unique(levels))[::-1]:
        above = confidence >= threshold
        total = int(above.sum())
        if total < least:
            continue
        if lower_bound(int(right[above].sum()), total, level) < precision:
            break
        found = float(threshold)
    return found


def thresholds_for(
    guess: Integers,
    confidence: Floats,
    class_names: Sequence[str],
    validation: Evaluated,
    *,
    precision: float,
    level: float,
) -> tuple[NDArray[np.float64], dict[str, Any]]:
    """Thresholds of all classes for a target precision, infinity for a class that is left out.

    The levels are quantiles of the pool's confidences, which know nothing of the validation labels. Classes with fewer
    validation samples than the bound needs are tested together.

    Args:
        guess: Classes of the pool's labels, (N,).
        confidence: Their confidences, (N,).
        class_names: Names of the K classes.
        validation: The teacher on labeled images that it was not trained on.
        precision: The target.
        level: Probability with which it is kept.

    Returns:
        float64 (K,), and for the report which classes were pooled and left out.
    """
    least = needed_samples(precision, level)
    counts = np.bincount(validation.guess, minlength=len(class_names))
    groups = [[k] for k in range(len(class_names)) if counts[k] >= least]
    few = [k for k in range(len(class_names)) if counts[k] < least]
    pooled = few if counts[few].sum() >= least else []  # one alone never reaches it
    thresholds = np.full(len(class_names), math.inf)
    for group in [*groups, pooled]:
        of_pool, of_validation = np.isin(guess, group), np.isin(validation.guess, group)
        if not of_pool.any():
            continue
        levels = _levels(confidence[of_pool])
        sure, right = validation.confidence[of_validation], validation.right[of_validation]
        thresholds[group] = strictest_down(levels, sure, right, precision, level)
    left_out = [class_names[k] for k in range(len(class_names)) if math.isinf(thresholds[k])]
    return thresholds, {
        "precision_target": precision,
        "samples_needed": least,
        "pooled": [class_names[k] for k in pooled],
        "left_out": left_out,
    }


def _levels(confidence: Floats) -> Floats:
    """Quantiles that occur, of the type of the confidences, which they will be compared with."""
    fractions = np.linspace(0, 1, LEVELS + 1)[:-1]
    return np.asarray(np.quantile(confidence, fractions, method="lower"), confidence.dtype)
