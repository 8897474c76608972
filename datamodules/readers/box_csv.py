"""Lists of boxes: a CSV or parquet file with one box a row, as TensorFlow's tools and Roboflow write it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datamodules.annotations.records import Listing, split_name
from datamodules.common.errors import UserError
from datamodules.readers.drawn import Drawing, Shape, listing_of
from datamodules.readers.tables import Table, load_tables
from datamodules.readers.text import number, whole

_NAMES = {
    "image": ("filename", "path", "image", "image_path", "file_name", "file", "img", "image_id"),
    "class": ("class", "label", "class_name", "name", "category"),
    "x1": ("xmin", "x1", "x_min", "left"),
    "y1": ("ymin", "y1", "y_min", "top"),
    "x2": ("xmax", "x2", "x_max", "right"),
    "y2": ("ymax", "y2", "y_max", "bottom"),
}
_CORNERS = ("x1", "y1", "x2", "y2")


def read_box_csv(source: str | Path, class_names: list[str] | None, image_root: Any = None) -> Listing:
    """Read ``filename,width,height,class,xmin,ymin,xmax,ymax``, in any order of columns and by the usual other names.

    ``width``, ``height`` and ``split`` may be left out. A row without class and corners is an image without objects.

    Args:
        source: The list, or one a split: ``{split}_labels.csv``, or a folder with ``train.csv``.
        class_names: All classes, in the order of their ids.
        image_root: Where file names start; by default where the images are found.

    Raises:
        UserError: If a column is missing, a value is not as above, or an image is missing.
    """
    table = load_tables(source, "class")
    columns = _columns(table)
    drawings: dict[tuple[str | None, str], Drawing] = {}
    for i, name in enumerate(table.columns[columns["image"]]):
        split = _split(table, i)
        height, width = (_size(table, side, i) for side in ("height", "width"))
        drawing = drawings.setdefault((split, str(name)), Drawing(str(name), [], height, width, split))
        if shape := _shape(table, columns, i):
            drawing.shapes.append(shape)
    return listing_of([(table.file, list(drawings.values()))], class_names, image_root)


def is_box_table(file: Path) -> bool:
    """Whether a CSV file's first line names corners of boxes."""
    with open(file, "rb") as stream:
        head = stream.readline(4096).decode("utf-8", "replace").lower()
    return any(name in head for name in _NAMES["x1"]) and any(name in head for name in _NAMES["y2"])


def _columns(table: Table) -> dict[str, str]:
    """What each value's column is called."""
    by_lower = {name.lower(): name for name in table.columns}
    found = {}
    for role, names in _NAMES.items():
        name = next((by_lower[name] for name in names if name in by_lower), None)
        if name is None:
            raise UserError(
                f"'{table.file}' has no column '{names[0]}' (it has: {', '.join(table.columns)}). A list of boxes has"
                " filename, class, xmin, ymin, xmax, ymax, and perhaps width, height and split."
            )
        found[role] = name
    table.require(found["image"])
    return found


def _split(table: Table, i: int) -> str | None:
    cell = table.columns["split"][i] if "split" in table.columns else None
    split = split_name(str(cell)) if cell else table.splits[i]
    if cell and split is None:
        raise UserError(f"{table.where(i)}: split is '{cell}'; it must be train, val or test, or empty.")
    return split


def _size(table: Table, side: str, i: int) -> int:
    cell = table.columns[side][i] if side in table.columns else None
    return whole(cell, f"{table.where(i)}: {side}") if cell not in (None, "") else 0


def _shape(table: Table, columns: dict[str, str], i: int) -> Shape | None:
    """The box of a row; None for an image without objects."""
    name, *corners = (table.columns[columns[role]][i] for role in ("class", *_CORNERS))
    if all(cell in (None, "") for cell in (name, *corners)):
        return None
    if name in (None, ""):
        raise UserError(f"{table.where(i)}: the class is empty.")
    x1, y1, x2, y2 = (number(c, f"{table.where(i)}: {columns[r]}") for c, r in zip(corners, _CORNERS, strict=True))
    return Shape(str(name), (x1, y1, x2, y2), None, i + 2)
