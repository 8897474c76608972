"""The values of a COCO file, one kind after the other, each checked: what is wrong is named with file and id."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from datamodules.common import rle
from datamodules.common.errors import UserError, did_you_mean
from datamodules.decoding.headers import MAX_PIXELS

# Optional: reads COCO's 450 MB in a third of the time.
orjson: Any = import_module("orjson") if find_spec("orjson") else None


def load_file(file: Path) -> dict[str, Any]:
    """The file's content: an object with the lists images, annotations and categories.

    Raises:
        UserError: If there is no such file or it is no COCO file.
    """
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


def read_categories(file: Path, categories: list[Any]) -> tuple[list[str], list[int]]:
    """Names and ids of the categories, in the order of the ids.

    Raises:
        UserError: If one has no id or no name, or one of these occurs twice.
    """
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


def image_sizes(file: Path, images: list[Any]) -> list[tuple[int, int]]:
    """Height and width of each image; 0 where the file does not say.

    Raises:
        UserError: If they are no numbers, or more pixels than an image may have.
    """
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


def image_index(file: Path, images: list[Any]) -> dict[int, int]:
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


def image_paths(file: Path, images: list[Any], image_root: str | Path | None, split: str | None) -> list[str]:
    """Path of each image file, below ``image_root`` or the first known place that holds the first image.

    Raises:
        UserError: If images are missing; the first is named.
    """
    first = images[0]["file_name"]
    roots = _roots(file, split) if image_root is None else [str(image_root)]
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


def _roots(file: Path, split: str | None) -> list[str]:
    """Where the images of a file may be."""
    here, above = file.parent, file.parent.parent
    names = [name for name in (file.stem.removeprefix("instances_"), split) if name]
    folders = [here, here / "images", *(above / "images" / name for name in names), above / "images"]
    return [str(folder) for folder in (*folders, *(above / name for name in names), above)]


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


def read_column(
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
            raise ValueError("not one value each")
        return values
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError, RuntimeError) as error:
        for i, annotation in enumerate(annotations):
            reason = _wrong_annotation(annotation, i, explain)
            if reason:
                raise UserError(f"'{file}': {reason}") from error
        raise UserError(f"'{file}': the annotations cannot be read ({error}).") from error


def _wrong_annotation(a: Any, i: int, explain: Callable[[Any], str | None]) -> str | None:
    """What is wrong with annotation ``i``, counted from 0; None if nothing is."""
    if not isinstance(a, dict):
        return f"annotation number {i + 1} is {a!r}; it must be an object."
    which = f"annotation {a['id']}" if "id" in a else f"annotation number {i + 1}"
    for key in ("image_id", "category_id"):
        if key not in a:
            return f"{which} has no '{key}'."
    try:
        reason = explain(a)
    except TypeError:  # an id that is no id, for example a list
        reason = "an id is no number."
    return f"{which}: {reason}" if reason else None


def or_nan(value: Any) -> Any:
    """The value; NaN for none."""
    return math.nan if value is None else value


def mask_box(a: Any) -> Sequence[float]:
    """x, y, width, height of the mask, for an annotation without a box."""
    segmentation = a["segmentation"]
    if isinstance(segmentation, dict):
        from faster_coco_eval.core import mask as library  # a compiled library, which few files need

        return list(library.toBbox(rle.from_segmentation(segmentation, *segmentation["size"])))
    points = np.concatenate([np.reshape(polygon, (-1, 2)) for polygon in segmentation]).astype(np.float64)
    return [*points.min(0).tolist(), *np.ptp(points, axis=0).tolist()]


def wrong_bbox(a: Any) -> str | None:
    """What is wrong with an annotation's box."""
    try:
        if np.array(a.get("bbox") or mask_box(a), dtype=np.float64).shape == (4,):
            return None
    except (KeyError, TypeError, ValueError, RuntimeError):
        pass
    return f"bbox is {a.get('bbox')!r}; it must be four numbers: [x, y, width, height]."


def wrong_crowd(a: Any) -> str | None:
    """What is wrong with an annotation's mark of a crowd."""
    return None if a.get("iscrowd") in (None, 0, 1) else f"iscrowd is {a['iscrowd']!r}; it must be 0 or 1."


def wrong_id(a: Any) -> str | None:
    """What is wrong with an annotation's id."""
    return None if isinstance(a.get("id", -1), int) else f"id is {a['id']!r}; it must be an integer."


def wrong_area(a: Any) -> str | None:
    """What is wrong with an annotation's area."""
    return None if isinstance(or_nan(a.get("area")), int | float) else f"area is {a['area']!r}; it must be a number."


def mask_area(file: Path, a: Any, size: tuple[int, int]) -> float:
    """Pixels of an annotation's mask on an image of height and width ``size``.

    Raises:
        UserError: If the mask is damaged.
    """
    try:
        return float(rle.area(rle.from_segmentation(a["segmentation"], *size)))
    except (RuntimeError, ValueError) as error:
        raise UserError(f"'{file}': annotation {a.get('id')}: {error}.") from error


def some(things: Sequence[object], most: int = 10) -> str:
    """``a, b, c``, and how many there are behind the first ``most``."""
    return ", ".join(map(str, things[:most])) + (f", ... ({len(things)} in all)" if len(things) > most else "")
