"""Which run is better, by how much: paired differences on the same test images. Pure functions of what was measured."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodules.common.errors import UserError
from pipelines.report import kinds
from pipelines.report.measured import Measured, joined, ordered
from pipelines.report.scoring import Scorer, replicates_for
from pipelines.statistics import LEVEL, counts_drawn, with_seeds

ALPHA = 1 - LEVEL
#: Keys of a config that make no other recipe.
NOT_RECIPE = ("seed_everything", "name", "runs_dir")

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Run:
    """A run: its label, its config, and what was measured on the images that are compared."""

    label: str
    config: Mapping[str, Any]
    measured: Measured


@dataclass(frozen=True)
class Recipe:
    """Runs whose configs differ in the seed alone."""

    label: str
    runs: list[Run]

    @property
    def first(self) -> Run:
        """The first run."""
        return self.runs[0]


@dataclass(frozen=True)
class Difference:
    """What the second recipe scores above the first by one metric.

    Attributes:
        a: Label of the first recipe.
        b: Label of the second.
        metric: Its name.
        value: The second's score less the first's.
        low: Lower end of the interval of 95 %.
        high: Upper end.
        p: Of a two-sided test that there is no difference.
        of_recipes: Whether it speaks of recipes (several seeds of both), or of these trained models only.
        corrected: ``p`` after Holm's correction for all comparisons that were made.
    """

    a: str
    b: str
    metric: str
    value: float
    low: float
    high: float
    p: float
    of_recipes: bool
    corrected: float = float("nan")

    @property
    def is_shown(self) -> bool:
        """Whether there is a difference: by the corrected test, and by the interval."""
        return self.corrected <= ALPHA and (self.low > 0 or self.high < 0)


def recipes_of(runs: Sequence[Run]) -> list[Recipe]:
    """The runs by recipe, in the order of their first ones."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        kept = {key: value for key, value in run.config.items() if key not in NOT_RECIPE}
        # Without a config every run is a recipe of its own.
        found.setdefault(json.dumps(kept, sort_keys=True, default=str) if kept else run.label, []).append(run)
    return [
        Recipe(own[0].label if len(own) == 1 else f"{own[0].label.rpartition('/')[0]} ({len(own)} seeds)", own)
        for own in found.values()
    ]


def aligned(runs: Sequence[Run]) -> list[Run]:
    """The runs with their images in the order of the first one's.

    Raises:
        UserError: If tasks, classes, images or their truth differ.
    """
    first = runs[0].measured
    out = []
    for run in runs:
        for key, what in (("kind", "the kind of task"), ("class_names", "the classes")):
            if run.measured.facts[key] != first.facts[key]:
                raise UserError(
                    f"{runs[0].label} and {run.label} differ in {what} ({first.facts[key]} and"
                    f" {run.measured.facts[key]}): their scores cannot be compared."
                )
        if run.measured.facts["digest"] != first.facts["digest"]:
            raise UserError(_other_images(runs[0], run))
        place = {name: i for i, name in enumerate(run.measured.names)}
        order = np.array([place[name] for name in first.names])
        out.append(replace(run, measured=ordered(run.measured, order)))
    return out


def _other_images(first: Run, other: Run) -> str:
    ours, theirs = set(first.measured.names), set(other.measured.names)
    if ours == theirs:
        why = "the same images, but with another truth"
    else:
        why = f"{len(ours):,} and {len(theirs):,} images, {len(ours & theirs):,} of them in both"
    split = first.measured.facts["split"]
    return (
        f"{first.label} and {other.label} were evaluated on different {split} sets ({why}): a difference between them"
        " would be one of the images, too. Run `test` of both on the same data; where the data are split by a draw,"
        " set data.split_file to the split.json of the first run, or the same data.seed."
    )


def differences(recipes: Sequence[Recipe], seed: int = 0, replicates: int | None = None) -> list[Difference]:
    """Of each two recipes and each metric the paired difference; those of the main metric come first.

    The main metric's tests are corrected for their number (Holm 1979, "A simple sequentially rejective multiple test
    procedure"); the others are corrected among themselves.

    Args:
        recipes: Two or more, of aligned runs.
        seed: Of the draws.
        replicates: Resamples and swaps; by default as many as a report has.
    """
    main = kinds.main(recipes[0].first.measured)
    found = [d for a, b in itertools.combinations(recipes, 2) for d in _of_two(a, b, seed, replicates)]
    first = [d for d in found if d.metric == main]
    rest = [d for d in found if d.metric != main]
    return [*_corrected(first), *_corrected(rest)]


def _corrected(found: Sequence[Difference]) -> list[Difference]:
    return [replace(d, corrected=p) for d, p in zip(found, holm([d.p for d in found]), strict=True)]


def holm(values: Sequence[float]) -> list[float]:
    """Corrected p-values of several tests, in their order."""
    order = np.argsort(values, kind="stable")
    out, largest = [1.0] * len(values), 0.0
    for rank, index in enumerate(order.tolist()):
        largest = max(largest, min(1.0, values[index] * (len(values) - rank)))
        out[index] = largest
    return out


def _of_two(a: Recipe, b: Recipe, seed: int, replicates: int | None) -> list[Difference]:
    """By each metric, on the same draws of the images."""
    measured = a.first.measured
    replicates = replicates or replicates_for(len(measured), kinds.replicates(measured))
    scorers = [[kinds.scorer(run.measured) for run in recipe.runs] for recipe in (a, b)]
    counts = counts_drawn(np.random.default_rng(seed), len(measured), replicates, measured.groups)
    each = [_scores(own, np.ones((1, len(measured)), np.int64)) for own in scorers]
    drawn = [_scores(own, counts) for own in scorers]
    several = len(a.runs) > 1 and len(b.runs) > 1
    swapped = {} if several else swap_test(a, b, replicates, seed)
    out = []
    for metric in each[0]:
        first, second = each[0][metric][0], each[1][metric][0]
        value = float(second.mean() - first.mean())
        images = drawn[1][metric].mean(1) - drawn[0][metric].mean(1)
        if several:
            low, high, p = with_seeds(value, images, [first, second])
        else:
            low, high = np.nanquantile(images, [ALPHA / 2, 1 - ALPHA / 2]).tolist()
            p = swapped[metric]
        out.append(Difference(a.label, b.label, metric, value, low, high, p, several))
    return out


def _scores(scorers: Sequence[Scorer], counts: NDArray[Any]) -> dict[str, Floats]:
    """By metric (R, S)."""
    found = [score(counts) for score in scorers]
    return {metric: np.stack([one[metric] for one in found], 1) for metric in found[0]}


def swap_test(a: Recipe, b: Recipe, replicates: int, seed: int) -> dict[str, float]:
    """By metric, how often the difference is as large as measured where the two models' answers are swapped at random.

    An exact test of two models on the same images (approximate randomization: Noreen 1989; Yeh 2000,
    https://arxiv.org/abs/cs/0008005), also for scores that are no means of images. The answers as measured are one of
    the swaps: p is never 0. Those of one group of images are swapped together. Of several seeds the first counts.
    """
    one, other = a.first.measured, b.first.measured
    size = len(one)
    # Both answers to an image lie side by side, so that a swap changes no rank of objects with equal scores.
    score = kinds.scorer(ordered(joined(one, other), np.arange(2 * size).reshape(2, size).T.ravel()))
    groups = one.groups if one.groups is not None else np.arange(size)
    swaps = np.random.default_rng([seed, 1]).integers(0, 2, (replicates, int(groups.max()) + 1))[:, groups]
    swaps[0] = 0  # as measured
    first = score(np.stack([1 - swaps, swaps], 2).reshape(replicates, -1))
    second = score(np.stack([swaps, 1 - swaps], 2).reshape(replicates, -1))
    found = {}
    for metric, values in first.items():
        gap = np.abs(second[metric] - values)  # of equal ones none is smaller; what cannot be scored shows nothing
        found[metric] = float(np.mean(~(gap < gap[0] - 1e-12)))
    return found


def sentence(difference: Difference) -> str:
    """What a person is told of the main metric, a fraction, in hundredths."""
    value, low, high = (100 * number for number in (difference.value, difference.low, difference.high))
    better = difference.b if value >= 0 else difference.a
    who = "two recipes" if difference.of_recipes else "these two trained models, not of their recipes"
    if difference.is_shown:
        least, most = (low, high) if value >= 0 else (-high, -low)
        return f"{better} is better by {abs(value):.1f} points [{least:.1f}, {most:.1f}] (of {who})"
    ends = f"[{low:+.1f}, {high:+.1f}]"
    return f"not shown: {difference.b} scores {value:+.1f} points {ends} beside {difference.a} (of {who})"


def changes(recipes: Sequence[Recipe]) -> list[tuple[str, list[str]]]:
    """Keys in which the recipes' configs differ, and each one's value."""
    flat = [dict(_flat(recipe.first.config)) for recipe in recipes]
    keys = list(dict.fromkeys(key for one in flat for key in one))
    different = [key for key in keys if len({json.dumps(one.get(key), default=str) for one in flat}) > 1]
    kept = [key for key in different if key.partition(".")[0] not in NOT_RECIPE]
    return [(key, [str(one.get(key, "")) for one in flat]) for key in kept]


def _flat(values: Any, key: str = "") -> list[tuple[str, Any]]:
    """Nested values by dotted keys, without ``init_args``."""
    if not isinstance(values, Mapping) or not values:
        return [(key, values)]
    found = []
    for name, value in values.items():
        found += _flat(value, key if name == "init_args" else f"{key}.{name}".lstrip("."))
    return found
