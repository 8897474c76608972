"""The settings of training's augmentation; what they do is told and done in `datamodules.transforms.pipeline`."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal

from datamodules.common.errors import UserError
from datamodules.transforms.custom import build_transforms
from datamodules.transforms.randaugment import check_magnitude

Crop = Literal["random_resized", "pad", "jitter", "none"]

#: Canvases up to this many pixels (the shorter side) are cropped by padding, larger ones by random_resized.
PAD_CROP_MAX = 64


def _refuse(key: str, value: object, reason: str) -> None:
    raise UserError(f"data.augment.{key} is {value!r}: {reason}")


@dataclass(frozen=True)
class Augment:
    """Random augmentation of training images on the CPU; mixup, erasing and jitter on the device are the model's.

    Attributes:
        preset: What is done: none, light, medium, strong, trivial or rand; see `datamodules.transforms.pipeline`.
        hflip: Probability of a left-right flip.
        vflip: Probability of an upside-down flip.
        crop: How training images are cropped. Left out: pad up to 64 pixels, random_resized above, jitter for masks
            and boxes.
        crop_scale: Least and greatest fraction of the picture's area that random_resized keeps.
        crop_padding: Pixels added on each side before cropping, for pad.
        scale_jitter: Least and greatest factor of the picture's size, for jitter; 1 is evaluation's size.
        class_crop: Probability that jitter crops around a pixel, or an object, of a class chosen among those of the
            picture, so that rare classes are seen more often; for masks and boxes.
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

    _beside_transforms: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        """Refuse values out of range, and values that would have no effect."""
        self._check_ranges()
        self._check_unused()
        if self.crop is not None:
            self.crop_for((0, 0))
        if self.transforms is not None:
            build_transforms(self.transforms)

    def _check_ranges(self) -> None:
        for key in ("hflip", "vflip", "class_crop"):
            if not 0 <= getattr(self, key) <= 1:
                _refuse(key, getattr(self, key), "it is a probability, 0 to 1")
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            _refuse("crop_scale", self.crop_scale, "it is two fractions of the area, 0 < least <= greatest <= 1")
        low, high = self.scale_jitter
        if not 0 < low <= high:
            _refuse("scale_jitter", self.scale_jitter, "it is two factors of the size, 0 < least <= greatest")
        if self.crop_padding < 1:
            _refuse("crop_padding", self.crop_padding, "at least 1 pixel is needed; for no crop set crop: none")
        if self.rand_ops < 1:
            _refuse("rand_ops", self.rand_ops, "at least 1 operation is needed; for none set preset: light")
        check_magnitude(self.rand_magnitude, "data.augment.rand_magnitude")

    def _check_unused(self) -> None:
        changed = {field.name for field in fields(self) if getattr(self, field.name) != field.default}
        if self.transforms is not None:
            unused = changed - {"transforms", *self._beside_transforms}
            reason = "transforms replaces all of the preset, so it has no effect"
        elif self.preset == "none":
            unused, reason = changed - {"preset"}, "preset: none does nothing at all, so it has no effect"
        elif self.preset != "rand":
            unused = {"rand_ops", "rand_magnitude"} & changed
            reason = f"only preset: rand uses it, and the preset is {self.preset}"
        else:
            return
        for key in sorted(unused):
            _refuse(key, getattr(self, key), f"{reason}; leave it out")

    def crop_for(self, canvas: tuple[int, int], *, dense: bool = False) -> Crop:
        """The crop used on a canvas (height, width); `dense` for pictures with masks or boxes.

        Raises:
            UserError: A setting of another crop is set.
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


@dataclass(frozen=True)
class DetectionAugment(Augment):
    """Augmentation of pictures with boxes; `datamodules.transforms.mixing` tells how pictures are mixed.

    Attributes:
        mosaic: Probability that a sample is put together from four pictures.
        mixup: Probability that a sample is laid over another, half and half.
        copy_paste: Probability that objects of another picture are pasted into a sample; needs `data.masks`.
        close_mosaic_epochs: The last epochs, which see single pictures: without mosaic, mixup and copy_paste. Left out,
            a tenth of the epochs, at most 15.
        canvas_sizes: Sides (of squares), or heights and widths, of the canvas, one of which is drawn for each batch;
            `data.image_size` stays evaluation's. Multiples of 32 suit all backbones.
        min_visibility: A box of which less than this fraction of its area is left after a crop is dropped.
    """

    mosaic: float = 0.0
    mixup: float = 0.0
    copy_paste: float = 0.0
    close_mosaic_epochs: int | None = None
    canvas_sizes: list[int | tuple[int, int]] | None = None
    min_visibility: float = 0.1

    _beside_transforms: ClassVar[tuple[str, ...]] = ("canvas_sizes", "min_visibility")

    def __post_init__(self) -> None:
        """Refuse values out of range, and values that would have no effect."""
        for key in ("mosaic", "mixup", "copy_paste"):
            if not 0 <= getattr(self, key) <= 1:
                _refuse(key, getattr(self, key), "it is a probability, 0 to 1")
        if not 0 <= self.min_visibility <= 1:
            _refuse("min_visibility", self.min_visibility, "it is a fraction of a box's area, 0 to 1")
        if self.canvas_sizes is not None and (not self.canvas_sizes or min(map(min, self.canvases())) < 1):
            _refuse("canvas_sizes", self.canvas_sizes, "it is a list of sides in pixels, or of [height, width]")
        if self.close_mosaic_epochs is not None:
            if self.close_mosaic_epochs < 0:
                _refuse("close_mosaic_epochs", self.close_mosaic_epochs, "it is a number of epochs, 0 or more")
            if not self.mixes:
                reason = "only mosaic, mixup and copy_paste use it, which are 0; leave it out"
                _refuse("close_mosaic_epochs", self.close_mosaic_epochs, reason)
        super().__post_init__()

    @property
    def mixes(self) -> bool:
        """Whether samples are made of several pictures."""
        return self.mosaic > 0 or self.mixup > 0 or self.copy_paste > 0

    def canvases(self) -> list[tuple[int, int]]:
        """Height and width of each of ``canvas_sizes``; none where it is left out."""
        return [(size, size) if isinstance(size, int) else (size[0], size[1]) for size in self.canvas_sizes or []]

    def crop_for(self, canvas: tuple[int, int], *, dense: bool = False) -> Crop:
        """As `Augment.crop_for`; pictures are mixed by jitter alone."""
        crop = super().crop_for(canvas, dense=dense)
        for key in ("mosaic", "mixup", "copy_paste"):
            if crop != "jitter" and getattr(self, key):
                _refuse(key, getattr(self, key), f"it crops pictures by jitter, and crop is {crop}; leave crop out")
        return crop
