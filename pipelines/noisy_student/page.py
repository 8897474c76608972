"""``report.html`` from ``report.json``: one file without links, for people."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipelines.outputs import page
from pipelines.outputs.svg import COLORS, Bar, Series, chart, intervals


def write_page(file: Path, output: Path) -> None:
    """Write the page.

    Args:
        file: ``report.json``; ``suspects.png`` is looked for beside it.
        output: The file to write.
    """
    report = json.loads(file.read_text(encoding="utf-8"))
    seeds = len(report["seeds"])
    spread = f"{seeds} seeds" if seeds > 1 else "one seed: nothing is known of the spread between trainings"
    parts = [
        f"<h1>{html.escape(report['title'])}</h1>",
        f"<p>{html.escape(titled(report['metric']))} on {report['images']} {report['split']} images;"
        f" {report['labelled']} labeled and {report['pool']} unlabeled images; {spread}. Intervals hold 95 %: a"
        " bootstrap over images and seeds.</p>",
        intervals(_bars(report["rows"]), f"{report['metric']}; the ticks are single seeds"),
        _table(report["rows"], signed=False),
        "<h2>Where it comes from</h2>",
        "<p>Differences on the same images. One whose interval holds 0 is not shown to be real.</p>",
        _table(report["differences"], signed=True),
    ]
    if len(report["differences"]) < 3:
        parts.append("<p>Without <code>controls: true</code> the gain cannot be ascribed to the unlabeled images.</p>")
    for other in report["other_metrics"]:
        parts += [f"<h2>By {html.escape(other['metric'])}</h2>", _table(other["rows"], signed=False)]
        parts += [_table(other["differences"], signed=True)]
    parts += ["<h2>Generations, on validation</h2>", _generations(report["validation"], report["metric"])]
    parts += ["<h2>Pseudo-labels</h2>", _labels(report)]
    sheet = file.with_name("suspects.png")
    if sheet.is_file():
        parts += [
            f"<h2>Labels most likely wrong (seed {report['seeds'][0]})</h2>",
            "<p>Taught by the teacher, contradicted by the last student"
            f"{'.' if report['unit'] == 'labels' else '; left the taught one, right the student.'}</p>",
            page.picture_file(sheet),
        ]
    page.write_page(output, "Noisy student", parts)


def titled(metric: str) -> str:
    """A metric's name at the beginning of a sentence."""
    return metric.capitalize() if metric.islower() else metric


def _table(rows: Sequence[dict[str, Any]], *, signed: bool) -> str:
    sign = "+" if signed else ""
    lines = []
    for row in rows:
        t = "" if row["t_low"] is None else f"{row['t_low']:{sign}.4f} to {row['t_high']:{sign}.4f}"
        sd = "" if row["sd"] is None else f"{row['sd']:.4f}"
        interval = f"{row['low']:{sign}.4f} to {row['high']:{sign}.4f}"
        cells = [html.escape(row["name"]), f"<b>{row['mean']:{sign}.4f}</b>", interval, t, sd]
        lines.append([*cells, f"<small>{html.escape(row['what'])}</small>"])
    return page.table(["model", "mean", "95 %", "t over seeds", "sd", ""], lines, texts=(0, 5))


def _labels(report: dict[str, Any]) -> str:
    head = ["seed, generation", f"{report['unit']} kept", "coverage", "images taught", "precision of kept", "of all"]
    lines = []
    for seed, generations in zip(report["seeds"], report["pseudo_labels"], strict=True):
        for number, a in enumerate(generations, 1):
            precision, of_all = (_number(a.get(key)) for key in ("precision", "precision_of_all"))
            left_out = html.escape(", ".join(a.get("left_out", [])))
            kept = [f"{seed}, {number}", f"{a['kept']} of {a['pool']}", f"{a['coverage']:.1%}", f"{a['images']}"]
            lines.append([*kept, precision, of_all, left_out])
    return (
        page.table([*head, "left out"], lines, texts=(0, 6))
        + f"<p>Classes of the last generation, seed {report['seeds'][0]}:</p>"
        + page.table(["class", "labeled as", "kept", "taught", "truly", "precision"], _skew(report))
    )


def _skew(report: dict[str, Any]) -> list[list[str]]:
    """Of each class: as how many it was labeled, kept and taught, and what is known of their truth."""
    last = report["pseudo_labels"][0][-1]
    known = "truth_of_taught" in last
    rows = []
    for name in last["labelled_as"]:
        counts = [str(last[key][name]) for key in ("labelled_as", "kept_as", "taught_as")]
        truth = [str(last["truth_of_taught"][name]), _number(last["precision_by_class"][name])] if known else ["", ""]
        rows.append([html.escape(name), *counts, *truth])
    return rows


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _bars(rows: Sequence[dict[str, Any]]) -> list[Bar]:
    """The models' scores with their intervals."""
    return [Bar(row["name"], row["mean"], row["low"], row["high"], row["each"]) for row in rows]


def _generations(validation: Sequence[dict[str, float]], metric: str) -> str:
    """One line a seed: the score on validation over the generations, the teacher first."""
    lines = [[v for n, v in seed.items() if n == "teacher" or n.startswith("student")] for seed in validation]
    series = [Series(range(len(line)), line, color=COLORS[0]) for line in lines]
    names = [str(number) for number in range(max(map(len, lines)))]
    return chart(series, xlabel="generation (0: the teacher)", ylabel=metric, names=names)
