"""The report of an ensemble: members, how much they differ, what each combination gains over the best of them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodules.common.files import write_json
from pipelines.callbacks.ending import command_line
from pipelines.combining.joining import best_first, score
from pipelines.combining.page import write_page
from pipelines.combining.settings import Members
from pipelines.combining.training import Member, seconds
from pipelines.combining.votes import correlations, disagreements, independent_majority, mean_of_pairs
from pipelines.report import images, kinds, parts
from pipelines.report.collect import from_png
from pipelines.report.comparing import Difference, Recipe, Run, aligned, differences, holm
from pipelines.report.measured import Measured
from pipelines.report.scoring import scored

WHAT = {
    "vote": "the class of most members",
    "mean": "the mean of their probabilities (boxes: weighted boxes fusion)",
    "stacking": "a logistic regression on their probabilities for the validation images",
    "soup": "one network: the mean of the weights of members that make it better, from the best on",
}
Floats = NDArray[np.float64]


def write_report(root: Path, members: Members, trained: Sequence[Member], combined: Sequence[Member]) -> dict[str, Any]:
    """Write ``ensemble.json`` and ``ensemble.html``, and print what there is to say.

    Args:
        root: The ensemble's folder.
        members: What was asked for.
        trained: The members.
        combined: Their combinations.

    Returns:
        What ``ensemble.json`` holds.
    """
    best, hindsight = (best_first(trained, split)[0] for split in ("val", "test"))
    if score(best, "test") == score(hindsight, "test"):
        hindsight = best  # of equal ones the member that validation chose, too
    measured = best.measured("test")
    main = kinds.main(measured)
    report: dict[str, Any] = {
        "by": members.by,
        "metric": main,
        "images": len(measured),
        "members": [{**_row(member), "alpha": member.alpha} for member in trained],
        "best": best.name,
        "combinations": [
            {**_row(one), "what": WHAT[one.name], "networks": _networks(one, trained)} for one in combined
        ],
        "gains": gains(best, combined),
        "hindsight": {"best": hindsight.name, "gains": gains(hindsight, combined)},
        "diversity": diversity(trained),
        "independent": independent(trained),
        "seconds": seconds(root),
    }
    report["sentences"] = [_sentence(gain) for gain in report["gains"] if gain["metric"] == main]
    write_json(root / "ensemble.json", report)
    write_page(report, root / "ensemble.html")
    print("\n".join(["", *lines(report), "", *_use(root, trained, combined)]), flush=True)
    return report


def _sentence(gain: dict[str, Any]) -> str:
    """What a person is told of a gain of the main metric, a fraction, in hundredths."""
    value, low, high = (100 * gain[key] for key in ("value", "low", "high"))
    said = f"{value:+.1f} points [{low:+.1f}, {high:+.1f}]"
    if not gain["is_shown"]:
        return f"not shown that {gain['b']} differs from {gain['a']}: {said}"
    return f"{gain['b']} is {'better' if value > 0 else 'worse'} than {gain['a']}: {said}"


def _row(member: Member) -> dict[str, Any]:
    """Its scores: on validation, and on test with intervals, by metric."""
    measured = member.measured("test")
    found = scored(measured, kinds.scorer(measured), kinds.replicates(measured))
    scores = {name: {key: value[key] for key in ("mean", "low", "high")} for name, value in found.items()}
    # A vote has no likelihood, and stacking was trained on the validation images.
    if member.name == "vote":
        scores.pop("loss", None)
    return {"name": member.name, "val": None if member.name == "stacking" else score(member), "scores": scores}


def _networks(one: Member, trained: Sequence[Member]) -> int:
    """How many networks look at a picture."""
    return 1 if one.name == "soup" else len(trained)


def gains(best: Member, combined: Sequence[Member]) -> list[dict[str, Any]]:
    """By each metric, what each combination scores above a member on the test images: ``Difference`` as plain values.

    Intervals and tests are those of ``compare``, with Holm's correction for the number of combinations.
    """
    by_metric: dict[str, list[Difference]] = {}
    for one in combined:
        runs = aligned([Run(member.name, {}, member.measured("test")) for member in (best, one)])
        for found in differences([Recipe(run.label, [run]) for run in runs]):
            if not (one.name == "vote" and found.metric == "loss"):
                by_metric.setdefault(found.metric, []).append(found)
    tested = [
        replace(found, corrected=p)
        for own in by_metric.values()
        for found, p in zip(own, holm([one.p for one in own]), strict=True)
    ]
    return [asdict(found) | {"is_shown": found.is_shown} for found in tested]


def diversity(trained: Sequence[Member]) -> dict[str, Any]:
    """How much the members differ on the test images: tables (M, M) and the means over their pairs.

    ``disagreement`` is the fraction of images, or of the kept maps' pixels, with different answers (boxes have none);
    ``error_correlation`` Pearson's between their errors: of an image right or wrong, or the score of a picture (mean
    IoU, F1 of its boxes).
    """
    each = [run.measured for run in aligned([Run(member.name, {}, member.measured("test")) for member in trained])]
    kind = each[0].facts["kind"]
    module = kinds.page_of(each[0])
    errors = [images.right(one).astype(float) if kind == "images" else module.image_scores(one) for one in each]
    values = np.stack(errors)
    tables = {"error_correlation": correlations(values[:, np.isfinite(values).all(0)])}
    if (answers := _answers(each, kind)) is not None:
        tables["disagreement"] = disagreements(answers)
    return {
        name: {"mean": mean_of_pairs(table), "table": [[_known(v) for v in row] for row in table.tolist()]}
        for name, table in tables.items()
    }


def _known(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _answers(each: Sequence[Measured], kind: str) -> NDArray[Any] | None:
    """What each member answers (M, N): classes of images, or of the pixels of the maps that are kept."""
    if kind == "images":
        return np.stack([images.predicted(one) for one in each])
    if kind != "pixels":
        return None
    found = []
    for one in each:
        maps = [one.entries("map", image) for image in range(len(one))]
        found.append(np.concatenate([from_png(content).ravel() for content in maps if len(content)]))
    return np.stack(found)


def independent(trained: Sequence[Member]) -> dict[str, float] | None:
    """What a vote of as good members would reach whose errors were independent; None but for images."""
    if trained[0].measured("test").facts["kind"] != "images":
        return None
    accuracies = [float(images.right(member.measured("test")).mean()) for member in trained]
    return {"mean_accuracy": float(np.mean(accuracies)), "majority": independent_majority(accuracies)}


def lines(report: dict[str, Any]) -> list[str]:
    """What is printed."""
    main = report["metric"]
    rows = [*report["members"], *report["combinations"]]
    width = max(len(row["name"]) for row in rows)
    said = [f"{parts.word(main)} on {report['images']:,} test images, intervals of 95 %; on validation in brackets"]
    for row in rows:
        note = " (best on validation)" if row["name"] == report["best"] else ""
        held = "" if row["val"] is None else f"  ({row['val']:.4f})"
        said.append(f"  {row['name']:<{width}}  {parts.with_interval(row['scores'][main])}{held}{note}")
    said += [f"  {text}" for text in report["sentences"]]
    if report["hindsight"]["best"] != report["best"]:
        said += [f"  beside {report['hindsight']['best']}, in hindsight the best member on these test images:"]
        for gain in report["hindsight"]["gains"]:
            if gain["metric"] == main:
                said.append(f"    {gain['b']} {gain['value']:+.4f} [{gain['low']:+.4f}, {gain['high']:+.4f}]")
    for name, found in report["diversity"].items():
        if found["mean"] is not None:
            said.append(f"  {name.replace('_', ' ')}, mean of pairs: {found['mean']:.3f}")
    if report["independent"]:
        reached = report["independent"]["majority"]
        said.append(f"  with independent errors a majority of these members would be right in {reached:.4f}")
    return said


def _near(file: Path) -> str:
    """A path as one would type it."""
    return os.path.relpath(file) if file.is_relative_to(Path.cwd()) else str(file)


def _use(root: Path, trained: Sequence[Member], combined: Sequence[Member]) -> list[str]:
    files = ",".join(_near(member.checkpoints[0]) for member in trained)
    found = [f"report: {_near(root / 'ensemble.html')}"]
    found.append(f"all members: {command_line(['predict', '--ckpt_path', f'[{files}]', '--source', 'PICTURES'])}")
    for one in combined:
        if one.name == "soup":
            words = ["predict", "--ckpt_path", _near(one.checkpoints[0]), "--source", "PICTURES"]
            found.append(f"the soup: {command_line(words)}")
    return found
