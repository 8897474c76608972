"""From scored boxes to what is found: the best candidates, clipped, without duplicates."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torchvision.ops import batched_nms, clip_boxes_to_image

from tasks.detection.detectors.protocol import Found, Limits

LEAST_SIDE = 1e-2  # pixels; predicted boxes with a shorter side are dropped, as in torchvision's RoIHeads
LEVEL_CANDIDATES = 1000  # boxes of each map that go into the suppression


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


def best_candidates(boxes: Tensor, scores: Tensor, count: int, size: tuple[int, int], limits: Limits) -> list[Found]:
    """Of boxes float32 (B, A, 4) with scores (B, A, K), the `count` best pairs of box and class; then `best_boxes`."""
    num_classes, flat = scores.shape[2], scores.flatten(1)
    best, places = flat.topk(min(count, flat.shape[1]), 1)
    return [
        best_boxes(of_image[place // num_classes], score, place % num_classes, size, limits)
        for of_image, score, place in zip(boxes, best, places, strict=True)
    ]


def dense_detections(
    scores: Tensor,
    offsets: Tensor,
    anchors: list[Tensor],
    decode: Callable[[Tensor, Tensor], Tensor],
    size: tuple[int, int],
    limits: Limits,
) -> list[Found]:
    """Detections of a dense head: the best candidates of each map are decoded, then `best_boxes`.

    Args:
        scores: float32 (B, A, K).
        offsets: float32 (B, A, 4), what is decoded.
        anchors: float32 (A_i, 4) for each map, A in all.
        decode: offsets (n, 4) and anchors (n, 4) to boxes (n, 4).
        size: height and width of the canvas.
        limits: what is kept; above 1,000 detections, as many candidates are taken from each map.
    """
    count, num_classes = max(LEVEL_CANDIDATES, limits.max_detections), scores.shape[2]
    all_anchors = torch.cat(anchors)
    chosen, start = [], 0
    for level in scores.split([len(part) for part in anchors], 1):
        flat = level.flatten(1)
        chosen.append(flat.topk(min(count, flat.shape[1]), 1).indices + start)
        start += flat.shape[1]
    results = []
    for of_image, offset, place in zip(scores.flatten(1), offsets, torch.cat(chosen, 1), strict=True):
        anchor = place // num_classes
        boxes = decode(offset[anchor], all_anchors[anchor])
        results.append(best_boxes(boxes, of_image[place], place % num_classes, size, limits))
    return results
