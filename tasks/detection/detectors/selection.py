"""From scored boxes to what is found: the best candidates, clipped, without duplicates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import batched_nms, clip_boxes_to_image, nms

Found = dict[str, Tensor]
"""One image's `boxes` float32 (n, 4), x1 y1 x2 y2; `scores` float32 (n,), descending; `labels` int64 (n,), 0..K-1; and
of some families `masks` float32 (n, m, m), probabilities on a grid that fills each box."""

LEAST_SIDE = 1e-2  # pixels; predicted boxes with a shorter side are dropped, as in torchvision's RoIHeads
LEVEL_CANDIDATES = 1000  # boxes of each map that go into the suppression


@dataclass(frozen=True)
class Limits:
    """What `Detector.detect` keeps.

    Attributes:
        score_threshold: scores must be above it.
        nms_iou: of two boxes of a class that overlap more, the one of lower score is dropped.
        max_detections: boxes of an image at most.
    """

    score_threshold: float
    nms_iou: float
    max_detections: int


class Candidates(NamedTuple):
    """Scored boxes of a batch, as many for each image.

    Attributes:
        boxes: float32 (B, n, 4), x1 y1 x2 y2 in canvas pixels, not clipped.
        scores: float32 (B, n).
        labels: int64 (B, n), 0..K-1.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor


class Sources(NamedTuple):
    """All that may make boxes of one class on a batch: A anchors, cells, queries or regions an image.

    Attributes:
        boxes: float32 (B, A, 4), x1 y1 x2 y2 in canvas pixels, not clipped.
        logits: float32 (B, A), of the class.
        scores: float32 (B, A), by which boxes are ranked.
        regions: float32 (B, A, 4), where the second stage looked; None for families of one stage.
    """

    boxes: Tensor
    logits: Tensor
    scores: Tensor
    regions: Tensor | None = None


def best_boxes(boxes: Tensor, scores: Tensor, labels: Tensor, size: tuple[int, int], limits: Limits) -> Found:
    """One image's detections after clipping and a suppression within each class, the best first.

    Args:
        boxes: float32 (n, 4), x1 y1 x2 y2 in pixels.
        scores: float32 (n,).
        labels: int64 (n,).
        size: height and width of the canvas.
        limits: what is kept.

    Returns:
        `boxes`, `scores` and `labels` of those that are left.
    """
    boxes = clip_boxes_to_image(boxes, size)
    keep = (scores > limits.score_threshold) & ((boxes[:, 2:] - boxes[:, :2]) >= LEAST_SIDE).all(1)
    boxes, scores, labels = boxes[keep], scores[keep], labels[keep]
    keep = batched_nms(boxes, scores, labels, limits.nms_iou)[: limits.max_detections]
    return {"boxes": boxes[keep], "scores": scores[keep], "labels": labels[keep]}


def best_candidates(boxes: Tensor, scores: Tensor, count: int) -> Candidates:
    """Of boxes float32 (B, A, 4) with scores (B, A, K), the `count` best pairs of box and class, the best first."""
    num_classes, flat = scores.shape[2], scores.flatten(1)
    best, places = flat.topk(least(count, flat.shape[1]), 1)
    return Candidates(rows_of(boxes, places // num_classes), best, places % num_classes)


def dense_candidates(
    scores: Tensor,
    offsets: Tensor,
    anchors: list[Tensor],
    decode: Callable[[Tensor, Tensor], Tensor],
    limits: Limits,
) -> Candidates:
    """The best candidates of each map of a dense head, decoded.

    Args:
        scores: float32 (B, A, K).
        offsets: float32 (B, A, 4), what is decoded.
        anchors: float32 (A_i, 4) for each map, A in all.
        decode: offsets (..., 4) and anchors (..., 4) to boxes (..., 4).
        limits: what is kept; above 1,000 detections, as many candidates are taken from each map.
    """
    count, num_classes = max(LEVEL_CANDIDATES, limits.max_detections), scores.shape[2]
    chosen, start = [], 0
    for level in scores.split([len(part) for part in anchors], 1):
        flat = level.flatten(1)
        chosen.append(flat.topk(least(count, flat.shape[1]), 1).indices + start)
        start += flat.shape[1]
    places = torch.cat(chosen, 1)
    anchor = places // num_classes
    boxes = decode(rows_of(offsets, anchor), torch.cat(anchors)[anchor])
    return Candidates(boxes, scores.flatten(1).gather(1, places), places % num_classes)


# In tensors of one shape for all images, for an export.


def least(count: int, length: int) -> int:
    """The smaller one; of a length that is open in a traced graph, too."""
    return torch.sym_min(count, length) if isinstance(length, torch.SymInt) else min(count, int(length))


def rows_of(values: Tensor, places: Tensor) -> Tensor:
    """Values (B, A, D) at places (B, n): (B, n, D)."""
    return values.gather(1, places.unsqueeze(2).expand(-1, -1, values.shape[2]))


def found_in_tensors(
    candidates: Candidates, size: tuple[int, int], limits: Limits, suppress: bool, num_classes: int
) -> dict[str, Tensor]:
    """As `best_boxes`, for a batch and in tensors; see `Detector.in_tensors`."""
    boxes = clip_boxes_to_image(candidates.boxes, size)
    sides = boxes[..., 2:] - boxes[..., :2]
    there = (candidates.scores > limits.score_threshold) & (sides >= LEAST_SIDE).all(2)
    scores, labels = candidates.scores, candidates.labels
    decoded = {"decoded_boxes": candidates.boxes, "decoded_scores": scores, "decoded_labels": labels}
    if suppress:
        there = there & unsuppressed(boxes, scores, labels, there, limits.nms_iou, num_classes)
        count = least(limits.max_detections, scores.shape[1])
        places = scores.masked_fill(~there, -1.0).topk(count, 1).indices
        boxes, scores, labels, there = rows_of(boxes, places), *(x.gather(1, places) for x in (scores, labels, there))
    found = {
        "boxes": boxes.masked_fill(~there.unsqueeze(2), 0.0),
        "scores": scores.masked_fill(~there, 0.0),
        "labels": labels.masked_fill(~there, -1),
    }
    return found | decoded


def unsuppressed(boxes: Tensor, scores: Tensor, groups: Tensor, there: Tensor, iou: float, num_groups: int) -> Tensor:
    """Boxes that none of a higher score in their image and group overlaps by more: bool (B, n).

    Args:
        boxes: float32 (B, n, 4), clipped.
        scores: float32 (B, n).
        groups: int64 (B, n), below `num_groups`.
        there: bool (B, n), which boxes count.
        iou: from which on a box is dropped.
        num_groups: G.
    """
    # One suppression of all: boxes of other images and groups lie elsewhere, those that do not count on one another.
    image = torch.arange(boxes.shape[0], device=boxes.device).unsqueeze(1)
    apart = (boxes.max() + 1) * (image * num_groups + groups).to(boxes.dtype).unsqueeze(2)
    nowhere = boxes.new_tensor([-2.0, -2.0, -1.0, -1.0])
    placed = torch.where(there.unsqueeze(2), boxes + apart, nowhere).flatten(0, 1)
    kept = nms(placed, scores.masked_fill(~there, -1.0).flatten(), iou)
    flags = torch.zeros_like(placed[:, 0]).scatter(0, kept, 1.0)
    return (flags > 0).view_as(there) & there
