"""The mask of a record, in whatever form the record has it."""

from __future__ import annotations

from typing import Any

import numpy as np

from datamodules.annotations.mask_files import Mask
from datamodules.annotations.masks import MaskError, MaskFormat, read_mask
from datamodules.annotations.records import Record
from datamodules.annotations.shapes import render_shapes


def decode_mask(record: Record, *, fmt: MaskFormat | None, num_classes: int, multi_label: bool) -> Mask:
    """A record's mask.

    Args:
        record: ``mask`` is a file or an array of stored values, a list of K binary ones (None for a class that is not
            there), or COCO shapes; see ``datamodules.annotations.records``.
        fmt: What mask files mean; None for COCO shapes.
        num_classes: K.
        multi_label: Several classes a pixel.

    Returns:
        uint8 (H, W) of classes, or (H, W, K) of 0 and 1; 255 for ignored pixels.

    Raises:
        MaskError: If its values do not fit, or the masks of one image differ in size.
        ImageError: If a file is damaged or too large.
    """
    source = record["mask"]
    if isinstance(source, dict):
        return render_shapes(source, num_classes if multi_label else None)
    assert fmt is not None
    if isinstance(source, list):
        return _stack_layers(source, fmt)
    mask = read_mask(source, fmt)
    return mask[..., None] if multi_label else mask


def _stack_layers(source: list[Any], fmt: MaskFormat) -> Mask:
    """One binary mask for each class as (H, W, K)."""
    layers = [None if layer is None else read_mask(layer, fmt) for layer in source]
    there = [(str(path), layer.shape) for path, layer in zip(source, layers, strict=True) if layer is not None]
    path, shape = there[0]
    for other, other_shape in there:
        if other_shape != shape:
            raise MaskError(
                f"{other}: the mask is {_by(other_shape)} pixels (width x height), but {path} of the same image is"
                f" {_by(shape)}.",
                "Make the masks of an image one size, that of the image.",
            )
    return np.stack([np.zeros(shape, np.uint8) if layer is None else layer for layer in layers], axis=2)


def _by(shape: tuple[int, ...]) -> str:
    return f"{shape[1]} x {shape[0]}"


def check_size(record: Record, mask: Mask, shape: tuple[int, ...]) -> None:
    """Compare a mask's size with its image's (H, W).

    Raises:
        MaskError: If they differ.
    """
    have, want = mask.shape[:2], tuple(shape)
    if have == want:
        return
    source = record["mask"]
    if isinstance(source, list):
        source = next(m for m in source if m is not None)
    name = source if isinstance(source, str) else f"annotations of {record['path']}"
    fix = (
        "Masks are not resized here: make the mask as large as its image, by nearest neighbor, or correct the pairing."
    )
    if have == want[::-1]:
        fix = (
            "The mask is turned by 90 degrees: an image is shown as its EXIF orientation says, and its mask belongs to"
            " what is shown. Turn the mask, or take the orientation tag out of the image."
        )
    raise MaskError(
        f"{name}: the mask is {_by(have)}, its image {record['path']} {_by(want)} pixels (width x height).", fix
    )
