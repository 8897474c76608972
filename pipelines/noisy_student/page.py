"""``report.html`` from ``report.json``: one file without links, for people."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipelines.outputs.figures import new_figure, rendered

STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:62em;margin:2em auto;padding:0 1em;color:#222}
table{border-collapse:collapse;margin:1em 0}td,th{padding:.3em .8em;border-bottom:1px solid #ddd;text-align:right}
td:first-child,th:first-child,td.t,th.t{text-align:left}img{max-width:100%}small{color:#666}"""


def write_page(file: Path, page: Path) -> None:
    """Write the page.

    Args:
        file: ``report.json``; ``suspects.png`` is looked for beside it.
        page: The file to write.
    """
    report = json.loads(file.read_text(encoding="utf-8"))
    seeds = len(report["seeds"])
    spread = f"{seeds} seeds" if seeds > 1 else "one seed: nothing is known of the spread between trainings"
    parts = [
        "<h1>What the unlabeled images were worth</h1>",
        f"<p>{html.escape(_titled(report['metric']))} on {report['images']} {report['split']} images;"
        f" {report['labelled']} labeled and {report['pool']} unlabeled images; {spread}. Intervals hold 95 %: a"
        " bootstrap over images and seeds.</p>",
        _img(_bars(report["rows"], report["metric"])),
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
    generations = _generations(report["validation"], report["metric"])
    parts += ["<h2>Generations, on validation</h2>", _img(generations)]
    parts += ["<h2>Pseudo-labels</h2>", _labels(report)]
    sheet = file.with_name("suspects.png")
    if sheet.is_file():
        parts += [
            f"<h2>Labels most likely wrong (seed {report['seeds'][0]})</h2>",
            "<p>Taught by the teacher, contradicted by the last student"
            f"{'.' if report['unit'] == 'labels' else '; left the taught one, right the student.'}</p>",
            _img(np.asarray(Image.open(sheet))),
        ]
    body = "\n".join(parts)
    text = f"<!doctype html><meta charset='utf-8'><title>Noisy student</title><style>{STYLE}</style>\n{body}\n"
    page.write_text(text, encoding="utf-8")


def _titled(metric: str) -> str:
    return metric.capitalize() if metric.islower() else metric


def _table(rows: Sequence[dict[str, Any]], *, signed: bool) -> str:
    sign = "+" if signed else ""
    head = "<tr><th>model</th><th>mean</th><th>95 %</th><th>t over seeds</th><th>sd</th><th class=t></th></tr>"
    lines = []
    for row in rows:
        t = "" if row["t_low"] is None else f"{row['t_low']:{sign}.4f} to {row['t_high']:{sign}.4f}"
        sd = "" if row["sd"] is None else f"{row['sd']:.4f}"
        interval = f"{row['low']:{sign}.4f} to {row['high']:{sign}.4f}"
        cells = [html.escape(row["name"]), f"<b>{row['mean']:{sign}.4f}</b>", interval, t, sd]
        what = f"<td class=t><small>{html.escape(row['what'])}</small></td>"
        lines.append(f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}{what}</tr>")
    return f"<table>{head}{''.join(lines)}</table>"


def _labels(report: dict[str, Any]) -> str:
    head = (
        f"<tr><th>seed, generation</th><th>{report['unit']} kept</th><th>coverage</th><th>images taught</th>"
        "<th>precision of kept</th><th>of all</th><th class=t>left out</th></tr>"
    )
    lines = []
    for seed, generations in zip(report["seeds"], report["pseudo_labels"], strict=True):
        for number, a in enumerate(generations, 1):
            precision, of_all = (_number(a.get(key)) for key in ("precision", "precision_of_all"))
            lines.append(
                f"<tr><td>{seed}, {number}</td><td>{a['kept']} of {a['pool']}</td><td>{a['coverage']:.1%}</td>"
                f"<td>{a['images']}</td><td>{precision}</td><td>{of_all}</td>"
                f"<td class=t>{html.escape(', '.join(a.get('left_out', [])))}</td></tr>"
            )
    last = report["pseudo_labels"][0][-1]
    known = "truth_of_taught" in last
    skew = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{last['labelled_as'][name]}</td><td>{last['kept_as'][name]}</td>"
        f"<td>{last['taught_as'][name]}</td><td>{last['truth_of_taught'][name] if known else ''}</td>"
        f"<td>{_number(last['precision_by_class'][name]) if known else ''}</td></tr>"
        for name in last["labelled_as"]
    )
    return (
        f"<table>{head}{''.join(lines)}</table><p>Classes of the last generation, seed {report['seeds'][0]}:</p>"
        "<table><tr><th>class</th><th>labeled as</th><th>kept</th><th>taught</th><th>truly</th><th>precision</th></tr>"
        f"{skew}</table>"
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _bars(rows: Sequence[dict[str, Any]], metric: str) -> NDArray[np.uint8]:
    """The models' scores with their intervals."""
    figure = new_figure(6.4, 0.45 * len(rows) + 1.1)
    axes = figure.subplots()
    places = np.arange(len(rows))
    mean, low, high = (np.array([row[key] for row in rows]) for key in ("mean", "low", "high"))
    axes.errorbar(mean, places, xerr=[mean - low, high - mean], fmt="o", color="#4c78a8", capsize=4)
    for place, row in zip(places, rows, strict=True):
        axes.plot(row["each"], [place + 0.18] * len(row["each"]), "|", color="#999999")
    axes.set_yticks(places, [row["name"] for row in rows])
    axes.set(ylim=(len(rows) - 0.5, -0.5), xlabel=f"{metric}; the ticks are single seeds")
    axes.spines[["top", "right"]].set_visible(False)
    return rendered(figure, tight=True)


def _generations(validation: Sequence[dict[str, float]], metric: str) -> NDArray[np.uint8]:
    """One line a seed: the score on validation over the generations, the teacher first."""
    figure = new_figure(6.4, 2.6)
    axes = figure.subplots()
    lines = [[v for n, v in seed.items() if n == "teacher" or n.startswith("student")] for seed in validation]
    for values in lines:
        axes.plot(range(len(values)), values, "o-", color="#4c78a8", alpha=0.6)
    axes.set(xlabel="generation (0: the teacher)", ylabel=metric)
    axes.set_xticks(range(max(len(seed) for seed in lines)))
    axes.spines[["top", "right"]].set_visible(False)
    return rendered(figure, tight=True)


def _img(picture: NDArray[np.uint8]) -> str:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG")
    return f"<p><img src='data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}'></p>"
