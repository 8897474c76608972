"""Sections of a report about images with several labels."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.outputs import page
from pipelines.report import labels, parts
from pipelines.report.measured import Measured
from pipelines.report.scoring import FEW, scored
from pipelines.scorers import f1_of_counts

SHOWN = 12
MAX_LABELS = 100  # up to which average precision has intervals


def sections(measured: Measured, said: str) -> list[tuple[str, str]]:
    """Title and HTML of each section; see ``images_page.sections``."""
    temperature = measured.temperature
    before = labels.decisions(measured)
    after = labels.decisions(measured, temperature) if temperature != 1 else None
    losses = [float(labels.losses(measured, t).mean()) for t in (1.0, temperature)]
    scores = [
        (name, labels.truth_of(measured)[:, k], before[0].reshape(len(measured), -1)[:, k])
        for k, name in _names(measured)
    ]
    return [
        ("Labels", _labels(measured)),
        ("Labels that are taken for others", _pairs(measured)),
        ("Calibration", parts.calibration(measured, before, after, said, losses)),
        ("Precision and recall", parts.precision_recall(scores)),
        ("Properties of the pictures", parts.properties(measured, labels.scorer, labels.MAIN)),
        ("Mistakes", _mistakes(measured)),
    ]


def _names(measured: Measured) -> list[tuple[int, str]]:
    return list(enumerate(measured.class_names))


def _labels(measured: Measured) -> str:
    hits, found, true = labels.tables(measured)
    ap = scored(measured, labels.label_scorer(measured), FEW) if len(measured.class_names) <= MAX_LABELS else {}

    def score(counts: NDArray[Any]) -> dict[str, NDArray[np.float64]]:
        f1 = f1_of_counts(counts, hits, found, true)
        return {str(k): f1[:, k] for k in range(f1.shape[1])}

    f1 = scored(measured, score, FEW)
    rows = []
    for k, name in _names(measured):
        right, number, images = (float(table[:, k].sum()) for table in (hits, found, true))
        precision, recall = (f"{right / total:.4f}" if total else "" for total in (number, images))
        average = parts.with_interval(ap[str(k)]) if images and ap else ""
        whole = parts.with_interval(f1[str(k)]) if number + images else ""
        rows.append([page.escaped(name), f"{images:,.0f}", average, precision, recall, whole])
    head = ["label", "images", "average precision [95 %]", "precision", "recall", "F1 [95 %]"]
    return "<p>Precision, recall and F1 from a probability of 0.5.</p>" + page.table(head, rows)


def _pairs(measured: Measured) -> str:
    """Where one label is missed and another is predicted that is not there."""
    found, true = measured.arrays["logits"] >= 0, labels.truth_of(measured)
    missed, invented = (table.astype(np.int64) for table in (true & ~found, found & ~true))
    both = missed.T @ invented
    order = np.argsort(-both, axis=None, kind="stable")[:SHOWN]
    names = measured.class_names
    rows = [
        [page.escaped(names[i]), page.escaped(names[j]), f"{both[i, j]:,}"]
        for i, j in zip(*np.unravel_index(order, both.shape), strict=True)
        if both[i, j]
    ]
    return page.table(["missed", "predicted, and not there", "images"], rows, texts=(0, 1)) if rows else ""


def _mistakes(measured: Measured) -> str:
    stated, true = labels.probabilities(measured, measured.temperature), labels.truth_of(measured)
    wrong = np.where(true, 1 - stated, stated)  # how sure of what is wrong
    order = [np.unravel_index(i, wrong.shape) for i in np.argsort(-wrong, axis=None, kind="stable")[:SHOWN].tolist()]
    sure = [(int(image), int(k)) for image, k in order if wrong[image, k] > 0.5]
    loss = labels.losses(measured, measured.temperature)
    chosen = {image for image, _ in sure}
    worst = [i for i in np.argsort(-loss, kind="stable").tolist() if i not in chosen and (wrong[i] > 0.5).any()][:SHOWN]
    figures = []
    for image, k in sure:
        said = "has it" if true[image, k] else "not labeled"
        what = f"{page.escaped(measured.class_names[k])} {stated[image, k]:.2f}, {said}"
        figures.append((_thumbnail(measured, image), f"{what}<br>{page.escaped(measured.names[image])}"))
    shown = parts.mistakes("The most confident mistakes", "Some of these may be labeled wrong.", figures)
    others = [(_thumbnail(measured, i), f"{answer(measured, i)}<br>{page.escaped(measured.names[i])}") for i in worst]
    return (shown + parts.mistakes("The worst of the other images", "", others)) or "<p>None.</p>"


def _thumbnail(measured: Measured, image: int) -> str:
    return parts.thumbnail(parts.original(measured, image))


def described(measured: Measured) -> str:
    """How many images of each label."""
    return parts.counted(measured.class_names, labels.truth_of(measured).sum(0))


def image_scores(measured: Measured) -> NDArray[np.float64]:
    """How good each image's answer is, (N,): the mean probability of what is true of each label, geometrically."""
    return np.asarray(np.exp(-labels.losses(measured, measured.temperature)))


def pictures(one: Measured, other: Measured, image: int) -> str:
    """An image, for a comparison of two models."""
    return _thumbnail(one, image)


def answer(measured: Measured, image: int) -> str:
    """What a model says of an image."""
    own = measured.take([image])
    found, true = labels.probabilities(own, own.temperature)[0] >= 0.5, labels.truth_of(own)[0]
    said, really = (", ".join(n for n, is_it in zip(own.class_names, of, strict=True) if is_it) for of in (found, true))
    return page.escaped(said or "nothing") + ("" if said == really else f"; truly {page.escaped(really or 'nothing')}")
