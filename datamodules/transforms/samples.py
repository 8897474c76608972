"""What belongs to a picture moves with it: boxes, masks of classes and of objects. Checks of a sample.

A sample is described in `datamodules.transforms.pipeline`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from datamodules.common.batch import IGNORE, NO_OBJECT, PER_BOX, Sample
from datamodules.common.errors import UserError
from datamodules.transforms.geometry import Span, View

if TYPE_CHECKING:
    from numpy.typing import NDArray


#: A moved box is dropped when less of its area than this (by default), or less than a pixel of a side, is left.
MIN_VISIBILITY = 0.1


def check_sample(sample: Sample) -> None:
    """Check shapes and boxes of a sample.

    Raises:
        UserError: Naming the sample's path and what is wrong.
    """
    image = sample["image"]
    where = f"{sample.get('path', 'sample')}: "
    if image.ndim != 3 or image.dtype not in (np.uint8, np.float32):
        raise UserError(f"{where}image is {image.dtype} {image.shape}; uint8 or float32 (H, W, C) is expected")
    for key in ("mask", "masks"):
        if key in sample and (sample[key].shape[:2] if key == "mask" else sample[key].shape[-2:]) != image.shape[:2]:
            raise UserError(f"{where}{key} is {sample[key].shape}, but the image is {image.shape[:2]} (height, width)")
    if "boxes" in sample:
        _check_boxes(sample["boxes"], where)


def _check_boxes(boxes: NDArray[Any], where: str) -> None:
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise UserError(f"{where}boxes have the shape {boxes.shape}; (N, 4) is expected, (0, 4) where there are none")
    wrong = ~np.isfinite(boxes).all(-1) | (sides(boxes) <= 0).any(-1)
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise UserError(f"{where}box {row} is {boxes[row].tolist()}; finite x1 < x2 and y1 < y2 are expected")


def sides(boxes: NDArray[np.float32]) -> NDArray[np.float32]:
    """Width and height of boxes (N, 4): (N, 2)."""
    return boxes[:, 2:] - boxes[:, :2]


def clip(boxes: NDArray[np.float32], shape: tuple[int, int]) -> NDArray[np.float32]:
    """Boxes (N, 4) clipped at the borders of a picture of `shape` (H, W)."""
    height, width = shape
    return np.clip(boxes, 0, np.array([width, height, width, height], dtype=boxes.dtype))


def crop_to_canvas(
    sample: Sample,
    rows: Span,
    columns: Span,
    canvas: tuple[int, int],
    interpolation: int,
    fill: float,
    min_visibility: float = MIN_VISIBILITY,
) -> Sample:
    """A part of the picture, resized and put on the canvas, with all that belongs to it; `geometry` is not given."""
    part = np.s_[rows.start : rows.start + rows.part, columns.start : columns.start + columns.part]
    place = View(rows.size, columns.size, rows.offset, columns.offset, canvas)
    out = dict(sample)
    out["image"] = place.place(sample["image"][part], interpolation, fill)
    place_masks(out, place, part)
    if "boxes" in sample:
        start = np.array([columns.start, rows.start])
        scale = np.array([columns.size / columns.part, rows.size / rows.part])
        corners = (sample["boxes"].reshape(-1, 2, 2) - start) * scale
        inside = np.clip(corners, 0, [columns.size, rows.size]) + np.array([columns.offset, rows.offset])
        before, after = (c.reshape(-1, 4).astype(np.float32) for c in (corners, inside))
        keep_boxes(out, after, visible(before, after, min_visibility))
    return out


def place_masks(out: Sample, view: View, part: tuple[slice, slice] = np.s_[:, :]) -> None:
    """Put the masks of a sample on the canvas, or those of a part of its picture (rows and columns)."""
    if "mask" in out:
        mask = cv2_mask(out["mask"][part])
        out["mask"] = view.place(mask, cv2.INTER_NEAREST_EXACT, IGNORE).astype(out["mask"].dtype, copy=False)
    if "masks" in out:
        layers = [view.place(layer[part], cv2.INTER_NEAREST_EXACT, NO_OBJECT) for layer in out["masks"]]
        out["masks"] = np.stack(layers) if layers else np.zeros((0, *view.canvas), out["masks"].dtype)


def visible(
    boxes: NDArray[np.float32], clipped: NDArray[np.float32], min_visibility: float = MIN_VISIBILITY
) -> NDArray[np.int64]:
    """Numbers of the boxes of which enough is left."""
    side, before, after = sides(clipped).min(-1), sides(boxes).prod(-1), sides(clipped).prod(-1)
    return np.flatnonzero((side >= 1) & (after >= (min_visibility - 1e-4) * before))  # rounding is no loss


def flip(sample: Sample, horizontal: bool, vertical: bool) -> Sample:
    """The picture mirrored, with all that belongs to it; the sample itself where neither is asked for."""
    if not (horizontal or vertical):
        return sample
    steps = np.s_[:: -1 if vertical else 1, :: -1 if horizontal else 1]
    height, width = sample["image"].shape[:2]
    out = dict(sample)
    mirrored = cv2.flip(sample["image"], -1 if horizontal and vertical else int(horizontal))
    out["image"] = mirrored.reshape(sample["image"].shape)  # OpenCV drops a last axis of one
    if "mask" in sample:
        out["mask"] = np.ascontiguousarray(sample["mask"][steps])
    if "masks" in sample:
        out["masks"] = np.ascontiguousarray(sample["masks"][:, *steps])
    if "boxes" in sample:
        boxes = sample["boxes"].copy()
        if horizontal:
            boxes[:, [0, 2]] = width - sample["boxes"][:, [2, 0]]
        if vertical:
            boxes[:, [1, 3]] = height - sample["boxes"][:, [3, 1]]
        out["boxes"] = boxes
    return out


def pixel_of_a_class(mask: NDArray[Any], rng: np.random.Generator) -> tuple[int, int] | None:
    """Row and column of a random pixel of one of the classes in a mask, each class as likely as another."""
    step = max(
        1, int(np.sqrt(mask.shape[0] * mask.shape[1] / 250_000))
    )  # looking at every pixel of a large one is slow
    small = mask[::step, ::step]
    if small.ndim == 3:  # multi-label
        present = np.flatnonzero((small == 1).any((0, 1)))
        places = (small[..., int(rng.choice(present))] == 1) if len(present) else np.zeros((0, 0), bool)
    else:
        present = np.setdiff1d(small, [IGNORE])
        places = small == rng.choice(present) if len(present) else np.zeros((0, 0), bool)
    found = np.flatnonzero(places)
    if not len(found):
        return None
    row, column = np.unravel_index(int(rng.choice(found)), places.shape)
    return int(row) * step, int(column) * step


def middle_of_an_object(sample: Sample, rng: np.random.Generator) -> tuple[int, int] | None:
    """Row and column of the middle of a random box of one of the picture's classes, each class as likely as another."""
    single = np.flatnonzero(sample.get("iscrowd", np.zeros(len(sample["boxes"]))) == 0)
    if not len(single):
        return None
    labels = sample["labels"][single]
    x1, y1, x2, y2 = sample["boxes"][rng.choice(single[labels == rng.choice(np.unique(labels))])]
    height, width = sample["image"].shape[:2]
    return min(max(int((y1 + y2) / 2), 0), height - 1), min(max(int((x1 + x2) / 2), 0), width - 1)


def keep_boxes(out: Sample, boxes: NDArray[Any], kept: NDArray[np.int64]) -> None:
    """Put the kept ones of `boxes` into `out`, and what belongs to each box; renumber the objects in masks.

    `boxes` holds either all boxes or, in order, just the kept ones.
    """
    total = len(out["boxes"])
    out["boxes"] = boxes if len(boxes) == len(kept) else boxes[kept]
    if len(kept) == total:
        return
    for key in PER_BOX:
        if key in out:
            out[key] = out[key][kept]
    if "masks" in out:
        number = np.zeros(total + 1, dtype=out["masks"].dtype)
        number[kept + 1] = np.arange(1, len(kept) + 1)
        out["masks"] = number[out["masks"]]


def cv2_mask(mask: NDArray[Any]) -> NDArray[Any]:
    """A mask of a type that OpenCV knows."""
    return mask.astype(np.int32) if mask.dtype.itemsize > 4 else mask  # OpenCV 4 has no int64


def shift_mask(mask: NDArray[Any]) -> NDArray[Any]:
    """Classes plus 1 and ignore as 0, so that albumentations' fill of masks, 0, comes out as ignore."""
    if mask.dtype == np.uint8:
        return mask + np.uint8(1)  # 255 wraps to 0
    mask = cv2_mask(mask)
    return np.where(mask == IGNORE, 0, mask + 1).astype(mask.dtype)


def unshift_mask(mask: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Undo `shift_mask`."""
    if dtype == np.uint8:
        return np.ascontiguousarray(mask - np.uint8(1))
    return np.where(mask == 0, IGNORE, mask - 1).astype(dtype)
