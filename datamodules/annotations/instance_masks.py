"""COCO's polygons and run lengths as label maps of objects."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from datamodules.annotations.records import Record
from datamodules.common import rle
from datamodules.common.errors import UserError

MAX_OBJECTS = 32_767  # what int16 numbers


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
        if counts.sum() != height * width or (counts < 0).any():
            raise UserError(
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


def _where(record: Record, i: int) -> str:
    return f"{record['path']}, annotation {int(record['annotation_ids'][i])}:"
