"""Mask files become class indices here: uint8 (H, W), one class a pixel, 255 where nothing is said.

Nothing here interpolates, and nothing imports Lightning: it runs in the loader's workers.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from datamodules.common.errors import UserError
from datamodules.decoding.images import ImageError, read_image
from datamodules.decoding.tiff import is_tiff, read_tiff
from datamodules.readers import Record
from datamodules.readers.coco_masks import render_shapes
from datamodules.readers.digits import Split, digit_scene

Mask: TypeAlias = npt.NDArray[np.uint8]
Kind = Literal["index", "rgb", "binary"]

IGNORE = 255
MAX_CLASSES = 254
_UNKNOWN = 254  # what a table gives for a value that it does not know
_LISTED = 10
_FORMATS = ("PNG", "BMP", "GIF", "WEBP", "PPM", "JPEG")
_KEPT_SCENE = 160  # pixels a side up to which digit scenes are kept: 77 KB each


class MaskError(UserError):
    """A mask that does not fit the settings or its image: ``what`` names file and values, ``fix`` says what to do."""

    def __init__(self, what: str, fix: str = "") -> None:
        super().__init__(f"{what} {fix}".strip())
        self.what, self.fix = what, fix


@dataclass(frozen=True)
class MaskFormat:
    """What the pixels of a mask file mean.

    Attributes:
        kind: ``index`` (one number a pixel: grey of 1 to 16 bits, or a palette's indices), ``rgb`` (one colour a
            class) or ``binary`` (0 is background; 1, 255 or 65535 is foreground; a JPEG is cut at half).
        values: ``(raw, class)`` pairs, the class being 0..253, or 255 for pixels to be ignored. A colour's raw number
            is ``pack_color``'s. Binary masks take the pairs of ignored values only.
    """

    kind: Kind
    values: tuple[tuple[int, int], ...] = ()


class Stored(NamedTuple):
    """A mask file as it is stored."""

    pixels: npt.NDArray[Any]  # (H, W) uint8 or uint16, or (H, W, 3) uint8 of colours
    palette: Mask | None = None  # (n, 3), red, green and blue of each index, for palette files
    lossy: bool = False  # JPEG


def pack_color(color: Sequence[int]) -> int:
    """[r, g, b] -> one number."""
    red, green, blue = color
    return int(red) << 16 | int(green) << 8 | int(blue)


def index_format(names: Sequence[str], values: Mapping[str, Sequence[int]] | None, ignore: Sequence[int]) -> MaskFormat:
    """Index masks: ``values[name]`` are a class's numbers; without it they are 0, 1, ..., those of ``ignore`` left out.

    With ``ignore`` [0], as in ADE20K, class 0 is stored as 1. Ignored values become 255.
    """
    free = (raw for raw in count() if raw not in ignore)
    pairs = {next(free): i for i in range(len(names))}
    if values is not None:
        pairs = {raw: i for i, name in enumerate(names) for raw in values[name]}
    return MaskFormat("index", tuple(sorted({**pairs, **dict.fromkeys(ignore, IGNORE)}.items())))


def rgb_format(
    names: Sequence[str], colors: Mapping[str, Sequence[Sequence[int]]], ignore: Sequence[Sequence[int]]
) -> MaskFormat:
    """RGB-coded masks: class i has one of the colours ``colors[name]``; the colours of ``ignore`` become 255."""
    pairs = {pack_color(c): i for i, name in enumerate(names) for c in colors[name]}
    return MaskFormat("rgb", tuple(sorted({**pairs, **{pack_color(c): IGNORE for c in ignore}}.items())))


def binary_format(ignore: Sequence[int] = ()) -> MaskFormat:
    """Masks of background (0) and foreground (1, 255 or 65535)."""
    return MaskFormat("binary", tuple((raw, IGNORE) for raw in sorted(ignore)))


# Files.


def load_mask(source: str | Path) -> Stored:
    """A mask file's stored values: indices of a palette stay indices, low bit depths are not stretched.

    Three equal channels are taken as one. An orientation tag of the mask is not applied: a mask is as it is stored.

    Args:
        source: PNG, TIFF, BMP, GIF, WebP, PNM, JPEG or ``.npy``.

    Raises:
        ImageError: If the file is no mask or is damaged.
        UserError: If there is no such file.
    """
    name = str(source)
    data = Path(source).read_bytes()
    if not data:
        raise ImageError(f"{name}: the file is empty.")
    try:
        if name.lower().endswith(".npy"):
            return Stored(_integers(np.load(io.BytesIO(data), allow_pickle=False), name))
        image = read_tiff(data) if is_tiff(data) else Image.open(io.BytesIO(data), formats=_FORMATS)
        if isinstance(image, Image.Image):
            image.load()
    except ImageError:
        raise
    except Exception as error:  # Pillow's plugins let through whatever a damaged file provokes
        raise ImageError(f"{name}: the mask is no image, or it is corrupt or truncated ({error}).") from error
    if not isinstance(image, Image.Image):  # a TIFF deeper than 8 bits
        pixels, has_alpha, _ = image
        return Stored(_integers(pixels[..., :-1] if has_alpha else pixels, name))
    lossy = image.format == "JPEG"
    if image.mode == "P":
        palette = np.zeros((256, 3), np.uint8)
        given = np.array(image.getpalette("RGB") or [], np.uint8).reshape(-1, 3)
        palette[: len(given)] = given
        pixels = np.array(image)
        if image.format == "GIF" and (palette[np.unique(pixels)] == palette[np.unique(pixels)][:, :1]).all():
            return Stored(palette[pixels, 0])  # GIF has no grey: what looks black is meant to be 0
        return Stored(pixels, palette)
    if image.mode == "1":
        return Stored(np.array(image).astype(np.uint8), None, lossy)
    if image.mode in ("L", "LA"):
        pixels = np.array(image.getchannel(0))
        if data.startswith(b"\x89PNG") and data[24] in (2, 4):  # Pillow stretches 2 and 4 bits to 8
            pixels = pixels // np.uint8(255 // (2 ** data[24] - 1))
        return Stored(pixels, None, lossy)
    if image.mode.startswith("I"):
        return Stored(_integers(np.array(image), name), None, lossy)
    return Stored(_integers(np.array(image.convert("RGB")), name), None, lossy)


def _integers(pixels: npt.NDArray[Any], name: str) -> npt.NDArray[Any]:
    """Any array of whole numbers as (H, W) uint8 or uint16, colours as (H, W, 3) uint8."""
    if pixels.ndim == 3 and pixels.shape[2] in (1, 3) and (pixels == pixels[..., :1]).all():
        pixels = np.ascontiguousarray(pixels[..., 0])
    if pixels.ndim == 2 and pixels.dtype == bool:
        return pixels.astype(np.uint8)
    if pixels.ndim == 3 and pixels.shape[2] == 3 and pixels.dtype == np.uint8:
        return pixels
    if pixels.ndim != 2 or pixels.dtype.kind not in "ui" or pixels.size == 0:
        raise ImageError(
            f"{name}: an array of {pixels.dtype} {pixels.shape} is no mask; whole numbers (H, W) or colours, uint8"
            " (H, W, 3), are."
        )
    if pixels.dtype == np.uint8:
        return pixels
    low, high = int(pixels.min()), int(pixels.max())
    if low < 0 or high > 65535:
        raise ImageError(f"{name}: its values lie in [{low}, {high}]; a mask's lie in [0, 65535].")
    return pixels.astype(np.uint16, copy=False)


def stored_colors(stored: Stored) -> Mask:
    """The colour of each pixel, uint8 (H, W, 3): through the palette, or grey.

    Raises:
        UserError: If the file holds 16-bit indices.
    """
    pixels = stored.pixels
    if pixels.ndim == 3:
        return pixels
    if pixels.dtype != np.uint8:
        raise UserError("16-bit indices are no colours.")
    colors: Mask = stored.palette[pixels] if stored.palette is not None else np.repeat(pixels[..., None], 3, axis=2)
    return colors


def read_mask(source: str | Path | npt.NDArray[Any], fmt: MaskFormat) -> Mask:
    """Decode a mask.

    Args:
        source: File, or an array of stored values: integers (H, W), or colours uint8 (H, W, 3).
        fmt: What its values mean.

    Returns:
        uint8 (H, W), classes and 255 for ignored pixels; C-contiguous, never the caller's memory.

    Raises:
        MaskError: If it holds values that ``fmt`` does not know.
        ImageError: If the file is no mask or is damaged.
        UserError: If there is no such file.
    """
    name = "mask array" if isinstance(source, np.ndarray) else str(source)
    stored = Stored(_integers(source, name)) if isinstance(source, np.ndarray) else load_mask(source)
    if fmt.kind == "binary":
        return _read_binary(stored, fmt, name)
    if stored.lossy:
        raise MaskError(
            f"{name}: a JPEG does not keep the exact values of a mask.",
            "Store masks as PNG; a JPEG is taken only for data.mask_format: binary, where it is cut at half.",
        )
    pixels = stored.pixels
    if fmt.kind == "rgb":
        if pixels.dtype != np.uint8:
            raise MaskError(
                f"{name}: 16-bit indices are no colours.", "Set data.mask_format: index; data.colors may stay."
            )
        colors = stored_colors(stored).astype(np.uint32)
        packed = colors[..., 0] << 16 | colors[..., 1] << 8 | colors[..., 2]
        return _known(np.take(_table(fmt), packed), packed, fmt, name)
    if pixels.ndim == 3:
        found = np.unique(pixels.reshape(-1, 3), axis=0).tolist()
        raise MaskError(
            f"{name}: an index mask has one number a pixel, but this is a picture of {len(found)} colours"
            f" ({_first(found)}).",
            "Set data.mask_format: rgb and data.colors, a colour for each class.",
        )
    table = _table(fmt)
    mask: Mask = cv2.LUT(pixels, table[:256]) if pixels.dtype == np.uint8 else np.take(table, pixels)
    return _known(mask, pixels, fmt, name)


def _read_binary(stored: Stored, fmt: MaskFormat, name: str) -> Mask:
    pixels = stored.pixels
    if stored.lossy:
        grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY) if pixels.ndim == 3 else pixels
        cut: Mask = (grey >= 128).astype(np.uint8)
        return cut
    if pixels.ndim == 3:
        raise MaskError(
            f"{name}: a binary mask is black and white, but this is a picture of colours.",
            "Set data.mask_format: rgb and data.colors, a colour for each class.",
        )
    ignored = [raw for raw, _ in fmt.values]
    found = np.flatnonzero(np.bincount(pixels.ravel())).tolist()
    high = [v for v in found if v != 0 and v not in ignored]
    if len(high) > 1 or (high and high[0] not in (1, 255, 65535)):
        raise MaskError(
            f"{name}: a binary mask holds 0 and one of 1, 255 and 65535, but this one holds {_first(found)}.",
            "Threshold it, name values to leave out in data.ignore_values, or, if they are classes, set"
            " data.mask_format: index.",
        )
    mask: Mask = (pixels != 0).astype(np.uint8)
    for raw in ignored:
        mask[pixels == raw] = IGNORE
    return mask


@lru_cache(maxsize=8)
def _table(fmt: MaskFormat) -> Mask:
    """Class of every possible raw value: 64 KiB for indices, 16 MiB for colours."""
    table = np.full(1 << (24 if fmt.kind == "rgb" else 16), _UNKNOWN, np.uint8)
    raw, classes = np.array(fmt.values, np.int64).reshape(-1, 2).T
    table[raw] = classes
    return table


def _known(mask: Mask, raw: npt.NDArray[Any], fmt: MaskFormat, name: str) -> Mask:
    wrong = mask == _UNKNOWN
    if not wrong.any():
        return mask
    values = np.unique(raw[wrong]).tolist()
    part = f"{100 * wrong.mean():.3g} % of the pixels"
    if fmt.kind == "rgb":
        colors = [[v >> 16, v >> 8 & 255, v & 255] for v in values]
        raise MaskError(
            f"{name}: {len(colors)} colour(s) not in data.colors: {_first(colors)} ({part}).",
            "Add them to data.colors, or to data.ignore_values to leave those pixels out. Many colours between those of"
            " two classes come from a mask that was resized or saved as JPEG: make it again. If data.colors are only"
            " for display, set data.mask_format: index.",
        )
    known = [r for r, c in fmt.values if c != IGNORE]
    ignored = [r for r, c in fmt.values if c == IGNORE]
    raise MaskError(
        f"{name}: value(s) {_first(values)} ({part}) outside the classes ({ranges(known)}; ignored:"
        f" {ranges(ignored) or 'none'}).",
        "Name their classes in data.class_names or data.class_values, or add the values to data.ignore_values.",
    )


def _first(values: Sequence[Any]) -> str:
    return ", ".join(str(v) for v in values[:_LISTED]) + (", ..." if len(values) > _LISTED else "")


def ranges(values: Sequence[int]) -> str:
    """Whole numbers in few words: ``0..10, 255``."""
    parts: list[list[int]] = []
    for value in sorted(values):
        if parts and value == parts[-1][1] + 1:
            parts[-1][1] = value
        else:
            parts.append([value, value])
    return ", ".join(str(a) if a == b else f"{a}..{b}" for a, b in parts)


# Records.


def read_sample(
    record: Record,
    *,
    fmt: MaskFormat | None,
    channels: int,
    dtype: Literal["uint8", "float32"],
    num_classes: int,
    multi_label: bool,
) -> Record:
    """A record with image and mask decoded, in original pixels.

    Args:
        record: ``image`` (file or array) and ``mask``, see ``decode_mask``; without ``mask`` only the image is read.
            Or ``scene``, the arguments of ``digit_scene``.
        fmt: What mask files mean.
        channels: As for ``read_image``.
        dtype: As for ``read_image``.
        num_classes: K.
        multi_label: Several classes a pixel.

    Returns:
        The record with ``image`` (H, W, C) and ``mask`` uint8 (H, W), or (H, W, K) of 0, 1 and 255 for several labels.

    Raises:
        MaskError: If the mask's size is not the image's, or its values do not fit.
        ImageError: If a file is damaged.
    """
    if "scene" in record:
        index, seed, split, size = record["scene"]
        scene = (_kept_scene if size <= _KEPT_SCENE else digit_scene)(index, seed, split, size)
        return {**record, "image": read_image(scene["image"], channels, dtype), "mask": scene["mask"].copy()}
    image = read_image(record["image"], channels, dtype)
    if "mask" not in record:
        return {**record, "image": image}
    mask = decode_mask(record, fmt=fmt, num_classes=num_classes, multi_label=multi_label)
    check_size(record, mask, image.shape[:2])
    return {**record, "image": image, "mask": mask}


@lru_cache(maxsize=2048)
def _kept_scene(index: int, seed: int, split: Split, size: int) -> Record:
    """A scene of 128 pixels takes 3 ms to draw, as long as a training step on it."""
    scene = digit_scene(index, seed, split, size)
    return {"image": scene["image"], "mask": scene["mask"]}


def decode_mask(record: Record, *, fmt: MaskFormat | None, num_classes: int, multi_label: bool) -> Mask:
    """The record's mask alone; see ``read_sample``.

    ``mask`` is a file or an array of stored values, a list of K binary ones (None for a class that is not there), or a
    dict of COCO shapes; see ``datamodules.readers.coco_masks``.
    """
    source = record["mask"]
    if isinstance(source, dict):
        return render_shapes(source, num_classes if multi_label else None)
    assert fmt is not None
    if not isinstance(source, list):
        mask = read_mask(source, fmt)
        return mask[..., None] if multi_label else mask
    layers = [None if layer is None else read_mask(layer, fmt) for layer in source]
    there = [(str(path), layer.shape) for path, layer in zip(source, layers, strict=True) if layer is not None]
    path, shape = there[0]
    for other, other_shape in there:
        if other_shape != shape:
            raise MaskError(
                f"{other}: the mask is {_by(other_shape)} pixels (width x height), but {path} of the same image is"
                f" {_by(shape)}.",
                "Make the masks of an image one size, that of the image.",
            )
    return np.stack([np.zeros(shape, np.uint8) if layer is None else layer for layer in layers], axis=2)


def _by(shape: tuple[int, ...]) -> str:
    return f"{shape[1]} x {shape[0]}"


def check_size(record: Record, mask: Mask, shape: tuple[int, ...]) -> None:
    """Compare a mask's size with its image's (H, W).

    Raises:
        MaskError: If they differ.
    """
    have, want = mask.shape[:2], tuple(shape)
    if have == want:
        return
    source = record["mask"]
    if isinstance(source, list):
        source = next(m for m in source if m is not None)
    name = source if isinstance(source, str) else f"annotations of {record['path']}"
    fix = "Masks are not resized here: make the mask as large as its image, by nearest neighbour, or mend the pairing."
    if have == want[::-1]:
        fix = (
            "The mask is turned by 90 degrees: an image is shown as its EXIF orientation says, and its mask belongs to"
            " what is shown. Turn the mask, or take the orientation tag out of the image."
        )
    raise MaskError(
        f"{name}: the mask is {_by(have)}, its image {record['path']} {_by(want)} pixels (width x height).", fix
    )
