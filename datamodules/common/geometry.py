"""The geometry record of a picture on its canvas, and the way back to original pixels.

Coordinates are pixel edges: a picture of W columns spans x from 0 to W, and the center of its first pixel is at 0.5.
A geometry record is float32 (6,): original height, original width, scale_x, scale_y, offset_x, offset_y, with
`x_canvas = x_original * scale_x + offset_x` and the same for y. The two scales are exact (new size / old size after
rounding to whole pixels), so they may differ a little even where the aspect ratio is kept.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from datamodules.common.batch import IGNORE

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    AnyArray = TypeVar("AnyArray", NDArray[Any], Tensor)


def original_size(geometry: AnyArray) -> tuple[int, int]:
    """Height and width in original pixels, from a geometry record (6,) of either kind."""
    return round(float(geometry[0])), round(float(geometry[1]))


def boxes_to_canvas(boxes: AnyArray, geometry: AnyArray) -> AnyArray:
    """Boxes in original pixels -> pixels of the canvas; not clipped.

    Args:
        boxes: (..., N, 4) x1 y1 x2 y2, float; numpy array or torch tensor.
        geometry: (..., 6) of the same kind, with the same leading axes: (6,) with (N, 4), or (B, 6) with (B, N, 4).
    """
    moved: AnyArray = boxes * geometry[..., None, [2, 3, 2, 3]] + geometry[..., None, [4, 5, 4, 5]]
    return moved


def boxes_to_original(boxes: AnyArray, geometry: AnyArray) -> AnyArray:
    """Boxes on the canvas -> original pixels, clipped to the original image. Arguments as in `boxes_to_canvas`."""
    original: AnyArray = (boxes - geometry[..., None, [4, 5, 4, 5]]) / geometry[..., None, [2, 3, 2, 3]]
    limit = geometry[..., None, [1, 0, 1, 0]]
    original = original.clip(0 * limit, limit)  # torch takes two tensors or two numbers, no mixture
    return original


def mask_to_original(mask: AnyArray, geometry: AnyArray, outside: int = IGNORE) -> AnyArray:
    """Label map of the canvas -> label map in the original size, by the nearest pixel center.

    Args:
        mask: (h, w) on the canvas, any dtype; numpy array or torch tensor.
        geometry: (6,), of either kind.
        outside: Value of original pixels that were cropped away.

    Returns:
        (H, W) of the same kind, dtype and device as `mask`.
    """
    height, width, scale_x, scale_y, offset_x, offset_y = (float(value) for value in geometry)
    rows = np.floor((np.arange(round(height)) + 0.5) * scale_y + offset_y).astype(np.int64)
    columns = np.floor((np.arange(round(width)) + 0.5) * scale_x + offset_x).astype(np.int64)
    seen_rows, seen_columns = (rows >= 0) & (rows < mask.shape[0]), (columns >= 0) & (columns < mask.shape[1])
    original: AnyArray = mask[rows.clip(0, mask.shape[0] - 1)][:, columns.clip(0, mask.shape[1] - 1)]
    original[~seen_rows] = outside
    original[:, ~seen_columns] = outside
    return original
