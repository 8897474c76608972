"""One measure for both sides, from results of each picture, so that pictures can be drawn again for intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics.detection import MeanAveragePrecision

Results = list[dict[str, Any]]

RESAMPLES = {"classification": 2000, "segmentation": 2000, "detection": 100}


def confusion(prediction: Tensor, truth: Tensor, classes: int) -> Tensor:
    """Pixels by true and predicted class, int64 (K, K); truth of K and more is ignored."""
    counted = (truth >= 0) & (truth < classes)
    cells = truth[counted].long() * classes + prediction[counted].long()
    return torch.bincount(cells, minlength=classes**2).reshape(classes, classes)


def accuracy(results: Results) -> float:
    """Fraction of the pictures that are right."""
    return float(np.mean([result["right"] for result in results]))


def mean_iou(results: Results) -> float:
    """Mean over the classes that occur of intersection over union, all pictures' pixels together."""
    total = torch.stack([result["confusion"] for result in results]).sum(0).double()
    union = total.sum(0) + total.sum(1) - total.diag()
    return float((total.diag() / union)[union > 0].mean())


def average_precision(results: Results) -> float:
    """COCO's mAP, by torchmetrics with pycocotools."""
    metric = MeanAveragePrecision(backend="pycocotools")
    metric.warn_on_many_detections = False
    metric.update([result["found"] for result in results], [result["truth"] for result in results])
    return float(metric.compute()["map"])


MEASURES: dict[str, tuple[str, Callable[[Results], float]]] = {
    "classification": ("accuracy", accuracy),
    "segmentation": ("mIoU", mean_iou),
    "detection": ("mAP", average_precision),
}


def interval(task: str, ours: Sequence[Results], peers: Sequence[Results]) -> tuple[float, float]:
    """A 95 % interval of the mean difference: seeds' results on the same pictures, which are drawn with replacement.

    Args:
        task: Names the measure.
        ours: Results of each seed, of the same pictures in the same order.
        peers: Likewise.
    """
    measure = MEASURES[task][1]
    rng = np.random.default_rng(0)
    differences = []
    for _ in range(RESAMPLES[task]):
        drawn = rng.integers(0, len(ours[0]), len(ours[0]))
        pairs = zip(ours, peers, strict=True)
        differences.append(
            np.mean([measure([our[i] for i in drawn]) - measure([peer[i] for i in drawn]) for our, peer in pairs])
        )
    low, high = np.percentile(differences, [2.5, 97.5])
    return float(low), float(high)
