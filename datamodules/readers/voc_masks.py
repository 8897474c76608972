"""PASCAL VOC's layout for segmentation: JPEGImages, SegmentationClass, ImageSets/Segmentation."""

from __future__ import annotations

import re
from pathlib import Path

from datamodules.annotations.records import Listing, Record
from datamodules.common.errors import UserError
from datamodules.readers.pairs import pair_files, stems

VOC_CLASSES = [
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
]
_VOC_NAME = re.compile(r"20(07|08|09|10|11|12)_\d{6}")
_IMAGES, _MASKS, _LISTS = "JPEGImages", "SegmentationClass", "ImageSets/Segmentation"


def is_voc(root: str | Path) -> bool:
    """Whether a folder has VOC's folders of images and class masks."""
    return all((Path(root) / name).is_dir() for name in (_IMAGES, _MASKS))


def read_voc_masks(root: str | Path) -> Listing:
    """Read ``SegmentationClass/ID.png`` with ``JPEGImages/ID.*`` for the ids of ``ImageSets/Segmentation/*.txt``.

    The lists ``train.txt``, ``val.txt`` and ``test.txt`` give the splits; others (``trainval.txt``) are taken only
    where there are none of these, and their images are to be split. Without lists every mask is taken. Images that no
    list names may be there: VOC has many without masks.

    Returns:
        Records with ``mask``, a path; VOC's 21 class names where the ids are VOC's (``2007_000032``), else none.

    Raises:
        UserError: If an image or a mask of a listed id does not exist.
        UserError: If an id is in two lists.
    """
    root = Path(root)
    images, masks = stems(root / _IMAGES), stems(root / _MASKS)
    lists = {p.stem: p for p in sorted((root / _LISTS).glob("*.txt"))}
    splits: list[str] = [split for split in ("train", "val", "test") if split in lists]
    records: list[Record] = []
    if not lists:
        with_mask = {name: path for name, path in images.items() if name in masks}
        pairs = pair_files(with_mask, masks, f"'{root / _IMAGES}' and '{root / _MASKS}'")
        records = [{"image": images[n], "path": images[n], "mask": masks[m], "split": None} for n, m in pairs.items()]
    owner: dict[str, Path] = {}
    for name in splits or sorted(lists):
        for line in lists[name].read_text().split("\n"):
            if not line.strip():
                continue
            stem = line.split()[0]
            if stem in owner:
                if splits:
                    raise UserError(f"'{stem}' is in '{owner[stem]}' and in '{lists[name]}'; remove it from one.")
                continue
            owner[stem] = lists[name]
            for found, folder in ((images, _IMAGES), (masks, _MASKS)):
                if stem not in found:
                    raise UserError(
                        f"'{lists[name]}' lists '{stem}', but '{root / folder}' has no file of that name. Add it, or"
                        " take the line out of the list."
                    )
            split = name if splits else None
            records.append({"image": images[stem], "path": images[stem], "mask": masks[stem], "split": split})
    if not records:
        raise UserError(f"The lists in '{root / _LISTS}' name no images.")
    is_original = all(_VOC_NAME.fullmatch(Path(r["path"]).stem) for r in records)
    return Listing(records, list(VOC_CLASSES) if is_original else [])
