"""COCO JSON: boxes, instance masks and classes in one annotation file a split."""

from __future__ import annotations

import gc
import json
import math
import os
import re
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from datamodules.annotations.records import Listing, Record, split_name
from datamodules.common import rle
from datamodules.common.errors import UserError, did_you_mean
from datamodules.decoding.headers import MAX_PIXELS
from datamodules.decoding.sizes import image_size

# Optional: reads COCO's 450 MB in a third of the time.
orjson: Any = import_module("orjson") if find_spec("orjson") else None

_Parts: TypeAlias = tuple[list[Record], list[str], list[int]]  # records, class names, their ids in the file

_SPLIT_FILE = re.compile(r"(?:instances_)?([a-z]+)[-_]?\d*", re.IGNORECASE)
_ROBOFLOW = "_annotations.coco.json"  # lies beside the images of each split folder


def read_coco(annotations: str | Path, image_root: str | Path | None = None, split: str | None = None) -> Listing:
    """Read an annotation file in the format of COCO's instances (https://cocodataset.org/#format-data).

    One record per image, those without annotations too:

    - ``image``, ``path`` (str), ``split``, ``image_id`` (as in the file); ``height``, ``width`` (int, as the file says;
      0 where it does not).
    - ``boxes`` float32 (N, 4): x1 y1 x2 y2, pixel edges of the original image, that is x, y, x + width, y + height.
      They come as they stand in the file: ``datamodules.annotations.boxes.check_boxes`` judges them.
    - ``labels`` int64 (N,), 0..K-1: categories in the order of their ids, without gaps.
    - ``iscrowd`` uint8 (N,); ``area`` float32 (N,): the file's, or else that of the mask, or else of the box.
    - ``segmentation``: None, or a list of N polygons, RLE dicts (compressed or not) or None, as they stand in the file.
    - ``annotation_ids`` int64 (N,); -1 where the file gives none. ``annotation_file`` (str): the JSON file.

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
    ``root/SPLIT/_annotations.coco.json`` with the images beside it, as Roboflow writes.

    Raises:
        UserError: If there is no such folder, file or image.
        UserError: As ``read_coco``; also if the files do not agree on the categories, two of them are of one split,
            or an image is in two splits.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"COCO folder '{root}' does not exist (looked in {Path.cwd()}).")
    files: dict[str, Path] = {}
    found = sorted((root / "annotations").glob("*.json")) + sorted(root.glob(f"*/{_ROBOFLOW}"))
    for file in found:
        match = _SPLIT_FILE.fullmatch(file.stem)
        split = split_name(file.parent.name if file.name == _ROBOFLOW else match[1] if match else "")
        if split is None:
            continue
        if split in files:
            raise UserError(f"'{files[split]}' and '{file}' are both of the {split} split; give one of them by name.")
        files[split] = file
    if not files and len(found) == 1:
        return Listing(*_read(found[0], image_root, None))
    if not files:
        others = f" It has {', '.join(f.name for f in found[:5])}." if found else ""
        raise UserError(
            f"'{root}' has no annotations/instances_train.json (nor _val, _test).{others} Rename the files, or give one"
            " JSON file."
        )
    parts = {split: _read(files[split], image_root, split) for split in ("train", "val", "test") if split in files}
    first, (_, names, ids) = next(iter(parts.items()))
    places: dict[str, str] = {}
    for split, (records, own_names, own_ids) in parts.items():
        if (own_names, own_ids) != (names, ids):
            raise UserError(
                f"'{files[first]}' and '{files[split]}' have different categories: {_describe(ids, names)} and"
                f" {_describe(own_ids, own_names)}. Write the same list into both."
            )
        for record in records:
            if (other := places.setdefault(record["path"], split)) != split:
                raise UserError(
                    f"Image '{record['path']}' is in '{files[other]}' and in '{files[split]}'; remove it from one."
                )
    return Listing([record for records, _, _ in parts.values() for record in records], names, ids)


def _read(file: Path, image_root: str | Path | None, split: str | None) -> _Parts:
    collecting = gc.isenabled()
    gc.disable()  # it would look at millions of new lists again and again, which takes as long as reading them
    try:
        return _build(file, _load(file), image_root, split)
    finally:
        if collecting:
            gc.enable()


def _build(file: Path, data: dict[str, Any], image_root: str | Path | None, split: str | None) -> _Parts:
    images, annotations = data["images"], data["annotations"]
    names, ids = _categories(file, data["categories"])
    if not images:
        raise UserError(f"'{file}' has no images.")
    index = _image_index(file, images)
    paths = _paths(file, images, image_root, split)
    label = {category: i for i, category in enumerate(ids)}

    def unknown_image(a: Any) -> str | None:
        fix = "Add the image, or remove the annotation."
        return None if a["image_id"] in index else f"image_id {a['image_id']!r} is none of 'images'. {fix}"

    def unknown_category(a: Any) -> str | None:
        category = a["category_id"]
        return None if category in label else f"category_id {category!r} is none of 'categories' ({_some(ids)})."

    owners = _column(file, annotations, lambda: [index[a["image_id"]] for a in annotations], unknown_image, np.int64)
    labels = _column(
        file, annotations, lambda: [label[a["category_id"]] for a in annotations], unknown_category, np.int64
    )
    crowd = _column(file, annotations, lambda: [a.get("iscrowd") or 0 for a in annotations], _wrong_crowd, np.uint8)
    number = _column(file, annotations, lambda: [a.get("id", -1) for a in annotations], _wrong_id, np.int64)
    boxes = _column(
        file, annotations, lambda: [a.get("bbox") or _mask_box(a) for a in annotations], _wrong_bbox, np.float64, 4
    )
    boxes[:, 2:] += boxes[:, :2]
    with np.errstate(invalid="ignore"):
        box_area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    sizes = _sizes(file, images)
    area = _column(file, annotations, lambda: [_nan(a.get("area")) for a in annotations], _wrong_area, np.float64)
    masks = [a.get("segmentation") or None for a in annotations]
    for i in np.flatnonzero(np.isnan(area)).tolist():
        owner = owners[i]
        size = sizes[owner] if all(sizes[owner]) else image_size(paths[owner])
        area[i] = box_area[i] if masks[i] is None else _mask_area(file, annotations[i], size)

    order = np.argsort(owners, kind="stable")
    ends = np.searchsorted(owners[order], np.arange(len(images) + 1)).tolist()
    boxes32, area32 = boxes[order].astype(np.float32), area[order].astype(np.float32)
    labels, crowd, number = labels[order], crowd[order], number[order]
    masks = [masks[i] for i in order.tolist()]
    records: list[Record] = []
    for image, path, (height, width), (start, end) in zip(images, paths, sizes, pairwise(ends), strict=True):
        part = slice(start, end)
        segmentation = masks[part]
        records.append(
            {
                "image": path,
                "path": path,
                "split": split,
                "height": height,
                "width": width,
                "boxes": boxes32[part],
                "labels": labels[part],
                "iscrowd": crowd[part],
                "area": area32[part],
                "segmentation": segmentation if any(m is not None for m in segmentation) else None,
                "image_id": image["id"],
                "annotation_ids": number[part],
                "annotation_file": str(file),
            }
        )
    return records, names, ids


def _load(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise UserError(f"COCO file '{file}' does not exist (looked in {Path.cwd()}).")
    try:
        data = _parse(file.read_bytes())
    except ValueError as error:  # also no UTF-8
        raise UserError(
            f"'{file}' cannot be read as JSON ({error}). It may be cut off: fetch or write it again."
        ) from error
    if not isinstance(data, dict):
        hint = " It looks like a file of results; give the annotations." if isinstance(data, list) else ""
        raise UserError(f"'{file}' is no COCO file: it holds a {type(data).__name__}, not an object.{hint}")
    for key in ("images", "annotations", "categories"):
        if not isinstance(data.get(key), list):
            have = ", ".join(data) or "nothing"
            raise UserError(
                f"'{file}' is no COCO file: it has no list '{key}' (it has: {have}).{did_you_mean(key, data)}"
            )
    return data


def _parse(text: bytes) -> Any:
    if orjson is not None:
        try:
            return orjson.loads(text)
        except ValueError:
            pass  # NaN, or an error that json explains with line and column
    return json.loads(text)


def _categories(file: Path, categories: list[Any]) -> tuple[list[str], list[int]]:
    names: dict[int, str] = {}
    for category in categories:
        if not isinstance(category, dict) or not isinstance(category.get("id"), int) or "name" not in category:
            raise UserError(f"'{file}': category {category!r} must have an integer 'id' and a 'name'.")
        number, name = category["id"], str(category["name"])
        if number in names:
            raise UserError(
                f"'{file}': category id {number} occurs twice ('{names[number]}' and '{name}'); change one."
            )
        if name in names.values():
            raise UserError(f"'{file}': two categories are named '{name}' (one has id {number}); rename or remove one.")
        names[number] = name
    if not names:
        raise UserError(f"'{file}' has no categories; list each class with an 'id' and a 'name'.")
    ids = sorted(names)
    return [names[i] for i in ids], ids


def _sizes(file: Path, images: list[Any]) -> list[tuple[int, int]]:
    sizes = []
    for image in images:
        try:
            height, width = int(image.get("height") or 0), int(image.get("width") or 0)
        except (TypeError, ValueError, OverflowError) as error:
            raise UserError(f"'{file}': image {image['id']}: its height or width is no number ({error}).") from error
        if height * width > MAX_PIXELS:  # so large would its masks be, whatever the image file is
            raise UserError(
                f"'{file}': image {image['id']}: {width} x {height} = {width * height:,} pixels are more than"
                f" {MAX_PIXELS:,}. Correct its height and width, or cut the image into tiles."
            )
        sizes.append((height, width))
    return sizes


def _image_index(file: Path, images: list[Any]) -> dict[int, int]:
    """Image id -> place in the list."""
    index: dict[int, int] = {}
    files: dict[str, int] = {}
    for i, image in enumerate(images):
        try:
            number, name = image["id"], image["file_name"]
        except (KeyError, TypeError) as error:
            raise UserError(
                f"'{file}': image number {i + 1} must have an 'id' and a 'file_name': {image!r}."
            ) from error
        if not isinstance(number, int) or not isinstance(name, str):
            raise UserError(f"'{file}': image number {i + 1}: 'id' must be an integer, 'file_name' text: {image!r}.")
        if index.setdefault(number, i) != i:
            other = images[index[number]]["file_name"]
            raise UserError(f"'{file}': image id {number} occurs twice ('{other}' and '{name}'). Give each its own id.")
        if files.setdefault(name, i) != i:
            other = images[files[name]]["id"]
            raise UserError(
                f"'{file}': file '{name}' is there twice (image ids {other} and {number}). Merge them into one image."
            )
    return index


def _paths(file: Path, images: list[Any], image_root: str | Path | None, split: str | None) -> list[str]:
    first = images[0]["file_name"]
    if image_root is not None:
        roots = [str(image_root)]
    else:
        here, above = file.parent, file.parent.parent
        names = [name for name in (file.stem.removeprefix("instances_"), split) if name]
        folders = [here, here / "images", *(above / "images" / name for name in names), above / "images"]
        roots = [str(folder) for folder in (*folders, *(above / name for name in names), above)]
    root = next((r for r in roots if os.path.isfile(os.path.join(r, first))), roots[0])
    paths = [os.path.join(root, image["file_name"]) for image in images]
    missing = _missing(paths)
    if missing:
        image = images[missing[0]]
        looked = paths[missing[0]] if len(roots) == 1 or missing[0] else f"{first} in {', '.join(roots)}"
        raise UserError(
            f"'{file}': image '{image['file_name']}' (id {image['id']}) does not exist (looked for {looked});"
            f" {len(missing)} of {len(paths)} are missing. Set image_root to the folder where file names start."
        )
    return paths


def _missing(paths: list[str]) -> list[int]:
    """Places of the files that are not there. Folders are listed once: asking for each file is slow over a network."""
    folders: dict[str, set[str]] = {}
    missing = []
    for i, path in enumerate(paths):
        folder, name = os.path.split(path)
        if folder not in folders:
            folders[folder] = set(os.listdir(folder)) if os.path.isdir(folder) else set()
        if name not in folders[folder] and not os.path.isfile(path):  # a disk may not tell A from a
            missing.append(i)
    return missing


def _column(
    file: Path,
    annotations: list[Any],
    get: Callable[[], list[Any]],
    explain: Callable[[Any], str | None],
    dtype: Any,
    width: int = 0,
) -> npt.NDArray[Any]:
    """One value of all annotations as an array; if that fails, ``explain`` is asked about each one in turn."""
    try:
        values = np.array(get(), dtype=dtype)
        if width and not annotations:
            return values.reshape(0, width)
        if values.shape != ((len(annotations), width) if width else (len(annotations),)):
            raise UserError("not one value each")
        return values
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError, RuntimeError) as error:
        for i, a in enumerate(annotations):
            if not isinstance(a, dict):
                raise UserError(f"'{file}': annotation number {i + 1} is {a!r}; it must be an object.") from error
            which = f"annotation {a['id']}" if "id" in a else f"annotation number {i + 1}"
            for key in ("image_id", "category_id"):
                if key not in a:
                    raise UserError(f"'{file}': {which} has no '{key}'.") from error
            try:
                reason = explain(a)
            except TypeError:  # an id that is no id, for example a list
                reason = "an id is no number."
            if reason:
                raise UserError(f"'{file}': {which}: {reason}") from error
        raise UserError(f"'{file}': the annotations cannot be read ({error}).") from error


def _nan(value: Any) -> Any:
    return math.nan if value is None else value


def _mask_box(a: Any) -> Sequence[float]:
    """x, y, width, height of the mask, for an annotation without a box."""
    segmentation = a["segmentation"]
    if isinstance(segmentation, dict):
        from faster_coco_eval.core import mask as library  # a compiled library, which few files need

        return list(library.toBbox(rle.from_segmentation(segmentation, *segmentation["size"])))
    points = np.concatenate([np.reshape(polygon, (-1, 2)) for polygon in segmentation]).astype(np.float64)
    return [*points.min(0).tolist(), *np.ptp(points, axis=0).tolist()]


def _wrong_bbox(a: Any) -> str | None:
    try:
        if np.array(a.get("bbox") or _mask_box(a), dtype=np.float64).shape == (4,):
            return None
    except (KeyError, TypeError, ValueError, RuntimeError):
        pass
    return f"bbox is {a.get('bbox')!r}; it must be four numbers: [x, y, width, height]."


def _wrong_crowd(a: Any) -> str | None:
    return None if a.get("iscrowd") in (None, 0, 1) else f"iscrowd is {a['iscrowd']!r}; it must be 0 or 1."


def _wrong_id(a: Any) -> str | None:
    return None if isinstance(a.get("id", -1), int) else f"id is {a['id']!r}; it must be an integer."


def _wrong_area(a: Any) -> str | None:
    return None if isinstance(_nan(a.get("area")), int | float) else f"area is {a['area']!r}; it must be a number."


def _mask_area(file: Path, a: Any, size: tuple[int, int]) -> float:
    try:
        return float(rle.area(rle.from_segmentation(a["segmentation"], *size)))
    except (RuntimeError, ValueError) as error:
        raise UserError(f"'{file}': annotation {a.get('id')}: {error}.") from error


def _describe(ids: list[int], names: list[str]) -> str:
    return _some([f"{i}: {name}" for i, name in zip(ids, names, strict=True)])


def _some(things: Sequence[object], most: int = 10) -> str:
    return ", ".join(map(str, things[:most])) + (f", ... ({len(things)} in all)" if len(things) > most else "")
