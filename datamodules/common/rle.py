"""Masks as COCO's run lengths: `{"size": [height, width], "counts": ...}`.

Run lengths go down the columns, zeros first. Compressed ones hold `counts` as bytes in memory and as text in JSON.
The compiled library (faster-coco-eval) is imported late: most who import this module never need it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from datamodules.common.errors import UserError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

#: Bytes of masks that are compressed at once.
CHUNK_BYTES = 1 << 26
_FARTHEST = 100_000  # pixels; drawing a polygon costs time and memory by its length


def from_segmentation(segmentation: Any, height: int, width: int) -> dict[str, Any]:
    """One object's polygons or run lengths, as they stand in a COCO file, as compressed run lengths.

    Compressed ones are handed through: damage shows in ``decode_counts``. Polygons with fewer than three corners
    cover nothing; the compiled code would take four numbers for a box, and would never return from NaN.

    Args:
        segmentation: A list of polygons ``[x, y, x, y, ...]``, or ``{"size": [height, width], "counts": ...}`` with a
            list of lengths or a compressed string.
        height: Of the image, in pixels.
        width: Of the image, in pixels.

    Returns:
        ``{"size": [height, width], "counts": bytes}``, as pycocotools and faster-coco-eval take it.

    Raises:
        UserError: If it is neither, is of another size than the image, or its numbers make no mask.
    """
    if isinstance(segmentation, dict):
        return _from_runs(segmentation, height, width)
    if isinstance(segmentation, list):
        return _from_polygons(segmentation, height, width)
    raise UserError(f"'segmentation' is {segmentation!r:.60}; it must be a list of polygons, or size and counts")


def verified(segmentation: Any, height: int, width: int) -> dict[str, Any]:
    """``from_segmentation``, compressed run lengths being examined too.

    Raises:
        UserError: As ``from_segmentation``, or if compressed run lengths do not sum to the image's pixels.
    """
    rle = from_segmentation(segmentation, height, width)
    if isinstance(segmentation, dict):
        check_counts(decode_counts([rle["counts"]])[0], height, width)
    return rle


def check_counts(counts: npt.NDArray[np.int64], height: int, width: int) -> None:
    """Refuse run lengths that were decoded from a damaged string.

    Raises:
        UserError: If one is negative, or they do not sum to the image's pixels.
    """
    if counts.sum() != height * width or (counts < 0).any():
        raise UserError(
            f"its compressed run lengths are damaged: they sum to {counts.sum()}, the image has {height * width}"
            " pixels. Write the mask again"
        )


def _from_runs(segmentation: dict[str, Any], height: int, width: int) -> dict[str, Any]:
    from faster_coco_eval.core import mask as library

    size, counts = segmentation.get("size"), segmentation.get("counts")
    if list(size or ()) != [height, width]:
        raise UserError(
            f"its mask has the size {size} (height, width), the image {height} x {width}; correct 'size', or the"
            " image's height and width"
        )
    if isinstance(counts, str | bytes):
        return {"size": [height, width], "counts": counts.encode() if isinstance(counts, str) else counts}
    try:
        lengths = np.array(counts, np.float64)
    except (TypeError, ValueError):
        lengths = np.array([-1.0])
    if lengths.ndim != 1 or (lengths < 0).any() or lengths.sum() != height * width:
        raise UserError(f"its run lengths sum to {lengths.sum():g}, the image has {height * width} pixels")
    return dict(library.frPyObjects({"size": [height, width], "counts": [int(n) for n in lengths]}, height, width))


def _from_polygons(segmentation: list[Any], height: int, width: int) -> dict[str, Any]:
    from faster_coco_eval.core import mask as library

    polygons = []
    for polygon in segmentation:
        corners = _corners(polygon)
        if len(corners) >= 6:
            polygons.append(corners.tolist())
    if not polygons:
        nothing = {"size": [height, width], "counts": [height * width]}
        return dict(library.frPyObjects(nothing, height, width))
    drawn = library.frPyObjects(polygons, height, width)
    return dict(drawn[0] if len(drawn) == 1 else library.merge(drawn))


def _corners(polygon: Any) -> NDArray[np.float64]:
    """x, y, x, y, ... of a polygon."""
    try:
        corners = np.array(polygon, np.float64)
    except (TypeError, ValueError):
        corners = np.zeros(1)
    if corners.ndim != 1 or len(corners) % 2:
        raise UserError(f"a polygon is {polygon!r:.60}; it must be a list of an even number of numbers: x, y, ...")
    is_near = np.abs(corners) <= _FARTHEST  # not for NaN
    if not is_near.all():
        raise UserError(f"a polygon has a corner at {corners[np.argmin(is_near)]:g} pixels; draw it again")
    return corners


def compressed(rle: Mapping[str, Any]) -> dict[str, Any]:
    """Run lengths of any form as compressed ones, with `counts` as bytes."""
    from faster_coco_eval.core import mask as library

    size, counts = [int(side) for side in rle["size"]], rle["counts"]
    if isinstance(counts, str):  # as in JSON
        counts = counts.encode()
    if not isinstance(counts, bytes):
        return dict(library.frPyObjects([{"size": size, "counts": list(counts)}], *size)[0])
    return {"size": size, "counts": counts}


def of_masks(masks: Tensor | Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Masks (n, H, W), bool or integers that are 0 outside, as COCO's compressed run lengths; such pass through.

    Raises:
        UserError: If the masks are of floating point.
    """
    from faster_coco_eval.core import mask as library

    if isinstance(masks, Sequence):
        return [compressed(mask) for mask in masks]
    if masks.is_floating_point():
        raise UserError(f"Predicted masks are {masks.dtype}; they must be bool or uint8: apply the threshold first.")
    result: list[dict[str, Any]] = []
    for part in masks.split(max(1, CHUNK_BYTES // max(1, masks[0].numel()))) if len(masks) else ():
        # Run lengths go down the columns; turned where the masks are, as that is much faster on a GPU.
        turned = (part != 0).byte().transpose(1, 2).contiguous().cpu().numpy()
        result += library.encode(turned.T)
    return result


def of_layers(layers: Tensor | NDArray[Any], count: int) -> list[dict[str, Any]]:
    """Compressed run lengths of the objects 1 to `count`, from their numbers (L, H, W) at each pixel of each layer.

    One pass over the pixels for all objects of a layer. An object that is nowhere gets an empty mask; one that is in
    several layers, their union.
    """
    from faster_coco_eval.core import mask as library

    layers = layers if isinstance(layers, np.ndarray) else layers.cpu().numpy()
    height, width = layers.shape[1:]
    total = height * width
    found: list[list[dict[str, Any]]] = [[] for _ in range(count)]
    for layer in layers:
        pixels = layer.T.ravel()
        starts = np.flatnonzero(np.append(True, pixels[1:] != pixels[:-1]))
        ends = np.append(starts[1:], total)
        order = np.argsort(pixels[starts], kind="stable")
        numbers, starts, ends = pixels[starts][order], starts[order], ends[order]
        bounds = np.searchsorted(numbers, np.arange(1, count + 2))
        for number in np.flatnonzero(np.diff(bounds)).tolist():
            part = slice(bounds[number], bounds[number + 1])
            edges = np.stack([starts[part], ends[part]], 1).ravel()
            counts = np.diff(edges, prepend=0, append=total)  # of zeros and ones in turn, zeros first
            found[number].append({"size": [height, width], "counts": counts[: -1 if edges[-1] == total else None]})
    result: list[dict[str, Any]] = []
    for parts in found:
        rles = [compressed(part) for part in parts or [{"size": [height, width], "counts": [total]}]]
        result.append(rles[0] if len(rles) == 1 else library.merge(rles))
    return result


def decoded(masks: Sequence[Mapping[str, Any]], height: int, width: int) -> NDArray[np.bool_]:
    """Whole masks, bool (n, height, width), of n run lengths of any form."""
    from faster_coco_eval.core import mask as library

    if not len(masks):
        return np.zeros((0, height, width), bool)
    return np.ascontiguousarray(np.moveaxis(library.decode([compressed(mask) for mask in masks]), 2, 0)).astype(bool)


def decode_counts(strings: list[bytes]) -> list[npt.NDArray[np.int64]]:
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


def area(rle: Mapping[str, Any]) -> int:
    """Pixels of a mask, given as run lengths of any form."""
    from faster_coco_eval.core import mask as library

    return int(library.area(compressed(rle)))


def areas(masks: Sequence[Mapping[str, Any]]) -> NDArray[np.float64]:
    """Pixels of n compressed masks, float64 (n,)."""
    from faster_coco_eval.core import mask as library

    return np.asarray([*library.area(list(masks))] if len(masks) else [], np.float64)


def iou(found: Any, true: Any, crowd: Sequence[int]) -> NDArray[np.float64]:
    """Intersection over union, float64 (n, m), of n compressed masks with m, or of boxes (n, 4) with (m, 4).

    Args:
        found: n masks, or float64 boxes x y width height.
        true: m masks, or boxes.
        crowd: m flags; over a crowd, intersection over the area in `found` takes the place of the IoU.
    """
    from faster_coco_eval.core import mask as library

    return np.asarray(library.iou(found, true, crowd), np.float64)
