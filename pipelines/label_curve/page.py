"""``curve.html``: one file without links."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.noisy_student.page import titled
from pipelines.outputs import page
from pipelines.outputs.svg import COLORS, Series, chart

BUDGETS = {
    "steps": "Each training has about as many optimizer steps as that of all labels.",
    "epochs": "Each training has the epochs of the config, so with fewer labels fewer steps.",
}


def write_page(report: Mapping[str, Any], output: Path) -> None:
    """Write the page of ``curve.json``.

    Args:
        report: What that holds.
        output: The file.
    """
    seeds = report["seeds"]
    many = f"{len(seeds)} seeds, each with labels of its own draw" if len(seeds) > 1 else "one seed"
    parts = [
        "<h1>What labels are worth</h1>",
        f"<p>{page.escaped(titled(report['metric']))} on {report['images']:,} test images;"
        f" {report['training_images']:,} training images, of which some keep their labels; {many}."
        f" {BUDGETS[report['budget']]} Intervals hold 95 %: of resampled test images and of the variance between"
        " seeds (Student's t).</p>",
        f"<ul>{''.join(f'<li>{page.escaped(sentence)}</li>' for sentence in report['sentences'])}</ul>",
        _chart(report),
        "<p>Dots with intervals were measured. Lines are power laws fitted to them, dashed the ends of their intervals;"
        " beyond the last dot they are an extrapolation, and hold only if the law goes on.</p>",
    ]
    for model in report["models"]:
        parts += [f"<h2>{page.escaped(model['name'])}</h2>", f"<p>{page.escaped(model['what'])}</p>"]
        parts += [_points(model["points"]), *_more(model)]
    if report["gains"]:
        said = "<p>Paired: the same test images, and the same labels of each seed.</p>"
        parts += ["<h2>Unlabeled images beside the same labels</h2>", said, _gains(report["gains"])]
    if report["worth"]:
        parts += ["<h2>Unlabeled images in labels</h2>", _worth(report["worth"])]
    page.write_page(output, "Label curve", parts)


def _chart(report: Mapping[str, Any]) -> str:
    series = []
    for number, model in enumerate(report["models"]):
        color, rows, drawn = COLORS[number % len(COLORS)], model["points"], model["drawn"]
        labels = [row["labels"] for row in rows]
        ends = {end: [row[end] for row in rows] for end in ("low", "high")}
        series.append(Series(labels, [row["mean"] for row in rows], model["name"], "dots", color=color, **ends))
        places = [row["labels"] for row in drawn]
        if drawn:
            series.append(Series(places, [row["score"] for row in drawn], color=color))
            series += [Series(places, [row[end] for row in drawn], style="dashed", color=color) for end in ends]
    every = [row[key] for model in report["models"] for row in model["points"] for key in ("low", "high", "mean")]
    margin = 0.15 * (max(every) - min(every)) or 0.05
    limits = (min(every) - margin, max(every) + margin)
    return chart(series, xlabel="labeled images", ylabel=report["metric"], ylim=limits)


def _points(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = []
    for row in rows:
        each = " ".join(f"{value:.4f}" for value in row["each"])
        sd = "" if row["sd"] is None else f"{row['sd']:.4f}"
        ends = f"{row['low']:.4f} to {row['high']:.4f}"
        lines.append([f"{row['fraction']:g}", f"{row['labels']:,}", f"<b>{row['mean']:.4f}</b>", ends, sd, each])
    return page.table(["fraction", "labels", "score", "95 %", "sd of seeds", "each seed"], lines)


def _more(model: Mapping[str, Any]) -> list[str]:
    law = model["law"]
    if law is None:
        return []
    rows = []
    for row in model["more"]:
        ends = f"{row['low']:+.4f} to {row['high']:+.4f}"
        far = "more than twice the labels" if row["is_far"] else ""
        rows.append([f"{row['labels']:,}", f"<b>{row['gain']:+.4f}</b>", ends, f"{row['score']:.4f}", far])
    said = f"{law['top']:.4f} - {law['scale']:.4f} (labels / {law['labels']:.0f})<sup>-{law['power']:.2f}</sup>"
    return [f"<p>The law: {said}</p>", page.table(["more labels", "gain", "95 %", "score", ""], rows, texts=(4,))]


def _gains(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = []
    for row in rows:
        ends = f"{row['low']:+.4f} to {row['high']:+.4f}"
        each = " ".join(f"{value:+.4f}" for value in row["each"])
        names = [page.escaped(row["model"]), page.escaped(row["of"])]
        lines.append([*names, f"{row['labels']:,}", f"<b>{row['mean']:+.4f}</b>", ends, each])
    return page.table(["model", "beside", "labels", "gain", "95 %", "each seed"], lines, texts=(0, 1))


def _worth(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = []
    for row in rows:
        cells = ["no end" if row[key] is None else f"{row[key]:+,}" for key in ("saved", "low", "high")]
        equal = "more than any" if row["equal"] is None else f"{row['equal']:,}"
        beyond = "beyond the measured" if row["is_beyond"] else ""
        names = [page.escaped(row["model"]), page.escaped(row["of"])]
        lines.append(
            [*names, f"{row['labels']:,}", f"{row['score']:.4f}", equal, f"<b>{cells[0]}</b>", *cells[1:], beyond]
        )
    head = ["model", "beside", "labels", "score", "as many labels", "saved", "low", "high", ""]
    return page.table(head, lines, texts=(0, 1, 8))
