"""Where a picture lies on its canvas: evaluation's resize and random windows.

The geometry record that comes of it, and the way back to original pixels, are in `datamodules.common.geometry`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import cv2
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

Resize = Literal["crop", "letterbox", "stretch", "native"]
Interpolation = Literal["bilinear", "bicubic", "area", "nearest"]

INTERPOLATIONS: dict[str, int] = {
    "bilinear": cv2.INTER_LINEAR,
    "bicubic": cv2.INTER_CUBIC,
    "area": cv2.INTER_AREA,
    "nearest": cv2.INTER_NEAREST_EXACT,  # INTER_NEAREST samples at pixel corners, half a pixel off
}


def resize_array(array: Array, size: tuple[int, int], interpolation: int) -> Array:
    """Resize to `size` pixels, antialiased where it shrinks a lot.

    OpenCV's bilinear and bicubic kernels do not widen when shrinking and so alias. Where a side shrinks by more than 2
    the mean over each pixel's area is taken instead (OpenCV's INTER_AREA); up to 2 the difference to a widened kernel
    is small, and the area mean three times slower.

    Args:
        array: (H, W) or (H, W, C), any dtype for nearest, uint8, int16 or float32 for the others. Float images are
            kept in [0, 1], which a bicubic kernel overshoots.
        size: New height and width.
        interpolation: OpenCV flag, a value of `INTERPOLATIONS`.
    """
    height, width = size
    if array.shape[:2] == (height, width):
        return array
    if (
        interpolation in (cv2.INTER_LINEAR, cv2.INTER_CUBIC)
        and max(array.shape[0] / height, array.shape[1] / width) > 2
    ):
        interpolation = cv2.INTER_AREA
    resized: Array = cv2.resize(array, (width, height), interpolation=interpolation)
    if interpolation == cv2.INTER_CUBIC and resized.dtype == np.float32:
        np.clip(resized, 0, 1, out=resized)
    return resized.reshape(height, width, *array.shape[2:])  # OpenCV drops a last axis of one


def random_window(
    shape: tuple[int, int],
    canvas: tuple[int, int],
    scale: tuple[float, float],
    rng: np.random.Generator,
    around: tuple[int, int] | None = None,
) -> tuple[Span, Span]:
    """A random part of a picture of ``shape`` (H, W) that fills the canvas at ``scale``; all of it where it is smaller.

    Args:
        shape: Height and width of the picture.
        canvas: Height and width of the canvas.
        scale: Canvas pixels to one picture pixel, along the height and along the width.
        rng: Where the part lies, and a smaller picture on the canvas.
        around: Row and column of a picture pixel that must be inside.

    Returns:
        The rows' span and the columns'.
    """
    spans = []
    for axis, (side, room, factor) in enumerate(zip(shape, canvas, scale, strict=True)):
        part = min(side, max(1, round(room / factor)))
        low, high = 0, side - part
        if around is not None:
            low, high = max(low, around[axis] - part + 1), min(high, around[axis])
        start = int(rng.integers(low, high + 1))
        size = min(room, max(1, round(part * factor))) if part == side else room
        spans.append(Span(start, part, int(rng.integers(0, room - size + 1)), size))
    return spans[0], spans[1]


class Span(NamedTuple):
    """Pixels ``start`` to ``start + part`` of a picture's axis, resized to ``size`` pixels from ``offset`` on."""

    start: int
    part: int
    offset: int
    size: int


class View(NamedTuple):
    """A picture of (H, W) resized to (height, width), its top left corner put at (top, left) of the canvas.

    A negative corner means that the picture is cropped there, a positive one that the canvas is filled.
    """

    height: int
    width: int
    top: int
    left: int
    canvas: tuple[int, int]

    def geometry(self, shape: tuple[int, int]) -> NDArray[np.float32]:
        """Geometry record float32 (6,) of a picture of `shape` (H, W) seen through this view."""
        height, width = shape
        return np.array(
            [height, width, self.width / width, self.height / height, self.left, self.top], dtype=np.float32
        )

    def place(self, array: Array, interpolation: int, fill: float) -> Array:
        """Resize (H, W) or (H, W, C), then crop or fill to the canvas. C-contiguous; may be `array` itself."""
        array = resize_array(array, (self.height, self.width), interpolation)
        height, width = self.canvas
        top, left = max(-self.top, 0), max(-self.left, 0)
        array = array[top : top + height, left : left + width]
        if array.shape[:2] == self.canvas:
            return np.ascontiguousarray(array)
        out = np.full((height, width, *array.shape[2:]), fill, dtype=array.dtype)
        top, left = max(self.top, 0), max(self.left, 0)
        out[top : top + array.shape[0], left : left + array.shape[1]] = array
        return out


def evaluation_view(shape: tuple[int, int], canvas: tuple[int, int], resize: Resize, crop_pct: float) -> View:
    """How evaluation puts a picture of `shape` (H, W) on `canvas` (height, width).

    crop: the smallest picture of the same aspect ratio that covers canvas / crop_pct, cropped at its center (timm's and
    torchvision's usual resize and center crop). letterbox: the largest one inside the canvas, in its center.
    stretch: exactly the canvas, aspect ratio not kept. native: the picture's own size, whatever the canvas.
    """
    if resize == "native":
        return View(*shape, 0, 0, shape)
    if resize == "stretch":
        return View(*canvas, 0, 0, canvas)
    ratios = canvas[0] / shape[0], canvas[1] / shape[1]
    if resize == "letterbox":
        scale = min(ratios)
        height, width = (max(1, min(c, round(s * scale))) for c, s in zip(canvas, shape, strict=True))
    else:
        scale = max(ratios) / crop_pct
        height, width = (max(c, round(s * scale)) for c, s in zip(canvas, shape, strict=True))
    # Floor division, so that an odd row more is cropped, or filled, on one fixed side.
    return View(height, width, (canvas[0] - height) // 2, (canvas[1] - width) // 2, canvas)
