"""Lists of images in a CSV or parquet file."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from datamodules.annotations.records import Listing, Record, sort_classes, split_name
from datamodules.common.errors import UserError, bullets, did_you_mean
from datamodules.readers.digits import read_digits
from datamodules.readers.label_cells import (
    cell_number,
    cell_probability,
    multiple_labels,
    probabilities,
    single_labels,
)
from datamodules.readers.places import find_files
from datamodules.readers.tables import Table, Where, load_tables

_ROLES = ("path", "label", "labels", "probabilities", "split", "weight")
_ASKED = (*_ROLES, "group")  # the last only where it is asked for
_LABELS = ("label", "labels", "probabilities")
_EMBEDDED = "digits#"  # how the paths of the embedded images begin
_CLASS_COLUMN = "p_"  # one numeric column per class: p_cat, p_dog, ...


def read_list(file: str | Path, image_root: str | Path | None = None, columns: dict[str, str] | None = None) -> Listing:
    """Read a list of images, one a row, or the lists of the splits.

    Columns: ``path`` (a file, or ``digits#12`` for an embedded digit); one kind of label (below); optional ``split``
    (``train``, ``val``, ``test``; empty leaves the image to be split) and ``weight`` (at least 0).

    - ``label``: one class, a name or an integer. The record's label is an int.
    - ``labels``: any number of classes, separated by ``;`` or ``|``, where there are none of these by commas, or a list
      (also as text: ``["cat", "dog"]``). K floats, 0 or 1.
    - ``probabilities``: K numbers, separated by ``;``, or a list in parquet; classes are named 0..K-1. K floats.
    - ``p_CLASS``: one numeric column per class, at least two. K floats.

    Text files have no header: a path a line, and its class behind it, or else the folder it is in. Names may start at
    the folder above or in ``images`` there, and lack their suffix.

    Classes are numbered 0..K-1 in sorted order, numerically where all are integers.

    Args:
        file: A ``.csv``, ``.parquet`` or ``.txt`` file; or several by their splits, see ``tables.list_files``.
        image_root: Where relative paths start; the list's own folder by default.
        columns: Other names of columns, for example ``{"path": "filename", "label": "species"}``. It also decides
            which kind of label is taken where a file has several.

    Raises:
        UserError: If the list or an image is missing; the first missing image is named with its row.
        UserError: If a column or a value is not as above, or an image stands in two rows, naming file, row and value.
    """
    table = load_tables(file, "label")
    names = _resolve_columns(table.file, list(table.columns), columns or {})
    cells, where = table.columns, table.where
    table.require(names["path"])
    paths = _paths(table, names["path"], image_root)
    if not any(name.startswith(_CLASS_COLUMN) for name in cells):
        _refuse_repeats(paths, where)  # balanced pseudo-labels repeat images on purpose
    labels, class_names = _labels(table, names)
    splits = _splits(table, names.get("split"))
    records: list[Record] = [
        {"image": _image(path), "path": path, "label": label, "split": split}
        for path, label, split in zip(paths, labels, splits, strict=True)
    ]
    if "weight" in names:
        for i, (record, value) in enumerate(zip(records, cells[names["weight"]], strict=True)):
            record["weight"] = cell_number(value, where(i), names["weight"])
            if record["weight"] < 0:
                raise UserError(f"{where(i)}: weight is {value}; it must be at least 0.")
    if "group" in names:
        _set_groups(records, table, names["group"])
    return Listing(records, class_names)


def _set_groups(records: list[Record], table: Table, column: str) -> None:
    table.require(column)
    for i, (record, cell) in enumerate(zip(records, table.columns[column], strict=True)):
        if cell is None or str(cell).strip() == "":
            raise UserError(f"{table.where(i)}: '{column}', the column of data.group, is empty.")
        record["group"] = str(cell)


def _labels(table: Table, names: dict[str, str]) -> tuple[Sequence[int | list[float]], list[str]]:
    """The labels of each row and the class names, from the kind of column that the file has."""
    kind = next((role for role in _LABELS if role in names), None)
    if kind is None:
        return single_labels(_folder_names(table), table.where) if table.is_text else _class_columns(table)
    cells = table.columns[names[kind]]
    if kind == "label":
        return single_labels(cells, table.where)
    return multiple_labels(cells, table.where) if kind == "labels" else probabilities(cells, table.where)


def _folder_names(table: Table) -> list[str]:
    """The folder of each image in a text file that names no classes.

    Raises:
        UserError: If a path has none.
    """
    found = []
    for i, cell in enumerate(table.columns["path"]):
        folder = cell.replace("\\", "/").rpartition("/")[0].rpartition("/")[2]
        if folder in ("", ".", ".."):
            raise UserError(f"{table.where(i)}: '{cell}' names no class: write the class behind the path, or a folder.")
        found.append(folder)
    return found


def _class_columns(table: Table) -> tuple[list[list[float]], list[str]]:
    """One numeric column for each class."""
    names = [name for name in table.columns if name.startswith(_CLASS_COLUMN)]
    class_names = sort_classes(name.removeprefix(_CLASS_COLUMN) for name in names)
    by_class = []
    for name in class_names:
        column = _CLASS_COLUMN + name
        by_class.append([cell_probability(v, table.where(i), column) for i, v in enumerate(table.columns[column])])
    return [list(row) for row in zip(*by_class, strict=True)], class_names


def read_mask_list(file: str | Path, image_root: str | Path | None = None, group: str | None = None) -> Listing:
    """Read a list of images and their masks, one pair a row.

    Columns: ``path`` and ``mask`` (files), and optional ``split`` as in ``read_list`` and ``soft_mask`` (files). Others
    are left alone. Text files have both on a line.

    Args:
        file: The list or lists, as for ``read_list``.
        image_root: Where relative paths of all columns start; the list's folder by default.
        group: Column of the images' groups, if any.

    Returns:
        Records with ``mask``, a path, and ``soft_mask``, a path; no class names.

    Raises:
        UserError: If the list, an image or a mask is missing; the first is named with its row.
        UserError: If a column is missing, a value is not as above, or an image stands in two rows.
    """
    table = load_tables(file, "mask")
    table.require("path", "mask")
    images, masks = (_paths(table, column, image_root) for column in ("path", "mask"))
    _refuse_repeats(images, table.where)
    records = [
        {"image": image, "path": image, "mask": mask, "split": split}
        for image, mask, split in zip(images, masks, _splits(table, "split"), strict=True)
    ]
    if "soft_mask" in table.columns:
        for record, soft in zip(records, _paths(table, "soft_mask", image_root), strict=True):
            record["soft_mask"] = soft
    if group is not None:
        _set_groups(records, table, group)
    return Listing(records, [])


def read_paths(file: str | Path, image_root: str | Path | None = None) -> list[Record]:
    """The images of a list, whatever else it says of them: records with ``image`` and ``path`` alone.

    Args:
        file: The list or lists, as for ``read_list``.
        image_root: Where relative paths start; the list's own folder by default.

    Raises:
        UserError: If the list or an image is missing.
        UserError: If it has no column ``path`` or no rows, or an image stands in two of them.
    """
    table = load_tables(file, "label")
    table.require("path")
    paths = _paths(table, "path", image_root)
    _refuse_repeats(paths, table.where)
    return [{"image": _image(path), "path": path} for path in paths]


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
        if role not in _ASKED:
            raise UserError(
                f"columns: '{role}' is no column of a list ({', '.join(_ASKED)}).{did_you_mean(role, _ASKED)}"
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
    if file.suffix.lower() == ".txt":
        return names
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


def _paths(table: Table, column: str, image_root: str | Path | None) -> list[str]:
    """The files of a column."""
    cells, where = table.columns[column], table.where
    rows = _rows_by_folder(table, column)
    paths = list(cells)
    missing = [i for i, cell in enumerate(cells) if cell.startswith(_EMBEDDED) and cell not in _embedded()]
    for folder, own in rows.items():
        roots = _roots(folder if image_root is None else Path(image_root), loose=table.is_text)
        found, gone = find_files([cells[i] for i in own], roots, loose=table.is_text)
        for i, path in zip(own, found, strict=True):
            paths[i] = path
        missing += [own[k] for k in gone]
    if missing:
        i = missing[0]
        raise UserError(
            f"{where(i)}: image '{cells[i]}' does not exist (looked for {paths[i]}); {len(missing)} of {len(paths)} are"
            " missing. Relative paths start from the list's folder, or from image_root."
        )
    return paths


def _roots(root: Path, *, loose: bool) -> list[str]:
    """Where relative paths may start; ``loose`` for text files, whose names start at several places."""
    places = (root, root / "images", root.parent, root.parent / "images") if loose else (root,)
    return list(map(str, places))


def _rows_by_folder(table: Table, column: str) -> dict[Path, list[int]]:
    """Folder of a list -> the rows that name files, the embedded digits apart."""
    rows: dict[Path, list[int]] = defaultdict(list)
    for i, (cell, folder) in enumerate(zip(table.columns[column], table.folders, strict=True)):
        if not isinstance(cell, str) or not cell:
            raise UserError(f"{table.where(i)}: the path is empty.")
        if not cell.startswith(_EMBEDDED):
            rows[folder].append(i)
    return rows


def _refuse_repeats(paths: list[str], where: Where) -> None:
    """Refuse an image that stands in two rows: a drawn split could have it on both sides."""
    rows: dict[str, int] = {}
    again = [(i, rows[name]) for i, name in enumerate(map(os.path.normpath, paths)) if rows.setdefault(name, i) != i]
    if again:
        lines = [f"{where(i)}: '{paths[i]}' stands in {where(first)}, too" for i, first in again[:10]]
        raise UserError(
            f"{len(again):,} row(s) name an image that another row has:{bullets(lines, len(again))}\nKeep one row an"
            " image. Several classes of an image go into one cell (column labels); to count an image more, use a column"
            " weight."
        )


def _splits(table: Table, column: str | None) -> list[str | None]:
    """The split of each row: what its column says, or the name of its list."""
    splits = list(table.splits)
    for i, cell in enumerate(table.columns.get(column or "", ())):
        split = split_name(str(cell)) if cell else splits[i]
        if cell and split is None:
            raise UserError(f"{table.where(i)}: split is '{cell}'; it must be train, val or test, or empty.")
        if split != splits[i] and splits[i] is not None:
            raise UserError(f"{table.where(i)}: split is '{cell}', but the list is that of {splits[i]}. Correct one.")
        splits[i] = split
    return splits
