"""CVAT's XML for images: boxes, polygons and masks."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from datamodules.annotations.records import Listing, split_name
from datamodules.common.errors import UserError
from datamodules.readers.drawn import Drawing, Shape, box_shape, listing_of, polygon_shape
from datamodules.readers.text import number, parse_xml, whole

_SHAPES = ("box", "polygon", "mask", "ellipse", "polyline", "points", "cuboid", "skeleton")


def read_cvat(source: Path, class_names: list[str] | None, image_root: Any = None) -> Listing:
    """Read ``annotations.xml``, "CVAT for images 1.1"; a box that is turned becomes its extent, subsets are splits.

    Raises:
        UserError: If the file is not as CVAT writes it, is one of a video, or holds lines, points or skeletons.
    """
    file = source if source.is_file() else source / "annotations.xml"
    root = parse_xml(file)
    if root.find("track") is not None:
        raise UserError(f"'{file}' is CVAT's format for videos, whose tracks are not read: export 'CVAT for images'.")
    images = list(root.iter("image"))
    if not images:
        raise UserError(f"'{file}' is no XML of CVAT: it has no image.")
    return listing_of([(file, [_drawing(file, image) for image in images])], class_names, image_root)


def is_cvat(file: Path) -> bool:
    """Whether an XML file is CVAT's, by its start."""
    if not file.is_file():
        return False
    with open(file, "rb") as stream:
        start = stream.read(1 << 14)
    return b"<annotations" in start or b"<image " in start


def _drawing(file: Path, image: ElementTree.Element) -> Drawing:
    name = image.get("name") or ""
    if not name:
        raise UserError(f"'{file}': an image has no name.")
    height, width = (whole(image.get(side) or 0, f"'{file}': {side} of '{name}'") for side in ("height", "width"))
    things = [thing for thing in image if thing.tag in _SHAPES]
    shapes = [_shape(t, i, f"'{file}', object {i} of '{name}'", (height, width)) for i, t in enumerate(things, 1)]
    return Drawing(name, shapes, height, width, split_name(image.get("subset") or ""))


def _shape(thing: ElementTree.Element, i: int, where: str, size: tuple[int, int]) -> Shape:
    name = thing.get("label") or ""
    if not name:
        raise UserError(f"{where}: it has no label.")

    def get(*keys: str) -> list[float]:
        return [number(thing.get(key), f"{where} ('{name}'): {key}") for key in keys]

    turned = get("rotation")[0] if thing.get("rotation") else 0.0
    if thing.tag == "box":
        return box_shape(name, get("xtl", "ytl", "xbr", "ybr"), turned, i)
    if thing.tag == "ellipse":
        x, y, rx, ry = get("cx", "cy", "rx", "ry")
        return box_shape(name, (x - rx, y - ry, x + rx, y + ry), turned, i)
    if thing.tag == "polygon":
        words = (thing.get("points") or "").replace(";", ",").split(",")
        values = [number(word, f"{where} ('{name}'): a corner") for word in words]
        if len(values) < 6 or len(values) % 2:
            raise UserError(f"{where} ('{name}'): a polygon has three corners or more, x,y;x,y;....")
        return polygon_shape(name, [values], i)
    if thing.tag == "mask":
        return _mask(thing, name, i, where, size)
    raise UserError(f"{where} ('{name}'): {thing.tag} has no box; box, ellipse, polygon and mask are read. Remove it.")


def _mask(thing: ElementTree.Element, name: str, i: int, where: str, size: tuple[int, int]) -> Shape:
    """A mask as run lengths along the rows of its own box."""
    from faster_coco_eval.core import mask as library

    left, top, width, height = (
        whole(thing.get(k), f"{where} ('{name}'): {k}") for k in ("left", "top", "width", "height")
    )
    runs = [whole(word.strip(), f"{where} ('{name}'): rle") for word in (thing.get("rle") or "").split(",")]
    inside = left >= 0 and top >= 0 and left + width <= size[1] and top + height <= size[0]
    if not inside or min(runs) < 0 or sum(runs) != width * height or width * height < 1:
        raise UserError(f"{where} ('{name}'): its mask is damaged: {sum(runs)} pixels in a box of {width} x {height}.")
    pixels = np.zeros(size, np.uint8)
    pixels[top : top + height, left : left + width] = np.repeat(np.arange(len(runs)) % 2, runs).reshape(height, width)
    run = dict(library.encode(np.asfortranarray(pixels)))
    return Shape(
        name, (left, top, left + width, top + height), {"size": list(size), "counts": run["counts"].decode()}, i
    )
