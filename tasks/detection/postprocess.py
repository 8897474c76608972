"""From boxes on the canvas to boxes in original pixels, and over large pictures from windows to the whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from datamodules.common.geometry import boxes_to_original
from tasks.detection.detectors.protocol import Found
from tasks.detection.detectors.selection import LEAST_SIDE

Finder = Callable[[Tensor], list[Found]]
"""Images (B, C, H, W) to what is found on each, in their own pixels, the best first."""

#: Pixels from a window's inner border up to which a box counts as cut by it.
CUT_MARGIN = 2.0
#: Part of a cut box that a box of the same class from another window must cover to take its place.
COVERED = 0.5
#: Windows in one forward pass.
WINDOWS = 4


def take(found: Found, index: Tensor) -> Found:
    """Some of an image's objects."""
    return {key: value[index] for key, value in found.items()}


def boxes_in_original(found: Found, geometry: Tensor) -> Found:
    """Boxes in pixels of the original picture, clipped to it; those that lie outside, on the padding, are left out.

    Args:
        found: See `Found`; boxes x1 y1 x2 y2 in canvas pixels.
        geometry: float (6,), see ``datamodules.common.geometry``.
    """
    boxes = boxes_to_original(found["boxes"], geometry.to(found["boxes"]))
    inside = ((boxes[:, 2:] - boxes[:, :2]) >= LEAST_SIDE).all(1)
    return take({**found, "boxes": boxes}, inside)


def found_by_tiles(finder: Finder, image: Tensor, windows: Tensor, *, nms_iou: float, max_detections: int) -> Found:
    """What is found on a picture that is looked at window by window.

    Boxes of all windows pass one suppression within each class. A box that ends at a window's inner border is a part
    of an object; it is dropped where a box of its class from another window covers at least half of it. So windows
    should overlap by the size of the largest objects; what is larger is found in parts.

    Args:
        finder: The net.
        image: uint8 or float (C, H, W), the whole picture.
        windows: int64 (T, 4), y1 x1 y2 x2 pixel edges.
        nms_iou: Of two boxes of a class that overlap more, the lower is dropped.
        max_detections: Boxes of the picture at most.

    Returns:
        See `Found`; boxes in the picture's pixels.
    """
    height, width = image.shape[1:]
    parts: list[Found] = []
    places: list[Tensor] = []
    for window, found in _by_window(finder, image, windows.tolist()):
        top, left, bottom, right = window
        boxes = found["boxes"]
        inner = boxes.new_tensor([left > 0, top > 0, right < width, bottom < height])
        near = torch.stack([boxes[:, 0], boxes[:, 1], (right - left) - boxes[:, 2], (bottom - top) - boxes[:, 3]], 1)
        cut = ((near < CUT_MARGIN) & inner.bool()).any(1)
        parts.append({**found, "boxes": boxes + boxes.new_tensor([left, top, left, top]), "cut": cut})
        places.append(torch.full_like(found["labels"], len(places)))
    whole = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
    whole["window"] = torch.cat(places)
    whole = take(whole, batched_nms(whole["boxes"], whole["scores"], whole["labels"], nms_iou))
    whole = take(whole, ~_covered(whole))
    return {k: v[:max_detections] for k, v in whole.items() if k not in ("cut", "window")}


def _by_window(finder: Finder, image: Tensor, windows: Sequence[Sequence[int]]) -> list[tuple[Sequence[int], Found]]:
    """Each window with what is found in it; windows of one size go through the net together."""
    results: list[tuple[Sequence[int], Found]] = []
    for size in sorted({(bottom - top, right - left) for top, left, bottom, right in windows}):
        same = [w for w in windows if (w[2] - w[0], w[3] - w[1]) == size]
        for first in range(0, len(same), WINDOWS):
            group = same[first : first + WINDOWS]
            images = torch.stack([image[:, top:bottom, left:right] for top, left, bottom, right in group])
            results += zip(group, finder(images), strict=True)
    return results


def _covered(found: Found) -> Tensor:
    """Cut boxes that are part of another window's box of the same class: bool (n,)."""
    cut = found["cut"].nonzero().squeeze(1)
    covered = torch.zeros_like(found["cut"])
    if not len(cut):
        return covered
    boxes = found["boxes"]
    mine = boxes[cut].unsqueeze(1)
    inner = torch.minimum(mine[..., 2:], boxes[:, 2:]) - torch.maximum(mine[..., :2], boxes[:, :2])
    part = inner.clamp(min=0).prod(-1) / (mine[..., 2:] - mine[..., :2]).prod(-1).clamp(min=1e-9)
    other = (found["window"][cut].unsqueeze(1) != found["window"]) & (
        found["labels"][cut].unsqueeze(1) == found["labels"]
    )
    # Of two cut parts of one object the larger one stays.
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    larger = ~found["cut"] | (areas > areas[cut].unsqueeze(1))
    covered[cut] = ((part >= COVERED) & other & larger).any(1)
    return covered
