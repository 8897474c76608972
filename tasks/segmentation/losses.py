"""Losses of segmentation_models_pytorch (SMP), one value for each image, so that a batch's `weight` can scale them."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import Literal

import torch
import torch.nn.functional as F
from segmentation_models_pytorch.losses import LovaszLoss
from torch import Tensor

from datamodules.common.batch import IGNORE
from datamodules.common.errors import UserError

Kind = Literal["multiclass", "binary", "multilabel"]

LOSSES = ("cross_entropy", "focal", "dice", "jaccard", "tversky", "lovasz")


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


def check_loss_arguments(
    losses: Mapping[str, float],
    *,
    label_smoothing: float,
    focal_gamma: float,
    tversky_alpha: float,
    tversky_beta: float,
) -> None:
    """Refuse arguments out of range, and those that none of the losses uses.

    Raises:
        UserError: Naming the argument.
    """
    if not 0 <= label_smoothing < 1:
        raise UserError(f"model.label_smoothing is {label_smoothing}; it must be at least 0 and below 1.")
    if focal_gamma < 0:
        raise UserError(f"model.focal_gamma is {focal_gamma}; it must be 0 (off) or more.")
    for key, value, default, user in (
        ("label_smoothing", label_smoothing, 0.0, "cross_entropy"),
        ("focal_gamma", focal_gamma, 2.0, "focal"),
        ("tversky_alpha", tversky_alpha, 0.3, "tversky"),
        ("tversky_beta", tversky_beta, 0.7, "tversky"),
    ):
        if value != default and user not in losses:
            raise UserError(
                f"model.{key} is {value}, but only {user} uses it, which is not among model.losses"
                f" ({', '.join(losses)})."
            )


def presence_loss(logits: Tensor, mask: Tensor, weight: Tensor | None) -> Tensor:
    """Binary cross-entropy of which classes an image holds, the mean over classes and weighted images; a scalar.

    Args:
        logits: float32 (B, K).
        mask: uint8 or int64 (B, H, W), class numbers and 255, or (B, K, H, W) of 0, 1 and 255.
        weight: float (B,), scales each image's loss.
    """
    if mask.ndim == 4:
        present = (mask == 1).flatten(2).any(2)
    else:
        classes = torch.arange(logits.shape[1], device=mask.device, dtype=mask.dtype)
        present = torch.stack([(mask == k).flatten(1).any(1) for k in classes], dim=1)
    loss = F.binary_cross_entropy_with_logits(logits, present.float(), reduction="none").mean(1)
    return (loss if weight is None else loss * weight).mean()


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
        label_smoothing: Fraction s of the target that `cross_entropy` spreads over all classes: t * (1 - s) + s / K,
            with K = 2 for each map of `binary` and `multilabel`.
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
    pixels = Pixels(logits.float(), mask.unsqueeze(1) if kind == "binary" else mask, soft_mask, kind)
    overlaps = {"dice": (0.5, 0.5), "jaccard": (1.0, 1.0), "tversky": (tversky_alpha, tversky_beta)}
    means: dict[str, Tensor] = {}
    for name in names:
        if name in overlaps:
            loss = _overlap_loss(pixels, *overlaps[name], None if kind == "binary" else class_weights)
        elif name == "lovasz":
            loss = _lovasz_loss(pixels)
        elif name == "focal":
            loss = _focal_loss(pixels, focal_gamma, class_weights)
        else:
            loss = _cross_entropy(pixels, label_smoothing, class_weights)
        means[name] = (loss if weight is None else loss * weight).mean()
    total = reduce(torch.add, [losses[name] * value for name, value in means.items()])
    return {"loss": total} | (means if len(means) > 1 else {})


@dataclass(frozen=True)
class Pixels:
    """What the losses compare; what only some of them need is computed once, at the first use.

    Attributes:
        logits: float32 (B, K, H, W).
        mask: uint8 or int64 (B, H, W) for `multiclass`, else (B, K, H, W) of 0, 1 and 255.
        soft_mask: See `segmentation_loss`.
        kind: See `segmentation_loss`.
    """

    logits: Tensor
    mask: Tensor
    soft_mask: Tensor | None
    kind: Kind

    @cached_property
    def valid(self) -> Tensor:
        """Pixels that are not ignored: bool, broadcasts against the logits."""
        valid = self.mask != IGNORE
        return valid.unsqueeze(1) if self.kind == "multiclass" else valid

    @cached_property
    def target(self) -> Tensor:
        """Targets as float32 (B, K, H, W), 0 at ignored pixels."""
        if self.soft_mask is not None:
            return self.soft_mask[:, -self.logits.shape[1] :] * self.valid.float()
        if self.kind != "multiclass":
            return (self.mask == 1).float()
        # F.one_hot would make int64 of all first.
        classes = torch.arange(self.logits.shape[1], device=self.mask.device, dtype=self.mask.dtype)
        return (self.mask.unsqueeze(1) == classes.view(1, -1, 1, 1)).float()

    @cached_property
    def probability(self) -> Tensor:
        """float32 (B, K, H, W), 0 at ignored pixels."""
        probability = self.logits.softmax(1) if self.kind == "multiclass" else self.logits.sigmoid()
        return probability * self.valid

    def weights(self, class_weights: Tensor) -> Tensor:
        """Weights of the classes at each pixel, broadcast against (B, K, H, W)."""
        if self.kind == "binary":
            return class_weights[0] * (1 - self.target) + class_weights[1] * self.target
        weights = class_weights.view(1, -1, 1, 1)
        return weights if self.kind == "multilabel" else (self.target * weights).sum(1, keepdim=True)

    def mean(self, value: Tensor) -> Tensor:
        """Mean of each image's valid values, (B,); 0, with gradients of 0, where there are none.

        Args:
            value: Of the shape of the logits, or with one class.
        """
        return self.mean_of_sum(torch.where(self.valid, value, 0.0))

    def mean_of_sum(self, value: Tensor) -> Tensor:
        """As `mean`, of values that are 0 at ignored pixels; they may lack the axis of classes."""
        return value.flatten(1).sum(1) / self.valid.flatten(1).sum(1).clamp_min(1)


def _cross_entropy(pixels: Pixels, label_smoothing: float, class_weights: Tensor | None) -> Tensor:
    """See `segmentation_loss`, (B,)."""
    if pixels.kind == "multiclass":
        hard = pixels.soft_mask is None
        labels, ignore = (pixels.mask.long(), IGNORE) if hard else (pixels.target, -100)
        value = F.cross_entropy(pixels.logits, labels, class_weights, None, ignore, None, "none", label_smoothing)
        # With hard targets torch gives ignored pixels a loss of 0 itself.
        return pixels.mean_of_sum(value) if hard else pixels.mean(value.unsqueeze(1))
    smooth = pixels.target * (1 - label_smoothing) + label_smoothing / 2
    value = F.binary_cross_entropy_with_logits(pixels.logits, smooth, reduction="none")
    return pixels.mean(value if class_weights is None else value * pixels.weights(class_weights))


def _focal_loss(pixels: Pixels, gamma: float, class_weights: Tensor | None) -> Tensor:
    """(1 - p)^gamma times the binary cross-entropy -log p of each class, without alpha, as SMP has it; (B,)."""
    entropy = F.binary_cross_entropy_with_logits(pixels.logits, pixels.target, reduction="none")
    value = (1.0 - torch.exp(-entropy)).pow(gamma) * entropy
    if pixels.kind == "multiclass":
        value = value.mean(1, keepdim=True)
    return pixels.mean(value if class_weights is None else value * pixels.weights(class_weights))


def _overlap_loss(pixels: Pixels, alpha: float, beta: float, class_weights: Tensor | None) -> Tensor:
    """1 - Tversky score, mean over the classes that an image has, (B,)."""
    predicted, actual = pixels.probability.sum((2, 3)), pixels.target.sum((2, 3))
    # The norm and the order of the steps are SMP's: sums and gradients round as in earlier versions.
    difference: Tensor = torch.linalg.vector_norm(pixels.probability - pixels.target, ord=1, dim=(2, 3))
    both = (predicted + actual - difference) / 2
    false_positive = predicted - both
    false_negative = actual - both
    score = both / (both + alpha * false_positive + beta * false_negative).clamp_min(1e-7)
    weights = (actual > 0).float() * (1.0 if class_weights is None else class_weights)
    return ((1 - score) * weights).sum(1) / weights.sum(1).clamp_min(1e-9)


def _lovasz_loss(pixels: Pixels) -> Tensor:
    """SMP's of one image at a time, (B,).

    The mean that SMP takes over images fails for one without valid pixels, which gives an empty tensor, whose sum is 0,
    as are its gradients.
    """
    lovasz = LovaszLoss(pixels.kind, ignore_index=IGNORE)
    images = zip(pixels.logits.split(1), pixels.mask.split(1), strict=True)
    return torch.stack([lovasz(logits, mask).sum() for logits, mask in images])
