"""The order in which pictures are to be labeled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Strategy: TypeAlias = Literal["mix", "entropy", "margin", "disagreement", "coreset", "random"]
Floats = NDArray[np.float64]
UNCERTAIN = ("entropy", "margin", "disagreement")


def k_center(vectors: Floats, count: int, centers: Floats | None = None) -> tuple[list[int], list[float]]:
    """Greedy k-center: again and again the picture that is farthest from all centers and all that are chosen.

    Sener and Savarese 2018, "Active Learning for Convolutional Neural Networks: A Core-Set Approach",
    https://arxiv.org/abs/1708.00489. The largest distance that is left is at most twice the smallest possible.

    Args:
        vectors: (N, D).
        count: How many, at most N.
        centers: (M, D), of what is labeled already; without them the picture nearest to the mean comes first.

    Returns:
        The chosen ones in order, and their distances when they were chosen (0 for a first one without centers).
    """
    squares = (vectors**2).sum(1)

    def distances(points: Floats) -> Floats:
        found = np.full(len(vectors), np.inf)
        for start in range(0, len(points), 256):
            part = points[start : start + 256]
            products = squares[:, None] - 2 * vectors @ part.T + (part**2).sum(1)
            found = np.minimum(found, np.maximum(products, 0).min(1))
        return np.asarray(np.sqrt(found))

    chosen: list[int] = []
    far: list[float] = []
    if centers is not None and len(centers):
        nearest = distances(centers)
    else:
        first = int(((vectors - vectors.mean(0)) ** 2).sum(1).argmin())
        chosen, far = [first], [0.0]
        nearest = distances(vectors[[first]])
    while len(chosen) < min(count, len(vectors)):
        open_ones = nearest.copy()
        open_ones[chosen] = -1
        pick = int(open_ones.argmax())
        chosen.append(pick)
        far.append(float(nearest[pick]))
        nearest = np.minimum(nearest, distances(vectors[[pick]]))
    return chosen[:count], far[:count]


def choose(
    strategy: Strategy,
    count: int,
    values: Mapping[str, Sequence[float]],
    vectors: Floats | None,
    *,
    centers: Floats | None = None,
    shortlist: float = 2.0,
    uncertainty: str = "margin",
    seed: int = 0,
    size: int = 0,
) -> tuple[list[int], dict[str, list[float]]]:
    """Pictures in the order in which they are to be labeled, and what was known of them.

    Args:
        strategy: The largest ``entropy``, ``margin`` or ``disagreement``; ``coreset``: ``k_center``; ``mix``: that
            among the least sure; ``random``.
        count: How many; all where there are fewer.
        values: Of the N pictures, by name, see ``uncertainty``.
        vectors: Embeddings (N, D), for ``coreset`` and ``mix``.
        centers: Embeddings of what is labeled already, (M, D).
        shortlist: For ``mix``: so many times ``count`` pictures are the least sure.
        uncertainty: For ``mix``: which value.
        seed: Of ``random``, and of the order of what is equal.
        size: N.

    Returns:
        Numbers of the pictures, and columns about them: their values, and ``distance`` where it was used.
    """
    shuffled = np.random.default_rng(seed).permutation(size)
    distance: list[float] | None = None
    if strategy == "random":
        order = shuffled[:count].tolist()
    elif strategy in UNCERTAIN:
        order = _largest(values[strategy], shuffled)[:count]
    else:
        assert vectors is not None, "the caller embeds for these strategies"
        among = list(range(size))
        if strategy == "mix":
            among = _largest(values[uncertainty], shuffled)[: max(count, round(shortlist * count))]
        picks, distance = k_center(vectors[among], count, centers)
        order = [among[i] for i in picks]
    columns: dict[str, list[float]] = {name: [float(column[i]) for i in order] for name, column in values.items()}
    return order, columns if distance is None else {**columns, "distance": distance}


def _largest(column: Sequence[float], shuffled: NDArray[Any]) -> list[int]:
    """All pictures by falling value, equal ones in the shuffled order."""
    return [int(i) for i in shuffled[np.argsort(-np.asarray(column)[shuffled], kind="stable")]]
