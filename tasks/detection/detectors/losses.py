"""The detectors' losses: focal, IoU, distribution focal, and means over images.

All have static shapes, and none waits for the device.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from datamodules.common.errors import UserError


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


def batch_means(parts: Mapping[str, Tensor], weight: Tensor | None) -> dict[str, Tensor]:
    """`loss` and its terms: means over the images of each image's own losses (B,), each scaled by its `weight` (B,)."""
    means = {name: (part if weight is None else part * weight).mean() for name, part in parts.items()}
    return {"loss": torch.stack(list(means.values())).sum(), **means}


def by_foreground(loss: Tensor, foreground: Tensor) -> Tensor:
    """Sums (B, A) over each image's anchors, divided by the number of its foreground anchors, at least 1: (B,)."""
    return loss.sum(1) / foreground.sum(1).clamp(min=1)


def weighted_where_target(loss: Tensor, target: Tensor, class_weights: Tensor | None) -> Tensor:
    """A loss (..., K), multiplied by its class's weight where the class is the target (above 0)."""
    if class_weights is None:
        return loss
    return torch.where(target > 0, loss * class_weights, loss)


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
        class_weights: float32 (K,), factors of the loss where the class is the target, or None.

    Returns:
        float32 (B,).
    """
    target = torch.zeros_like(logits)
    target.scatter_(2, classes.clamp(min=0).unsqueeze(2), foreground.unsqueeze(2).to(target.dtype))
    loss = sigmoid_focal_loss(logits, target, alpha=alpha, gamma=gamma)
    loss = weighted_where_target(loss, target, class_weights)
    return by_foreground(loss.sum(2).masked_fill(ignored, 0), foreground)


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
    hull = _hull(predicted, true).prod(-1)
    return loss + (hull - union) / (hull + eps)


def complete_iou_loss(predicted: Tensor, true: Tensor) -> Tensor:
    """1 - CIoU (Zheng et al. 2020, https://arxiv.org/abs/1911.08287) of boxes (..., 4) one by one; all sides above 0.

    As torchvision's `complete_box_iou_loss`, which indexes with masks and so waits for the device.

    Returns:
        float32 (...).
    """
    loss = iou_loss(predicted, true, "iou")
    # In this order, in which the gradients of earlier versions were summed up.
    hull = _hull(predicted, true)
    apart = (predicted[..., :2] + predicted[..., 2:] - true[..., :2] - true[..., 2:]) / 2
    angles = [torch.atan2(*(box[..., 2:] - box[..., :2]).unbind(-1)) for box in (predicted, true)]
    shape = (angles[0] - angles[1]).square() * (4 / math.pi**2)
    with torch.no_grad():
        share = shape / (loss + shape + 1e-7)
    return loss + apart.square().sum(-1) / (hull.square().sum(-1) + 1e-7) + share * shape


def _hull(first: Tensor, second: Tensor) -> Tensor:
    """Width and height of the smallest box around both: (..., 2)."""
    return torch.maximum(first[..., 2:], second[..., 2:]) - torch.minimum(first[..., :2], second[..., :2])


def expected_distances(distances: Tensor) -> Tensor:
    """Means of the distributions: logits (..., bins) to float32 (...), 0 .. bins - 1 cells."""
    probability = distances.float().softmax(-1)
    bins = torch.arange(distances.shape[-1], dtype=torch.float32, device=distances.device)
    return (probability * bins).sum(-1)


def distribution_focal_loss(distances: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of the two bins beside the target, weighted by their nearness.

    Equation 6 of Li et al. 2020, https://arxiv.org/abs/2006.04388.

    Args:
        distances: float (..., bins), logits.
        target: float32 (...), clamped to 0 .. bins - 1.

    Returns:
        float32 (...).
    """
    last = distances.shape[-1] - 1
    target = target.clamp(0, last)
    left = target.floor().clamp(max=last - 1)
    logs = distances.float().log_softmax(-1)
    both = torch.stack([left, left + 1], -1).long()
    nearness = torch.stack([left + 1 - target, target - left], -1)
    return -(logs.gather(-1, both) * nearness).sum(-1)
