"""Label Studio's JSON and JSON-MIN: rectangles and polygons in percent of the image."""

from __future__ import annotations

from math import cos, isfinite, radians, sin
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from datamodules.annotations.records import Listing
from datamodules.common.errors import UserError
from datamodules.readers.drawn import Drawing, Shape, box_shape, has_keys, listing_of, polygon_shape
from datamodules.readers.json_files import files_of
from datamodules.readers.text import load_json, number, whole

_KINDS = ("rectanglelabels", "polygonlabels")


def read_labelstudio(source: Path, class_names: list[str] | None, image_root: Any = None) -> Listing:
    """Read the results of each task; a turned rectangle becomes its extent.

    Images are looked for by the path behind ``?d=``, or by their names.

    Raises:
        UserError: If a task is not as Label Studio writes it, has several annotations, or holds brushes, key points or
            other shapes without a box.
    """
    files, notes = files_of(source, "labelstudio")
    return listing_of([(file, _drawings(file)) for file in files], class_names, image_root, notes)


def _drawings(file: Path) -> list[Drawing]:
    data = load_json(file)
    if not isinstance(data, list):
        raise UserError(f"'{file}' is no export of Label Studio: it must be a list of tasks.")
    found = []
    for i, task in enumerate(data, 1):
        where = f"'{file}', task {i}"
        image, results = _task(task, where)
        shapes = [
            s for k, result in enumerate(results, 1) if (s := _shape(result, k, f"{where}, result {k}")) is not None
        ]
        first = results[0] if results and isinstance(results[0], dict) else {}
        height, width = (whole(first.get(f"original_{side}") or 0, where) for side in ("height", "width"))
        found.append(Drawing(image, shapes, height, width))
    return found


def _task(task: Any, where: str) -> tuple[str, list[Any]]:
    """The image of a task and its results."""
    image = _image(task, where)
    if "data" not in task:  # JSON-MIN
        return image, [{"value": result, **result} for own in task.values() if _are_objects(own) for result in own]
    given = task.get("annotations") or []
    if not isinstance(given, list) or not all(map(_has_results, given)):
        raise UserError(f"{where} ('{image}'): 'annotations' must be a list of objects with a list 'result'.")
    done = [a for a in given if not a.get("was_cancelled")]
    if len(done) > 1:
        raise UserError(f"{where} ('{image}'): it has {len(done)} annotations; keep one of them.")
    return image, list(done[0]["result"]) if done else []


def _are_objects(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, dict) for one in value)


def _has_results(annotation: Any) -> bool:
    return has_keys(annotation, "result") and isinstance(annotation["result"], list)


def _image(task: Any, where: str) -> str:
    """The path that a task names."""
    values = task.get("data", task) if isinstance(task, dict) else {}
    values = values if isinstance(values, dict) else {}
    texts = [values[key] for key in ("image", "img", "picture") if isinstance(values.get(key), str)]
    if not texts:
        raise UserError(f"{where}: it names no 'image'.")
    local = texts[0].rpartition("?d=")[2]
    return unquote(local.partition("://")[2] or local)


def _shape(result: Any, i: int, where: str) -> Shape | None:
    """The object of a result; None for what says nothing of the picture's parts (choices, texts)."""
    value = result.get("value") if isinstance(result, dict) else None
    if not isinstance(value, dict):
        raise UserError(f"{where}: it has no 'value'.")
    kind = next((key for key in _KINDS if value.get(key)), None)
    if kind is None:
        _refuse_other_shapes(value, where)
        return None
    if not isinstance(value[kind], list) or len(value[kind]) != 1:
        raise UserError(f"{where}: its labels are {value[kind]!r:.60}; one label an object is read.")
    name = str(value[kind][0])
    width, height = (
        number(result.get(f"original_{side}"), f"{where}: original_{side}") for side in ("width", "height")
    )
    read = _polygon if kind == "polygonlabels" else _rectangle
    return read(name, value, width / 100, height / 100, i, where)


def _refuse_other_shapes(value: dict[str, Any], where: str) -> None:
    """Refuse brushes, key points and shapes without a label."""
    other = next((key for key in value if key.endswith("labels") and key != "labels"), None)
    if other is not None or "x" in value or "points" in value:
        raise UserError(
            f"{where}: {other or 'a shape without a label'} is not read; rectanglelabels and polygonlabels are."
        )


def _polygon(name: str, value: dict[str, Any], across: float, down: float, i: int, where: str) -> Shape:
    """A polygon; ``across`` and ``down`` are the pixels of one percent."""
    points = value.get("points")
    pairs = isinstance(points, list) and all(isinstance(p, list) and len(p) == 2 for p in points)
    if not pairs or len(points or ()) < 3:
        raise UserError(f"{where} ('{name}'): its points are {points!r:.60}; a polygon has three pairs or more.")
    scaled = [number(v, where) * percent for p in points or () for v, percent in zip(p, (across, down), strict=True)]
    return polygon_shape(name, [scaled], i)


def _rectangle(name: str, value: dict[str, Any], across: float, down: float, i: int, where: str) -> Shape:
    """A rectangle, which may be turned."""
    x, y, w, h = (number(value.get(key), f"{where}: {key}") for key in ("x", "y", "width", "height"))
    turned = number(value.get("rotation") or 0, f"{where}: rotation")
    x, y, w, h = x * across, y * down, w * across, h * down
    if turned % 360:  # around the upper left corner
        return _extent(name, x, y, w, h, turned, i)
    return box_shape(name, (x, y, x + w, y + h), 0, i)


def _extent(name: str, x: float, y: float, width: float, height: float, degrees: float, i: int) -> Shape:
    """The extent of a rectangle that is turned around its upper left corner."""
    if not isfinite(degrees):
        raise UserError(f"The rotation of object {i} ('{name}') is {degrees}; it must be a number of degrees.")
    c, s = cos(radians(degrees)), sin(radians(degrees))
    corners = [(x + a * c - b * s, y + a * s + b * c) for a in (0, width) for b in (0, height)]
    xs, ys = zip(*corners, strict=True)
    return box_shape(name, (min(xs), min(ys), max(xs), max(ys)), 0, i)
