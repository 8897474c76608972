"""Files that stand in two splits: what was trained on would be measured, too."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, NamedTuple

from pytorch_lightning.utilities import rank_zero_warn

from datamodules.annotations.records import Record
from datamodules.common.errors import UserError, bullets
from datamodules.decoding.archives import is_member, read_member
from datamodules.decoding.contents import state_of
from datamodules.decoding.headers import ImageError
from datamodules.decoding.images import read_image
from datamodules.decoding.video import is_frame
from datamodules.groups import refuse_crossing

Duplicates = Literal["error", "warn"]

_CHUNK = 256  # files
_PROBE = 4096  # bytes at the end of a file, which tell most files of one size apart


class _File(NamedTuple):
    """An image file of a split."""

    split: str
    path: str


def check_splits(records: Mapping[str, Sequence[Record]], duplicates: Duplicates) -> None:
    """Look for a file, the same bytes, or a group in two splits.

    Only files whose size occurs in another split are read. Pictures of one color (empty tiles) may be equal.

    Args:
        records: By split; arrays and frames of videos are left alone.
        duplicates: ``warn`` only says what was found.

    Raises:
        UserError: If there are any, with up to ten of them.
    """
    refuse_crossing(record for own in records.values() for record in own)
    found = [
        f"{first.path} ({first.split}) and {other.path} ({other.split})"
        for first, *others in _equal_files(records)
        for other in others
        if other.split != first.split
    ]
    if not found:
        return
    message = f"{len(found):,} image(s) are in two splits, by the same file or the same bytes:{bullets(found)}"
    if duplicates == "error":
        raise UserError(f"{message}\nRemove one of each; or set data.duplicates: warn to train all the same.")
    rank_zero_warn(message)


def _equal_files(records: Mapping[str, Sequence[Record]]) -> list[list[_File]]:
    """Groups of equal files that lie in more than one split."""
    files = [
        _File(split, record["image"])
        for split, own in records.items()
        for record in own
        if isinstance(record["image"], str) and not is_frame(record["image"])
    ]
    groups = _across([files], [state_of(file.path).size for file in files])
    for read in (_end_of, _digest_of):
        groups = _across(groups, _each(read, [file.path for group in groups for file in group]))
    return [group for group in groups if not _is_plain(group[0].path)]


def _across(groups: Sequence[Sequence[_File]], keys: Sequence[Hashable]) -> list[list[_File]]:
    """The groups parted by a key of each file; only the parts that lie in more than one split."""
    found: list[list[_File]] = []
    own = iter(keys)
    for group in groups:
        parts: dict[Hashable, list[_File]] = defaultdict(list)
        for file in group:
            parts[next(own)].append(file)
        found += [part for part in parts.values() if len({file.split for file in part}) > 1]
    return found


def _each(read: Callable[[str], bytes], paths: Sequence[str]) -> list[bytes]:
    """A value of each file, by threads that take many files at a time: one is read faster than it is handed over."""
    chunks = [paths[i : i + _CHUNK] for i in range(0, len(paths), _CHUNK)]
    with ThreadPoolExecutor(4) as pool:
        return [value for values in pool.map(lambda chunk: [read(path) for path in chunk], chunks) for value in values]


def _end_of(path: str) -> bytes:
    """The last bytes of a file."""
    if is_member(path):
        return read_member(path, max(0, state_of(path).size - _PROBE))
    file = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    try:
        os.lseek(file, max(0, os.fstat(file).st_size - _PROBE), os.SEEK_SET)
        return os.read(file, _PROBE)
    finally:
        os.close(file)


def _digest_of(path: str) -> bytes:
    """A digest of a whole file."""
    if is_member(path):
        return hashlib.sha256(read_member(path)).digest()
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _is_plain(path: str) -> bool:
    """Whether a picture has one color only."""
    try:
        pixels = read_image(path)
    except ImageError:
        return False  # a file of more channels, or one that is found damaged later
    return bool((pixels == pixels[:1, :1]).all())
