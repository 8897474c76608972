"""Intervals of what a split's images score: a bootstrap over the images, or over their groups."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.report.measured import Measured
from pipelines.statistics import interval, sampled

#: Counts of images (R, N) to scores (R,) by name.
Scorer = Callable[[NDArray[Any]], dict[str, NDArray[np.float64]]]
REPLICATES = 2_000
DRAWS = 20_000_000  # counts of images that are drawn at most; a report is to cost seconds
LEAST = 200  # replicates, however many images there are
FEW = 500  # replicates of parts of the images


def replicates_for(images: int, most: int = REPLICATES) -> int:
    """How often to resample so many images."""
    return max(LEAST, min(most, DRAWS // max(1, images)))


def scored(measured: Measured, scorer: Scorer, most: int = REPLICATES) -> dict[str, dict[str, Any]]:
    """Scores with their intervals of 95 %, by name; see ``statistics.interval``.

    Args:
        measured: The images.
        scorer: Of these images.
        most: Resamples at most.
    """
    found = sampled(
        lambda counts: {name: values[:, None] for name, values in scorer(counts).items()},
        len(measured),
        replicates_for(len(measured), most),
        groups=measured.groups,
    )
    return {name: interval(of_name) for name, of_name in found.items()}
