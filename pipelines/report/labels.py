"""Images with several labels each: what is measured of each image, and what a report says of them.

Of each of N images: ``truth`` bool (N, K), and ``logits`` float32 (N, K) before any temperature.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from pipelines.report.collect import hash_of
from pipelines.report.measured import Measured
from pipelines.report.scoring import Scorer
from pipelines.scorers import f1_of_counts, mean_of_known

MAIN = "mean_average_precision"
REPLICATES = 500  # each ranks all images again for each label

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


def collect(batch: Mapping[str, Any], outputs: Mapping[str, Any], classes: int, divisor: float) -> dict[str, Any]:
    """What is kept of a batch; see ``images.collect``."""
    truth = (batch["label"] >= 0.5).cpu().numpy()
    return {
        "truth": truth,
        "logits": (outputs["logits"].float() * divisor).cpu().numpy(),
        "truth_hash": np.array([hash_of(one) for one in truth], np.int64),
    }


def truth_of(measured: Measured) -> Bools:
    """Which labels each image has, (N, K)."""
    return np.asarray(measured.arrays["truth"], np.bool_)


def probabilities(measured: Measured, temperature: float = 1.0) -> Floats:
    """Of each label, float64 (N, K)."""
    return np.asarray(expit(measured.arrays["logits"].astype(np.float64) / temperature))


def losses(measured: Measured, temperature: float = 1.0) -> Floats:
    """Binary cross-entropy of each image, the mean over its labels, (N,)."""
    logits = measured.arrays["logits"].astype(np.float64) / temperature
    return np.asarray(np.logaddexp(0, np.where(truth_of(measured), -logits, logits)).mean(1))


def tables(measured: Measured) -> tuple[Floats, Floats, Floats]:
    """What is right, predicted (from a probability of 0.5) and true of each image and label, (N, K)."""
    found, true = measured.arrays["logits"] >= 0, truth_of(measured)
    right, number, actual = (np.asarray(table, np.float64) for table in (found & true, found, true))
    return right, number, actual


def scorer(measured: Measured) -> Scorer:
    """Mean average precision of the labels that occur, F1 at a probability of 0.5 (mean, micro), and the loss."""
    each, counted, loss = label_scorer(measured), tables(measured), losses(measured)
    together = [table.sum(1, keepdims=True) for table in counted]

    def score(counts: NDArray[Any]) -> dict[str, Floats]:
        values = each(counts)
        return {
            MAIN: mean_of_known(np.stack(list(values.values()), 1)),
            "f1": mean_of_known(f1_of_counts(counts, *counted)),
            "f1_micro": f1_of_counts(counts, *together)[:, 0],
            "loss": np.asarray(counts @ loss / counts.sum(1), np.float64),
        }

    return score


def label_scorer(measured: Measured) -> Scorer:
    """Average precision of each label, by its number; NaN where no image of a resample has it."""
    truth, logits = truth_of(measured), measured.arrays["logits"]

    def score(counts: NDArray[Any]) -> dict[str, Floats]:
        return {str(k): ranked(counts, truth[:, k], logits[:, k]) for k in range(truth.shape[1])}

    return score


def ranked(counts: NDArray[Any], truth: Bools, scores: NDArray[Any]) -> Floats:
    """Average precision, the sum of precision times the recall that is won at each score, as scikit-learn's.

    Args:
        counts: How often each image counts, (R, N).
        truth: (N,).
        scores: (N,).

    Returns:
        float64 (R,).
    """
    order = np.argsort(-scores, kind="stable")
    last = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))  # of equal scores
    weight = np.asarray(counts, np.float64)[:, order]
    seen, right = np.cumsum(weight, 1)[:, last], np.cumsum(weight * truth[order], 1)[:, last]
    total = right[:, -1]
    won = np.diff(right, axis=1, prepend=0)
    average = (won * right / np.maximum(seen, 1)).sum(1) / np.maximum(total, 1)
    return np.asarray(np.where(total > 0, average, np.nan), np.float64)


def decisions(measured: Measured, temperature: float = 1.0) -> tuple[Floats, Bools, NDArray[np.int64]]:
    """Of each image and label the probability, whether the image has it, and the image."""
    stated = probabilities(measured, temperature)
    image = np.repeat(np.arange(len(measured)), stated.shape[1])
    return stated.ravel(), truth_of(measured).ravel(), image
