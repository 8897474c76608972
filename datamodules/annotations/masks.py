"""Mask files become class indices here: uint8 (H, W), one class a pixel, 255 where nothing is said.

Nothing here interpolates, and nothing imports Lightning: it runs in the loader's workers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt

from datamodules.annotations.mask_files import Mask, Stored, as_mask, load_mask, stored_colors
from datamodules.common.batch import IGNORE
from datamodules.common.errors import UserError

MaskKind = Literal["index", "rgb", "binary"]

MAX_CLASSES = 254
_UNKNOWN = 254  # what a table gives for a value that it does not know
_LISTED = 10
_FOREGROUND = (1, 255, 65535)
_HALF = 128  # a JPEG's grey from which a pixel is foreground
_BLACK, _FLAT, _COLORED, _FEW = 12, 6, 48, 8  # greys near black, in a flat part, between channels; pixels of noise


class MaskError(UserError):
    """A mask that does not fit the settings or its image: ``what`` names file and values, ``fix`` says what to do."""

    def __init__(self, what: str, fix: str = "") -> None:
        super().__init__(f"{what} {fix}".strip())
        self.what, self.fix = what, fix


@dataclass(frozen=True)
class MaskFormat:
    """What the pixels of a mask file mean.

    Attributes:
        kind: ``index`` (one number a pixel: grey of 1 to 16 bits, or a palette's indices), ``rgb`` (one color a
            class) or ``binary`` (0 is background; 1, 255 or 65535 is foreground; a JPEG is thresholded at half).
        values: ``(raw, class)`` pairs, the class being 0..253, or 255 for pixels to be ignored. A color's raw number
            is ``pack_color``'s. Binary masks take the pairs of ignored values only.
    """

    kind: MaskKind
    values: tuple[tuple[int, int], ...] = ()


def pack_color(color: Sequence[int]) -> int:
    """[r, g, b] -> one number."""
    red, green, blue = color
    return int(red) << 16 | int(green) << 8 | int(blue)


def unpack_color(packed: int) -> list[int]:
    """The inverse of ``pack_color``."""
    return [packed >> 16, packed >> 8 & 255, packed & 255]


def index_format(names: Sequence[str], values: Mapping[str, Sequence[int]] | None, ignore: Sequence[int]) -> MaskFormat:
    """Index masks: ``values[name]`` are a class's numbers; without it they are 0, 1, ..., those of ``ignore`` left out.

    With ``ignore`` [0], as in ADE20K, class 0 is stored as 1. Ignored values become 255.
    """
    if values is None:
        free = (raw for raw in count() if raw not in ignore)
        pairs = {next(free): i for i in range(len(names))}
    else:
        pairs = {raw: i for i, name in enumerate(names) for raw in values[name]}
    pairs |= dict.fromkeys(ignore, IGNORE)
    return MaskFormat("index", tuple(sorted(pairs.items())))


def rgb_format(
    names: Sequence[str], colors: Mapping[str, Sequence[Sequence[int]]], ignore: Sequence[Sequence[int]]
) -> MaskFormat:
    """RGB-coded masks: class i has one of the colors ``colors[name]``; the colors of ``ignore`` become 255."""
    pairs = {pack_color(color): i for i, name in enumerate(names) for color in colors[name]}
    pairs |= {pack_color(color): IGNORE for color in ignore}
    return MaskFormat("rgb", tuple(sorted(pairs.items())))


def binary_format(ignore: Sequence[int] = ()) -> MaskFormat:
    """Masks of background (0) and foreground (1, 255 or 65535)."""
    return MaskFormat("binary", tuple((raw, IGNORE) for raw in sorted(ignore)))


# Reading.


def read_mask(source: str | Path | npt.NDArray[Any], fmt: MaskFormat) -> Mask:
    """Decode a mask.

    Args:
        source: File, or an array of stored values: integers (H, W), or colors uint8 (H, W, 3).
        fmt: What its values mean.

    Returns:
        uint8 (H, W), classes and 255 for ignored pixels; C-contiguous, never the caller's memory.

    Raises:
        MaskError: If it holds values that ``fmt`` does not know.
        ImageError: If the file is no mask, is damaged or too large.
        FileNotFoundError: If there is no such file.
    """
    name = "mask array" if isinstance(source, np.ndarray) else str(source)
    stored = Stored(as_mask(source, name)) if isinstance(source, np.ndarray) else load_mask(source)
    if fmt.kind == "binary":
        return _read_binary(stored, fmt, name)
    if stored.lossy:
        raise MaskError(
            f"{name}: a JPEG does not keep the exact values of a mask.",
            "Store masks as PNG; a JPEG is taken only for data.mask_format: binary, where it is thresholded at half.",
        )
    return _read_rgb(stored, fmt, name) if fmt.kind == "rgb" else _read_index(stored, fmt, name)


def _read_index(stored: Stored, fmt: MaskFormat, name: str) -> Mask:
    pixels = stored.pixels
    if pixels.ndim == 3:
        found = np.unique(pixels.reshape(-1, 3), axis=0).tolist()
        raise MaskError(
            f"{name}: an index mask has one number a pixel, but this is a picture of {len(found)} colors"
            f" ({_first(found)}).",
            "Set data.mask_format: rgb and data.colors, a color for each class.",
        )
    table = _table(fmt)
    mask: Mask = cv2.LUT(pixels, table[:256]) if pixels.dtype == np.uint8 else np.take(table, pixels)
    unknown = mask == _UNKNOWN
    if not unknown.any():
        return mask
    known = [raw for raw, class_ in fmt.values if class_ != IGNORE]
    ignored = [raw for raw, class_ in fmt.values if class_ == IGNORE]
    raise MaskError(
        f"{name}: value(s) {_first(np.unique(pixels[unknown]).tolist())} ({_percent(unknown)}) outside the classes"
        f" ({ranges(known)}; ignored: {ranges(ignored) or 'none'}).",
        "Name their classes in data.class_names or data.class_values, or add the values to data.ignore_values.",
    )


def _read_rgb(stored: Stored, fmt: MaskFormat, name: str) -> Mask:
    if stored.pixels.dtype != np.uint8:
        raise MaskError(f"{name}: 16-bit indices are no colors.", "Set data.mask_format: index; data.colors may stay.")
    colors = stored_colors(stored).astype(np.uint32)
    packed = colors[..., 0] << 16 | colors[..., 1] << 8 | colors[..., 2]
    mask: Mask = np.take(_table(fmt), packed)
    unknown = mask == _UNKNOWN
    if not unknown.any():
        return mask
    found = [unpack_color(value) for value in np.unique(packed[unknown]).tolist()]
    raise MaskError(
        f"{name}: {len(found)} color(s) not in data.colors: {_first(found)} ({_percent(unknown)}).",
        "Add them to data.colors, or to data.ignore_values to leave those pixels out. Many colors between those of two"
        " classes come from a mask that was resized or saved as JPEG: make it again. If data.colors are only for"
        " display, set data.mask_format: index.",
    )


def _read_binary(stored: Stored, fmt: MaskFormat, name: str) -> Mask:
    pixels = stored.pixels
    if stored.lossy:
        return _threshold(pixels, name)
    if pixels.ndim == 3:
        raise MaskError(
            f"{name}: a binary mask is black and white, but this is a picture of colors.",
            "Set data.mask_format: rgb and data.colors, a color for each class.",
        )
    ignored = [raw for raw, _ in fmt.values]
    found = np.flatnonzero(np.bincount(pixels.ravel())).tolist()
    high = [value for value in found if value != 0 and value not in ignored]
    if len(high) > 1 or not set(high) <= set(_FOREGROUND):
        raise MaskError(
            f"{name}: a binary mask holds 0 and one of 1, 255 and 65535, but this one holds {_first(found)}.",
            "Threshold it, name values to leave out in data.ignore_values, or, if they are classes, set"
            " data.mask_format: index.",
        )
    mask: Mask = (pixels != 0).astype(np.uint8)
    for raw in ignored:
        mask[pixels == raw] = IGNORE
    return mask


def _threshold(pixels: npt.NDArray[np.uint8], name: str) -> Mask:
    """A JPEG of black and white as background and foreground.

    Its noise lies along edges; a flat part that is neither black nor white, or a color, is a class of its own.

    Raises:
        MaskError: If there are such parts.
    """
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY) if pixels.ndim == 3 else pixels
    kernel = np.ones((3, 3), np.uint8)
    is_flat = cv2.subtract(cv2.dilate(grey, kernel), cv2.erode(grey, kernel)) <= _FLAT
    other = is_flat & (grey >= _BLACK) & (grey <= 255 - _BLACK)
    if pixels.ndim == 3:
        other |= cv2.subtract(pixels.max(2), pixels.min(2)) > _COLORED
    if other.sum() > max(_FEW, other.size // 200):
        seen = "colors" if pixels.ndim == 3 else f"values such as {int(np.median(grey[other]))}"
        raise MaskError(
            f"{name}: a JPEG is taken for a mask of black and white only, but this one has {seen}.",
            "JPEG changes the values of a mask: make the masks again as PNG.",
        )
    return np.asarray(grey >= _HALF, np.uint8)


@lru_cache(maxsize=8)
def _table(fmt: MaskFormat) -> Mask:
    """Class of every possible raw value: 64 KiB for indices, 16 MiB for colors."""
    table = np.full(1 << (24 if fmt.kind == "rgb" else 16), _UNKNOWN, np.uint8)
    raw, classes = np.array(fmt.values, np.int64).reshape(-1, 2).T
    table[raw] = classes
    return table


def _percent(where: npt.NDArray[np.bool_]) -> str:
    return f"{100 * where.mean():.3g} % of the pixels"


def _first(values: Sequence[Any]) -> str:
    return ", ".join(str(v) for v in values[:_LISTED]) + (", ..." if len(values) > _LISTED else "")


def ranges(values: Sequence[int]) -> str:
    """Whole numbers in few words: ``0..10, 255``."""
    runs: list[list[int]] = []
    for value in sorted(values):
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    return ", ".join(str(first) if first == last else f"{first}..{last}" for first, last in runs)
