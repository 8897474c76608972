"""Boxes before training: whether they were drawn on these images, and what is done with those that cannot be right."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from datamodules.annotations.records import Record, take_objects
from datamodules.common.errors import UserError, bullets
from datamodules.decoding.images import read_image
from datamodules.decoding.sizes import image_sizes

Policy = Literal["error", "fix", "drop"]

#: Pixels by which a box may extend beyond its image without being reported: rounding, and VOC's counting from 1.
TOLERANCE = 1.0
REASONS = (
    "a coordinate is NaN or infinite",
    "there is no such class",
    "it is inverted (x2 < x1 or y2 < y1)",
    "it has no area",
    "it lies outside the image",
    "it extends beyond the image",
)
_UNITS = {".json": "annotation", ".xml": "object", ".txt": "line"}  # what `annotation_ids` count in such a file
_LISTED = 10


class BoxReport(NamedTuple):
    """What ``check_boxes`` found; as text, one line for the log.

    Attributes:
        total: Boxes before.
        counts: Reason (of ``REASONS``) -> number of boxes; a box counts under the first that holds.
        fixed: Boxes that were swapped or clipped.
        dropped: Boxes that were dropped.
        examples: The first ten, with file, annotation and reason.
    """

    total: int
    counts: dict[str, int]
    fixed: int
    dropped: int
    examples: list[str]

    def __str__(self) -> str:
        if not self.counts:
            return f"{self.total:,} boxes, all of them fit their images"
        reasons = ", ".join(f"{reason} ({n:,})" for reason, n in self.counts.items())
        return f"{self.total:,} boxes, {self.fixed:,} fixed and {self.dropped:,} dropped: {reasons}"


class Examined(NamedTuple):
    """All boxes of a set, one after the other: M of them."""

    given: npt.NDArray[np.float32]  # (M, 4)
    clipped: npt.NDArray[np.float32]  # (M, 4), corners in order and inside the image
    area: npt.NDArray[np.float32]  # (M,), after clipping
    reason: npt.NDArray[np.int64]  # (M,), place in REASONS; -1: nothing is wrong
    can_be_fixed: npt.NDArray[np.bool_]  # (M,)


def check_boxes(
    records: Sequence[Record], policy: Policy, num_classes: int | None = None, setting: str = "data.check_boxes"
) -> tuple[list[Record], BoxReport]:
    """Find boxes that cannot be right; refuse, fix or drop them.

    A box is wrong if a coordinate is NaN or infinite, its class is not one of the K, it is inverted, it has no area, or
    it extends beyond its image by more than ``TOLERANCE``. What extends by less is clipped under every policy, and
    not reported. An image that loses all its boxes stays, as one without objects.

    ``fix`` swaps inverted corners and clips to the image; it drops what cannot be fixed: not finite, of no class,
    without area (after clipping, too). ``drop`` drops all wrong boxes.

    The ``area`` of a changed box becomes its own, where there is no mask; masks and their areas stay as they are.

    Args:
        records: Detection records (see ``datamodules.annotations.records``) with ``height`` and ``width``; not changed.
        policy: ``error``, ``fix`` or ``drop``.
        num_classes: K; without it only negative labels are wrong.
        setting: Where the user sets the policy, for the message.

    Returns:
        The records, those with changed boxes as new dicts, and what was found.

    Raises:
        UserError: Under ``error``, if there are any; the first ten are listed with file and annotation.
    """
    if policy not in ("error", "fix", "drop"):
        raise UserError(f"{setting} is '{policy}'; it must be 'error', 'fix' or 'drop'.")
    numbers = [len(r["boxes"]) for r in records]
    if not sum(numbers):
        return list(records), BoxReport(0, {}, 0, 0, [])
    boxes = examine(records, numbers, num_classes)
    owner = np.repeat(np.arange(len(records)), numbers)
    first = np.cumsum([0, *numbers])
    bad = np.flatnonzero(boxes.reason >= 0)
    examples = []
    for i in bad[:_LISTED].tolist():
        place = i - int(first[owner[i]])
        examples.append(f"{_describe(records[owner[i]], place)}: {REASONS[boxes.reason[i]]}")
    if policy == "error" and len(bad):
        raise UserError(
            f"{len(bad):,} of {len(boxes.given):,} boxes cannot be right:{bullets(examples, len(bad), _LISTED)}\n"
            f"Correct them; or set {setting} to fix (clip, swap, and drop what cannot be fixed) or to drop."
        )
    keep = boxes.reason < 0 if policy == "drop" else boxes.can_be_fixed
    changed = keep & (boxes.clipped != boxes.given).any(1)
    out = list(records)
    for k in np.unique(owner[changed | ~keep]).tolist():
        own = slice(first[k], first[k + 1])
        out[k] = _rewrite(records[k], boxes.clipped[own], boxes.area[own], changed[own], keep[own])
    found = np.bincount(boxes.reason[bad], minlength=len(REASONS)).tolist()
    counts = {text: n for text, n in zip(REASONS, found, strict=True) if n}
    fixed = int((changed & (boxes.reason >= 0)).sum())
    return out, BoxReport(len(boxes.given), counts, fixed, int((~keep).sum()), examples)


def examine(records: Sequence[Record], numbers: list[int], num_classes: int | None) -> Examined:
    """What is wrong with each box of all records; ``numbers`` is how many each record has."""
    boxes = np.concatenate([r["boxes"] for r in records])
    labels = np.concatenate([r["labels"] for r in records])
    sizes = np.array([(r["width"], r["height"]) for r in records], np.float32)
    finite = np.isfinite(boxes).all(1)
    no_class = labels < 0
    if num_classes is not None:
        no_class |= labels >= num_classes
    safe = np.where(finite[:, None], boxes, 0)
    ordered = np.sort(safe.reshape(-1, 2, 2), axis=1).reshape(-1, 4)
    clipped = np.clip(ordered, 0, np.repeat(np.tile(sizes, 2), numbers, axis=0))
    area = np.prod(clipped[:, 2:] - clipped[:, :2], axis=1)
    wrong = (
        ~finite,
        no_class,
        (ordered != safe).any(1),
        (ordered[:, 2:] == ordered[:, :2]).any(1),
        area == 0,
        np.abs(clipped - ordered).max(1) > TOLERANCE,
    )
    reason = np.select(wrong, list(range(len(wrong))), -1)
    return Examined(boxes, clipped, area, reason, finite & ~no_class & (area > 0))


def _rewrite(
    record: Record,
    boxes: npt.NDArray[np.float32],
    area: npt.NDArray[np.float32],
    changed: npt.NDArray[np.bool_],
    keep: npt.NDArray[np.bool_],
) -> Record:
    masks = record["segmentation"] or [None] * len(boxes)
    own_area = changed & np.array([mask is None for mask in masks])
    new = {
        **record,
        "boxes": np.where(changed[:, None], boxes, record["boxes"]),
        "area": np.where(own_area, area, record["area"]),
    }
    return take_objects(new, np.flatnonzero(keep))


def _describe(record: Record, i: int) -> str:
    """``FILE, annotation 7 ('IMAGE', 640 x 480): x1 y1 x2 y2 = 1 2 3 4, class 0``; VOC has objects, YOLO lines."""
    corners = " ".join(f"{value:g}" for value in record["boxes"][i].tolist())
    return (
        f"{record['annotation_file']}, {object_name(record, i)} ('{Path(record['path']).name}', {record['width']} x"
        f" {record['height']}): x1 y1 x2 y2 = {corners}, class {int(record['labels'][i])}"
    )


def object_name(record: Record, i: int) -> str:
    """What the annotation file calls a record's object: ``annotation 7``; VOC has objects, YOLO lines."""
    unit = _UNITS.get(Path(record["annotation_file"]).suffix.lower(), "annotation")
    return f"{unit} {int(record['annotation_ids'][i])}"


def fractions_note(records: Sequence[Record]) -> str | None:
    """A sentence if all boxes lie within one pixel of the corner, as fractions of the images' sizes do; else None."""
    boxes = [record["boxes"] for record in records if len(record["boxes"])]
    if not boxes or min(min(r["height"], r["width"]) for r in records) <= 2:
        return None
    every = np.concatenate(boxes)
    if not ((every >= 0) & (every <= 1)).all():
        return None
    return (
        f"All {len(every):,} boxes lie between 0 and 1, as in '{records[0]['annotation_file']}': they look like"
        " fractions of the images' sizes, but are read as pixels. Multiply x and width by the image's width,"
        " y and height by its height."
    )


def check_sizes(records: Sequence[Record]) -> list[Record]:
    """Compare ``height`` and ``width`` of the annotations with the image files, and fill in what is 0.

    Boxes that were drawn on another size of the picture train without an error, on the wrong pixels.

    Args:
        records: Detection records (see ``datamodules.annotations.records``); not changed. Those that hold arrays are
            taken as good.

    Returns:
        The records; those without a size as new dicts.

    Raises:
        UserError: If sizes differ; the first ten are listed with both.
        ImageError: If a file is no image.
    """
    files = [i for i, record in enumerate(records) if isinstance(record["image"], str)]
    out, wrong = list(records), []
    for i, found in zip(files, image_sizes(records[i]["image"] for i in files), strict=True):
        record = records[i]
        given = (record["height"], record["width"])
        if given == found:
            continue
        if 0 in given:
            out[i] = {**record, "height": found[0], "width": found[1]}
            continue
        if found == given[::-1]:
            found = read_image(record["image"]).shape[:2]  # the orientation may stand behind the pixels
        if given != found:
            turned = ", turned" if given == found[::-1] else ""
            wrong.append(
                f"{record['path']}: {given[1]} x {given[0]} annotated, the file is {found[1]} x {found[0]}{turned}"
            )
    if wrong:
        raise UserError(
            f"{len(wrong)} image(s) have another size (width x height) than their annotations say:{bullets(wrong)}\n"
            "The boxes were drawn on other pixels: put those images back, or scale the annotations. An image with an"
            " EXIF orientation is read turned; remove the tag if the boxes were drawn on the picture as stored."
        )
    return out
