"""The pictures that ``predict`` is given: files, folders, videos, patterns and lists of them."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path

from datamodules.common.errors import UserError
from datamodules.decoding.files import find_images
from datamodules.readers.lists import read_paths
from datamodules.readers.places import find_files
from datamodules.readers.text import read_lines

LISTS = (".csv", ".parquet")


def find_pictures(source: str | Sequence[str], called: str = "--source") -> list[str]:
    """List what a source names, each file once.

    Args:
        source: A file, a folder or a video (see ``find_images``), a pattern (``new/**/*.jpg``), a ``.csv`` or
            ``.parquet`` list with a column ``path``, a ``.txt`` file with a path a line; or several of these.
        called: What messages call it.

    Returns:
        Files and frames, in the order of the sources; those of a folder or a pattern sorted.

    Raises:
        UserError: If a source does not exist, holds no image, or is a web address or a camera.
    """
    sources = [source] if isinstance(source, str) else list(source)
    if not sources:
        raise UserError(f"{called} is an empty list: give a folder, an image, a video, a pattern or a list.")
    found = [path for one in sources for path in _find(one, called)]
    return list(dict.fromkeys(found))


def _find(source: str, called: str) -> list[str]:
    path = Path(source)
    if path.is_file() and path.suffix.lower() in LISTS:
        return [record["path"] for record in read_paths(path)]
    if path.is_file() and path.suffix.lower() == ".txt":
        return _lines(path, called)
    if path.exists():
        return find_images(path)
    if "://" in source:
        raise UserError(f"{called} {source} is a web address: download the pictures, and give the file or the folder.")
    if source.isdigit():
        raise UserError(f"{called} {source} is the number of a camera, which is not read: record a video and give it.")
    matching = sorted(glob.glob(source, recursive=True))
    if matching:
        return [image for match in matching for image in find_images(match)]
    problem = "matches no file" if glob.has_magic(source) else "does not exist"
    raise UserError(f"{called} {source} {problem} in {Path.cwd()}. Give a folder, an image or a video.")


def _lines(file: Path, called: str) -> list[str]:
    """The paths of a text file, relative ones from its own folder."""
    lines = [line for line in read_lines(file) if line]
    paths, missing = find_files(lines, [str(file.parent)])
    if missing:
        raise UserError(f"{called} {file}: there is no file {paths[missing[0]]}.")
    return paths
