"""The settings of training's augmentation; what they do is told and done in `datamodules.transforms`."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

from datamodules.custom_transforms import build_transforms
from datamodules.randaugment import check_magnitude

Crop = Literal["random_resized", "pad", "jitter", "none"]

#: Canvases up to this many pixels (the shorter side) are cropped by padding, larger ones by random_resized.
PAD_CROP_MAX = 64


def _refuse(key: str, value: object, reason: str) -> None:
    raise ValueError(f"data.augment.{key} is {value!r}: {reason}")


@dataclass(frozen=True)
class Augment:
    """Random augmentation of training images on the CPU; mixup, erasing and jitter on the device are the model's.

    Attributes:
        preset: What is done: none, light, medium, strong, trivial or rand; see `datamodules.transforms`.
        hflip: Probability of a left-right flip.
        vflip: Probability of an upside-down flip.
        crop: How training images are cut. Left out: pad up to 64 pixels, random_resized above, jitter for masks
            and boxes.
        crop_scale: Least and greatest part of the picture's area that random_resized keeps.
        crop_padding: Pixels added on each side before cutting, for pad.
        scale_jitter: Least and greatest factor of the picture's size, for jitter; 1 is evaluation's size.
        class_crop: Probability that jitter cuts around a pixel of a class chosen among those of the picture, so that
            rare classes are seen more often; for masks.
        rand_ops: Operations an image, for the preset rand.
        rand_magnitude: Strength for the preset rand, 0 to 30; 10 is AutoAugment's strongest, noisy student used 27.
        transforms: albumentations transforms in place of a preset, as `{HorizontalFlip: {p: 0.5}}` or
            `{class_path: HorizontalFlip, init_args: {p: 0.5}}`; applied to the original image, after which evaluation's
            resize brings what is not yet of the right size to the canvas.
    """

    preset: Literal["none", "light", "medium", "strong", "trivial", "rand"] = "light"
    hflip: float = 0.5
    vflip: float = 0.0
    crop: Literal["random_resized", "pad", "jitter", "none"] | None = None
    crop_scale: tuple[float, float] = (0.35, 1.0)
    crop_padding: int = 4
    scale_jitter: tuple[float, float] = (0.5, 2.0)
    class_crop: float = 0.0
    rand_ops: int = 2
    rand_magnitude: float = 9.0
    transforms: list[dict[str, Any]] | None = None

    def __post_init__(self) -> None:
        """Refuse values out of range, and values that would have no effect."""
        for key in ("hflip", "vflip", "class_crop"):
            if not 0 <= getattr(self, key) <= 1:
                _refuse(key, getattr(self, key), "it is a probability, 0 to 1")
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            _refuse("crop_scale", self.crop_scale, "it is two parts of the area, 0 < least <= greatest <= 1")
        low, high = self.scale_jitter
        if not 0 < low <= high:
            _refuse("scale_jitter", self.scale_jitter, "it is two factors of the size, 0 < least <= greatest")
        if self.crop_padding < 1:
            _refuse("crop_padding", self.crop_padding, "at least 1 pixel is needed; for no crop set crop: none")
        if self.rand_ops < 1:
            _refuse("rand_ops", self.rand_ops, "at least 1 operation is needed; for none set preset: light")
        check_magnitude(self.rand_magnitude, "data.augment.rand_magnitude")
        changed = [field.name for field in fields(self) if getattr(self, field.name) != field.default]
        if self.transforms is not None:
            unused, reason = set(changed) - {"transforms"}, "transforms replaces all of the preset, so it has no effect"
        elif self.preset == "none":
            unused, reason = set(changed) - {"preset"}, "preset: none does nothing at all, so it has no effect"
        else:
            unused = set() if self.preset == "rand" else {"rand_ops", "rand_magnitude"} & set(changed)
            reason = f"only preset: rand uses it, and the preset is {self.preset}"
        for key in sorted(unused):
            _refuse(key, getattr(self, key), f"{reason}; leave it out")
        if self.crop is not None:
            self.crop_for((0, 0))
        if self.transforms is not None:
            build_transforms(self.transforms)

    def crop_for(self, canvas: tuple[int, int], *, dense: bool = False) -> Crop:
        """The crop used on a canvas (height, width); `dense` for pictures with masks or boxes.

        Raises:
            ValueError: A setting of another crop is set.
        """
        crop: Crop = self.crop or ("jitter" if dense else "pad" if min(canvas) <= PAD_CROP_MAX else "random_resized")
        users = {
            "crop_scale": "random_resized",
            "crop_padding": "pad",
            "scale_jitter": "jitter",
            "class_crop": "jitter",
        }
        for key, user in users.items():
            if crop != user and getattr(self, key) != type(self).__dataclass_fields__[key].default:
                chosen = "set" if self.crop else f"chosen for {canvas[0]} x {canvas[1]} pixels"
                reason = f"only crop: {user} uses it, and crop: {crop} is {chosen}; leave it out"
                _refuse(key, getattr(self, key), reason)
        return crop
