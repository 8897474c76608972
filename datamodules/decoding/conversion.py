"""The conversion rule: decoded pixels of any depth and any channels -> those that are asked for (``docs/data.md``)."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

from datamodules.common.errors import UserError
from datamodules.decoding.headers import ImageError

Pixels: TypeAlias = npt.NDArray[Any]

_GREY_OR_RGB = (1, 3)  # channels that convert into each other


class Decoded(NamedTuple):
    """What a decoder gives."""

    pixels: Pixels  # (H, W, C), C >= 1; uint8, uint16 or float32; RGB order
    has_alpha: bool = False  # the last channel is opacity, not premultiplied
    orientation: int = 1  # EXIF, still to be applied


def from_array(pixels: Pixels, name: str) -> Decoded:
    """An array (H, W) or (H, W, C) of uint8, uint16, bool or float in [0, 1].

    Raises:
        ImageError: If it has another shape or type, or floats outside [0, 1].
    """
    if pixels.ndim not in (2, 3) or pixels.size == 0:
        raise ImageError(f"{name}: an array of shape {pixels.shape} is no image; (H, W) or (H, W, C) is.")
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.dtype == bool:
        return Decoded(pixels.astype(np.uint8) * np.uint8(255))
    if pixels.dtype.kind == "f":
        low, high = float(pixels.min()), float(pixels.max())
        if not (low >= 0 and high <= 1):  # also not with NaN
            raise ImageError(
                f"{name}: its float pixels lie in [{low:g}, {high:g}], they must lie in [0, 1]. Scale them when writing"
                " the file."
            )
        return Decoded(pixels.astype(np.float32, copy=False))
    if pixels.dtype.kind == "u" and pixels.dtype.itemsize <= 2:
        return Decoded(pixels.astype(np.uint8 if pixels.dtype.itemsize == 1 else np.uint16, copy=False))
    raise ImageError(
        f"{name}: pixels of type {pixels.dtype} have no known range; use uint8, uint16 or float in [0, 1]."
    )


def convert(image: Decoded, channels: int, dtype: str, name: str) -> Pixels:
    """Pixels (H, W, channels) of ``dtype``, C-contiguous and turned upright; maybe a view of the decoder's.

    Raises:
        ImageError: If the image's channels do not become those that are asked for.
        UserError: If ``dtype`` is neither uint8 nor float32.
    """
    if dtype not in ("uint8", "float32"):
        raise UserError(f"dtype is '{dtype}'; it must be 'uint8' or 'float32'.")
    pixels = _convert_depth(_convert_channels(image, channels, name), dtype)
    return np.ascontiguousarray(_orient(pixels, image.orientation))


def _convert_channels(image: Decoded, channels: int, name: str) -> Pixels:
    pixels: Pixels = image.pixels
    has = pixels.shape[2]
    if channels == has and not image.has_alpha:
        return pixels
    colors = has - image.has_alpha
    if channels != has and (channels not in _GREY_OR_RGB or colors not in _GREY_OR_RGB):
        raise ImageError(
            f"{name}: the image has {has} channels, {channels} are asked for. 1 and 3 convert into each other;"
            f" otherwise set the number of channels to {has}."
        )
    if image.has_alpha and channels in _GREY_OR_RGB:
        pixels = _over_white(pixels)
    if channels == 1 and colors == 3:
        pixels = cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_RGB2GRAY)[..., None]
    elif channels == 3 and colors == 1:
        pixels = cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_GRAY2RGB)
    return pixels


def _convert_depth(pixels: Pixels, dtype: str) -> Pixels:
    """uint8, uint16 or float32 -> ``dtype``, full range to full range."""
    if pixels.dtype == dtype:
        return pixels
    if dtype == "float32":
        return np.asarray(pixels.astype(np.float32) / np.float32(np.iinfo(pixels.dtype).max))
    if pixels.dtype == np.uint16:
        return np.asarray((pixels.astype(np.uint32) + 128) // 257, np.uint8)  # = round(x / 257): no ties
    return np.asarray(np.rint(pixels * 255), np.uint8)


def _over_white(pixels: Pixels) -> Pixels:
    """Composite (H, W, C + alpha) over white -> (H, W, C), rounded at the source's depth."""
    color, alpha = pixels[..., :-1], pixels[..., -1:]
    if pixels.dtype == np.float32:
        return np.asarray(color * alpha + (1 - alpha))
    top = int(np.iinfo(pixels.dtype).max)
    if alpha.min() == top:
        return color
    wide, opacity = color.astype(np.uint32), alpha.astype(np.uint32)  # 65535 * 65535 + 32767 still fits
    return ((wide * opacity + top * (top - opacity) + top // 2) // top).astype(pixels.dtype)


def _orient(pixels: Pixels, orientation: int) -> Pixels:
    """Turn as the EXIF orientation says: 2 mirrored, 3 half turn, 6 to be turned clockwise, 8 anticlockwise, ..."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels
