"""Files of class names: one name a line, in the order of the class numbers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

#: What such a file is called beside VOC's and other data; VOC itself has no place for an order.
CLASSES_FILE = "classes.txt"


def read_class_file(root: Path, names: Sequence[str] = (CLASSES_FILE,)) -> list[str] | None:
    """The names in the first of these files that is in the folder; None where there is none."""
    for name in names:
        if (root / name).is_file():
            lines = [line.strip() for line in (root / name).read_text(encoding="utf-8").splitlines()]
            return [line for line in lines if line]
    return None
