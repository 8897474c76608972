"""YOLO's text: a file of lines for each image, the class names, and the YAML of a data set.

Whoever writes YOLO's format does it here: ``convert`` and predictions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from datamodules.common.files import write_text


def object_line(
    label: int, corners: Sequence[float], size: tuple[int, int], polygon: Sequence[float] | None = None
) -> str:
    """One object: the class, and the box's center and size as fractions of the image's width and height.

    Args:
        label: Class, 0..K-1.
        corners: The box, x1 y1 x2 y2 in pixels.
        size: The image's height and width.
        polygon: x, y, x, y, ... in pixels, which is written in place of the box.
    """
    height, width = size
    if polygon is None:
        x1, y1, x2, y2 = corners
        numbers = [(x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height]
    else:
        numbers = [value / (height if place % 2 else width) for place, value in enumerate(polygon)]
    return " ".join([str(label), *(f"{number:.8f}" for number in numbers)])


def write_labels(path: Path, lines: Iterable[str]) -> None:
    """The objects of an image; an empty file for an image without any."""
    write_text(path, "".join(f"{line}\n" for line in lines))


def write_class_names(path: Path, class_names: Sequence[str]) -> None:
    """``classes.txt``: one name a line, in the order of the class numbers."""
    write_text(path, "".join(f"{name}\n" for name in class_names))


def write_data_yaml(path: Path, splits: Sequence[str], class_names: Sequence[str]) -> None:
    """``data.yaml`` of a data set with the images in ``images/SPLIT`` beside it."""
    data: dict[str, Any] = {split: f"images/{split}" for split in splits}
    data["names"] = dict(enumerate(class_names))
    write_text(path, yaml.safe_dump(data, sort_keys=False, allow_unicode=True))
