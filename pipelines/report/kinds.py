"""What a report asks of each kind of task: one module each, with the same functions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import ModuleType
from typing import Any

from pipelines.report import boxes, boxes_page, images, images_page, labels, labels_page, pixels, pixels_page
from pipelines.report.measured import Measured
from pipelines.report.scoring import REPLICATES, Scorer

_SCORES: dict[str, ModuleType] = {"images": images, "labels": labels, "pixels": pixels, "boxes": boxes}
_PAGES: dict[str, ModuleType] = {
    "images": images_page,
    "labels": labels_page,
    "pixels": pixels_page,
    "boxes": boxes_page,
}


def collect(
    kind: str | None, batch: Mapping[str, Any], outputs: Mapping[str, Any], classes: int, divisor: float
) -> Any:
    """What is kept of a batch; None of what has no report.

    Args:
        kind: See ``collect.kind_of``.
        batch: As evaluated.
        outputs: What the task predicts.
        classes: K.
        divisor: What its logits were divided by.
    """
    return _SCORES[kind].collect(batch, outputs, classes, divisor) if kind in _SCORES else None


def finished(measured: Measured, task: Any) -> Measured:
    """With what only the end of an evaluation knows."""
    finish = getattr(_SCORES[measured.facts["kind"]], "finished", None)
    return measured if finish is None else finish(measured, task)


def main(measured: Measured) -> str:
    """Name of the metric that decides."""
    name: str = _SCORES[measured.facts["kind"]].MAIN
    return name


def scorer(measured: Measured) -> Scorer:
    """All scores of these images."""
    found: Scorer = _SCORES[measured.facts["kind"]].scorer(measured)
    return found


def replicates(measured: Measured) -> int:
    """How often to resample at most."""
    number: int = getattr(_SCORES[measured.facts["kind"]], "REPLICATES", REPLICATES)
    return number


def page_of(measured: Measured) -> ModuleType:
    """The module of the kind's sections and pictures."""
    return _PAGES[measured.facts["kind"]]


def with_validation(measured: Mapping[str, Measured]) -> dict[str, Measured]:
    """The splits, the test of boxes with the temperature of their scores on the validation images."""
    out = dict(measured)
    if {"val", "test"} <= out.keys() and out["test"].facts["kind"] == "boxes":
        facts = {**out["test"].facts, "score_temperature": boxes.temperature_of(out["val"])}
        out["test"] = replace(out["test"], facts=facts)
    return out
