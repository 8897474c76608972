"""Classified images: what is measured of each, and what a report says of them.

Of each of N images: ``truth`` (N,), the class; ``logits`` float16 (N, M) in falling order, before any temperature, and
``classes`` (N, M), whose they are; M is the number of classes K, or ``MOST`` of them where K is large; ``truth_logit``
float32 (N,).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp, softmax

from pipelines.report.collect import hash_of
from pipelines.report.measured import Measured
from pipelines.report.scoring import Scorer
from pipelines.scorers import accuracy, f1_of_counts, mean_of_known

MAIN = "accuracy"
ALL_UP_TO = 100  # classes whose logits are all kept
MOST = 20  # logits of an image with more classes

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def collect(batch: Mapping[str, Any], outputs: Mapping[str, Any], classes: int, divisor: float) -> dict[str, Any]:
    """What is kept of a batch.

    Args:
        batch: As evaluated.
        outputs: What the task predicts.
        classes: K.
        divisor: What the logits were divided by.
    """
    logits = outputs["logits"].float() * divisor
    top, order = logits.topk(classes if classes <= ALL_UP_TO else min(classes, MOST), dim=1)
    label = batch["label"]
    of_truth = label.argmax(1) if label.is_floating_point() else label.long()
    truth = of_truth.cpu().numpy()
    return {
        "truth": truth,
        "logits": top.cpu().numpy().astype(np.float16),
        "classes": order.cpu().numpy().astype(np.int32),
        "truth_logit": logits.gather(1, of_truth[:, None])[:, 0].cpu().numpy(),
        "truth_hash": np.array([hash_of(one) for one in truth], np.int64),
    }


def truth_of(measured: Measured) -> Ints:
    """The true class of each image."""
    return np.asarray(measured.arrays["truth"], np.int64)


def predicted(measured: Measured) -> Ints:
    """The most likely class of each image."""
    return np.asarray(measured.arrays["classes"][:, 0], np.int64)


def right(measured: Measured) -> NDArray[np.bool_]:
    """Which images are classified correctly."""
    return np.asarray(predicted(measured) == truth_of(measured))


def probabilities(measured: Measured, temperature: float = 1.0) -> Floats:
    """Of the kept classes, float64 (N, M)."""
    return np.asarray(softmax(measured.arrays["logits"].astype(np.float64) / temperature, axis=1))


def truth_probability(measured: Measured, temperature: float = 1.0) -> Floats:
    """What the true class was given, (N,)."""
    logits = measured.arrays["logits"].astype(np.float64) / temperature
    own = measured.arrays["truth_logit"].astype(np.float64) / temperature
    return np.asarray(np.exp(np.minimum(own - logsumexp(logits, axis=1), 0)))


def by_class(measured: Measured) -> tuple[Any, Any, Any]:
    """What is right, predicted and true of each image and class: sparse matrices (N, K)."""
    from scipy.sparse import csr_array

    shape, rows = (len(measured), len(measured.class_names)), np.arange(len(measured))

    def one_hot(classes: Ints, which: NDArray[np.bool_]) -> Any:
        return csr_array((np.ones(int(which.sum())), (rows[which], classes[which])), shape=shape)

    everything = np.ones(len(measured), bool)
    true, found = truth_of(measured), predicted(measured)
    return one_hot(true, true == found), one_hot(found, everything), one_hot(true, everything)


def scorer(measured: Measured) -> Scorer:
    """Accuracy, macro F1, accuracy among the best 5, and negative log-likelihood."""
    correct, counts_of = right(measured), by_class(measured)
    among = (measured.arrays["classes"][:, :5] == truth_of(measured)[:, None]).any(1)
    loss = -np.log(np.maximum(truth_probability(measured), 1e-12))
    many = len(measured.class_names) > 5

    def score(counts: NDArray[Any]) -> dict[str, Floats]:
        values = {"accuracy": accuracy(counts, correct), "f1": mean_of_known(f1_of_counts(counts, *counts_of))}
        if many:
            values["top5"] = accuracy(counts, among)
        return values | {"loss": np.asarray(counts @ loss / counts.sum(1), np.float64)}

    return score


def class_scorer(measured: Measured) -> Scorer:
    """F1 of each class, by its number."""
    counts_of = by_class(measured)

    def score(counts: NDArray[Any]) -> dict[str, Floats]:
        f1 = f1_of_counts(counts, *counts_of)
        return {str(k): f1[:, k] for k in range(f1.shape[1])}

    return score


def confidences(measured: Measured, temperature: float = 1.0) -> tuple[Floats, NDArray[np.bool_], Ints]:
    """Of each answer its probability, whether it is right, and its image."""
    return probabilities(measured, temperature)[:, 0], right(measured), np.arange(len(measured))


def confusion(measured: Measured) -> Ints:
    """Counts (K, K), rows the true classes."""
    classes = len(measured.class_names)
    cells = truth_of(measured) * classes + predicted(measured)
    return np.bincount(cells, minlength=classes * classes).reshape(classes, classes)


def class_probability(measured: Measured, label: int, temperature: float = 1.0) -> Floats:
    """What each image gives a class; 0 where it is not among those kept."""
    is_it = measured.arrays["classes"] == label
    return np.asarray((probabilities(measured, temperature) * is_it).sum(1))
