"""The JSON file of boxes that stands beside a picture in a tar shard."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from datamodules.annotations.records import sort_classes
from datamodules.common.errors import UserError
from datamodules.readers.drawn import Drawing, Shape

Drawn = tuple[Drawing, npt.NDArray[np.uint8]]

_FAR = 1e9  # pixels; larger numbers, NaN and infinity are no places
_NAMES = ("category", "category_name", "label", "name", "category_id")
_LAYOUT = (
    'Give {"boxes": [[x1, y1, x2, y2], ...], "labels": ["cat", ...]}, or COCO\'s {"annotations": [{"bbox": [x, y,'
    ' width, height], "category": "cat"}, ...]}, in pixels.'
)


def read_drawing(picture: str, values: Any, file: str, split: str | None, names: Sequence[str]) -> Drawn:
    """The objects of a picture, and which of them are crowds.

    Two layouts: ``boxes`` (N, 4), x1 y1 x2 y2 in pixels, and ``labels`` (N), names or numbers, perhaps ``iscrowd`` (N);
    or COCO's ``annotations``, each with ``bbox`` (x y width height), ``category`` (also ``category_name``, ``label``,
    ``category_id``), perhaps ``segmentation`` and ``iscrowd``. ``width`` and ``height`` are taken where they are.

    Args:
        picture: Its path.
        values: Of the JSON file.
        file: Its path.
        split: Of the picture.
        names: Classes that numbers stand for, from 0; empty where numbers are names themselves.

    Returns:
        The objects, and uint8 (N,).

    Raises:
        UserError: If the file is in neither layout, or a value is not as above.
    """
    if not isinstance(values, dict) or not ("boxes" in values or "annotations" in values):
        raise UserError(f"{file}: neither 'boxes' nor 'annotations' is in it. {_LAYOUT}")
    read = _of_boxes if "boxes" in values else _of_annotations
    shapes, crowds = read(values, file, names)
    height, width = (_side(values, key, file) for key in ("height", "width"))
    return Drawing(picture, shapes, height, width, split), np.array(crowds, np.uint8)


def box_names(drawn: Sequence[Drawn], names: Sequence[str], source: str) -> list[str]:
    """The classes: those that are given, or those that occur.

    Raises:
        UserError: If there is none.
    """
    found = list(names) or sort_classes(shape.name for drawing, _ in drawn for shape in drawing.shapes)
    if not found:
        raise UserError(f"'{source}' has no object with a class; there is nothing to learn.")
    return found


def _side(values: dict[str, Any], key: str, file: str) -> int:
    side = values.get(key, 0)
    if not isinstance(side, int) or side < 0:
        raise UserError(f"{file}: {key} is {side!r}; a number of pixels is needed.")
    return side


def _of_boxes(values: dict[str, Any], file: str, names: Sequence[str]) -> tuple[list[Shape], list[int]]:
    boxes, labels = values["boxes"], values.get("labels")
    if not isinstance(boxes, list) or not isinstance(labels, list) or len(boxes) != len(labels):
        raise UserError(f"{file}: 'boxes' and 'labels' must be lists of one length. {_LAYOUT}")
    crowds = values.get("iscrowd", [0] * len(boxes))
    if not isinstance(crowds, list) or len(crowds) != len(boxes):
        raise UserError(f"{file}: 'iscrowd' must be a list as long as 'boxes'.")
    shapes = [
        Shape(_class(label, names, file), _four(box, file), None, number)
        for number, (box, label) in enumerate(zip(boxes, labels, strict=True), 1)
    ]
    return shapes, [_crowd(crowd, file) for crowd in crowds]


def _of_annotations(values: dict[str, Any], file: str, names: Sequence[str]) -> tuple[list[Shape], list[int]]:
    objects = values["annotations"]
    if not isinstance(objects, list) or not all(isinstance(one, dict) for one in objects):
        raise UserError(f"{file}: 'annotations' must be a list of objects. {_LAYOUT}")
    shapes = []
    for number, one in enumerate(objects, 1):
        label = next((one[key] for key in _NAMES if key in one), None)
        x, y, width, height = _four(one.get("bbox"), file)
        box = (x, y, x + width, y + height)
        shapes.append(Shape(_class(label, names, file), box, one.get("segmentation") or None, number))
    return shapes, [_crowd(one.get("iscrowd", 0), file) for one in objects]


def _four(box: Any, file: str) -> tuple[float, float, float, float]:
    numbers = box if isinstance(box, list) else []
    if len(numbers) != 4 or not all(_is_number(number) for number in numbers):
        raise UserError(f"{file}: a box is {box!r:.60}; four numbers are needed. {_LAYOUT}")
    a, b, c, d = map(float, numbers)
    return a, b, c, d


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -_FAR < value < _FAR


def _crowd(value: Any, file: str) -> int:
    if value not in (0, 1):
        raise UserError(f"{file}: iscrowd is {value!r:.60}; it is 0 or 1.")
    return int(value)


def _class(label: Any, names: Sequence[str], file: str) -> str:
    """A class by its name, or by its number where there are names."""
    if isinstance(label, bool) or not isinstance(label, str | int) or label == "":
        raise UserError(
            f"{file}: the class of an object is {label!r:.60}; a name or a whole number is needed. {_LAYOUT}"
        )
    if isinstance(label, int) and names and str(label) not in names:
        if not 0 <= label < len(names):
            raise UserError(f"{file}: the class of an object is {label}, but there are {len(names)} classes, from 0.")
        return names[label]
    return str(label)
