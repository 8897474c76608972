"""Mask files as they are stored: indices of a palette stay indices, low bit depths are not stretched."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from datamodules.common.errors import UserError
from datamodules.decoding.contents import read_bytes
from datamodules.decoding.headers import (
    NPY,
    PNG,
    Header,
    ImageError,
    attempt,
    check_pixels,
    open_image,
    read_npy,
    tiff_header,
)
from datamodules.decoding.tiff import is_tiff, read_tiff

Mask: TypeAlias = npt.NDArray[np.uint8]

_FORMATS = ("PNG", "BMP", "GIF", "WEBP", "PPM", "JPEG")
_PNG_BITS = 24  # where a PNG says how deep it is


class Stored(NamedTuple):
    """A mask file as it is stored."""

    pixels: npt.NDArray[Any]  # (H, W) uint8 or uint16, or (H, W, 3) uint8 of colors
    palette: Mask | None = None  # (n, 3), red, green and blue of each index, for palette files
    lossy: bool = False  # JPEG


def load_mask(source: str | Path) -> Stored:
    """A mask file's stored values.

    Three equal channels are taken as one. An orientation tag of the mask is not applied: a mask is as it is stored.

    Args:
        source: PNG, TIFF, BMP, GIF, WebP, PNM, JPEG or ``.npy``.

    Raises:
        ImageError: If the file is no mask, is damaged, or has more pixels than an image may have.
        FileNotFoundError: If there is no such file.
    """
    name = str(source)
    data = read_bytes(source)
    if not data:
        raise ImageError(f"{name}: the file is empty.")
    if data.startswith(NPY):
        return Stored(as_mask(read_npy(data, name), name))
    if is_tiff(data):
        return _load_tiff(data, name)
    image = open_image(io.BytesIO(data), name, _FORMATS)
    check_pixels(Header(*image.size), name)
    attempt(image.load, name)
    return _from_pillow(image, data, name)


def _load_tiff(data: bytes, name: str) -> Stored:
    check_pixels(tiff_header(io.BytesIO(data), name), name)
    image = attempt(lambda: read_tiff(data), name)
    if isinstance(image, Image.Image):
        attempt(image.load, name)
        return _from_pillow(image, data, name)
    pixels = image.pixels[..., :-1] if image.has_alpha else image.pixels
    return Stored(as_mask(pixels, name))


def _from_pillow(image: Image.Image, data: bytes, name: str) -> Stored:
    lossy = image.format == "JPEG"
    if image.mode == "P":
        return _indices(image)
    if image.mode == "1":
        return Stored(np.array(image).astype(np.uint8), None, lossy)
    if image.mode in ("L", "LA"):
        pixels = np.array(image.getchannel(0))
        if data.startswith(PNG) and data[_PNG_BITS] in (2, 4):  # Pillow stretches 2 and 4 bits to 8
            pixels = pixels // np.uint8(255 // (2 ** data[_PNG_BITS] - 1))
        return Stored(pixels, None, lossy)
    if image.mode.startswith("I"):
        return Stored(as_mask(np.array(image), name), None, lossy)
    return Stored(as_mask(np.array(image.convert("RGB")), name), None, lossy)


def _indices(image: Image.Image) -> Stored:
    """A palette's indices and colors."""
    palette = np.zeros((256, 3), np.uint8)
    given = np.array(image.getpalette("RGB") or [], np.uint8).reshape(-1, 3)
    palette[: len(given)] = given
    pixels = np.array(image)
    used = palette[np.unique(pixels)]
    if image.format == "GIF" and (used == used[:, :1]).all():
        return Stored(palette[pixels, 0])  # GIF has no grey: what looks black is meant to be 0
    return Stored(pixels, palette)


def as_mask(pixels: npt.NDArray[Any], name: str) -> npt.NDArray[Any]:
    """Any array of whole numbers as (H, W) uint8 or uint16, colors as (H, W, 3) uint8.

    Raises:
        ImageError: If it is no such array.
    """
    if pixels.ndim == 3 and pixels.shape[2] in (1, 3) and (pixels == pixels[..., :1]).all():
        pixels = np.ascontiguousarray(pixels[..., 0])
    if pixels.ndim == 2 and pixels.dtype == bool:
        return pixels.astype(np.uint8)
    if pixels.ndim == 3 and pixels.shape[2] == 3 and pixels.dtype == np.uint8:
        return pixels
    if pixels.ndim != 2 or pixels.dtype.kind not in "ui" or pixels.size == 0:
        raise ImageError(
            f"{name}: an array of {pixels.dtype} {pixels.shape} is no mask; whole numbers (H, W) or colors, uint8"
            " (H, W, 3), are."
        )
    if pixels.dtype == np.uint8:
        return pixels
    low, high = int(pixels.min()), int(pixels.max())
    if low < 0 or high > 65535:
        raise ImageError(f"{name}: its values lie in [{low}, {high}]; a mask's lie in [0, 65535].")
    return pixels.astype(np.uint16, copy=False)


def stored_colors(stored: Stored) -> Mask:
    """The color of each pixel, uint8 (H, W, 3): through the palette, or grey.

    Raises:
        UserError: If the file holds 16-bit indices.
    """
    pixels = stored.pixels
    if pixels.ndim == 3:
        return pixels
    if pixels.dtype != np.uint8:
        raise UserError("16-bit indices are no colors.")
    if stored.palette is not None:
        colors: Mask = stored.palette[pixels]
        return colors
    return np.repeat(pixels[..., None], 3, axis=2)
