"""How unsure predictions are, from what one or several networks or views say: more is less sure.

Of classes and pixels an answer holds probabilities; of boxes it is what was found. All values of one kind can be
compared over the pictures of a pool.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipelines.outputs.box_errors import f1_of_boxes

#: Names of the values of each picture.
Values: TypeAlias = dict[str, float]
FLOOR = 0.05  # score below which a box does not count


def of_probabilities(answers: Sequence[Tensor], multi_label: bool = False) -> list[Values]:
    """Values of B pictures, each the mean over its pixels where there are some.

    - ``entropy`` of the mean answer, 0 to 1;
    - ``margin``: 1 less the lead of the most probable class before the next;
    - ``disagreement``: the entropy of the mean answer less the mean entropy of the answers, 0 to 1 (BALD: Houlsby et
      al. 2011, https://arxiv.org/abs/1112.5745; of ensembles Beluch et al., CVPR 2018); of several only.

    Args:
        answers: float (B, K, ...) each, probabilities along K; with ``multi_label``, or K = 1, of each class by itself.
        multi_label: Whether several classes can be true.
    """
    every = torch.stack([answer.float() for answer in answers])  # (A, B, K, ...)
    if multi_label or every.shape[2] == 1:
        every = torch.stack([every, 1 - every], 2)  # two classes each, (A, B, 2, K, ...)
    scale = math.log(every.shape[2])
    mean = every.mean(0)
    total = _entropy(mean, 1) / scale
    each = (_entropy(every, 2) / scale).mean(0)
    top = mean.topk(2, dim=1).values
    values = {"entropy": total, "margin": 1 - (top[:, 0] - top[:, 1])}
    if len(answers) > 1:
        values["disagreement"] = (total - each).clamp_min(0)
    columns = {
        name: value.flatten(1).mean(1).tolist() if value.ndim > 1 else value.tolist() for name, value in values.items()
    }
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _entropy(probabilities: Tensor, dim: int) -> Tensor:
    return -(probabilities * probabilities.clamp_min(1e-12).log()).sum(dim)


def of_boxes(answers: Sequence[Mapping[str, Any]], thresholds: Sequence[float]) -> Values:
    """Values of one picture.

    - ``entropy``: the sum over the first answer's boxes of the entropy of their scores in bits, ``margin`` that of
      1 less the distance of a score from 0.5, doubled. A sum prefers pictures with many objects, as one of the ways
      of Brust et al. 2018, https://arxiv.org/abs/1809.09875;
    - ``disagreement``: 1 less the mean F1 of two answers at an IoU of 0.5; of several only.

    Args:
        answers: ``boxes`` (n, 4), ``scores`` (n,) and ``labels`` (n,) each, numpy arrays.
        thresholds: The score from which on a box of each class counts for ``disagreement``.
    """
    scores = answers[0]["scores"].astype(np.float64)
    scores = scores[scores >= FLOOR].clip(1e-6, 1 - 1e-6)
    bits = -(scores * np.log2(scores) + (1 - scores) * np.log2(1 - scores))
    shown = [_above(answer, np.asarray(thresholds)) for answer in answers]
    agreement = [f1_of_boxes(a, b) for a, b in combinations(shown, 2)]
    values = {"entropy": float(bits.sum()), "margin": float((1 - np.abs(2 * scores - 1)).sum())}
    return values | ({"disagreement": 1 - float(np.mean(agreement))} if agreement else {})


def _above(answer: Mapping[str, Any], thresholds: NDArray[Any]) -> dict[str, Any]:
    keep = answer["scores"] >= thresholds[answer["labels"]]
    return {key: answer[key][keep] for key in ("boxes", "scores", "labels")}
