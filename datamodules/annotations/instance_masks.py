"""COCO's polygons and run lengths as label maps of objects."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from datamodules.readers import Record

MAX_OBJECTS = 32_767  # what int16 numbers
_FARTHEST = 100_000  # pixels; drawing a polygon costs time and memory by its length


def run_lengths(segmentation: Any, height: int, width: int) -> dict[str, Any]:
    """One object's polygons or run lengths, as they stand in a COCO file, as compressed run lengths.

    Compressed ones are handed through: damage in them is found by ``masks_of``. Polygons with fewer than three corners
    cover nothing; the compiled code would take four numbers for a box, and would never return from NaN.

    Args:
        segmentation: A list of polygons ``[x, y, x, y, ...]``, or ``{"size": [height, width], "counts": ...}`` with a
            list of lengths or a compressed string.
        height: Of the image, in pixels.
        width: Of the image, in pixels.

    Returns:
        ``{"size": [height, width], "counts": bytes}``, as pycocotools and faster-coco-eval take it.

    Raises:
        ValueError: If it is neither, is of another size than the image, or its numbers make no mask.
    """
    from faster_coco_eval.core import mask as rle  # a compiled library, needed for masks only

    if isinstance(segmentation, dict):
        size, counts = segmentation.get("size"), segmentation.get("counts")
        if list(size or ()) != [height, width]:
            raise ValueError(
                f"its mask has the size {size} (height, width), the image {height} x {width}; mend 'size', or the"
                " image's height and width"
            )
        if isinstance(counts, str | bytes):
            return {"size": [height, width], "counts": counts.encode() if isinstance(counts, str) else counts}
        try:
            lengths = np.array(counts, np.float64)
        except (TypeError, ValueError):
            lengths = np.array([-1.0])
        if lengths.ndim != 1 or (lengths < 0).any() or lengths.sum() != height * width:
            raise ValueError(f"its run lengths sum to {lengths.sum():g}, the image has {height * width} pixels")
        return dict(rle.frPyObjects({"size": [height, width], "counts": [int(n) for n in lengths]}, height, width))
    if not isinstance(segmentation, list):
        raise ValueError(f"'segmentation' is {segmentation!r:.60}; it must be a list of polygons, or size and counts")
    polygons = []
    for polygon in segmentation:
        try:
            corners = np.array(polygon, np.float64)
        except (TypeError, ValueError):
            corners = np.zeros(1)
        if corners.ndim != 1 or len(corners) % 2:
            raise ValueError(f"a polygon is {polygon!r:.60}; it must be a list of an even number of numbers: x, y, ...")
        if not (np.abs(corners) <= _FARTHEST).all():  # also NaN
            worst = corners[np.argmin(np.abs(corners) <= _FARTHEST)]
            raise ValueError(f"a polygon has a corner at {worst:g} pixels; draw it again")
        if len(corners) >= 6:
            polygons.append(corners.tolist())
    if not polygons:
        return dict(rle.encode(np.zeros((height, width), np.uint8, order="F")))
    drawn = rle.frPyObjects(polygons, height, width)
    return dict(drawn[0] if len(drawn) == 1 else rle.merge(drawn))


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
        ValueError: If an object has no mask or a damaged one, naming image and annotation.
    """
    count = len(record["boxes"])
    if count > MAX_OBJECTS:
        raise ValueError(f"{record['path']}: {count} objects; masks hold at most {MAX_OBJECTS} an image. Cut it up.")
    shapes = record["segmentation"]
    if shapes is None:
        shapes = [None] * count
    compressed = []
    for i, shape in enumerate(shapes):
        if shape is None:
            raise ValueError(
                f"{_where(record, i)} it has a box but no mask. Draw one, remove it, or train on boxes only."
            )
        try:
            compressed.append(run_lengths(shape, height, width)["counts"])
        except ValueError as error:
            raise ValueError(f"{_where(record, i)} {error}.") from error
    layers = [np.zeros(height * width, np.int16)]  # column by column, as run lengths count
    for i, counts in enumerate(_decode(compressed)):
        if counts.sum() != height * width or (counts < 0).any():
            raise ValueError(
                f"{_where(record, i)} its compressed run lengths are damaged: they sum to {counts.sum()}, the image has"
                f" {height * width} pixels. Write the mask again."
            )
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


def _decode(strings: list[bytes]) -> list[npt.NDArray[np.int64]]:
    """Run lengths of COCO's compressed strings.

    A number is a group of bytes, lowest first, each byte 48 plus 5 bits plus 32 if more follow; the last one's highest
    bit is the sign. From the fourth number on it is the difference to the one before the last
    (``rleToString`` in https://github.com/cocodataset/cocoapi/blob/master/common/maskApi.c). The library decodes to
    pixels only: a whole image for each object, a hundred times slower for small ones.
    """
    if not strings:
        return []
    code = np.frombuffer(b"".join(strings), np.uint8).astype(np.int64) - 48
    last = np.flatnonzero((code & 32) == 0)
    if not len(last):
        return [np.zeros(0, np.int64) for _ in strings]
    start = np.append(0, last[:-1] + 1)
    place = np.arange(last[-1] + 1) - np.repeat(start, last - start + 1)
    numbers = np.add.reduceat((code[: last[-1] + 1] & 31) << (5 * np.minimum(place, 12)), start)
    numbers -= ((code[last] & 16) != 0) * (np.int64(1) << (5 * np.minimum(last - start + 1, 12)))
    ends = np.searchsorted(last, np.cumsum([0, *map(len, strings)]))
    out = []
    for begin, end in pairwise(ends.tolist()):
        counts = numbers[begin:end]
        counts[1::2] = np.cumsum(counts[1::2])
        counts[2::2] = np.cumsum(counts[2::2])
        out.append(counts)
    return out


def _where(record: Record, i: int) -> str:
    return f"{record['path']}, annotation {int(record['annotation_ids'][i])}:"
