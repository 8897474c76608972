"""Labels that a model's predictions contradict."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from datamodules.checking.findings import Finding


def doubtful(probabilities: npt.NDArray[np.floating], labels: npt.NDArray[np.int64]) -> list[tuple[int, int]]:
    """Confident learning (Northcutt et al. 2021, https://arxiv.org/abs/1911.00068), as cleanlab has it.

    A class's threshold is the mean probability of the class over the images labeled with it. An image counts for the
    most likely of the classes whose threshold it reaches; where that is not its label, the label is doubtful.

    Args:
        probabilities: (N, K), best of images that the model did not learn.
        labels: (N,).

    Returns:
        Place and likelier class of each doubtful label, by the margin between the two probabilities, largest first.
    """
    given = np.eye(probabilities.shape[1], dtype=bool)[labels]
    held = given.sum(0)
    mean = np.where(given, probabilities, 0).sum(0) / np.maximum(held, 1) - 1e-6  # a mean of equal numbers is rounded
    reached = np.where((probabilities >= mean) & (held > 0), probabilities, -1.0)
    likelier = reached.argmax(1)
    own = probabilities[np.arange(len(labels)), labels]
    margin = probabilities[np.arange(len(labels)), likelier] - own
    places = np.flatnonzero((reached.max(1) >= 0) & (likelier != labels) & (margin > 0))
    order = places[np.argsort(-margin[places], kind="stable")]
    return [(int(i), int(likelier[i])) for i in order]


def label_findings(
    probabilities: npt.NDArray[np.floating],
    labels: npt.NDArray[np.int64],
    paths: Sequence[str],
    split: str,
    names: Sequence[str],
) -> list[Finding]:
    """A finding for each doubtful label of a split, the surest first."""
    return [
        Finding(
            "label",
            f"labeled {names[labels[i]]} ({probabilities[i, labels[i]]:.0%}), predicted {names[other]}"
            f" ({probabilities[i, other]:.0%})",
            paths[i],
            split,
        )
        for i, other in doubtful(probabilities, labels)
    ]
