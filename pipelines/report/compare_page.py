"""The page of a comparison of runs."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipelines.outputs import page
from pipelines.outputs.svg import Bar, intervals
from pipelines.report import kinds, parts
from pipelines.report.comparing import ALPHA, Difference, Recipe, changes, sentence
from pipelines.report.scoring import scored

SHOWN = 6  # pictures in which each of two models is better


def write_comparison(path: Path, recipes: Sequence[Recipe], found: Sequence[Difference]) -> None:
    """Write the page.

    Args:
        path: The file.
        recipes: That are compared.
        found: Their differences.
    """
    measured = recipes[0].first.measured
    main = kinds.main(measured)
    firsts = [one for one in found if one.metric == main]
    split = parts.SPLITS[measured.facts["split"]]
    body = [
        f"<h1>{page.escaped(' and '.join(recipe.label for recipe in recipes))}</h1>",
        *(f"<p class=m>{page.escaped(sentence(one))}</p>" for one in firsts),
        f"<p>{page.escaped(parts.word(main))} on the same {len(measured):,} {split} images. {_method(firsts)}</p>",
        "<h2>Scores</h2>",
        _scores(recipes, main),
        "<h2>Differences</h2>",
        _bars(firsts),
        _table(firsts),
        *_others([one for one in found if one.metric != main]),
        *_configs(recipes),
    ]
    for a, b in itertools.pairwise(recipes):
        body += _pictures(a, b)
    page.write_page(path, "comparison", body)


def _method(found: Sequence[Difference]) -> str:
    images = "Intervals hold 95 %, from resampled images; what is shown also passes a test in which the two models' "
    images += "answers are swapped at random"
    seeds = "Intervals hold 95 %, from resampled images and the variance between seeds (Student's t)"
    several = f", with Holm's correction for {len(found)} comparisons" if len(found) > 1 else ""
    return f"{seeds if found[0].of_recipes else images}{several}, at {ALPHA:.0%}."


def _scores(recipes: Sequence[Recipe], main: str) -> str:
    rows, bars = [], []
    for recipe in recipes:
        each = []
        for run in recipe.runs:
            one = scored(run.measured, kinds.scorer(run.measured), kinds.replicates(run.measured))[main]
            each.append(one["mean"])
            rows.append([page.escaped(run.label), str(run.config.get("seed_everything", "")), parts.with_interval(one)])
            if len(recipe.runs) == 1:
                bars.append(Bar(recipe.label, one["mean"], one["low"], one["high"]))
        if len(recipe.runs) > 1:
            bars.append(Bar(recipe.label, float(np.mean(each)), min(each), max(each), each))
    return intervals(bars, parts.word(main)) + page.table(["run", "seed", f"{parts.word(main)} [95 %]"], rows)


def _bars(found: Sequence[Difference]) -> str:
    bars = [Bar(f"{one.b} - {one.a}", one.value, one.low, one.high) for one in found]
    return intervals(bars, "difference", zero=True)


def _table(found: Sequence[Difference]) -> str:
    rows = []
    for one in found:
        ends = f"{one.low:+.4f} to {one.high:+.4f}"
        said = "shown" if one.is_shown else "not shown"
        names = [page.escaped(name) for name in (one.b, one.a, parts.word(one.metric))]
        rows.append([*names, f"<b>{one.value:+.4f}</b>", ends, f"{one.p:.4f}", f"{one.corrected:.4f}", said])
    head = ["run", "less", "metric", "difference", "95 %", "p", "p corrected", ""]
    return page.table(head, rows, texts=(0, 1, 2, 7))


def _others(found: Sequence[Difference]) -> list[str]:
    return ["<h3>By other metrics, corrected among themselves</h3>", _table(found)] if found else []


def _configs(recipes: Sequence[Recipe]) -> list[str]:
    different = changes(recipes)
    rows = [[page.escaped(key), *map(page.escaped, values)] for key, values in different]
    head = ["key", *(recipe.label for recipe in recipes)]
    shown = page.table(head, rows, texts=range(len(head))) if rows else "<p>None but the seeds.</p>"
    return ["<h2>Differences of the configs</h2>", shown]


def _pictures(a: Recipe, b: Recipe) -> list[str]:
    """The pictures on which the first runs of two recipes differ most."""
    one, other = a.first, b.first
    module = kinds.page_of(one.measured)
    gap = module.image_scores(other.measured) - module.image_scores(one.measured)
    order = np.argsort(np.nan_to_num(gap), kind="stable").tolist()
    found = [f"<h2>Pictures on which {page.escaped(one.label)} and {page.escaped(other.label)} differ most</h2>"]
    for better, chosen in ((other, order[::-1]), (one, order)):
        sign = 1 if better is other else -1
        figures = []
        for image in [i for i in chosen if sign * np.nan_to_num(gap)[i] > 0][:SHOWN]:
            tiles = module.pictures(one.measured, other.measured, image)
            lines = [f"{page.escaped(run.label)}: {module.answer(run.measured, image)}" for run in (one, other)]
            figures.append((tiles, "<br>".join([*lines, page.escaped(one.measured.names[image])])))
        found.append(parts.mistakes(f"{better.label} is better", "", figures))
    return found
