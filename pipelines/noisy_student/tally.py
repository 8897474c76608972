"""What the report of a selection holds: how many labels there were, were kept and are taught, and how many are right.

The keys are those of ``selection.json`` since it was first written: runs that are finished have them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Tally:
    """Counts of a selection; arrays are int64 (K,), by class.

    Attributes:
        class_names: K names.
        thresholds: float64 (K,), infinity for a class that is left out.
        labeled: Labels of the pool.
        kept: Those that passed.
        taught: Those, with repeats.
        images: Images that are taught, with repeats.
        distinct_images: Without repeats.
    """

    class_names: Sequence[str]
    thresholds: Floats
    labeled: Integers
    kept: Integers
    taught: Integers
    images: int
    distinct_images: int

    def report(self) -> dict[str, Any]:
        """Plain values."""
        pool, kept = int(self.labeled.sum()), int(self.kept.sum())
        limits = [None if np.isinf(threshold) else float(threshold) for threshold in self.thresholds]
        return {
            "pool": pool,
            "kept": kept,
            "coverage": kept / max(1, pool),
            "images": self.images,
            "distinct_images": self.distinct_images,
            "thresholds": by_class(self.class_names, limits),
            "labelled_as": by_class(self.class_names, self.labeled.tolist()),
            "kept_as": by_class(self.class_names, self.kept.tolist()),
            "taught_as": by_class(self.class_names, self.taught.tolist()),
        }


@dataclass(frozen=True)
class Correct:
    """Labels whose truth is known, int64 (K,) by the class that they say: all of them, and those that are right."""

    right: Integers
    known: Integers

    @property
    def precision(self) -> float | None:
        """Fraction of right ones; None where there is none."""
        return fraction(self.right.sum(), self.known.sum())


def precision_report(
    class_names: Sequence[str], everything: Correct, kept: Correct, truth_of_taught: Integers
) -> dict[str, Any]:
    """The part of a selection's report for which the truth has to be known.

    Args:
        class_names: K names.
        everything: The labels of the pool.
        kept: Those that were kept, without repeats.
        truth_of_taught: int64 (K,), what is taught by its true class.
    """
    of_classes = [fraction(right, known) for right, known in zip(kept.right, kept.known, strict=True)]
    return {
        "precision_of_all": everything.precision,
        "precision": kept.precision,
        "precision_by_class": by_class(class_names, of_classes),
        "truth_of_taught": by_class(class_names, truth_of_taught.tolist()),
    }


def fraction(count: Any, total: Any) -> float | None:
    """``count / total``; None of nothing."""
    return float(count / total) if total else None


def counted(classes: NDArray[Any], class_names: Sequence[str]) -> Integers:
    """How often each class occurs, int64 (K,)."""
    return np.bincount(classes, minlength=len(class_names))


def by_class(class_names: Sequence[str], values: Sequence[Any]) -> dict[str, Any]:
    """One value a class, by name."""
    return dict(zip(class_names, values, strict=True))
