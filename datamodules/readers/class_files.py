"""Files of class names: one name a line, in the order of the class numbers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from datamodules.common.errors import UserError
from datamodules.readers.text import read_lines

#: What such a file is called beside VOC's and other data; VOC itself has no place for an order.
CLASSES_FILE = "classes.txt"


def read_class_file(root: Path, names: Sequence[str] = (CLASSES_FILE,)) -> list[str] | None:
    """The names in the first of these files that is in the folder; None where there is none.

    Raises:
        UserError: If it cannot be decoded, names a class twice, or is empty.
    """
    file = next((root / name for name in names if (root / name).is_file()), None)
    return None if file is None else class_names_of(file)


def class_names_of(file: Path) -> list[str]:
    """The names of one such file.

    Raises:
        UserError: As ``read_class_file``.
    """
    found: dict[str, int] = {}
    for number, line in enumerate(read_lines(file), 1):
        if line and found.setdefault(line, number) != number:
            raise UserError(
                f"'{file}', line {number}: class '{line}' is in line {found[line]}, too; give each class a name of its"
                " own."
            )
    if not found:
        raise UserError(f"'{file}' names no class: write one name a line, or remove the file.")
    return list(found)
