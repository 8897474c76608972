"""The values of a COCO file, one kind after the other, each checked: what is wrong is named with file and id."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from datamodules.common import rle
from datamodules.common.errors import UserError, did_you_mean
from datamodules.readers.text import flag

_DIGITS = re.compile(r"-?(0|[1-9][0-9]{0,17})", re.ASCII)

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
    except (ValueError, RecursionError) as error:  # also no UTF-8
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


def number_of(value: object) -> int | str | None:
    """An id as it is looked up: 1, 1.0 and '1' are one number, any other text is itself; None for anything else."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str):
        return int(value) if _DIGITS.fullmatch(value) else value
    return value if isinstance(value, int) else None


def read_categories(file: Path, categories: list[Any], used: Collection[object]) -> tuple[list[str], list[int]]:
    """Names and ids of the categories, in the order of the ids.

    Args:
        file: For messages.
        categories: The file's list.
        used: The category ids of the annotations.

    Raises:
        UserError: If one has no id or no name, or one of these occurs twice.
    """
    for category in categories:
        number = number_of(category.get("id")) if isinstance(category, dict) else None
        if not isinstance(number, int) or not isinstance(category.get("name"), str | int):
            raise UserError(f"'{file}': category {category!r} must have an integer 'id' and a 'name'.")
    names: dict[int, str] = {}
    for category in _without_root(categories, used):
        number, name = number_of(category["id"]), str(category["name"])
        assert isinstance(number, int)
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


def _without_root(categories: list[Any], used: Collection[object]) -> list[Any]:
    """The categories without the one that Roboflow puts above them: the project's name, which nothing is labeled."""

    def is_root(category: Any) -> bool:
        below = [c for c in categories if c is not category and c.get("supercategory") == category["name"]]
        return category.get("supercategory") == "none" and bool(below) and number_of(category["id"]) not in used

    roots = [category for category in categories if is_root(category)]
    return [category for category in categories if category not in roots] if len(roots) == 1 else categories


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


def mask_of(a: Any) -> Any:
    """An annotation's mask as a list of polygons or as run lengths; None for none, also for polygons without an area.

    One polygon may stand without the list around it, and corners may be pairs, as some tools write them.
    """
    mask = a.get("segmentation")
    if not isinstance(mask, list):
        return mask or None
    if mask and isinstance(mask[0], int | float):
        mask = [mask]
    polygons = [_flat(polygon) for polygon in mask]
    return polygons if any(_has_area(polygon) for polygon in polygons) else None


def _flat(polygon: Any) -> Any:
    """x, y, x, y, ... of pairs; anything else as it is."""
    if isinstance(polygon, list) and polygon and all(isinstance(p, list) and len(p) == 2 for p in polygon):
        return [value for pair in polygon for value in pair]
    return polygon


def _has_area(polygon: Any) -> bool:
    """Whether it has three corners; what is no list of numbers is refused later, by name."""
    return not isinstance(polygon, list) or len(polygon) >= 6 or len(polygon) % 2 == 1


def mask_box(a: Any) -> Sequence[float]:
    """x, y, width, height of the mask, for an annotation without a box."""
    mask = mask_of(a)
    if isinstance(mask, dict):
        from faster_coco_eval.core import mask as library  # a compiled library, which few files need

        return list(library.toBbox(rle.verified(mask, *mask["size"])))
    points = np.concatenate([np.reshape(polygon, (-1, 2)) for polygon in mask]).astype(np.float64)
    return [*points.min(0).tolist(), *np.ptp(points, axis=0).tolist()]


def wrong_bbox(a: Any) -> str | None:
    """What is wrong with an annotation's box."""
    try:
        if np.array(a.get("bbox") or mask_box(a), dtype=np.float64).shape == (4,):
            return None
    except (KeyError, TypeError, ValueError, RuntimeError):
        pass
    return f"bbox is {a.get('bbox')!r}; it must be four numbers: [x, y, width, height]."


def crowd_of(a: Any) -> int:
    """An annotation's mark of a crowd, 0 or 1.

    Raises:
        UserError: If it is anything else.
    """
    mark = a.get("iscrowd")
    return int(mark or 0) if mark in (None, 0, 1) else int(flag(mark, "iscrowd"))


def wrong_crowd(a: Any) -> str | None:
    """What is wrong with an annotation's mark of a crowd."""
    try:
        crowd_of(a)
    except UserError as error:
        return str(error)
    return None


def annotation_numbers(annotations: list[Any]) -> npt.NDArray[np.int64]:
    """The annotations' ids, -1 for none; 1, 2, ... where one of them is no number of 64 bits, as nothing needs it."""
    ids = [-1 if a.get("id") is None else a["id"] for a in annotations]
    is_number = all(type(i) is int and -(1 << 63) <= i < 1 << 63 for i in ids)
    return np.array(ids if is_number else range(1, len(ids) + 1), np.int64)


def wrong_area(a: Any) -> str | None:
    """What is wrong with an annotation's area."""
    return None if isinstance(or_nan(a.get("area")), int | float) else f"area is {a['area']!r}; it must be a number."


def mask_area(file: Path, a: Any, size: tuple[int, int]) -> float:
    """Pixels of an annotation's mask on an image of height and width ``size``.

    Raises:
        UserError: If the mask is damaged.
    """
    try:
        return float(rle.area(rle.verified(mask_of(a), *size)))
    except (RuntimeError, ValueError) as error:
        raise UserError(f"'{file}': annotation {a.get('id')}: {error}.") from error


def some(things: Sequence[object], most: int = 10) -> str:
    """``a, b, c``, and how many there are behind the first ``most``."""
    return ", ".join(map(str, things[:most])) + (f", ... ({len(things)} in all)" if len(things) > most else "")
