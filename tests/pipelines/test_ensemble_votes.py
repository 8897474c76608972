"""What several classifiers say together: votes, stacking, SAMME, independent voters, beside references."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from datamodules.common.errors import UserError
from pipelines.combining.soup import mean_weights, recompute_norms
from pipelines.combining.votes import (
    correlations,
    disagreements,
    independent_majority,
    mean_of_pairs,
    samme,
    stacked,
    vote,
)


def test_three_independent_voters_of_0_7_are_right_in_0_784():
    assert independent_majority([0.7, 0.7, 0.7]) == pytest.approx(0.784)
    assert independent_majority([0.7]) == pytest.approx(0.7)
    assert independent_majority([0.7, 0.7]) == pytest.approx(0.7)  # a tie is won every other time
    assert independent_majority([0.4] * 101) < 0.03  # worse than chance: the more the worse


def test_independent_voters_of_several_accuracies_by_enumeration():
    accuracies = [0.9, 0.55, 0.7, 0.6]
    expected = 0.0
    for right in itertools.product([0, 1], repeat=4):
        chance = math.prod(p if r else 1 - p for p, r in zip(accuracies, right, strict=True))
        expected += chance * {True: 1.0, False: 0.0}[sum(right) > 2] + chance * 0.5 * (sum(right) == 2)
    assert independent_majority(accuracies) == pytest.approx(expected)


def test_simulated_voters_reach_it():
    rng = np.random.default_rng(0)
    answers = np.where(rng.random((3, 20_000)) < 0.7, 0, 1)  # the truth is 0
    shares = vote(np.eye(2)[answers])
    assert (shares.argmax(1) == 0).mean() == pytest.approx(0.784, abs=0.01)


def test_votes_ties_and_weights():
    members = np.array([[[0.6, 0.4, 0.0]], [[0.1, 0.2, 0.7]], [[0.6, 0.3, 0.1]]])
    assert vote(members)[0] == pytest.approx([2 / 3, 0, 1 / 3], abs=1e-5)
    sure = np.array([[[0.9, 0.0, 0.1]], [[0.3, 0.0, 0.7]]])
    assert vote(sure)[0].argmax() == 0  # a tie of 0 and 2, whose means are 0.6 and 0.4
    assert vote(members, [1.0, 3.0, 1.0])[0].argmax() == 2


def test_samme_is_scikit_learns():
    from sklearn.datasets import load_iris
    from sklearn.ensemble import AdaBoostClassifier
    from sklearn.tree import DecisionTreeClassifier

    x, y = load_iris(return_X_y=True)
    for shrinkage in (1.0, 0.5):
        model = AdaBoostClassifier(DecisionTreeClassifier(max_depth=1), n_estimators=4, learning_rate=shrinkage)
        model.fit(x, y)
        weights = np.ones(len(y))
        for member, its_error, its_alpha in zip(
            model.estimators_, model.estimator_errors_, model.estimator_weights_, strict=False
        ):
            error, alpha, weights = samme(weights, member.predict(x) != y, 3, shrinkage)
            assert (error, alpha) == (pytest.approx(its_error), pytest.approx(its_alpha))
            assert weights.mean() == pytest.approx(1)
        ballots = np.stack([np.eye(3)[member.predict(x)] for member in model.estimators_])
        ours = vote(ballots, model.estimator_weights_[: len(ballots)]).argmax(1)
        assert (ours == model.predict(x)).all()


def test_samme_of_members_that_end_boosting():
    ones = np.ones(4)
    assert samme(ones, np.zeros(4, bool), 3)[1] == math.inf
    error, alpha, weights = samme(ones, np.ones(4, bool), 3)
    assert (error, alpha) == (1.0, -math.inf)
    assert weights.tolist() == [1, 1, 1, 1]
    assert samme(ones, np.array([True, True, True, False]), 3)[1] < 0  # 0.75 wrong of three classes: below chance


def test_stacking_is_a_logistic_regression_on_held_out_probabilities():
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 90)
    good = 0.5 * np.eye(3)[labels] + rng.dirichlet(np.ones(3), 90)
    bad = np.eye(3)[(labels + 1) % 3] + 0.1 * rng.random((90, 3))  # always wrong, and always in the same way
    held_out = np.stack([good, bad])
    found = stacked(held_out[:, :60], labels[:60], held_out[:, 60:])
    features = np.concatenate([good, bad], 1)
    reference = LogisticRegression(max_iter=2000).fit(features[:60], labels[:60]).predict_proba(features[60:])
    assert found == pytest.approx(reference)
    assert (found.argmax(1) == labels[60:]).mean() == 1.0  # it has learned what the bad one means
    assert (vote(held_out)[60:].argmax(1) == labels[60:]).mean() < 1.0


def test_stacking_of_a_class_that_no_held_out_image_has():
    probabilities = np.random.default_rng(0).dirichlet(np.ones(4), (2, 10))
    found = stacked(probabilities, np.array([0, 2] * 5), probabilities)
    assert found[:, [1, 3]].max() == 0
    assert found.sum(1) == pytest.approx(np.ones(10))
    with pytest.raises(UserError, match="the validation images are of one class"):
        stacked(probabilities, np.zeros(10, np.int64), probabilities)


def test_diversity_by_hand():
    answers = np.array([[0, 1, 1, 0], [0, 1, 0, 0], [1, 0, 0, 1]])
    table = disagreements(answers)
    assert table.tolist() == [[0, 0.25, 1], [0.25, 0, 0.75], [1, 0.75, 0]]
    assert mean_of_pairs(table) == pytest.approx(2 / 3)
    right = np.array([[1.0, 1, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 1, 1, 1]])
    found = correlations(right)
    assert found[0, 1] == pytest.approx(1)
    assert found[0, 2] == pytest.approx(0)
    assert math.isnan(found[0, 3])  # never wrong: nothing to correlate
    assert mean_of_pairs(found[:3, :3]) == pytest.approx(1 / 3)
    assert mean_of_pairs(found[2:, 2:]) is None


def test_the_mean_of_weights():
    first = {"a": torch.tensor([1.0, 2.0]), "n": torch.tensor(3)}
    found = mean_weights([first, {"a": torch.tensor([3.0, 6.0]), "n": torch.tensor(7)}])
    assert found["a"].tolist() == [2, 4]
    assert found["n"] == 3


class Frozen(nn.BatchNorm2d):
    """A norm that stays as it is, as a task's ``freeze_norm`` makes it."""

    def train(self, mode: bool = True) -> Frozen:
        super().train(False)
        return self


def test_statistics_are_those_of_torchs_update_bn():
    torch.manual_seed(0)
    images = list(torch.randn(6, 4, 3, 8, 8))
    ours, reference = (nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU()) for _ in range(2))
    reference.load_state_dict(ours.state_dict())
    update_bn(images, reference)
    recompute_norms(ours, images)
    assert not ours.training
    assert ours[1].momentum == 0.1
    for name, value in reference.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value), name
    frozen = nn.Sequential(nn.Conv2d(3, 5, 3), Frozen(5))
    recompute_norms(frozen, [])  # which it would read if there were a norm to take anew
    assert frozen[1].running_var.tolist() == [1] * 5
