"""Pascal VOC: one XML file an image."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt

from datamodules.annotations.records import Listing, Record, sort_classes
from datamodules.common.errors import UserError, did_you_mean
from datamodules.readers.class_files import read_class_file
from datamodules.readers.text import flag, number, parse_xml
from datamodules.readers.voc_layouts import find_pairs

Difficult = Literal["ignore", "keep", "drop"]

_LONGEST_SIDE = 1 << 31  # what is beyond is no size


def read_voc_boxes(
    root: str | Path,
    class_names: list[str] | None = None,
    *,
    one_based: bool = True,
    difficult: Difficult = "ignore",
) -> Listing:
    """Read the boxes of VOC's XML files; records as in ``datamodules.readers.coco``, without masks.

    Layouts: ``Annotations``, ``JPEGImages`` and ``ImageSets/Main/{train,val,test,trainval}.txt`` in ``root`` (without
    lists all XML files, split None; what only ``trainval`` names has split None), in any case and by the usual other
    names (``xmls``, ``images``), or the two in ``root/SPLIT``; or XML files beside the images, in ``root`` or in
    ``root/SPLIT``. An image belongs to the XML of the same name; ``path`` in it, and ``filename`` unless
    needed, are not used: both go stale. An XML without objects is an image without objects. Where XML files have a
    folder of their own, images without one are left out and counted; among images that have theirs beside them, and in
    the lists, one that is missing is an error.

    VOC counts pixels from 1, and its boxes include their last pixel. So 1 is subtracted from ``xmin`` and ``ymin``, and
    ``xmax`` and ``ymax`` stay: 1..W becomes the edges 0..W, as in detectron2 and the VOC development kit. Many tools
    write VOC files that count edges from 0: set ``one_based=False`` for them. (LabelImg writes such edges and raises 0
    to 1; the difference is a pixel.) A box whose corners are one pixel is a click, not an object, and is left
    without area for ``datamodules.annotations.boxes.check_boxes`` to find.

    ``difficult`` objects are neither trained on nor counted in evaluation (``iscrowd`` 1), as VOC's own protocol and
    mmdetection have it; they can be taken as any other (``keep``), or left out (``drop``). COCO's rule for a crowd
    is a little more generous than VOC's: a detection inside it is ignored, however much larger the crowd is.

    Args:
        root: The folder.
        class_names: All classes, in the order of their ids. By default those of ``root/classes.txt``, or else all that
            occur, sorted.
        one_based: Whether coordinates count pixels from 1.
        difficult: ``ignore``, ``keep`` or ``drop``.

    Raises:
        UserError: If the folder, a file of a list, or an image is missing.
        UserError: If an XML file is damaged, lacks a value or names an unknown class, if an image is in two splits, or
            if there is nothing to read.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"VOC folder '{root}' does not exist (looked in {Path.cwd()}).")
    if class_names is None:
        class_names = read_class_file(root)
    found, notes = find_pairs(root)

    def read(item: tuple[Path, str, str | None]) -> tuple[Record, list[str]]:
        return _read_xml(*item, offset=float(one_based), difficult=difficult)

    with ThreadPoolExecutor(8) as pool:
        parts = list(pool.map(read, found))
    names = class_names if class_names is not None else sort_classes(n for _, objects in parts for n in objects)
    if not names:
        raise UserError(f"None of the {len(parts)} XML files of '{root}' has an object; there is no class to learn.")
    for record, objects in parts:
        record["labels"] = _numbers(record, objects, names)
    return Listing([record for record, _ in parts], list(names), notes=tuple(notes))


def _numbers(record: Record, objects: list[str], names: list[str]) -> npt.NDArray[np.int64]:
    """The classes of a record's objects."""
    index = {name: i for i, name in enumerate(names)}
    for place, name in zip(record["annotation_ids"].tolist(), objects, strict=True):
        if name not in index:
            raise UserError(
                f"{record['annotation_file']}, object {place}: class '{name}' is none of"
                f" {', '.join(names)}.{did_you_mean(name, names)} Add it to the class names, or correct it."
            )
    return np.array([index[name] for name in objects], np.int64)


def _read_xml(
    xml: Path, image: str, split: str | None, *, offset: float, difficult: Difficult
) -> tuple[Record, list[str]]:
    """One record, still without labels, and the class names of its objects."""
    root = parse_xml(xml)
    height, width = (_size(root, side, xml) for side in ("height", "width"))
    names: list[str] = []
    boxes: list[list[float]] = []
    flags: list[int] = []
    numbers: list[int] = []
    for place, thing in enumerate(root.iter("object"), 1):
        where = f"{xml}, object {place}"
        hard = flag(thing.findtext("difficult"), f"{where}: difficult")
        if hard and difficult == "drop":
            continue
        name = (thing.findtext("name") or "").strip()
        if not name:
            raise UserError(f"{where}: it has no name.")
        box = thing.find("bndbox")
        if box is None:
            raise UserError(f"{where} ('{name}'): it has no 'bndbox'; only upright boxes are read.")
        names.append(name)
        boxes.append([number(box.findtext(s), f"{where} ('{name}'): {s}") for s in ("xmin", "ymin", "xmax", "ymax")])
        flags.append(int(hard and difficult == "ignore"))
        numbers.append(place)
    corners = np.array(boxes, np.float64).reshape(-1, 4)
    point = (corners[:, :2] == corners[:, 2:]).all(1, keepdims=True)
    corners[:, :2] -= np.where(point, 0, offset)
    with np.errstate(invalid="ignore"):
        area = (corners[:, 2] - corners[:, 0]) * (corners[:, 3] - corners[:, 1])
    record: Record = {
        "image": image,
        "path": image,
        "split": split,
        "height": height,
        "width": width,
        "boxes": corners.astype(np.float32),
        "labels": np.zeros(len(names), np.int64),
        "iscrowd": np.array(flags, np.uint8),
        "area": area.astype(np.float32),
        "segmentation": None,
        "annotation_ids": np.array(numbers, np.int64),
        "annotation_file": str(xml),
    }
    return record, names


def _size(root: ElementTree.Element, side: str, xml: Path) -> int:
    """Height or width of the image; 0 where the file does not say."""
    text = (root.findtext(f"size/{side}") or "").strip()
    given = number(text, f"'{xml}': the image's {side}") if text else 0
    return int(given) if 0 < given < _LONGEST_SIDE else 0
