"""Selection of pseudo-labels: thresholds, balance as published, and a target precision that is kept."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

from pipelines.noisy_student.precision import (
    Evaluated,
    evaluated,
    lower_bound,
    needed_samples,
    strictest_down,
    thresholds_for,
)
from pipelines.noisy_student.selection import Selection, balanced, fixed_thresholds, select

NAMES = ["ant", "bee", "cat"]


def labels(guess, confidence, classes=3):
    """Probabilities whose largest is `confidence` at `guess`."""
    guess, confidence = np.asarray(guess), np.asarray(confidence, np.float32)
    out = np.repeat(((1 - confidence) / (classes - 1))[:, None], classes, 1).astype(np.float32)
    out[np.arange(len(guess)), guess] = confidence
    return out


def test_the_bound_is_the_exact_one():
    for right, total in ((59, 59), (58, 59), (95, 100), (1, 3), (0, 5), (400, 410)):
        exact = binomtest(right, total, alternative="greater").proportion_ci(0.95, "exact").low
        assert lower_bound(right, total, 0.95) == pytest.approx(exact, abs=1e-9)


def test_59_samples_without_an_error_are_needed():
    assert needed_samples(0.95, 0.95) == 59
    assert lower_bound(59, 59, 0.95) >= 0.95 > lower_bound(58, 58, 0.95)
    assert needed_samples(0.9, 0.95) == 29


def test_levels_are_tested_from_the_strictest_down_until_the_first_failure():
    confidence = np.repeat([0.9, 0.8, 0.7], [100, 100, 400])
    right = np.ones(600, bool)
    levels = np.array([0.9, 0.8, 0.7])
    assert strictest_down(levels, confidence, right, 0.95, 0.95) == 0.7
    right[100:130] = False  # 170 of 200 from 0.8 on, though 570 of 600 from 0.7 on would pass a target of 0.93
    assert lower_bound(570, 600, 0.95) > 0.93
    assert strictest_down(levels, confidence, right, 0.93, 0.95) == 0.9
    assert strictest_down(levels, confidence[:58], right[:58], 0.95, 0.95) == np.inf  # too few to show anything


def test_small_classes_are_pooled_or_left_out_and_named():
    rng = np.random.default_rng(0)
    guess = np.repeat([0, 1, 2], [200, 40, 40])
    confidence = rng.uniform(0.6, 1, 280)
    selection = Selection(precision=0.95)
    validation = evaluated(labels(guess, confidence), guess.copy())
    thresholds, report = thresholds_for(guess, confidence, NAMES, validation, precision=0.95, level=0.95)
    assert report["pooled"] == ["bee", "cat"]
    assert report["left_out"] == []
    assert thresholds[1] == thresholds[2]
    few = evaluated(labels(guess[:230], confidence[:230]), guess[:230])  # of bee 30, of cat none: 30 < 59
    thresholds, report = thresholds_for(guess, confidence, NAMES, few, precision=0.95, level=0.95)
    assert report["left_out"] == ["bee", "cat"]
    assert np.isfinite(thresholds[0])
    chosen = select(labels(guess, confidence), NAMES, selection, validation=few)
    assert chosen.report["kept_as"] == {"ant": chosen.report["kept"], "bee": 0, "cat": 0}
    assert chosen.report["coverage"] == chosen.report["kept"] / 280


# Confidence of a label is uniform; a label of confidence c of class k is right with this probability.
CALIBRATION = {
    "sharp": lambda c: 0.85 + 0.15 * c,
    "steep": lambda c: np.clip(0.5 + 0.62 * c, 0, 0.999),
    "hopeless": lambda c: 0.70 + 0.22 * c,  # below the target everywhere
}
GRID = np.linspace(0, 1, 20_001)


def true_precision(name: str, threshold: float) -> float:
    """Of all labels above a threshold, exactly but for the grid."""
    return float(CALIBRATION[name](GRID[threshold <= GRID]).mean())


def test_the_true_precision_is_below_the_target_in_at_most_5_percent_of_1000_draws():
    rng = np.random.default_rng(3)
    names = list(CALIBRATION)
    draws = 1000
    below, kept = np.zeros(3), np.zeros(3)
    pool_guess = np.repeat([0, 1, 2], 300)
    v_guess = np.repeat([0, 1, 2], 250)
    for _ in range(draws):
        # Confidences between 1/2 and 1, so that the likeliest of three classes is the one meant.
        pool, validation = rng.random(900), rng.random(750)
        right = rng.random(750) < np.select(
            [v_guess == k for k in range(3)], [f(validation) for f in CALIBRATION.values()]
        )
        truth = np.where(right, v_guess, (v_guess + 1) % 3)
        seen = evaluated(labels(v_guess, 0.5 + validation / 2), truth)
        thresholds, _ = thresholds_for(pool_guess, 0.5 + pool / 2, names, seen, precision=0.95, level=0.95)
        for k, name in enumerate(names):
            if np.isfinite(thresholds[k]):
                kept[k] += 1
                below[k] += true_precision(name, 2 * (thresholds[k] - 0.5)) < 0.95
    assert (below / draws <= 0.05).all(), below
    assert kept[0] > 300  # not by keeping nothing
    assert kept[1] > 300
    assert below.sum() > 0  # and a target is tried hard enough to be missed at times


def test_balance_keeps_the_most_confident_and_repeats_the_poor_evenly():
    guess = np.repeat([0, 1, 2], [50, 7, 3])
    confidence = np.random.default_rng(0).permutation(np.linspace(0.4, 0.99, 60))
    rows = balanced(np.arange(60), guess, confidence, 20, seed=1)
    assert np.bincount(guess[rows]).tolist() == [20, 20, 20]
    best = np.argsort(-confidence[:50])[:20]
    assert set(rows[guess[rows] == 0]) == set(best)
    for k, images in ((1, 7), (2, 3)):
        copies = np.unique(rows[guess[rows] == k], return_counts=True)[1]
        assert len(copies) == images
        assert set(copies.tolist()) <= {20 // images, 20 // images + 1}
    assert (rows == balanced(np.arange(60), guess, confidence, 20, seed=1)).all()
    assert (rows != balanced(np.arange(60), guess, confidence, 20, seed=2)).any()
    assert len(balanced(np.arange(60), guess, confidence, None, seed=1)) == 3 * 20


def test_thresholds_of_single_classes_and_the_report():
    guess = np.array([0, 0, 1, 1, 2])
    probabilities = labels(guess, [0.9, 0.5, 0.9, 0.5, 0.45])
    chosen = select(probabilities, NAMES, Selection(threshold={"ant": 0.8}), truth=np.array([0, 1, 1, 2, -1]))
    assert chosen.rows.tolist() == [0, 2, 3, 4]
    report = chosen.report
    assert (report["kept"], report["pool"], report["coverage"]) == (4, 5, 0.8)
    assert report["precision"] == pytest.approx(2 / 3)  # of the three whose truth is known
    assert report["precision_of_all"] == pytest.approx(2 / 4)
    assert report["truth_of_taught"] == {"ant": 1, "bee": 1, "cat": 1}


def test_a_confidence_equal_to_the_threshold_is_kept():
    """0.5 and 0.75 are exact in float32."""
    probabilities = labels([0, 0, 1, 1], [0.5, 0.49, 0.75, 0.74])
    chosen = select(probabilities, NAMES, Selection(threshold={"ant": 0.5, "bee": 0.75}))
    assert chosen.rows.tolist() == [0, 2]
    assert chosen.report["thresholds"] == {"ant": 0.5, "bee": 0.75, "cat": 0.0}
    assert chosen.report["labelled_as"] == {"ant": 2, "bee": 2, "cat": 0}
    assert chosen.report["kept_as"] == {"ant": 1, "bee": 1, "cat": 0}


def test_the_report_of_a_selection_counts_repeats_as_taught_and_once_as_kept():
    """Three ants and one bee of an unknown class, balanced to four each; one ant is a cat."""
    probabilities = labels([0, 0, 0, 1], [0.9, 0.8, 0.7, 0.6])
    chosen = select(probabilities, NAMES, Selection(balance=True, per_class=4), truth=np.array([0, 0, 2, -1]), seed=0)
    report = chosen.report
    assert (report["kept"], report["images"], report["distinct_images"]) == (4, 8, 4)
    assert report["coverage"] == 1.0
    assert report["taught_as"] == {"ant": 4, "bee": 4, "cat": 0}
    assert report["kept_as"] == {"ant": 3, "bee": 1, "cat": 0}
    assert report["precision"] == report["precision_of_all"] == pytest.approx(2 / 3)
    assert report["precision_by_class"] == {"ant": pytest.approx(2 / 3), "bee": None, "cat": None}
    assert sum(report["truth_of_taught"].values()) == 4  # the bee's truth is not known
    assert report["truth_of_taught"]["cat"] in (1, 2)
    assert "precision" not in select(probabilities, NAMES, Selection(), truth=np.full(4, -1)).report


def test_balance_takes_the_first_of_equally_confident_images_and_the_mean_count():
    guess = np.array([0, 0, 0, 1, 1])
    rows = balanced(np.arange(5), guess, np.full(5, 0.5), 2, seed=0)
    assert rows.tolist() == [0, 1, 3, 4]
    # Of images that passed the threshold only: two and one of two classes, so the mean is 1.5, which rounds to 2.
    guess = np.array([0, 0, 0, 1, 1, 1, 1, 1, 1, 2])
    rows = balanced(np.array([1, 2, 4]), guess, np.linspace(0.9, 0.5, 10), None, seed=0)
    assert rows.tolist() == [1, 2, 4, 4]


def test_an_extra_copy_goes_to_another_image_with_another_seed_and_another_class():
    guess = np.repeat([0, 1], 20)
    rows = [balanced(np.arange(40), guess, np.full(40, 0.5), 25, seed=seed) for seed in range(3)]
    extra = [{k: set(np.flatnonzero(np.bincount(r) == 2) - 20 * k) for k in (0, 1)} for r in rows]
    extra = [{k: {i for i in places if 0 <= i < 20} for k, places in found.items()} for found in extra]
    assert all(len(places) == 5 for found in extra for places in found.values())
    assert len({frozenset(found[0]) for found in extra}) == 3
    assert all(found[0] != found[1] for found in extra)


def test_levels_are_quantiles_of_the_pool_of_the_own_class():
    """The bees of the pool are all more confident than the ants, whose labels are right from 0.5 on."""
    sure = np.linspace(0.3, 0.9, 200)
    seen = Evaluated(np.repeat([0, 1], 200), np.tile(sure, 2), np.tile(sure >= 0.5, 2))
    pool = np.concatenate([np.linspace(0.2, 0.8, 100), np.linspace(0.7, 0.9, 100)])
    target = {"precision": 0.9, "level": 0.95}
    thresholds, report = thresholds_for(np.repeat([0, 1], 100), pool, NAMES, seen, **target)
    assert report == {"precision_target": 0.9, "samples_needed": 29, "pooled": [], "left_out": ["cat"]}
    assert thresholds[0] in pool[:100]
    assert 0.47 < thresholds[0] < 0.53  # below 0.5 there are wrong ones, of which the bound allows a few
    assert thresholds[1] == pool[100]  # the least confident bee of the pool
    assert np.isinf(thresholds[2])
    # A class that the pool does not have has no threshold, and neither has one with one sample too few.
    assert np.isinf(thresholds_for(np.zeros(100, int), pool[:100], NAMES, seen, **target)[0][1])
    few = Evaluated(np.zeros(28, int), np.full(28, 0.9), np.ones(28, bool))
    assert np.isinf(thresholds_for(np.zeros(100, int), pool[:100], NAMES, few, **target)[0]).all()
    enough = Evaluated(np.zeros(29, int), np.full(29, 0.9), np.ones(29, bool))
    assert thresholds_for(np.zeros(100, int), pool[:100], NAMES, enough, **target)[0][0] == pool[0]


def test_the_seed_of_a_selection_is_that_of_its_repeats():
    probabilities = labels(np.repeat([0, 1], 20), np.linspace(0.5, 0.9, 40))
    chosen = Selection(balance=True, per_class=25)
    rows = [select(probabilities, NAMES, chosen, seed=seed).rows.tolist() for seed in (0, 0, 1)]
    assert rows[0] == rows[1] != rows[2]


def test_a_class_is_pooled_where_it_has_too_few_validation_samples_of_its_own():
    """For 0.9 at 95 % that is fewer than 29, however many there are in the pool."""
    pool = np.tile(np.linspace(0.5, 0.9, 60), 3)

    def report(*counts: int) -> dict:
        guess = np.repeat([0, 1, 2], counts)
        seen = Evaluated(guess, np.full(len(guess), 0.95), np.ones(len(guess), bool))
        return thresholds_for(np.repeat([0, 1, 2], 60), pool, NAMES, seen, precision=0.9, level=0.95)[1]

    assert (report(29, 14, 14)["pooled"], report(29, 14, 14)["left_out"]) == ([], ["bee", "cat"])
    assert (report(29, 15, 14)["pooled"], report(29, 15, 14)["left_out"]) == (["bee", "cat"], [])
    assert (report(29, 29, 28)["pooled"], report(29, 29, 28)["left_out"]) == ([], ["cat"])
    assert report(28, 29, 1)["pooled"] == ["ant", "cat"]


def test_thresholds_of_classes_that_are_not_named_take_all():
    assert fixed_thresholds(NAMES, {"bee": 0.5}).tolist() == [0.0, 0.5, 0.0]
    assert fixed_thresholds(NAMES, 0.25).tolist() == [0.25] * 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"threshold": 1.2}, "selection.threshold is 1.2"),
        ({"threshold": {"ant": -0.1}}, "it is a probability, 0 to 1"),
        ({"precision": 0.0}, "selection.precision is 0.0"),
        ({"precision": 0.9, "confidence": 0.4}, "at least 0.5 and below 1"),
        ({"precision": 0.9, "confidence": 1.0}, "at least 0.5 and below 1"),
        ({"per_class": 0, "balance": True}, "it must be at least 1"),
        ({"ignore": 0.04}, "lower ones are not written"),
        ({"ignore": 1.1}, "lower ones are not written"),
        ({"precision": 1.0}, "selection.precision is 1.0"),
        ({"precision": 0.9, "threshold": 0.5}, "leave one of them out"),
        ({"per_class": 10}, "needs selection.balance: true"),
        ({"confidence": 0.9}, "selection.precision, its user, is not set"),
    ],
)
def test_wrong_settings_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Selection(**arguments)


def test_settings_at_the_ends_of_their_ranges_are_taken():
    Selection(threshold=1.0, per_class=1, balance=True, ignore=0.05)
    Selection(precision=0.99, confidence=0.5, ignore=1.0)


def test_nothing_kept_and_unknown_classes_are_refused():
    probabilities = labels([0, 1], [0.6, 0.7])
    with pytest.raises(ValueError, match=r"keeps none of the 2 pseudo-labels; the most confident has 0.700"):
        select(probabilities, NAMES, Selection(threshold=0.9))
    with pytest.raises(ValueError, match="names the class 'wasp'; there are ant, bee, cat"):
        select(probabilities, NAMES, Selection(threshold={"wasp": 0.9}))
    with pytest.raises(ValueError, match="needs labeled validation images"):
        select(probabilities, NAMES, Selection(precision=0.9))
