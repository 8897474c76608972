"""``ensemble.html`` from what ``ensemble.json`` holds: one file without links, for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.noisy_student.page import titled
from pipelines.outputs import page
from pipelines.outputs.svg import Bar, intervals
from pipelines.report import parts

BY = {
    "seed": "seeds of one recipe",
    "fold": "each without another fold of the training images",
    "bagging": "each on a bootstrap of the training images",
    "boosting": "each on images weighted by the errors of those before it (AdaBoost.SAMME)",
    "snapshot": "snapshots of one training, at the end of each cycle of its learning rate",
    "backbone": "different networks",
}


def write_page(report: Mapping[str, Any], output: Path) -> None:
    """Write the page.

    Args:
        report: What ``ensemble.json`` holds.
        output: The file to write.
    """
    main = report["metric"]
    members, combined = report["members"], report["combinations"]
    body = [
        "<h1>What the members are worth together</h1>",
        f"<ul>{''.join(f'<li>{page.escaped(text)}</li>' for text in report['sentences'])}</ul>",
        f"<p>{len(members)} members: {BY[report['by']]}. {page.escaped(titled(parts.word(main)))} on the same"
        f" {report['images']:,} test images; the best member, {page.escaped(report['best'])}, is the one that is best"
        " on validation.</p>",
        intervals([_bar(row, main) for row in [*members, *combined]], parts.word(main)),
        "<h2>Gain over the best member</h2>",
        "<p>Paired on the same images: intervals of 95 % from resampled images. What is shown also passes a test in"
        " which the answers of the two are swapped at random, with Holm's correction for the number of"
        " combinations.</p>",
        _bars([gain for gain in report["gains"] if gain["metric"] == main]),
        _gains([gain for gain in report["gains"] if gain["metric"] == main]),
        *_hindsight(report),
        "<h2>Members and combinations</h2>",
        _scores(report),
        "<h3>Gains by other metrics, corrected among themselves; of a likelihood less is better</h3>",
        _gains([gain for gain in report["gains"] if gain["metric"] != main]),
        "<h2>How much the members differ</h2>",
        *_diversity(report),
    ]
    page.write_page(output, "Ensemble", body)


def _hindsight(report: Mapping[str, Any]) -> list[str]:
    """The same beside the member that turned out to be best, where it is another one."""
    best, gains = report["hindsight"]["best"], report["hindsight"]["gains"]
    if best == report["best"]:
        return []
    said = (
        f"<h3>Beside {page.escaped(best)}, in hindsight the best member</h3><p>It scores highest on these very test"
        " images, which nobody knew before: a gain over it is a strict one.</p>"
    )
    return [said, _gains([gain for gain in gains if gain["metric"] == report["metric"]])]


def _bar(row: Mapping[str, Any], metric: str) -> Bar:
    found = row["scores"][metric]
    return Bar(row["name"], found["mean"], found["low"], found["high"])


def _bars(gains: Sequence[Mapping[str, Any]]) -> str:
    bars = [Bar(gain["b"], gain["value"], gain["low"], gain["high"]) for gain in gains]
    return intervals(bars, "gain over the best member", zero=True)


def _gains(gains: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for gain in gains:
        said = "shown" if gain["is_shown"] else "not shown"
        names = [page.escaped(gain["b"]), page.escaped(parts.word(gain["metric"]))]
        ends = f"{gain['low']:+.4f} to {gain['high']:+.4f}"
        rows.append([*names, f"<b>{gain['value']:+.4f}</b>", ends, f"{gain['corrected']:.4f}", said])
    return page.table(["combination", "metric", "gain", "95 %", "p corrected", ""], rows, texts=(0, 1, 5))


def _scores(report: Mapping[str, Any]) -> str:
    """The main metric with intervals, the others beside it; below, what the combinations are."""
    main, rows = report["metric"], []
    others = [name for name in report["members"][0]["scores"] if name != main]
    for row in [*report["members"], *report["combinations"]]:
        held = "" if row["val"] is None else f"{row['val']:.4f}"
        beside = [f"{row['scores'][name]['mean']:.4f}" if name in row["scores"] else "" for name in others]
        alpha = "" if row.get("alpha") is None else f"{row['alpha']:.3f}"
        cells = [page.escaped(row["name"]), held, parts.with_interval(row["scores"][main]), *beside]
        rows.append([*cells, str(row.get("networks", 1)), alpha])
    is_boosted = any(row[-1] for row in rows)
    head = ["", "on validation", f"{parts.word(main)} [95 %]", *map(parts.word, others), "networks", "alpha"]
    kept = len(head) if is_boosted else len(head) - 1
    said = [f"<li>{row['name']}: {page.escaped(row['what'])}</li>" for row in report["combinations"]]
    return page.table(head[:kept], [row[:kept] for row in rows]) + f"<ul>{''.join(said)}</ul>"


def _diversity(report: Mapping[str, Any]) -> list[str]:
    names = [member["name"] for member in report["members"]]
    found = []
    if report["independent"]:
        reached, mean = report["independent"]["majority"], report["independent"]["mean_accuracy"]
        found.append(
            f"<p>If the members' errors were independent, a majority of voters as good as they are (mean accuracy"
            f" {mean:.4f}) would be right in {reached:.4f} of the images. The more their errors are correlated, the"
            " less there is to gain.</p>"
        )
    said = {
        "error_correlation": "Correlation of errors (0: independent, 1: the same)",
        "disagreement": "Disagreement: fraction of the answers that differ",
    }
    for key, one in report["diversity"].items():
        mean = "" if one["mean"] is None else f"; mean of the pairs {one['mean']:.3f}"
        rows = [
            [page.escaped(name), *("" if value is None else f"{value:.3f}" for value in row)]
            for name, row in zip(names, one["table"], strict=True)
        ]
        found += [f"<h3>{said[key]}{mean}</h3>", page.table(["", *names], rows)]
    return found
