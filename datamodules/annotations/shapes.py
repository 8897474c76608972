"""COCO's shapes of an image as a semantic mask: one class a pixel, or one channel a class."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from datamodules.common.batch import IGNORE


def render_shapes(shapes: dict[str, Any], num_channels: int | None) -> npt.NDArray[np.uint8]:
    """Paint a record's shapes, the first at the bottom.

    Args:
        shapes: ``size`` (height, width), ``counts`` (a list of compressed run lengths, in the order of painting) and
            ``classes`` (class of each, or its channel; crowds as -1 - class).
        num_channels: K for multi-label; None for one.

    Returns:
        uint8 (H, W) of classes, or (H, W, K) of 0 and 1; 255 where only a crowd is.
    """
    from faster_coco_eval.core import mask as library  # a compiled library; only COCO's masks need it

    height, width = shapes["size"]
    channels = 1 if num_channels is None else num_channels
    out = np.zeros((channels, width, height), np.uint8).transpose(0, 2, 1)  # columns together, as RLE has them
    for counts, class_ in zip(shapes["counts"], shapes["classes"], strict=True):
        run = {"size": [height, width], "counts": counts}
        x, y, w, h = (int(v) for v in library.toBbox(run))  # painting all of the picture takes ten times as long
        inside = library.decode(run)[y : y + h, x : x + w].view(bool)
        is_crowd = class_ < 0
        class_ = -1 - class_ if is_crowd else class_
        layer = out[0 if num_channels is None else class_]
        value = class_ if num_channels is None else 1
        np.copyto(layer[y : y + h, x : x + w], IGNORE if is_crowd else value, where=inside)
    return np.ascontiguousarray(out[0] if num_channels is None else out.transpose(1, 2, 0))
