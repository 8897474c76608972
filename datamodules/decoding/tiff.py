"""TIFF, of which each decoder reads a part only; ``datamodules.decoding.images`` is the caller."""

from __future__ import annotations

import io
from typing import Any, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, TiffImagePlugin, UnidentifiedImageError

from datamodules.common.errors import UserError

Pixels: TypeAlias = npt.NDArray[Any]

_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_WIDTH, _HEIGHT, _BITS, _PHOTOMETRIC, _ORIENTATION, _SAMPLES, _EXTRA, _FORMAT = 256, 257, 258, 262, 274, 277, 338, 339
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB = 0, 1, 2
_UNSIGNED, _FLOAT = 1, 3
_PREMULTIPLIED, _ALPHA = 1, 2


def is_tiff(data: bytes) -> bool:
    """Whether the data starts like a TIFF or BigTIFF."""
    return data.startswith(_MAGIC)


def tiff_size(data: bytes) -> tuple[int, int]:
    """Width and height of the first page, from its tags.

    Raises:
        Exception: Whatever Pillow's reader of tags raises on damaged data.
    """
    tags = _tags(data)
    return int(tags[_WIDTH]), int(tags[_HEIGHT])


def read_tiff(data: bytes) -> Image.Image | tuple[Pixels, bool, int]:
    """Decode the first page with the decoder that keeps its depth and channels.

    Pillow reads 8 bits and less, palettes, CMYK and YCbCr; it cuts 16-bit colour to 8 bits and drops channels that it
    has no mode for. OpenCV reads 16-bit and float grey, RGB and RGBA; it garbles other sets of channels. tifffile
    reads the rest (several bands).

    Returns:
        A Pillow image, not yet loaded, which applies its orientation itself; or (H, W, C) pixels in RGB order,
        whether the last channel is alpha, and the orientation still to be applied.

    Raises:
        UserError: If the layout needs tifffile and that is not installed, or is not supported.
        Exception: Whatever the decoders raise on damaged data.
    """
    tags = _tags(data)
    samples = int(tags.get(_SAMPLES, 1))
    bits = int(_first(tags.get(_BITS, 1)))
    kind = int(_first(tags.get(_FORMAT, _UNSIGNED)))
    photometric = int(tags.get(_PHOTOMETRIC, _BLACK_IS_ZERO))
    extra = int(_first(tags.get(_EXTRA, 0)))
    if kind not in (_UNSIGNED, _FLOAT, 4) or (bits > 16 and kind != _FLOAT):
        raise UserError(f"{bits}-bit signed or long integers have no known range; save as 16-bit or float in [0, 1]")
    if bits <= 8 or photometric not in (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB):
        try:
            image = Image.open(io.BytesIO(data), formats=("TIFF",))
            if len(image.getbands()) == samples:
                return image
        except UnidentifiedImageError:
            pass  # several bands
    has_alpha = samples in (2, 4) and extra in (_ALPHA, _PREMULTIPLIED)
    if has_alpha and extra == _PREMULTIPLIED:
        raise UserError("premultiplied alpha deeper than 8 bits is not supported; save without alpha")
    if (bits > 8 or photometric == _RGB) and (samples == 1 or (photometric == _RGB and samples in (3, 4))):
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)  # turned by its orientation
        if pixels is None:
            raise UserError("corrupt, truncated, or compressed in an unknown way")
        if kind == _FLOAT:
            pixels = pixels.astype(np.float32, copy=False)
        if samples > 1:
            pixels = cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB if samples == 3 else cv2.COLOR_BGRA2RGBA)
        elif photometric == _WHITE_IS_ZERO and kind == _UNSIGNED:
            pixels = np.iinfo(pixels.dtype).max - pixels
        return pixels, has_alpha, 1
    try:
        import tifffile
    except ImportError:
        raise UserError(
            f"{samples} channels of {bits} bits need tifffile (`pip install tifffile`), or save the image as .npy"
        ) from None
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page = file.pages[0]
        pixels = page.asarray()
        if page.axes.startswith("S") and pixels.ndim == 3:  # planar: (C, H, W)
            pixels = np.moveaxis(pixels, 0, -1)
    return pixels, has_alpha, int(tags.get(_ORIENTATION, 1))


def _tags(data: bytes) -> TiffImagePlugin.ImageFileDirectory_v2:
    big = data[2] == 43 or data[3] == 43
    tags = TiffImagePlugin.ImageFileDirectory_v2(data[: 16 if big else 8])
    file = io.BytesIO(data)
    file.seek(tags.next)
    tags.load(file)
    return tags


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, tuple) else value
