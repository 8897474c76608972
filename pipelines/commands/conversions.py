"""A data set of boxes in each of the three formats, as ``convert`` writes it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datamodules.annotations.records import Record
from datamodules.common.files import write_text
from datamodules.readers.class_files import CLASSES_FILE
from datamodules.splits import common_folder
from pipelines.outputs.formats import coco, voc, yolo
from pipelines.outputs.formats.polygons import one_polygon

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class DataSet:
    """What is written.

    Attributes:
        records: With boxes; see ``datamodules.annotations.records``.
        files: The name that each image gets, without folders.
        class_names: K names.
        class_ids: The categories' ids of a COCO source.
        with_images: Whether the images are put beside the annotations.
        voc_one_based: Whether VOC's coordinates count pixels from 1.
    """

    records: Sequence[Record]
    files: Sequence[str]
    class_names: list[str]
    class_ids: list[int] | None
    with_images: bool
    voc_one_based: bool

    def by_split(self) -> dict[str | None, list[int]]:
        """Places of the records of each split."""
        found: dict[str | None, list[int]] = {}
        for i, record in enumerate(self.records):
            found.setdefault(record["split"], []).append(i)
        return found

    def image_place(self, i: int) -> Path:
        """Where an image goes, in COCO's and YOLO's layout."""
        return Path("images", self.records[i]["split"] or "", self.files[i])


def stem(file: str) -> str:
    """A file's name without its suffix."""
    return os.path.splitext(file)[0]


def masks_of(record: Record) -> Sequence[Any]:
    """A mask or None for each box."""
    return record["segmentation"] or [None] * len(record["boxes"])


# COCO.


def write_coco(root: Path, data: DataSet) -> list[str]:
    """``annotations/instances_SPLIT.json``; ids of a COCO source are kept.

    Returns:
        What could not be kept: nothing.
    """
    top = common_folder(record["path"] for record in data.records)
    for split, members in data.by_split().items():
        path = root / "annotations" / (f"instances_{split}.json" if split else "instances.json")
        ids = _annotation_ids([data.records[i] for i in members])
        with coco.write_coco(path, data.class_names, data.class_ids) as file:
            for count, i in enumerate(members, 1):
                record = data.records[i]
                image_id = record.get("image_id", count)
                name = data.files[i] if data.with_images else os.path.relpath(record["path"], top or None)
                file.add_image(image_id, name, (record["height"], record["width"]))
                _add_objects(file, image_id, record, ids)
    return []


def _annotation_ids(records: Sequence[Record]) -> dict[int, list[int]] | None:
    """The objects' ids by their image's, where they come from a COCO file and are distinct; None: count them."""
    if not all("image_id" in record for record in records):
        return None
    ids = {record["image_id"]: record["annotation_ids"].tolist() for record in records}
    numbers = [number for own in ids.values() for number in own]
    if len(set(numbers)) < len(numbers) or min(numbers, default=0) < 0:
        return None
    return ids


def _add_objects(file: coco.CocoFile, image_id: int, record: Record, ids: dict[int, list[int]] | None) -> None:
    masks = masks_of(record)
    for k, corners in enumerate(record["boxes"].tolist()):
        file.add_object(
            image_id,
            int(record["labels"][k]),
            coco.to_xywh(corners, coco.thousandth),
            annotation_id=None if ids is None else ids[image_id][k],
            area=coco.thousandth(float(record["area"][k])),
            is_crowd=bool(record["iscrowd"][k]),
            mask=masks[k] or [],  # other readers expect an empty list where there is no mask
        )


# Pascal VOC.


def write_voc(root: Path, data: DataSet) -> list[str]:
    """``Annotations/NAME.xml``, ``ImageSets/Main/SPLIT.txt`` and, as VOC has no place for an order, ``classes.txt``.

    Returns:
        What could not be kept.
    """
    yolo.write_class_names(root / CLASSES_FILE, data.class_names)
    points = 0
    for record, file in zip(data.records, data.files, strict=True):
        objects = _voc_objects(record, data)
        points += sum(list(thing.corners[:2]) == list(thing.corners[2:]) for thing in objects)
        path = root / "Annotations" / f"{stem(file)}.xml"
        voc.write_xml(path, file, (record["height"], record["width"]), objects)
    for split, members in data.by_split().items():
        if split is not None:
            names = "".join(f"{stem(data.files[i])}\n" for i in members)
            write_text(root / "ImageSets" / "Main" / f"{split}.txt", names)
    masks = sum(mask is not None for record in data.records for mask in masks_of(record))
    crowds = sum(int(record["iscrowd"].sum()) for record in data.records)
    return _losses(
        (masks, "masks"),
        (crowds, "crowd regions became difficult objects"),
        (points, "boxes of one pixel, which will read as boxes without area"),
        (_coco_images(data), "images' and their annotations' and categories' ids"),
    )


def _voc_objects(record: Record, data: DataSet) -> list[voc.VocObject]:
    return [
        voc.VocObject(
            data.class_names[record["labels"][k]],
            voc.corner_texts(corners, one_based=data.voc_one_based),
            bool(record["iscrowd"][k]),
        )
        for k, corners in enumerate(record["boxes"].tolist())
    ]


# YOLO.


def write_yolo(root: Path, data: DataSet) -> list[str]:
    """``labels/SPLIT/NAME.txt`` and ``data.yaml``.

    Returns:
        What could not be kept.
    """
    changed: Counter[str] = Counter()
    for record, file in zip(data.records, data.files, strict=True):
        path = root / "labels" / (record["split"] or "") / f"{stem(file)}.txt"
        yolo.write_labels(path, _yolo_lines(record, changed))
    splits = [split for split in SPLITS if split in data.by_split()]
    if splits:
        yolo.write_data_yaml(root / "data.yaml", splits, data.class_names)
    else:  # a YAML file would make training images of them
        yolo.write_class_names(root / CLASSES_FILE, data.class_names)
    return _losses(
        (changed["crowd"], "crowd regions were left out"),
        (changed["joined"], "masks of several parts or run lengths became one polygon each"),
        (changed["empty"], "masks without a pixel became boxes"),
        (changed["extent"], "boxes became the extent of their polygons, which is another by more than a pixel"),
        (_coco_images(data), "images' and their annotations' and categories' ids"),
    )


def _yolo_lines(record: Record, changed: Counter[str]) -> list[str]:
    """The lines of an image's objects; counts what is not kept."""
    size = (record["height"], record["width"])
    masks = masks_of(record)
    lines = []
    for k, corners in enumerate(record["boxes"].tolist()):
        if record["iscrowd"][k]:
            changed["crowd"] += 1
            continue
        mask = masks[k]
        polygon = None if mask is None else one_polygon(mask, *size)
        if polygon is not None:
            changed["joined"] += isinstance(mask, dict) or len(mask) > 1
            changed["extent"] += _is_other_box(corners, polygon)
        elif mask is not None:
            changed["empty"] += 1
        lines.append(yolo.object_line(int(record["labels"][k]), corners, size, polygon))
    return lines


def _is_other_box(corners: list[float], polygon: list[float]) -> bool:
    """Whether a box differs from the extent of its polygon, which is all that YOLO's line of a polygon says."""
    extent = [min(polygon[::2]), min(polygon[1::2]), max(polygon[::2]), max(polygon[1::2])]
    return any(abs(a - b) > 1 for a, b in zip(corners, extent, strict=True))


def _losses(*counts: tuple[int, str]) -> list[str]:
    return [f"{count:,} {what}" for count, what in counts if count]


def _coco_images(data: DataSet) -> int:
    return sum("image_id" in record for record in data.records)
