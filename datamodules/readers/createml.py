"""CreateML's JSON: a list of images, their boxes by center and size in pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datamodules.annotations.records import Listing
from datamodules.common.errors import UserError
from datamodules.readers.drawn import Drawing, Shape, box_shape, has_keys, listing_of
from datamodules.readers.json_files import files_of
from datamodules.readers.text import load_json, number

_SIDES = ("x", "y", "width", "height")


def read_createml(source: Path, class_names: list[str] | None, image_root: Any = None) -> Listing:
    """Read ``[{"image": ..., "annotations": [{"label": ..., "coordinates": {"x": ...}}]}]``.

    Raises:
        UserError: If a file is not as above.
    """
    files, notes = files_of(source, "createml")
    return listing_of([(file, _drawings(file)) for file in files], class_names, image_root, notes)


def _drawings(file: Path) -> list[Drawing]:
    data = load_json(file)
    if not isinstance(data, list):
        raise UserError(f"'{file}' is no file of CreateML: it must be a list of images.")
    found = []
    for i, entry in enumerate(data, 1):
        entry = entry if isinstance(entry, dict) else {}
        name = next((entry[key] for key in ("image", "imagefilename", "imagefile") if entry.get(key)), None)
        things = entry.get("annotations", entry.get("annotation", []))
        if not isinstance(name, str) or not isinstance(things, list):
            raise UserError(f"'{file}', entry {i}: it must have an 'image' and a list 'annotations'.")
        found.append(
            Drawing(name, [_shape(thing, k, f"'{file}', box {k} of '{name}'") for k, thing in enumerate(things, 1)])
        )
    return found


def _shape(thing: Any, i: int, where: str) -> Shape:
    if not has_keys(thing, "label", "coordinates") or not has_keys(thing["coordinates"], *_SIDES):
        raise UserError(f"{where}: it must have a 'label' and 'coordinates' of {', '.join(_SIDES)}.")
    x, y, width, height = (number(thing["coordinates"][side], f"{where}: {side}") for side in _SIDES)
    corners = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
    return box_shape(str(thing["label"]), corners, 0, i)
