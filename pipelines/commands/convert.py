"""The command ``convert``: boxes and masks from one format of annotations to another."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, get_args

from datamodules.annotations.boxes import Policy, check_boxes, check_sizes
from datamodules.annotations.records import Record
from datamodules.common.errors import UserError
from datamodules.decoding.shards import is_shards
from datamodules.readers.box_sources import Format, read_boxes
from datamodules.readers.voc_boxes import Difficult
from datamodules.splits import common_folder
from pipelines.commands.conversions import SPLITS, DataSet, stem, write_coco, write_voc, write_yolo
from pipelines.listing import PROGRAM

Target = Literal["coco", "voc", "yolo"]
Images = Literal["link", "copy", "none"]
_WRITERS = {"coco": write_coco, "voc": write_voc, "yolo": write_yolo}


def convert(
    source: str | Path,
    to: Target,
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
        source: See ``datamodules.readers.box_sources.read_boxes``, also for the arguments that are not named here.
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
        UserError: If ``output`` holds something, the source is missing or cannot be read or has no such split, or two
            images would get one name.
    """
    output = Path(output)
    if to not in get_args(Target):
        raise UserError(f"The target format is '{to}'; it must be {', '.join(get_args(Target))}.")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"'{output}' is there already and is not overwritten. Remove it, or choose another folder.")
    if is_shards(str(source)):
        raise UserError(f"'{source}' is tar shards, whose pictures cannot be linked: unpack them with tar -xf.")
    listing = read_boxes(
        source,
        format,
        image_root=image_root,
        class_names=class_names,
        voc_one_based=voc_one_based,
        voc_difficult=voc_difficult,
    )
    records = check_sizes(_of_splits(listing.records, splits, source))
    records, report = check_boxes(records, policy, len(listing.class_names), "--check_boxes")
    records, losses = _with_splits(records)
    files = _file_names([r["path"] for r in records])
    data = DataSet(records, files, listing.class_names, listing.class_ids, images != "none", voc_one_based)
    with _new_folder(output) as root:
        losses += _WRITERS[to](root, data)
        if images != "none":
            _place_images(root, data, images, to)
    lines = [_summary(output, data, to), *listing.notes]
    if report.counts:
        lines.append(f"wrong boxes: {report}")
    if images == "none" and to == "coco":
        lines.append(f"file names start at '{common_folder(r['path'] for r in records)}': give it as image_root")
    if losses:
        lines.append(f"not kept as it was: {'; '.join(losses)}")
    return lines


def _of_splits(records: list[Record], splits: Sequence[str], source: str | Path) -> list[Record]:
    """The records of these splits; all where none is named."""
    if not splits:
        return records
    have = sorted({str(record["split"]) for record in records})
    missing = [split for split in splits if split not in have]
    if missing:
        raise UserError(f"'{source}' has no split {', '.join(missing)}; it has {', '.join(have)}.")
    return [record for record in records if record["split"] in splits]


def _with_splits(records: list[Record]) -> tuple[list[Record], list[str]]:
    """Images without a split become training images where others have one; and what is said of it."""
    unsplit = sum(record["split"] is None for record in records)
    if unsplit in (0, len(records)):
        return records, []
    split = [{**record, "split": record["split"] or "train"} for record in records]
    return split, [f"{unsplit} images without a split became train"]


def _summary(output: Path, data: DataSet, to: str) -> str:
    per_split = Counter(record["split"] or "unsplit" for record in data.records)
    counts = ", ".join(f"{name} {count}" for name, count in per_split.items())
    boxes = sum(len(record["boxes"]) for record in data.records)
    empty = sum(not len(record["boxes"]) for record in data.records)
    return (
        f"{output}: {len(data.records)} images ({counts}; {empty} without objects), {boxes:,} boxes,"
        f" {len(data.class_names)} classes as {to}"
    )


@contextmanager
def _new_folder(output: Path) -> Iterator[Path]:
    """A folder beside ``output`` that takes its place when the block ends, and is removed when it raises."""
    partial = output.parent / f".{output.name}.partial"
    if partial.exists():
        shutil.rmtree(partial)  # what a killed run has left
    partial.mkdir(parents=True)
    try:
        yield partial
        if output.exists():
            output.rmdir()
        partial.rename(output)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _file_names(paths: list[str]) -> list[str]:
    """A name for each image, without folders: its own, or with its folders' names where two would be equal."""
    names = [os.path.basename(path) for path in paths]
    if len({stem(name) for name in names}) < len(names):
        top = common_folder(paths)
        names = [os.path.relpath(path, top or None).replace(os.sep, "_") for path in paths]
    stems = Counter(stem(name) for name in names)
    twice = next((name for name, count in stems.items() if count > 1), None)
    if twice is not None:
        both = [path for path, name in zip(paths, names, strict=True) if stem(name) == twice][:2]
        raise UserError(f"'{both[0]}' and '{both[1]}' would both be named '{twice}'; rename one of them.")
    return names


def _place_images(root: Path, data: DataSet, images: Images, to: str) -> None:
    for i, record in enumerate(data.records):
        place = root / (Path("JPEGImages", data.files[i]) if to == "voc" else data.image_place(i))
        place.parent.mkdir(parents=True, exist_ok=True)
        _place(record["path"], place, images)


def _place(path: str, place: Path, images: Images) -> None:
    if images == "copy":
        shutil.copy2(path, place)
    else:
        place.symlink_to(os.path.realpath(path))


def _joined(flag: str) -> str:
    """``--image-root`` as ``--image_root``."""
    return "--" + flag.removeprefix("--").replace("-", "_")


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
    parser.add_argument("--to", required=True, choices=get_args(Target))
    parser.add_argument("--output", required=True, metavar="DIR", help="a new folder")
    parser.add_argument("--split", nargs="+", choices=SPLITS, default=(), help="only these splits")
    # What a datamodule has, too, is called as there.
    parser.add_argument("--format", choices=get_args(Format), help="what the source is, if it is not clear")
    parser.add_argument("--images", choices=get_args(Images), default="link", help="how images get there (link)")
    parser.add_argument(
        "--check_boxes", choices=get_args(Policy), default="error", help="what is done with impossible boxes (error)"
    )
    parser.add_argument("--image_root", metavar="DIR", help="where file names of a COCO source start")
    parser.add_argument("--class_names", nargs="+", metavar="NAME", help="classes of a VOC or YOLO source, in order")
    parser.add_argument(
        "--voc_one_based",
        choices=("true", "false"),
        default="true",
        help="whether VOC's coordinates count from 1 (true) or from 0",
    )
    parser.add_argument(
        "--voc_difficult",
        choices=get_args(Difficult),
        default="ignore",
        help="VOC's difficult objects (ignore: crowds)",
    )
    try:
        # Words may be joined by -, too.
        given = parser.parse_args([re.sub(r"^--[a-z-]+", lambda m: _joined(m[0]), word) for word in args])
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
            voc_one_based=given.voc_one_based == "true",
            voc_difficult=given.voc_difficult,
        )
    except (OSError, UserError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print("\n".join(lines))
    return 0
