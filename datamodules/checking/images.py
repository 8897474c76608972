"""Every image of a set, read and decoded once, and what is wrong with it."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from datamodules.annotations.records import Record
from datamodules.checking.findings import Finding
from datamodules.common.errors import UserError
from datamodules.decoding.contents import exists, read_bytes, state_of
from datamodules.decoding.conversion import Decoded, convert, from_array
from datamodules.decoding.headers import JPEG, NPY, PNG
from datamodules.decoding.images import decode_brightness
from datamodules.decoding.video import is_frame
from datamodules.loaders import available_cores

Progress = Callable[[int, int], None]

_CHUNK = 32  # images that a thread takes at a time
SIDE = 32  # pixels of the thumbnail that pictures are compared by
_SHORT, _LONG = 16, 5.0
_DARK, _BRIGHT = 12, 243  # the brightest and the darkest pixel of such a thumbnail
_FEW = 0.1  # part of the pictures below which another number of channels is odd
_SUFFIXES = {JPEG: (".jpg", ".jpeg", ".jpe", ".jfif"), PNG: (".png", ".apng"), NPY: (".npy",)}
_KNOWN = {suffix for suffixes in _SUFFIXES.values() for suffix in suffixes}


class Look(NamedTuple):
    """What is known of an image that was decoded.

    Attributes:
        error: Why it cannot be read; the rest is empty then.
        size: Height and width as shown; (0, 0) where it was not looked at.
        depth: numpy's name of the pixels' type.
        channels: Colors, alpha apart.
        see_through: Whether a pixel is transparent.
        orientation: EXIF's, 1 to 8.
        suffix: Whether the name's suffix is that of another format.
        digest: Of the file's bytes, where a file of its size is there again; of an array's pixels.
        thumbnail: Gray, uint8 (SIDE, SIDE).
    """

    error: str = ""
    size: tuple[int, int] = (0, 0)
    depth: str = "uint8"
    channels: int = 3
    see_through: bool = False
    orientation: int = 1
    suffix: bool = False
    digest: bytes = b""
    thumbnail: NDArray[np.uint8] | None = None

    @property
    def is_uniform(self) -> bool:
        """Whether it is one color, as an empty tile is: copies of it are no leak."""
        return self.thumbnail is not None and int(np.ptp(self.thumbnail)) <= 2


def look_at(records: Sequence[Record], channels: int, progress: Progress | None = None) -> list[Look]:
    """Decode all images, by as many threads as there are cores.

    Args:
        records: Plain records; scenes that are drawn and frames of videos are passed over.
        channels: That the data are read with.
        progress: Told how many of how many are done.
    """
    again = _sizes_again(records)
    chunks = [records[i : i + _CHUNK] for i in range(0, len(records), _CHUNK)]
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)  # one thread a core already
    try:
        looks: list[Look] = []
        with ThreadPoolExecutor(available_cores()) as pool:
            for own in pool.map(lambda chunk: [_look(record, channels, again) for record in chunk], chunks):
                looks += own
                if progress is not None:
                    progress(len(looks), len(records))
        return looks
    finally:
        cv2.setNumThreads(threads)


def _sizes_again(records: Sequence[Record]) -> set[int]:
    """Sizes in bytes that two files have: only these can be equal."""
    files = [record["image"] for record in records if _is_file(record) and exists(record["image"])]
    return {size for size, number in Counter(state_of(file).size for file in files).items() if number > 1}


def _is_file(record: Record) -> bool:
    return isinstance(record.get("image"), str) and not is_frame(record["image"])


def _look(record: Record, channels: int, again: set[int]) -> Look:
    image, name = record.get("image"), record["path"]
    try:
        if isinstance(image, np.ndarray):
            decoded = from_array(image, name)
            look = _facts(decoded, decoded.pixels.shape[2], channels, name)
            return look._replace(digest=_digest(image.tobytes()))
        if not isinstance(image, str) or is_frame(image):
            return Look()
        data = read_bytes(image)
        if not data:
            return Look(error="the file is empty.")
        look = _facts(*decode_brightness(data, name), channels, name)
    except (UserError, OSError) as error:
        return Look(error=str(error).removeprefix(f"{name}: "))
    digest = _digest(data) if len(data) in again else b""
    return look._replace(digest=digest, suffix=_is_misnamed(name, data))


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()[:16]


def _facts(decoded: Decoded, colors: int, channels: int, name: str) -> Look:
    """What is known of pixels, which may be the brightness of a file of more colors."""
    pixels, alpha = decoded.pixels, decoded.has_alpha
    height, width = pixels.shape[:2]
    one = np.zeros((1, 1, colors + alpha), pixels.dtype)
    convert(Decoded(one, alpha), channels, "uint8", name)  # refuses what the data cannot be read as
    small = _shrunk(pixels[..., :4])
    gray = convert(Decoded(small[..., : 3 if small.shape[2] > 2 else 1], False, decoded.orientation), 1, "uint8", name)
    top: Any = 1.0 if pixels.dtype.kind == "f" else np.iinfo(pixels.dtype).max
    return Look(
        size=(width, height) if decoded.orientation >= 5 else (height, width),
        depth=pixels.dtype.name,
        channels=colors,
        see_through=alpha and bool(pixels[..., -1].min() < top),
        orientation=decoded.orientation,
        thumbnail=np.asarray(gray[..., 0], np.uint8),
    )


def _shrunk(pixels: NDArray[Any]) -> NDArray[Any]:
    """(SIDE, SIDE, C); first by a whole number, which is faster than by any other."""
    height, width = pixels.shape[:2]
    if (factor := min(height, width) // (2 * SIDE)) > 1:
        size = (width // factor, height // factor)
        pixels = cv2.resize(pixels[: size[1] * factor, : size[0] * factor], size, interpolation=cv2.INTER_AREA)
    small: NDArray[Any] = cv2.resize(pixels, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    return small.reshape(SIDE, SIDE, -1)


def _is_misnamed(name: str, data: bytes) -> bool:
    """Whether a suffix belongs to another format than the contents; of formats that are known by their first bytes."""
    suffix = os.path.splitext(name)[1].lower()
    own = next((suffixes for start, suffixes in _SUFFIXES.items() if data.startswith(start)), None)
    return suffix not in own if own is not None else suffix in _KNOWN


def image_findings(records: Sequence[Record], looks: Sequence[Look]) -> list[Finding]:
    """What is wrong with the images themselves.

    Args:
        records: With ``path`` and ``split``.
        looks: One for each.
    """
    usual = Counter(look.channels for look in looks if look.thumbnail is not None)
    sides = [min(look.size) for look in looks if look.thumbnail is not None]
    may_be_small = bool(sides) and float(np.median(sides)) < 2 * _SHORT
    found = []
    for record, look in zip(records, looks, strict=True):
        for kind, message in _problems(look, usual):
            if kind == "small-image" and may_be_small:
                continue
            found.append(Finding(kind, message, record["path"], record.get("split")))
    return found


def _problems(look: Look, usual: Counter[int]) -> Iterator[tuple[str, str]]:
    if look.error:
        yield "unreadable", look.error
    if look.thumbnail is None:
        return
    height, width = look.size
    if look.suffix:
        yield "suffix", "its suffix is that of another format"
    if look.orientation != 1:
        yield "rotated", f"EXIF orientation {look.orientation}"
    if look.depth != "uint8":
        yield "depth", f"{look.depth} pixels"
    if look.see_through:
        yield "transparent", "transparent pixels become white"
    if usual[look.channels] < _FEW * usual.total():
        yield "gray", f"{look.channels} channel(s), most have {usual.most_common(1)[0][0]}"
    if min(height, width) < _SHORT:
        yield "small-image", f"{width} x {height} pixels"
    if max(height, width) > _LONG * min(height, width):
        yield "long-image", f"{width} x {height} pixels"
    yield from _brightness(look)


def _brightness(look: Look) -> Iterator[tuple[str, str]]:
    assert look.thumbnail is not None
    low, high = int(look.thumbnail.min()), int(look.thumbnail.max())
    if high <= _DARK:
        yield "dark", f"no part is brighter than {high} of 255"
    elif low >= _BRIGHT:
        yield "bright", f"no part is darker than {low} of 255"
    elif look.is_uniform:
        yield "uniform", f"one color, {(low + high) // 2} of 255"
