"""All checks of a datamodule, one after the other."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from datamodules.annotations.records import Record
from datamodules.checking.boxes import box_findings, object_mask_findings
from datamodules.checking.classes import Counts, class_findings, label_counts
from datamodules.checking.copies import POOL, exact_findings, group_findings, near_findings
from datamodules.checking.findings import Finding
from datamodules.checking.images import Look, image_findings, look_at
from datamodules.checking.masks import look_at_masks, mask_findings
from datamodules.common.errors import UserError
from datamodules.readers.pictures import find_pictures

Told = Callable[[str, int, int], None]  # what is looked at, how many are done, of how many
SPLITS = ("train", "val", "test")


class Checked(NamedTuple):
    """What was looked at, and what was found; ``read_mask`` is None where there are no masks of a class a pixel."""

    records: list[Record]
    pool: list[Record]
    class_names: list[str]
    findings: list[Finding]
    read_mask: Callable[[Record], NDArray[np.uint8]] | None = None


def check(data: Any, pool: str | None = None, max_detections: int | None = None, told: Told | None = None) -> Checked:
    """Look at everything of a data set that can be wrong; the datamodule is left as it is.

    Args:
        data: A datamodule that was not set up.
        pool: Unlabeled images, as for ``find_pictures``.
        max_detections: Of the task.
        told: Told of the progress.

    Raises:
        UserError: If there is no such source, or a setting is wrong. What is wrong with files and annotations is found.
    """
    own = copy.deepcopy(data)
    records, found = _listed(own)
    paths = find_pictures(pool) if pool is not None else []
    unlabeled: list[Record] = [{"image": path, "path": path, "split": POOL} for path in paths]
    everything = [*records, *unlabeled]
    channels = getattr(own, "in_chans", 3)
    looks = look_at(everything, channels, _about("images", told))
    of_images = image_findings(everything, looks)
    if any(finding.kind == "refused" for finding in found):  # the pictures may be masks
        found += [finding for finding in of_images if finding.kind == "unreadable"]
        return Checked(records, unlabeled, [], found)
    found += of_images
    found += _annotation_findings(own, records, looks[: len(records)], max_detections, told)
    found += exact_findings(everything, looks) + near_findings(everything, looks) + group_findings(records)
    if not any(finding.severity == "error" for finding in found):
        found += _refusals(data)
    read_mask = own.make_mask_reader() if records and "mask" in records[0] else None
    return Checked(records, unlabeled, list(own.class_names or ()), found, read_mask)


def _about(what: str, told: Told | None) -> Callable[[int, int], None] | None:
    return None if told is None else lambda done, total: told(what, done, total)


def _listed(data: Any) -> tuple[list[Record], list[Finding]]:
    """The records, and what the reader says; the bare pictures where it refuses the annotations."""
    if hasattr(data, "check_masks"):
        data.check_masks = False  # each is looked at below, beyond the first ten
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            listing = data.list_records()
    except UserError as error:
        if str(error).startswith("data."):  # about the config, not about files
            raise
        paths = find_pictures(data.source)
        return [{"image": path, "path": path, "split": None} for path in paths], [Finding("refused", str(error))]
    notes = [*listing.notes, *(str(warning.message) for warning in said)]
    return listing.records, [Finding("reader", note) for note in dict.fromkeys(notes)]


def _annotation_findings(
    data: Any, records: list[Record], looks: Sequence[Look], most: int | None, told: Told | None
) -> list[Finding]:
    names = list(data.class_names or ())
    there = [(record, look) for record, look in zip(records, looks, strict=True) if not look.error]
    kept = [record for record, _ in there]
    if not kept:
        return []
    if "boxes" in kept[0]:
        return _box_checks(data, there, names, most)
    if "mask" in kept[0]:
        sizes = [look.size for _, look in there]
        masks = look_at_masks(kept, sizes, data.make_mask_reader(), len(names), _about("masks", told))
        counts = [look.counts for look in masks]
        return mask_findings(kept, masks) + _class_checks(kept, names, "pixels", counts)
    return _class_checks(kept, names, "images") if "label" in kept[0] else []


def _box_checks(data: Any, there: list[tuple[Record, Look]], names: list[str], most: int | None) -> list[Finding]:
    """Those of boxes whose picture has the size that it was annotated with."""
    found, fitting = [], []
    for record, look in there:
        given = (record["height"], record["width"])
        if 0 in given or given == look.size or 0 in look.size:
            height, width = look.size if 0 in given else given
            fitting.append({**record, "height": height, "width": width})
        else:
            turned = ", turned" if given == look.size[::-1] else ""
            message = f"{given[1]} x {given[0]} annotated, the file is {look.size[1]} x {look.size[0]}{turned}"
            found.append(Finding("image-size", message, record["path"], record["split"]))
    canvas = None if data.resize == "native" else data.canvas()
    found += box_findings(fitting, names, canvas, most)
    if data.masks:
        found += object_mask_findings(fitting)
    return found + _class_checks([record for record, _ in there], names, "boxes")


def _class_checks(
    records: list[Record], names: list[str], unit: str, counts: Sequence[Any] | None = None
) -> list[Finding]:
    """Of the classes of each split; ``counts`` of each record where they were counted."""
    by_split: dict[str, Counts] = {}
    for split in SPLITS:
        own = [i for i, record in enumerate(records) if record["split"] == split]
        if own and counts is not None:
            by_split[split] = np.sum([counts[i] for i in own], axis=0).astype(np.float64)
        elif own:
            by_split[split] = label_counts([records[i] for i in own], len(names))
    return class_findings(by_split, names, unit)


def _refusals(data: Any) -> list[Finding]:
    """What ``fit`` would end with, where nothing else was found to be an error."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            copy.deepcopy(data).setup("fit")
    except UserError as error:
        return [Finding("refused", str(error))]
    return []
