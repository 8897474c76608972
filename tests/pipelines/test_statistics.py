"""Intervals: closed forms against scipy, paired differences, and coverage that a wrong interval would not reach."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from pipelines import statistics
from pipelines.statistics import Sampled, estimate, interval, sampled

SEEDS = np.array([0.61, 0.70, 0.64, 0.66])


def alike(scores: np.ndarray, images: int = 10) -> np.ndarray:
    """Values (S, N) of models whose images all score the same, so that only the seeds vary."""
    return np.repeat(scores[:, None], images, 1)


def test_spread_and_t_interval_over_the_seeds_are_scipys():
    found = estimate(alike(SEEDS))
    low, high = stats.t.interval(0.95, len(SEEDS) - 1, loc=SEEDS.mean(), scale=stats.sem(SEEDS))
    assert found["each"] == pytest.approx(SEEDS.tolist())
    assert found["mean"] == pytest.approx(0.6525)
    assert found["sd"] == pytest.approx(stats.tstd(SEEDS))
    assert (found["t_low"], found["t_high"]) == pytest.approx((low, high))


def test_two_seeds_have_a_spread():
    found = estimate(alike(SEEDS[:2]))
    assert found["sd"] == pytest.approx(0.09 / 2**0.5)
    assert found["t_high"] - found["mean"] == pytest.approx(12.706 * 0.045, rel=1e-4)  # t of one degree of freedom


def test_one_seed_has_no_spread():
    found = estimate(alike(SEEDS[:1]))
    assert (found["sd"], found["t_low"], found["t_high"]) == (None, None, None)
    assert (found["low"], found["high"]) == pytest.approx((0.61, 0.61))


def test_seeds_are_resampled_with_replacement():
    """All 4 ** 4 draws are equally likely: the interval is that of their means."""
    means = [np.mean(draw) for draw in itertools.product(SEEDS, repeat=4)]
    found = estimate(alike(SEEDS))
    assert (found["low"], found["high"]) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=1e-3)
    replicates = sampled(lambda counts: {"mean": np.repeat(SEEDS[None], len(counts), 0)}, 10)["mean"]
    assert sorted(np.unique(replicates.chosen)) == [0, 1, 2, 3]


def test_images_are_resampled_as_often_as_there_are():
    """One seed, 150 of 400 right: the standard error of a fraction."""
    right = np.arange(400) < 150
    found = estimate(right[None])
    half = stats.norm.ppf(0.975) * np.sqrt(0.375 * 0.625 / 400)
    assert (found["low"], found["high"]) == pytest.approx((0.375 - half, 0.375 + half), abs=2.6e-3)


def test_all_seeds_are_scored_on_the_same_images():
    """Three equal models err on the same images: three of them say no more than one."""
    right = (np.arange(100) < 40)[None]
    one, three = estimate(right), estimate(np.repeat(right, 3, 0))
    assert (three["low"], three["high"]) == pytest.approx((one["low"], one["high"]), abs=1e-9)


def test_a_difference_is_paired_by_image_and_by_seed():
    """The second model is better by 0.1 everywhere: of that difference nothing is unsure."""
    rng = np.random.default_rng(0)
    first = SEEDS[:, None] + rng.normal(0, 1, (4, 60))
    scores = {"first": first, "second": first + 0.1}
    found = sampled(lambda counts: {name: counts @ values.T / 60 for name, values in scores.items()}, 60)
    gain = interval(found["second"] - found["first"])
    assert (gain["mean"], gain["low"], gain["high"], gain["sd"]) == pytest.approx((0.1, 0.1, 0.1, 0.0), abs=1e-9)
    assert gain["each"] == pytest.approx([0.1] * 4)
    assert interval(found["first"])["high"] - interval(found["first"])["low"] > 0.2


def test_two_calls_draw_the_same_images_and_seeds():
    """Scores of two models are computed in two calls, and their difference is paired all the same."""
    values = np.random.default_rng(0).random((3, 20))
    first, again = (sampled(lambda counts: {"mean": counts @ values.T / 20}, 20, 50)["mean"] for _ in range(2))
    other = sampled(lambda counts: {"mean": counts @ values.T / 20}, 20, 50, seed=1)["mean"]
    assert (first.replicates == again.replicates).all()
    assert (first.chosen == again.chosen).all()
    assert (first.replicates != other.replicates).any()


def test_replicates_are_drawn_in_blocks(monkeypatch):
    """Each block fills its own rows: 7 replicates of 10 images, 3 at once."""
    monkeypatch.setattr(statistics, "CELLS", 30)
    sizes = []

    def score(counts):
        sizes.append(len(counts))
        assert (counts.sum(1) == 10).all()
        return {"mean": np.arange(len(counts))[:, None] + 10.0 * len(sizes) + np.zeros((1, 2))}

    found = sampled(score, 10, 7)["mean"]
    assert sizes == [1, 3, 3, 1]  # the first is of the images as they are
    assert found.each.tolist() == [10, 10]
    assert found.replicates[:, 0].tolist() == [20, 21, 22, 30, 31, 32, 40]
    assert set(np.unique(found.chosen)) == {0, 1}


def test_resamples_that_cannot_be_scored_are_left_out():
    replicates = np.array([[np.nan], [0.2], [0.4]])
    found = interval(Sampled(np.array([0.3]), replicates, np.zeros((3, 1), np.int64)))
    assert (found["low"], found["high"]) == pytest.approx((0.205, 0.395))


def test_intervals_hold_the_truth_as_often_as_they_say(monkeypatch):
    """95 % of 400 trials, give or take 2.5: an interval of 90 % is outside."""
    monkeypatch.setattr(statistics, "REPLICATES", 300)
    rng = np.random.default_rng(0)
    trials = 400
    over_images = over_seeds = 0
    for trial in range(trials):
        found = estimate(rng.normal(0.6, 0.2, (1, 80)), seed=trial)
        over_images += found["low"] <= 0.6 <= found["high"]
        found = estimate(alike(rng.normal(0.6, 0.05, 3), 1))
        over_seeds += found["t_low"] <= 0.6 <= found["t_high"]
    assert abs(over_images / trials - 0.95) < 0.025
    assert abs(over_seeds / trials - 0.95) < 0.025
