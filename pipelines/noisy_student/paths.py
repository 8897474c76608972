"""How files of pseudo-labels name images."""

from __future__ import annotations

import os
from pathlib import Path

from datamodules.decoding.contents import exists


def listed(path: str, file: Path) -> str:
    """An image as a file names it: relative where it lies below the folder above the file's own, else absolute.

    So a run directory can be moved, and its files are the same wherever it lies. What is no file (``digits#12``) stays
    as it is.
    """
    if not exists(path):
        return path
    absolute, folder = os.path.abspath(path), os.path.abspath(file.parent)
    above = os.path.dirname(folder)
    return os.path.relpath(absolute, folder) if absolute.startswith(above.rstrip(os.sep) + os.sep) else absolute


def resolved(name: str, file: Path) -> str:
    """The absolute path behind ``listed``."""
    path = os.path.normpath(os.path.join(os.path.abspath(file.parent), name))
    return path if exists(path) else name
