"""The index of a tar archive: where each of its files begins. It is made once and kept."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from datamodules.common.errors import UserError
from datamodules.common.files import atomic_path, private_folder, user_folder

_SUFFIX = ".index.npz"  # behind the archive's name
_BLOCK = tarfile.BLOCKSIZE
_PACKED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
}


class ArchiveError(UserError):
    """A file that is no readable archive; the message names the file and the reason."""


class Index(NamedTuple):
    """The files of an archive, sorted by name."""

    names: npt.NDArray[np.bytes_]  # UTF-8
    offsets: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]  # bytes
    state: npt.NDArray[np.int64]  # size and modification time of the archive


class Place(NamedTuple):
    """Where a file's bytes are."""

    offset: int
    size: int


def load_index(path: str, state: npt.NDArray[np.int64]) -> Index:
    """The index that is kept of an archive as it is now; made where there is none."""
    places = [Path(path + _SUFFIX), _own_place(path)]
    for place in places:
        index = _read_index(place)
        if index is not None and np.array_equal(index.state, state):
            return index
    index = _make_index(path, state)
    for place in places:
        try:
            with atomic_path(place) as temporary:
                np.savez(temporary, **index._asdict())
        except OSError:  # the archive's folder is not ours to write to
            continue
        break
    return index


def _own_place(path: str) -> Path:
    """Where the index is kept that cannot lie beside its archive."""
    name = hashlib.sha256(os.path.realpath(path).encode("utf-8", "surrogateescape")).hexdigest()[:24]
    return private_folder(user_folder("archives")) / f"{name}{_SUFFIX}"


def _read_index(place: Path) -> Index | None:
    try:
        with np.load(place, allow_pickle=False) as arrays:
            return Index(*(arrays[key] for key in Index._fields))
    except (OSError, ValueError, KeyError, EOFError):  # none, or of another program
        return None


def _make_index(path: str, state: npt.NDArray[np.int64]) -> Index:
    files: dict[str, Place] = {}
    with open(path, "rb") as file:
        _refuse_packed(path, file.read(8))
        file.seek(0)
        try:
            with tarfile.open(fileobj=file, mode="r:") as archive:
                for member in archive:
                    _add(path, files, member)
                end = archive.offset
        except (tarfile.TarError, EOFError, OSError, ValueError) as error:
            raise ArchiveError(
                f"{path}: the archive is truncated or damaged ({error}), behind {len(files):,} readable file(s). Copy"
                " or make it again."
            ) from error
        _check_end(path, file, end, len(files))
    names = np.array([name.encode("utf-8", "surrogateescape") for name in files] or [b""], np.bytes_)
    places = np.array(list(files.values()) or [Place(0, 0)], np.int64)
    order = np.argsort(names, kind="stable")[: len(files)]
    return Index(names[order], places[order, 0], places[order, 1], state)


def _refuse_packed(path: str, start: bytes) -> None:
    """Refuse what looks like a compressed archive."""
    kind = next((kind for magic, kind in _PACKED.items() if start.startswith(magic)), None)
    if kind is not None:
        refuse_compressed(path, f" ({kind})")


def refuse_compressed(path: str | Path, kind: str = "") -> None:
    """Say why compressed archives are not read.

    Raises:
        ArchiveError: Always.
    """
    raise ArchiveError(
        f"{path}: the archive is compressed{kind}. Its files can only be read from the start on, but order, resume and"
        " ranks need them from any place; and pictures become no smaller by it. Unpack it to a plain .tar file."
    )


def _add(path: str, files: dict[str, Place], member: tarfile.TarInfo) -> None:
    name = member.name.removeprefix("./")
    if member.issym() or member.islnk():
        raise ArchiveError(
            f"{path}: '{name}' is a link. Make the archive with the files themselves: tar --dereference"
            " --hard-dereference."
        )
    if not member.isreg() or member.issparse():
        return
    if name in files:
        raise ArchiveError(f"{path}: '{name}' is twice in the archive; make it again with each file once.")
    files[name] = Place(member.offset_data, member.size)


def _check_end(path: str, file: io.BufferedReader, end: int, count: int) -> None:
    """Tarfile takes damage behind the first file, and a missing end, for the end."""
    size = file.seek(0, os.SEEK_END)
    file.seek(end)
    tail = file.read(_BLOCK)
    if len(tail) < _BLOCK:
        raise ArchiveError(
            f"{path}: the archive is truncated: it ends without an end mark at byte {size:,}, behind {count:,} readable"
            " file(s). Copy it again, or let the program that writes it close it."
        )
    if any(tail):
        raise ArchiveError(
            f"{path}: the archive is damaged at byte {end:,}, behind {count:,} readable file(s). Copy or make it again."
        )
    while rest := file.read(1 << 20):
        if any(rest):
            raise ArchiveError(
                f"{path}: there is more behind the archive's end, as when archives are joined by cat. Join them with"
                " tar -A, or give both."
            )
