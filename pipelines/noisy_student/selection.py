"""Which pseudo-labels a student is taught: thresholds, a target for their precision, and balance between the classes.

Pure functions of arrays; nothing here reads a file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodules.common.errors import UserError
from pipelines.noisy_student.precision import Evaluated, thresholds_for
from pipelines.noisy_student.tally import Correct, Tally, counted, precision_report

LEAST_SCORE = 0.05  # of a box that is written as a pseudo-label

Floats = NDArray[np.floating[Any]]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Selection:
    """How pseudo-labels are selected; without arguments all are taken.

    Attributes:
        threshold: Least confidence of an image, a box or a pixel: one number or one for each class (`{cat: 0.8, dog:
            0.6}`; others are taken).
        precision: In place of threshold: the least fraction of right labels that each class shall have. Thresholds are
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
        self._check_threshold()
        self._check_precision()
        if self.per_class is not None and (self.per_class < 1 or not self.balance):
            raise UserError(
                f"selection.per_class is {self.per_class}; it must be at least 1, and needs selection.balance: true."
            )
        if self.ignore is not None and not LEAST_SCORE <= self.ignore <= 1:
            raise UserError(
                f"selection.ignore is {self.ignore}; it is a score, {LEAST_SCORE} (lower ones are not written) to 1."
            )

    def _check_threshold(self) -> None:
        values = self.threshold.values() if isinstance(self.threshold, dict) else [self.threshold]
        for value in values:
            if not 0 <= value <= 1:
                raise UserError(f"selection.threshold is {self.threshold}; it is a probability, 0 to 1.")

    def _check_precision(self) -> None:
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


@dataclass(frozen=True)
class Selected:
    """Rows of the pool, in order, repeated ones several times; and what was done, as plain values."""

    rows: Integers
    report: dict[str, Any]


def select(
    probabilities: Floats,
    class_names: Sequence[str],
    selection: Selection,
    *,
    validation: Evaluated | None = None,
    seed: int = 0,
    truth: Integers | None = None,
) -> Selected:
    """Select the pseudo-labels that are kept, and how often.

    Args:
        probabilities: The pool's, (N, K).
        class_names: Names of the K classes.
        selection: What is asked for.
        validation: Needed for a target precision.
        seed: Of the random part of repeats.
        truth: True classes of the pool, int64 (N,), -1 where unknown; for the report only.

    Raises:
        UserError: If nothing is kept, or a target precision lacks its validation images.
    """
    guess, confidence = probabilities.argmax(1), probabilities.max(1)
    thresholds, report = thresholds_of(selection, guess, confidence, class_names, validation)
    kept = np.flatnonzero(confidence >= thresholds[guess])
    if not len(kept):
        raise UserError(
            f"selection keeps none of the {len(guess)} pseudo-labels; the most confident has {confidence.max():.3f}."
            " Lower selection.threshold or selection.precision, or train a better teacher."
        )
    rows = balanced(kept, guess, confidence, selection.per_class, seed) if selection.balance else kept
    tally = Tally(
        class_names=class_names,
        thresholds=thresholds,
        labeled=counted(guess, class_names),
        kept=counted(guess[kept], class_names),
        taught=counted(guess[rows], class_names),
        images=len(rows),
        distinct_images=len(np.unique(rows)),
    )
    report |= tally.report()
    if truth is not None and bool((truth >= 0).any()):
        everything = np.arange(len(guess))
        report |= precision_report(
            class_names,
            _correct(everything[truth >= 0], guess, truth, class_names),
            _correct(kept[truth[kept] >= 0], guess, truth, class_names),
            counted(truth[rows][truth[rows] >= 0], class_names),
        )
    return Selected(rows, report)


def _correct(rows: Integers, guess: Integers, truth: Integers, class_names: Sequence[str]) -> Correct:
    """Of some rows, by the class that they say."""
    right = rows[guess[rows] == truth[rows]]
    return Correct(counted(guess[right], class_names), counted(guess[rows], class_names))


def thresholds_of(
    selection: Selection,
    guess: Integers,
    confidence: Floats,
    class_names: Sequence[str],
    validation: Evaluated | None,
) -> tuple[NDArray[np.float64], dict[str, Any]]:
    """One threshold a class, float64 (K,), given or found; and for the report how it was found.

    Raises:
        UserError: If a target precision lacks its validation images.
    """
    if selection.precision is None:
        return fixed_thresholds(class_names, selection.threshold), {}
    if validation is None:
        raise UserError("selection.precision needs labeled validation images: set data.val_fraction.")
    return thresholds_for(
        guess, confidence, class_names, validation, precision=selection.precision, level=selection.confidence
    )


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
