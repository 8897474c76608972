"""The labels in the cells of a list: one class, several, or a probability for each."""

from __future__ import annotations

import ast
import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from datamodules.annotations.records import sort_classes
from datamodules.common.errors import UserError
from datamodules.readers.tables import Where

_SEPARATORS = (r"[;|]", ",")  # of classes in one cell; the first kind that a column has
_TAKEN = 'separated by ; or |, or by commas, or as a list: ["cat", "dog"]'


def _class_name(value: object, where: str) -> str:
    """A class name or integer as text."""
    if isinstance(value, float) and value.is_integer():  # how pandas writes integers beside missing values
        value = int(value)
    if isinstance(value, list | dict | set | tuple):
        raise UserError(
            f"{where}: the label is {value!r:.60}; one class is needed. Call the column labels if it holds several."
        )
    if value is None or value == "" or isinstance(value, float):
        raise UserError(
            f"{where}: the label is {'empty' if value in (None, '') else value}; a class name or integer is needed."
        )
    return str(value).strip()


def single_labels(cells: list[Any], where: Where) -> tuple[list[int], list[str]]:
    """The class of each cell as its number, and the class names.

    Raises:
        UserError: If a cell is empty or holds several classes: each combination would become a class.
    """
    values = [_class_name(cell, where(i)) for i, cell in enumerate(cells)]
    combined = _combined(values)
    if combined is not None:
        raise UserError(
            f"{where(combined)}: the label is '{values[combined]}', which holds several classes. Call the column"
            f" labels, or say columns: {{labels: NAME}}, for images of several classes; they are {_TAKEN}."
        )
    class_names = sort_classes(values)
    ids = {name: i for i, name in enumerate(class_names)}
    return [ids[value] for value in values], class_names


def _combined(values: Sequence[str]) -> int | None:
    """The first cell that seems to hold several classes; names with commas in them are left alone."""
    distinct = set(values)
    for value in distinct:
        if re.search(r"[;|]", value) or re.fullmatch(r"\[.*\]", value):
            return values.index(value)
    rows = {value: _parts(value, ",") for value in distinct}
    number = Counter(part for parts in rows.values() for part in set(parts))
    together = [value for value, parts in rows.items() if len(parts) > 1 and all(number[part] > 1 for part in parts)]
    return min(values.index(value) for value in together) if together else None


def _parts(text: str, separator: str) -> list[str]:
    return [word.strip() for word in re.split(separator, text) if word.strip()]


def multiple_labels(cells: list[Any], where: Where) -> tuple[list[list[float]], list[str]]:
    """The classes of each cell as 0 and 1, and the class names.

    Raises:
        UserError: If a cell is empty, a damaged list, or separated by what is not taken.
    """
    texts = [cell for cell in cells if isinstance(cell, str) and not _is_list(cell)]
    separator = next((s for s in _SEPARATORS if any(re.search(s, text) for text in texts)), None)
    if separator is None:
        _refuse_blanks(cells, texts, where)
    rows: list[set[str]] = []
    for i, cell in enumerate(cells):
        if cell is None:
            raise UserError(f"{where(i)}: the labels are missing; an empty list means none of the classes.")
        rows.append({_class_name(value, where(i)) for value in _values(cell, separator, where(i))})
    class_names = sort_classes(name for row in rows for name in row)
    if not class_names:
        raise UserError(f"{where(0)} and all others name no labels.")
    return [[float(name in row) for name in class_names] for row in rows], class_names


def _refuse_blanks(cells: list[Any], texts: list[str], where: Where) -> None:
    """Refuse cells such as ``haze primary`` where the same words come again in other cells."""
    number = Counter(word for text in set(texts) for word in set(text.split()))
    for text in texts:
        words = text.split()
        if len(words) > 1 and all(number[word] > 1 for word in words):
            raise UserError(
                f"{where(cells.index(text))}: the labels are '{text}'; blanks do not separate classes, which are"
                f" {_TAKEN}."
            )


def _is_list(cell: str) -> bool:
    return cell.startswith(("[", "{", "(")) and cell.endswith(("]", "}", ")"))


def _values(cell: Any, separator: str | None, where: str) -> list[Any]:
    """The labels in one cell: a list, text that is one, text with separators, or a single value."""
    if not isinstance(cell, str):
        return cell if isinstance(cell, list) else [cell]
    if not _is_list(cell):
        return [cell] if separator is None and cell else _parts(cell, separator or ",")
    try:
        found = ast.literal_eval(cell)  # JSON's lists of text and numbers are Python's, too
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        found = None
    # numpy prints ['a' 'b'], which Python joins to one word.
    if not isinstance(found, list | tuple | set) or re.search(r"['\"]\s*['\"]", cell):
        raise UserError(f"{where}: the labels are '{cell:.60}', which is no list; classes are {_TAKEN}.")
    return list(found)


def probabilities(cells: list[Any], where: Where) -> tuple[list[list[float]], list[str]]:
    """The numbers of each cell, and the classes' numbers as names.

    Raises:
        UserError: If a cell is empty or holds no probabilities, or other than the first.
    """
    rows = []
    for i, cell in enumerate(cells):
        parts = cell.split(";") if isinstance(cell, str) else cell
        if not parts:
            raise UserError(f"{where(i)}: the probabilities are empty.")
        rows.append([cell_probability(part, where(i), "probabilities") for part in parts])
        if len(rows[i]) != len(rows[0]):
            raise UserError(f"{where(i)}: {len(rows[i])} probabilities where {where(0)} has {len(rows[0])}.")
    return rows, [str(k) for k in range(len(rows[0]))]


def cell_number(value: object, where: str, column: str) -> float:
    """A finite number.

    Raises:
        UserError: If it is anything else.
    """
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"{where}: {column} is '{value}'; a number is needed.")
    return number


def cell_probability(value: object, where: str, column: str) -> float:
    """A number in 0..1.

    Raises:
        UserError: If it is anything else.
    """
    number = cell_number(value, where, column)
    if not 0 <= number <= 1:
        raise UserError(f"{where}: {column} is {number:g}; a probability lies in 0..1.")
    return number
