"""How far an explanation can be trusted: what hiding and showing its pixels does, and whether weights matter."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from pipelines.explaining.methods import CHUNK, Score

#: Cells along the longer side that pixels are hidden by. Single pixels would make noise that no network has seen.
CELLS = 16
STEPS = 16
#: Rank correlation from which on an explanation counts as unchanged by random weights.
UNCHANGED = 0.5
MOST = 0.99


@dataclass(frozen=True)
class Areas:
    """Means of a probability over steps in which a picture is hidden, and shown, from the most important cell on.

    Attributes:
        deletion: The lower, the better.
        insertion: The higher, the better.
    """

    deletion: float
    insertion: float

    @property
    def difference(self) -> float:
        """Insertion minus deletion: what methods are compared by, -1 to 1."""
        return self.insertion - self.deletion


def areas(probability: Score, image: Tensor, filled: Tensor, ranks: Tensor) -> Areas:
    """Deletion and insertion (Petsiuk et al. 2018, https://arxiv.org/abs/1806.07421), by cells in place of pixels.

    Args:
        probability: Images (B, C, H, W) to probabilities (B,).
        image: float32 (1, C, H, W).
        filled: The same shape: what hidden cells look like.
        ranks: float (h, w), see ``cells_of``: cells of high values come first.
    """
    order = ranks.flatten().argsort(descending=True, stable=True)
    taken = torch.linspace(0, len(order), min(STEPS, len(order)) + 1, device=image.device).round().long()
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order), device=order.device)
    shown = (place < taken[:, None]).float().view(-1, 1, *ranks.shape)
    masks = F.interpolate(shown, image.shape[-2:], mode="nearest-exact")
    with torch.no_grad():
        inserted = torch.cat([probability(filled + part * (image - filled)) for part in masks.split(CHUNK)])
        deleted = torch.cat([probability(image + part * (filled - image)) for part in masks.split(CHUNK)])
    return Areas(*(float(torch.trapezoid(values.double()) / (len(taken) - 1)) for values in (deleted, inserted)))


def cells_of(heat: Tensor) -> Tensor:
    """The mean of a map (H, W) in each cell, (h, w), with ``CELLS`` along its longer side."""
    height, width = heat.shape
    longest = max(height, width)
    rows, columns = (max(1, min(side, round(CELLS * side / longest))) for side in (height, width))
    return F.adaptive_avg_pool2d(heat[None, None], (rows, columns))[0, 0]


def random_areas(probability: Score, image: Tensor, filled: Tensor, draws: int, seed: int) -> Areas:
    """The mean areas of random explanations of the same picture: a method that finds something is better.

    Args:
        probability: As for ``areas``.
        image: The same.
        filled: The same.
        draws: How many.
        seed: The same explanations for the same seed.
    """
    generator = torch.Generator().manual_seed(seed)
    size = cells_of(image[0, 0]).shape
    found = [areas(probability, image, filled, torch.rand(size, generator=generator).to(image)) for _ in range(draws)]
    return Areas(*(float(np.mean([getattr(one, name) for one in found])) for name in ("deletion", "insertion")))


@contextmanager
def random_weights(network: nn.Module, seed: int) -> Iterator[None]:
    """Shuffle the values of each of a network's parameters, and put them back.

    Adebayo et al. 2018, "Sanity Checks for Saliency Maps", https://arxiv.org/abs/1810.03292, draw new ones; shuffled
    ones keep their spread, in any architecture.
    """
    generator = torch.Generator().manual_seed(seed)
    kept = [(parameter, parameter.detach().clone()) for parameter in network.parameters()]
    try:
        with torch.no_grad():
            for parameter, values in kept:
                order = torch.randperm(values.numel(), generator=generator).to(values.device)
                parameter.copy_(values.flatten()[order].view_as(values))
        yield
    finally:
        with torch.no_grad():
            for parameter, values in kept:
                parameter.copy_(values)


def similarity(first: NDArray[np.float32], second: NDArray[np.float32]) -> float:
    """Spearman's rank correlation of two maps, where either has most of its mass; 0 where one is the same everywhere.

    All cells together would tell mostly that no box depends on what is far from it.
    """
    from scipy.stats import rankdata

    values = [np.nan_to_num(part).ravel() for part in (first, second)]
    where = _heavy(values[0]) | _heavy(values[1])
    ranks = [rankdata(part[where]) for part in values]
    if any(part.size < 3 or np.ptp(part) == 0 for part in ranks):
        return 0.0
    return float(np.corrcoef(*ranks)[0, 1])


def _heavy(values: NDArray[np.float32]) -> NDArray[np.bool_]:
    """The fewest cells that hold ``MOST`` of a map's absolute mass."""
    order = np.argsort(-np.abs(values), kind="stable")
    mass = np.cumsum(np.abs(values[order], dtype=np.float64))
    found = np.zeros(len(values), bool)
    found[order[: int(np.searchsorted(mass, MOST * mass[-1])) + 1]] = True
    return found
