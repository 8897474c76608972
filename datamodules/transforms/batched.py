"""Augmentation of a whole batch at once, for small sets that are held in memory (`cache: tensor`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from torch import Tensor

    from datamodules.transforms.augment import Augment


class Draws(NamedTuple):
    """What was drawn for each image of a batch: int64 (B,) offsets of the crop, bool (B,) flips."""

    top: Tensor
    left: Tensor
    hflip: Tensor
    vflip: Tensor


def batch_transform(augment: Augment, size: tuple[int, int] | None = None) -> BatchTransform | None:
    """The batched form of training augmentation, or None where the settings have none.

    Flips and the crops `pad` and `none` have one; `random_resized`, `jitter`, colors, TrivialAugment, RandAugment and
    lists of albumentations transforms have not. Preset none has one that changes nothing.

    Args:
        augment: The user's settings.
        size: Height and width of the images, which decide the crop where `augment.crop` is left out; without it that
            crop counts as `random_resized`.
    """
    if augment.transforms is not None or augment.preset not in ("none", "light"):
        return None
    if augment.preset == "none":
        return BatchTransform(hflip=0.0, vflip=0.0, padding=0)
    crop = augment.crop or (augment.crop_for(size) if size is not None else "random_resized")
    if crop in ("random_resized", "jitter"):
        return None
    return BatchTransform(
        hflip=augment.hflip, vflip=augment.vflip, padding=augment.crop_padding if crop == "pad" else 0
    )


class BatchTransform:
    """Random flips and pad-crops, one draw an image, as one gather; no loop over images."""

    def __init__(self, *, hflip: float, vflip: float, padding: int) -> None:
        """Set up.

        Args:
            hflip: Probability of a left-right flip.
            vflip: Probability of an upside-down flip.
            padding: Black pixels added on each side before a random crop of the old size; 0 for no crop.
        """
        self.hflip, self.vflip, self.padding = hflip, vflip, padding

    def draw(self, batch_size: int, seed: int) -> Draws:
        """Draw for a batch; a function of the arguments alone, on every device the same."""
        generator = torch.Generator().manual_seed(seed)
        offsets = torch.randint(0, 2 * self.padding + 1, (2, batch_size), generator=generator)
        chances = torch.rand((2, batch_size), generator=generator)
        return Draws(offsets[0], offsets[1], chances[0] < self.hflip, chances[1] < self.vflip)

    def __call__(self, images: Tensor, seed: int, start: int = 0, total: int | None = None) -> Tensor:
        """Augment a batch, or a rank's images of one.

        Args:
            images: (B, H, W, C), any dtype, on any device; not changed.
            seed: Key of the batch's randomness, 0 or more.
            start: Place of the first image in the batch of all ranks.
            total: Images of the batch of all ranks; these alone by default.

        Returns:
            (B, H, W, C) of the same dtype on the same device, contiguous.
        """
        if not (self.hflip or self.vflip or self.padding):
            return images.contiguous()
        size, height, width, channels = images.shape
        # Drawn for all ranks, so that any number of them sees the same batch.
        drawn = [value[start : start + size] for value in self.draw(total or size, seed)]
        draws = Draws(*(value.to(images.device, non_blocking=True) for value in drawn))
        rows = _indices(height, draws.vflip, draws.top)
        columns = _indices(width, draws.hflip, draws.left)
        pad = self.padding
        padded = functional.pad(images, (0, 0, pad, pad, pad, pad)) if pad else images.contiguous()
        number = torch.arange(size, device=images.device)
        flat = (number[:, None, None] * padded.shape[1] + rows[:, :, None]) * padded.shape[2] + columns[:, None, :]
        # Rows of C values by one flat index: twice as fast as indexing with three index tensors.
        return padded.view(-1, channels).index_select(0, flat.view(-1)).view(size, height, width, channels)


def _indices(length: int, flip: Tensor, offset: Tensor) -> Tensor:
    """(B, length) positions along one side of the padded images: the crop first, then the flip, as for one image."""
    steps = torch.arange(length, device=flip.device)[None]
    return torch.where(flip[:, None], length - 1 - steps, steps) + offset[:, None]
