"""Pascal VOC: one XML file an image."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt

from datamodules.annotations.records import Listing, Record, sort_classes, split_name
from datamodules.common.errors import UserError, did_you_mean
from datamodules.decoding.files import is_image_name
from datamodules.readers.class_files import read_class_file

Difficult = Literal["ignore", "keep", "drop"]


def read_voc_boxes(
    root: str | Path,
    class_names: list[str] | None = None,
    *,
    one_based: bool = True,
    difficult: Difficult = "ignore",
) -> Listing:
    """Read the boxes of VOC's XML files; records as in ``datamodules.readers.coco``, without masks.

    Layouts: ``Annotations``, ``JPEGImages`` and ``ImageSets/Main/{train,val,test,trainval}.txt`` in ``root`` (without
    lists all XML files, split None; what only ``trainval`` names has split None); or XML files beside the images, in
    ``root`` or in ``root/SPLIT``. An image belongs to the XML of the same name; ``path`` in it, and ``filename`` unless
    needed, are not used: both go stale. An XML without objects is an image without objects; one that is missing is
    an error.

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
    found = _devkit(root) if (root / "Annotations").is_dir() else _beside(root)

    def read(item: tuple[Path, str, str | None]) -> tuple[Record, list[str]]:
        return _read_xml(*item, offset=float(one_based), difficult=difficult)

    with ThreadPoolExecutor(8) as pool:
        parts = list(pool.map(read, found))
    names = class_names if class_names is not None else sort_classes(n for _, objects in parts for n in objects)
    if not names:
        raise UserError(f"None of the {len(parts)} XML files of '{root}' has an object; there is no class to learn.")
    for record, objects in parts:
        record["labels"] = _numbers(record, objects, names)
    return Listing([record for record, _ in parts], list(names))


def _numbers(record: Record, objects: list[str], names: list[str]) -> npt.NDArray[np.int64]:
    """The classes of a record's objects."""
    index = {name: i for i, name in enumerate(names)}
    for number, name in zip(record["annotation_ids"].tolist(), objects, strict=True):
        if name not in index:
            raise UserError(
                f"{record['annotation_file']}, object {number}: class '{name}' is none of"
                f" {', '.join(names)}.{did_you_mean(name, names)} Add it to the class names, or correct it."
            )
    return np.array([index[name] for name in objects], np.int64)


def _devkit(root: Path) -> list[tuple[Path, str, str | None]]:
    """(XML, image, split) of each image of VOC's own layout."""
    folder = root / "JPEGImages"
    if not folder.is_dir():
        raise UserError(f"'{root}' has Annotations, but no folder JPEGImages with the images.")
    images = _images(folder)
    xmls = {name.removesuffix(".xml") for name in os.listdir(root / "Annotations") if name.endswith(".xml")}
    lists = {name: root / "ImageSets" / "Main" / f"{name}.txt" for name in ("train", "val", "test", "trainval")}
    lists = {name: file for name, file in lists.items() if file.is_file()}
    splits = _listed(root, lists, xmls) if lists else dict.fromkeys(sorted(xmls))
    if not splits:
        raise UserError(f"'{root}' names no images: fill ImageSets/Main/train.txt, or put XML files into Annotations.")
    out = []
    for stem, split in splits.items():
        xml = root / "Annotations" / f"{stem}.xml"
        out.append((xml, _image_of(xml, stem, images, folder), split))
    return out


def _listed(root: Path, lists: dict[str, Path], xmls: set[str]) -> dict[str, str | None]:
    """Stem -> split of what the lists name; None for what only ``trainval`` names, which comes last."""
    splits: dict[str, str | None] = {}
    for name, file in lists.items():
        for line, text in enumerate(file.read_text("utf-8").splitlines(), 1):
            if not text.strip():
                continue
            stem = text.strip() if text.strip() in xmls else text.split()[0]  # lists of one class have a flag behind
            if name == "trainval":
                splits.setdefault(stem, None)
                continue
            other = splits.setdefault(stem, name)
            if other != name:
                raise UserError(f"{file}, line {line}: '{stem}' is in {other}.txt, too; remove it from one of them.")
            if stem not in xmls:
                raise UserError(
                    f"{file}, line {line}: there is no '{root / 'Annotations' / stem}.xml'. Write one (without objects,"
                    " if nothing is on the image), or remove the line."
                )
    return splits


def _beside(root: Path) -> list[tuple[Path, str, str | None]]:
    """The same of XML files that lie beside their images."""
    folders: dict[Path, str | None] = {root: None}
    folders |= {f: split_name(f.name) for f in sorted(root.iterdir()) if f.is_dir() and split_name(f.name)}
    out: list[tuple[Path, str, str | None]] = []
    for folder, split in folders.items():
        images = _images(folder)
        xmls = sorted(folder.glob("*.xml"))
        out += [(xml, _image_of(xml, xml.stem, images, folder), split) for xml in xmls]
        if xmls and (alone := sorted(images.keys() - {xml.stem for xml in xmls})):
            raise UserError(
                f"{len(alone)} image(s) in '{folder}' have no XML file, for example '{images[alone[0]][0]}'. Write one"
                " without objects if nothing is on the image, or remove it."
            )
    if not out:
        raise UserError(
            f"'{root}' holds no VOC data: expected Annotations/*.xml and JPEGImages, or XML files beside the images."
        )
    return out


def _images(folder: Path) -> dict[str, list[str]]:
    """Stem -> image files of that name."""
    images: dict[str, list[str]] = {}
    for name in sorted(os.listdir(folder)):
        if is_image_name(name):
            images.setdefault(os.path.splitext(name)[0], []).append(name)
    return images


def _image_of(xml: Path, stem: str, images: dict[str, list[str]], folder: Path) -> str:
    names = images.get(stem, [])
    if len(names) == 1:
        return os.path.join(folder, names[0])
    if not xml.is_file():
        raise UserError(f"'{xml}' does not exist, but a list in ImageSets/Main names '{stem}'.")
    filename = (_parse(xml).findtext("filename") or "").strip()
    if filename and (not names or filename in names) and (folder / filename).is_file():
        return os.path.join(folder, filename)
    if names:
        raise UserError(f"'{xml}' could belong to {' or '.join(names)} in '{folder}'; rename one.")
    raise UserError(f"'{xml}': there is no image '{stem}' (.jpg, .png, ...) in '{folder}'.")


def _parse(xml: Path) -> ElementTree.Element:
    try:
        return ElementTree.parse(xml).getroot()
    except FileNotFoundError as error:
        raise UserError(f"'{xml}' does not exist, but a list in ImageSets/Main names it.") from error
    except (ElementTree.ParseError, UnicodeDecodeError) as error:
        raise UserError(f"'{xml}' cannot be read as XML ({error}). Correct or write it again.") from error


def _read_xml(
    xml: Path, image: str, split: str | None, *, offset: float, difficult: Difficult
) -> tuple[Record, list[str]]:
    """One record, still without labels, and the class names of its objects."""
    root = _parse(xml)
    height, width = (_size(root.findtext(f"size/{side}")) for side in ("height", "width"))
    names: list[str] = []
    boxes: list[list[float]] = []
    flags: list[int] = []
    numbers: list[int] = []
    for number, thing in enumerate(root.iter("object"), 1):
        where = f"{xml}, object {number}"
        hard = (thing.findtext("difficult") or "0").strip() not in ("0", "")
        if hard and difficult == "drop":
            continue
        name = (thing.findtext("name") or "").strip()
        if not name:
            raise UserError(f"{where}: it has no name.")
        box = thing.find("bndbox")
        if box is None:
            raise UserError(f"{where} ('{name}'): it has no 'bndbox'; only upright boxes are read.")
        names.append(name)
        boxes.append([_number(box, side, f"{where} ('{name}')") for side in ("xmin", "ymin", "xmax", "ymax")])
        flags.append(int(hard and difficult == "ignore"))
        numbers.append(number)
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


def _size(text: str | None) -> int:
    try:
        return max(0, int(float(text or 0)))
    except (ValueError, OverflowError):
        return 0


def _number(box: ElementTree.Element, side: str, where: str) -> float:
    text = box.findtext(side)
    try:
        return float(text or "")
    except ValueError:
        raise UserError(
            f"{where}: {side} is {'missing' if text is None else repr(text)}; it must be a number."
        ) from None
