"""Transforms of one sample on the CPU: resizing for evaluation, augmentation for training. Calls albumentations.

A sample is a dict with image (H, W, C), uint8 or float32 in [0, 1], and optionally mask (H, W), boxes float32 (N, 4)
x1 y1 x2 y2 in pixels, labels int64 (N,), iscrowd (N,), masks int16 (L, H, W) of object numbers 1..N; other keys pass.
Normalisation lives in the model, never here.

Presets, in order of strength (`Augment.preset`):

- none: evaluation's view, nothing random.
- light: geometry only: a crop and flips.
- medium: light, rotation up to 10 degrees, colour jitter 0.3.
- strong: light, rotation up to 20 degrees with scale and shear, colour jitter 0.4 with hue, sometimes grey or blurred.
- trivial: light and TrivialAugment-Wide.
- rand: light and RandAugment (`rand_ops`, `rand_magnitude`).

The crop: `random_resized` cuts a random part of the original (torchvision's RandomResizedCrop) and resizes it to the
canvas; `pad` takes evaluation's view, adds `crop_padding` black pixels around and cuts at a random place (the CIFAR
recipe); `none` takes evaluation's view. Left out, it is `pad` on canvases up to 64 pixels and `random_resized` above.
"""

from __future__ import annotations

import os
import random
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # no network request at import

import albumentations as A
import cv2
import numpy as np

from datamodules.batch_transforms import BatchTransform, batch_transform
from datamodules.custom_transforms import build_transforms
from datamodules.geometry import (
    IGNORE,
    INTERPOLATIONS,
    Interpolation,
    Resize,
    boxes_to_canvas,
    boxes_to_original,
    evaluation_view,
    mask_to_original,
    resize_array,
)
from datamodules.randaugment import RandAugment, TrivialAugmentWide, check_magnitude

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Sample = dict[str, Any]

__all__ = [
    "Augment",
    "BatchTransform",
    "Transform",
    "batch_transform",
    "boxes_to_canvas",
    "boxes_to_original",
    "mask_to_original",
]

Crop = Literal["random_resized", "pad", "none"]

#: A moved box is dropped when less of its area than this, or less than a pixel of a side, is left on the canvas.
MIN_VISIBILITY = 0.1
#: Canvases up to this many pixels (the shorter side) are cropped by padding, larger ones by random_resized.
PAD_CROP_MAX = 64
PER_BOX_KEYS = ("labels", "iscrowd")


def _refuse(key: str, value: object, reason: str) -> None:
    raise ValueError(f"data.augment.{key} is {value!r}: {reason}")


@dataclass(frozen=True)
class Augment:
    """Random augmentation of training images on the CPU; mixup, erasing and jitter on the device are the model's.

    Attributes:
        preset: What is done: none, light, medium, strong, trivial or rand; see `datamodules.transforms`.
        hflip: Probability of a left-right flip.
        vflip: Probability of an upside-down flip.
        crop: How training images are cut. Left out: pad up to 64 pixels, random_resized above.
        crop_scale: Least and greatest part of the picture's area that random_resized keeps.
        crop_padding: Pixels added on each side before cutting, for pad.
        rand_ops: Operations an image, for the preset rand.
        rand_magnitude: Strength for the preset rand, 0 to 30; 10 is AutoAugment's strongest, noisy student used 27.
        transforms: albumentations transforms in place of a preset, as `{HorizontalFlip: {p: 0.5}}` or
            `{class_path: HorizontalFlip, init_args: {p: 0.5}}`; applied to the original image, after which evaluation's
            resize brings what is not yet of the right size to the canvas.
    """

    preset: Literal["none", "light", "medium", "strong", "trivial", "rand"] = "light"
    hflip: float = 0.5
    vflip: float = 0.0
    crop: Literal["random_resized", "pad", "none"] | None = None
    crop_scale: tuple[float, float] = (0.35, 1.0)
    crop_padding: int = 4
    rand_ops: int = 2
    rand_magnitude: float = 9.0
    transforms: list[dict[str, Any]] | None = None

    def __post_init__(self) -> None:
        """Refuse values out of range, and values that would have no effect."""
        for key in ("hflip", "vflip"):
            if not 0 <= getattr(self, key) <= 1:
                _refuse(key, getattr(self, key), "it is a probability, 0 to 1")
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            _refuse("crop_scale", self.crop_scale, "it is two parts of the area, 0 < least <= greatest <= 1")
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

    def crop_for(self, canvas: tuple[int, int]) -> Crop:
        """The crop used on a canvas (height, width).

        Raises:
            ValueError: A setting of another crop is set.
        """
        crop: Crop = self.crop or ("pad" if min(canvas) <= PAD_CROP_MAX else "random_resized")
        for key, user in (("crop_scale", "random_resized"), ("crop_padding", "pad")):
            if crop != user and getattr(self, key) != type(self).__dataclass_fields__[key].default:
                chosen = "set" if self.crop else f"chosen for {canvas[0]} x {canvas[1]} pixels"
                reason = f"only crop: {user} uses it, and crop: {crop} is {chosen}; leave it out"
                _refuse(key, getattr(self, key), reason)
        return crop


class Transform:
    """From a sample in original pixels to a sample on the canvas; evaluation's, or a random one for training.

    Training's randomness is a function of the seed alone. A transform can be pickled, and does not hold torch.
    """

    def __init__(
        self,
        size: tuple[int, int] | None,
        *,
        augment: Augment | None,
        resize: Resize = "crop",
        crop_pct: float = 0.875,
        interpolation: Interpolation = "bicubic",
        fill: int = 114,
    ) -> None:
        """Set up.

        Args:
            size: Height and width of the canvas; None takes each image's own size.
            augment: Training's augmentation; None for evaluation.
            resize: How evaluation fits a picture into the canvas: crop (shorter side to size / crop_pct, centre cut),
                letterbox (all of it, rest filled) or stretch. See `geometry.evaluation_view`.
            crop_pct: Part of the shorter side that crop keeps, above 0 and up to 1.
            interpolation: Kernel for images; where a side shrinks by more than 2 bilinear and bicubic give way to the
                mean over the area. Masks are always resized by the nearest pixel.
            fill: Value, 0 to 255, of canvas pixels outside the picture (letterbox, rotation, shift).

        Raises:
            ValueError: A value is out of range, or a setting of `augment` has no effect at this size.
        """
        if size is not None and min(size) < 1:
            raise ValueError(f"image size is {size}; height and width must be at least 1 pixel")
        if not 0 < crop_pct <= 1:
            raise ValueError(f"crop_pct is {crop_pct}; it must be above 0 and at most 1")
        if not 0 <= fill <= 255:
            raise ValueError(f"fill is {fill}; it must be 0 to 255")
        if augment is not None and augment.transforms is None and size is not None:
            augment.crop_for(size)
        self.size = size
        self.augment = augment
        self.resize: Resize = resize
        self.crop_pct = crop_pct
        self.interpolation = INTERPOLATIONS[interpolation]
        self.fill = fill
        self._pipelines: dict[tuple[object, ...], A.Compose] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Without the pipelines, which are made when first needed."""
        return {**self.__dict__, "_pipelines": {}}

    def __call__(self, sample: Sample, seed: int | None = None) -> Sample:
        """Transform one sample; the sample given is not changed.

        Args:
            sample: See the module's docstring.
            seed: Key of the randomness, 0 or more; not used by evaluation.

        Returns:
            The sample with what it holds moved: image (h, w, C) of the same dtype, C-contiguous; mask with 255 where no
            annotation is; boxes clipped to the canvas, those hardly visible dropped along with their labels, and the
            objects in masks renumbered; `geometry` float32 (6,), original height, width, scale_x, scale_y, offset_x,
            offset_y. In training only its first two values say something: flips and random crops are not in it.

        Raises:
            ValueError: The sample is malformed, or training was given no seed; the message holds the sample's `path`.
        """
        check_sample(sample)
        if self.augment is None or (self.augment.preset == "none" and self.augment.transforms is None):
            return self._evaluate(sample)
        if seed is None:
            raise ValueError("training augmentation needs a seed: it has no randomness of its own")
        return self._train(sample, self.augment, seed)

    def _evaluate(self, sample: Sample) -> Sample:
        image = sample["image"]
        shape = image.shape[:2]
        canvas = self.size or shape
        out = dict(sample)
        if canvas == shape and self.size is None:
            out["geometry"] = np.array([*shape, 1, 1, 0, 0], dtype=np.float32)
            return out
        view = evaluation_view(shape, canvas, self.resize, self.crop_pct)
        out["geometry"] = view.geometry(shape)
        out["image"] = view.place(image, self.interpolation, self._fill(image))
        if "mask" in sample:
            mask = _cv2_mask(sample["mask"])
            out["mask"] = view.place(mask, cv2.INTER_NEAREST_EXACT, IGNORE).astype(sample["mask"].dtype, copy=False)
        if "masks" in sample:
            layers = [view.place(layer, cv2.INTER_NEAREST_EXACT, 0) for layer in sample["masks"]]
            out["masks"] = np.stack(layers) if layers else np.zeros((0, *canvas), sample["masks"].dtype)
        if "boxes" in sample:
            boxes = boxes_to_canvas(sample["boxes"], out["geometry"]).astype(np.float32)
            clipped = _clip(boxes, canvas)
            side, before, after = _sides(clipped).min(-1), _sides(boxes).prod(-1), _sides(clipped).prod(-1)
            _keep_boxes(out, clipped, np.flatnonzero((side >= 1) & (after >= MIN_VISIBILITY * before)))
        return out

    def _train(self, sample: Sample, augment: Augment, seed: int) -> Sample:
        shape = sample["image"].shape[:2]
        canvas = self.size or shape
        crop = None if augment.transforms is not None else augment.crop_for(canvas)
        out = self._evaluate(sample) if crop in ("pad", "none") else dict(sample)
        # Some operations (Equalize) write into the picture they are given, which may be the caller's, a cached one.
        image = out["image"].copy() if crop in (None, "none") else out["image"]
        pipeline = self._pipeline(crop, image, "boxes" in out)
        if self.size is None:
            _set_canvas(pipeline, canvas)
        # Compose.set_random_seed would seed each of its transforms alike, so that all draw the same numbers: flips were
        # correlated with the size of the crop by -0.43. One shared pair of generators has no such ties.
        pipeline.set_random_state(np.random.default_rng(seed), random.Random(seed))

        data: dict[str, Any] = {"image": image}
        if "mask" in out:
            data["mask"] = _shift_mask(out["mask"])
        if out.get("masks") is not None and len(out["masks"]):
            data["masks"] = out["masks"]
        if "boxes" in out:  # a fifth column carries each box's index through the filters
            index = np.arange(len(out["boxes"]), dtype=np.float32)[:, None]
            data["bboxes"] = np.concatenate([_clip(out["boxes"], image.shape[:2]), index], axis=1)
        moved = pipeline(**data)

        out["image"] = np.ascontiguousarray(moved["image"])
        if "mask" in out:
            out["mask"] = _unshift_mask(moved["mask"], out["mask"].dtype)
        if "masks" in data:
            out["masks"] = np.ascontiguousarray(moved["masks"])
        if "boxes" in out:
            boxes = np.asarray(moved["bboxes"], dtype=np.float32)
            kept = boxes[:, 4].astype(np.int64) if len(boxes) else np.zeros(0, np.int64)
            _keep_boxes(out, _clip(boxes[:, :4], out["image"].shape[:2]), kept)
        if augment.transforms is not None:
            if out["image"].dtype != image.dtype or out["image"].shape[2:] != image.shape[2:]:
                raise ValueError(
                    f"data.augment.transforms turn {image.dtype} {image.shape} (height, width, channels) into"
                    f" {out['image'].dtype} {out['image'].shape}; the type and the number of channels must stay"
                )
            if out["image"].shape[:2] != canvas:
                out = Transform._evaluate(self, out)
        nominal = [*shape, canvas[1] / shape[1], canvas[0] / shape[0], 0, 0]
        out["geometry"] = np.array(nominal, dtype=np.float32)
        return out

    def _fill(self, image: NDArray[Any]) -> float:
        return self.fill if image.dtype == np.uint8 else self.fill / 255

    def _pipeline(self, crop: Crop | None, image: NDArray[Any], has_boxes: bool) -> A.Compose:
        """The albumentations pipeline for images like this one; made once for each kind."""
        key = (crop, image.shape[2], image.dtype, has_boxes)
        if key not in self._pipelines:
            assert self.augment is not None
            if crop is None:
                assert self.augment.transforms is not None
                steps = build_transforms(self.augment.transforms)
            else:
                size = self.size or (1, 1)  # set for each image by _set_canvas
                steps = _preset(self.augment, crop, size, self.interpolation, image.shape[2], self._fill(image))
            steps = steps or [A.NoOp()]  # an empty Compose with boxes warns
            boxes = A.BboxParams("pascal_voc", min_visibility=MIN_VISIBILITY, min_width=1, min_height=1)
            # The shapes are checked in check_sample, with the file's name.
            self._pipelines[key] = A.Compose(steps, bbox_params=boxes if has_boxes else None, is_check_shapes=False)
        return self._pipelines[key]


class _RandomResizedCrop(A.RandomResizedCrop):  # type: ignore[misc]  # albumentations is untyped for mypy
    """albumentations' own, with the antialiasing of `resize_array`."""

    def apply(self, img: NDArray[Any], crop_coords: tuple[int, int, int, int], **params: object) -> NDArray[Any]:
        x1, y1, x2, y2 = crop_coords
        out = resize_array(img[y1:y2, x1:x2], self.size, self.interpolation)
        return out.copy() if out.base is not None and np.may_share_memory(out, img) else out


def _preset(
    augment: Augment, crop: Crop, size: tuple[int, int], interpolation: int, channels: int, fill: float
) -> list[A.BasicTransform | A.BaseCompose]:
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
    if augment.preset == "medium":
        steps += [A.Affine(rotate=(-10, 10), fill=fill, p=0.5), _colour_jitter(0.3, 0.0, channels)]
    elif augment.preset == "strong":
        shear = {"x": (-10, 10), "y": (-10, 10)}
        steps.append(A.Affine(rotate=(-20, 20), scale=(0.8, 1.2), shear=shear, fill=fill, p=0.7))
        steps.append(_colour_jitter(0.4, 0.1, channels))
        if channels == 3:
            steps.append(A.ToGray(p=0.1))
        steps.append(A.GaussianBlur(blur_limit=0, sigma_limit=(0.1, 2.0), p=0.2))
    elif augment.preset == "trivial":
        steps.append(TrivialAugmentWide(fill=fill))
    elif augment.preset == "rand":
        steps.append(RandAugment(augment.rand_ops, augment.rand_magnitude, fill=fill))
    return steps


def _colour_jitter(strength: float, hue: float, channels: int) -> A.BasicTransform:
    if channels in (1, 3):
        return A.ColorJitter(strength, strength, strength, hue, p=0.8)
    return A.RandomBrightnessContrast(strength, strength, p=0.8)  # saturation and hue need red, green and blue


def _set_canvas(pipeline: A.Compose, canvas: tuple[int, int]) -> None:
    for step in pipeline.transforms:
        if isinstance(step, _RandomResizedCrop):
            step.size = canvas
        elif isinstance(step, A.RandomCrop):
            step.height, step.width = canvas


def check_sample(sample: Sample) -> None:
    """Check shapes and boxes of a sample.

    Raises:
        ValueError: Naming the sample's path and what is wrong.
    """
    image = sample["image"]
    where = f"{sample.get('path', 'sample')}: "
    if image.ndim != 3 or image.dtype not in (np.uint8, np.float32):
        raise ValueError(f"{where}image is {image.dtype} {image.shape}; uint8 or float32 (H, W, C) is due")
    for key in ("mask", "masks"):
        if key in sample and sample[key].shape[-2:] != image.shape[:2]:
            raise ValueError(f"{where}{key} is {sample[key].shape}, but the image is {image.shape[:2]} (height, width)")
    if "boxes" in sample:
        boxes = sample["boxes"]
        if boxes.ndim != 2 or boxes.shape[1] != 4:
            raise ValueError(f"{where}boxes have the shape {boxes.shape}; (N, 4) is due, (0, 4) where there are none")
        wrong = ~np.isfinite(boxes).all(-1) | (_sides(boxes) <= 0).any(-1)
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            raise ValueError(f"{where}box {row} is {boxes[row].tolist()}; finite x1 < x2 and y1 < y2 are due")


def _sides(boxes: NDArray[np.float32]) -> NDArray[np.float32]:
    return boxes[:, 2:] - boxes[:, :2]


def _clip(boxes: NDArray[np.float32], shape: tuple[int, int]) -> NDArray[np.float32]:
    height, width = shape
    return np.clip(boxes, 0, np.array([width, height, width, height], dtype=boxes.dtype))


def _keep_boxes(out: Sample, boxes: NDArray[Any], kept: NDArray[np.int64]) -> None:
    """Put the kept ones of `boxes` into `out`, and what belongs to each box; renumber the objects in masks.

    `boxes` holds either all boxes or, in order, just the kept ones.
    """
    total = len(out["boxes"])
    out["boxes"] = boxes if len(boxes) == len(kept) else boxes[kept]
    if len(kept) == total:
        return
    for key in PER_BOX_KEYS:
        if key in out:
            out[key] = out[key][kept]
    if "masks" in out:
        number = np.zeros(total + 1, dtype=out["masks"].dtype)
        number[kept + 1] = np.arange(1, len(kept) + 1)
        out["masks"] = number[out["masks"]]


def _cv2_mask(mask: NDArray[Any]) -> NDArray[Any]:
    return mask.astype(np.int32) if mask.dtype.itemsize > 4 else mask  # OpenCV 4 has no int64


def _shift_mask(mask: NDArray[Any]) -> NDArray[Any]:
    """Classes plus 1 and ignore as 0, so that albumentations' fill of masks, 0, comes out as ignore."""
    if mask.dtype == np.uint8:
        return mask + np.uint8(1)  # 255 wraps to 0
    mask = _cv2_mask(mask)
    return np.where(mask == IGNORE, 0, mask + 1).astype(mask.dtype)


def _unshift_mask(mask: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    if dtype == np.uint8:
        return np.ascontiguousarray(mask - np.uint8(1))
    return np.where(mask == 0, IGNORE, mask - 1).astype(dtype)
