"""Which predicted boxes are right, and a picture of what is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pipelines.outputs.drawing import Annotation
from pipelines.outputs.palettes import WRONG_COLOR
from pipelines.outputs.sheets import Picture, rgb

IOU = 0.5
RIGHT_COLOR = (44, 160, 44)
MISSED_COLOR = (255, 165, 0)


def right_boxes(truth: Annotation, prediction: Annotation) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Match boxes of one class that overlap by half, the best scores first, each true box once.

    Args:
        truth: ``boxes`` (N, 4) and ``labels`` (N,), below 0 where there is nothing to find.
        prediction: ``boxes`` (M, 4), ``labels`` (M,) and, of a model, ``scores`` (M,).

    Returns:
        Which true boxes are found, (N,), and which predicted ones are right, (M,).
    """
    boxes, labels = prediction["boxes"], prediction["labels"]
    found, right = np.zeros(len(truth["boxes"]), bool), np.zeros(len(boxes), bool)
    order = np.argsort(-prediction["scores"], kind="stable") if "scores" in prediction else np.arange(len(boxes))
    shared, areas = _shared(boxes, truth["boxes"]), _areas(boxes)[:, None] + _areas(truth["boxes"])
    overlap = shared / np.maximum(areas - shared, 1e-9)
    overlap[labels[:, None] != truth["labels"]] = 0
    for i in order if found.size else ():
        free = np.where(found, 0, overlap[i])
        best = int(free.argmax())
        if free[best] >= IOU and labels[i] >= 0:
            found[best] = right[i] = True
    return found, right


def f1_of_boxes(truth: Mapping[str, Any], prediction: Mapping[str, Any]) -> float:
    """F1 of one picture's boxes; 1 where there is nothing and nothing is found. Arguments as for ``right_boxes``."""
    known = {key: np.asarray(truth[key]) for key in ("boxes", "labels")}
    found, right = right_boxes(known, dict(prediction))
    return float(2 * right.sum() / (len(found) + len(right))) if len(found) + len(right) else 1.0


def _areas(boxes: NDArray[Any]) -> NDArray[Any]:
    areas: NDArray[Any] = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    return areas


def _shared(boxes: NDArray[Any], others: NDArray[Any]) -> NDArray[Any]:
    """Area of the intersection of each two, (M, N)."""
    low = np.maximum(boxes[:, None, :2], others[:, :2])
    shared: NDArray[Any] = np.prod(np.clip(np.minimum(boxes[:, None, 2:], others[:, 2:]) - low, 0, None), axis=2)
    return shared


def box_error_picture(image: NDArray[Any], truth: Annotation, prediction: Annotation) -> Picture:
    """The dim gray image with right boxes green, wrong ones red, and missed objects orange: uint8 (H, W, 3).

    Crowds (``iscrowd``) need not be found, and what lies in one is neither right nor wrong.
    """
    gray = cv2.cvtColor(rgb(image), cv2.COLOR_RGB2GRAY) // 2 + 24
    picture = cv2.cvtColor(gray, cv2.COLOR_GRAY2RGB)
    crowd = truth.get("iscrowd", np.zeros(len(truth["boxes"]))) == 1
    single = {**truth, "labels": np.where(crowd, -1, truth["labels"])}
    found, right = right_boxes(single, prediction)
    in_crowd = _shared(prediction["boxes"], truth["boxes"][crowd]) >= IOU * _areas(prediction["boxes"])[:, None]
    wrong = ~right & ~in_crowd.any(1) & (prediction["labels"] >= 0)
    shown = [(truth["boxes"][~found & (single["labels"] >= 0)], MISSED_COLOR)]
    shown += [(prediction["boxes"][right], RIGHT_COLOR), (prediction["boxes"][wrong], WRONG_COLOR)]
    for boxes, color in shown:
        for x1, y1, x2, y2 in np.round(boxes).astype(int).tolist():
            cv2.rectangle(picture, (x1, y1), (max(x1, x2 - 1), max(y1, y2 - 1)), color, 2 + max(gray.shape) // 400)
    return np.asarray(picture)
