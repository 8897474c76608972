"""What several classifiers say together, how much they differ, and what independent ones would reach.

Pure functions of arrays: probabilities float64 (M, N, K) of M members, N images, K classes; labels int64 (N,).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from datamodules.common.errors import UserError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
TIE = 1e-6  # of a vote; a tie goes to the class with the higher mean probability
MOST_STEPS = 2_000  # of the solver of stacking


def vote(probabilities: Floats, weights: Sequence[float] | None = None) -> Floats:
    """Share of the members' votes, each for its most likely class.

    Args:
        probabilities: (M, N, K).
        weights: Of each member, (M,); 1 by default. AdaBoost.SAMME's are its alphas.

    Returns:
        float64 (N, K); a tie is broken by the mean probability.
    """
    power = np.ones(len(probabilities)) if weights is None else np.asarray(weights, np.float64)
    ballots = np.eye(probabilities.shape[2])[probabilities.argmax(2)]
    shares = np.tensordot(power / power.sum(), ballots, 1)
    found: Floats = (1 - TIE) * shares + TIE * probabilities.mean(0)
    return found


def stacked(held_out: Floats, labels: Ints, probabilities: Floats) -> Floats:
    """A logistic regression on the members' probabilities (Wolpert 1992, "Stacked generalization").

    Args:
        held_out: Of images that no member was trained on, (M, V, K).
        labels: Their classes, (V,).
        probabilities: Of the images to classify, (M, N, K).

    Returns:
        Probabilities (N, K); 0 for classes that no held-out image has.

    Raises:
        UserError: If the held-out images are all of one class.
    """
    from sklearn.linear_model import LogisticRegression

    if len(np.unique(labels)) < 2:
        raise UserError(
            "combine has 'stacking', but the validation images are of one class: raise data.val_fraction, or leave"
            " stacking out."
        )
    model = LogisticRegression(max_iter=MOST_STEPS).fit(_features(held_out), labels)
    found = np.zeros(probabilities.shape[1:])
    found[:, model.classes_] = model.predict_proba(_features(probabilities))
    return found


def _features(probabilities: Floats) -> Floats:
    """(N, M x K)."""
    flat: Floats = probabilities.transpose(1, 0, 2).reshape(probabilities.shape[1], -1)
    return flat


def samme(weights: Floats, wrong: Bools, classes: int, shrinkage: float = 1.0) -> tuple[float, float, Floats]:
    """One round of AdaBoost.SAMME (Zhu et al. 2009, "Multi-class AdaBoost", Statistics and Its Interface 2).

    Args:
        weights: Of the training images, (N,).
        wrong: Which of them the round's member has wrong, (N,).
        classes: K.
        shrinkage: Fraction of alpha that counts.

    Returns:
        The weighted error; alpha, the member's weight in the vote, 0 or below where it is no better than chance and
        infinite where it has none wrong; the weights of the next round, of mean 1.
    """
    error = float(weights[wrong].sum() / weights.sum())
    if error <= 0:
        return 0.0, float("inf"), weights
    odds = np.log((1 - error) / error) if error < 1 else -np.inf
    alpha = shrinkage * float(odds + np.log(classes - 1))
    following = weights * np.exp(np.where(wrong, max(alpha, 0.0), 0.0))
    return error, alpha, following * (len(weights) / following.sum())


def independent_majority(accuracies: Sequence[float]) -> float:
    """How often the majority of voters is right whose errors are independent (Condorcet 1785).

    Three voters of 0.7: 0.784. Half of an even number of voters is right every other time. Of more than two classes it
    is a lower bound: wrong votes may differ, and a minority win.

    Args:
        accuracies: Of each voter.
    """
    chances = np.ones(1)  # of so many right votes
    for accuracy in accuracies:
        chances = np.convolve(chances, [1 - accuracy, accuracy])
    votes = len(accuracies)
    won = [float(chance) for right, chance in enumerate(chances) if 2 * right > votes]
    tied = float(chances[votes // 2]) / 2 if votes % 2 == 0 else 0.0
    return sum(won) + tied


def correlations(values: Floats) -> Floats:
    """Pearson's correlation of each two members' values (M, N): (M, M), NaN where one has no variance."""
    with np.errstate(invalid="ignore", divide="ignore"):
        found: Floats = np.atleast_2d(np.corrcoef(values))
    return found


def disagreements(answers: Ints) -> Floats:
    """Fraction of the answers (M, N) in which each two members differ: (M, M)."""
    found: Floats = (answers[:, None] != answers[None]).mean(2)
    return found


def mean_of_pairs(table: Floats) -> float | None:
    """Mean over the pairs of different members of a table (M, M); None without a known one."""
    values = table[np.triu_indices(len(table), 1)]
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else None
