"""Sections of a report about classified images."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.outputs import page
from pipelines.report import images, parts
from pipelines.report.measured import Measured
from pipelines.report.scoring import FEW, scored

SHOWN = 12  # pictures of each kind of mistakes
MAX_MATRIX = 25  # classes up to which the confusion matrix is a table
MAX_CONFUSIONS = 15
MAX_CLASSES = 200  # classes up to which their F1 has intervals


def sections(measured: Measured, said: str) -> list[tuple[str, str]]:
    """Title and HTML of each section.

    Args:
        measured: The evaluated images.
        said: Of the temperature.
    """
    temperature = measured.temperature
    before = images.confidences(measured)
    after = images.confidences(measured, temperature) if temperature != 1 else None
    given = [images.truth_probability(measured, t) for t in (1.0, temperature)]
    losses = [float(-np.log(np.maximum(one, 1e-12)).mean()) for one in given]
    return [
        ("Classes", _classes(measured)),
        ("Confusions", _confusions(measured)),
        ("Calibration", parts.calibration(measured, before, after, said, losses)),
        ("Thresholds", _thresholds(measured)),
        ("Precision and recall", _precision_recall(measured)),
        ("Properties of the pictures", parts.properties(measured, images.scorer, images.MAIN)),
        ("Mistakes", _mistakes(measured)),
    ]


def _classes(measured: Measured) -> str:
    matrix = images.confusion(measured)
    hits, found, true = matrix.diagonal(), matrix.sum(0), matrix.sum(1)
    names = measured.class_names
    known = len(names) <= MAX_CLASSES
    f1 = scored(measured, images.class_scorer(measured), FEW) if known else {}
    rows = []
    for k, name in enumerate(names):
        precision, recall = (_share(int(hits[k]), int(total[k])) for total in (found, true))
        both = int(found[k] + true[k])
        score = parts.with_interval(f1[str(k)]) if known and both else _share(2 * int(hits[k]), both)
        rows.append([page.escaped(name), f"{true[k]:,}", precision, recall, score])
    return page.table(["class", "images", "precision", "recall", "F1 [95 %]"], rows)


def _share(part: int, total: int) -> str:
    return f"{part / total:.4f}" if total else ""


def _confusions(measured: Measured) -> str:
    matrix, names = images.confusion(measured), measured.class_names
    wrong = matrix - np.diag(matrix.diagonal())
    order = np.argsort(-wrong, axis=None, kind="stable")[:MAX_CONFUSIONS]
    pairs = [(int(i), int(j)) for i, j in zip(*np.unravel_index(order, wrong.shape), strict=True) if wrong[i, j]]
    totals = matrix.sum(1)
    rows = [
        [page.escaped(names[i]), page.escaped(names[j]), f"{wrong[i, j]:,}", f"{wrong[i, j] / totals[i]:.1%}"]
        for i, j in pairs
    ]
    frequent = page.table(["true", "predicted", "images", "of the true class"], rows, texts=(0, 1)) if rows else ""
    shown = page.matrix(matrix, names) if len(names) <= MAX_MATRIX else ""
    return f"{shown}<h3>Most frequent</h3>{frequent or '<p>None.</p>'}"


def _thresholds(measured: Measured) -> str:
    """What is gained where answers below a probability are left to a person."""
    confidence, right, _ = images.confidences(measured, measured.temperature)
    rows = []
    for wanted in (0.9, 0.95, 0.98, 0.99):
        at = _least_threshold(confidence, right, wanted)
        if at is not None:
            share = f"{(confidence >= at).mean():.1%}"
            rows.append([f"{wanted:.0%}", f"{at:.3f}", share])
    intro = (
        "<p>Answers below a probability (at the checkpoint's temperature) are left out: how many remain, and how many"
        " of these are right. The table is fitted to these images, so expect a little less on others.</p>"
    )
    words = "accuracy of the answers that are taken", "fraction of the images that are answered"
    drawn = parts.thresholds(confidence, right, *words)
    return intro + drawn + page.table(["accuracy wanted", "least probability", "answered"], rows)


def _least_threshold(confidence: NDArray[np.float64], right: NDArray[np.bool_], wanted: float) -> float | None:
    """The lowest threshold from which on the answers are right so often; None where there is none."""
    order = np.argsort(-confidence, kind="stable")
    share = np.cumsum(right[order]) / np.arange(1, len(order) + 1)
    good = np.flatnonzero(share >= wanted)
    return float(confidence[order[good[-1]]]) if len(good) else None


def _precision_recall(measured: Measured) -> str:
    truth = images.truth_of(measured)
    scores = [(name, truth == k, images.class_probability(measured, k)) for k, name in enumerate(measured.class_names)]
    return parts.precision_recall(scores)


def _mistakes(measured: Measured) -> str:
    temperature = measured.temperature
    confidence, right, _ = images.confidences(measured, temperature)
    own = images.truth_probability(measured, temperature)
    wrong = np.flatnonzero(~right)
    if not len(wrong):
        return "<p>None: all images are right.</p>"
    sure = wrong[np.argsort(-confidence[wrong], kind="stable")][:SHOWN].tolist()
    worst = [i for i in wrong[np.argsort(own[wrong], kind="stable")].tolist() if i not in sure][:SHOWN]
    galleries = [
        parts.mistakes(
            "The most confident mistakes",
            f"{len(wrong):,} of {len(measured):,} images are wrong. Some of these may be labeled wrong.",
            [_figure(measured, i, confidence, own) for i in sure],
        ),
        parts.mistakes(
            "Where the true class got least",
            "The others, worst first.",
            [_figure(measured, i, confidence, own) for i in worst],
        ),
    ]
    return "".join(galleries)


def _figure(measured: Measured, image: int, confidence: Any, own: Any) -> tuple[str, str]:
    names = measured.class_names
    guess, truth = (page.escaped(names[of[image]]) for of in (images.predicted(measured), images.truth_of(measured)))
    caption = (
        f"{guess} {confidence[image]:.2f}, truly {truth} {own[image]:.2f}<br>{page.escaped(measured.names[image])}"
    )
    return parts.thumbnail(parts.original(measured, image)), caption


def described(measured: Measured) -> str:
    """How many images of each class."""
    counts = np.bincount(images.truth_of(measured), minlength=len(measured.class_names))
    return parts.counted(measured.class_names, counts)


def image_scores(measured: Measured) -> NDArray[np.float64]:
    """How good each image's answer is, (N,): the probability of its true class."""
    return images.truth_probability(measured, measured.temperature)


def pictures(one: Measured, other: Measured, image: int) -> str:
    """An image, for a comparison of two models."""
    return parts.thumbnail(parts.original(one, image))


def answer(measured: Measured, image: int) -> str:
    """What a model says of an image."""
    names, own = measured.class_names, measured.take([image])
    guess, truth = names[images.predicted(own)[0]], names[images.truth_of(own)[0]]
    said = f"{page.escaped(guess)} {images.probabilities(own, own.temperature)[0, 0]:.2f}"
    return said if guess == truth else f"{said}, truly {page.escaped(truth)}"
