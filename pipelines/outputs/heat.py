"""Explanations as colors over their pictures."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from pipelines.outputs.sheets import Picture, rgb

FOR, AGAINST = (230, 60, 30), (30, 110, 230)  # red, blue
FULL = 99.0  # percentile of a map's absolute values that is drawn in full color
SIDE = 320  # pixels of a picture's longer side
BOX = (255, 255, 0)


def heat_overlay(image: NDArray[np.uint8], heat: NDArray[np.float32], box: Sequence[float] | None = None) -> Picture:
    """A picture in pale gray, red where a map speaks for the target, blue where it speaks against it.

    Args:
        image: uint8 (H, W, C).
        heat: float32 (H, W).
        box: x1 y1 x2 y2 in pixels, drawn as a thin frame.

    Returns:
        uint8 (h, w, 3), ``SIDE`` pixels at its longer side.
    """
    picture = sized(image)
    small = cv2.resize(heat, picture.shape[1::-1], interpolation=_method(heat.shape, picture.shape))
    top = float(np.percentile(np.abs(small), FULL)) or float(np.abs(small).max()) or 1.0
    strength = np.clip(small / top, -1, 1)[..., None]
    gray = cv2.cvtColor(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    pale = 255 - (255 - gray.astype(np.float32)) * 0.7
    color = np.where(strength > 0, np.array(FOR, np.float32), np.array(AGAINST, np.float32))
    mixed = (pale + (color - pale) * np.abs(strength) * 0.85).round().astype(np.uint8)
    return framed(mixed, image.shape, box)


def sized(image: NDArray[np.uint8]) -> Picture:
    """A picture of any size with ``SIDE`` pixels at its longer side: uint8 (h, w, 3)."""
    picture = rgb(image)
    factor = SIDE / max(picture.shape[:2])
    size = [max(1, round(side * factor)) for side in picture.shape[1::-1]]
    return np.asarray(cv2.resize(picture, size, interpolation=_method(picture.shape, size[::-1])), np.uint8)


def framed(picture: Picture, shape: Sequence[int], box: Sequence[float] | None) -> Picture:
    """A picture with a frame around a box that is given in pixels of the original's ``shape``."""
    if box is None:
        return picture
    drawn = picture.copy()
    scale = np.array([picture.shape[1] / shape[1], picture.shape[0] / shape[0]] * 2)
    x1, y1, x2, y2 = (np.asarray(box) * scale).round().astype(int).tolist()
    cv2.rectangle(drawn, (x1, y1), (x2 - 1, y2 - 1), BOX, 2)
    return drawn


def _method(old: Sequence[int], new: Sequence[int]) -> int:
    """By area where a picture shrinks; what is enlarged by much keeps its pixels."""
    factor = new[0] / old[0]
    return cv2.INTER_AREA if factor < 1 else cv2.INTER_NEAREST if factor >= 4 else cv2.INTER_LINEAR
