"""Checks of image files before training, and the cache of decoded images on disk."""

from __future__ import annotations

import hashlib
import math
import mmap
import os
import secrets
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from datamodules.annotations.records import Record
from datamodules.common.errors import UserError
from datamodules.common.files import private_folder, read_json, user_folder, write_json
from datamodules.common.locks import only_one_builds
from datamodules.decoding.contents import state_of
from datamodules.decoding.headers import ImageError
from datamodules.decoding.images import check_image, read_image
from datamodules.decoding.video import is_frame
from datamodules.transforms.geometry import resize_array

REDUCED = 2  # times the canvas
_CHUNK = 64  # images that a thread takes at a time: a header is read faster than it is handed over
SOME_CORRUPT = 10  # unreadable images that ``skip`` leaves out of any set, however small


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

    chunks = [records[i : i + _CHUNK] for i in range(0, len(records), _CHUNK)]
    with ThreadPoolExecutor(max_workers=8) as pool:
        found = pool.map(lambda chunk: [problem(record) for record in chunk], chunks)
        return [p for problems in found for p in problems if p is not None]


def readable_images(
    records: Sequence[Record], on_corrupt: str, most: float = 1.0
) -> tuple[list[Record], list[tuple[str, str]]]:
    """The records whose images can be read, and of the others ``(path, reason)``.

    Args:
        records: Plain records.
        on_corrupt: ``skip`` decodes each image, and leaves out what fails; ``error`` looks at the headers.
        most: Share of the records that may be left out; some (`SOME_CORRUPT`) always may.

    Raises:
        UserError: If there are others, and they are not to be skipped, or too many to be; up to 10 are named.
    """
    skipped = check_images(records, full=on_corrupt == "skip")
    if skipped and on_corrupt == "error":
        shown = "\n".join(f"  {path}: {reason}" for path, reason in skipped[:10])
        raise UserError(
            f"{len(skipped)} image file(s) cannot be read:\n{shown}\n"
            "Repair or remove them, or set data.on_corrupt: skip to go on without them."
        )
    if len(skipped) > max(SOME_CORRUPT, most * len(records)):
        shown = "\n".join(f"  {path}: {reason}" for path, reason in skipped[:10])
        raise UserError(
            f"{len(skipped)} of {len(records)} image files cannot be read, more than data.max_corrupt ({most:g}) lets"
            f" data.on_corrupt: skip leave out:\n{shown}\nLook at where they come from, or raise data.max_corrupt."
        )
    bad = {path for path, _ in skipped}
    return [record for record in records if record["path"] not in bad], skipped


def reduced_side(cache: str, canvas: tuple[int, int]) -> int | None:
    """To which shorter side, in pixels, ``cache: resized`` reduces; None for other caches.

    Crops keep the detail that they have without the cache where they enlarge by at most `REDUCED`.
    """
    return REDUCED * max(canvas) if cache == "resized" else None


def said_of_cache(cache: str, canvas: tuple[int, int]) -> dict[str, str]:
    """What a run says of the cache before training, by key."""
    side = reduced_side(cache, canvas)
    return {"data.cache": f"training images are reduced to a shorter side of {side} pixels, once"} if side else {}


class DecodedCache:
    """Decoded images, in their original size or reduced, in one memory-mapped file that all workers share.

    In their original size samples are bit for bit those that decoding gives; only the time differs. The file is named
    by a digest of the images' paths, sizes and modification times, so a changed image is decoded again, and it is
    renamed into place when complete, so a killed run leaves none that is half written. Of several processes one
    decodes, and the others wait.

    Args:
        path: The file of pixels; beside it lies the index, ``.json``: ``dtype``, and of each image offset and shape.
        records: The records whose images it holds, in the order of the index.
        read: Record -> sample with ``image`` (H, W, C).
    """

    def __init__(self, path: Path, records: Sequence[Record], read: Callable[[Record], Record]) -> None:
        index = read_json(path.with_suffix(".json"))
        self.is_reduced = bool(index.get("reduced"))
        self.path = path
        self.dtype = np.dtype(index["dtype"])
        self._read = read
        self._places = {r["path"]: place for r, place in zip(records, index["offsets"], strict=True)}
        self._map: mmap.mmap | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_map": None}  # a memory map does not pickle; each worker opens its own

    @classmethod
    def build(
        cls,
        records: Sequence[Record],
        read: Callable[[Record], Record],
        directory: str | None = None,
        side: int | None = None,
    ) -> DecodedCache:
        """Write the cache, or take the one that is there.

        Args:
            records: Plain records.
            read: Record -> sample with ``image`` uint8 (H, W, C).
            directory: Where to keep it; a folder of the user's by default.
            side: Images whose shorter side has more pixels are reduced to it; their boxes follow.

        Raises:
            UserError: If the disk has too little room, with what is needed and what is free.
            UserError: If the default folder is another user's.
        """
        folder = Path(directory) if directory else private_folder(user_folder("decoded"))
        folder.mkdir(parents=True, exist_ok=True)
        # The decoder's settings are part of what is stored: a first image read through `read` carries them.
        first = read(records[0])["image"]
        path = folder / f"{_digest(records, first, side)[:24]}.bin"
        with only_one_builds(path.with_suffix(".lock"), path.with_suffix(".json").exists) as mine:
            if mine:
                stored = partial(_image_of, read=read, side=side)
                _check_room(folder, records, stored)
                _decode(path, records, stored, first.dtype, side)
        return cls(path, records, read)

    def read(self, record: Record) -> Record:
        """The record's sample, its image a copy out of the memory map; annotations are read as ever."""
        if self._map is None:
            with open(self.path, "rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        offset, shape = self._places[record["path"]]
        image = np.frombuffer(self._map, self.dtype, math.prod(shape), offset).reshape(shape).copy()
        return self._read({**(_follow(record, shape) if self.is_reduced else record), "image": image})


def _image_of(record: Record, read: Callable[[Record], Record], side: int | None) -> NDArray[Any]:
    """The image as it is stored."""
    image: NDArray[Any] = read(record)["image"]
    shorter = min(image.shape[:2])
    if side is None or shorter <= side:
        return image
    height, width = (max(1, round(edge * side / shorter)) for edge in image.shape[:2])
    return resize_array(image, (height, width), cv2.INTER_AREA).reshape(height, width, image.shape[2])


def _follow(record: Record, shape: Sequence[int]) -> Record:
    """The record with its boxes on the reduced image of this shape."""
    if "boxes" not in record:
        return record
    height, width = shape[:2]
    y, x = height / record["height"], width / record["width"]
    boxes, area = record["boxes"] * np.array([x, y, x, y], np.float32), record["area"] * np.float32(x * y)
    return {**record, "boxes": boxes, "area": area, "height": height, "width": width}


def _digest(records: Sequence[Record], first: NDArray[Any], side: int | None) -> str:
    """Of all that the decoded pixels depend on: the files' paths, sizes and times, type and channels."""
    digest = hashlib.sha256()
    for record in records:
        stat = state_of(record["image"]) if isinstance(record["image"], str) else None
        state = (stat.size, stat.mtime_ns) if stat else hashlib.sha1(record["image"].tobytes()).hexdigest()
        digest.update(repr((record["path"], state)).encode())
    digest.update(repr((first.dtype.str, first.shape[2:], *([] if side is None else [side]))).encode())
    return digest.hexdigest()


def _check_room(folder: Path, records: Sequence[Record], stored: Callable[[Record], NDArray[Any]]) -> None:
    some = records[:: -(-len(records) // 8)]  # each is decoded once more for it
    needed = len(records) * int(np.mean([stored(record).nbytes for record in some]))
    free = shutil.disk_usage(folder).free
    if needed > 0.9 * free:
        raise UserError(
            f"data.cache needs about {needed / 1e9:.1f} GB in {folder}, where {free / 1e9:.1f} GB are"
            " free. Set data.cache_dir to a larger disk, or data.cache: none."
        )


def _decode(
    path: Path,
    records: Sequence[Record],
    stored: Callable[[Record], NDArray[Any]],
    dtype: np.dtype[Any],
    side: int | None,
) -> None:
    """Write the pixels, then the index; who sees the index finds the pixels complete."""
    offsets: list[tuple[int, tuple[int, ...]]] = []
    # Random names: a builder that was taken for dead may go on, on another machine with the same process id.
    part = path.with_suffix(f".{secrets.token_hex(4)}.part")
    try:
        with open(part, "wb") as file, ThreadPoolExecutor(max_workers=8) as pool:
            told = tqdm(pool.map(stored, records), "Caching images", len(records), disable=None, leave=False)
            for image in told:
                offsets.append((file.tell(), image.shape))
                file.write(np.ascontiguousarray(image).data)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    write_json(path.with_suffix(".json"), {"dtype": dtype.str, "offsets": offsets, "reduced": side is not None})
