"""Pre-annotated tasks for labeling tools: CVAT's XML for images, Label Studio's JSON, and the labels that both need."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree

import numpy as np

from datamodules.common import rle
from datamodules.common.files import write_text
from pipelines.outputs.formats.polygons import one_polygon

Box = tuple[float, ...]
#: Where Label Studio looks for local files.
LOCAL_FILES = "/data/local-files/?d="


@dataclass(frozen=True)
class Thing:
    """One object, or of a label map all pixels of a class.

    Attributes:
        name: Its class.
        box: x1 y1 x2 y2 in pixels.
        score: Of a predicted object.
        mask: Run lengths, or None.
    """

    name: str
    box: Box
    score: float | None = None
    mask: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Annotated:
    """A picture with what is known of it.

    Attributes:
        path: The file.
        size: Height and width in pixels.
        tags: Classes of the whole picture, with their probabilities.
        things: Its objects.
    """

    path: str
    size: tuple[int, int]
    tags: Sequence[tuple[str, float]] = ()
    things: Sequence[Thing] = field(default_factory=list)


def write_cvat(path: Path, pictures: Sequence[Annotated], names: Sequence[str]) -> None:
    """Write "CVAT for images 1.1": upload it to a task with these pictures; what is in it counts as automatic.

    https://docs.cvat.ai/docs/dataset_management/formats/format-cvat/

    Args:
        path: An ``.xml`` file.
        pictures: With classes, boxes or masks.
        names: Of the pictures in the task.
    """
    top = ElementTree.Element("annotations")
    ElementTree.SubElement(top, "version").text = "1.1"
    for number, (one, name) in enumerate(zip(pictures, names, strict=True)):
        height, width = one.size
        about = {"id": str(number), "name": name, "width": str(width), "height": str(height)}
        image = ElementTree.SubElement(top, "image", about)
        for tag, _ in one.tags:
            ElementTree.SubElement(image, "tag", {"label": tag, "source": "auto"})
        for thing in one.things:
            same = {"label": thing.name, "source": "auto", "occluded": "0", "z_order": "0"}
            if thing.mask is None:
                place = zip(("xtl", "ytl", "xbr", "ybr"), (f"{value:.2f}" for value in thing.box), strict=True)
                ElementTree.SubElement(image, "box", {**same, **dict(place)})
            elif runs := _runs_in_box(thing.mask, one.size):
                ElementTree.SubElement(image, "mask", {**same, **runs})
    ElementTree.indent(top)
    write_text(path, '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(top, encoding="unicode") + "\n")


def _runs_in_box(mask: Mapping[str, Any], size: tuple[int, int]) -> dict[str, str]:
    """CVAT's mask: run lengths along the rows of its extent, those of 0 first; nothing for one without pixels."""
    pixels = rle.decoded([mask], *size)[0]
    rows, columns = np.nonzero(pixels)
    if not len(rows):
        return {}
    top, left = int(rows.min()), int(columns.min())
    inside = pixels[top : rows.max() + 1, left : columns.max() + 1]
    flat = inside.ravel().astype(np.int8)
    edges = np.flatnonzero(np.diff(flat, prepend=0))
    lengths = np.diff(np.concatenate([[0], edges, [len(flat)]])).tolist()
    text = ", ".join(map(str, lengths))
    height, width = inside.shape
    return {"rle": text, "left": str(left), "top": str(top), "width": str(width), "height": str(height)}


def write_labelstudio(path: Path, pictures: Sequence[Annotated], names: Sequence[str], url: str = LOCAL_FILES) -> None:
    """Write Label Studio's tasks with predictions: import it into a project with ``label_config``.

    Masks become polygons, one each. https://labelstud.io/guide/predictions

    Args:
        path: A ``.json`` file.
        pictures: With classes, boxes or masks.
        names: Of the pictures, behind ``url``.
        url: What the pictures' addresses begin with.
    """
    tasks = []
    for one, name in zip(pictures, names, strict=True):
        results = [_result(i, thing, one.size) for i, thing in enumerate(one.things)]
        if one.tags:
            choices = {"choices": [tag for tag, _ in one.tags]}
            results.append({"from_name": "class", "to_name": "image", "type": "choices", "value": choices})
        scores = [score for _, score in one.tags] + [t.score for t in one.things if t.score is not None]
        prediction: dict[str, Any] = {"model_version": "vision-pipelines", "result": [r for r in results if r]}
        if scores:
            prediction["score"] = round(sum(scores) / len(scores), 4)
        tasks.append({"data": {"image": url + quote(name)}, "predictions": [prediction]})
    write_text(path, json.dumps(tasks, indent=1))


def _result(number: int, thing: Thing, size: tuple[int, int]) -> dict[str, Any] | None:
    """A rectangle or a polygon in percent of the picture; None for a mask without pixels."""
    height, width = size
    about: dict[str, Any] = {
        "id": f"r{number}",
        "to_name": "image",
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
    }
    if thing.score is not None:
        about["score"] = round(thing.score, 4)
    if thing.mask is None:
        x1, y1, x2, y2 = thing.box
        place = {"x": 100 * x1 / width, "y": 100 * y1 / height}
        sides = {"width": 100 * (x2 - x1) / width, "height": 100 * (y2 - y1) / height}
        value = {**place, **sides, "rotation": 0, "rectanglelabels": [thing.name]}
        return {**about, "from_name": "box", "type": "rectanglelabels", "value": value}
    line = one_polygon(thing.mask, height, width)
    if line is None:
        return None
    points = (np.reshape(line, (-1, 2)) * 100 / (width, height)).tolist()
    shape = {"points": points, "closed": True, "polygonlabels": [thing.name]}
    return {**about, "from_name": "polygon", "type": "polygonlabels", "value": shape}


def label_config(class_names: Sequence[str], kind: str, several: bool = False) -> str:
    """Label Studio's labeling interface, as XML.

    Args:
        class_names: K.
        kind: ``tags``, ``boxes`` or ``masks``.
        several: Whether a picture has several tags.
    """
    view = ElementTree.Element("View")
    ElementTree.SubElement(view, "Image", {"name": "image", "value": "$image"})
    tag, name, item = {
        "tags": ("Choices", "class", "Choice"),
        "boxes": ("RectangleLabels", "box", "Label"),
        "masks": ("PolygonLabels", "polygon", "Label"),
    }[kind]
    more = {"choice": "multiple" if several else "single"} if kind == "tags" else {}
    labels = ElementTree.SubElement(view, tag, {"name": name, "toName": "image", **more})
    for class_name in class_names:
        ElementTree.SubElement(labels, item, {"value": class_name})
    ElementTree.indent(view)
    return ElementTree.tostring(view, encoding="unicode") + "\n"


def cvat_labels(class_names: Sequence[str], kind: str) -> str:
    """CVAT's labels, as its constructor's "raw" takes them: JSON."""
    types = {"tags": "tag", "boxes": "rectangle", "masks": "mask"}
    return json.dumps([{"name": name, "type": types[kind], "attributes": []} for name in class_names], indent=1) + "\n"
