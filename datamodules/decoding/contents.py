"""The bytes behind a name: a file of the disk, or a file in an archive (``archives``)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

from datamodules.decoding.archives import Member, archive_of, is_member, place_of, read_member
from datamodules.decoding.video import is_frame


class State(NamedTuple):
    """What changes when a file changes."""

    size: int  # bytes
    mtime_ns: int  # of a file in an archive: the archive's


def exists(path: str | Path) -> bool:
    """Whether there is such a file, file in an archive, or video of such a frame."""
    name = str(path)
    if is_member(name):
        return place_of(name) is not None
    return os.path.isfile(name.rpartition("#")[0] if is_frame(name) else name)


def read_bytes(path: str | Path) -> bytes:
    """All of a file.

    Raises:
        FileNotFoundError: If there is none.
    """
    name = str(path)
    if is_member(name):
        return read_member(name)
    with open(name, "rb") as file:
        return file.read()


def open_bytes(path: str | Path) -> BinaryIO:
    """A file, opened to be read.

    Raises:
        FileNotFoundError: If there is none.
    """
    name = str(path)
    return cast(BinaryIO, Member(name)) if is_member(name) else open(name, "rb")


def state_of(path: str | Path) -> State:
    """A file's size and time; of a video's frame the video's.

    Raises:
        FileNotFoundError: If there is none.
    """
    name = str(path)
    if is_member(name):
        place = place_of(name)
        if place is None:
            raise FileNotFoundError(f"{name}: there is no such file in the archive")
        return State(place.size, os.stat(archive_of(name)).st_mtime_ns)
    found = os.stat(name.rpartition("#")[0] if is_frame(name) else name)
    return State(found.st_size, found.st_mtime_ns)
