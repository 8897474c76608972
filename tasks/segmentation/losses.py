"""Losses of segmentation_models_pytorch (SMP), one value for each image, so that a batch's `weight` can scale them."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from functools import reduce
from typing import Literal

import torch
import torch.nn.functional as F
from segmentation_models_pytorch.losses import LovaszLoss
from segmentation_models_pytorch.losses._functional import focal_loss_with_logits, soft_tversky_score
from torch import Tensor

from datamodules.common.errors import UserError

Kind = Literal["multiclass", "binary", "multilabel"]

LOSSES = ("cross_entropy", "focal", "dice", "jaccard", "tversky", "lovasz")
IGNORE = 255


def check_losses(losses: Mapping[str, float]) -> None:
    """Refuse what cannot be a weighted sum of losses.

    Args:
        losses: Weights by name, as `model.losses` has them.

    Raises:
        UserError: There is no loss, an unknown one (with the nearest right name), a weight that is negative, infinite
            or NaN, or no weight above 0.
    """
    for name, weight in losses.items():
        if name not in LOSSES:
            near = difflib.get_close_matches(name, LOSSES, n=1)
            hint = f"Did you mean {near[0]}? " if near else ""
            raise UserError(f"model.losses has '{name}', which is no loss. {hint}There are: {', '.join(LOSSES)}.")
        if not 0 <= weight < math.inf:
            raise UserError(f"model.losses.{name} is {weight}; a weight is a finite number of at least 0.")
    if not any(losses.values()):
        shown = f"only weights of 0 ({', '.join(losses)})" if losses else "no loss"
        raise UserError(f"model.losses has {shown}, so there is nothing to learn from. For example: cross_entropy: 1.")


def segmentation_loss(
    logits: Tensor,
    mask: Tensor,
    *,
    kind: Kind,
    losses: Mapping[str, float],
    soft_mask: Tensor | None = None,
    weight: Tensor | None = None,
    class_weights: Tensor | None = None,
    label_smoothing: float = 0.0,
    focal_gamma: float = 2.0,
    tversky_alpha: float = 0.3,
    tversky_beta: float = 0.7,
) -> dict[str, Tensor]:
    """The weighted sum of some losses, and each of them by name where there are several.

    Each is the mean over the batch of each image's loss times its `weight`, and an image's loss does not depend on the
    others in its batch: without class weights it is what SMP gives for a batch of this image alone (for cross-entropy
    what torch gives; for dice and its kin but for the divisor). Pixels of 255 take no part. An image without any other
    pixel has a loss and gradients of exactly 0.

    - `cross_entropy`: a sigmoid for each map with `binary` and `multilabel`. The sum of w_y * -log p_y over the image's
      valid pixels, divided by their number and not, as torch does, by the sum of their weights: let these average to 1.
    - `focal` (Lin et al. 2017, https://arxiv.org/abs/1708.02002, without its alpha): a sigmoid for each class, one
      against the rest, the mean over classes and valid pixels.
    - `dice`, `jaccard`, `tversky`: 1 - score of each class, summed over the image's valid pixels and then averaged over
      the classes that the image has. (SMP divides by all K, so that its losses shrink with the number of classes.)
      Tversky (Salehi et al. 2017, https://arxiv.org/abs/1706.05721) is
      TP / (TP + alpha FP + beta FN); the defaults are theirs. Soft targets: the intersection is (p + t - |p - t|) / 2
      (Wang et al. 2023, https://arxiv.org/abs/2302.05666), so that the loss is least where p = t.
    - `lovasz` (Berman et al. 2018, https://arxiv.org/abs/1705.08790): Lovász softmax, the mean over the classes that
      the image has; the Lovász hinge of all maps together for `binary` and `multilabel`. It sorts the pixels of each
      class, so it is slow, it waits for the device, and it knows no class weights, smoothing or soft targets.

    Args:
        logits: float (B, K, H, W), of any precision, computed in float32; (B, 1, H, W) for `binary`.
        mask: uint8 or int64 (B, H, W), 0 to K - 1 (`binary`: 0 or 1) or 255; `multilabel`: (B, K, H, W) of 0, 1, 255.
        kind: One class a pixel (`multiclass`), one map (`binary`) or K maps that may overlap (`multilabel`).
        losses: Weight of each loss by name, as `check_losses` passes them; one with a weight of 0 is not computed.
        soft_mask: float (B, K, H, W), probabilities that are the targets in place of `mask`'s, of which only 255 counts
            then. `binary`: (B, 1, H, W), or (B, 2, H, W) with the second map's taken.
        weight: float (B,), scales each image's loss.
        class_weights: float (K,), `binary`: (2,). They weight the pixels of a class in `cross_entropy` and `focal` (the
            maps, for `multilabel`), and the classes in the mean of `dice`, `jaccard` and `tversky` (divided by the
            sum of those in it, so without effect on the one map of `binary`).
        label_smoothing: Share s of the target that `cross_entropy` spreads over all classes: t * (1 - s) + s / K, with
            K = 2 for each map of `binary` and `multilabel`.
        focal_gamma: 0 makes `focal` a binary cross-entropy.
        tversky_alpha: Weight of false positives.
        tversky_beta: Weight of false negatives.

    Returns:
        float32 scalars: `loss`, and where several losses have a weight, each by name, before its weight.

    Raises:
        UserError: `lovasz` with soft targets.
    """
    names = [name for name, value in losses.items() if value]
    if soft_mask is not None and "lovasz" in names:
        raise UserError(
            "model.losses has lovasz, which asks of each pixel whether it is of a class or not, but the data has soft"
            " masks. Take lovasz out (jaccard has the same aim), or use hard masks."
        )
    logits = logits.float()
    multiclass, soft = kind == "multiclass", soft_mask is not None
    if kind == "binary":
        mask = mask.unsqueeze(1)
    valid = (mask != IGNORE).unsqueeze(1) if multiclass else mask != IGNORE  # broadcasts against the logits
    overlaps = {"dice": (0.5, 0.5), "jaccard": (1.0, 1.0), "tversky": (tversky_alpha, tversky_beta)}
    target = probability = logits.new_zeros(())
    if soft or not set(names) <= ({"cross_entropy", "lovasz"} if multiclass else {"lovasz"}):
        target = _target_maps(mask, soft_mask, valid, logits.shape[1], kind)
    if set(names) & set(overlaps):
        probability = (logits.softmax(1) if multiclass else logits.sigmoid()) * valid

    parts: dict[str, Tensor] = {}
    for name in names:
        if name in overlaps:
            weights = None if kind == "binary" else class_weights
            parts[name] = _overlap_loss(probability, target, *overlaps[name], weights)
        elif name == "lovasz":
            # One image at a time: the mean that SMP takes over images fails for one without valid pixels, which gives
            # an empty tensor, whose sum is 0, as are its gradients.
            lovasz = LovaszLoss(kind, ignore_index=IGNORE)
            parts[name] = torch.stack([lovasz(logits[i : i + 1], mask[i : i + 1]).sum() for i in range(len(mask))])
        elif name == "cross_entropy" and multiclass:
            labels, ignore = (target, -100) if soft else (mask.long(), IGNORE)
            value = F.cross_entropy(logits, labels, class_weights, None, ignore, None, "none", label_smoothing)
            # With hard targets torch gives ignored pixels a loss of 0 itself.
            parts[name] = _mean_of_valid(value.unsqueeze(1) if soft else value, valid, zero=not soft)
        else:
            if name == "focal":
                value = focal_loss_with_logits(logits, target, gamma=focal_gamma, alpha=None, reduction="none")
                value = value.mean(1, keepdim=True) if multiclass else value
            else:
                smooth = target * (1 - label_smoothing) + label_smoothing / 2
                value = F.binary_cross_entropy_with_logits(logits, smooth, reduction="none")
            if class_weights is not None:
                value = value * _pixel_weights(target, class_weights, kind)
            parts[name] = _mean_of_valid(value, valid)

    means = {name: (part if weight is None else part * weight).mean() for name, part in parts.items()}
    total = reduce(torch.add, [losses[name] * value for name, value in means.items()])
    return {"loss": total} | (means if len(means) > 1 else {})


def _target_maps(mask: Tensor, soft_mask: Tensor | None, valid: Tensor, num_maps: int, kind: Kind) -> Tensor:
    """Targets as float32 (B, K, H, W), 0 at ignored pixels."""
    if soft_mask is not None:
        return soft_mask[:, -num_maps:] * valid.float()
    if kind != "multiclass":
        return (mask == 1).float()
    # F.one_hot would make int64 of all first.
    classes = torch.arange(num_maps, device=mask.device, dtype=mask.dtype)
    return (mask.unsqueeze(1) == classes.view(1, -1, 1, 1)).float()


def _mean_of_valid(value: Tensor, valid: Tensor, zero: bool = False) -> Tensor:
    """Mean of each image's valid values, (B,); 0, with gradients of 0, where there are none.

    With `zero` all others are 0 already; `value` may lack the axis of classes then.
    """
    value = value if zero else torch.where(valid, value, 0.0)
    return value.flatten(1).sum(1) / valid.flatten(1).sum(1).clamp_min(1)


def _overlap_loss(
    probability: Tensor, target: Tensor, alpha: float, beta: float, class_weights: Tensor | None
) -> Tensor:
    """1 - Tversky score, mean over the classes that an image has, (B,); both are 0 at ignored pixels."""
    loss: Tensor = 1 - soft_tversky_score(probability, target, alpha, beta, dims=(2, 3))
    weights = (target.sum((2, 3)) > 0).float() * (1.0 if class_weights is None else class_weights)
    return (loss * weights).sum(1) / weights.sum(1).clamp_min(1e-9)


def _pixel_weights(target: Tensor, class_weights: Tensor, kind: Kind) -> Tensor:
    """Weights of the classes at each pixel, broadcast against (B, K, H, W)."""
    if kind == "binary":
        return class_weights[0] * (1 - target) + class_weights[1] * target
    weights = class_weights.view(1, -1, 1, 1)
    return weights if kind == "multilabel" else (target * weights).sum(1, keepdim=True)
