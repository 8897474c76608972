"""``report.html`` and ``README.md`` of a run, from what lies in its directory."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from datamodules.common.errors import UserError
from datamodules.common.files import read_json, write_text
from pipelines.listing import PROGRAM
from pipelines.outputs import page
from pipelines.outputs.curves import best_row, read_rows
from pipelines.outputs.svg import Bar, Series, chart, intervals
from pipelines.report import card, kinds, parts
from pipelines.report.measured import Measured, file_of, read_splits
from pipelines.report.scoring import scored
from pipelines.run.directory import newest_config, task_name

PAGE, CARD = "report.html", "README.md"
MAX_CURVES = 6
Found = dict[str, dict[str, dict[str, Any]]]
"""Scores with their intervals, by split and metric."""


def write_report(run: Path) -> Path:
    """Write the page, and the model card beside it.

    Args:
        run: A run directory with ``val_images.npz`` or ``test_images.npz``, or both.

    Returns:
        The page.

    Raises:
        UserError: If there is neither, or one is damaged.
    """
    measured = kinds.with_validation(read_splits(run))
    if not measured and not run.is_dir():
        raise UserError(f"There is no folder {run}: give a run directory, as runs/NAME/0.")
    if not measured:
        raise UserError(
            f"{run} has no {file_of(run, 'val').name} and no {file_of(run, 'test').name}: give a run directory of this"
            " version, as runs/NAME/0, in which `fit`, `validate` or `test` has evaluated images (one class or"
            " several labels an image, boxes, or masks with one class a pixel)."
        )
    config = newest_config(run)
    found = {split: scored(one, kinds.scorer(one), kinds.replicates(one)) for split, one in measured.items()}
    name = f"{run.resolve().parent.name}/{run.resolve().name}"
    shown = "test" if "test" in measured else "val"
    body = [
        f"<h1>{page.escaped(name)}</h1>",
        _summary(measured, found, config, shown),
        _section("Data", _data(run, measured)),
        _section("Training", _curves(run, measured[shown])),
        _section("Metrics", _metrics(found)),
    ]
    body.append(f"<p>All that follows is of the {len(measured[shown]):,} {parts.SPLITS[shown]} images.</p>")
    said = _said_of_temperature(measured[shown], shown)
    body += [_section(title, text) for title, text in kinds.page_of(measured[shown]).sections(measured[shown], said)]
    body.append(_section("What the network looked at", _explanations(run, shown)))
    body.append(_section("How it was made", _environment(run, config)))
    page.write_page(run / PAGE, name, body)
    write_text(run / CARD, card.model_card(name, measured, found, config, command_of(run)))
    return run / PAGE


def _section(title: str, text: str) -> str:
    return f"<h2>{page.escaped(title)}</h2>{text}" if text else ""


def _summary(measured: Mapping[str, Measured], found: Found, config: Mapping[str, Any], shown: str) -> str:
    one = measured[shown]
    main = kinds.main(one)
    model = (config.get("model") or {}).get("init_args") or {}
    of_seed = f", seed {config['seed_everything']}" if "seed_everything" in config else ""
    net = card.network(model)
    what = f"{task_name(config) or 'A model'} ({net}{of_seed})" if net else "A model"
    groups = one.groups
    resampled = "images" if groups is None else f"groups of images ({int(groups.max()) + 1:,})"
    chosen = (
        " The checkpoint was chosen by these images, so they flatter it; <code>test</code> says more."
        if shown == "val"
        else ""
    )
    bars = [
        Bar(parts.SPLITS[split], *(of[main][key] for key in ("mean", "low", "high"))) for split, of in found.items()
    ]
    return (
        f"<p class=m>{page.escaped(parts.word(main))} <b>{parts.with_interval(found[shown][main])}</b> on"
        f" {len(one):,} {parts.SPLITS[shown]} images</p>"
        f"<p>{page.escaped(what)}, {len(one.class_names):,} classes. Intervals hold 95 %: a bootstrap over {resampled}."
        f" They say how far this model's figure may be off on other images like these, not how another training of the"
        f" same recipe would turn out (<code>compare</code> does, of several seeds).{chosen}</p>"
        + intervals(bars, parts.word(main))
    )


def _said_of_temperature(measured: Measured, split: str) -> str:
    if measured.temperature == 1:
        return "The checkpoint holds no temperature."
    found = f"Temperature {measured.temperature:.3f}, found on the validation images"
    own = "; these are the same images, so a test tells more." if split == "val" else ", not on these."
    return f"{found}{own} The flag --model.calibrated true uses it."


def _data(run: Path, measured: Mapping[str, Measured]) -> str:
    splits = read_json(run / "split.json") or {split: one.names for split, one in measured.items()}
    rows = []
    for split, paths in splits.items():
        of_split = measured.get(split)
        objects = kinds.page_of(of_split).described(of_split) if of_split is not None else ""
        rows.append([page.escaped(split), f"{len(paths):,}", objects])
    table = page.table(["split", "images", "evaluated"], rows, texts=(0, 2))
    one = next(iter(measured.values()))
    sizes = one.arrays["size"]
    low, middle, high = (np.quantile(sizes, q, axis=0).astype(int) for q in (0, 0.5, 1))
    size = (
        f"Height and width from {low[0]} x {low[1]} to {high[0]} x {high[1]} pixels, median {middle[0]} x {middle[1]}."
    )
    source = page.escaped(str(one.facts.get("source", "")))
    return f"<p>{source}</p>{table}<p>{size} Digest of the images and their truth: {one.facts.get('digest')}.</p>"


def _curves(run: Path, measured: Measured) -> str:
    rows = read_rows(run / "metrics.csv")
    if len(rows) < 2:
        return ""

    def series(keys: list[str]) -> list[Series]:
        found = []
        for key in keys:
            have = [row for row in rows if key in row]
            if len(have) > 1:
                found.append(Series([row["step"] + 1 for row in have], [row[key] for row in have], key))
        return found

    monitor = str(measured.facts.get("monitor", ""))
    names = list(dict.fromkeys(key for row in rows for key in row if key.startswith("val/")))
    others = [name for name in names if name not in ("val/loss", monitor)][: MAX_CURVES - 1]
    best = best_row(rows, monitor, str(measured.facts.get("mode", "max")))
    said = f"<p>Best {monitor} {best[monitor]:.4f} in epoch {best['epoch'] + 1:.0f}.</p>" if best else ""
    charts = [
        chart(series(["train/loss", "val/loss"]), "loss", "step"),
        chart(series([monitor, *others]), "validation", "step"),
        chart(series(["train/lr"]), "highest learning rate", "step"),
    ]
    return said + "".join(charts)


def _metrics(found: Found) -> str:
    tables = [f"<h3>{parts.SPLITS[split].capitalize()}</h3>{parts.metrics_table(one)}" for split, one in found.items()]
    return "".join(tables)


def command_of(run: Path) -> str:
    """The command that made a run, of its ``environment.json``; nothing where that is missing or damaged."""
    try:
        words = [str(word) for word in (read_json(run / "environment.json") or [])[0]["command"][1:]]
    except (ValueError, LookupError, TypeError):
        return ""
    return f"{PROGRAM} {shlex.join(words)}" if words else ""


def explanations_of(run: Path, split: str) -> Path:
    """Where the explanations of a split's worst images are."""
    return run / "pictures" / f"{split}_explanations.jpg"


def _explanations(run: Path, split: str) -> str:
    if not (found := page.picture_file(explanations_of(run, split))):
        return ""
    return (
        "<p>The worst images: what speaks (red) for the answer and, where one class is true, for that. Layer-CAM; the"
        f" command <code>explain</code> says whether another method is to be believed more.</p>{found}"
    )


def _environment(run: Path, config: Mapping[str, Any]) -> str:
    try:
        entries = list(read_json(run / "environment.json") or [])
    except (ValueError, TypeError):
        entries = []
    command = command_of(run)
    shown = f"<pre>{page.escaped(command)}</pre>" if command else ""
    if entries and isinstance(entries[-1], dict):
        last = entries[-1]
        facts = [f"Python {last.get('python')}", str(last.get("platform")), f"git {last.get('git')}"]
        packages = ", ".join(f"{name} {version}" for name, version in (last.get("packages") or {}).items())
        shown += f"<p>{page.escaped('; '.join(facts))}<br><small>{page.escaped(packages)}</small></p>"
    text = yaml.safe_dump(json.loads(json.dumps(config)), sort_keys=False, allow_unicode=True)
    return f"{shown}<details><summary>Config</summary><pre>{page.escaped(text)}</pre></details>" if config else shown
