"""Checks of image files before training, and the cache of decoded images on disk."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.common.errors import UserError
from datamodules.decoding.headers import ImageError
from datamodules.decoding.images import check_image, read_image
from datamodules.decoding.video import is_frame

Record = dict[str, Any]


def check_images(records: Sequence[Record], *, full: bool) -> list[tuple[str, str]]:
    """Look at every image file: its header, or with ``full`` all of its pixels.

    Args:
        records: Plain records; those that hold arrays, and frames of videos, are taken as good.
        full: Decode each image. A truncated file is found only so.

    Returns:
        ``(path, reason)`` of each file that cannot be read.
    """

    def problem(record: Record) -> tuple[str, str] | None:
        if not isinstance(record["image"], str) or is_frame(record["image"]):
            return None
        try:
            if full:
                read_image(record["image"])
            else:
                check_image(record["image"])
        except (ImageError, OSError) as error:
            return record["path"], str(error).removeprefix(f"{record['path']}: ")
        return None

    with ThreadPoolExecutor(max_workers=8) as pool:
        return [p for p in pool.map(problem, records) if p is not None]


def readable_images(records: Sequence[Record], on_corrupt: str) -> tuple[list[Record], list[tuple[str, str]]]:
    """The records whose images can be read, and of the others ``(path, reason)``.

    Args:
        records: Plain records.
        on_corrupt: ``skip`` decodes each image, and leaves out what fails; ``error`` looks at the headers.

    Raises:
        UserError: If there are others, and they are not to be skipped; up to 10 are named.
    """
    skipped = check_images(records, full=on_corrupt == "skip")
    if skipped and on_corrupt == "error":
        shown = "\n".join(f"  {path}: {reason}" for path, reason in skipped[:10])
        raise UserError(
            f"{len(skipped)} image file(s) cannot be read:\n{shown}\n"
            "Repair or remove them, or set data.on_corrupt: skip to go on without them."
        )
    bad = {path for path, _ in skipped}
    return [record for record in records if record["path"] not in bad], skipped


class DecodedCache:
    """Decoded images, in their original size, in one memory-mapped uint8 file that all workers share.

    The samples are bit for bit those that decoding gives; only the time differs. The file is named by a digest of the
    images' paths, sizes and modification times, so a changed image is decoded again, and it is renamed into place when
    complete, so a killed run leaves none that is half written.
    """

    def __init__(
        self,
        path: Path,
        records: Sequence[Record],
        offsets: list[tuple[int, tuple[int, ...]]],
        read: Callable[[Record], Record],
    ) -> None:
        self.path = path
        self._read = read
        self._offsets = {r["path"]: o for r, o in zip(records, offsets, strict=True)}
        self._map: mmap.mmap | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_map": None}  # a memory map does not pickle; each worker opens its own

    @classmethod
    def build(
        cls, records: Sequence[Record], read: Callable[[Record], Record], directory: str | None = None
    ) -> DecodedCache:
        """Write the cache, or take the one that is there.

        Args:
            records: Plain records.
            read: Record -> sample with ``image`` uint8 (H, W, C).
            directory: Where to keep it; the system's folder for temporary files by default.

        Raises:
            UserError: If the disk has too little room, with what is needed and what is free.
        """
        folder = Path(directory) if directory else Path(tempfile.gettempdir()) / "pipelines-cache"
        folder.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256()
        for record in records:
            stat = os.stat(record["image"]) if isinstance(record["image"], str) else None
            state = (stat.st_size, stat.st_mtime_ns) if stat else hashlib.sha1(record["image"].tobytes()).hexdigest()
            digest.update(repr((record["path"], state)).encode())
        # The decoder's settings are part of what is stored: a first image read through `read` carries them.
        first = read(records[0])["image"]
        digest.update(repr((first.dtype.str, first.shape[2:])).encode())
        path = folder / f"{digest.hexdigest()[:24]}.bin"
        index = path.with_suffix(".json")
        if not index.exists():
            needed = int(np.mean([read(r)["image"].nbytes for r in records[:: max(1, len(records) // 20)]]))
            needed *= len(records)
            free = shutil.disk_usage(folder).free
            if needed > 0.9 * free:
                raise UserError(
                    f"data.cache: decoded needs about {needed / 1e9:.1f} GB in {folder}, where {free / 1e9:.1f} GB are"
                    " free. Set data.cache_dir to a larger disk, or data.cache: none."
                )
            offsets: list[tuple[int, tuple[int, ...]]] = []
            # Random names: ranks on several nodes may have one process id and one folder.
            part = path.with_suffix(f".{secrets.token_hex(4)}.part")
            with open(part, "wb") as file, ThreadPoolExecutor(max_workers=8) as pool:
                for sample in pool.map(read, records):
                    offsets.append((file.tell(), sample["image"].shape))
                    file.write(np.ascontiguousarray(sample["image"]).data)
            os.replace(part, path)
            index_part = index.with_suffix(f".{secrets.token_hex(4)}.part")
            index_part.write_text(json.dumps({"dtype": first.dtype.str, "offsets": offsets}))
            os.replace(index_part, index)
        stored = json.loads(index.read_text())
        cache = cls(path, records, [(o, tuple(s)) for o, s in stored["offsets"]], read)
        cache.dtype = np.dtype(stored["dtype"])
        return cache

    dtype: np.dtype[Any] = np.dtype(np.uint8)

    def read(self, record: Record) -> Record:
        """The record's sample, its image a copy out of the memory map; annotations are read as ever."""
        if self._map is None:
            with open(self.path, "rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        offset, shape = self._offsets[record["path"]]
        count = int(np.prod(shape))
        image = np.frombuffer(self._map, self.dtype, count, offset).reshape(shape).copy()
        return self._read({**record, "image": image})
