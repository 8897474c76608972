"""Which pseudo-labels a student is taught: thresholds, a target for their precision, and balance between the classes.

Pure functions of arrays; nothing here reads a file.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from datamodules.common.errors import UserError

LEVELS = 50  # thresholds tried a group, from the strictest down
LEAST_SCORE = 0.05  # of a box that is written as a pseudo-label

Floats = NDArray[np.floating[Any]]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Selection:
    """How pseudo-labels are selected; without arguments all are taken.

    Attributes:
        threshold: Least confidence of an image, a box or a pixel: one number or one for each class (`{cat: 0.8, dog:
            0.6}`; others are taken).
        precision: In place of threshold: the least part of right labels that each class shall have. Thresholds are
            found on the validation split; classes with too few validation images are pooled, or left out, and named.
        confidence: Probability with which `precision` is kept, for each class or pool.
        balance: Each class gets the same number of images: of a rich class the most confident, of a poor one repeats.
        per_class: That number; by default the mean over the classes that have any.
        ignore: Boxes only: those with a score between this (0.1 where left out) and the threshold are neither taught
            nor taken for background; lower ones are dropped.
    """

    threshold: float | dict[str, float] = 0.0
    precision: float | None = None
    confidence: float = 0.95
    balance: bool = False
    per_class: int | None = None
    ignore: float | None = None

    def __post_init__(self) -> None:
        """Refuse values out of range, and values that would have no effect."""
        values = self.threshold.values() if isinstance(self.threshold, dict) else [self.threshold]
        for value in values:
            if not 0 <= value <= 1:
                raise UserError(f"selection.threshold is {self.threshold}; it is a probability, 0 to 1.")
        if self.precision is not None and not 0 < self.precision < 1:
            raise UserError(f"selection.precision is {self.precision}; it must be above 0 and below 1, like 0.95.")
        if self.precision is not None and self.threshold != 0.0:
            raise UserError(
                f"selection.precision is {self.precision} and selection.threshold is {self.threshold}: precision finds"
                " the thresholds, so leave one of them out."
            )
        if not 0.5 <= self.confidence < 1:
            raise UserError(f"selection.confidence is {self.confidence}; it must be at least 0.5 and below 1.")
        if self.precision is None and self.confidence != 0.95:
            raise UserError(
                f"selection.confidence is {self.confidence}, but selection.precision, its user, is not set."
            )
        if self.per_class is not None and (self.per_class < 1 or not self.balance):
            raise UserError(
                f"selection.per_class is {self.per_class}; it must be at least 1, and needs selection.balance: true."
            )
        if self.ignore is not None and not LEAST_SCORE <= self.ignore <= 1:
            raise UserError(
                f"selection.ignore is {self.ignore}; it is a score, {LEAST_SCORE} (lower ones are not written) to 1."
            )


class Validation(NamedTuple):
    """The teacher on labelled images that it was not trained on: probabilities (V, K), true classes int64 (V,)."""

    probabilities: Floats
    truth: Integers


class Judged(NamedTuple):
    """Labels of validation images: their classes int64 (V,), confidences (V,), and whether each is right, bool (V,)."""

    guess: Integers
    confidence: Floats
    right: NDArray[np.bool_]


class Selected(NamedTuple):
    """Rows of the pool, in order, repeated ones several times; and what was done, as plain values."""

    rows: Integers
    account: dict[str, Any]


def select(
    probabilities: Floats,
    class_names: Sequence[str],
    selection: Selection,
    *,
    validation: Validation | None = None,
    seed: int = 0,
    truth: Integers | None = None,
) -> Selected:
    """Choose the pseudo-labels that are kept, and how often.

    Args:
        probabilities: The pool's, (N, K).
        class_names: Names of the K classes.
        selection: What is asked for.
        validation: Needed for a target precision.
        seed: Of the random part of repeats.
        truth: True classes of the pool, int64 (N,), -1 where unknown; for the account only.

    Raises:
        UserError: If nothing is kept, or a target precision lacks its validation images.
    """
    guess, confidence = probabilities.argmax(1), probabilities.max(1)
    account: dict[str, Any] = {}
    if selection.precision is not None:
        if validation is None or not len(validation.truth):
            raise UserError("selection.precision needs labelled validation images: set data.val_fraction.")
        thresholds, account = precision_thresholds(guess, confidence, class_names, selection, validation)
    else:
        thresholds = fixed_thresholds(class_names, selection.threshold)
    kept = np.flatnonzero(confidence >= thresholds[guess])
    if not len(kept):
        raise UserError(
            f"selection keeps none of the {len(guess)} pseudo-labels; the most confident has {confidence.max():.3f}."
            " Lower selection.threshold or selection.precision, or train a better teacher."
        )
    rows = balanced(kept, guess, confidence, selection.per_class, seed) if selection.balance else kept
    return Selected(rows, account | _describe(rows, kept, guess, thresholds, class_names, truth))


def fixed_thresholds(class_names: Sequence[str], threshold: float | dict[str, float]) -> NDArray[np.float64]:
    """One threshold a class, float64 (K,).

    Raises:
        UserError: If a class is named that does not exist.
    """
    if not isinstance(threshold, dict):
        return np.full(len(class_names), float(threshold))
    for name in threshold:
        if name not in class_names:
            raise UserError(f"selection.threshold names the class '{name}'; there are {', '.join(class_names)}.")
    return np.array([float(threshold.get(name, 0.0)) for name in class_names])


# A target for the precision.


def needed_samples(precision: float, confidence: float) -> int:
    """Least number of samples, all right, whose bound reaches the target: 59 for 0.95 at 95 %."""
    return math.ceil(math.log(1 - confidence) / math.log(precision) - 1e-9)


def lower_bound(right: int, total: int, confidence: float) -> float:
    """The exact one-sided lower bound of a part (Clopper and Pearson 1934)."""
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
        right: Whether each was labelled rightly, (V,).
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


def precision_thresholds(
    guess: Integers, confidence: Floats, class_names: Sequence[str], selection: Selection, validation: Validation
) -> tuple[NDArray[np.float64], dict[str, Any]]:
    """``thresholds_for`` images with one label each."""
    v_guess = validation.probabilities.argmax(1)
    seen = Judged(v_guess, validation.probabilities.max(1), v_guess == validation.truth)
    return thresholds_for(guess, confidence, class_names, selection, seen)


def thresholds_for(
    guess: Integers, confidence: Floats, class_names: Sequence[str], selection: Selection, validation: Judged
) -> tuple[NDArray[np.float64], dict[str, Any]]:
    """Thresholds of all classes for a target precision, infinity for a class that is left out.

    The levels are quantiles of the pool's confidences, which know nothing of the validation labels. Classes with fewer
    validation samples than the bound needs are tested together.

    Args:
        guess: Classes of the pool's labels, (N,).
        confidence: Their confidences, (N,).
        class_names: Names of the K classes.
        selection: The target.
        validation: The teacher on labelled images that it was not trained on.

    Returns:
        float64 (K,), and which classes were pooled and left out.
    """
    target, level = float(selection.precision or 0.0), selection.confidence
    least = needed_samples(target, level)
    counts = np.bincount(validation.guess, minlength=len(class_names))
    groups = [[k] for k in range(len(class_names)) if counts[k] >= least]
    few = [k for k in range(len(class_names)) if counts[k] < least]
    pooled = few if counts[few].sum() >= least else []  # one alone never reaches it
    thresholds = np.full(len(class_names), math.inf)
    for group in [*groups, pooled] if pooled else groups:
        of_pool, of_validation = np.isin(guess, group), np.isin(validation.guess, group)
        if not of_pool.any():
            continue
        # "lower": values that occur, as float32 like the confidences they are compared with.
        levels: Floats = np.asarray(
            np.quantile(confidence[of_pool], np.linspace(0, 1, LEVELS + 1)[:-1], method="lower"), confidence.dtype
        )
        sure, right = validation.confidence[of_validation], validation.right[of_validation]
        thresholds[group] = strictest_down(levels, sure, right, target, level)
    left_out = [class_names[k] for k in range(len(class_names)) if math.isinf(thresholds[k])]
    return thresholds, {
        "precision_target": target,
        "samples_needed": least,
        "pooled": [class_names[k] for k in pooled],
        "left_out": left_out,
    }


# Balance.


def balanced(kept: Integers, guess: Integers, confidence: Floats, per_class: int | None, seed: int) -> Integers:
    """The same number of images for each class that has any, as published.

    A rich class keeps its most confident images; the images of a poor one come n // m times each, and a random part of
    them once more.

    Args:
        kept: Rows that passed the threshold.
        guess: Class of each row of the pool.
        confidence: Of each row of the pool.
        per_class: Images a class; the mean by default.
        seed: Of the random part.

    Returns:
        Rows in order, with repeats.
    """
    classes = np.unique(guess[kept])
    wanted = per_class or max(1, round(len(kept) / len(classes)))
    rows: list[Integers] = []
    for k in classes:
        mine = kept[guess[kept] == k]
        # Stable: of equally confident ones the first.
        mine = mine[np.argsort(-confidence[mine], kind="stable")][:wanted]
        times, rest = divmod(wanted, len(mine))
        again = np.random.default_rng([seed, int(k)]).permutation(mine)[:rest]
        rows += [np.repeat(mine, times), again]
    return np.sort(np.concatenate(rows))


def _describe(
    rows: Integers,
    kept: Integers,
    guess: Integers,
    thresholds: NDArray[np.float64],
    class_names: Sequence[str],
    truth: Integers | None,
) -> dict[str, Any]:
    """Counts of the account; precision and skew where the truth is known."""
    num = len(class_names)
    account: dict[str, Any] = {
        "pool": len(guess),
        "kept": len(kept),
        "coverage": len(kept) / len(guess),
        "images": len(rows),
        "distinct_images": len(np.unique(rows)),
        "thresholds": by_class(class_names, [None if math.isinf(t) else float(t) for t in thresholds]),
        "labelled_as": by_class(class_names, np.bincount(guess, minlength=num).tolist()),
        "kept_as": by_class(class_names, np.bincount(guess[kept], minlength=num).tolist()),
        "taught_as": by_class(class_names, np.bincount(guess[rows], minlength=num).tolist()),
    }
    if truth is not None and bool((truth >= 0).any()):
        known = truth >= 0
        of_kept, of_rows = kept[known[kept]], rows[known[rows]]
        right = guess == truth
        account |= {
            "precision_of_all": _mean(right[known]),
            "precision": _mean(right[of_kept]),
            "precision_by_class": {n: _mean(right[of_kept][guess[of_kept] == k]) for k, n in enumerate(class_names)},
            "truth_of_taught": by_class(class_names, np.bincount(truth[of_rows], minlength=num).tolist()),
        }
    return account


def by_class(class_names: Sequence[str], values: Sequence[Any]) -> dict[str, Any]:
    """One value a class, by name."""
    return dict(zip(class_names, values, strict=True))


def _mean(values: NDArray[np.bool_]) -> float | None:
    return float(values.mean()) if len(values) else None
