"""TIFF, of which each decoder reads a part only; ``images`` and ``annotations.mask_files`` are the callers."""

from __future__ import annotations

import io
from typing import Any, BinaryIO, NamedTuple, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, TiffImagePlugin, UnidentifiedImageError

from datamodules.common.errors import UserError

Pixels: TypeAlias = npt.NDArray[Any]

_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_WIDTH, _HEIGHT, _BITS, _PHOTOMETRIC, _ORIENTATION, _SAMPLES, _EXTRA, _FORMAT = 256, 257, 258, 262, 274, 277, 338, 339
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB = 0, 1, 2
_UNSIGNED, _FLOAT, _UNDEFINED = 1, 3, 4
_PREMULTIPLIED, _ALPHA = 1, 2


class Layout(NamedTuple):
    """What the tags of the first page say.

    Attributes:
        width: In pixels.
        height: In pixels.
        samples: Channels.
        bits: Of each sample.
        kind: TIFF's sample format: 1 unsigned, 2 signed, 3 float, 4 undefined.
        photometric: What the samples mean, TIFF's number: 0 and 1 grey, 2 RGB, 3 palette, 5 CMYK, 6 YCbCr.
        extra: What the last sample is: 1 premultiplied alpha, 2 alpha.
        orientation: 1 to 8, as in EXIF.
    """

    width: int
    height: int
    samples: int
    bits: int
    kind: int
    photometric: int
    extra: int
    orientation: int

    @property
    def has_alpha(self) -> bool:
        """Whether the last channel is opacity."""
        return self.samples in (2, 4) and self.extra in (_ALPHA, _PREMULTIPLIED)


class TiffPixels(NamedTuple):
    """Decoded pixels that Pillow has no mode for."""

    pixels: Pixels  # (H, W) or (H, W, C), RGB order
    has_alpha: bool  # the last channel is opacity
    orientation: int  # still to be applied


def is_tiff(data: bytes) -> bool:
    """Whether the data starts like a TIFF or BigTIFF."""
    return data.startswith(_MAGIC)


def read_layout(file: BinaryIO) -> Layout:
    """The tags of the first page.

    Args:
        file: Anywhere.

    Raises:
        Exception: Whatever Pillow's reader of tags raises on damaged data.
    """
    file.seek(0)
    start = file.read(16)
    big = start[2] == 43 or start[3] == 43
    tags = TiffImagePlugin.ImageFileDirectory_v2(start if big else start[:8])
    file.seek(tags.next)
    tags.load(file)

    def number(tag: int, default: int) -> int:
        value = tags.get(tag, default)
        return int(value[0] if isinstance(value, tuple) else value)

    return Layout(
        width=int(tags[_WIDTH]),
        height=int(tags[_HEIGHT]),
        samples=number(_SAMPLES, 1),
        bits=number(_BITS, 1),
        kind=number(_FORMAT, _UNSIGNED),
        photometric=number(_PHOTOMETRIC, _BLACK_IS_ZERO),
        extra=number(_EXTRA, 0),
        orientation=number(_ORIENTATION, 1),
    )


def read_tiff(data: bytes) -> Image.Image | TiffPixels:
    """Decode the first page with the decoder that keeps its depth and channels.

    Pillow reads 8 bits and less, palettes, CMYK and YCbCr; it cuts 16-bit color to 8 bits and drops channels that it
    has no mode for. OpenCV reads 16-bit and float grey, RGB and RGBA; it garbles other sets of channels. tifffile
    reads the rest (several bands). The caller has checked the size.

    Returns:
        A Pillow image, not yet loaded, which applies its orientation itself; or pixels.

    Raises:
        UserError: If the layout needs tifffile and that is not installed, or is not supported.
        Exception: Whatever the decoders raise on damaged data.
    """
    layout = read_layout(io.BytesIO(data))
    _check_depth(layout)
    is_plain = layout.photometric in (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB)
    if layout.bits <= 8 or not is_plain:
        image = _open_with_pillow(data, layout)
        if image is not None:
            return image
    if layout.has_alpha and layout.extra == _PREMULTIPLIED:
        raise UserError("premultiplied alpha deeper than 8 bits is not supported; save without alpha")
    is_rgb = layout.photometric == _RGB
    is_deep_grey = layout.samples == 1 and (layout.bits > 8 or is_rgb)
    if is_deep_grey or (is_rgb and layout.samples in (3, 4)):
        return _read_with_opencv(data, layout)
    return _read_with_tifffile(data, layout)


def _check_depth(layout: Layout) -> None:
    """Refuse numbers without a known range."""
    is_long = layout.bits > 16 and layout.kind != _FLOAT
    if is_long or layout.kind not in (_UNSIGNED, _FLOAT, _UNDEFINED):
        raise UserError(
            f"{layout.bits}-bit signed or long integers have no known range; save as 16-bit or float in [0, 1]"
        )


def _open_with_pillow(data: bytes, layout: Layout) -> Image.Image | None:
    """None where Pillow has no mode for so many channels."""
    try:
        image = Image.open(io.BytesIO(data), formats=("TIFF",))
    except UnidentifiedImageError:
        return None
    return image if len(image.getbands()) == layout.samples else None


def _read_with_opencv(data: bytes, layout: Layout) -> TiffPixels:
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)  # turned by its orientation
    if pixels is None:
        raise UserError("corrupt, truncated, or compressed in an unknown way")
    if layout.kind == _FLOAT:
        pixels = pixels.astype(np.float32, copy=False)
    if layout.samples > 1:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB if layout.samples == 3 else cv2.COLOR_BGRA2RGBA)
    elif layout.photometric == _WHITE_IS_ZERO and layout.kind == _UNSIGNED:
        pixels = np.iinfo(pixels.dtype).max - pixels
    return TiffPixels(pixels, layout.has_alpha, 1)


def _read_with_tifffile(data: bytes, layout: Layout) -> TiffPixels:
    try:
        import tifffile
    except ImportError:
        raise UserError(
            f"{layout.samples} channels of {layout.bits} bits need tifffile (`pip install tifffile`), or save the image"
            " as .npy"
        ) from None
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page = file.pages[0]
        pixels = page.asarray()
        if page.axes.startswith("S") and pixels.ndim == 3:  # planar: (C, H, W)
            pixels = np.moveaxis(pixels, 0, -1)
    return TiffPixels(pixels, layout.has_alpha, layout.orientation)
