"""COCO JSON as semantic masks: one class a pixel, or one channel a class."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from datamodules.annotations.records import Listing, Record
from datamodules.common import rle
from datamodules.common.errors import UserError
from datamodules.decoding.images import read_image
from datamodules.readers.coco import read_coco, read_coco_folder

BACKGROUND = "background"


def read_coco_masks(
    source: str | Path,
    class_names: list[str] | None = None,
    *,
    multi_label: bool = False,
    image_root: str | Path | None = None,
) -> Listing:
    """Read COCO's polygons and run lengths, for semantic segmentation.

    Class 0 is the background, 1..K the categories in the order of their ids. An object in front is not known to COCO:
    the larger ones are painted first, so that the smaller ones stay visible. Crowd regions become 255 where no object
    lies. With ``multi_label`` there is no background class, and each category has its own channel.

    Args:
        source: A JSON file, or a folder with ``annotations/instances_{train,val,test}.json`` and ``images/``.
        class_names: Only these categories, in this order, after the background (which may be named first, except with
            ``multi_label``); the others count as background.
        multi_label: Keep overlaps.
        image_root: Where file names start, see ``read_coco``.

    Returns:
        Records with ``mask``, a dict that ``annotations.shapes.render_shapes`` paints.

    Raises:
        UserError: If there is no such file or an image is missing.
        UserError: If the JSON is not as it should be, a category is unknown, or an annotation has no mask or one of
            another size than its image.
    """
    source = Path(source)
    listing = read_coco(source, image_root) if source.is_file() else read_coco_folder(source, image_root)
    wanted = _wanted(listing.class_names, class_names, multi_label=multi_label, source=source)
    first = 0 if multi_label else 1
    class_of = {listing.class_names.index(name): first + i for i, name in enumerate(wanted)}
    if not multi_label and BACKGROUND in listing.class_names:  # a category of that name is class 0
        class_of[listing.class_names.index(BACKGROUND)] = 0
    records: list[Record] = [
        {"image": r["image"], "path": r["path"], "mask": _shapes(r, class_of), "split": r["split"]}
        for r in listing.records
    ]
    return Listing(records, wanted if multi_label else [BACKGROUND, *wanted], notes=listing.notes)


def _wanted(categories: list[str], class_names: list[str] | None, *, multi_label: bool, source: Path) -> list[str]:
    """The categories that become classes, without the background."""
    wanted = categories if class_names is None else class_names
    if class_names is not None and not multi_label and class_names[:1] == [BACKGROUND]:
        wanted = class_names[1:]
    unknown = [name for name in wanted if name not in categories]
    if unknown:
        raise UserError(f"data.class_names lists {unknown}, which '{source}' does not have; it has {categories}.")
    return [name for name in wanted if multi_label or name != BACKGROUND]


class _Shape(NamedTuple):
    """One object, as it is painted."""

    in_front: bool  # of crowds
    area: float
    counts: bytes
    class_: int  # crowds: -1 - class


def _shapes(record: Record, class_of: dict[int, int]) -> dict[str, Any]:
    """A record's annotations in the order of painting: crowds first, then from large to small."""
    from faster_coco_eval.core import mask as library  # a compiled library; only COCO's masks need it

    height, width = record["height"], record["width"]
    if not height or not width:
        height, width = read_image(record["image"]).shape[:2]
    masks = record["segmentation"] or [None] * len(record["labels"])
    shapes = []
    for i, mask in enumerate(masks):
        label = int(record["labels"][i])
        if label not in class_of:
            continue
        run, area = _run(record, i, mask, (height, width))
        if area:
            crowd, class_ = bool(record["iscrowd"][i]), class_of[label]
            shapes.append(_Shape(not crowd, area, run, -1 - class_ if crowd else class_))
    shapes.sort(key=lambda shape: (shape.in_front, -shape.area))
    counts: list[bytes] = []
    classes: list[int] = []
    for class_, group in groupby(shapes, key=lambda shape: shape.class_):  # what is painted alike in turn, as one
        runs: list[dict[str, Any]] = [{"size": [height, width], "counts": shape.counts} for shape in group]
        counts.append(library.merge(runs)["counts"] if len(runs) > 1 else runs[0]["counts"])
        classes.append(class_)
    return {"size": (height, width), "counts": counts, "classes": classes}


def _run(record: Record, i: int, mask: Any, size: tuple[int, int]) -> tuple[bytes, float]:
    """Compressed run lengths of an annotation's mask, and its area in pixels."""
    where = f"Image '{record['path']}', annotation {int(record['annotation_ids'][i])}:"
    if mask is None:
        raise UserError(
            f"{where} it has a box but no mask ('segmentation'), or one of fewer than three corners. Remove it, or"
            " train a detector on the boxes."
        )
    try:
        run = rle.verified(mask, *size)
        return run["counts"], float(rle.area(run))
    except Exception as error:  # whatever the compiled code makes of a damaged mask
        raise UserError(f"{where} its segmentation cannot be read ({error}).") from error
