"""What the header of an image file says: whether it is an image, its size, and whether that may be decoded."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any, BinaryIO, NamedTuple, TypeVar

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, PngImagePlugin

from datamodules.common.errors import UserError
from datamodules.decoding.jpeg import ORIENTATION_TAG, JpegHeader, parse_jpeg
from datamodules.decoding.limits import max_pixels
from datamodules.decoding.tiff import is_tiff, read_layout

T = TypeVar("T")

JPEG = b"\xff\xd8\xff"
NPY = b"\x93NUMPY"
PNG = b"\x89PNG"

# What Pillow may open here: its other readers are no image formats of ours, and one of them starts Ghostscript.
# AVIF comes last: Pillow before 11.3 does not know it, and ends the search there.
_PILLOW_FORMATS = ("PNG", "WEBP", "GIF", "BMP", "JPEG2000", "PPM", "JPEG", "AVIF")
_START_BYTES = 1 << 16
_FREE_BANDS = 16  # so many channels of a TIFF are taken as one pixel

# Editors store whole histories and large color profiles in a PNG's text, which Pillow refuses from a megabyte on.
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = 1 << 26
# What goes wrong is raised as an ImageError; OpenCV would print pages about the same file.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


class ImageError(UserError):
    """A file that is no readable image; the message names the file and the reason."""


class Header(NamedTuple):
    """Size of the stored pixels, and how they are to be turned.

    Attributes:
        width: In pixels, before turning.
        height: Likewise.
        orientation: EXIF's, 1 to 8; from 5 on height and width change places.
        bands: Channels of a TIFF, which has no limit of its own; 1 for other formats.
    """

    width: int
    height: int
    orientation: int = 1
    bands: int = 1

    def shown(self) -> tuple[int, int]:
        """Height and width of the picture as it is shown."""
        return (self.width, self.height) if self.orientation >= 5 else (self.height, self.width)


def read_header(file: BinaryIO, name: str) -> Header:
    """The header of an image file of any format.

    The orientation of a PNG is not seen where it stands behind the pixels.

    Args:
        file: At its start.
        name: What errors call it.

    Raises:
        ImageError: If it is no image, or its header is damaged.
    """
    start = file.read(_START_BYTES)
    if not start:
        raise ImageError(f"{name}: the file is empty.")
    if start.startswith(JPEG):
        try:
            jpeg = jpeg_header(start, name)
        except ImageError:  # a header with large EXIF, thumbnail or profile
            jpeg = jpeg_header(start + file.read(), name)
        return Header(jpeg.width, jpeg.height, jpeg.orientation)
    file.seek(0)
    if start.startswith(NPY):
        shape = npy_header(file, name).shape
        return Header(shape[1], shape[0])
    if is_tiff(start):
        return tiff_header(file, name)
    image = open_image(file, name)
    orientation = attempt(lambda: image.getexif().get(ORIENTATION_TAG, 1), name) if "exif" in image.info else 1
    return Header(*image.size, orientation if isinstance(orientation, int) else 1)


def check_pixels(header: Header, name: str) -> None:
    """Refuse what is too large to be decoded, whatever the file's own size.

    Raises:
        ImageError: If there are more pixels than ``limits.max_pixels``, or none.
    """
    width, height = header.width, header.height
    if width < 1 or height < 1:
        raise ImageError(f"{name}: the header says {width} x {height} pixels.")
    if width * height * max(1, header.bands // _FREE_BANDS) > max_pixels():
        bands = f" of {header.bands} channels" if header.bands > _FREE_BANDS else ""
        raise ImageError(
            f"{name}: {width} x {height} = {width * height:,} pixels{bands} are more than max_pixels ="
            f" {max_pixels():,}; it was not decoded. Scale it down, cut it into tiles, or raise data.max_pixels."
        )


def attempt(step: Callable[[], T], name: str) -> T:
    """What ``step`` gives; whatever a damaged file provokes in it becomes an ImageError."""
    try:
        return step()
    except ImageError:
        raise
    except Exception as error:  # Pillow's plugins let everything through
        raise ImageError(f"{name}: the image is corrupt or truncated ({error or type(error).__name__}).") from error


def jpeg_header(data: bytes, name: str) -> JpegHeader:
    """``parse_jpeg``, its errors with the file's name.

    Raises:
        ImageError: If the header is damaged or cut off.
    """
    try:
        return parse_jpeg(data)
    except UserError as error:
        raise ImageError(f"{name}: {error}.") from error


def tiff_header(file: BinaryIO, name: str) -> Header:
    """The first page's size, orientation and channels.

    Raises:
        ImageError: If the tags are damaged.
    """
    layout = attempt(lambda: read_layout(file), name)
    return Header(layout.width, layout.height, layout.orientation, layout.samples)


class NpyHeader(NamedTuple):
    """Shape, order, type and place of the values."""

    shape: tuple[int, ...]
    fortran_order: bool
    dtype: np.dtype[Any]
    start: int  # of the values, in bytes


def npy_header(file: BinaryIO, name: str) -> NpyHeader:
    """The header of a ``.npy`` file.

    Raises:
        ImageError: If it is damaged, or the array is neither (H, W) nor (H, W, C).
    """
    version = attempt(lambda: np.lib.format.read_magic(file), name)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran_order, dtype = attempt(lambda: read(file), name)
    if len(shape) not in (2, 3):
        raise ImageError(f"{name}: an array of shape {shape} is no image; (H, W) or (H, W, C) is.")
    return NpyHeader(shape, fortran_order, dtype, file.tell())


def read_npy(data: bytes, name: str) -> npt.NDArray[Any]:
    """The array of a ``.npy`` file: a view of ``data``, (H, W) or (H, W, C).

    Raises:
        ImageError: If it is damaged, too large, or holds Python objects.
    """
    header = npy_header(io.BytesIO(data), name)
    check_pixels(Header(header.shape[1], header.shape[0]), name)
    if header.dtype.hasobject:
        raise ImageError(f"{name}: it holds Python objects, which are not read; save a plain array.")
    count = int(np.prod(header.shape))
    size = count * header.dtype.itemsize
    there = len(data) - header.start
    if there < size:
        raise ImageError(f"{name}: the file is truncated, {there} bytes of {size} are there.")
    flat: npt.NDArray[Any] = np.frombuffer(data, header.dtype, count, header.start)
    return flat.reshape(header.shape, order="F" if header.fortran_order else "C")


def open_image(file: BinaryIO, name: str, formats: tuple[str, ...] = _PILLOW_FORMATS) -> Image.Image:
    """Let Pillow read the header; before the pixels are decoded, ``check_pixels`` is to be asked.

    Args:
        file: At its start.
        name: What errors call it.
        formats: Those of Pillow that are tried.

    Raises:
        ImageError: If the file is no such image or too large.
    """
    try:
        image = Image.open(file, formats=formats)
    except Image.DecompressionBombError as error:
        raise ImageError(
            f"{name}: its pixels are more than max_pixels = {max_pixels():,}; it was not decoded ({error})."
        ) from error
    except Exception as error:
        file.seek(0)
        raise ImageError(f"{name}: {_no_image(file.read(512))}.") from error
    return image


def _no_image(start: bytes) -> str:
    """What a file seems to be in place of an image, by its first bytes."""
    text = start.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<head", b"<?xml")) or b"<html" in text or b"<svg" in text:
        return "it holds HTML, XML or SVG text, not pixels; a download may have failed"
    if text.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer; run `git lfs pull`"
    return f"no known image format, or a damaged header (the first bytes are {start[:8]!r})"
