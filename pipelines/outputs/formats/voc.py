"""Pascal VOC's XML, one file an image. Whoever writes it does it here: ``convert``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

from datamodules.common.files import write_text


class VocObject(NamedTuple):
    """One object of an image."""

    name: str
    corners: Sequence[str]  # xmin ymin xmax ymax; see `corner_texts`
    difficult: bool


def corner_texts(corners: Sequence[float], *, one_based: bool) -> list[str]:
    """x1 y1 x2 y2, pixel edges from 0, as VOC writes them.

    VOC counts pixels from 1 and includes the last one: the edges 0..W are the pixels 1..W.

    Args:
        corners: In pixels.
        one_based: Whether pixels are counted so; else the edges are written as they are.
    """
    x1, y1, x2, y2 = corners
    offset = int(one_based)
    return [_short(value) for value in (x1 + offset, y1 + offset, x2, y2)]


def _short(value: float) -> str:
    """Up to three decimals; most files hold integers, and some programs read nothing else."""
    return f"{value:.3f}".rstrip("0").rstrip(".")


def write_xml(path: Path, file_name: str, size: tuple[int, int], objects: Iterable[VocObject]) -> None:
    """The annotations of an image.

    Args:
        path: The ``.xml`` file.
        file_name: Of the image, in ``JPEGImages``.
        size: Its height and width.
        objects: May be none.
    """
    height, width = size
    top = ElementTree.Element("annotation")
    head = {"folder": "JPEGImages", "filename": file_name}
    _fill(top, {**head, "size": {"width": width, "height": height, "depth": 3}, "segmented": 0})
    for thing in objects:
        values = {"name": thing.name, "pose": "Unspecified", "truncated": 0, "difficult": int(thing.difficult)}
        box = dict(zip(("xmin", "ymin", "xmax", "ymax"), thing.corners, strict=True))
        _fill(ElementTree.SubElement(top, "object"), {**values, "bndbox": box})
    ElementTree.indent(top)
    write_text(path, ElementTree.tostring(top, encoding="unicode") + "\n")


def _fill(element: ElementTree.Element, values: dict[str, Any]) -> None:
    for key, value in values.items():
        child = ElementTree.SubElement(element, key)
        if isinstance(value, dict):
            _fill(child, value)
        else:
            child.text = str(value)
