"""LabelMe's JSON: one file an image, its shapes as lists of points."""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path
from typing import Any

from datamodules.annotations.records import Listing
from datamodules.common.errors import UserError
from datamodules.decoding.files import list_images
from datamodules.readers.drawn import Drawing, Shape, box_shape, has_keys, listing_of, polygon_shape
from datamodules.readers.json_files import files_of
from datamodules.readers.pairing import without_annotations
from datamodules.readers.text import load_json, number, whole


def read_labelme(source: Path, class_names: list[str] | None, image_root: Any = None) -> Listing:
    """Read rectangles, circles (as boxes) and polygons; shapes of one class and ``group_id`` are one object.

    Raises:
        UserError: If a file is not as LabelMe writes it, or holds points, lines or anything else without an area.
    """
    files, notes = files_of(source, "labelme")
    listing = listing_of([(file, [_drawing(file)]) for file in files], class_names, image_root, notes)
    return listing if source.is_file() else listing._replace(notes=(*listing.notes, *_without_file(listing)))


def _without_file(listing: Listing) -> list[str]:
    """What is said of the images that lie beside those of a listing and have no file of their own."""
    used = {record["path"] for record in listing.records}
    said = []
    for folder in sorted({os.path.dirname(path) for path in used}):
        images = [os.path.join(folder, name) for name in list_images(folder).images]
        said += without_annotations([image for image in images if image not in used], len(images), folder, "JSON")
    return said


def _drawing(file: Path) -> Drawing:
    data = load_json(file)
    if not has_keys(data, "shapes") or not isinstance(data["shapes"], list):
        raise UserError(f"'{file}' is no file of LabelMe: it has no list 'shapes'.")
    parts: dict[Any, list[Shape]] = defaultdict(list)
    for i, thing in enumerate(data["shapes"], 1):
        shape = _shape(thing, i, f"'{file}', shape {i}")
        group = thing.get("group_id")
        is_part = isinstance(group, int) and shape.mask is not None
        parts[("group", shape.name, group) if is_part else i].append(shape)
    height, width = (whole(data.get(key) or 0, f"'{file}': {key}") for key in ("imageHeight", "imageWidth"))
    shapes = [_joined(same) for same in parts.values()]
    return Drawing(str(data.get("imagePath") or f"{file.stem}.jpg"), shapes, height, width)


def _joined(parts: list[Shape]) -> Shape:
    """The parts of one object."""
    if len(parts) == 1:
        return parts[0]
    return polygon_shape(parts[0].name, [polygon for part in parts for polygon in part.mask], parts[0].number)


def _shape(thing: Any, i: int, where: str) -> Shape:
    if not has_keys(thing, "label", "points") or not isinstance(thing["label"], str):
        raise UserError(f"{where}: it must have a 'label' and 'points'.")
    name, kind = thing["label"], thing.get("shape_type") or "polygon"
    try:
        points = [(number(x, where), number(y, where)) for x, y in thing["points"]]
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{where} ('{name}'): its points are {thing['points']!r:.60}; they must be pairs of numbers."
        ) from error
    if kind == "polygon" and len(points) >= 3:
        return polygon_shape(name, [[value for point in points for value in point]], i)
    if kind in ("rectangle", "mask") and len(points) in (2, 4):
        x, y = zip(*points, strict=True)
        return box_shape(name, (min(x), min(y), max(x), max(y)), 0, i)
    if kind == "circle" and len(points) == 2:
        (x1, y1), (x2, y2) = points
        radius = ((x2 - x1) ** 2 + (y2 - y1) ** 2) ** 0.5
        return box_shape(name, (x1 - radius, y1 - radius, x1 + radius, y1 + radius), 0, i)
    raise UserError(
        f"{where} ('{name}'): a {kind} of {len(points)} points has no box; rectangles, circles and polygons are read."
        " Draw it again, or remove it."
    )
