"""Transforms of one sample on the CPU: resizing for evaluation, augmentation for training. Calls albumentations.

A sample is a dict with image (H, W, C), uint8 or float32 in [0, 1], and optionally mask (H, W), boxes float32 (N, 4)
x1 y1 x2 y2 in pixels, labels int64 (N,), iscrowd (N,), masks int16 (L, H, W) of object numbers 1..N; other keys pass.
Normalization lives in the model, never here.

Presets, in order of strength (`Augment.preset`):

- none: evaluation's view, nothing random.
- light: geometry only: a crop and flips.
- medium: light, rotation up to 10 degrees, color jitter 0.3.
- strong: light, rotation up to 20 degrees with scale and shear, color jitter 0.4 with hue, sometimes gray or blurred.
- trivial: light and TrivialAugment-Wide.
- rand: light and RandAugment (`rand_ops`, `rand_magnitude`).

The crop: `random_resized` crops a random part of the original (torchvision's RandomResizedCrop) and resizes it to the
canvas; `pad` takes evaluation's view, adds `crop_padding` black pixels around and crops at a random place (the CIFAR
recipe); `none` takes evaluation's view; `jitter` enlarges or reduces the picture by a random factor (`scale_jitter`)
and crops, or pads, at a random place (large scale jitter, Ghiasi et al. 2021, https://arxiv.org/abs/2012.07177). Left
out, it is `pad` on canvases up to 64 pixels and `random_resized` above, and `jitter` for masks and boxes.
"""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING, Any

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # no network request at import

import albumentations as A
import numpy as np

from datamodules.common.batch import FILL, Sample
from datamodules.common.errors import UserError
from datamodules.common.geometry import boxes_to_canvas
from datamodules.transforms.augment import Augment, Crop
from datamodules.transforms.compose import run
from datamodules.transforms.custom import build_transforms
from datamodules.transforms.geometry import INTERPOLATIONS, Interpolation, Resize, evaluation_view, random_window
from datamodules.transforms.presets import preset_steps, set_canvas
from datamodules.transforms.samples import (
    MIN_VISIBILITY,
    check_sample,
    clip,
    crop_to_canvas,
    flip,
    keep_boxes,
    middle_of_an_object,
    pixel_of_a_class,
    place_masks,
    visible,
)
from datamodules.transforms.tiles import tile_windows

if TYPE_CHECKING:
    from numpy.typing import NDArray


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
        fill: int = FILL,
        dense: bool = False,
        tile: tuple[int, int] | None = None,
        tile_overlap: float = 0.25,
        min_visibility: float = MIN_VISIBILITY,
    ) -> None:
        """Set up.

        Args:
            size: Height and width of the canvas; None takes each image's own size.
            augment: Training's augmentation; None for evaluation.
            resize: How evaluation fits a picture into the canvas: crop (shorter side to size / crop_pct, center crop),
                letterbox (all of it, rest filled), stretch, or native (its own size; training, which needs
                one size, letterboxes where it does not crop). See `geometry.evaluation_view`.
            crop_pct: Fraction of the shorter side that crop keeps, above 0 and up to 1.
            interpolation: Kernel for images; where a side shrinks by more than 2 bilinear and bicubic give way to the
                mean over the area. Masks are always resized by the nearest pixel.
            fill: Value, 0 to 255, of canvas pixels outside the picture (letterbox, rotation, shift).
            dense: Whether samples have masks or boxes: it decides the crop that is taken by default.
            tile: Height and width of the windows that evaluation adds to a sample, as `tiles`; None for none.
            tile_overlap: Fraction of a window that neighbors share.
            min_visibility: A box of which less than this fraction of its area is left is dropped.

        Raises:
            UserError: A value is out of range, or a setting of `augment` has no effect at this size.
        """
        if size is not None and min(size) < 1:
            raise UserError(f"image size is {size}; height and width must be at least 1 pixel")
        if not 0 < crop_pct <= 1:
            raise UserError(f"crop_pct is {crop_pct}; it must be above 0 and at most 1")
        if not 0 <= fill <= 255:
            raise UserError(f"fill is {fill}; it must be 0 to 255")
        if augment is not None and augment.transforms is None and augment.preset != "none" and size is not None:
            augment.crop_for(size, dense=dense)
        self.size = size
        self.augment = augment
        self.resize: Resize = resize
        self.crop_pct = crop_pct
        self.interpolation = INTERPOLATIONS[interpolation]
        self.fill = fill
        self.dense = dense
        self.tile, self.tile_overlap = tile, tile_overlap
        self.min_visibility = min_visibility
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
            UserError: The sample is malformed, or training was given no seed; the message holds the sample's `path`.
        """
        check_sample(sample)
        if self.augment is None:
            out = self._evaluate(sample, self.resize)
            if self.tile is not None:
                height, width = out["image"].shape[:2]
                out["tiles"] = tile_windows(height, width, self.tile, self.tile_overlap)
            return out
        if self.augment.preset == "none" and self.augment.transforms is None:
            return self._evaluate(sample, self._training_resize())
        if seed is None:
            raise UserError("training augmentation needs a seed: it has no randomness of its own")
        return self._train(sample, self.augment, seed)

    def _training_resize(self) -> Resize:
        """Training needs images of one size: what evaluation sees in its own size is letterboxed."""
        return "letterbox" if self.resize == "native" else self.resize

    def _evaluate(self, sample: Sample, resize: Resize) -> Sample:
        image = sample["image"]
        shape = image.shape[:2]
        canvas = shape if resize == "native" else self.size or shape
        out = dict(sample)
        if canvas == shape and (self.size is None or resize == "native"):
            out["geometry"] = np.array([*shape, 1, 1, 0, 0], dtype=np.float32)
            return out
        view = evaluation_view(shape, canvas, resize, self.crop_pct)
        out["geometry"] = view.geometry(shape)
        out["image"] = view.place(image, self.interpolation, self.fill_value(image))
        place_masks(out, view)
        if "boxes" in sample:
            boxes = boxes_to_canvas(sample["boxes"], out["geometry"]).astype(np.float32)
            clipped = clip(boxes, canvas)
            keep_boxes(out, clipped, visible(boxes, clipped, self.min_visibility))
        return out

    def _train(self, sample: Sample, augment: Augment, seed: int) -> Sample:
        shape = sample["image"].shape[:2]
        canvas = self.size or shape
        crop = self._crop(shape)
        if crop in ("pad", "none"):
            out = self._evaluate(sample, self._training_resize())
        elif crop == "jitter":
            # A stream of its own, not the one that flips and colors are drawn from.
            out = self.jitter(sample, np.random.default_rng([seed, 1]), canvas)
        else:
            out = dict(sample)
        out = self.finish(out, seed)
        if augment.transforms is not None and out["image"].shape[:2] != canvas:
            out = self._evaluate(out, self._training_resize())
        nominal = [*shape, canvas[1] / shape[1], canvas[0] / shape[0], 0, 0]
        out["geometry"] = np.array(nominal, dtype=np.float32)
        return out

    def jitter(
        self, sample: Sample, rng: np.random.Generator, canvas: tuple[int, int], part: tuple[int, int] | None = None
    ) -> Sample:
        """The picture, enlarged or reduced by a random factor of its size on the canvas, and cropped at a random place.

        Args:
            sample: As for a call; not changed.
            rng: What is drawn from.
            canvas: Height and width that evaluation would fit the picture into.
            part: Height and width of what comes out, where it is not the canvas.

        Returns:
            The sample, without `geometry`.
        """
        assert self.augment is not None
        shape = sample["image"].shape[:2]
        shown = evaluation_view(shape, canvas, self.resize, self.crop_pct)
        low, high = np.log(self.augment.scale_jitter)
        factor = float(np.exp(rng.uniform(low, high)))
        scale = factor * shown.height / shape[0], factor * shown.width / shape[1]
        around = None
        if self.augment.class_crop and rng.random() < self.augment.class_crop:
            if "mask" in sample:
                around = pixel_of_a_class(sample["mask"], rng)
            elif "boxes" in sample:
                around = middle_of_an_object(sample, rng)
        rows, columns = random_window(shape, part or canvas, scale, rng, around)
        fill = self.fill_value(sample["image"])
        return crop_to_canvas(sample, rows, columns, part or canvas, self.interpolation, fill, self.min_visibility)

    def finish(self, sample: Sample, seed: int) -> Sample:
        """What comes behind the crop: flips, colors and the like, or the user's own transforms."""
        augment, image = self.augment, sample["image"]
        assert augment is not None
        crop = self._crop(image.shape[:2])
        if augment.preset == "light" and crop in ("jitter", "none") and "boxes" in sample:
            chances = np.random.default_rng(seed).random(2)  # albumentations takes as long as decoding for two flips
            return flip(dict(sample), bool(chances[0] < augment.hflip), bool(chances[1] < augment.vflip))
        # Some operations (Equalize) write into the picture they are given, which may be the caller's, a cached one.
        own = {**sample, "image": image.copy()} if crop in (None, "none") else sample
        pipeline = self._pipeline(crop, image, "boxes" in sample)
        if self.size is None:
            set_canvas(pipeline, image.shape[:2])
        # Compose.set_random_seed would seed each of its transforms alike, so that all draw the same numbers: flips were
        # correlated with the size of the crop by -0.43. One shared pair of generators has no such ties.
        pipeline.set_random_state(np.random.default_rng(seed), random.Random(seed))
        out = run(pipeline, own)
        if augment.transforms is not None:
            _check_kind(image, out["image"])
        return out

    def _crop(self, shape: tuple[int, int]) -> Crop | None:
        """The crop of training, for a picture of `shape` (H, W); None where the user's own transforms replace it."""
        assert self.augment is not None
        return (
            None if self.augment.transforms is not None else self.augment.crop_for(self.size or shape, dense=self.dense)
        )

    def fill_value(self, image: NDArray[Any]) -> float:
        """Value of pixels outside the picture, in the image's range."""
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
                size = self.size or (1, 1)  # set for each image by set_canvas
                steps = preset_steps(
                    self.augment, crop, size, self.interpolation, image.shape[2], self.fill_value(image)
                )
            steps = steps or [A.NoOp()]  # an empty Compose with boxes warns
            boxes = A.BboxParams("pascal_voc", min_visibility=self.min_visibility, min_width=1, min_height=1)
            # The shapes are checked in check_sample, with the file's name.
            self._pipelines[key] = A.Compose(steps, bbox_params=boxes if has_boxes else None, is_check_shapes=False)
        return self._pipelines[key]


def _check_kind(before: NDArray[Any], after: NDArray[Any]) -> None:
    if after.dtype != before.dtype or after.shape[2:] != before.shape[2:]:
        raise UserError(
            f"data.augment.transforms turn {before.dtype} {before.shape} (height, width, channels) into {after.dtype}"
            f" {after.shape}; the type and the number of channels must stay"
        )
