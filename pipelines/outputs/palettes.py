"""Colors of classes: uint8 (256, 3), a color for each number that a label map can hold.

Classes whose color is black are background: no color is laid over them.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from datamodules.common.batch import IGNORE

Palette = NDArray[np.uint8]
IGNORE_COLOR = (222, 222, 222)
WRONG_COLOR = (214, 39, 40)
BACKGROUND_NAMES = ("background", "_background_", "__background__", "bg")


def default_palette(num_classes: int, background: bool = True) -> Palette:
    """Colors of which each differs as much as possible from those before it, in CIELAB.

    The greedy choice of Glasbey et al. 2007, "Colour displays for categorical images"
    (https://doi.org/10.1002/col.20327), among colors neither dark, pale nor gray.

    Args:
        num_classes: Classes, at most 255.
        background: Whether class 0 is background, which is black.

    Returns:
        uint8 (256, 3): a color a class, black for numbers that are no class, light gray for 255 (ignored).

    Raises:
        ValueError: For more than 255 classes.
    """
    if not 0 <= num_classes <= IGNORE:
        raise ValueError(f"A palette has at most 255 classes, got {num_classes}.")
    palette = np.zeros((256, 3), np.uint8)
    first = int(background)
    palette[first:num_classes] = _distinct_colors()[: max(0, num_classes - first)]
    palette[IGNORE] = IGNORE_COLOR
    return palette


def class_palette(class_names: Sequence[str], class_colors: Sequence[Sequence[int]] | None = None) -> Palette:
    """The palette of a data set: its own colors, or the default ones; class 0 is black where it is background.

    Label maps have at most 255 classes; of boxes there may be more, see ``color_of``.
    """
    if class_colors is None:
        background = not class_names or class_names[0].lower() in BACKGROUND_NAMES
        return default_palette(min(len(class_names), IGNORE) or IGNORE, background)
    palette = default_palette(0)
    colors = np.asarray(class_colors[:IGNORE], np.uint8).reshape(-1, 3)
    palette[: len(colors)] = colors
    return palette


def color_of(palette: Palette, label: int) -> NDArray[np.uint8]:
    """The color of a box's class, uint8 (3,); classes from 255 on have those of the first ones again."""
    color: NDArray[np.uint8] = palette[label % IGNORE]
    return color


@functools.cache
def _distinct_colors() -> Palette:
    """uint8 (255, 3)."""
    steps = np.linspace(0, 255, 14).round()
    candidates = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(-1, 3).astype(np.uint8)
    lab = _lab(candidates)
    chroma = np.hypot(lab[:, 1], lab[:, 2])
    good = (lab[:, 0] > 44) & (lab[:, 0] < 86) & (chroma > 30) & (chroma < 84)
    candidates, lab = candidates[good], lab[good]
    taken = _lab(np.array([IGNORE_COLOR, WRONG_COLOR, (0, 0, 0), (128, 128, 128)], np.uint8))
    distance = np.linalg.norm(lab[:, None] - taken[None], axis=2).min(axis=1)
    colors = np.empty((255, 3), np.uint8)
    for number in range(255):
        best = int(distance.argmax())
        colors[number] = candidates[best]
        distance = np.minimum(distance, np.linalg.norm(lab - lab[best], axis=1))
    return colors


def _lab(colors: Palette) -> NDArray[np.float32]:
    lab: NDArray[np.float32] = cv2.cvtColor(colors[None].astype(np.float32) / 255, cv2.COLOR_RGB2LAB)[0]
    return lab
