"""A power law through a curve of scores over labels, and how sure it is. Pure functions of arrays.

``score = top - scale * (labels / unit) ** -power``, with ``unit`` the most labels that were measured: the law that
learning curves follow over wide ranges (Hestness et al. 2017, https://arxiv.org/abs/1712.00409; Viering and Loog 2021,
"The Shape of Learning Curves: a Review", https://arxiv.org/abs/2103.10948), not a law of nature.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.statistics import LEVEL, Sampled, with_seeds

Floats = NDArray[np.float64]
REPLICATES = 400  # refits
LEAST = 3  # points that a law of three numbers needs
SURE = 1e-4  # errors are taken for no smaller
POWERS = np.geomspace(0.02, 3, 501)  # that are tried: 1 % apart


@dataclass(frozen=True)
class Point:
    """What was measured with a number of labels: ``sampled`` has S seeds, on R resamples of the test images."""

    fraction: float
    labels: float
    sampled: Sampled

    @property
    def mean(self) -> float:
        """Of the seeds."""
        return float(self.sampled.each.mean())

    @property
    def images(self) -> Floats:
        """Means over the seeds on resampled images, (R,); a resample without anything to score tells nothing."""
        return np.asarray(np.nan_to_num(self.sampled.replicates.mean(1), nan=self.mean), np.float64)

    def __sub__(self, other: Point) -> Point:
        """By how much this score is higher, paired on the same resamples and seeds."""
        return Point(self.fraction, self.labels, self.sampled - other.sampled)

    def row(self) -> dict[str, Any]:
        """Plain values: ``fraction``, ``labels``, ``each``, ``mean``, ``sd`` (null for one seed), ``low``, ``high``."""
        each = self.sampled.each
        if len(each) > 1:
            low, high, _ = with_seeds(self.mean, self.images, [each])
        else:
            low, high = ends(self.images)
        return {
            "fraction": self.fraction,
            "labels": round(self.labels),
            "each": each.tolist(),
            "mean": self.mean,
            "sd": float(each.std(ddof=1)) if len(each) > 1 else None,
            "low": low,
            "high": high,
        }


@dataclass(frozen=True)
class Law:
    """The fitted law, float64 (3,) of ``top``, ``scale``, ``power``, and that of each replicate, (R, 3)."""

    unit: float
    best: Floats
    each: Floats

    def at(self, labels: float) -> tuple[float, Floats]:
        """The score with so many labels, and that of each replicate, (R,)."""
        return float(_scores(self.best, labels / self.unit)), _scores(self.each, labels / self.unit)

    def labels_for(self, score: float, each: Floats) -> tuple[float, Floats]:
        """The labels with which a score is reached, infinite where never, and for each replicate's (R,), (R,)."""
        return float(self.unit * _places(self.best, np.array(score))), self.unit * _places(self.each, each)


def ends(values: Floats) -> tuple[float, float]:
    """Ends of the interval of 95 % of replicates, of which some may be infinite."""
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], method="nearest").tolist()
    return low, high


def fit_law(points: Sequence[Point], seed: int = 0) -> Law | None:
    """Fit the law by weighted least squares, and again to each replicate.

    A replicate is the scores on a resample of the test images, the same one for all points, with what another choice of
    seeds might change: each point's variance between seeds is half its own and half the mean of all (two to five seeds
    alone tell little), with Student's tails.

    Args:
        points: By rising labels.
        seed: Of the replicates.

    Returns:
        None where there are fewer than three points.
    """
    if len({point.labels for point in points}) < LEAST:
        return None
    labels = np.array([point.labels for point in points])
    between = variances(points)
    error = np.sqrt([np.var(point.images) for point in points] + between)
    drawn = replicates_of(points, between, np.random.default_rng(seed))
    unit, error = float(labels.max()), np.maximum(error, SURE)
    mean = np.array([point.mean for point in points])
    best = fitted(labels / unit, mean[None], error)[0]
    return Law(unit, best, fitted(labels / unit, drawn, error))


def variances(points: Sequence[Point]) -> Floats:
    """Of each point the variance of its mean over seeds, (F,); zeros for one seed, of which nothing is known."""
    seeds = len(points[0].sampled.each)
    if seeds < 2:
        return np.zeros(len(points))
    own = np.array([point.sampled.each.var(ddof=1) for point in points])
    shrunk: Floats = (own + own.mean()) / 2 / seeds
    return shrunk


def replicates_of(points: Sequence[Point], between: Floats, rng: np.random.Generator) -> Floats:
    """Scores of the points as they might have come out, (R, F)."""
    images = np.stack([point.images[:REPLICATES] for point in points], 1)
    if not between.any():
        return images
    freedom = 2 * (len(points[0].sampled.each) - 1)
    noise: Floats = images + rng.standard_t(freedom, images.shape) * np.sqrt(between)
    return noise


def fitted(x: Floats, scores: Floats, error: Floats) -> Floats:
    """The laws of least weighted squares: for each power the other two numbers are a linear regression.

    Args:
        x: Labels in units, (F,).
        scores: Those of each law, (R, F).
        error: Standard errors, (F,).

    Returns:
        ``top`` (at most 1, or the best score), ``scale`` (not below 0) and ``power``, (R, 3).
    """
    weight = error**-2 / (error**-2).sum()
    z = x ** -POWERS[:, None]  # (P, F)
    most = np.maximum(1.0, scores.max(1))[:, None]  # metrics are fractions
    mean, mean_z = scores @ weight, z @ weight
    spread = ((z - mean_z[:, None]) ** 2) @ weight
    slope = -((scores - mean[:, None]) * weight) @ (z - mean_z[:, None]).T / spread  # (R, P)
    # Within the bounds, or on one of them: the least of these is that of the bounded problem, which is convex.
    at_most = np.maximum(0, (most - scores) * weight @ z.T / ((z**2) @ weight))
    flat = np.minimum(mean[:, None], most) + np.zeros_like(slope)
    choices = [(mean[:, None] + slope * mean_z, slope), (most + np.zeros_like(slope), at_most), (flat, 0 * slope)]
    best: list[Floats] = []
    for top, scale in choices:
        off = scores[:, None] - (top[..., None] - scale[..., None] * z)
        best.append(np.where((top <= most) & (scale >= 0), (off**2) @ weight, np.inf))
    cost = np.stack(best, 1).reshape(len(scores), -1)
    choice, power = np.divmod(cost.argmin(1), len(POWERS))
    rows = np.arange(len(scores))
    tops, scales = (np.stack([chosen[i] for chosen in choices])[choice, rows, power] for i in (0, 1))
    return np.stack([tops, scales, POWERS[power]], 1)


def _scores(law: Floats, x: Any) -> Any:
    return law[..., 0] - law[..., 1] * np.asarray(x) ** -law[..., 2]


def _places(law: Floats, scores: Floats) -> Floats:
    """Where, in units, a score is reached."""
    gap = law[..., 0] - scores
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        reached = (law[..., 1] / gap) ** (1 / law[..., 2])
    found: Floats = np.where(gap > 0, reached, np.inf)
    return found
