"""COCO JSON: boxes, instance masks and classes in one annotation file a split."""

from __future__ import annotations

import gc
import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from datamodules.annotations.records import Listing, Record, split_name
from datamodules.common.errors import UserError
from datamodules.decoding.files import is_visible
from datamodules.decoding.sizes import image_size
from datamodules.readers.coco_images import image_index, image_paths, image_sizes
from datamodules.readers.coco_values import (
    annotation_numbers,
    crowd_of,
    load_file,
    mask_area,
    mask_box,
    mask_of,
    number_of,
    or_nan,
    read_categories,
    read_column,
    some,
    wrong_area,
    wrong_bbox,
    wrong_crowd,
)
from datamodules.readers.json_files import json_kind

_Parts: TypeAlias = tuple[list[Record], list[str], list[int]]  # records, class names, their ids in the file

_SPLIT_FILE = re.compile(r"(?:instances_)?([a-z]+)[-_]?\d*", re.IGNORECASE)
_ROBOFLOW = "_annotations.coco.json"  # lies beside the images of each split folder
_LOOKED_AT = 20
_FIFTYONE = "labels.json"  # lies beside the folder data, in each split folder or above


def read_coco(annotations: str | Path, image_root: str | Path | None = None, split: str | None = None) -> Listing:
    """Read an annotation file in the format of COCO's instances (https://cocodataset.org/#format-data).

    One record per image, those without annotations too:

    - ``image``, ``path`` (str), ``split``, ``image_id`` (as in the file); ``height``, ``width`` (int, as the file says;
      0 where it does not).
    - ``boxes`` float32 (N, 4): x1 y1 x2 y2, pixel edges of the original image, that is x, y, x + width, y + height.
      They come as they stand in the file: ``datamodules.annotations.boxes.check_boxes`` examines them.
    - ``labels`` int64 (N,), 0..K-1: categories in the order of their ids, without gaps.
    - ``iscrowd`` uint8 (N,); ``area`` float32 (N,): the file's, or else that of the mask, or else of the box.
    - ``segmentation``: None, or a list of N polygons, RLE dicts (compressed or not) or None, as they stand in the file.
    - ``annotation_ids`` int64 (N,); -1 where the file gives none, 1, 2, ... where its ids are no numbers.
    - ``annotation_file`` (str): the JSON file.

    Args:
        annotations: The JSON file.
        image_root: Where file names start. By default the first of these that holds the first image: the file's own
            folder, ``images`` in it, and beside that folder ``images/NAME``, ``images``, ``NAME`` and the folder above
            itself, NAME being ``train2017`` for ``instances_train2017.json``, or the split.
        split: Written into each record.

    Raises:
        UserError: If the file or an image is missing; the first missing image is named.
        UserError: If the file is no such JSON, an id or a file name occurs twice, or an annotation belongs to no image
            or no category; file, id and fix are named.
    """
    return Listing(*_read(Path(annotations), image_root, split))


def read_coco_folder(root: str | Path, image_root: str | Path | None = None) -> Listing:
    """Read ``root/annotations/instances_{train,val,test}*.json``, for records see ``read_coco``.

    The prefix ``instances_`` and digits after the split (``train2017``) may be there or not; a single file may have any
    name, and split None then. Images lie in ``root/images``, ``root/images/SPLIT`` or ``root/SPLIT``. Also read:
    ``root/SPLIT/_annotations.coco.json`` with the images beside it, as Roboflow writes, and ``root/labels.json`` or
    ``root/SPLIT/labels.json`` with the images in ``data`` beside it, as FiftyOne does.

    Raises:
        UserError: If there is no such folder, file or image.
        UserError: As ``read_coco``; also if the files do not agree on the categories, two of them are of one split,
            or an image is in two splits.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"COCO folder '{root}' does not exist (looked in {Path.cwd()}).")
    found = _files(root)
    files = _files_by_split(found)
    if not files and len(found) == 1:
        return Listing(*_read(found[0], image_root, None))
    if not files:
        others = f" It has {', '.join(f.name for f in found[:5])}." if found else ""
        raise UserError(
            f"'{root}' has no annotations/instances_train.json (nor _val, _test).{others} Rename the files, or give one"
            " JSON file."
        )
    splits: list[str] = [split for split in ("train", "val", "test") if split in files]
    parts = {split: _read(files[split], image_root, split) for split in splits}
    _check_agreement(files, parts)
    _, names, ids = next(iter(parts.values()))
    return Listing([record for records, _, _ in parts.values() for record in records], names, ids)


def is_coco(root: str | Path) -> bool:
    """Whether a folder holds COCO's annotation files, or Roboflow's or FiftyOne's."""
    return bool(_files(Path(root)))


def _files(root: Path) -> list[Path]:
    """The annotation files of a folder."""
    found = sorted((root / "annotations").glob("*.json"))
    for name in (_ROBOFLOW, _FIFTYONE):
        found += [file for file in (*sorted(root.glob(f"*/{name}")), root / name) if file.is_file()]
    found = [file for file in found if is_visible(file.name)]
    kinds = [json_kind(file) for file in found[:_LOOKED_AT]]  # other programs write a file an image
    return found if "coco" in kinds or not kinds else []


def _files_by_split(found: list[Path]) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for file in found:
        match = _SPLIT_FILE.fullmatch(file.stem)
        word = file.parent.name if file.name in (_ROBOFLOW, _FIFTYONE) else match[1] if match else ""
        split = split_name(word)
        if split is None:
            continue
        if split in files:
            raise UserError(f"'{files[split]}' and '{file}' are both of the {split} split; give one of them by name.")
        files[split] = file
    return files


def _check_agreement(files: dict[str, Path], parts: dict[str, _Parts]) -> None:
    """Refuse splits of different categories, and an image in two of them."""
    first, (_, names, ids) = next(iter(parts.items()))
    places: dict[str, str] = {}
    for split, (records, own_names, own_ids) in parts.items():
        if (own_names, own_ids) != (names, ids):
            raise UserError(
                f"'{files[first]}' and '{files[split]}' have different categories: {_describe(ids, names)} and"
                f" {_describe(own_ids, own_names)}. Write the same list into both."
            )
        for record in records:
            other = places.setdefault(record["path"], split)
            if other != split:
                raise UserError(
                    f"Image '{record['path']}' is in '{files[other]}' and in '{files[split]}'; remove it from one."
                )


def _describe(ids: list[int], names: list[str]) -> str:
    return some([f"{i}: {name}" for i, name in zip(ids, names, strict=True)])


def _read(file: Path, image_root: str | Path | None, split: str | None) -> _Parts:
    collecting = gc.isenabled()
    gc.disable()  # it would look at millions of new lists again and again, which takes as long as reading them
    try:
        return _build(file, load_file(file), image_root, split)
    finally:
        if collecting:
            gc.enable()


def _build(file: Path, data: dict[str, Any], image_root: str | Path | None, split: str | None) -> _Parts:
    images, annotations = data["images"], data["annotations"]
    used = {number_of(a.get("category_id")) for a in annotations if isinstance(a, dict)}
    names, ids = read_categories(file, data["categories"], used)
    if not images:
        raise UserError(f"'{file}' has no images.")
    index = image_index(file, images)
    paths = image_paths(file, images, image_root, split)
    columns = _columns(file, annotations, index, ids)
    sizes = image_sizes(file, images)
    _fill_areas(file, annotations, columns, sizes, paths)
    columns = columns.sorted()
    ends = np.searchsorted(columns.owners, np.arange(len(images) + 1)).tolist()
    records: list[Record] = []
    for image, path, (height, width), (start, end) in zip(images, paths, sizes, pairwise(ends), strict=True):
        own = slice(start, end)
        masks = columns.masks[own]
        records.append(
            {
                "image": path,
                "path": path,
                "split": split,
                "height": height,
                "width": width,
                "boxes": columns.boxes[own],
                "labels": columns.labels[own],
                "iscrowd": columns.crowds[own],
                "area": columns.areas[own],
                "segmentation": masks if any(mask is not None for mask in masks) else None,
                "image_id": image["id"] if isinstance(image["id"], str) else int(image["id"]),
                "annotation_ids": columns.numbers[own],
                "annotation_file": str(file),
            }
        )
    return records, names, ids


@dataclass
class _Columns:
    """All annotations of a file, one value or row each."""

    owners: npt.NDArray[np.int64]  # place of the image in the file
    labels: npt.NDArray[np.int64]
    crowds: npt.NDArray[np.uint8]
    numbers: npt.NDArray[np.int64]  # ids; -1: none
    boxes: npt.NDArray[Any]  # (M, 4), x1 y1 x2 y2, float64; float32 when sorted
    areas: npt.NDArray[Any]  # NaN: the file does not say
    masks: list[Any]

    def sorted(self) -> _Columns:
        """The same in the order of the images; those of one image stay in their order."""
        order = np.argsort(self.owners, kind="stable")
        return _Columns(
            self.owners[order],
            self.labels[order],
            self.crowds[order],
            self.numbers[order],
            self.boxes[order].astype(np.float32),
            self.areas[order].astype(np.float32),
            [self.masks[i] for i in order.tolist()],
        )


def _columns(file: Path, annotations: list[Any], index: dict[int | str, int], ids: list[int]) -> _Columns:
    label: dict[int | str | None, int] = {category: i for i, category in enumerate(ids)}

    def unknown_image(a: Any) -> str | None:
        fix = "Add the image, or remove the annotation."
        return None if number_of(a["image_id"]) in index else f"image_id {a['image_id']!r} is none of 'images'. {fix}"

    def unknown_category(a: Any) -> str | None:
        category = a["category_id"]
        known = number_of(category) in label
        return None if known else f"category_id {category!r} is none of 'categories' ({some(ids)})."

    def column(get: Callable[[Any], Any], explain: Callable[[Any], str | None], dtype: Any, width: int = 0) -> Any:
        return read_column(file, annotations, lambda: [get(a) for a in annotations], explain, dtype, width)

    boxes = column(lambda a: a.get("bbox") or mask_box(a), wrong_bbox, np.float64, 4)
    boxes[:, 2:] += boxes[:, :2]
    return _Columns(
        owners=column(lambda a: index[number_of(a["image_id"])], unknown_image, np.int64),  # type: ignore[index]
        labels=column(lambda a: label[number_of(a["category_id"])], unknown_category, np.int64),
        crowds=column(crowd_of, wrong_crowd, np.uint8),
        numbers=annotation_numbers(annotations),
        boxes=boxes,
        areas=column(lambda a: or_nan(a.get("area")), wrong_area, np.float64),
        masks=[mask_of(a) for a in annotations],
    )


def _fill_areas(
    file: Path, annotations: list[Any], columns: _Columns, sizes: list[tuple[int, int]], paths: list[str]
) -> None:
    """The mask's area, or else the box's, where the file gives none."""
    for i in np.flatnonzero(np.isnan(columns.areas)).tolist():
        if columns.masks[i] is None:
            x1, y1, x2, y2 = columns.boxes[i].tolist()
            columns.areas[i] = (x2 - x1) * (y2 - y1)
            continue
        owner = columns.owners[i]
        size = sizes[owner] if all(sizes[owner]) else image_size(paths[owner])
        columns.areas[i] = mask_area(file, annotations[i], size)
