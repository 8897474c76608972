"""Sizes of image files from their headers."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from datamodules.decoding.contents import open_bytes
from datamodules.decoding.headers import read_header


def image_size(path: str | Path) -> tuple[int, int]:
    """Height and width that ``read_image`` will give, the EXIF orientation included, from the file's header.

    The orientation of a PNG is not seen where it stands behind the pixels.

    Raises:
        ImageError: If the file is no image.
        FileNotFoundError: If there is no such file.
    """
    with open_bytes(path) as file:
        return read_header(file, str(path)).shown()


def image_sizes(paths: Iterable[str]) -> list[tuple[int, int]]:
    """``image_size`` of many files, read by threads."""
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(image_size, paths))
