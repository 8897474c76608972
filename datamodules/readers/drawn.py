"""What the readers of annotation programs share: shapes drawn on an image become a record of boxes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from datamodules.annotations.records import Listing, Record, sort_classes, split_name
from datamodules.common import rle
from datamodules.common.errors import UserError, did_you_mean
from datamodules.decoding.limits import max_pixels
from datamodules.decoding.sizes import image_size
from datamodules.readers.places import find_files, roots_of


class Shape(NamedTuple):
    """One object."""

    name: str
    box: tuple[float, float, float, float]  # x1 y1 x2 y2, pixels
    mask: Any = None  # polygons or run lengths, see `rle.from_segmentation`
    number: int = 1  # of the object in its file


class Drawing(NamedTuple):
    """An image and what is drawn on it."""

    image: str  # as the file names it
    shapes: list[Shape]
    height: int = 0  # 0: the file does not say
    width: int = 0
    split: str | None = None


def listing_of(
    files: Sequence[tuple[Path, list[Drawing]]],
    class_names: list[str] | None,
    image_root: Any,
    notes: tuple[str, ...] = (),
) -> Listing:
    """The records of all files, and the classes: those that are given, or those that occur, sorted.

    Args:
        files: Each annotation file and its images.
        class_names: All classes, in the order of their ids.
        image_root: Where file names start; by default where the images are found, see ``places.roots_of``.
        notes: What the person is told of these files.

    Raises:
        UserError: If an image is missing or stands in two places, a class is unknown, or there is no object.
    """
    names = class_names or _names_of(files)
    records: list[Record] = []
    seen: dict[str, Path] = {}
    for file, drawings in files:
        for drawing, path in zip(drawings, _paths(file, drawings, image_root), strict=True):
            if path in seen:
                raise UserError(
                    f"Image '{path}' is in '{seen[path]}' and in '{file}' once more; remove it from one place."
                )
            seen[path] = file
            records.append(record_of(file, path, drawing, names))
    return Listing(records, names, notes=notes)


def _names_of(files: Sequence[tuple[Path, list[Drawing]]]) -> list[str]:
    """The classes that occur, sorted."""
    drawn = [drawing for _, drawings in files for drawing in drawings]
    names = sort_classes(shape.name for drawing in drawn for shape in drawing.shapes)
    if not names:
        raise UserError(
            f"'{files[0][0]}' has no object with a class; there is nothing to learn." if files else "No files."
        )
    return names


def _paths(file: Path, drawings: list[Drawing], image_root: Any) -> list[str]:
    """Where the images of an annotation file are."""
    splits = {drawing.split or split_of(file) for drawing in drawings}
    split = splits.pop() if len(splits) == 1 else None
    roots = roots_of(file, split) if image_root is None else [str(image_root)]
    paths, missing = find_files([drawing.image for drawing in drawings], roots, loose=True)
    if missing:
        raise UserError(
            f"'{file}': image '{drawings[missing[0]].image}' does not exist (looked in {', '.join(roots)});"
            f" {len(missing)} of {len(paths)} are missing. Set image_root to the folder where file names start."
        )
    return paths


def split_of(file: Path) -> str | None:
    """The split that a file's name or folder says; None if neither does."""
    return split_name(file.stem) or split_name(file.parent.name) or split_name(file.parent.parent.name)


def record_of(file: Path, path: str, drawing: Drawing, names: list[str]) -> Record:
    """The record of an image.

    Args:
        file: With the annotations.
        path: Of the image.
        drawing: What is drawn on it.
        names: All classes.

    Raises:
        UserError: If a class is unknown, a mask cannot be drawn, or the image is too large.
    """
    height, width = drawing.height, drawing.width
    if height * width > max_pixels():
        raise UserError(
            f"'{file}': image '{drawing.image}': {width} x {height} pixels are more than max_pixels ="
            f" {max_pixels():,}. Correct its height and width, cut the image into tiles, or raise data.max_pixels."
        )
    if height < 1 or width < 1:
        height, width = image_size(path)
    boxes = np.array([shape.box for shape in drawing.shapes], np.float64).reshape(-1, 4)
    masks = [shape.mask for shape in drawing.shapes]
    area = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    for i, shape in enumerate(drawing.shapes):
        where = f"'{file}', object {shape.number} of '{drawing.image}'"
        if shape.name not in names:
            raise UserError(
                f"{where}: class '{shape.name}' is none of {', '.join(names)}.{did_you_mean(shape.name, names)} Add it"
                " to the class names, or correct it."
            )
        if shape.mask is not None:
            area[i] = _mask_area(shape.mask, height, width, where)
    return {
        "image": path,
        "path": path,
        "split": drawing.split or split_of(file),
        "height": height,
        "width": width,
        "boxes": boxes.astype(np.float32),
        "labels": np.array([names.index(shape.name) for shape in drawing.shapes], np.int64),
        "iscrowd": np.zeros(len(masks), np.uint8),
        "area": area.astype(np.float32),
        "segmentation": masks if any(mask is not None for mask in masks) else None,
        "annotation_ids": np.array([shape.number for shape in drawing.shapes], np.int64),
        "annotation_file": str(file),
    }


def _mask_area(mask: Any, height: int, width: int, where: str) -> float:
    try:
        return float(rle.area(rle.verified(mask, height, width)))
    except UserError as error:
        raise UserError(f"{where}: {error}.") from error


def polygon_shape(name: str, polygons: Sequence[Sequence[float]], number: int) -> Shape:
    """An object of one or several polygons x, y, x, y, ...; its box is their extent."""
    points = np.concatenate([np.reshape(np.asarray(p, np.float64), (-1, 2)) for p in polygons])
    (x1, y1), (x2, y2) = points.min(0).tolist(), points.max(0).tolist()
    return Shape(name, (x1, y1, x2, y2), [list(p) for p in polygons], number)


def box_shape(name: str, corners: Iterable[float], rotation: float, number: int) -> Shape:
    """An upright box x1 y1 x2 y2; one that is turned around its center, in degrees, becomes its extent."""
    x1, y1, x2, y2 = corners
    if not math.isfinite(rotation):
        raise UserError(f"The rotation of object {number} ('{name}') is {rotation}; it must be a number of degrees.")
    x1, x2, y1, y2 = min(x1, x2), max(x1, x2), min(y1, y2), max(y1, y2)
    if rotation % 180:
        cos, sin = abs(math.cos(math.radians(rotation))), abs(math.sin(math.radians(rotation)))
        half_w, half_h = (x2 - x1) / 2 * cos + (y2 - y1) / 2 * sin, (x2 - x1) / 2 * sin + (y2 - y1) / 2 * cos
        x, y = (x1 + x2) / 2, (y1 + y2) / 2
        x1, y1, x2, y2 = x - half_w, y - half_h, x + half_w, y + half_h
    return Shape(name, (x1, y1, x2, y2), None, number)


def has_keys(value: Any, *keys: str) -> bool:
    """Whether a value of a JSON file is an object with these keys."""
    return isinstance(value, dict) and all(key in value for key in keys)
