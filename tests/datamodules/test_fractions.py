"""Fractions of the training images: nested, stratified, whole groups, whatever the order of the list."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from datamodules.common.errors import UserError
from datamodules.fractions import first_labeled
from datamodules.unlabeled import hide_labels


def records(labels: list[Any], groups: list[str] | None = None) -> list[dict[str, Any]]:
    found = [{"path": f"x/{i:03d}.png", "label": label, "split": "train"} for i, label in enumerate(labels)]
    return [record | {"group": groups[i]} for i, record in enumerate(found)] if groups else found


def test_a_larger_fraction_holds_the_smaller_and_classes_keep_their_shares() -> None:
    given = records([0] * 120 + [1] * 60 + [2] * 20)
    before: set[int] = set()
    for fraction in (0.05, 0.1, 0.25, 0.5, 0.9, 1.0):
        found = first_labeled(given, fraction, seed=3)
        assert len(found) == round(200 * fraction)
        assert before <= found
        counts = Counter(given[i]["label"] for i in found)
        assert all(abs(counts[label] - fraction * size) <= 1.5 for label, size in ((0, 120), (1, 60), (2, 20)))
        before = found


def test_the_draw_depends_on_the_seed_and_not_on_the_order() -> None:
    given = records([0, 1, 2] * 30)
    order = np.random.default_rng(0).permutation(90).tolist()
    shuffled = [given[i] for i in order]

    def paths(of: list[dict[str, Any]], seed: int) -> set[str]:
        return {of[i]["path"] for i in first_labeled(of, 0.3, seed)}

    assert paths(given, 0) == paths(shuffled, 0)
    assert paths(given, 0) != paths(given, 1)


def test_groups_stay_together() -> None:
    groups = [f"g{number}" for number in range(20) for _ in range(number % 4 + 2)]
    given = records([int(group[1:]) % 2 for group in groups], groups)
    found = first_labeled(given, 0.3, seed=0)
    kept = {given[i]["group"] for i in found}
    assert all((record["group"] in kept) == (i in found) for i, record in enumerate(given))
    assert 0.3 * len(given) <= len(found) <= 0.3 * len(given) + 5  # the last group whole


def test_images_without_one_class_are_one_stratum() -> None:
    given = records([[0, 1]] * 10)
    kept, hidden = hide_labels(given, ["a", "b"], 0, fraction=0.3)
    assert (len(kept), len(hidden)) == (3, 7)
    assert hide_labels(given, ["a", "b"], 0, fraction=1.0) == (given, [])


@pytest.mark.parametrize(
    ("fraction", "says"),
    [
        (0.0, "above 0 and at most 1"),
        (1.5, "is 1.5; it must be"),
        (0.01, "is no image"),
        (0.1, "is 2, fewer than the 4 classes: give at least 0.2"),
    ],
)
def test_fractions_that_cannot_be(fraction: float, says: str) -> None:
    with pytest.raises(UserError, match=says):
        first_labeled(records([0, 1, 2, 3] * 5), fraction, seed=0)
