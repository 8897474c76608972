"""What torchvision's families share: targets, anchors on real strides, losses by image, the choice of the best boxes.

Losses here have static shapes and do not wait for the device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torchvision.ops import batched_nms, clip_boxes_to_image, sigmoid_focal_loss

from datamodules.common.errors import UserError
from tasks.detection.detectors.assign import centres_inside

LEAST_SIDE = 1e-2  # pixels; predicted boxes with a shorter side are dropped, as in torchvision's RoIHeads
LEVEL_CANDIDATES = 1000  # boxes of each map that go into the suppression


class Truth(NamedTuple):
    """A batch's annotations; M at least 1.

    Attributes:
        boxes: float32 (B, M, 4), x1 y1 x2 y2 in canvas pixels.
        labels: int64 (B, M), 0..K-1, -1 where there is no box.
        learnt: bool (B, M), boxes with an area that are no crowds.
        crowds: float32 (B, M, 4), the crowds' boxes, zeros elsewhere.
    """

    boxes: Tensor
    labels: Tensor
    learnt: Tensor
    crowds: Tensor


def read_targets(targets: Mapping[str, Tensor]) -> Truth:
    """The batch's `boxes`, `labels` and optional `iscrowd`; a row that is no box is added where M is 0."""
    boxes, labels = targets["boxes"].float(), targets["labels"]
    crowd = targets.get("iscrowd", torch.zeros_like(labels)).bool()
    if not labels.shape[1]:
        boxes, labels = boxes.new_zeros(len(boxes), 1, 4), labels.new_full((len(labels), 1), -1)
        crowd = torch.zeros_like(labels, dtype=torch.bool)
    sound = (labels >= 0) & (boxes[..., 2:] > boxes[..., :2]).all(-1)
    return Truth(boxes, labels, sound & ~crowd, boxes * (sound & crowd).unsqueeze(-1))


def in_crowd(centres: Tensor, crowds: Tensor) -> Tensor:
    """Whether points lie in crowds' boxes: float (A, 2) and (M, 4) to bool (A,)."""
    return centres_inside(centres, crowds.unsqueeze(0))[0].any(0)


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


def grid_anchors(sizes: Sequence[tuple[int, int]], strides: Sequence[int], shapes: Tensor) -> list[Tensor]:
    """Boxes around the centre of each cell of each map, float32, whatever the maps' dtype is.

    torchvision's generator takes image size // map size for the stride, which on a canvas of 100 pixels makes 25 of 32;
    it takes cells' corners for their centres, and rounds.

    Args:
        sizes: heights and widths of the maps.
        strides: of the maps, in pixels.
        shapes: float32 (k, 2), see `anchor_shapes`.

    Returns:
        For each map float32 (H_i * W_i * k, 4), rows first, x1 y1 x2 y2 in pixels.
    """
    shapes, anchors = shapes.float(), []
    for (height, width), stride in zip(sizes, strides, strict=True):
        y, x = (torch.arange(side, dtype=torch.float32, device=shapes.device) + 0.5 for side in (height, width))
        centres = torch.stack([x.repeat(height), y.repeat_interleave(width)], 1).unsqueeze(1)
        anchors.append(torch.cat([centres - shapes / 2, centres + shapes / 2], 2).flatten(0, 1) * stride)
    return anchors


def centres_of(boxes: Tensor) -> Tensor:
    """Middles of boxes: (..., 4) to (..., 2)."""
    return (boxes[..., :2] + boxes[..., 2:]) / 2


def focal_loss(
    logits: Tensor,
    classes: Tensor,
    foreground: Tensor,
    ignored: Tensor,
    *,
    alpha: float,
    gamma: float,
    class_weights: Tensor | None,
) -> Tensor:
    """Sigmoid focal loss (Lin et al. 2017, https://arxiv.org/abs/1708.02002) of each image by its foreground's number.

    Args:
        logits: float32 (B, A, K).
        classes: int64 (B, A), the class where there is foreground.
        foreground: bool (B, A).
        ignored: bool (B, A), anchors that learn no class.
        alpha: weight of the positive side, 1 - alpha that of the negative; -1 for none.
        gamma: exponent that takes the weight from what is already right.
        class_weights: float32 (K,), factors of the loss where the class is to be found, or None.

    Returns:
        float32 (B,).
    """
    goal = torch.zeros_like(logits)
    goal.scatter_(2, classes.clamp(min=0).unsqueeze(2), foreground.unsqueeze(2).to(goal.dtype))
    loss = sigmoid_focal_loss(logits, goal, alpha=alpha, gamma=gamma)
    if class_weights is not None:
        loss = torch.where(goal > 0, loss * class_weights, loss)
    return by_foreground(loss.sum(2).masked_fill(ignored, 0), foreground)


def by_foreground(loss: Tensor, foreground: Tensor) -> Tensor:
    """Sums (B, A) over each image's anchors, divided by the number of its foreground anchors, at least 1: (B,)."""
    return loss.sum(1) / foreground.sum(1).clamp(min=1)


def iou_loss(predicted: Tensor, true: Tensor, kind: Literal["iou", "giou"]) -> Tensor:
    """1 - IoU or 1 - GIoU (Rezatofighi et al. 2019, https://arxiv.org/abs/1902.09630) of boxes (..., 4) one by one.

    As torchvision's `generalized_box_iou_loss`, which indexes with masks and so waits for the device.

    Returns:
        float32 (...).
    """
    eps = 1e-7
    inner = torch.minimum(predicted[..., 2:], true[..., 2:]) - torch.maximum(predicted[..., :2], true[..., :2])
    shared = inner.clamp(min=0).prod(-1)
    areas = [(box[..., 2:] - box[..., :2]).prod(-1) for box in (predicted, true)]
    union = areas[0] + areas[1] - shared
    loss = 1 - shared / (union + eps)
    if kind == "iou":
        return loss
    outer = torch.maximum(predicted[..., 2:], true[..., 2:]) - torch.minimum(predicted[..., :2], true[..., :2])
    hull = outer.prod(-1)
    return loss + (hull - union) / (hull + eps)


def batch_means(parts: Mapping[str, Tensor], weight: Tensor | None) -> dict[str, Tensor]:
    """`loss` and its parts: means over the images of each image's own losses (B,), each scaled by its `weight` (B,)."""
    means = {name: (part if weight is None else part * weight).mean() for name, part in parts.items()}
    return {"loss": torch.stack(list(means.values())).sum(), **means}


def class_weight_tensor(class_weights: Sequence[float] | None, num_classes: int) -> Tensor | None:
    """Class weights as float32 (K,), or None.

    Raises:
        UserError: another number of weights than of classes.
    """
    if class_weights is None:
        return None
    if len(class_weights) != num_classes:
        raise UserError(f"model.class_weights has {len(class_weights)} numbers, but there are {num_classes} classes.")
    return torch.tensor(list(class_weights), dtype=torch.float32)


class Limits(NamedTuple):
    """What `detect` keeps.

    Attributes:
        score_threshold: scores must be above it.
        nms_iou: of two boxes of a class that overlap more, the lower is dropped.
        max_detections: boxes of an image at most.
    """

    score_threshold: float
    nms_iou: float
    max_detections: int


def best_boxes(
    boxes: Tensor, scores: Tensor, labels: Tensor, size: tuple[int, int], limits: Limits
) -> dict[str, Tensor]:
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


def dense_detections(
    scores: Tensor,
    offsets: Tensor,
    anchors: list[Tensor],
    decode: Callable[[Tensor, Tensor], Tensor],
    size: tuple[int, int],
    limits: Limits,
) -> list[dict[str, Tensor]]:
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
