"""``curve.json``: the points with their intervals, what more labels would be worth, and unlabeled images in labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.common.files import write_json
from pipelines.label_curve.fitting import Law, Point, ends, fit_law, replicates_of, variances
from pipelines.label_curve.page import write_page
from pipelines.report.parts import word

FAR = 2  # times the labels: beyond, an extrapolation says little
DRAWN = 41  # places of the drawn law
CONTROLS = ("labels_only", "no_noise")  # of which no sentence is said


@dataclass(frozen=True)
class Curve:
    """The points of one model, by rising labels; ``of`` are curves on which its scores are looked up in labels."""

    name: str
    what: str
    points: Sequence[Point]
    of: tuple[str, ...] = ()


@dataclass(frozen=True)
class Measuring:
    """What was measured.

    Attributes:
        metric: Its name.
        images: Test images.
        all_images: Training images.
        seeds: Of the trainings.
        budget: ``steps`` or ``epochs``.
        more: Labels whose worth is estimated.
        curves: The models.
    """

    metric: str
    images: int
    all_images: int
    seeds: Sequence[int]
    budget: str
    more: int
    curves: Sequence[Curve]


def write_curves(root: Path, measured: Measuring) -> dict[str, Any]:
    """Fit the curves, write ``curve.json`` and ``curve.html``, and print what they say.

    Returns:
        What ``curve.json`` holds.
    """
    laws = {curve.name: fit_law(curve.points) for curve in measured.curves}
    models = [_model(curve, laws[curve.name], measured.more) for curve in measured.curves]
    report: dict[str, Any] = {
        "metric": word(measured.metric),
        "images": measured.images,
        "training_images": measured.all_images,
        "seeds": list(measured.seeds),
        "budget": measured.budget,
        "models": models,
        "gains": [
            {"model": curve.name, "of": other.name, **(point - same).row()}
            for curve in measured.curves
            for other in measured.curves
            if other.name in curve.of
            for point in curve.points
            for same in other.points
            if same.fraction == point.fraction
        ],
        "worth": [
            row
            for curve in measured.curves
            for other in curve.of
            if (law := laws[other]) is not None
            for row in worth(curve, other, law)
        ],
    }
    report["sentences"] = sentences(report)
    write_json(root / "curve.json", report)
    write_page(report, root / "curve.html")
    print("\n".join(["", *_lines(report), "", str(root / "curve.html")]), flush=True)
    return report


def _model(curve: Curve, law: Law | None, more: int) -> dict[str, Any]:
    """A curve as plain values."""
    out: dict[str, Any] = {
        "name": curve.name,
        "what": curve.what,
        "points": [_within(point.row()) for point in curve.points],
        "law": None,
        "check": _check(curve.points),
        "more": [],
        "drawn": [],
    }
    if law is None:
        return out
    top, scale, power = law.best.tolist()
    out["law"] = {"top": top, "scale": scale, "power": power, "labels": law.unit}
    last = curve.points[-1].labels
    now, now_each = law.at(last)
    for added in (more, 2 * more, 4 * more):
        then, then_each = law.at(last + added)
        low, high = ends(then_each - now_each)
        row = {"labels": added, "gain": then - now, "low": low, "high": high, "score": then}
        out["more"].append({**row, "is_far": last + added > FAR * last})
    for labels in np.geomspace(curve.points[0].labels, max(last + more, 1.25 * last), DRAWN).tolist():
        value, each = law.at(labels)
        low, high = ends(each)
        out["drawn"].append({"labels": labels, "score": value, "low": low, "high": high})
    return out


def _within(row: dict[str, Any]) -> dict[str, Any]:
    """A score's interval, cut to what a fraction can be."""
    return {**row, "low": max(row["low"], 0.0), "high": min(row["high"], 1.0)}


def _check(points: Sequence[Point]) -> dict[str, Any] | None:
    """What the law predicts of the last point from the others; None where these are too few."""
    law = fit_law(points[:-1])
    if law is None:
        return None
    last = points[-1]
    told, each = law.at(last.labels)
    drawn = replicates_of([last], variances([last]), np.random.default_rng(1))[:, 0]
    low, high = ends(each - drawn)
    return {
        "labels": round(last.labels),
        "predicted": told,
        "measured": last.mean,
        "low": low,
        "high": high,
        "holds": bool(low <= 0 <= high),
    }


def worth(curve: Curve, of: str, law: Law) -> list[dict[str, Any]]:
    """With how many labels the other curve has the scores of this one: of each point the labels that are saved.

    Args:
        curve: Of the models with unlabeled images.
        of: Name of the curve without.
        law: Its law.
    """
    drawn = replicates_of(curve.points, variances(curve.points), np.random.default_rng(2))
    rows = []
    for number, point in enumerate(curve.points):
        equal, each = law.labels_for(point.mean, drawn[:, number])
        low, high = ends(each)
        rows.append(
            {
                "model": curve.name,
                "of": of,
                "labels": round(point.labels),
                "score": point.mean,
                "equal": _finite(equal),
                "saved": _finite(equal - point.labels),
                "low": _finite(low - point.labels),
                "high": _finite(high - point.labels),
                "is_beyond": equal > law.unit,
            }
        )
    return rows


def _finite(value: float) -> int | None:
    """A number of labels; None where no number of them is enough."""
    return round(value) if math.isfinite(value) and value < 1e9 else None


def sentences(report: dict[str, Any]) -> list[str]:
    """What the curves say, plainly: the metric in hundredths."""
    out = []
    several = len(report["models"]) > 1
    for model in report["models"]:
        if model["name"] in CONTROLS:
            continue
        who = f"{model['name']}: " if several else ""
        out += [f"{who}{_of_more(row)}" for row in model["more"][:1]]
        if (check := model["check"]) is not None:
            out.append(f"{who}{_of_check(check)}")
        elif model["law"] is None:
            out.append(f"{who}an extrapolation needs three fractions, not {len(model['points'])}.")
    out += [_of_gain(row) for row in report["gains"]]
    out += [_of_worth(row) for row in report["worth"]]
    if len(report["seeds"]) == 1:
        out.append("One seed: nothing is known of the spread between trainings, and the intervals leave it out.")
    return out


def _of_more(row: dict[str, Any]) -> str:
    gain, low, high = (100 * row[key] for key in ("gain", "low", "high"))
    far = f", an extrapolation to more than {FAR} times the labels" if row["is_far"] else ""
    return f"{row['labels']} more labels would be worth {gain:+.1f} points [{low:+.1f}, {high:+.1f}]{far}."


def _of_check(check: dict[str, Any]) -> str:
    told, score = 100 * check["predicted"], 100 * check["measured"]
    low, high = 100 * check["low"], 100 * check["high"]
    said = f"From fewer labels the law predicts {told:.1f} with {check['labels']:,}; measured {score:.1f}"
    how = "within what chance explains" if check["holds"] else "so do not trust the extrapolation"
    return f"{said} (off by {told - score:+.1f} [{low:+.1f}, {high:+.1f}], {how})."


def _of_gain(row: dict[str, Any]) -> str:
    gain, low, high = (100 * row[key] for key in ("mean", "low", "high"))
    said = f"{row['model']} scores {gain:+.1f} points [{low:+.1f}, {high:+.1f}] beside {row['of']}"
    return f"{said} with the same {row['labels']:,} labels{'' if low > 0 or high < 0 else ': not shown'}."


def _of_worth(row: dict[str, Any]) -> str:
    score = f"{row['model']} with {row['labels']:,} labels scores {100 * row['score']:.1f}"
    saved, low, high = (_labels(row[key]) for key in ("saved", "low", "high"))
    if row["equal"] is None:
        least = f": worth more than {low} labels" if row["low"] is not None and row["low"] > 0 else ""
        return f"{score}, which {row['of']} reaches with no number of labels, by its law{least}."
    beyond = ", beyond the measured" if row["is_beyond"] else ""
    return f"{score}, as {row['of']} with {row['equal']:,}{beyond}: worth {saved} labels [{low}, {high}]."


def _labels(value: int | None) -> str:
    return "no end" if value is None else f"{value:+,}"


def _lines(report: dict[str, Any]) -> list[str]:
    """The tables and the sentences."""
    many = f"{len(report['seeds'])} seeds" if len(report["seeds"]) > 1 else "one seed"
    lines = [f"{report['metric']} on {report['images']:,} test images, {many}, intervals of 95 %"]
    for model in report["models"]:
        lines.append(f"{model['name']}: {model['what']}")
        for row in model["points"]:
            each = " ".join(f"{value:.4f}" for value in row["each"])
            ends_ = f"[{row['low']:.4f}, {row['high']:.4f}]"
            lines.append(f"  {row['labels']:>7,} labels  {row['mean']:.4f}  {ends_}  {each}")
    return [*lines, *report["sentences"]]
