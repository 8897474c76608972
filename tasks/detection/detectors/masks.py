"""Masks of regions: the mask head's targets, and the way from its small grids to pixels and run-length encodings."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.ops import roi_align

from datamodules.common import rle

CHUNK_BYTES = 1 << 26  # of objects' whole masks that are cropped at once


def mask_targets(layers: Tensor, numbers: Tensor, regions: Tensor, size: int) -> Tensor:
    """What the mask head is to predict: each region's object, cropped by RoI align.

    Equal to torchvision's `project_masks_on_boxes` on masks of all objects, but only those of the objects that are
    asked for are made, and a few at a time.

    Args:
        layers: int16 (L, H, W), object numbers.
        numbers: int64 (S,), the object that is looked for in each region.
        regions: float32 (S, 4), x1 y1 x2 y2 in pixels.
        size: cells along each side.

    Returns:
        float32 (S, size, size), fractions of the cells that the object covers.
    """
    targets = regions.new_zeros(len(regions), size, size)
    objects, place = numbers.unique(return_inverse=True)
    step = max(1, CHUNK_BYTES // (4 * layers[0].numel()))
    for start in range(0, len(objects), step):
        some = objects[start : start + step].to(layers.dtype)
        masks = (layers == some.view(-1, 1, 1, 1)).any(1, keepdim=True).to(regions.dtype)
        here = ((place >= start) & (place < start + step)).nonzero().squeeze(1)
        rois = torch.cat([(place[here] - start).unsqueeze(1).to(regions.dtype), regions[here]], 1)
        targets[here] = roi_align(masks, rois, size).squeeze(1)
    return targets


def mask_windows(
    probs: Tensor, boxes: Tensor, height: int, width: int, threshold: float = 0.5
) -> Iterator[tuple[int, int, NDArray[np.bool_]]]:
    """Each object's pixels inside its box: those whose center has at least the threshold.

    The probabilities are taken between the cells' centers linearly, and as 0 around the box, as Detectron2 and
    `torch.nn.functional.grid_sample` do. (torchvision's `paste_masks_in_image` rounds the boxes.)

    Args:
        probs: float (n, m, m), as from `MaskRCNN.detect`.
        boxes: float (n, 4), x1 y1 x2 y2 in pixels of the picture.
        height: of the picture.
        width: of the picture.
        threshold: from which on a pixel is the object's.

    Yields:
        Top row and left column of the window, and bool (h, w).
    """
    grids = probs.float().cpu().numpy()
    for grid, (x1, y1, x2, y2) in zip(grids, boxes.double().cpu().tolist(), strict=True):
        top, rows = _between(y1, y2, height, len(grid))
        left, columns = _between(x1, x2, width, len(grid))
        yield top, left, rows @ grid @ columns.T >= threshold


def _between(low: float, high: float, side: int, cells: int) -> tuple[int, NDArray[np.float32]]:
    """The first pixel whose center is between two edges, and how much of each cell each pixel has: (pixels, cells)."""
    first, last = max(0, math.ceil(low - 0.5)), min(side, math.floor(high - 0.5) + 1)
    place = (np.arange(first, last) + 0.5 - low) / max(high - low, 1e-6) * cells - 0.5
    return first, np.maximum(0, 1 - np.abs(place[:, None] - np.arange(cells))).astype(np.float32)


def encode_masks(probs: Tensor, boxes: Tensor, height: int, width: int, threshold: float = 0.5) -> list[dict[str, Any]]:
    """Masks as COCO's compressed RLE (`size`, `counts`), without making whole ones; see `mask_windows`."""
    total, masks = height * width, []
    for top, left, window in mask_windows(probs, boxes, height, width, threshold):
        columns, rows = np.nonzero(window.T)  # run lengths go down the columns
        pixels = (left + columns) * height + top + rows
        starts = pixels[np.diff(pixels, prepend=-2) > 1]
        ends = pixels[np.diff(pixels, append=total + 1) > 1] + 1
        edges = np.stack([starts, ends], 1).ravel()
        counts = np.diff(edges, prepend=0, append=total)
        if len(edges) and edges[-1] == total:
            counts = counts[:-1]
        masks.append(rle.compressed({"size": [height, width], "counts": counts.tolist()}))
    return masks


def paste_masks(probs: Tensor, boxes: Tensor, height: int, width: int, threshold: float = 0.5) -> Tensor:
    """Masks of whole pictures, bool (n, height, width) on the CPU: a byte for each pixel of each object.

    For many objects on large pictures take `encode_masks`. The arguments are those of `mask_windows`.
    """
    masks = torch.zeros(len(probs), height, width, dtype=torch.bool)
    for mask, (top, left, window) in zip(masks, mask_windows(probs, boxes, height, width, threshold), strict=True):
        mask[top : top + window.shape[0], left : left + window.shape[1]] = torch.from_numpy(window)
    return masks
