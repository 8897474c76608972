"""The one place where image files become pixels: any file people have, one conversion rule (``docs/data.md``)."""

from __future__ import annotations

import io
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO, Literal

import cv2
import numpy as np
from PIL import Image, ImageChops

from datamodules.decoding.contents import open_bytes, read_bytes
from datamodules.decoding.conversion import Decoded, Pixels, convert, from_array
from datamodules.decoding.headers import (
    JPEG,
    NPY,
    PNG,
    Header,
    ImageError,
    attempt,
    check_pixels,
    jpeg_header,
    open_image,
    read_header,
    read_npy,
    tiff_header,
)
from datamodules.decoding.jpeg import ORIENTATION_TAG, JpegHeader
from datamodules.decoding.tiff import is_tiff, read_tiff
from datamodules.decoding.video import is_frame, read_frame

# Optional: without it cv2 gives the same pixels, a little slower.
simplejpeg: Any = import_module("simplejpeg") if find_spec("simplejpeg") else None

_COLORS = 3  # of a JPEG; one with 1 is gray, with 4 it is printer's inks
_PNG_GREY_ALPHA = 4  # a PNG's color type
_PNG_COLOR_TYPE = 25  # its place in the file


def read_image(
    source: str | Path | bytes | Pixels | Image.Image,
    channels: int = 3,
    dtype: Literal["uint8", "float32"] = "uint8",
) -> Pixels:
    """Decode an image by the one conversion rule.

    EXIF orientation is applied; alpha is composited over white; CMYK and palettes become RGB; grey to RGB repeats the
    channel, RGB to grey is Rec. 601 luma (0.299, 0.587, 0.114) at the source's depth; 16 bits become 8 by dividing by
    257, float images must lie in [0, 1] and are multiplied by 255, both rounded. Color profiles are ignored.

    Args:
        source: File, its bytes, a file in an archive (``0.tar#a.jpg``), a video's frame (``clip.mp4#000012``), an array
            (H, W) or (H, W, C) of uint8, uint16, bool or float in [0, 1], or a Pillow image.
        channels: 1 (grey), 3 (RGB), or the exact number of channels in the source, which then come unconverted.
        dtype: ``float32`` gives [0, 1] with the source's full depth.

    Returns:
        C-contiguous (H, W, channels) of ``dtype``, writeable and never shared with an array given.

    Raises:
        ImageError: If the file is corrupt, truncated, no image, larger than ``limits.max_pixels``, or does not have so
            many channels.
        FileNotFoundError: If there is no such file.
    """
    if is_frame(source):
        return np.array(convert(Decoded(read_frame(str(source))), channels, dtype, str(source)))
    if isinstance(source, np.ndarray):
        name = "image array"
        return np.array(convert(from_array(source, name), channels, dtype, name))  # never the caller's memory
    if isinstance(source, Image.Image):
        decoded = _from_pillow(source, "Pillow image")
        orientation = source.getexif().get(ORIENTATION_TAG, 1)
        return np.array(convert(decoded._replace(orientation=orientation), channels, dtype, "Pillow image"))
    name = _name(source)
    data = source if isinstance(source, bytes) else read_bytes(source)
    if not data:
        raise ImageError(f"{name}: the file is empty.")
    pixels = convert(decode(data, name), channels, dtype, name)
    return pixels if pixels.flags.writeable else pixels.copy()


def check_image(source: str | Path | bytes) -> None:
    """Look at an image's header only; damage behind it is found by ``read_image``.

    Raises:
        ImageError: If the file is empty, no image, or larger than ``limits.max_pixels``.
        FileNotFoundError: If there is no such file.
    """
    name = _name(source)
    file: BinaryIO
    with io.BytesIO(source) if isinstance(source, bytes) else open_bytes(source) as file:
        check_pixels(read_header(file, name), name)


def _name(source: str | Path | bytes) -> str:
    """What errors call an image."""
    return f"image of {len(source)} bytes" if isinstance(source, bytes) else str(source)


def decode(data: bytes, name: str) -> Decoded:
    """The pixels as the file has them: own depth and channels, not yet turned.

    Raises:
        ImageError: If the file is corrupt, truncated, no image, or too large.
    """
    if data.startswith(JPEG):
        return _read_jpeg(data, name)
    if data.startswith(NPY):
        return from_array(read_npy(data, name), name)
    if is_tiff(data):
        return _read_tiff(data, name)
    return _read_other(data, name)


def decode_brightness(data: bytes, name: str) -> tuple[Decoded, int]:
    """``decode`` for who does not look at colors: of a JPEG they are not made, though all of the file is read.

    Returns:
        The pixels, of a colored JPEG its brightness alone (Rec. 601 luma, as stored), and how many colors the file has.

    Raises:
        ImageError: As ``decode``.
    """
    if data.startswith(JPEG) and jpeg_header(data, name).components == _COLORS:
        return _read_jpeg(data, name, luma=True), _COLORS
    decoded = decode(data, name)
    return decoded, decoded.pixels.shape[2] - decoded.has_alpha


# JPEG.


def _read_jpeg(data: bytes, name: str, *, luma: bool = False) -> Decoded:
    header = jpeg_header(data, name)
    check_pixels(Header(header.width, header.height), name)
    # Decoders fill a missing rest with grey without an error; entropy-coded data cannot contain the end marker.
    if data.rfind(b"\xff\xd9", header.scan) < 0:
        raise ImageError(f"{name}: the file is truncated, the JPEG has no end marker.")
    if header.components == 4:
        pixels = _decode_cmyk(data, header, name)
    else:
        pixels = _decode_jpeg(data, is_grey=luma or header.components == 1, name=name)
    return Decoded(pixels, orientation=header.orientation)


def _decode_cmyk(data: bytes, header: JpegHeader, name: str) -> Pixels:
    image = open_image(io.BytesIO(data), name)
    attempt(image.load, name)
    # Pillow takes all CMYK JPEGs for Adobe's inverted ones.
    inks = image if header.adobe else ImageChops.invert(image)
    return np.asarray(inks.convert("RGB"))


def _decode_jpeg(data: bytes, *, is_grey: bool, name: str) -> Pixels:
    """(H, W, 1) or (H, W, 3) RGB."""
    if simplejpeg is None:
        mode = cv2.IMREAD_GRAYSCALE if is_grey else cv2.IMREAD_COLOR_RGB
        pixels = _opencv(data, mode | cv2.IMREAD_IGNORE_ORIENTATION, name)
        return pixels if pixels.ndim == 3 else pixels[..., None]
    colorspace = "GRAY" if is_grey else "RGB"
    try:
        # The exact settings give cv2's and Pillow's pixels bit for bit and cost 4 %. Not strict, as cv2 and Pillow:
        # warnings such as "extraneous bytes" come with many images on the web.
        decoded: Pixels = simplejpeg.decode_jpeg(data, colorspace, fastdct=False, fastupsample=False, strict=False)
    except (ValueError, RuntimeError) as error:
        raise ImageError(f"{name}: the JPEG cannot be decoded ({error}).") from error
    return decoded


# Other formats.


def _opencv(data: bytes, flags: int, name: str) -> Pixels:
    try:
        pixels: Pixels | None = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise ImageError(f"{name}: the image cannot be decoded ({error}).") from error
    if pixels is None:
        raise ImageError(f"{name}: the image is corrupt or truncated.")
    return pixels


def _read_other(data: bytes, name: str) -> Decoded:
    """PNG, WebP, GIF, BMP, AVIF, JPEG 2000, PNM; of an animation the first frame."""
    image = open_image(io.BytesIO(data), name)
    check_pixels(Header(*image.size), name)
    # Pillow decodes the whole PNG to look for EXIF behind the pixels, so ask only where there is some.
    has_exif = "exif" in image.info or b"eXIf" in data or b"Raw profile type" in data
    orientation = attempt(lambda: image.getexif().get(ORIENTATION_TAG, 1), name) if has_exif else 1
    is_keyed = "transparency" in image.info  # one value is transparent, which OpenCV heeds in RGB only
    if data.startswith(PNG) and (image.mode.startswith("RGB") or (image.mode != "P" and not is_keyed)):
        decoded = _read_png(data, name)
    else:
        decoded = _from_pillow(image, name)
    return decoded._replace(orientation=orientation if isinstance(orientation, int) else 1)


def _read_png(data: bytes, name: str) -> Decoded:
    """By OpenCV: faster, and Pillow would cut 16-bit color to 8 bits."""
    pixels = _opencv(data, cv2.IMREAD_UNCHANGED, name)
    if pixels.ndim == 2:
        return Decoded(pixels[..., None])
    if pixels.shape[2] == 3:
        return Decoded(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB))
    rgba = cv2.cvtColor(pixels, cv2.COLOR_BGRA2RGBA)
    is_grey = data[_PNG_COLOR_TYPE] == _PNG_GREY_ALPHA  # which OpenCV expands to three equal channels
    return Decoded(rgba[..., 2:] if is_grey else rgba, has_alpha=True)


def _from_pillow(image: Image.Image, name: str) -> Decoded:
    """Decode with Pillow, keeping 16-bit grey and float."""
    attempt(image.load, name)
    mode = image.mode
    key = image.info.get("transparency")
    if mode.startswith("I;16") or (mode == "I" and image.format == "PPM"):  # Pillow scales deep PGM to 16 bits
        return _deep_grey(np.asarray(image).astype(np.uint16)[..., None], key)
    if mode == "F":
        return from_array(np.asarray(image), name)
    if mode == "I":
        raise ImageError(
            f"{name}: 32-bit integer pixels have no known range; save as 8-bit, 16-bit or float in [0, 1]."
        )
    target = _plain_mode(mode, has_key=key is not None)
    if target != mode:
        image = attempt(lambda: image.convert(target), name)
    pixels = np.asarray(image)
    return Decoded(pixels if pixels.ndim == 3 else pixels[..., None], has_alpha=image.mode in ("LA", "RGBA"))


def _deep_grey(grey: Pixels, key: Any) -> Decoded:
    """uint16 (H, W, 1), with alpha where a PNG names one value that is transparent."""
    if not isinstance(key, int):
        return Decoded(grey)
    alpha = np.where(grey == key, 0, 65535).astype(np.uint16)
    return Decoded(np.concatenate([grey, alpha], axis=2), has_alpha=True)


def _plain_mode(mode: str, *, has_key: bool) -> str:
    """The nearest of Pillow's modes without a palette, a key color, other color spaces or premultiplied alpha."""
    if has_key or mode in ("PA", "La", "RGBa"):
        return "RGBA"
    if mode == "1":
        return "L"
    return mode if mode in ("L", "LA", "RGB", "RGBA") else "RGB"


def _read_tiff(data: bytes, name: str) -> Decoded:
    check_pixels(tiff_header(io.BytesIO(data), name), name)
    try:
        result = read_tiff(data)
    except Exception as error:  # whatever the decoders make of damage
        raise ImageError(f"{name}: the TIFF cannot be decoded ({error or type(error).__name__}).") from error
    if isinstance(result, Image.Image):
        return _from_pillow(result, name)
    decoded = from_array(result.pixels, name)
    return decoded._replace(has_alpha=result.has_alpha, orientation=result.orientation)
