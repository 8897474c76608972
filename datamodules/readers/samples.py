"""From a record to a sample: image and annotations decoded, in original pixels. It runs in the loader's workers.

Digit scenes are drawn here; files are decoded by ``datamodules.decoding`` and ``datamodules.annotations``.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Literal

import numpy as np

from datamodules.annotations.instance_masks import masks_of
from datamodules.annotations.mask_records import check_size, decode_mask
from datamodules.annotations.masks import MaskFormat
from datamodules.annotations.records import Record
from datamodules.decoding.headers import ImageError
from datamodules.decoding.images import read_image
from datamodules.readers.digits import digit_scene

#: A decoded record: the same keys, with arrays in place of files.
Sample = dict[str, Any]

_KEPT_SCENE = 160  # pixels a side up to which digit scenes are kept: 77 KB of image and mask, or 82 KB of objects
_OBJECTS = ("image", "boxes", "labels")
_PIXELS = ("image", "mask")


def read_objects(record: Record, *, channels: int, dtype: Literal["uint8", "float32"], masks: bool) -> Sample:
    """A sample with boxes.

    Args:
        record: See ``datamodules.annotations.records``; without ``boxes`` only the image is read. Or ``scene``, the
            arguments of ``digit_scene``.
        channels: As for ``read_image``.
        dtype: As for ``read_image``.
        masks: Whether the objects' masks are drawn.

    Returns:
        ``path``, ``image`` (H, W, C), ``boxes`` float32 (N, 4), ``labels`` int64 (N,), ``iscrowd`` uint8 (N,), ``area``
        float32 (N,) where the record has it, and ``masks`` int16 (L, H, W) where they are asked for.

    Raises:
        ImageError: If the file is damaged, or the image is not of the size that its annotations give.
        UserError: If masks are damaged.
    """
    sample: Sample = {"path": record["path"]}
    if "scene" in record:
        scene = _scene(record["scene"], (*_OBJECTS, "masks") if masks else _OBJECTS)
        crowds = np.zeros(len(scene["boxes"]), np.uint8)
        return {**sample, **scene, "image": read_image(scene["image"], channels, dtype), "iscrowd": crowds}
    image = read_image(record["image"], channels, dtype)
    sample["image"] = image
    if "boxes" not in record:
        return sample
    height, width = image.shape[:2]
    if (record["height"], record["width"]) != (height, width):
        raise ImageError(
            f"{record['path']}: the image is {width} x {height}, its annotations were made for {record['width']} x"
            f" {record['height']} pixels. It has changed since training began: put the old one back, or start again."
        )
    sample |= {key: record[key] for key in ("boxes", "labels", "iscrowd", "area")}
    if masks:
        sample["masks"] = masks_of(record, height, width)
    return sample


def read_pixels(
    record: Record,
    *,
    fmt: MaskFormat | None,
    channels: int,
    dtype: Literal["uint8", "float32"],
    num_classes: int,
    multi_label: bool,
) -> Sample:
    """A sample with a semantic mask.

    Args:
        record: ``image`` (file or array) and ``mask``, see ``decode_mask``; without ``mask`` only the image is read.
            Or ``scene``, the arguments of ``digit_scene``.
        fmt: What mask files mean.
        channels: As for ``read_image``.
        dtype: As for ``read_image``.
        num_classes: K.
        multi_label: Several classes a pixel.

    Returns:
        The record with ``image`` (H, W, C) and ``mask`` uint8 (H, W), or (H, W, K) of 0, 1 and 255 for multi-label.

    Raises:
        MaskError: If the mask's size is not the image's, or its values do not fit.
        ImageError: If a file is damaged.
    """
    if "scene" in record:
        scene = _scene(record["scene"], _PIXELS)
        return {**record, "image": read_image(scene["image"], channels, dtype), "mask": scene["mask"].copy()}
    image = read_image(record["image"], channels, dtype)
    if "mask" not in record:
        return {**record, "image": image}
    mask = decode_mask(record, fmt=fmt, num_classes=num_classes, multi_label=multi_label)
    check_size(record, mask, image.shape[:2])
    return {**record, "image": image, "mask": mask}


def _scene(arguments: tuple[Any, ...], keys: tuple[str, ...]) -> Sample:
    """Some of a scene's values; nothing in them is ever changed."""
    size = arguments[3]
    return (_kept_scene if size <= _KEPT_SCENE else _draw_scene)(arguments, keys)


def _draw_scene(arguments: tuple[Any, ...], keys: tuple[str, ...]) -> Sample:
    scene = digit_scene(*arguments)
    return {key: scene[key] for key in keys}


# A scene of 128 pixels takes 3 ms to draw, as long as a training step on it.
_kept_scene = lru_cache(maxsize=2048)(_draw_scene)
