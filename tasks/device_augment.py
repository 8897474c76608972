"""Random augmentation of whole training batches on the device: color jitter, erasing, mixup, cutmix."""

from __future__ import annotations

from typing import Any

import torch
from timm.data import Mixup
from timm.data.random_erasing import RandomErasing
from torch import Tensor


def color_jitter(image: Tensor, strength: float) -> Tensor:
    """Brightness, contrast and saturation, each with its own factor for each image, in that order.

    Args:
        image: float (B, C, H, W) in [0, 1].
        strength: Factors are drawn from [max(0, 1 - strength), 1 + strength], as torchvision's ColorJitter does.

    Returns:
        The same shape, clipped to [0, 1].
    """
    factors = torch.empty(3, image.shape[0], 1, 1, 1, device=image.device).uniform_(max(0, 1 - strength), 1 + strength)
    image = (image * factors[0]).clamp_(0, 1)
    gray = _gray(image)
    mean = gray.mean(dim=(1, 2, 3), keepdim=True)
    image = (mean + (image - mean) * factors[1]).clamp_(0, 1)
    if image.shape[1] == 3:
        gray = _gray(image)
        image = (gray + (image - gray) * factors[2]).clamp_(0, 1)
    return image


def jitter_images(batch: dict[str, Any], strength: float) -> dict[str, Any]:
    """A batch whose ``image`` has color jitter, float32 in [0, 1]; the batch itself at a strength of 0."""
    if not strength:
        return batch
    image = batch["image"]
    image = image.float() / 255 if image.dtype == torch.uint8 else image.clone()
    return {**batch, "image": color_jitter(image, strength)}


def _gray(image: Tensor) -> Tensor:
    if image.shape[1] != 3:
        return image.mean(dim=1, keepdim=True)
    red, green, blue = image.split(1, dim=1)
    gray: Tensor = 0.299 * red + 0.587 * green + 0.114 * blue  # BT.601 luma; a tensor of weights would sync
    return gray


def random_erasing(image: Tensor, probability: float, mean: Tensor, std: Tensor) -> Tensor:
    """Random erasing with noise (Zhong et al. 2017, arXiv 1708.04896), timm's, which expects normalized images.

    Args:
        image: float (B, C, H, W) in [0, 1].
        probability: That an image loses a rectangle.
        mean: (1, C, 1, 1), as in the model's normalization.
        std: (1, C, 1, 1).
    """
    erase = RandomErasing(probability=probability, mode="pixel", device=image.device)
    normalized: Tensor = erase((image - mean) / std)
    return normalized * std + mean


def mix(
    batch: dict[str, Any], num_classes: int, mixup_alpha: float, cutmix_alpha: float, prob: float
) -> dict[str, Any]:
    """Mixup (arXiv 1710.09412) or cutmix (arXiv 1905.04899) of a batch, timm's, for labels of any kind.

    Args:
        batch: ``image`` float (B, C, H, W) in [0, 1], B even; ``label`` int64 (B,) or float32 (B, K).
        num_classes: K.
        mixup_alpha: Parameter of the Beta distribution of mixup; 0 for none.
        cutmix_alpha: The same for cutmix; where both are set, each batch takes one of them.
        prob: That a batch is mixed at all.

    Returns:
        The batch with float32 (B, K) labels, and its ``weight`` mixed likewise.
    """
    size = len(batch["image"])
    # Mixing "classes" 0..B-1 gives the (B, B) matrix of who went where; it mixes hard and soft labels alike.
    mixer = Mixup(mixup_alpha, cutmix_alpha, prob=prob, label_smoothing=0.0, num_classes=size)
    image, matrix = mixer(batch["image"], torch.arange(size, device=batch["image"].device))
    label = batch["label"]
    if not label.is_floating_point():
        label = torch.nn.functional.one_hot(label, num_classes)
    mixed = {**batch, "image": image, "label": matrix @ label.to(matrix.dtype)}
    if "weight" in batch:
        mixed["weight"] = matrix @ batch["weight"].to(matrix.dtype)
    return mixed
