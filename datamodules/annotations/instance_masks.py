"""COCO's polygons and run lengths as label maps of objects."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from datamodules.annotations.boxes import Policy
from datamodules.annotations.records import Record, take_objects
from datamodules.common import rle
from datamodules.common.errors import UserError, bullets

MAX_OBJECTS = 32_767  # what int16 numbers
_THICK = 2.0  # pixels from which a polygon surely covers the middle of one


def check_masks(records: Sequence[Record], policy: Policy, setting: str) -> tuple[list[Record], list[str]]:
    """Look at every mask before training: whether it can be drawn, and has a pixel.

    Args:
        records: With ``segmentation`` and the images' real sizes.
        policy: What is done with others: ``error`` refuses them, ``fix`` and ``drop`` leave the objects out.
        setting: Where the user sets the policy, for the message.

    Returns:
        The records, those that lost objects as new dicts, and what was wrong, one line an object.

    Raises:
        UserError: Under ``error``, if there are any; the first ten are listed.
    """
    with ThreadPoolExecutor(8) as pool:
        wrong = list(pool.map(wrong_masks, records))
    lines = [f"{_where(record, i)} {own[i]}" for record, own in zip(records, wrong, strict=True) for i in own]
    if lines and policy == "error":
        raise UserError(
            f"{len(lines):,} masks cannot be learned:{bullets(lines)}\nDraw them again; or set {setting} to drop, to"
            " leave these objects out."
        )
    out = []
    for record, own in zip(records, wrong, strict=True):
        kept = np.array([i for i in range(len(record["boxes"])) if i not in own], np.int64)
        out.append(take_objects(record, kept) if own else record)
    return out, lines


def wrong_masks(record: Record) -> dict[int, str]:
    """What is wrong with masks of a record, by the object's place."""
    found = {}
    for i, shape in enumerate(record["segmentation"] or ()):
        if shape is None or not _may_be_wrong(shape, record["height"], record["width"]):
            continue
        try:
            if not rle.area(rle.verified(shape, record["height"], record["width"])):
                found[i] = "its mask has no pixel in the image"
        except ValueError as error:
            found[i] = str(error)
    return found


def _may_be_wrong(shape: Any, height: int, width: int) -> bool:
    """Whether a mask must be drawn to know that it is right; one thick polygon inside the image need not be."""
    if not isinstance(shape, list) or len(shape) != 1 or not isinstance(shape[0], list) or len(shape[0]) % 2:
        return True
    try:
        x, y = np.array(shape[0], np.float64).reshape(-1, 2).T
    except (TypeError, ValueError):
        return True
    inside = bool((x >= 0).all() and (y >= 0).all() and (x <= width).all() and (y <= height).all())  # not for NaN
    area = abs(float(x @ np.roll(y, 1) - y @ np.roll(x, 1))) / 2
    return not inside or area < _THICK * float(max(np.ptp(x), np.ptp(y))) or area < _THICK**2


def masks_of(record: Record, height: int, width: int) -> npt.NDArray[np.int16]:
    """The objects of a record as label maps; those of one layer do not overlap.

    Each object goes to the first layer where it covers no other, in the order of the boxes. Numbers are places in
    ``record["boxes"]`` plus 1. An object without a pixel is in no layer.

    Args:
        record: With ``segmentation`` (see ``datamodules.readers.coco``), ``path`` and ``annotation_ids``.
        height: Of the image, in pixels, as stored in the annotations.
        width: Of the image, in pixels.

    Returns:
        int16 (L, height, width), L >= 1: object number 1..N, 0 for none.

    Raises:
        UserError: If an object has no mask or a damaged one, naming image and annotation.
    """
    count = len(record["boxes"])
    if count > MAX_OBJECTS:
        raise UserError(f"{record['path']}: {count} objects; masks hold at most {MAX_OBJECTS} an image. Cut it up.")
    shapes = record["segmentation"]
    if shapes is None:
        shapes = [None] * count
    compressed = []
    for i, shape in enumerate(shapes):
        if shape is None:
            raise UserError(
                f"{_where(record, i)} it has a box but no mask. Draw one, remove it, or train on boxes only."
            )
        try:
            compressed.append(rle.from_segmentation(shape, height, width)["counts"])
        except ValueError as error:
            raise UserError(f"{_where(record, i)} {error}.") from error
    layers = [np.zeros(height * width, np.int16)]  # column by column, as run lengths count
    for i, counts in enumerate(rle.decode_counts(compressed)):
        try:
            rle.check_counts(counts, height, width)
        except UserError as error:
            raise UserError(f"{_where(record, i)} {error}.") from error
        edges = np.cumsum(counts)
        lengths = counts[1::2]
        ends = np.cumsum(lengths)
        if not len(ends) or not ends[-1]:
            continue
        inside = np.repeat(edges[: 2 * len(lengths) : 2] - ends + lengths, lengths) + np.arange(ends[-1])
        layer = next((layer for layer in layers if not layer[inside].any()), None)
        if layer is None:
            layers.append(layer := np.zeros(height * width, np.int16))
        layer[inside] = i + 1
    return np.ascontiguousarray(np.stack(layers).reshape(-1, width, height).transpose(0, 2, 1))


def _where(record: Record, i: int) -> str:
    return f"{record['path']}, annotation {int(record['annotation_ids'][i])}:"
