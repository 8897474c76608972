"""Masks as one polygon each, for formats that hold no more: YOLO's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from datamodules.common import rle

_MOST_COMPARED = 1000  # corners of a line; of longer ones not each is compared, as a table of all pairs would not fit
_Points = NDArray[np.float64]  # (n, 2), x and y


def one_polygon(mask: Any, height: int, width: int) -> list[float] | None:
    """A mask as one closed line along the edges of its pixels.

    Parts are joined by lines of no width, there and back, as Ultralytics' ``merge_multi_segment`` joins them
    (https://github.com/ultralytics/ultralytics/blob/main/ultralytics/data/converter.py). A hole is joined likewise; its
    edge runs the other way round, so that programs fill the line right by either rule, even-odd and nonzero.

    Args:
        mask: Polygons or run lengths; see ``rle.from_segmentation``. A polygon of one part is returned as it is.
        height: Of the image, in pixels.
        width: Likewise.

    Returns:
        x, y, x, y, ... in pixels; None if the mask has no pixel.
    """
    if isinstance(mask, list) and len(mask) == 1 and len(mask[0]) >= 6:
        return list(mask[0])
    run = rle.compressed(rle.from_segmentation(mask, height, width))
    if not rle.area(run):
        return None
    if isinstance(mask, list):  # their own corners are kept, if the parts do not overlap
        joined = _joined([np.reshape(part, (-1, 2)) for part in mask if len(part) >= 6])
        if rle.iou([rle.from_segmentation([joined], height, width)], [run], [0])[0, 0] == 1:
            return joined
    return _joined(_outlines(rle.decoded([run], height, width)[0]))


def _outlines(mask: NDArray[np.bool_]) -> list[_Points]:
    """The edges of a mask's parts and holes, bool (H, W), in whole pixels.

    OpenCV's contours go through the centers of the outermost pixels. In the mask at twice its size, every side of a
    pixel has a pixel of its own: even coordinates are left and upper sides, odd ones right and lower sides.
    """
    x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
    inside = mask[y : y + height, x : x + width].astype(np.uint8)
    double = inside.repeat(2, axis=0).repeat(2, axis=1)
    contours, _ = cv2.findContours(double, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    outlines = []
    for contour in contours:
        points = (contour[:, 0].astype(np.int64) + 1) // 2
        is_new = (points != np.roll(points, 1, axis=0)).any(axis=1)
        outlines.append((points[is_new] + (x, y)).astype(np.float64))
    return outlines


def _joined(parts: Sequence[_Points]) -> list[float]:
    """One closed line through all parts, each joined about where it comes closest to the line so far."""
    line, *others = parts
    for part in others:
        steps = 1 + len(line) // _MOST_COMPARED, 1 + len(part) // _MOST_COMPARED
        distances = ((line[:: steps[0], None] - part[:: steps[1]]) ** 2).sum(axis=2)
        leave, enter = np.multiply(np.unravel_index(distances.argmin(), distances.shape), steps).tolist()
        around = np.roll(part, -enter, axis=0)
        line = np.concatenate([line[: leave + 1], around, around[:1], line[leave:]])
    return [float(value) for value in line.ravel()]
