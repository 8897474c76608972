"""The simulation of ``select`` on points in the plane."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.active import STRATEGIES, Vectors, gain, simulate


def test_a_rare_group_is_found_by_choice_and_not_by_chance():
    """Three of 300 pictures are of a class of its own, far away: the farthest from what is labeled are these."""
    rng = np.random.default_rng(0)
    centers = np.array([[0.0, 0.0], [3.0, 0.0], [0.0, 30.0]])
    labels = np.repeat([0, 1, 2], [150, 147, 3])
    test_labels = np.repeat([0, 1, 2], 30)
    data = Vectors(
        centers[labels] + rng.normal(size=(300, 2)),
        labels,
        centers[test_labels] + rng.normal(size=(90, 2)),
        test_labels,
    )
    curves = {strategy: simulate(data, strategy, 6, 3, 1) for strategy in STRATEGIES}
    assert all(len(curve) == 3 for curve in curves.values())
    assert len({curve[0] for curve in curves.values()}) == 1
    assert curves["coreset"][-1] > curves["random"][-1] + 0.1
    assert curves["random"] == simulate(data, "random", 6, 3, 1)


def test_the_lead_is_paired():
    chance = np.array([[0.5, 0.6, 0.7], [0.5, 0.7, 0.8]])
    mean, low, high = gain(chance + np.array([[0, 0.1, 0.1], [0, 0.2, 0.2]]), chance)
    assert mean == pytest.approx(0.15)
    assert (high - low) / 2 == pytest.approx(12.706 * 0.05, rel=1e-3)
