"""COCO JSON as semantic masks: one class a pixel, or one channel a class."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import Any

from datamodules.annotations.records import Listing, Record
from datamodules.common import rle
from datamodules.common.errors import UserError
from datamodules.decoding.images import read_image
from datamodules.readers.coco import read_coco, read_coco_folder

BACKGROUND = "background"


def read_coco_masks(source: str | Path, class_names: list[str] | None = None, *, multi_label: bool = False) -> Listing:
    """Read COCO's polygons and run lengths, for semantic segmentation.

    Class 0 is the background, 1..K the categories in the order of their ids. An object in front is not known to COCO:
    the larger ones are painted first, so that the smaller ones stay visible. Crowd regions become 255 where no object
    lies. With ``multi_label`` there is no background class, and each category has its own channel.

    Args:
        source: A JSON file, or a folder with ``annotations/instances_{train,val,test}.json`` and ``images/``.
        class_names: Only these categories, in this order, after the background (which may be named first, except with
            ``multi_label``); the others count as background.
        multi_label: Keep overlaps.

    Returns:
        Records with ``mask``: a dict of ``size`` (height, width), ``counts`` (compressed run lengths, in the order of
        painting) and ``classes`` (class of each, channel with ``multi_label``; crowds as -1 - class).

    Raises:
        UserError: If there is no such file or an image is missing.
        UserError: If the JSON is not as it should be, a category is unknown, or an annotation has no mask or one of
            another size than its image.
    """
    source = Path(source)
    listing = read_coco(source) if source.is_file() else read_coco_folder(source)
    categories = listing.class_names
    wanted = categories
    if class_names is not None:
        wanted = class_names[1:] if not multi_label and class_names[:1] == [BACKGROUND] else class_names
        if unknown := [name for name in wanted if name not in categories]:
            raise UserError(f"data.class_names lists {unknown}, which '{source}' does not have; it has {categories}.")
    first = 0 if multi_label else 1
    wanted = [name for name in wanted if multi_label or name != BACKGROUND]
    class_of = {categories.index(name): first + i for i, name in enumerate(wanted)}
    if not multi_label and BACKGROUND in categories:  # a category of that name is class 0
        class_of[categories.index(BACKGROUND)] = 0
    records: list[Record] = [
        {"image": r["image"], "path": r["path"], "mask": _shapes(r, class_of), "split": r["split"]}
        for r in listing.records
    ]
    return Listing(records, list(wanted) if multi_label else [BACKGROUND, *wanted])


def _shapes(record: Record, class_of: dict[int, int]) -> dict[str, Any]:
    """A record's annotations in the order of painting: crowds first, then from large to small."""
    from faster_coco_eval.core import mask as library  # a compiled library; only COCO's masks need it

    height, width = record["height"], record["width"]
    if not height or not width:
        height, width = read_image(record["image"]).shape[:2]
    segmentation = record["segmentation"] or [None] * len(record["labels"])
    shapes: list[tuple[bool, float, bytes, int]] = []
    for i, shape in enumerate(segmentation):
        label = int(record["labels"][i])
        if label not in class_of:
            continue
        where = f"Image '{record['path']}', annotation {int(record['annotation_ids'][i])}:"
        if shape is None:
            raise UserError(
                f"{where} it has a box but no mask ('segmentation'). Remove it, or train a detector on the boxes."
            )
        try:
            run = rle.from_segmentation(shape, height, width)
            area = float(library.area(run))
        except Exception as error:  # whatever the compiled code makes of a damaged mask
            raise UserError(f"{where} its segmentation cannot be read ({error}).") from error
        if not area:
            continue
        crowd = bool(record["iscrowd"][i])
        class_ = class_of[label]
        shapes.append((not crowd, -area, run["counts"], -1 - class_ if crowd else class_))
    shapes.sort(key=lambda s: s[:2])
    counts: list[bytes] = []
    classes: list[int] = []
    for class_, group in groupby(shapes, key=lambda s: s[3]):  # what is painted alike one after the other, as one
        runs: list[dict[str, Any]] = [{"size": [height, width], "counts": s[2]} for s in group]
        counts.append(library.merge(runs)["counts"] if len(runs) > 1 else runs[0]["counts"])
        classes.append(class_)
    return {"size": (height, width), "counts": counts, "classes": classes}


def is_coco(root: str | Path) -> bool:
    """Whether a folder holds COCO's annotation files, or Roboflow's."""
    root = Path(root)
    return any((root / "annotations").glob("*.json")) or any(root.glob("*/_annotations.coco.json"))
