"""Selection of pseudo-labels: thresholds, balance as published, and a target precision that is kept."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

from pipelines.noisy_student.selection import (
    Selection,
    Validation,
    balanced,
    lower_bound,
    needed_samples,
    precision_thresholds,
    select,
    strictest_down,
)

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
    validation = Validation(labels(guess, confidence), guess.copy())
    thresholds, account = precision_thresholds(guess, confidence, NAMES, selection, validation)
    assert account["pooled"] == ["bee", "cat"]
    assert account["left_out"] == []
    assert thresholds[1] == thresholds[2]
    few = Validation(labels(guess[:230], confidence[:230]), guess[:230])  # of bee 30, of cat none: 30 < 59
    thresholds, account = precision_thresholds(guess, confidence, NAMES, selection, few)
    assert account["left_out"] == ["bee", "cat"]
    assert np.isfinite(thresholds[0])
    chosen = select(labels(guess, confidence), NAMES, selection, validation=few)
    assert chosen.account["kept_as"] == {"ant": chosen.account["kept"], "bee": 0, "cat": 0}
    assert chosen.account["coverage"] == chosen.account["kept"] / 280


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
    selection, draws = Selection(precision=0.95), 1000
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
        seen = Validation(labels(v_guess, 0.5 + validation / 2), truth)
        thresholds, _ = precision_thresholds(pool_guess, 0.5 + pool / 2, names, selection, seen)
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


def test_thresholds_of_single_classes_and_the_account():
    guess = np.array([0, 0, 1, 1, 2])
    probabilities = labels(guess, [0.9, 0.5, 0.9, 0.5, 0.45])
    chosen = select(probabilities, NAMES, Selection(threshold={"ant": 0.8}), truth=np.array([0, 1, 1, 2, -1]))
    assert chosen.rows.tolist() == [0, 2, 3, 4]
    account = chosen.account
    assert (account["kept"], account["pool"], account["coverage"]) == (4, 5, 0.8)
    assert account["precision"] == pytest.approx(2 / 3)  # of the three whose truth is known
    assert account["precision_of_all"] == pytest.approx(2 / 4)
    assert account["truth_of_taught"] == {"ant": 1, "bee": 1, "cat": 1}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"threshold": 1.2}, "selection.threshold is 1.2"),
        ({"precision": 1.0}, "selection.precision is 1.0"),
        ({"precision": 0.9, "threshold": 0.5}, "leave one of them out"),
        ({"per_class": 10}, "needs selection.balance: true"),
        ({"confidence": 0.9}, "selection.precision, its user, is not set"),
    ],
)
def test_wrong_settings_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Selection(**arguments)


def test_nothing_kept_and_unknown_classes_are_refused():
    probabilities = labels([0, 1], [0.6, 0.7])
    with pytest.raises(ValueError, match=r"keeps none of the 2 pseudo-labels; the most confident has 0.700"):
        select(probabilities, NAMES, Selection(threshold=0.9))
    with pytest.raises(ValueError, match="names the class 'wasp'; there are ant, bee, cat"):
        select(probabilities, NAMES, Selection(threshold={"wasp": 0.9}))
    with pytest.raises(ValueError, match="needs labelled validation images"):
        select(probabilities, NAMES, Selection(precision=0.9))
