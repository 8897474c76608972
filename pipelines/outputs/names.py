"""What files that are written for images are called, and how large numbers are written."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence

from datamodules.decoding.files import IMAGE_SUFFIXES
from datamodules.splits import common_folder


def output_names(paths: Sequence[str]) -> list[str]:
    """What files written for images are called, without suffix; a function of the whole list alone.

    A name is the path below the common folder of all. Its image suffix is dropped unless another image would get the
    same name (``a.jpg`` beside ``a.png``, also where a file system ignores case); what is still equal gets its number.

    Args:
        paths: Files, or texts such as ``digit_scenes#0/test/3``, whose reserved characters become ``_``.

    Returns:
        Different relative paths, one an image.
    """
    top = common_folder(paths) if paths else ""
    full = [safe_name(os.path.relpath(path, top) if top else path) for path in paths]
    short = [_without_suffix(name) for name in full]
    times = Counter(name.casefold() for name in short)
    names, taken = [], set()
    for number, (stem, name) in enumerate(zip(short, full, strict=True)):
        name = stem if times[stem.casefold()] == 1 else name
        while name.casefold() in taken:
            name = f"{name}_{number}"
        taken.add(name.casefold())
        names.append(name)
    return names


def safe_name(path: str) -> str:
    """A relative path that every file system takes: no root, no ``..``, no control or reserved characters."""
    parts = [re.sub(r'[\x00-\x1f<>:"|?*\\#]', "_", part) for part in path.split("/")]
    return "/".join(part for part in parts if part not in ("", ".", "..")) or "_"


def _without_suffix(name: str) -> str:
    stem, suffix = os.path.splitext(name)
    return stem if suffix.lower() in IMAGE_SUFFIXES else name


def short_number(value: float) -> str:
    """``25.6 M``."""
    for size, letter in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.0f}"
