"""Files that are written whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from datamodules.common.errors import UserError


@contextmanager
def atomic_path(path: str | os.PathLike[str], *, sync: bool = False) -> Iterator[Path]:
    """A temporary name beside ``path``, renamed to it when the block ends: a reader sees the old file or the new one.

    The folder is made where it is missing. Where the block raises, the temporary file is removed and the old one stays.
    The temporary name keeps the suffix, by which writers choose a format, and is hidden.

    Args:
        path: The file to be written.
        sync: Wait until the content is on the disk, so that it also survives a loss of power.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield temporary
        if sync:
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str, *, sync: bool = False) -> None:
    """Write a text file in one step."""
    with atomic_path(path, sync=sync) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike[str], values: Any, *, sync: bool = False) -> None:
    """Write plain values as indented JSON in one step."""
    write_text(path, json.dumps(values, indent=2) + "\n", sync=sync)


def read_json(path: str | os.PathLike[str]) -> Any:
    """The values of a JSON file; None where there is no such file."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


def user_folder(name: str) -> Path:
    """Where something is kept between runs: a place of the user's own, not the temporary folder of all users."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "pipelines" / name


def private_folder(folder: Path) -> Path:
    """The folder, made where it is missing, and closed to others: what is read from it is trusted.

    Raises:
        UserError: If it is another user's.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if hasattr(os, "getuid"):  # not on Windows
        if folder.stat().st_uid != os.getuid():
            raise UserError(
                f"The folder {folder}, where decoded images and the like are kept, belongs to another user. Set"
                " data.cache_dir to a folder of your own, or the environment variable XDG_CACHE_HOME."
            )
        folder.chmod(0o700)
    return folder
