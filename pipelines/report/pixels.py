"""Segmented images with one class a pixel: what is measured of each, and what a report says of them.

Of each of N images: ``each.cell`` int32, the cells of its confusion matrix that are not empty, numbered
``true * (K + 1) + predicted`` (K is predicted where nothing covers a pixel), and ``each.pixels`` int64, how many pixels
each has; ``each.sample`` float16 (E, K), logits of some pixels before any temperature, and ``each.sample_truth`` uint8,
their classes, 255 where ignored; ``each.truth_map`` and ``each.map``, PNGs of the true and the predicted classes at
``MAP_SIDE`` pixels a side at most, of the first ``MOST_MAPS`` images.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from pipelines.report.collect import as_png, from_png, hash_of
from pipelines.report.measured import Measured
from pipelines.report.scoring import Scorer
from pipelines.scorers import class_ious, mean_of_known
from tasks.calibration import on_grid

MAIN = "miou"
MAP_SIDE = 192
MOST_MAPS = 2_000
EVERY = 4  # of the sampled pixels one in so many is kept

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Mask = NDArray[np.uint8]


def collect(batch: Mapping[str, Any], outputs: Mapping[str, Any], classes: int, divisor: float) -> dict[str, Any]:
    """What is kept of a batch; see ``images.collect``."""
    masks = [mask.cpu().numpy() for mask in outputs["mask"]]
    truths = [target["mask"].cpu().numpy() for target in batch["target"]]
    tables = [cells(mask, truth, classes) for mask, truth in zip(masks, truths, strict=True)]
    few = batch["id"].tolist()
    kept: dict[str, Any] = {
        "cell": [table[0] for table in tables],
        "pixels": [table[1] for table in tables],
        "map": [small(m) if i < MOST_MAPS else _NOTHING for i, m in zip(few, masks, strict=True)],
        "truth_map": [small(t) if i < MOST_MAPS else _NOTHING for i, t in zip(few, truths, strict=True)],
        "truth_hash": np.array([hash_of(truth) for truth in truths], np.int64),
    }
    if "sample" not in outputs:  # pictures that are evaluated by tiles
        return kept | {
            "sample": [np.zeros((0, classes), np.float16)] * len(masks),
            "sample_truth": [_NOTHING] * len(masks),
        }
    logits = outputs["sample"][:, :, ::EVERY].transpose(1, 2) * divisor
    truth = on_grid(batch["mask"])[:, ::EVERY]
    return kept | {
        "sample": list(logits.cpu().numpy().astype(np.float16)),
        "sample_truth": list(truth.cpu().numpy().astype(np.uint8)),
    }


_NOTHING = np.zeros(0, np.uint8)


def cells(mask: Mask, truth: Mask, classes: int) -> tuple[NDArray[np.int32], Ints]:
    """The cells of one image's confusion matrix that are not empty, and their pixels."""
    base = classes + 1
    true = np.minimum(truth, classes).astype(np.int32)
    counts = np.bincount((true * base + np.minimum(mask, classes)).ravel(), minlength=base * base)[: classes * base]
    found = np.flatnonzero(counts)
    return found.astype(np.int32), counts[found]


def small(mask: Mask) -> NDArray[np.uint8]:
    """A PNG of a mask at ``MAP_SIDE`` pixels a side at most."""
    factor = min(1.0, MAP_SIDE / max(mask.shape))
    size = [max(1, round(side * factor)) for side in mask.shape[::-1]]
    return as_png(cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST_EXACT))


def maps(measured: Measured, image: int) -> tuple[Mask, Mask] | None:
    """True and predicted classes of an image, uint8 (h, w); None where they were not kept."""
    truth, found = (measured.entries(name, image) for name in ("truth_map", "map"))
    return (from_png(truth), from_png(found)) if len(truth) and len(found) else None


def tables(measured: Measured) -> tuple[Ints, Ints, Ints]:
    """Right, predicted and true pixels of each image and class, (N, K)."""
    classes, image = len(measured.class_names), measured.image_of("cell")
    true, found = np.divmod(measured.each["cell"].astype(np.int64), classes + 1)
    pixels = measured.each["pixels"]

    def table(labels: Ints, which: NDArray[np.bool_]) -> Ints:
        out = np.zeros((len(measured), classes), np.int64)
        np.add.at(out, (image[which], labels[which]), pixels[which])
        return out

    return table(true, true == found), table(found, found < classes), table(true, true < classes)


def confusion(measured: Measured) -> Ints:
    """Pixels (K, K), rows the true classes; what nothing covers is in no column."""
    classes = len(measured.class_names)
    cell, pixels = measured.each["cell"], measured.each["pixels"]
    total = np.bincount(cell, weights=pixels, minlength=classes * (classes + 1)).astype(np.int64)
    return np.asarray(total.reshape(classes, classes + 1)[:, :classes])


def scorer(measured: Measured) -> Scorer:
    """Mean IoU, accuracy of the pixels, and mean recall of the classes."""
    hits, found, true = tables(measured)
    union = found + true - hits
    right, all_of_them = hits.sum(1).astype(float), true.sum(1).astype(float)

    def score(counts: NDArray[Any]) -> dict[str, Floats]:
        pixels = np.maximum(counts @ all_of_them, 1)
        recall = mean_of_known(class_ious(counts, hits, true))
        return {
            "miou": mean_of_known(class_ious(counts, hits, union)),
            "accuracy": np.asarray(counts @ right / pixels, np.float64),
            "mean_accuracy": recall,
        }

    return score


def class_scorer(measured: Measured) -> Scorer:
    """IoU of each class, by its number."""
    hits, found, true = tables(measured)

    def score(counts: NDArray[Any]) -> dict[str, Floats]:
        iou = class_ious(counts, hits, found + true - hits)
        return {str(k): iou[:, k] for k in range(iou.shape[1])}

    return score


def image_ious(measured: Measured) -> Floats:
    """Of each image the mean IoU of its own classes, (N,)."""
    hits, found, true = tables(measured)
    union = found + true - hits
    return mean_of_known(np.where(union > 0, hits / np.maximum(union, 1), np.nan))


def confidences(measured: Measured, temperature: float = 1.0) -> tuple[Floats, NDArray[np.bool_], Ints]:
    """Of each sampled pixel the probability of its class, whether it is right, and its image."""
    known = _sampled(measured)
    probability = _probabilities(measured, temperature)
    right = probability.argmax(1) == measured.each["sample_truth"][known]
    return probability.max(1), np.asarray(right), measured.image_of("sample_truth")[known]


def loss(measured: Measured, temperature: float) -> float:
    """Negative log-likelihood of the sampled pixels; NaN without any."""
    known = _sampled(measured)
    if not known.any():
        return float("nan")
    probability = _probabilities(measured, temperature)
    given = probability[np.arange(len(probability)), measured.each["sample_truth"][known]]
    return float(-np.log(np.maximum(given, 1e-12)).mean())


def _sampled(measured: Measured) -> NDArray[np.bool_]:
    """Which sampled pixels are annotated."""
    return np.asarray(measured.each["sample_truth"] < len(measured.class_names))


def _probabilities(measured: Measured, temperature: float) -> Floats:
    """Of those the probabilities (E, K)."""
    logits = measured.each["sample"][_sampled(measured)].astype(np.float64)
    return np.asarray(softmax(logits / temperature, axis=1))
