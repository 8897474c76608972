"""PASCAL VOC's layout for segmentation: JPEGImages, SegmentationClass, ImageSets/Segmentation."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from datamodules.annotations.records import Listing, Record
from datamodules.common.errors import UserError
from datamodules.decoding.files import left_out
from datamodules.readers.pairing import pair_files, stems
from datamodules.readers.text import read_lines

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
    others: Counter[str] = Counter()
    images, masks = stems(root / _IMAGES, others), stems(root / _MASKS, others)
    lists = {path.stem: path for path in sorted((root / _LISTS).glob("*.txt"))}
    if lists:
        records = _listed_records(root, lists, images, masks)
    else:
        with_mask = {name: path for name, path in images.items() if name in masks}
        pairs = pair_files(with_mask, masks, f"'{root / _IMAGES}' and '{root / _MASKS}'")
        records = [_record(images[image], masks[mask], None) for image, mask in pairs.items()]
    if not records:
        raise UserError(f"The lists in '{root / _LISTS}' name no images.")
    is_original = all(_VOC_NAME.fullmatch(Path(record["path"]).stem) for record in records)
    return Listing(records, list(VOC_CLASSES) if is_original else [], notes=tuple(left_out(others, root)))


def _record(image: str, mask: str, split: str | None) -> Record:
    return {"image": image, "path": image, "mask": mask, "split": split}


def _listed_records(root: Path, lists: dict[str, Path], images: dict[str, str], masks: dict[str, str]) -> list[Record]:
    """What the lists name; only those of splits where there are some."""
    splits: list[str] = [split for split in ("train", "val", "test") if split in lists]
    records: list[Record] = []
    owner: dict[str, Path] = {}
    for name in splits or sorted(lists):
        file = lists[name]
        for stem in _ids(file):
            if stem in owner and splits:
                raise UserError(f"'{stem}' is in '{owner[stem]}' and in '{file}'; remove it from one.")
            if stem in owner:
                continue
            owner[stem] = file
            _check_files(stem, file, {root / _IMAGES: images, root / _MASKS: masks})
            records.append(_record(images[stem], masks[stem], name if splits else None))
    return records


def _ids(file: Path) -> list[str]:
    """The first word of each line."""
    return [line.split()[0] for line in read_lines(file) if line]


def _check_files(stem: str, file: Path, folders: dict[Path, dict[str, str]]) -> None:
    """Refuse an id without an image or without a mask."""
    for folder, found in folders.items():
        if stem not in found:
            raise UserError(
                f"'{file}' lists '{stem}', but '{folder}' has no file of that name. Add it, or take the line out of the"
                " list."
            )
