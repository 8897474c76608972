"""The one place where image files become pixels: any file people have, one conversion rule (``docs/data.md``)."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias, TypeVar

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageChops

from datamodules.common.errors import UserError
from datamodules.decoding.jpeg import JpegHeader, parse_jpeg
from datamodules.decoding.tiff import is_tiff, read_tiff, tiff_size
from datamodules.decoding.video import is_frame, is_video, list_frames, read_frame

# Optional: without it cv2 gives the same pixels, a little slower.
simplejpeg: Any = import_module("simplejpeg") if find_spec("simplejpeg") else None

Pixels: TypeAlias = npt.NDArray[Any]
T = TypeVar("T")

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".avif", ".jp2"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".npy"),
)
MAX_PIXELS = 178_956_970  # Pillow's own limit for a decompression bomb: 2/3 GiB of RGB pixels

_JPEG = b"\xff\xd8\xff"
_NPY = b"\x93NUMPY"
_PNG = b"\x89PNG"
_HEADER_BYTES = 1 << 16
_ORIENTATION_TAG = 0x0112
# What Pillow may open here: its other readers are no image formats of ours, and one of them starts Ghostscript.
# AVIF comes last: Pillow before 11.3 does not know it, and ends the search there.
_PILLOW_FORMATS = ("PNG", "WEBP", "GIF", "BMP", "JPEG2000", "PPM", "JPEG", "AVIF")

# Pillow's own limit warns at half of ours and cannot be given per call; `max_pixels` is checked before any decoding.
Image.MAX_IMAGE_PIXELS = None
# What goes wrong is raised as an ImageError; OpenCV would print pages about the same file.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


class ImageError(UserError):
    """A file that is no readable image; the message names the file and the reason."""


class _Decoded(NamedTuple):
    pixels: Pixels  # (H, W, C), C >= 1; uint8, uint16 or float32; RGB order
    has_alpha: bool = False  # the last channel is opacity, not premultiplied
    orientation: int = 1  # EXIF, still to be applied


def read_image(
    source: str | Path | bytes | Pixels,
    channels: int = 3,
    dtype: Literal["uint8", "float32"] = "uint8",
    max_pixels: int = MAX_PIXELS,
) -> Pixels:
    """Decode an image by the one conversion rule.

    EXIF orientation is applied; alpha is composited over white; CMYK and palettes become RGB; grey to RGB repeats the
    channel, RGB to grey is Rec. 601 luma (0.299, 0.587, 0.114) at the source's depth; 16 bits become 8 by dividing by
    257, float images must lie in [0, 1] and are multiplied by 255, both rounded. Colour profiles are ignored.

    Args:
        source: File, its bytes, a video's frame (``clip.mp4#000012``), or an array (H, W) or (H, W, C) of uint8,
            uint16, bool or float in [0, 1].
        channels: 1 (grey), 3 (RGB), or the exact number of channels in the source, which then come unconverted.
        dtype: ``float32`` gives [0, 1] with the source's full depth.
        max_pixels: Height times width above which the file is refused before decoding.

    Returns:
        C-contiguous (H, W, channels) of ``dtype``, writeable and never shared with an array given.

    Raises:
        ImageError: If the file is corrupt, truncated, no image, too large, or does not have so many channels.
        UserError: If there is no such file.
    """
    if is_frame(source):
        return np.array(_convert(_Decoded(read_frame(str(source))), channels, dtype, str(source)))
    if isinstance(source, np.ndarray):
        name = "image array"
        return np.array(_convert(_from_array(source, name), channels, dtype, name))  # never the caller's memory
    name, data = _load(source)
    if data.startswith(_JPEG):
        image = _read_jpeg(data, name, max_pixels)
    elif data.startswith(_NPY):
        image = _from_array(_read_npy(data, name, max_pixels), name)
    elif is_tiff(data):
        image = _read_tiff(data, name, max_pixels)
    else:
        image = _read_other(data, name, max_pixels)
    pixels = _convert(image, channels, dtype, name)
    return pixels if pixels.flags.writeable else pixels.copy()


def check_image(source: str | Path | bytes, max_pixels: int = MAX_PIXELS) -> None:
    """Look at an image's header only; damage behind it is found by ``read_image``.

    Raises:
        ImageError: If the file is empty, no image, or larger than ``max_pixels``.
        UserError: If there is no such file.
    """
    name, data = _load(source, _HEADER_BYTES)
    try:
        _check_header(data, name, max_pixels)
    except ImageError:
        if len(data) < _HEADER_BYTES or isinstance(source, bytes):
            raise
        _check_header(_load(source)[1], name, max_pixels)  # a header with large EXIF, thumbnail or profile


def find_images(source: str | Path) -> list[str]:
    """List image files: the file itself, a video's frames, or all images in a folder and its sub-folders, sorted.

    Files and folders whose names start with a dot are skipped. Linked folders are followed, each real folder being
    visited once, so that loops end.

    Raises:
        UserError: If ``source`` does not exist.
        UserError: If the folder holds no file with a suffix of ``IMAGE_SUFFIXES``, or the video cannot be decoded.
    """
    root = Path(source)
    if root.is_file():
        return list_frames(root) if is_video(root) else [str(root)]
    if not root.is_dir():
        raise UserError(f"'{root}' does not exist (looked in {Path.cwd()}); give an image file or a folder.")
    found: list[str] = []
    seen: set[str] = set()
    pending = [str(root)]
    while pending:  # real folders first, then the linked ones found among them
        for folder, folders, files in os.walk(pending.pop(0)):
            real = os.path.realpath(folder)
            if real in seen:
                folders.clear()
                continue
            seen.add(real)
            found += [
                os.path.join(folder, f) for f in files if f.lower().endswith(IMAGE_SUFFIXES) and not f.startswith(".")
            ]
            visible = sorted(f for f in folders if not f.startswith("."))
            folders[:] = [f for f in visible if not os.path.islink(os.path.join(folder, f))]
            pending += [os.path.join(folder, f) for f in visible if f not in folders]
    if not found:
        raise UserError(f"Folder '{root}' holds no image files (known suffixes: {', '.join(IMAGE_SUFFIXES)}).")
    return sorted(found)


def _load(source: str | Path | bytes, limit: int = -1) -> tuple[str, bytes]:
    if isinstance(source, bytes):
        name, data = f"image of {len(source)} bytes", source
    else:
        name = str(source)
        with open(source, "rb") as file:
            data = file.read(limit)
    if not data:
        raise ImageError(f"{name}: the file is empty.")
    return name, data


def _check_size(width: int, height: int, name: str, max_pixels: int) -> None:
    if width < 1 or height < 1:
        raise ImageError(f"{name}: the header says {width} x {height} pixels.")
    if width * height > max_pixels:
        raise ImageError(
            f"{name}: {width} x {height} = {width * height:,} pixels are more than max_pixels = {max_pixels:,}; it was"
            " not decoded. Scale the image down, or raise max_pixels if you trust the file."
        )


def _check_header(data: bytes, name: str, max_pixels: int) -> None:
    if data.startswith(_JPEG):
        header = _jpeg_header(data, name)
        _check_size(header.width, header.height, name, max_pixels)
    elif data.startswith(_NPY):
        _npy_header(data, name, max_pixels)
    elif is_tiff(data):
        _check_size(*_tiff_size(data, name), name, max_pixels)
    else:
        _open(data, name, max_pixels)


# JPEG.


def _jpeg_header(data: bytes, name: str) -> JpegHeader:
    try:
        return parse_jpeg(data)
    except ValueError as error:
        raise ImageError(f"{name}: {error}.") from error


def _read_jpeg(data: bytes, name: str, max_pixels: int) -> _Decoded:
    header = _jpeg_header(data, name)
    _check_size(header.width, header.height, name, max_pixels)
    # Decoders fill a missing rest with grey without an error; entropy-coded data cannot contain the end marker.
    if data.rfind(b"\xff\xd9", header.scan) < 0:
        raise ImageError(f"{name}: the file is truncated, the JPEG has no end marker.")
    if header.components == 4:
        image = _open(data, name, max_pixels)
        _pillow(image.load, name)
        # Pillow takes all CMYK JPEGs for Adobe's inverted ones.
        pixels: Pixels = np.asarray((image if header.adobe else ImageChops.invert(image)).convert("RGB"))
    elif simplejpeg is not None:
        try:
            # The exact settings give cv2's and Pillow's pixels bit for bit and cost 4 %. Not strict, as cv2 and
            # Pillow: warnings such as "extraneous bytes" come with many images on the web.
            pixels = simplejpeg.decode_jpeg(
                data, "GRAY" if header.components == 1 else "RGB", fastdct=False, fastupsample=False, strict=False
            )
        except (ValueError, RuntimeError) as error:
            raise ImageError(f"{name}: the JPEG cannot be decoded ({error}).") from error
    else:
        mode = cv2.IMREAD_GRAYSCALE if header.components == 1 else cv2.IMREAD_COLOR_RGB
        pixels = _opencv(data, mode | cv2.IMREAD_IGNORE_ORIENTATION, name)
        pixels = pixels if pixels.ndim == 3 else pixels[..., None]
    return _Decoded(pixels, orientation=header.orientation)


# Other formats.


def _opencv(data: bytes, flags: int, name: str) -> Pixels:
    try:
        pixels: Pixels | None = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise ImageError(f"{name}: the image cannot be decoded ({error}).") from error
    if pixels is None:
        raise ImageError(f"{name}: the image is corrupt or truncated.")
    return pixels


def _pillow(step: Callable[[], T], name: str) -> T:
    try:
        return step()
    except Exception as error:  # Pillow's plugins let through whatever a damaged file provokes
        raise ImageError(f"{name}: the image is corrupt or truncated ({error or type(error).__name__}).") from error


def _open(data: bytes, name: str, max_pixels: int) -> Image.Image:
    """Let Pillow read the header."""
    try:
        image = Image.open(io.BytesIO(data), formats=_PILLOW_FORMATS)
    except Exception as error:
        start = data[:512].lstrip().lower()
        if start.startswith((b"<!doctype", b"<html", b"<head", b"<?xml")) or b"<html" in start or b"<svg" in start:
            reason = "it holds HTML, XML or SVG text, not pixels; a download may have failed"
        elif start.startswith(b"version https://git-lfs"):
            reason = "it is a Git LFS pointer; run `git lfs pull`"
        else:
            reason = f"no known image format, or a damaged header (the first bytes are {data[:8]!r})"
        raise ImageError(f"{name}: {reason}.") from error
    _check_size(*image.size, name, max_pixels)
    return image


def _read_other(data: bytes, name: str, max_pixels: int) -> _Decoded:
    """PNG, WebP, GIF, BMP, AVIF, JPEG 2000, PNM; of an animation the first frame."""
    image = _open(data, name, max_pixels)
    # Pillow decodes the whole PNG to look for EXIF behind the pixels, so ask only where there is some.
    has_exif = "exif" in image.info or b"eXIf" in data or b"Raw profile type" in data
    orientation = _pillow(lambda: image.getexif().get(_ORIENTATION_TAG, 1), name) if has_exif else 1
    is_png = data.startswith(_PNG)
    keyed = "transparency" in image.info
    if is_png and image.mode != "P" and (image.mode.startswith("RGB") or not keyed):
        pixels = _opencv(data, cv2.IMREAD_UNCHANGED, name)  # faster, and Pillow would cut 16-bit colour to 8 bits
        if pixels.ndim == 2:
            decoded = _Decoded(pixels[..., None])
        elif pixels.shape[2] == 3:
            decoded = _Decoded(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB))
        else:
            grey = data[25] == 4  # the header's colour type: grey with alpha, which cv2 expands
            rgba = cv2.cvtColor(pixels, cv2.COLOR_BGRA2RGBA)
            decoded = _Decoded(rgba[..., 2:] if grey else rgba, has_alpha=True)
    else:
        decoded = _from_pillow(image, name)
    return decoded._replace(orientation=orientation if isinstance(orientation, int) else 1)


def _from_pillow(image: Image.Image, name: str) -> _Decoded:
    """Decode with Pillow, keeping 16-bit grey and float."""
    _pillow(image.load, name)
    mode = image.mode
    key = image.info.get("transparency")
    if mode.startswith("I;16") or (mode == "I" and image.format == "PPM"):  # Pillow scales deep PGM to 16 bits
        grey = np.asarray(image).astype(np.uint16)[..., None]
        if isinstance(key, int):  # PNG: this one value is transparent
            alpha = np.where(grey == key, 0, 65535).astype(np.uint16)
            return _Decoded(np.concatenate([grey, alpha], axis=2), has_alpha=True)
        return _Decoded(grey)
    if mode == "F":
        return _from_array(np.asarray(image), name)
    if mode == "I":
        raise ImageError(
            f"{name}: 32-bit integer pixels have no known range; save as 8-bit, 16-bit or float in [0, 1]."
        )
    if key is not None or mode in ("PA", "La", "RGBa"):
        image = _pillow(lambda: image.convert("RGBA"), name)
    elif mode not in ("L", "LA", "RGB", "RGBA"):
        image = _pillow(lambda: image.convert("L" if mode == "1" else "RGB"), name)
    pixels = np.asarray(image)
    return _Decoded(pixels if pixels.ndim == 3 else pixels[..., None], has_alpha=image.mode in ("LA", "RGBA"))


def _tiff_size(data: bytes, name: str) -> tuple[int, int]:
    return _pillow(lambda: tiff_size(data), name)


def _read_tiff(data: bytes, name: str, max_pixels: int) -> _Decoded:
    _check_size(*_tiff_size(data, name), name, max_pixels)
    try:
        result = read_tiff(data)
    except Exception as error:
        raise ImageError(f"{name}: the TIFF cannot be decoded ({error or type(error).__name__}).") from error
    if isinstance(result, Image.Image):
        return _from_pillow(result, name)
    pixels, has_alpha, orientation = result
    return _from_array(pixels, name)._replace(has_alpha=has_alpha, orientation=orientation)


def _npy_header(data: bytes, name: str, max_pixels: int) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    file = io.BytesIO(data)
    version = _pillow(lambda: np.lib.format.read_magic(file), name)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = _pillow(lambda: read(file), name)
    if len(shape) not in (2, 3):
        raise ImageError(f"{name}: an array of shape {shape} is no image; (H, W) or (H, W, C) is.")
    _check_size(shape[1], shape[0], name, max_pixels)
    return shape, fortran, dtype, file.tell()


def _read_npy(data: bytes, name: str, max_pixels: int) -> Pixels:
    shape, fortran, dtype, start = _npy_header(data, name, max_pixels)
    if dtype.hasobject:
        raise ImageError(f"{name}: it holds Python objects, which are not read; save a plain array.")
    size = int(np.prod(shape)) * dtype.itemsize
    if len(data) < start + size:
        raise ImageError(f"{name}: the file is truncated, {len(data) - start} bytes of {size} are there.")
    flat: Pixels = np.frombuffer(data, dtype, int(np.prod(shape)), start)
    return flat.reshape(shape, order="F" if fortran else "C")


# The conversion rule.


def _from_array(pixels: Pixels, name: str) -> _Decoded:
    if pixels.ndim not in (2, 3) or pixels.size == 0:
        raise ImageError(f"{name}: an array of shape {pixels.shape} is no image; (H, W) or (H, W, C) is.")
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.dtype == bool:
        return _Decoded(pixels.astype(np.uint8) * np.uint8(255))
    if pixels.dtype.kind == "f":
        low, high = float(pixels.min()), float(pixels.max())
        if not (low >= 0 and high <= 1):  # also not with NaN
            raise ImageError(
                f"{name}: its float pixels lie in [{low:g}, {high:g}], they must lie in [0, 1]. Scale them when writing"
                " the file."
            )
        return _Decoded(pixels.astype(np.float32, copy=False))
    if pixels.dtype.kind == "u" and pixels.dtype.itemsize <= 2:
        return _Decoded(pixels.astype(np.uint8 if pixels.dtype.itemsize == 1 else np.uint16, copy=False))
    raise ImageError(
        f"{name}: pixels of type {pixels.dtype} have no known range; use uint8, uint16 or float in [0, 1]."
    )


def _convert(image: _Decoded, channels: int, dtype: str, name: str) -> Pixels:
    if dtype not in ("uint8", "float32"):
        raise UserError(f"dtype is '{dtype}'; it must be 'uint8' or 'float32'.")
    pixels: Pixels = image.pixels
    has = pixels.shape[2]
    if channels != has or image.has_alpha:
        colours = has - image.has_alpha
        if channels != has and (channels not in (1, 3) or colours not in (1, 3)):
            raise ImageError(
                f"{name}: the image has {has} channels, {channels} are asked for. 1 and 3 convert into each other;"
                f" otherwise set the number of channels to {has}."
            )
        if image.has_alpha and channels in (1, 3):
            pixels = _over_white(pixels)
        if channels == 1 and colours == 3:
            pixels = cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_RGB2GRAY)[..., None]
        elif channels == 3 and colours == 1:
            pixels = cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_GRAY2RGB)
    if dtype == "uint8" and pixels.dtype != np.uint8:
        if pixels.dtype == np.uint16:
            pixels = ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)  # = round(x / 257): no ties
        else:
            pixels = np.rint(pixels * 255).astype(np.uint8)
    elif dtype == "float32" and pixels.dtype != np.float32:
        pixels = pixels.astype(np.float32) / np.float32(np.iinfo(pixels.dtype).max)
    return np.ascontiguousarray(_orient(pixels, image.orientation))


def _over_white(pixels: Pixels) -> Pixels:
    """Composite (H, W, C + alpha) over white -> (H, W, C), rounded at the source's depth."""
    colour, alpha = pixels[..., :-1], pixels[..., -1:]
    if pixels.dtype == np.float32:
        return np.asarray(colour * alpha + (1 - alpha))
    top = int(np.iinfo(pixels.dtype).max)
    if alpha.min() == top:
        return colour
    wide, opacity = colour.astype(np.uint32), alpha.astype(np.uint32)  # 65535 * 65535 + 32767 still fits
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
