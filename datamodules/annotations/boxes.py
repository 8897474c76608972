"""Boxes before training: one reader for all formats, and what is done with boxes that do not fit their images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from datamodules.common.errors import UserError
from datamodules.readers import Listing, Record
from datamodules.readers.coco import read_coco, read_coco_folder
from datamodules.readers.voc_boxes import Difficult, read_voc_boxes
from datamodules.readers.yolo_text import read_yolo

Policy = Literal["error", "fix", "drop"]
Format = Literal["coco", "voc", "yolo"]

#: Pixels by which a box may stick out of its image without being spoken of: rounding, and VOC's counting from 1.
TOLERANCE = 1.0
PER_BOX = ("boxes", "labels", "iscrowd", "area", "annotation_ids", "segmentation")
REASONS = (
    "a coordinate is NaN or infinite",
    "there is no such class",
    "it is inverted (x2 < x1 or y2 < y1)",
    "it has no area",
    "it lies outside the image",
    "it sticks out of the image",
)
_UNITS = {".json": "annotation", ".xml": "object", ".txt": "line"}  # what `annotation_ids` count in such a file
_LISTED = 10


class BoxReport(NamedTuple):
    """What ``check_boxes`` found; as text, one line for the log.

    Attributes:
        total: Boxes before.
        counts: Reason (of ``REASONS``) -> number of boxes; a box counts under the first that holds.
        mended: Boxes that were swapped or clipped.
        dropped: Boxes that were dropped.
        examples: The first ten, with file, annotation and reason.
    """

    total: int
    counts: dict[str, int]
    mended: int
    dropped: int
    examples: list[str]

    def __str__(self) -> str:
        if not self.counts:
            return f"{self.total:,} boxes, all of them fit their images"
        reasons = ", ".join(f"{reason} ({n:,})" for reason, n in self.counts.items())
        return f"{self.total:,} boxes, {self.mended:,} mended and {self.dropped:,} dropped: {reasons}"


def read_boxes(
    source: str | Path,
    format: Format | None = None,
    *,
    image_root: str | Path | None = None,
    class_names: list[str] | None = None,
    voc_one_based: bool = True,
    voc_difficult: Difficult = "ignore",
) -> Listing:
    """Read boxes, and masks where there are any, in any format that is known.

    Args:
        source: A COCO JSON file, a YOLO YAML file, or a folder in one of the layouts of ``read_coco_folder``,
            ``read_voc_boxes`` and ``read_yolo``.
        format: ``coco``, ``voc`` or ``yolo``; by default what ``source`` looks like.
        image_root: Where file names of a COCO file start.
        class_names: All classes in the order of their ids, for VOC and YOLO; COCO files name them.
        voc_one_based: Whether VOC's coordinates count pixels from 1.
        voc_difficult: What ``difficult`` objects of VOC become.

    Returns:
        The records (see ``read_coco``) and class names.

    Raises:
        UserError: If something is missing.
        UserError: If ``source`` looks like no format or several, an argument does not belong to its format, or the
            data are not as the reader of the format wants them.
    """
    source = Path(source)
    if format is None:
        format = find_format(source)
    elif format not in get_args(Format):
        raise UserError(f"The format is '{format}'; it must be {', '.join(get_args(Format))}, or left out.")
    if image_root is not None and format != "coco":
        raise UserError(f"image_root is set, but '{source}' is read as {format}; only COCO files have one.")
    if class_names is not None and format == "coco":
        raise UserError(f"class_names is set, but '{source}' is read as coco, which names its categories itself.")
    if format == "voc":
        return read_voc_boxes(source, class_names, one_based=voc_one_based, difficult=voc_difficult)
    if format == "yolo":
        return read_yolo(source, class_names)
    return read_coco_folder(source, image_root) if source.is_dir() else read_coco(source, image_root)


def find_format(source: str | Path) -> Format:
    """Tell by the files which format this is.

    Raises:
        UserError: If there is no such file or folder.
        UserError: If it looks like none, or like several.
    """
    source = Path(source)
    if not source.exists():
        raise UserError(f"'{source}' does not exist (looked in {Path.cwd()}).")
    if source.is_file():
        known: dict[str, Format] = {".json": "coco", ".yaml": "yolo", ".yml": "yolo"}
        if source.suffix.lower() not in known:
            raise UserError(f"'{source}' is neither a folder, nor a COCO file (.json), nor a YOLO data set (.yaml).")
        return known[source.suffix.lower()]
    signs: dict[Format, tuple[str, ...]] = {
        "coco": ("annotations/*.json", "*/_annotations.coco.json"),
        "voc": ("Annotations/*.xml", "*.xml", "train/*.xml", "val*/*.xml", "test/*.xml"),
        "yolo": ("data.y*ml", "dataset.y*ml", "labels/**/*.txt", "train/labels", "val*/labels", "test/labels"),
    }
    found = [name for name, patterns in signs.items() if any(next(source.glob(p), None) for p in patterns)]
    if len(found) != 1:
        like = f"like {' and '.join(found)} at once" if found else "like none of coco, voc and yolo"
        raise UserError(
            f"'{source}' looks {like}. Say which it is (data.format, or convert's --from), or give the JSON or YAML"
            " file itself. COCO has annotations/*.json, VOC has Annotations/*.xml or XML files beside the images, YOLO"
            " has labels/*.txt."
        )
    return found[0]


def check_boxes(
    records: Sequence[Record], policy: Policy, num_classes: int | None = None, setting: str = "data.check_boxes"
) -> tuple[list[Record], BoxReport]:
    """Find boxes that cannot be right; refuse, mend or drop them.

    A box is wrong if a coordinate is NaN or infinite, its class is not one of the K, it is inverted, it has no area, or
    it sticks out of its image by more than ``TOLERANCE``. What sticks out by less is clipped under every policy, and
    not reported. An image that loses all its boxes stays, as one without objects.

    ``fix`` swaps inverted corners and clips to the image; it drops what cannot be mended: not finite, of no class,
    without area (after clipping, too). ``drop`` drops all wrong boxes.

    The ``area`` of a changed box becomes its own, where there is no mask; masks and their areas stay as they are.

    Args:
        records: Detection records (see ``datamodules.readers.coco``) with ``height`` and ``width``; not changed.
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
    boxes = np.concatenate([r["boxes"] for r in records])
    labels = np.concatenate([r["labels"] for r in records])
    sizes = np.array([(r["width"], r["height"]) for r in records], np.float32)

    finite = np.isfinite(boxes).all(1)
    no_class = (labels < 0) if num_classes is None else (labels < 0) | (labels >= num_classes)
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
    owner = np.repeat(np.arange(len(records)), numbers)
    first = np.cumsum([0, *numbers])
    bad = np.flatnonzero(reason >= 0)
    examples = []
    for i in bad[:_LISTED].tolist():
        record = records[owner[i]]
        examples.append(f"{_describe(record, i - int(first[owner[i]]))}: {REASONS[reason[i]]}")
    counts = {text: n for k, text in enumerate(REASONS) if (n := int((reason == k).sum()))}
    if policy == "error" and len(bad):
        shown = "".join(f"\n  {example}" for example in examples)
        more = f"\n  ... and {len(bad) - _LISTED:,} more" if len(bad) > _LISTED else ""
        raise UserError(
            f"{len(bad):,} of {len(boxes):,} boxes cannot be right:{shown}{more}\nCorrect them; or set {setting} to fix"
            " (clip, swap, and drop what cannot be mended) or to drop."
        )
    keep = reason < 0 if policy == "drop" else finite & ~no_class & (area > 0)
    changed = keep & (clipped != boxes).any(1)
    out = list(records)
    for k in np.unique(owner[changed | ~keep]).tolist():
        part = slice(first[k], first[k + 1])
        out[k] = _rewrite(records[k], clipped[part], area[part], changed[part], keep[part])
    return out, BoxReport(len(boxes), counts, int((changed & (reason >= 0)).sum()), int((~keep).sum()), examples)


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
    kept = np.flatnonzero(keep)
    for key in PER_BOX:
        if new.get(key) is not None:
            new[key] = [new[key][i] for i in kept] if isinstance(new[key], list) else new[key][kept]
    return new


def _describe(record: Record, i: int) -> str:
    """``FILE, annotation 7 ('IMAGE', 640 x 480): x1 y1 x2 y2 = 1 2 3 4, class 0``; VOC has objects, YOLO lines."""
    file = Path(record["annotation_file"])
    unit = _UNITS.get(file.suffix.lower(), "annotation")
    corners = " ".join(f"{value:g}" for value in record["boxes"][i].tolist())
    return (
        f"{file}, {unit} {int(record['annotation_ids'][i])} ('{Path(record['path']).name}', {record['width']} x"
        f" {record['height']}): x1 y1 x2 y2 = {corners}, class {int(record['labels'][i])}"
    )
