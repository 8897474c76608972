"""What is wrong with boxes, and with the masks of their objects."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from datamodules.annotations.boxes import REASONS, examine, fractions_note, object_name
from datamodules.annotations.instance_masks import wrong_masks
from datamodules.annotations.records import Record
from datamodules.checking.findings import Finding
from datamodules.loaders import available_cores

#: Kinds in the order of ``boxes.REASONS``.
_WRONG = ("box-not-finite", "box-class", "box-inverted", "box-empty", "box-outside", "box-beyond")
_TINY, _VANISHING = 3.0, 2.0  # pixels
_HUGE = 0.95  # of the picture's area
_SAME = 0.9  # IoU of two boxes from which they are one
_ENOUGH, _FACTOR, _SPREADS = 20, 4.0, 6.0  # boxes of a class; how far from its usual shape, as a factor and robustly
_SLIM = 20.0  # length to width that is improbable in any class


def box_findings(
    records: Sequence[Record], names: Sequence[str], canvas: tuple[int, int] | None, most: int | None
) -> list[Finding]:
    """Look at all boxes.

    Args:
        records: Detection records of images with their real ``height`` and ``width``.
        names: The K classes.
        canvas: Height and width that pictures are resized to, their proportions kept; None where they are not.
        most: The task's ``max_detections``, None where it has none.
    """
    records, found = _without_fractions(records)
    numbers = [len(record["boxes"]) for record in records]
    found += _of_pictures(records, numbers, most)
    if not sum(numbers):
        return found
    seen = examine(records, numbers, len(names))
    owner = np.repeat(np.arange(len(records)), numbers)
    first = np.cumsum([0, *numbers])

    def at(kind: str, i: int, message: str) -> Finding:
        """A finding at box ``i`` of all boxes."""
        record = records[int(owner[i])]
        x1, y1, x2, y2 = np.nan_to_num(seen.given[i]).tolist()
        text = f"{message}: {x1:g} {y1:g} {x2:g} {y2:g}, {object_name(record, i - int(first[owner[i]]))}"
        return Finding(kind, text, record["path"], record["split"], (x1, y1, x2, y2))

    assert len(_WRONG) == len(REASONS)
    for i in np.flatnonzero(seen.reason >= 0).tolist():
        found.append(at(_WRONG[seen.reason[i]], i, REASONS[seen.reason[i]]))
    labels = np.concatenate([record["labels"] for record in records])
    single = np.concatenate([record["iscrowd"] for record in records]) == 0
    usable = (seen.reason < 0) & single
    sizes = np.array([(record["width"], record["height"]) for record in records], np.float64)[owner]
    for kind, i, message in (
        *_odd_sizes(seen.clipped, sizes, usable, canvas),
        *_odd_shapes(seen.clipped, labels, usable & ~_touching(seen.clipped, sizes), names),
        *_twice(seen.clipped, labels, usable, first, names),
    ):
        found.append(at(kind, i, message))
    return found + _at_border(seen.clipped, sizes, usable, [records[k]["path"] for k in owner.tolist()])


def _without_fractions(records: Sequence[Record]) -> tuple[list[Record], list[Finding]]:
    """The records of splits whose boxes are pixels, and a finding for each of the others."""
    kept, found = [], []
    for split in dict.fromkeys(record["split"] for record in records):
        own = [record for record in records if record["split"] == split]
        if note := fractions_note(own):
            found.append(Finding("fractions", note, split=split))
        else:
            kept += own
    return kept, found


def _of_pictures(records: Sequence[Record], numbers: Sequence[int], most: int | None) -> list[Finding]:
    """Pictures with too many objects, and how many have none."""
    found = []
    for record, number in zip(records, numbers, strict=True):
        if most is not None and number > most:
            message = f"{number:,} objects, model.max_detections is {most:,}"
            found.append(Finding("many-objects", message, record["path"], record["split"]))
    empty = tuple(record["path"] for record, number in zip(records, numbers, strict=True) if not number)
    if empty:
        message = f"{len(empty):,} of {len(records):,} pictures have no object"
        found.append(Finding("no-objects", message, others=empty))
    return found


Found = Iterator[tuple[str, int, str]]


def _odd_sizes(
    boxes: npt.NDArray[np.float32],
    sizes: npt.NDArray[np.float64],
    usable: npt.NDArray[np.bool_],
    canvas: tuple[int, int] | None,
) -> Found:
    side = np.minimum(boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1])
    scale = np.ones(len(boxes)) if canvas is None else np.minimum(canvas[1] / sizes[:, 0], canvas[0] / sizes[:, 1])
    tiny = usable & (side < _TINY)
    for i in np.flatnonzero(tiny).tolist():
        yield "box-tiny", i, f"a side of {side[i]:.3g} pixels"
    for i in np.flatnonzero(usable & ~tiny & (side * np.minimum(scale, 1) < _VANISHING)).tolist():
        yield "box-vanishing", i, f"a side of {side[i] * scale[i]:.2g} pixels of the resized picture"
    part = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) / np.prod(sizes, axis=1)
    for i in np.flatnonzero(usable & (part >= _HUGE)).tolist():
        yield "box-huge", i, f"{part[i]:.0%} of the picture"


def _at_border(
    boxes: npt.NDArray[np.float32],
    sizes: npt.NDArray[np.float64],
    usable: npt.NDArray[np.bool_],
    paths: Sequence[str],
) -> list[Finding]:
    """How many boxes touch the border: one finding, for this is no fault."""
    touches = usable & _touching(boxes, sizes)
    if not touches.any():
        return []
    pictures = tuple(dict.fromkeys(paths[i] for i in np.flatnonzero(touches).tolist()))
    message = f"{touches.sum():,} of {len(boxes):,} boxes touch the border of their picture"
    return [Finding("box-border", message, others=pictures)]


def _touching(boxes: npt.NDArray[np.float32], sizes: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Which boxes touch the border of their picture."""
    return np.asarray((boxes[:, :2] <= 0).any(1) | (boxes[:, 2:] >= sizes).any(1))


def _odd_shapes(
    boxes: npt.NDArray[np.float32],
    labels: npt.NDArray[np.int64],
    usable: npt.NDArray[np.bool_],
    names: Sequence[str],
) -> Found:
    """Proportions that are far from all others of the class."""
    width, height = np.maximum(boxes[:, 2:] - boxes[:, :2], 1e-6).T
    shape = np.log(width / height)
    for k, name in enumerate(names):
        own = np.flatnonzero(usable & (labels == k))
        if not len(own):
            continue
        middle = float(np.median(shape[own])) if len(own) >= _ENOUGH else 0.0
        away = np.abs(shape[own] - middle)
        limit = max(np.log(_FACTOR), _SPREADS * 1.4826 * float(np.median(away)))
        limit = float(limit) if len(own) >= _ENOUGH else float(np.log(_SLIM))
        for i in own[away > limit].tolist():
            yield (
                "box-shape",
                i,
                f"{width[i]:.4g} x {height[i]:.4g} pixels for a {name}, usual is {np.exp(middle):.2g} to 1",
            )


def _twice(
    boxes: npt.NDArray[np.float32],
    labels: npt.NDArray[np.int64],
    usable: npt.NDArray[np.bool_],
    first: npt.NDArray[np.int64],
    names: Sequence[str],
) -> Found:
    """Boxes that cover one object with an earlier one of the picture."""
    for start, stop in itertools.pairwise(first.tolist()):
        own = start + np.flatnonzero(usable[start:stop])
        if len(own) < 2:
            continue
        later, earlier = np.nonzero(np.tril(overlaps(boxes[own], boxes[own]), -1) >= _SAME)
        for i, j in {int(own[a]): int(own[b]) for a, b in zip(later, earlier, strict=True)}.items():
            if labels[i] == labels[j]:
                yield "box-twice", i, "a box of its class lies on it"
            else:
                yield "box-two-classes", i, f"the box of a {names[labels[j]]} lies on this {names[labels[i]]}"


def overlaps(first: npt.NDArray[np.float32], second: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """IoU of each of N boxes with each of M others, (N, M)."""
    a, b = first.astype(np.float64), second.astype(np.float64)
    low, high = np.maximum(a[:, None, :2], b[:, :2]), np.minimum(a[:, None, 2:], b[:, 2:])
    common = np.clip(high - low, 0, None).prod(2)
    areas = ((boxes[:, 2:] - boxes[:, :2]).prod(1) for boxes in (a, b))
    return np.asarray(common / np.maximum(next(areas)[:, None] + next(areas) - common, 1e-9))


def object_mask_findings(records: Sequence[Record]) -> list[Finding]:
    """Masks of objects that cannot be drawn, have no pixel, or are missing."""
    with ThreadPoolExecutor(available_cores()) as pool:
        wrong = pool.map(wrong_masks, records)
        found = []
        for record, own in zip(records, wrong, strict=True):
            shapes = record["segmentation"] or [None] * len(record["boxes"])
            own |= {i: "it has a box and no mask" for i, shape in enumerate(shapes) if shape is None}
            for i, reason in own.items():
                x1, y1, x2, y2 = record["boxes"][i].tolist()
                message = f"{reason}: {object_name(record, i)}"
                found.append(Finding("object-mask", message, record["path"], record["split"], (x1, y1, x2, y2)))
    return found
