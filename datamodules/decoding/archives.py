"""Files in tar archives: ``train-000.tar#cats/12.jpg`` is one of them, wherever an image file may stand.

An archive's index, where each file begins, is made once and kept. Files are then read from any place in any order, as
from a folder.
"""

from __future__ import annotations

import io
import os
import re
import threading
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.common.errors import UserError
from datamodules.decoding.archive_index import ArchiveError, Place, load_index

ARCHIVE = ".tar"
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst", ".tar.lz4")

_MEMBER = re.compile(r"(.+?\.tar)#(.+)", re.IGNORECASE | re.DOTALL)
_MOST_OPEN = 128  # archives of a process; systems allow 256 or 1,024 open files


def is_archive(path: str | Path) -> bool:
    """Whether the name is that of an archive that can be read."""
    return str(path).lower().endswith(ARCHIVE)


def is_member(source: object) -> bool:
    """Whether this is the name of a file in an archive."""
    return isinstance(source, str) and "#" in source and _MEMBER.fullmatch(source) is not None


def list_members(path: str | Path) -> list[str]:
    """Names of the files in an archive, in its order.

    Raises:
        ArchiveError: If it is compressed, truncated or damaged, has a name twice, or pictures that are links.
        UserError: If there is no such file.
    """
    try:
        index = _open(str(path)).index
    except OSError as error:
        raise UserError(
            f"'{path}' cannot be read ({error.strerror}; looked in {Path.cwd()}). Give a tar archive."
        ) from error
    names = index.names[np.argsort(index.offsets, kind="stable")]
    return [f"{path}#{name.decode('utf-8', 'surrogateescape')}" for name in names.tolist()]


def place_of(name: str) -> Place | None:
    """Where in its archive a file is; None where it is not in it, or there is no archive.

    Raises:
        ArchiveError: As ``list_members``.
    """
    path, member = _parts(name)
    return _open(path).place(member) if os.path.isfile(path) else None


def archive_of(name: str) -> str:
    """The archive's path in the name of a file in it.

    Raises:
        ArchiveError: If the name is none.
    """
    return _parts(name)[0]


def read_member(name: str, start: int = 0, size: int | None = None) -> bytes:
    """The bytes of a file in an archive, all of them, or ``size`` from ``start`` on.

    Raises:
        FileNotFoundError: If there is no such archive, or no such file in it.
        ArchiveError: As ``list_members``.
    """
    path, member = _parts(name)
    archive = _open(path)
    place = archive.place(member)
    if place is None:
        raise FileNotFoundError(f"{name}: there is no such file in the archive")
    rest = max(0, place.size - start)
    return archive.read(place.offset + start, rest if size is None else min(size, rest))


class Member(io.RawIOBase):
    """A file in an archive, opened to be read."""

    def __init__(self, name: str) -> None:
        place = place_of(name)
        if place is None:
            raise FileNotFoundError(f"{name}: there is no such file in the archive")
        self._name, self._size, self._at = name, place.size, 0

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a place, counted from the start, the current place or the end."""
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = max(0, start + offset)
        return self._at

    def tell(self) -> int:
        """The current place."""
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Read the next bytes."""
        view = memoryview(buffer).cast("B")
        data = read_member(self._name, self._at, len(view))
        view[: len(data)] = data
        self._at += len(data)
        return len(data)


class _Archive:
    """An open archive with its index, for the threads of one process."""

    def __init__(self, path: str, state: tuple[int, int]) -> None:
        self.index = load_index(path, np.array(state, np.int64))
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115 - closed with the object
        self._lock = threading.Lock()

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self._file.close()

    def place(self, member: str) -> Place | None:
        names, key = self.index.names, member.encode("utf-8", "surrogateescape")
        if len(key) > names.itemsize:
            return None
        i = int(np.searchsorted(names, np.bytes_(key)))
        if i == len(names) or names[i] != key:
            return None
        return Place(int(self.index.offsets[i]), int(self.index.sizes[i]))

    def read(self, offset: int, size: int) -> bytes:
        with self._lock:
            self._file.seek(offset)
            data = self._file.read(size)
            while len(data) < size and (more := self._file.read(size - len(data))):  # systems limit one reading
                data += more
        return data


def _open(path: str) -> _Archive:
    """The archive as it is now: another one of that name is opened anew."""
    found = os.stat(path)
    return _kept_archive(path, (found.st_size, found.st_mtime_ns), os.getpid())


# By process: a place in a file is shared with a process that was forked.
@lru_cache(maxsize=_MOST_OPEN)
def _kept_archive(path: str, state: tuple[int, int], process: int) -> _Archive:
    return _Archive(path, state)


def _parts(name: str) -> tuple[str, str]:
    match = _MEMBER.fullmatch(name)
    if match is None:
        raise ArchiveError(f"'{name}' is no file in an archive, like train-000.tar#cats/12.jpg.")
    return match[1], match[2]
