"""Where the files of a list are: from which folder its names start, and how they are spelled there."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from datamodules.decoding.contents import exists
from datamodules.decoding.files import IMAGE_SUFFIXES

_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".JPG", ".JPEG", ".PNG")  # that a list may leave out


def find_files(names: Sequence[str], roots: Sequence[str], *, loose: bool = False) -> tuple[list[str], list[int]]:
    """Paths of files that one list names.

    The first name decides from which of the folders all start, and how they are spelled; a name that is not there is
    looked for alone.

    Args:
        names: As they stand in the list; backslashes are tried as slashes.
        roots: Folders, the likeliest first.
        loose: Also without the first folder of the names, without all folders (where the names still differ), and with
            a suffix where they have none.

    Returns:
        The paths, and the places of those that are nowhere.
    """
    if not names:
        return [], []
    ways = list(_spellings(names, loose=loose))
    roots = ["" if root == "." else root for root in roots]
    found = ((root, way) for way in ways for root in roots if exists(os.path.join(root, way[0])))
    root, spelled = next(found, (roots[0], ways[0]))
    paths = [os.path.join(root, name) for name in spelled]
    gone = []
    for i in _missing(paths):
        alone = (os.path.join(root, way[i]) for way in ways for root in roots)
        there = next((path for path in alone if exists(path)), None)
        if there is None:
            gone.append(i)
        else:
            paths[i] = there
    return paths, gone


def _spellings(names: Sequence[str], *, loose: bool) -> Iterator[Sequence[str]]:
    names = [name.removeprefix("./") for name in names]
    yield names
    slashed = [name.replace("\\", "/").removeprefix("./") for name in names]
    if slashed != list(names):
        yield slashed
    if not loose:
        return
    suffixes = ("",) if slashed[0].lower().endswith(IMAGE_SUFFIXES) else _SUFFIXES
    plain = [
        slashed,
        [name.partition("/")[2] or name for name in slashed],
        [os.path.basename(name) for name in slashed],
    ]
    for spelled in plain:
        if spelled is slashed or len(set(spelled)) == len(names):
            yield from ([name + suffix for name in spelled] for suffix in suffixes)


def _missing(paths: Sequence[str]) -> list[int]:
    """Places of the files that are not there. Folders are listed once: asking for each file is slow over a network."""
    folders: dict[str, set[str]] = {}
    missing = []
    for i, path in enumerate(paths):
        folder, name = os.path.split(path)
        if folder not in folders:
            folders[folder] = set(os.listdir(folder)) if os.path.isdir(folder) else set()
        if name not in folders[folder] and not exists(path):  # a disk may not tell A from a
            missing.append(i)
    return missing


def roots_of(file: Path, split: str | None) -> list[str]:
    """Where the images of an annotation file may be, the likeliest folder first."""
    here, above = file.parent, file.parent.parent
    names = [name for name in (file.stem.removeprefix("instances_"), split) if name]
    folders = [here, here / "images", here / "data", *(above / "images" / name for name in names), above / "images"]
    return [str(folder) for folder in (*folders, *(above / name for name in names), above)]
