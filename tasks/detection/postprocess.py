"""From boxes on the canvas to boxes in original pixels, and over large pictures from windows to the whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from datamodules.common.errors import UserError
from datamodules.common.geometry import boxes_to_original
from tasks.detection.detectors.anchors import sides_of
from tasks.detection.detectors.selection import LEAST_SIDE, Found

Finder = Callable[[Tensor], list[Found]]
"""Images (B, C, H, W) to what is found on each, in their own pixels, the best first."""

#: Pixels from a window's inner border up to which a box counts as truncated by it.
BORDER_MARGIN = 2.0
#: Fraction of a truncated box that a box of the same class from another window must cover to take its place.
COVERED = 0.5
#: Windows in one forward pass.
WINDOWS = 4


def take(found: Found, index: Tensor) -> Found:
    """Some of an image's objects."""
    return {key: value[index] for key, value in found.items()}


def check_limits(min_score: float, nms_iou: float, score_threshold: float | str, max_detections: int) -> None:
    """Refuse limits out of range.

    Raises:
        UserError: Naming the argument.
    """
    for key, value in (("min_score", min_score), ("nms_iou", nms_iou), ("score_threshold", score_threshold)):
        if not isinstance(value, str) and not 0 <= value <= 1:
            raise UserError(f"model.{key} is {value}; it must be between 0 and 1.")
    if not isinstance(score_threshold, str) and score_threshold < min_score:
        raise UserError(
            f"model.score_threshold is {score_threshold}, below model.min_score, {min_score}: lower min_score too."
        )
    if max_detections < 1:
        raise UserError(f"model.max_detections is {max_detections}; it must be at least 1.")


def found_of_images(columns: dict[str, Tensor]) -> list[Found]:
    """Each image's objects, the best first, of what ``Detector.in_tensors`` gives."""
    images = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    found = [take(image, image["labels"] >= 0) for image in images]
    return [take(image, image["scores"].argsort(descending=True, stable=True)) for image in found]


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

    Boxes of all windows pass one suppression within each class. A box that ends at a window's inner border is
    truncated; it is dropped where a box of its class from another window covers at least half of it. So windows
    should overlap by the size of the largest objects; what is larger is found in pieces.

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
    of_windows: list[Found] = []
    places: list[Tensor] = []
    for window, found in _by_window(finder, image, windows.tolist()):
        top, left, bottom, right = window
        boxes = found["boxes"]
        inner = boxes.new_tensor([left > 0, top > 0, right < width, bottom < height])
        far = boxes.new_tensor([right - left, bottom - top])
        near = torch.cat([boxes[:, :2], far - boxes[:, 2:]], 1)  # distances from the left, top, right and bottom
        truncated = ((near < BORDER_MARGIN) & inner.bool()).any(1)
        of_windows.append({**found, "boxes": boxes + boxes.new_tensor([left, top, left, top]), "truncated": truncated})
        places.append(torch.full_like(found["labels"], len(places)))
    whole = {key: torch.cat([part[key] for part in of_windows]) for key in of_windows[0]}
    whole["window"] = torch.cat(places)
    whole = take(whole, batched_nms(whole["boxes"], whole["scores"], whole["labels"], nms_iou))
    whole = take(whole, ~_covered(whole))
    return {k: v[:max_detections] for k, v in whole.items() if k not in ("truncated", "window")}


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
    """Truncated boxes of which another window has more: bool (n,)."""
    truncated = found["truncated"].nonzero().squeeze(1)
    covered = torch.zeros_like(found["truncated"])
    if not len(truncated):
        return covered
    boxes, areas = found["boxes"], sides_of(found["boxes"]).prod(1)
    mine, area = boxes[truncated].unsqueeze(1), areas[truncated].unsqueeze(1)
    shared = torch.minimum(mine[..., 2:], boxes[:, 2:]) - torch.maximum(mine[..., :2], boxes[:, :2])
    fraction = shared.clamp(min=0).prod(-1) / area.clamp(min=1e-9)
    other_window = found["window"][truncated].unsqueeze(1) != found["window"]
    same_class = found["labels"][truncated].unsqueeze(1) == found["labels"]
    # Of two truncated boxes of one object the larger one stays.
    stays = ~found["truncated"] | (areas > area)
    covered[truncated] = ((fraction >= COVERED) & other_window & same_class & stays).any(1)
    return covered
