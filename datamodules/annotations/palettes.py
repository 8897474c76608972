"""Whether the palettes of a set of mask files agree: one number must mean one color in all of them."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from datamodules.annotations.mask_files import load_mask
from datamodules.common.errors import UserError
from datamodules.decoding.contents import open_bytes
from datamodules.decoding.headers import ImageError


def check_palettes(paths: Sequence[str]) -> None:
    """Refuse palette files that give one number two colors.

    Programs that reduce a picture to a palette (pngquant, Pillow's ADAPTIVE) number the colors of each file anew. Only
    the numbers that a file holds count.

    Args:
        paths: Mask files; those without a palette, and those that cannot be read, are left to other checks.

    Raises:
        UserError: Naming two such files, the number and both colors.
    """
    with ThreadPoolExecutor(8) as pool:
        palettes = list(pool.map(_palette, paths))
    if len(set(palettes) - {None}) < 2:
        return  # all the same, which is as good as always
    first: dict[int, tuple[str, list[int]]] = {}
    for path, palette in zip(paths, palettes, strict=True):
        for number, color in _colors(path).items() if palette is not None else ():
            other, known = first.setdefault(number, (path, color))
            if color != known:
                raise UserError(
                    f"The palettes of the masks disagree: {number} is the color {known} in {other} and {color} in"
                    f" {path}. If the colors are meant, set data.mask_format: rgb and data.colors, a color for each"
                    " class; if the numbers are, set data.mask_format: index."
                )


def _palette(path: str) -> bytes | None:
    """A file's palette, from its header."""
    try:
        with open_bytes(path) as file, Image.open(file) as image:
            return bytes(image.getpalette("RGB") or ()) if image.mode == "P" else None
    except Exception:  # whatever Pillow makes of damage: the check of all masks reports it
        return None


def _colors(path: str) -> dict[int, list[int]]:
    """The numbers in a mask and their colors."""
    try:
        stored = load_mask(path)
    except (ImageError, OSError):
        return {}
    if stored.palette is None:
        return {}
    return {int(number): stored.palette[number].tolist() for number in np.unique(stored.pixels)}
