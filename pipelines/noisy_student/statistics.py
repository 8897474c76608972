"""How sure the account is: bootstrap over test images and over seeds. Pure functions of arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

REPLICATES = 10_000
LEVEL = 0.95


def estimate(values: NDArray[Any], seed: int = 0) -> dict[str, Any]:
    """Mean of per-image values with its spread and interval.

    The interval is a percentile bootstrap of both images and seeds: each replicate draws images (the same ones for all
    seeds, whose results on one image are not independent) and seeds, with replacement. With one seed it says nothing of
    the spread between trainings. With few seeds the bootstrap is a little narrow, so the interval of Student's t over
    the seeds' means is given beside it.

    Args:
        values: (S, N): of each seed and image, right or not, or the difference of two models there.
        seed: Of the replicates.

    Returns:
        ``each`` (the seeds' means), ``mean``, ``sd`` (between seeds, null for one), ``low``, ``high``, and ``t_low``,
        ``t_high`` (null for one seed).
    """
    data = np.asarray(values, np.float64)
    seeds, images = data.shape
    each = data.mean(1)
    rng = np.random.default_rng(seed)
    means = np.empty(REPLICATES)
    step = max(1, 5_000_000 // images)
    for first in range(0, REPLICATES, step):
        size = min(step, REPLICATES - first)
        counts = rng.multinomial(images, np.full(images, 1 / images), size=size)
        of_seeds = counts @ data.T / images  # (size, S)
        chosen = rng.integers(0, seeds, (size, seeds))
        means[first : first + size] = np.take_along_axis(of_seeds, chosen, 1).mean(1)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    out: dict[str, Any] = {"each": each.tolist(), "mean": float(data.mean()), "sd": None}
    out |= {"low": float(low), "high": float(high), "t_low": None, "t_high": None}
    if seeds > 1:
        from scipy.stats import t

        sd = float(each.std(ddof=1))
        half = float(t.ppf((1 + LEVEL) / 2, seeds - 1)) * sd / seeds**0.5
        out |= {"sd": sd, "t_low": float(data.mean() - half), "t_high": float(data.mean() + half)}
    return out
