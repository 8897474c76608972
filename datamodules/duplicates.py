"""Images with equal pixels, whatever their names and file formats."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from datamodules.common.files import read_json, write_json
from datamodules.decoding.contents import state_of
from datamodules.loaders import Record, available_cores


def equal_images(
    records: Sequence[Record],
    others: Sequence[Record],
    read: Callable[[Record], Record],
    memory: Path | None = None,
) -> dict[str, str]:
    """The path of each image that has the pixels of one of the others -> that one's path.

    Args:
        records: The images that are asked about.
        others: The images that they are compared with.
        read: Record -> sample with ``image`` (H, W, C).
        memory: See `pixel_digests`.
    """
    digests = pixel_digests([*others, *records], read, memory)
    known = dict(zip(digests, (record["path"] for record in others), strict=False))
    found = zip(records, digests[len(others) :], strict=True)
    return {record["path"]: known[digest] for record, digest in found if digest in known}


def pixel_digests(records: Sequence[Record], read: Callable[[Record], Record], memory: Path | None = None) -> list[str]:
    """A digest of each image's pixels, shape and type as they are read.

    Args:
        records: Plain records.
        read: Record -> sample with ``image`` (H, W, C).
        memory: JSON file that keeps digests between calls; what has not changed since (by path, size, modification
            time and settings of ``read``) is not decoded again. It is made where it is missing.
    """
    known: dict[str, str] = {} if memory is None else read_json(memory) or {}
    keys = [_key(record, read) for record in records]
    missing = {key: record for key, record in zip(keys, records, strict=True) if key not in known}
    with ThreadPoolExecutor(min(8, available_cores())) as pool:
        images = pool.map(lambda record: read(record)["image"], missing.values())
        known |= zip(missing, map(_digest, images), strict=True)
    if memory is not None and missing:
        write_json(memory, known)
    return [known[key] for key in keys]


def _digest(image: NDArray[Any]) -> str:
    return hashlib.sha256(f"{image.shape}{image.dtype}".encode() + image.tobytes()).hexdigest()


def _key(record: Record, read: Callable[[Record], Record]) -> str:
    """What tells one version of an image, and one way to read it, from another."""
    image = record["image"]
    source: tuple[Any, ...]
    if isinstance(image, str):
        source = (image, *state_of(image))
    elif image is None:
        source = (record["scene"],)
    else:
        source = (image.shape, image.dtype.str, hashlib.sha256(image.tobytes()).hexdigest())
    return hashlib.sha256(repr((source, _settings(read))).encode()).hexdigest()


def _settings(read: Callable[..., Any]) -> str:
    """A reader's name and settings, the same in every process (the ``repr`` of a function has its address)."""
    if not isinstance(read, partial):
        return getattr(read, "__qualname__", repr(read))
    keywords = {key: _settings(value) if callable(value) else value for key, value in read.keywords.items()}
    return repr((_settings(read.func), read.args, keywords))
