"""Lists of images in a CSV or parquet file."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from datamodules.annotations.records import Listing, Record, sort_classes, split_name
from datamodules.common.errors import UserError, did_you_mean
from datamodules.readers.digits import read_digits
from datamodules.readers.tables import Table, Where, load_table

_ROLES = ("path", "label", "labels", "probabilities", "split", "weight")
_LABELS = ("label", "labels", "probabilities")
_EMBEDDED = "digits#"  # how the paths of the embedded images begin
_CLASS_COLUMN = "p_"  # one numeric column per class: p_cat, p_dog, ...


def read_list(file: str | Path, image_root: str | Path | None = None, columns: dict[str, str] | None = None) -> Listing:
    """Read a ``.csv`` or ``.parquet`` list, one image a row.

    Columns: ``path`` (a file, or ``digits#12`` for an embedded digit); one kind of label (below); optional ``split``
    (``train``, ``val``, ``test``; empty leaves the image to be split) and ``weight`` (at least 0).

    - ``label``: one class, a name or an integer. The record's label is an int.
    - ``labels``: any number of classes, separated by ``;`` or ``|``, or a list in parquet. K floats, 0 or 1.
    - ``probabilities``: K numbers, separated by ``;``, or a list in parquet; classes are named 0..K-1. K floats.
    - ``p_CLASS``: one numeric column per class, at least two. K floats.

    Classes are numbered 0..K-1 in sorted order, numerically where all are integers.

    Args:
        file: The list.
        image_root: Where relative paths start; the list's own folder by default.
        columns: Other names of columns, for example ``{"path": "filename", "label": "species"}``. It also decides
            which kind of label is taken where a file has several.

    Raises:
        UserError: If the list or an image is missing; the first missing image is named with its row.
        UserError: If a column or a value is not as above, naming file, row and value.
    """
    table = load_table(file)
    names = _resolve_columns(table.file, list(table.columns), columns or {})
    cells, where = table.columns, table.where
    table.require(names["path"])
    paths = _paths(cells[names["path"]], Path(image_root) if image_root is not None else table.file.parent, where)
    labels, class_names = _labels(table, names)
    splits = _splits(cells[names["split"]], where) if "split" in names else [None] * len(paths)
    records: list[Record] = [
        {"image": _image(path), "path": path, "label": label, "split": split}
        for path, label, split in zip(paths, labels, splits, strict=True)
    ]
    if "weight" in names:
        for i, (record, value) in enumerate(zip(records, cells[names["weight"]], strict=True)):
            record["weight"] = _number(value, where(i), names["weight"])
            if record["weight"] < 0:
                raise UserError(f"{where(i)}: weight is {value}; it must be at least 0.")
    return Listing(records, class_names)


def _labels(table: Table, names: dict[str, str]) -> tuple[Sequence[int | list[float]], list[str]]:
    """The labels of each row and the class names, from the kind of column that the file has."""
    kind = next((role for role in _LABELS if role in names), None)
    if kind is None:
        return _class_columns(table)
    cells = table.columns[names[kind]]
    if kind == "label":
        return _single(cells, table.where)
    return _multiple(cells, table.where) if kind == "labels" else _probabilities(cells, table.where)


def _class_columns(table: Table) -> tuple[list[list[float]], list[str]]:
    """One numeric column for each class."""
    names = [name for name in table.columns if name.startswith(_CLASS_COLUMN)]
    class_names = sort_classes(name.removeprefix(_CLASS_COLUMN) for name in names)
    by_class = []
    for name in class_names:
        column = _CLASS_COLUMN + name
        by_class.append([_probability(v, table.where(i), column) for i, v in enumerate(table.columns[column])])
    return [list(row) for row in zip(*by_class, strict=True)], class_names


def read_mask_list(file: str | Path) -> Listing:
    """Read a list of images and their masks, one pair a row.

    Columns: ``path`` and ``mask`` (files; relative ones start at the list's folder), and optional ``split`` as in
    ``read_list`` and ``soft_mask`` (files). Others are left alone.

    Returns:
        Records with ``mask``, a path, and ``soft_mask``, a path; no class names.

    Raises:
        UserError: If the list, an image or a mask is missing; the first is named with its row.
        UserError: If a column is missing, or a value is not as above.
    """
    table = load_table(file)
    table.require("path", "mask")
    cells, where, folder = table.columns, table.where, table.file.parent
    images, masks = (_paths(cells[column], folder, where) for column in ("path", "mask"))
    splits = _splits(cells["split"], where) if "split" in cells else [None] * len(images)
    records = [
        {"image": image, "path": image, "mask": mask, "split": split}
        for image, mask, split in zip(images, masks, splits, strict=True)
    ]
    if "soft_mask" in cells:
        for record, soft in zip(records, _paths(cells["soft_mask"], folder, where), strict=True):
            record["soft_mask"] = soft
    return Listing(records, [])


def read_paths(file: str | Path, image_root: str | Path | None = None) -> list[Record]:
    """The images of a list, whatever else it says of them: records with ``image`` and ``path`` alone.

    Args:
        file: A ``.csv`` or ``.parquet`` list with a column ``path``.
        image_root: Where relative paths start; the list's own folder by default.

    Raises:
        UserError: If the list or an image is missing.
        UserError: If it has no column ``path`` or no rows.
    """
    table = load_table(file)
    table.require("path")
    root = Path(image_root) if image_root is not None else table.file.parent
    return [{"image": _image(path), "path": path} for path in _paths(table.columns["path"], root, table.where)]


@cache
def _embedded() -> dict[str, Any]:
    """Path -> pixels of the embedded digits."""
    return {record["path"]: record["image"] for record in read_digits().records}


def _image(path: str) -> Any:
    """A file stays a path; ``digits#12`` is the pixels of the embedded digit."""
    return _embedded()[path] if path.startswith(_EMBEDDED) else path


def _resolve_columns(file: Path, header: list[str], columns: dict[str, str]) -> dict[str, str]:
    """Role -> name of the column, for the roles that this file has."""
    for role, name in columns.items():
        if role not in _ROLES:
            raise UserError(
                f"columns: '{role}' is no column of a list ({', '.join(_ROLES)}).{did_you_mean(role, _ROLES)}"
            )
        if name not in header:
            raise UserError(
                f"'{file}' has no column '{name}' (asked for as columns.{role}).{did_you_mean(name, header)}"
                f" It has: {', '.join(header)}."
            )
    names = {role: role for role in _ROLES if role in header} | columns
    if "path" not in names:
        raise UserError(
            f"'{file}' has no column 'path' (it has: {', '.join(header)}).{did_you_mean('path', header)}"
            " Name it with columns: {path: NAME}."
        )
    return _with_one_kind(file, header, names, columns)


def _with_one_kind(file: Path, header: list[str], names: dict[str, str], columns: dict[str, str]) -> dict[str, str]:
    """The roles with only one kind of labels, that of ``columns`` where there are several."""
    kinds = [role for role in _LABELS if role in names]
    if not kinds and sum(name.startswith(_CLASS_COLUMN) for name in header) < 2:
        raise UserError(
            f"'{file}' has no labels: expected a column 'label', 'labels' or 'probabilities', or columns"
            f" '{_CLASS_COLUMN}CLASS' (it has: {', '.join(header)}).{did_you_mean('label', header)} Name it with"
            " columns: {label: NAME}."
        )
    if len(kinds) < 2:
        return names
    chosen = [role for role in kinds if role in columns]
    if len(chosen) != 1:
        raise UserError(
            f"'{file}' has several kinds of labels: {', '.join(kinds)}. Choose one, for example with"
            f" columns: {{{kinds[0]}: {names[kinds[0]]}}}."
        )
    return {role: name for role, name in names.items() if role not in kinds or role in chosen}


def _paths(cells: list[Any], root: Path, where: Where) -> list[str]:
    paths = []
    for i, cell in enumerate(cells):
        if not isinstance(cell, str) or not cell:
            raise UserError(f"{where(i)}: the path is empty.")
        paths.append(cell if cell.startswith(_EMBEDDED) else str(root / cell))
    missing = [
        i
        for i, path in enumerate(paths)
        if not (path in _embedded() if path.startswith(_EMBEDDED) else os.path.isfile(path))
    ]
    if missing:
        i = missing[0]
        raise UserError(
            f"{where(i)}: image '{cells[i]}' does not exist (looked for {paths[i]}); {len(missing)} of {len(paths)} are"
            " missing. Relative paths start from the list's folder, or from image_root."
        )
    return paths


def _class_name(value: object, where: str) -> str:
    """A class name or integer as text."""
    if isinstance(value, float) and value.is_integer():  # how pandas writes integers beside missing values
        value = int(value)
    if value is None or value == "" or isinstance(value, float):
        raise UserError(
            f"{where}: the label is {'empty' if value in (None, '') else value}; a class name or integer is needed."
        )
    return str(value).strip()


def _single(cells: list[Any], where: Where) -> tuple[list[int], list[str]]:
    values = [_class_name(cell, where(i)) for i, cell in enumerate(cells)]
    class_names = sort_classes(values)
    ids = {name: i for i, name in enumerate(class_names)}
    return [ids[value] for value in values], class_names


def _multiple(cells: list[Any], where: Where) -> tuple[list[list[float]], list[str]]:
    rows: list[set[str]] = []
    for i, cell in enumerate(cells):
        if cell is None:
            raise UserError(f"{where(i)}: the labels are missing; an empty list means none of the classes.")
        rows.append({_class_name(value, where(i)) for value in _values(cell)})
    class_names = sort_classes(name for row in rows for name in row)
    if not class_names:
        raise UserError(f"{where(0)} and all others name no labels.")
    return [[float(name in row) for name in class_names] for row in rows], class_names


def _values(cell: Any) -> list[Any]:
    """The labels in one cell: text with separators, a list, or a single value."""
    if isinstance(cell, str):
        return [word.strip() for word in re.split(r"[;|]", cell) if word.strip()]
    return cell if isinstance(cell, list) else [cell]


def _probabilities(cells: list[Any], where: Where) -> tuple[list[list[float]], list[str]]:
    rows = []
    for i, cell in enumerate(cells):
        parts = cell.split(";") if isinstance(cell, str) else cell
        if not parts:
            raise UserError(f"{where(i)}: the probabilities are empty.")
        rows.append([_probability(part, where(i), "probabilities") for part in parts])
        if len(rows[i]) != len(rows[0]):
            raise UserError(f"{where(i)}: {len(rows[i])} probabilities where {where(0)} has {len(rows[0])}.")
    return rows, [str(k) for k in range(len(rows[0]))]


def _splits(cells: list[Any], where: Where) -> list[str | None]:
    splits = []
    for i, cell in enumerate(cells):
        split = split_name(str(cell)) if cell else None
        if cell and split is None:
            raise UserError(f"{where(i)}: split is '{cell}'; it must be train, val or test, or empty.")
        splits.append(split)
    return splits


def _number(value: object, where: str, column: str) -> float:
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"{where}: {column} is '{value}'; a number is needed.")
    return number


def _probability(value: object, where: str, column: str) -> float:
    number = _number(value, where, column)
    if not 0 <= number <= 1:
        raise UserError(f"{where}: {column} is {number:g}; a probability lies in 0..1.")
    return number
