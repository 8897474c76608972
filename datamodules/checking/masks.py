"""What is wrong with masks of a class a pixel."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from datamodules.annotations.mask_files import Mask
from datamodules.annotations.mask_records import check_size
from datamodules.annotations.masks import MaskError
from datamodules.annotations.records import Record
from datamodules.checking.findings import Finding
from datamodules.checking.images import Progress
from datamodules.common.batch import IGNORE
from datamodules.common.errors import UserError
from datamodules.loaders import available_cores

_ISLAND = 4  # pixels


class MaskLook(NamedTuple):
    """What is known of a mask: what is wrong (kind, message, box), and the pixels of each class, int64 (K,)."""

    wrong: list[tuple[str, str, tuple[float, float, float, float] | None]]
    counts: npt.NDArray[np.int64]


def look_at_masks(
    records: Sequence[Record],
    sizes: Sequence[tuple[int, int]],
    decode: Callable[[Record], Mask],
    num_classes: int,
    progress: Progress | None = None,
) -> list[MaskLook]:
    """Decode all masks, by as many threads as there are cores.

    Args:
        records: With ``mask``.
        sizes: Height and width of their images as shown; (0, 0) where they are not known.
        decode: Record -> mask, uint8 (H, W) or (H, W, K).
        num_classes: K.
        progress: Told how many of how many are done.
    """

    def look(record: Record, size: tuple[int, int]) -> MaskLook:
        try:
            mask = decode(record)
        except MaskError as error:
            return MaskLook([("mask-values", str(error), None)], np.zeros(num_classes, np.int64))
        except (UserError, OSError) as error:
            return MaskLook([("mask-unreadable", str(error), None)], np.zeros(num_classes, np.int64))
        counts = _counts(mask, num_classes)
        wrong = list(_problems(mask, counts, record, size))
        return MaskLook(wrong, counts)

    looks = []
    with ThreadPoolExecutor(available_cores()) as pool:
        for one in pool.map(look, records, sizes):
            looks.append(one)
            if progress is not None:
                progress(len(looks), len(records))
    return looks


def _counts(mask: Mask, num_classes: int) -> npt.NDArray[np.int64]:
    if mask.ndim == 3:
        return np.asarray((mask == 1).sum((0, 1)), np.int64)
    return np.bincount(mask.ravel(), minlength=256)[:num_classes].astype(np.int64)


def _problems(
    mask: Mask, counts: npt.NDArray[np.int64], record: Record, size: tuple[int, int]
) -> Iterator[tuple[str, str, tuple[float, float, float, float] | None]]:
    try:
        if 0 not in size:
            check_size(record, mask, size)
    except MaskError as error:
        yield "mask-size", str(error), None
    if (mask == IGNORE).all():
        yield "mask-ignored", "all of its pixels are ignored", None
    islands = _islands(mask)
    if islands:
        x, y, width, height, area = islands[0]
        box = (float(x), float(y), float(x + width), float(y + height))
        yield "mask-islands", f"{len(islands):,} island(s) of {_ISLAND} pixels or fewer; the first has {area}", box


def _islands(mask: Mask) -> list[tuple[int, int, int, int, int]]:
    """x, y, width, height and area of parts of one class that are tiny, diagonal neighbors being one part.

    A class of which this is all that there is counts, too.
    """
    planes = [mask[..., k] == 1 for k in range(mask.shape[2])] if mask.ndim == 3 else _planes(mask)
    found = []
    for plane in planes:
        _, _, stats, _ = cv2.connectedComponentsWithStats(plane.astype(np.uint8), connectivity=8)
        small = stats[1:][stats[1:, cv2.CC_STAT_AREA] <= _ISLAND]
        found += [(int(x), int(y), int(w), int(h), int(area)) for x, y, w, h, area in small]
    return found


def _planes(mask: Mask) -> list[npt.NDArray[np.bool_]]:
    """The pixels of each class that is there."""
    present = np.flatnonzero(np.bincount(mask.ravel(), minlength=256))
    return [mask == k for k in present if k != IGNORE]


def mask_findings(records: Sequence[Record], looks: Sequence[MaskLook]) -> list[Finding]:
    """What is wrong with the masks; masks of one class are one finding."""
    found = [
        Finding(kind, message, record["path"], record["split"], box)
        for record, look in zip(records, looks, strict=True)
        for kind, message, box in look.wrong
    ]
    pairs = zip(records, looks, strict=True)
    single = tuple(record["path"] for record, look in pairs if len(look.counts) > 1 and (look.counts > 0).sum() == 1)
    if single:
        message = f"{len(single):,} of {len(records):,} masks hold one class only"
        found.append(Finding("mask-one-class", message, others=single))
    return found
