"""Lists of images in a CSV or parquet file."""

from __future__ import annotations

import csv
import math
import os
import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from datamodules.annotations.records import Listing, Record, sort_classes, split_name
from datamodules.common.errors import UserError, did_you_mean
from datamodules.readers.digits import read_digits

_ROLES = ("path", "label", "labels", "probabilities", "split", "weight")
_LABELS = ("label", "labels", "probabilities")
_EMBEDDED = "digits#"  # how the paths of the embedded images begin
_CLASS_COLUMN = "p_"  # one numeric column per class: p_cat, p_dog, ...

Where = Callable[[int], str]  # index of a row -> "FILE, line N"


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
    file = Path(file)
    if not file.is_file():
        raise UserError(f"List '{file}' does not exist (looked in {Path.cwd()}).")
    table, where = _load(file)
    names = _resolve_columns(file, list(table), columns or {})
    if not table[names["path"]]:
        raise UserError(f"'{file}' has no rows.")
    paths = _paths(table[names["path"]], Path(image_root) if image_root is not None else file.parent, where)
    kind = next((k for k in _LABELS if k in names), None)
    labels: Sequence[int | list[float]]
    if kind == "label":
        labels, class_names = _single(table[names["label"]], where)
    elif kind == "labels":
        labels, class_names = _multiple(table[names["labels"]], where)
    elif kind == "probabilities":
        labels, class_names = _probabilities(table[names["probabilities"]], where)
    else:
        class_names = sort_classes(n.removeprefix(_CLASS_COLUMN) for n in table if n.startswith(_CLASS_COLUMN))
        given = [table[_CLASS_COLUMN + name] for name in class_names]
        labels = [
            [
                _probability(column[i], where(i), _CLASS_COLUMN + name)
                for name, column in zip(class_names, given, strict=True)
            ]
            for i in range(len(paths))
        ]
    splits = _splits(table[names["split"]], where) if "split" in names else [None] * len(paths)
    records: list[Record] = [
        {"image": _image(path), "path": path, "label": label, "split": split}
        for path, label, split in zip(paths, labels, splits, strict=True)
    ]
    if "weight" in names:
        for i, (record, value) in enumerate(zip(records, table[names["weight"]], strict=True)):
            record["weight"] = _number(value, where(i), names["weight"])
            if record["weight"] < 0:
                raise UserError(f"{where(i)}: weight is {value}; it must be at least 0.")
    return Listing(records, class_names)


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
    file = Path(file)
    if not file.is_file():
        raise UserError(f"List '{file}' does not exist (looked in {Path.cwd()}).")
    table, where = _load(file)
    for column in ("path", "mask"):
        if column not in table:
            near = did_you_mean(column, table)
            raise UserError(f"'{file}' has no column '{column}' (it has: {', '.join(table)}).{near}")
    if not table["path"]:
        raise UserError(f"'{file}' has no rows.")
    images, masks = (_paths(table[column], file.parent, where) for column in ("path", "mask"))
    splits = _splits(table["split"], where) if "split" in table else [None] * len(images)
    records = [
        {"image": image, "path": image, "mask": mask, "split": split}
        for image, mask, split in zip(images, masks, splits, strict=True)
    ]
    if "soft_mask" in table:
        for record, soft in zip(records, _paths(table["soft_mask"], file.parent, where), strict=True):
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
    file = Path(file)
    if not file.is_file():
        raise UserError(f"List '{file}' does not exist (looked in {Path.cwd()}).")
    table, where = _load(file)
    if "path" not in table:
        near = did_you_mean("path", table)
        raise UserError(f"'{file}' has no column 'path' (it has: {', '.join(table)}).{near}")
    if not table["path"]:
        raise UserError(f"'{file}' has no rows.")
    paths = _paths(table["path"], Path(image_root) if image_root is not None else file.parent, where)
    return [{"image": _image(path), "path": path} for path in paths]


@cache
def _embedded() -> dict[str, Any]:
    """Path -> pixels of the embedded digits."""
    return {record["path"]: record["image"] for record in read_digits().records}


def _image(path: str) -> Any:
    """A file stays a path; ``digits#12`` is the pixels of the embedded digit."""
    return _embedded()[path] if path.startswith(_EMBEDDED) else path


def _load(file: Path) -> tuple[dict[str, list[Any]], Where]:
    if file.suffix.lower() == ".csv":
        return _load_csv(file)
    if file.suffix.lower() == ".parquet":
        import pyarrow.parquet

        try:
            table = pyarrow.parquet.read_table(file)
        except pyarrow.ArrowException as error:
            raise UserError(f"'{file}' cannot be read as parquet ({error}).") from error
        _refuse_duplicates(file, table.column_names)
        return {name: table.column(name).to_pylist() for name in table.column_names}, lambda i: f"{file}, row {i + 1}"
    raise UserError(f"'{file}' is neither a .csv nor a .parquet list.")


def _load_csv(file: Path) -> tuple[dict[str, list[Any]], Where]:
    # Not pandas: it takes classes named "NA" or "None" for missing values, and renames duplicated columns.
    with open(file, newline="", encoding="utf-8-sig") as stream:
        reader = csv.reader(stream)
        rows: list[list[str]] = []
        lines: list[int] = []
        try:
            header = [name.strip() for name in next(reader, [])]
            for row in reader:
                if row:
                    rows.append([cell.strip() for cell in row])
                    lines.append(reader.line_num)
        except UnicodeDecodeError as error:
            raise UserError(f"'{file}' is not UTF-8 text ({error}); save it as UTF-8.") from error
        except csv.Error as error:
            raise UserError(f"{file}, line {reader.line_num}: not readable as CSV ({error}).") from error
    if not header:
        raise UserError(f"'{file}' is empty; its first line must name the columns, for example path,label.")
    if len(header) == 1 and re.search(r"[;\t]", header[0]):
        raise UserError(f"'{file}' is not separated by commas (its first line is '{header[0]}'); save it with commas.")
    _refuse_duplicates(file, header)
    for row, line in zip(rows, lines, strict=True):
        if len(row) != len(header):
            raise UserError(f"{file}, line {line}: {len(row)} cells where the header names {len(header)} columns.")
    return {name: [row[i] for row in rows] for i, name in enumerate(header)}, lambda i: f"{file}, line {lines[i]}"


def _refuse_duplicates(file: Path, header: list[str]) -> None:
    for name in header:
        if header.count(name) > 1:
            raise UserError(f"'{file}' has the column '{name}' {header.count(name)} times; each name may stand once.")


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
    kinds = [role for role in _LABELS if role in names]
    if len(kinds) > 1:
        chosen = [role for role in kinds if role in columns]
        if len(chosen) != 1:
            raise UserError(
                f"'{file}' has several kinds of labels: {', '.join(kinds)}. Choose one, for example with"
                f" columns: {{{kinds[0]}: {names[kinds[0]]}}}."
            )
        names = {role: name for role, name in names.items() if role not in kinds or role in chosen}
    elif not kinds and sum(name.startswith(_CLASS_COLUMN) for name in header) < 2:
        raise UserError(
            f"'{file}' has no labels: expected a column 'label', 'labels' or 'probabilities', or columns"
            f" '{_CLASS_COLUMN}CLASS' (it has: {', '.join(header)}).{did_you_mean('label', header)} Name it with"
            " columns: {label: NAME}."
        )
    return names


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
        if isinstance(cell, str):
            cell = [part.strip() for part in re.split(r"[;|]", cell) if part.strip()]
        if cell is None:
            raise UserError(f"{where(i)}: the labels are missing; an empty list means none of the classes.")
        rows.append({_class_name(value, where(i)) for value in (cell if isinstance(cell, list) else [cell])})
    class_names = sort_classes(name for row in rows for name in row)
    if not class_names:
        raise UserError(f"{where(0)} and all others name no labels.")
    return [[float(name in row) for name in class_names] for row in rows], class_names


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
