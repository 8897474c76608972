"""The pictures that ``predict`` is given: files, folders, videos, patterns and lists of them."""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from pytorch_lightning.utilities import rank_zero_warn

from datamodules.common.errors import UserError, examples
from datamodules.decoding.files import left_out, scan_images
from datamodules.decoding.shards import is_shards, list_pictures
from datamodules.readers.lists import read_paths
from datamodules.readers.places import find_files
from datamodules.readers.text import read_lines

LISTS = (".csv", ".parquet")


def find_pictures(source: str | Sequence[str]) -> list[str]:
    """List what a source names, each file once.

    Args:
        source: A file, a folder or a video (see ``files.find_images``), tar shards, a pattern (``new/**/*.jpg``), a
            ``.csv`` or ``.parquet`` list with a column ``path``, a ``.txt`` file with a path a line; or several of
            these.

    Files in folders that are left out because of their suffix are counted in a warning.

    Returns:
        Files and frames, in the order of the sources; those of a folder or a pattern sorted.

    Raises:
        UserError: If a source does not exist, holds no image, or is a web address or a camera.
    """
    sources = [source] if isinstance(source, str) else list(source)
    if not sources:
        raise UserError("--source is an empty list: give a folder, an image, a video, a pattern or a list.")
    others: Counter[str] = Counter()
    found = [path for one in sources for path in _find(one, others)]
    for note in left_out(others, examples(sources, 3)):
        rank_zero_warn(note)
    return list(dict.fromkeys(found))


def _find(source: str, others: Counter[str]) -> list[str]:
    """What one source names; files left out because of their suffix are added to ``others``."""
    path = Path(source)
    if path.is_file() and path.suffix.lower() in LISTS:
        return [record["path"] for record in read_paths(path)]
    if path.is_file() and path.suffix.lower() == ".txt":
        return _lines(path)
    if is_shards(source):
        return list_pictures(source)
    if path.exists():
        return _scan(path, others)
    if "://" in source:
        raise UserError(f"--source {source} is a web address: download the pictures, and give the file or the folder.")
    if source.isdigit():
        raise UserError(f"--source {source} is the number of a camera, which is not read: record a video and give it.")
    matching = sorted(glob.glob(source, recursive=True))
    if matching:
        return [image for match in matching for image in _scan(match, others)]
    problem = "matches no file" if glob.has_magic(source) else "does not exist"
    raise UserError(f"--source {source} {problem} in {Path.cwd()}. Give a folder, an image or a video.")


def _scan(source: str | Path, others: Counter[str]) -> list[str]:
    found = scan_images(source)
    others.update(found.others)
    return found.images


def _lines(file: Path) -> list[str]:
    """The paths of a text file, relative ones from its own folder."""
    lines = [line for line in read_lines(file) if line]
    paths, missing = find_files(lines, [str(file.parent)])
    if missing:
        raise UserError(f"--source {file}: there is no file {paths[missing[0]]}.")
    return paths
