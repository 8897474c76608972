"""Sizes of image files from their headers, and whether annotations were made for them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from datamodules.common.errors import UserError
from datamodules.decoding.images import ImageError, check_image, read_image
from datamodules.decoding.jpeg import parse_jpeg
from datamodules.decoding.tiff import is_tiff, tiff_size
from datamodules.readers import Record

_HEADER_BYTES = 1 << 16
_FORMATS = ("PNG", "WEBP", "GIF", "BMP", "JPEG2000", "PPM", "AVIF")
_ORIENTATION_TAG = 0x0112
_LISTED = 10


def image_size(path: str | Path) -> tuple[int, int]:
    """Height and width that ``read_image`` will give, the EXIF orientation included, from the file's header.

    The orientation of a PNG is not seen where it stands behind the pixels.

    Raises:
        ImageError: If the file is no image.
        UserError: If there is no such file.
    """
    with open(path, "rb") as file:
        data = file.read(_HEADER_BYTES)
        try:
            if data.startswith(b"\xff\xd8\xff"):
                try:
                    jpeg = parse_jpeg(data)
                except ValueError:  # a header with large EXIF, thumbnail or profile
                    jpeg = parse_jpeg(data + file.read())
                return (jpeg.width, jpeg.height) if jpeg.orientation >= 5 else (jpeg.height, jpeg.width)
            if data.startswith(b"\x93NUMPY"):
                height, width = np.load(path, mmap_mode="r").shape[:2]
                return height, width
            file.seek(0)
            if is_tiff(data):
                try:
                    width, height = Image.open(file, formats=("TIFF",)).size  # Pillow turns it when opening
                except OSError:  # bands that Pillow has no mode for
                    file.seek(0)
                    width, height = tiff_size(file.read())
                return height, width
            image = Image.open(file, formats=_FORMATS)
            width, height = image.size
            turned = "exif" in image.info and image.getexif().get(_ORIENTATION_TAG, 1) >= 5
            return (width, height) if turned else (height, width)
        except Exception as error:  # whatever a damaged header provokes
            check_image(path)  # knows more about what is wrong
            raise ImageError(f"{path}: its size cannot be read ({error}).") from error


def image_sizes(paths: Iterable[str]) -> list[tuple[int, int]]:
    """``image_size`` of many files, read by threads."""
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(image_size, paths))


def check_sizes(records: Sequence[Record]) -> list[Record]:
    """Compare ``height`` and ``width`` of the annotations with the image files, and fill in what is 0.

    Boxes that were drawn on another size of the picture train without an error, on the wrong pixels.

    Args:
        records: Detection records (see ``datamodules.readers.coco``); not changed. Those that hold arrays are taken as
            good.

    Returns:
        The records; those without a size as new dicts.

    Raises:
        UserError: If sizes differ; the first ten are listed with both.
        ImageError: If a file is no image.
    """
    files = [i for i, record in enumerate(records) if isinstance(record["image"], str)]
    out, wrong = list(records), []
    for i, found in zip(files, image_sizes(records[i]["image"] for i in files), strict=True):
        record = records[i]
        given = (record["height"], record["width"])
        if given == found:
            continue
        if 0 in given:
            out[i] = {**record, "height": found[0], "width": found[1]}
            continue
        if found == given[::-1]:
            found = read_image(record["image"]).shape[:2]  # the orientation may stand behind the pixels
        if given != found:
            turned = ", turned" if given == found[::-1] else ""
            wrong.append(
                f"{record['path']}: {given[1]} x {given[0]} annotated, the file is {found[1]} x {found[0]}{turned}"
            )
    if wrong:
        shown = "\n".join(f"  {line}" for line in wrong[:_LISTED])
        raise UserError(
            f"{len(wrong)} image(s) have another size (width x height) than their annotations say:\n{shown}\nThe boxes"
            " were drawn on other pixels: put those images back, or scale the annotations. An image with an EXIF"
            " orientation is read turned; remove the tag if the boxes were drawn on the picture as stored."
        )
    return out
