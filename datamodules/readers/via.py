"""The VGG Image Annotator's JSON, or its whole project: regions with attributes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datamodules.annotations.records import Listing
from datamodules.common.errors import UserError
from datamodules.readers.drawn import Drawing, Shape, box_shape, has_keys, listing_of, polygon_shape
from datamodules.readers.json_files import files_of
from datamodules.readers.text import load_json, number

_CLASS_KEYS = ("class", "label", "name", "category", "type", "object")  # of several attributes the likely ones


def read_via(source: Path, class_names: list[str] | None, image_root: Any = None) -> Listing:
    """Read rectangles, polygons, circles and ellipses (as boxes).

    The class of a region is its only attribute, or that which is called ``class``, ``label``, ``name`` or the like.

    Raises:
        UserError: If a file is not as VIA writes it, a region has no class, or it is a point or a line.
    """
    files, notes = files_of(source, "via")
    return listing_of([(file, _drawings(file)) for file in files], class_names, image_root, notes)


def _drawings(file: Path) -> list[Drawing]:
    data = load_json(file)
    entries = data.get("_via_img_metadata", data) if isinstance(data, dict) else None
    if not isinstance(entries, dict):
        raise UserError(f"'{file}' is no file of VIA: it must be an object of images.")
    found = []
    for key, entry in entries.items():
        if not has_keys(entry, "filename", "regions") or not isinstance(entry["filename"], str):
            raise UserError(f"'{file}': '{key}' must have a 'filename' and 'regions'.")
        regions = entry["regions"] or []
        regions = list(regions.values()) if isinstance(regions, dict) else regions  # version 1 numbers them
        if not isinstance(regions, list):
            raise UserError(f"'{file}': the regions of '{key}' must be a list.")
        name = entry["filename"]
        found.append(
            Drawing(name, [_shape(r, i, f"'{file}', region {i} of '{name}'") for i, r in enumerate(regions, 1)])
        )
    return found


def _shape(region: Any, i: int, where: str) -> Shape:
    if not has_keys(region, "shape_attributes", "region_attributes") or not has_keys(
        region["shape_attributes"], "name"
    ):
        raise UserError(f"{where}: it must have 'shape_attributes' with a 'name', and 'region_attributes'.")
    form, name = region["shape_attributes"], _class_of(region["region_attributes"], where)

    def get(*keys: str) -> list[float]:
        return [number(form.get(key), f"{where}: {key}") for key in keys]

    kind = form["name"]
    if kind == "rect":
        x, y, width, height = get("x", "y", "width", "height")
        return box_shape(name, (x, y, x + width, y + height), 0, i)
    if kind in ("circle", "ellipse"):
        x, y = get("cx", "cy")
        rx, ry = get("r", "r") if kind == "circle" else get("rx", "ry")
        return box_shape(name, (x - rx, y - ry, x + rx, y + ry), 0, i)
    x_all, y_all = form.get("all_points_x"), form.get("all_points_y")
    if kind == "polygon" and isinstance(x_all, list) and isinstance(y_all, list) and len(x_all) == len(y_all) > 2:
        pairs = zip(x_all, y_all, strict=True)
        return polygon_shape(name, [[number(value, f"{where}: a corner") for pair in pairs for value in pair]], i)
    raise UserError(f"{where} ('{name}'): a {kind} has no box; rect, circle, ellipse and polygon are read. Remove it.")


def _class_of(attributes: Any, where: str) -> str:
    """The class that a region's attributes name."""
    values = attributes if isinstance(attributes, dict) else {}
    key = next(iter(values)) if len(values) == 1 else next((k for k in _CLASS_KEYS if k in values), None)
    value = values.get(key)
    if isinstance(value, dict):  # check boxes
        ticked = [name for name, is_set in value.items() if is_set]
        value = ticked[0] if len(ticked) == 1 else None
    if not isinstance(value, str | int) or isinstance(value, bool) or str(value).strip() == "":
        raise UserError(
            f"{where}: its attributes {attributes!r:.80} name no class; give it one attribute, or one named class."
        )
    return str(value).strip()
