"""How sure a score is: bootstrap over test images and over seeds. Pure functions of arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

REPLICATES = 10_000
LEVEL = 0.95
CELLS = 5_000_000  # counts of images that are held at once

Floats = NDArray[np.float64]
Score = Callable[[NDArray[Any]], dict[str, Floats]]
"""How often each image counts, (R, N), to scores by name: of each seed's model on that resample, (R, S)."""


class Sampled(NamedTuple):
    """A score of S seeds: ``each`` float64 (S,), and on ``replicates`` (R, S) of the images; those drawn in ``chosen``.

    Scores of the same images and seeds are sampled on the same draws, so that their difference is a paired one.
    """

    each: Floats
    replicates: Floats
    chosen: NDArray[np.int64]

    def __sub__(self, other: Sampled) -> Sampled:
        return Sampled(self.each - other.each, self.replicates - other.replicates, self.chosen)


def sampled(
    score: Score,
    images: int,
    replicates: int | None = None,
    seed: int = 0,
    groups: NDArray[np.int64] | None = None,
) -> dict[str, Sampled]:
    """Draw images (the same ones for all seeds, whose results on one image are not independent) and seeds.

    Args:
        score: See ``Score``.
        images: N.
        replicates: R, ``REPLICATES`` by default.
        seed: Of the draws.
        groups: Of each image the number of its group, (N,): groups are drawn in place of images, since those of one
            group (a patient, a scene) are alike.
    """
    replicates = replicates or REPLICATES
    each = {name: values[0] for name, values in score(np.ones((1, images), np.int64)).items()}
    seeds = len(next(iter(each.values())))
    rng = np.random.default_rng(seed)
    parts: list[dict[str, Floats]] = []
    chosen = np.empty((replicates, seeds), np.int64)
    step = max(1, CELLS // images)
    for first in range(0, replicates, step):
        size = min(step, replicates - first)
        parts.append(score(counts_drawn(rng, images, size, groups)))
        chosen[first : first + size] = rng.integers(0, seeds, (size, seeds))
    return {name: Sampled(each[name], np.concatenate([part[name] for part in parts]), chosen) for name in each}


def counts_drawn(
    rng: np.random.Generator, images: int, size: int, groups: NDArray[np.int64] | None = None
) -> NDArray[np.int64]:
    """How often each image is drawn in ``size`` resamples, (R, N); with ``groups`` (N,) whole groups are drawn."""
    units = images if groups is None else int(groups.max()) + 1
    drawn = rng.multinomial(units, np.full(units, 1 / units), size=size)
    return drawn if groups is None else drawn[:, groups]


def interval(found: Sampled) -> dict[str, Any]:
    """Mean of a score with its spread and interval.

    The interval is a percentile bootstrap of both images and seeds. With one seed it says nothing of the spread
    between trainings. With few seeds the bootstrap is a little narrow, so the interval of Student's t over the seeds'
    scores is given beside it.

    Returns:
        ``each`` (the seeds' scores), ``mean``, ``sd`` (between seeds, null for one), ``low``, ``high``, and ``t_low``,
        ``t_high`` (null for one seed).
    """
    each, seeds = found.each, len(found.each)
    means = np.take_along_axis(found.replicates, found.chosen, 1).mean(1)
    # A resample may hold nothing that can be scored: of a handful of images without an object.
    low, high = np.nanquantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    out: dict[str, Any] = {"each": each.tolist(), "mean": float(each.mean()), "sd": None}
    out |= {"low": float(low), "high": float(high), "t_low": None, "t_high": None}
    if seeds > 1:
        from scipy.stats import t

        sd = float(each.std(ddof=1))
        half = float(t.ppf((1 + LEVEL) / 2, seeds - 1)) * sd / seeds**0.5
        out |= {"sd": sd, "t_low": float(each.mean() - half), "t_high": float(each.mean() + half)}
    return out


def estimate(values: NDArray[Any], seed: int = 0) -> dict[str, Any]:
    """Mean of per-image values with its spread and interval.

    Args:
        values: (S, N): of each seed and image, right or not, or the difference of two models there.
        seed: Of the replicates.

    Returns:
        As ``interval``.
    """
    data = np.asarray(values, np.float64)
    images = data.shape[1]
    return interval(sampled(lambda counts: {"mean": counts @ data.T / images}, images, seed=seed)["mean"])


def with_seeds(value: float, images: Floats, seeds: Sequence[Floats]) -> tuple[float, float, float]:
    """Interval and p of a score, or a difference, of which the images and the seeds are a sample.

    The variance is that over resampled images, and of each recipe that of its mean over seeds. Few seeds that are
    resampled as they are give an interval that is too narrow (by the factor sqrt((S - 1) / S), and by the normal
    distribution in place of Student's); so their variance is the unbiased one, and the degrees of freedom are Welch and
    Satterthwaite's, with which images, many, count as known.

    Args:
        value: The score, or the difference of two recipes.
        images: On resampled images, means over the seeds, (R,).
        seeds: Scores of each recipe's seeds, (S,) each, of two seeds at least.

    Returns:
        Lower and upper end, and p of a two-sided test that it is 0.
    """
    from scipy.stats import t

    of_images = float(np.nanvar(images, ddof=1))
    parts = [(float(scores.var(ddof=1)) / len(scores), len(scores) - 1) for scores in seeds]
    of_all = of_images + sum(variance for variance, _ in parts)
    if of_all <= 0:
        return value, value, 1.0 if value == 0 else 0.0
    spread = sum(variance**2 / freedom for variance, freedom in parts)
    freedom = min(of_all**2 / spread, 1e6) if spread > 0 else 1e6
    error = of_all**0.5
    half = float(t.ppf((1 + LEVEL) / 2, freedom)) * error
    return value - half, value + half, float(2 * t.sf(abs(value) / error, freedom))


def folds_interval(each: Sequence[float], test_share: float) -> dict[str, Any]:
    """Mean of the folds' scores with the corrected interval of Student's t.

    The trainings of two folds share most of their images, so that their scores are not independent, and the ordinary
    interval would be too narrow: their variance counts 1 / k + n_test / n_train times in place of 1 / k (Nadeau and
    Bengio, Inference for the Generalization Error, Machine Learning 52, 2003).

    Args:
        each: The score of each fold, k of them.
        test_share: Images that a fold tests, over those that it trains on.

    Returns:
        ``each``, ``mean``, ``sd`` (between folds), ``low``, ``high``.
    """
    from scipy.stats import t

    values = np.asarray(each, np.float64)
    folds, sd = len(values), float(values.std(ddof=1))
    half = float(t.ppf((1 + LEVEL) / 2, folds - 1)) * sd * (1 / folds + test_share) ** 0.5
    mean = float(values.mean())
    return {"each": values.tolist(), "mean": mean, "sd": sd, "low": mean - half, "high": mean + half}
