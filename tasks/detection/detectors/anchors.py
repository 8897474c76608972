"""Anchors on the real strides of a pyramid, and the ways to count boxes from anchors and from points.

Everything here is float32 and has static shapes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from datamodules.common.errors import UserError

LARGEST_GROWTH = math.log(1000 / 16)  # a predicted side is at most so much longer than its anchor's, as in torchvision


def centers_of(boxes: Tensor) -> Tensor:
    """Middles of boxes: (..., 4) to (..., 2)."""
    return (boxes[..., :2] + boxes[..., 2:]) / 2


def sides_of(boxes: Tensor) -> Tensor:
    """Widths and heights of boxes: (..., 4) to (..., 2)."""
    return boxes[..., 2:] - boxes[..., :2]


def anchor_shapes(scales: Sequence[float], ratios: Sequence[float]) -> Tensor:
    """Widths and heights, float32 (k, 2), in strides, in the order of torchvision's `AnchorGenerator`.

    Args:
        scales: square roots of the areas, in strides.
        ratios: heights divided by widths.

    Raises:
        UserError: an empty list, or numbers that are not above 0.
    """
    for name, values in (("anchor_scales", scales), ("anchor_ratios", ratios)):
        if not values or min(values) <= 0:
            raise UserError(f"model.detector_args.{name} is {list(values)}; it needs one or more numbers above 0.")
    return torch.tensor([(scale / ratio**0.5, scale * ratio**0.5) for ratio in ratios for scale in scales])


def grid_centers(height: int, width: int, device: torch.device) -> Tensor:
    """Centers of a map's cells, float32 (height * width, 2), x y in cells, rows first."""
    y, x = (torch.arange(side, dtype=torch.float32, device=device) + 0.5 for side in (height, width))
    return torch.stack([x.repeat(height), y.repeat_interleave(width)], 1)


def grid_anchors(sizes: Sequence[tuple[int, int]], strides: Sequence[int], shapes: Tensor) -> list[Tensor]:
    """Boxes around the center of each cell of each map, float32, whatever the maps' dtype is.

    torchvision's generator takes image size // map size for the stride, which on a canvas of 100 pixels makes 25 of 32;
    it takes cells' corners for their centers, and rounds.

    Args:
        sizes: heights and widths of the maps.
        strides: of the maps, in pixels.
        shapes: float32 (k, 2), see `anchor_shapes`.

    Returns:
        For each map float32 (H_i * W_i * k, 4), rows first, x1 y1 x2 y2 in pixels.
    """
    half, anchors = shapes.float() / 2, []
    for (height, width), stride in zip(sizes, strides, strict=True):
        centers = grid_centers(height, width, shapes.device).unsqueeze(1)
        anchors.append(torch.cat([centers - half, centers + half], 2).flatten(0, 1) * stride)
    return anchors


def encode_offsets(boxes: Tensor, anchors: Tensor) -> Tensor:
    """Boxes (..., 4) counted from anchors (..., 4): shifts of the center in the anchor's sides, and logs of growth."""
    sides, of_anchor = sides_of(boxes), sides_of(anchors)
    # Not `centers_of`, so that rounding is torchvision's.
    shift = (boxes[..., :2] + sides / 2) - (anchors[..., :2] + of_anchor / 2)
    return torch.cat([shift / of_anchor, (sides / of_anchor).log()], -1)


def decode_offsets(offsets: Tensor, anchors: Tensor) -> Tensor:
    """Offsets (..., 4) from anchors (..., 4) to boxes; the inverse of `encode_offsets`, but for sides that overflow."""
    of_anchor = sides_of(anchors)
    centers = offsets[..., :2] * of_anchor + (anchors[..., :2] + of_anchor / 2)
    half = offsets[..., 2:].clamp(max=LARGEST_GROWTH).exp() * of_anchor / 2
    return torch.cat([centers - half, centers + half], -1)


def encode_distances(boxes: Tensor, points: Tensor, strides: Tensor) -> Tensor:
    """Distances (..., A, 4) of boxes' sides from points: left, top, right, bottom; negative where a point is outside.

    Args:
        boxes: (..., A, 4), x1 y1 x2 y2 in pixels.
        points: float32 (A, 2), x y in pixels.
        strides: float32 (A,), what distances are counted in.
    """
    boxes = boxes.float()
    return torch.cat([points - boxes[..., :2], boxes[..., 2:] - points], -1) / strides.unsqueeze(-1)


def decode_distances(distances: Tensor, points: Tensor, strides: Tensor) -> Tensor:
    """Distances (..., A, 4) to boxes float32 (..., A, 4), x1 y1 x2 y2 in pixels; the inverse of `encode_distances`."""
    pixels = distances.float() * strides.unsqueeze(-1)
    return torch.cat([points - pixels[..., :2], points + pixels[..., 2:]], -1)
