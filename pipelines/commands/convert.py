"""The command ``convert``: boxes and masks from one format of annotations to another."""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args
from xml.etree import ElementTree

import yaml

from datamodules.annotations.boxes import Policy, check_boxes, check_sizes
from datamodules.annotations.records import Record
from datamodules.common.errors import UserError
from datamodules.readers.box_sources import Format, read_boxes
from datamodules.readers.voc_boxes import CLASSES_FILE, Difficult
from datamodules.splits import common_folder
from pipelines.listing import PROGRAM

Images = Literal["link", "copy", "none"]
SPLITS = ("train", "val", "test")


def convert(
    source: str | Path,
    to: Format,
    output: str | Path,
    *,
    splits: Sequence[str] = (),
    format: Format | None = None,
    images: Images = "link",
    policy: Policy = "error",
    image_root: str | Path | None = None,
    class_names: list[str] | None = None,
    voc_one_based: bool = True,
    voc_difficult: Difficult = "ignore",
) -> list[str]:
    """Read a data set of boxes and write it in another format, or in the same.

    Coordinates are written to a thousandth of a pixel (YOLO: eight digits of the image's size). Images without objects
    are kept, and so are names and order of the classes; VOC, which has no place for an order, gets a ``classes.txt``.
    Crowd regions become ``difficult`` in VOC and the other way round. What the new format cannot hold is said.

    An image without a split becomes one of ``train`` where others have a split.

    Args:
        source: See ``datamodules.annotations.boxes.read_boxes``, also for the arguments that are not named here.
        to: ``coco``: ``annotations/instances_SPLIT.json`` and ``images/SPLIT``; ``voc``: ``Annotations``,
            ``JPEGImages`` and ``ImageSets/Main``; ``yolo``: ``data.yaml``, ``images/SPLIT`` and ``labels/SPLIT``.
        output: A folder that does not exist, or is empty. It appears when it is complete.
        splits: Only these; all by default.
        format: Of the source; by default what it looks like.
        images: Put symbolic links to the images or copies of them beside the annotations, or nothing. Without images
            the file names of COCO start at the folder that all images have in common.
        policy: What is done with boxes that cannot be right; see ``datamodules.annotations.boxes.check_boxes``.
        image_root: Where file names of a COCO source start.
        class_names: Of a VOC or YOLO source.
        voc_one_based: Whether VOC's coordinates count pixels from 1, read or written.
        voc_difficult: What VOC's ``difficult`` objects become.

    Returns:
        Lines for the user: what was written, what was done with wrong boxes, what could not be kept.

    Raises:
        UserError: If ``output`` holds something.
        UserError: If something of the source is missing.
        UserError: If the source cannot be read, has no such split, or two images would get one name.
    """
    output = Path(output)
    if to not in get_args(Format):
        raise UserError(f"The target format is '{to}'; it must be {', '.join(get_args(Format))}.")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"'{output}' is there already and is not overwritten. Remove it, or choose another folder.")
    listing = read_boxes(
        source,
        format,
        image_root=image_root,
        class_names=class_names,
        voc_one_based=voc_one_based,
        voc_difficult=voc_difficult,
    )
    records, names = listing.records, listing.class_names
    lines, losses = [], []
    if splits:
        have = sorted({str(r["split"]) for r in records})
        if missing := [s for s in splits if s not in have]:
            raise UserError(f"'{source}' has no split {', '.join(missing)}; it has {', '.join(have)}.")
        records = [r for r in records if r["split"] in splits]
    records = check_sizes(records)
    records, report = check_boxes(records, policy, len(names), "--check-boxes")
    if report.counts:
        lines.append(f"wrong boxes: {report}")
    unsplit = sum(r["split"] is None for r in records)
    if 0 < unsplit < len(records):
        records = [{**r, "split": r["split"] or "train"} for r in records]
        losses.append(f"{unsplit} images without a split became train")
    files = _file_names([r["path"] for r in records])
    partial = output.parent / f".{output.name}.partial"
    if partial.exists():
        shutil.rmtree(partial)  # what a killed run has left
    partial.mkdir(parents=True)
    try:
        if to == "coco":
            losses += _write_coco(partial, records, files, names, listing.class_ids, images)
        elif to == "voc":
            losses += _write_voc(partial, records, files, names, float(voc_one_based))
        else:
            losses += _write_yolo(partial, records, files, names)
        for record, file in zip(records, files, strict=True):
            place = partial / (Path("JPEGImages", file) if to == "voc" else _image_place(record, file))
            if images != "none":
                place.parent.mkdir(parents=True, exist_ok=True)
                _place(record["path"], place, images)
        if output.exists():
            output.rmdir()
        partial.rename(output)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    per_split = Counter(r["split"] or "unsplit" for r in records)
    parts = ", ".join(f"{name} {count}" for name, count in per_split.items())
    boxes, negatives = sum(len(r["boxes"]) for r in records), sum(not len(r["boxes"]) for r in records)
    lines.insert(
        0,
        f"{output}: {len(records)} images ({parts}; {negatives} without objects), {boxes:,} boxes,"
        f" {len(names)} classes as {to}",
    )
    if images == "none" and to == "coco":
        lines.append(f"file names start at '{common_folder(r['path'] for r in records)}': give it as image_root")
    if losses:
        lines.append(f"not kept as it was: {'; '.join(losses)}")
    return lines


def _file_names(paths: list[str]) -> list[str]:
    """A name for each image, without folders: its own, or with its folders' names where two would be equal."""
    names = [os.path.basename(p) for p in paths]
    if len({os.path.splitext(n)[0] for n in names}) < len(names):
        top = common_folder(paths)
        names = [os.path.relpath(p, top or None).replace(os.sep, "_") for p in paths]
    stems = Counter(os.path.splitext(n)[0] for n in names)
    if twice := next((stem for stem, count in stems.items() if count > 1), None):
        both = [p for p, n in zip(paths, names, strict=True) if os.path.splitext(n)[0] == twice][:2]
        raise UserError(f"'{both[0]}' and '{both[1]}' would both be named '{twice}'; rename one of them.")
    return names


def _image_place(record: Record, file: str) -> Path:
    return Path("images", record["split"] or "", file)


def _place(path: str, place: Path, images: Images) -> None:
    if images == "copy":
        shutil.copy2(path, place)
    else:
        place.symlink_to(os.path.realpath(path))


def _by_split(records: list[Record]) -> dict[str | None, list[int]]:
    found: dict[str | None, list[int]] = {}
    for i, record in enumerate(records):
        found.setdefault(record["split"], []).append(i)
    return found


def _some(*counts: tuple[int, str]) -> list[str]:
    return [f"{count:,} {what}" for count, what in counts if count]


def _count_masks(records: list[Record]) -> int:
    return sum(mask is not None for r in records for mask in r["segmentation"] or ())


def _write_coco(
    root: Path, records: list[Record], files: list[str], names: list[str], ids: list[int] | None, images: Images
) -> list[str]:
    """COCO's JSON, one file a split; ids of a COCO source are kept."""
    (root / "annotations").mkdir()
    ids = ids or list(range(1, len(names) + 1))
    categories = [{"id": i, "name": name, "supercategory": ""} for i, name in zip(ids, names, strict=True)]
    top = common_folder(r["path"] for r in records)
    for split, members in _by_split(records).items():
        own = [records[i] for i in members]
        numbers = [n for r in own for n in r["annotation_ids"].tolist()]
        keep = all("image_id" in r for r in own) and len(set(numbers)) == len(numbers) and min(numbers, default=0) >= 0
        entries: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for i in members:
            record = records[i]
            image_id = record.get("image_id", len(entries) + 1)
            name = files[i] if images != "none" else os.path.relpath(record["path"], top or None)
            size = {"width": record["width"], "height": record["height"]}
            entries.append({"id": image_id, "file_name": name, **size})
            masks = record["segmentation"] or [None] * len(record["boxes"])
            for k, (x1, y1, x2, y2) in enumerate(record["boxes"].tolist()):
                annotations.append(
                    {
                        "id": numbers[len(annotations)] if keep else len(annotations) + 1,
                        "image_id": image_id,
                        "category_id": ids[record["labels"][k]],
                        "bbox": [round(v, 3) for v in (x1, y1, x2 - x1, y2 - y1)],
                        "area": round(float(record["area"][k]), 3),
                        "iscrowd": int(record["iscrowd"][k]),
                        "segmentation": _plain(masks[k]),
                    }
                )
        data = {"images": entries, "annotations": annotations, "categories": categories}
        file = root / "annotations" / (f"instances_{split}.json" if split else "instances.json")
        file.write_text(json.dumps(data), encoding="utf-8")
    return []


def _plain(mask: Any) -> Any:
    """A mask as JSON holds it; an empty list for none, which other readers expect."""
    if isinstance(mask, dict) and isinstance(mask["counts"], bytes):
        return {**mask, "counts": mask["counts"].decode()}
    return mask or []


def _write_voc(root: Path, records: list[Record], files: list[str], names: list[str], offset: float) -> list[str]:
    (root / "Annotations").mkdir()
    (root / CLASSES_FILE).write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    points = 0
    for record, file in zip(records, files, strict=True):
        top = ElementTree.Element("annotation")
        size = {"width": record["width"], "height": record["height"], "depth": 3}
        _fill(top, {"folder": "JPEGImages", "filename": file, "size": size, "segmented": 0})
        for i, (x1, y1, x2, y2) in enumerate(record["boxes"].tolist()):
            corners = [_short(v) for v in (x1 + offset, y1 + offset, x2, y2)]
            points += corners[:2] == corners[2:]
            hard = int(record["iscrowd"][i])
            thing = {"name": names[record["labels"][i]], "pose": "Unspecified", "truncated": 0, "difficult": hard}
            box = dict(zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True))
            _fill(ElementTree.SubElement(top, "object"), {**thing, "bndbox": box})
        ElementTree.indent(top)
        xml = root / "Annotations" / f"{os.path.splitext(file)[0]}.xml"
        xml.write_text(ElementTree.tostring(top, encoding="unicode") + "\n", encoding="utf-8")
    for split, members in _by_split(records).items():
        if split is not None:
            lists = root / "ImageSets" / "Main"
            lists.mkdir(parents=True, exist_ok=True)
            stems = "".join(f"{os.path.splitext(files[i])[0]}\n" for i in members)
            (lists / f"{split}.txt").write_text(stems, encoding="utf-8")
    return _some(
        (_count_masks(records), "masks"),
        (sum(int(r["iscrowd"].sum()) for r in records), "crowd regions became difficult objects"),
        (points, "boxes of one pixel, which will read as boxes without area"),
        (sum("image_id" in r for r in records), "images' and their annotations' and categories' ids"),
    )


def _fill(element: ElementTree.Element, values: dict[str, Any]) -> None:
    for key, value in values.items():
        child = ElementTree.SubElement(element, key)
        if isinstance(value, dict):
            _fill(child, value)
        else:
            child.text = str(value)


def _short(value: float) -> str:
    """Up to three decimals; most files hold integers, and some programs read nothing else."""
    return f"{value:.3f}".rstrip("0").rstrip(".")


def _write_yolo(root: Path, records: list[Record], files: list[str], names: list[str]) -> list[str]:
    crowds = boxed = 0
    for record, file in zip(records, files, strict=True):
        lines = []
        height, width = record["height"], record["width"]
        masks = record["segmentation"] or [None] * len(record["boxes"])
        for i, (x1, y1, x2, y2) in enumerate(record["boxes"].tolist()):
            if record["iscrowd"][i]:
                crowds += 1
                continue
            mask = masks[i]
            polygon = mask[0] if isinstance(mask, list) and len(mask) == 1 and len(mask[0]) >= 6 else None
            boxed += mask is not None and polygon is None
            numbers: Iterable[float] = (
                [(x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height]
                if polygon is None
                else [v / (height if k % 2 else width) for k, v in enumerate(polygon)]
            )
            lines.append(" ".join([str(int(record["labels"][i])), *(f"{n:.8f}" for n in numbers)]) + "\n")
        label = root / "labels" / (record["split"] or "") / f"{os.path.splitext(file)[0]}.txt"
        label.parent.mkdir(parents=True, exist_ok=True)
        label.write_text("".join(lines), encoding="utf-8")
    found = [s for s in SPLITS if s in _by_split(records)]
    if found:
        data: dict[str, Any] = {s: f"images/{s}" for s in found}
        data["names"] = dict(enumerate(names))
        text = yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
        (root / "data.yaml").write_text(text, encoding="utf-8")
    else:  # a YAML file would make training images of them
        (root / CLASSES_FILE).write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    return _some(
        (crowds, "crowd regions were left out"),
        (boxed, "masks of several parts or run lengths became boxes"),
        (sum("image_id" in r for r in records), "images' and their annotations' and categories' ids"),
    )


def main(args: list[str]) -> int:
    """Run the command.

    Args:
        args: The words after ``convert``.

    Returns:
        The exit status: 0, 1 if it cannot be done, 2 for wrong usage.
    """
    parser = argparse.ArgumentParser(
        prog=f"{PROGRAM} convert",
        description="Convert boxes and instance masks between COCO JSON, Pascal VOC XML and YOLO text.",
    )
    parser.add_argument("--source", required=True, help="a COCO .json, a YOLO .yaml, or a folder of any of the three")
    parser.add_argument("--to", required=True, choices=get_args(Format))
    parser.add_argument("--output", required=True, metavar="DIR", help="a new folder")
    parser.add_argument("--split", nargs="+", choices=SPLITS, default=(), help="only these splits")
    parser.add_argument(
        "--from", dest="format", choices=get_args(Format), help="what the source is, if it is not clear"
    )
    parser.add_argument("--images", choices=get_args(Images), default="link", help="how images get there (link)")
    parser.add_argument(
        "--check-boxes", choices=get_args(Policy), default="error", help="what is done with impossible boxes (error)"
    )
    parser.add_argument("--image-root", metavar="DIR", help="where file names of a COCO source start")
    parser.add_argument("--class-names", nargs="+", metavar="NAME", help="classes of a VOC or YOLO source, in order")
    parser.add_argument("--voc-zero-based", action="store_true", help="VOC's coordinates count from 0, not from 1")
    parser.add_argument(
        "--voc-difficult",
        choices=get_args(Difficult),
        default="ignore",
        help="VOC's difficult objects (ignore: crowds)",
    )
    try:
        # As in the other commands, words may be joined by _.
        given = parser.parse_args([re.sub(r"^--[a-z_]+", lambda m: m[0].replace("_", "-"), word) for word in args])
    except SystemExit as stop:
        return int(stop.code or 0)
    try:
        lines = convert(
            given.source,
            given.to,
            given.output,
            splits=given.split,
            format=given.format,
            images=given.images,
            policy=given.check_boxes,
            image_root=given.image_root,
            class_names=given.class_names,
            voc_one_based=not given.voc_zero_based,
            voc_difficult=given.voc_difficult,
        )
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print("\n".join(lines))
    return 0
