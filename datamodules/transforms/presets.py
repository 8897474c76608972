"""The presets of augmentation as albumentations transforms; what they do is described in ``transforms.pipeline``."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # no network request at import

import albumentations as A
import cv2
import numpy as np

from datamodules.transforms.augment import Augment, Crop
from datamodules.transforms.geometry import resize_array
from datamodules.transforms.randaugment import RandAugment, TrivialAugmentWide

if TYPE_CHECKING:
    from numpy.typing import NDArray


class _RandomResizedCrop(A.RandomResizedCrop):  # type: ignore[misc]  # albumentations is untyped for mypy
    """albumentations' own, with the antialiasing of `resize_array`."""

    def apply(self, img: NDArray[Any], crop_coords: tuple[int, int, int, int], **params: object) -> NDArray[Any]:
        x1, y1, x2, y2 = crop_coords
        out = resize_array(img[y1:y2, x1:x2], self.size, self.interpolation)
        return out.copy() if out.base is not None and np.may_share_memory(out, img) else out


def preset_steps(
    augment: Augment, crop: Crop, size: tuple[int, int], interpolation: int, channels: int, fill: float
) -> list[A.BasicTransform | A.BaseCompose]:
    """The transforms of a preset, in order: the crop, flips, then what the preset adds.

    Args:
        augment: The user's settings.
        crop: The crop that is done here; ``jitter`` and ``none`` are not.
        size: Height and width of the canvas.
        interpolation: OpenCV flag for images.
        channels: Of the image.
        fill: Value of pixels outside the picture.
    """
    steps: list[A.BasicTransform | A.BaseCompose] = []
    if crop == "random_resized":
        kernels = {"interpolation": interpolation, "mask_interpolation": cv2.INTER_NEAREST_EXACT}
        steps.append(_RandomResizedCrop(size, augment.crop_scale, **kernels))
    elif crop == "pad":
        steps += [A.Pad(augment.crop_padding, p=1), A.RandomCrop(*size, p=1)]
    if augment.hflip:
        steps.append(A.HorizontalFlip(p=augment.hflip))
    if augment.vflip:
        steps.append(A.VerticalFlip(p=augment.vflip))
    return steps + _colors(augment, channels, fill)


def _colors(augment: Augment, channels: int, fill: float) -> list[A.BasicTransform | A.BaseCompose]:
    """What a preset adds to crop and flips: rotations and colors."""
    steps: list[A.BasicTransform | A.BaseCompose] = []
    if augment.preset == "medium":
        steps += [A.Affine(rotate=(-10, 10), fill=fill, p=0.5), _color_jitter(0.3, 0.0, channels)]
    elif augment.preset == "strong":
        shear = {"x": (-10, 10), "y": (-10, 10)}
        steps.append(A.Affine(rotate=(-20, 20), scale=(0.8, 1.2), shear=shear, fill=fill, p=0.7))
        steps.append(_color_jitter(0.4, 0.1, channels))
        if channels == 3:
            steps.append(A.ToGray(p=0.1))
        steps.append(A.GaussianBlur(blur_limit=0, sigma_limit=(0.1, 2.0), p=0.2))
    elif augment.preset == "trivial":
        steps.append(TrivialAugmentWide(fill=fill))
    elif augment.preset == "rand":
        steps.append(RandAugment(augment.rand_ops, augment.rand_magnitude, fill=fill))
    return steps


def _color_jitter(strength: float, hue: float, channels: int) -> A.BasicTransform:
    if channels in (1, 3):
        return A.ColorJitter(strength, strength, strength, hue, p=0.8)
    return A.RandomBrightnessContrast(strength, strength, p=0.8)  # saturation and hue need red, green and blue


def set_canvas(pipeline: A.Compose, canvas: tuple[int, int]) -> None:
    """Let a pipeline whose canvas is each image's own size crop to this one (height, width)."""
    for step in pipeline.transforms:
        if isinstance(step, _RandomResizedCrop):
            step.size = canvas
        elif isinstance(step, A.RandomCrop):
            step.height, step.width = canvas
