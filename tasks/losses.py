"""Classification losses, one value for each image, so that a batch's `weight` can scale them."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from datamodules.common.errors import UserError


def classification_loss(
    logits: Tensor,
    target: Tensor,
    *,
    kind: Literal["cross_entropy", "bce", "focal"] = "cross_entropy",
    label_smoothing: float = 0.0,
    class_weights: Tensor | None = None,
    focal_gamma: float = 2.0,
) -> Tensor:
    """The loss of each image, float32 (B,); its mean over the batch is torch's `reduction="mean"`, with one exception.

    The exception is cross-entropy with class weights: torch divides the batch's sum by the sum of the weights of its
    labels, here the caller divides by B, so that an image's loss does not depend on the others in its batch.

    Args:
        logits: float (B, K), of any precision; computed in float32.
        target: int64 (B,) class numbers, or float (B, K): probabilities for `cross_entropy`, 0 to 1 for each label
            otherwise.
        kind: `cross_entropy` (softmax over the classes); `bce` (a sigmoid for each class, mean over the classes, as
            Wightman et al. 2021, https://arxiv.org/abs/2110.00476, for single labels); `focal` (the same with Lin et
            al. 2017's factor (1 - p_t)^gamma, https://arxiv.org/abs/1708.02002, without its alpha).
        label_smoothing: fraction s of the target that is spread over all classes: target * (1 - s) + s / K.
        class_weights: float (K,). `cross_entropy`: as torch's `weight`. `bce` and `focal`: weights of the positive
            terms, as torch's `pos_weight`.
        focal_gamma: 0 makes `focal` the same as `bce`.
    """
    logits = logits.float()
    if kind == "cross_entropy":
        target = target.float() if target.is_floating_point() else target
        return F.cross_entropy(logits, target, class_weights, label_smoothing=label_smoothing, reduction="none")
    num_classes = logits.shape[1]
    target = target.float() if target.is_floating_point() else F.one_hot(target, num_classes).float()
    if label_smoothing:
        target = target * (1 - label_smoothing) + label_smoothing / num_classes
    per_class = F.binary_cross_entropy_with_logits(logits, target, pos_weight=class_weights, reduction="none")
    if kind == "focal":
        probability = torch.sigmoid(logits)
        of_target = probability * target + (1 - probability) * (1 - target)
        per_class = per_class * (1 - of_target) ** focal_gamma
    return per_class.mean(1)


def keep_class_weights(task: Any, class_weights: list[float] | None) -> None:
    """Keep one weight a class as the task's buffer ``loss_weights``, which no checkpoint holds.

    Raises:
        UserError: If their number is not that of the classes.
    """
    if class_weights is not None and len(class_weights) != task.num_classes:
        raise UserError(
            f"model.class_weights has {len(class_weights)} values, but there are {task.num_classes} classes."
        )
    weights = None if class_weights is None else torch.tensor(class_weights)
    task.register_buffer("loss_weights", weights, persistent=False)
