"""COCO's JSON, written image by image and object by object: only numbers and names of one image are in memory.

Whoever writes COCO's format does it here: ``convert``, predictions, pseudo-labels. ::

    with write_coco(path, class_names, class_ids, info={...}) as file:
        for ...:
            file.add_image(image_id, name, (height, width))
            file.add_object(image_id, label, to_xywh(corners), score=0.9)

The file takes its name when the block ends; a reader never sees half of it.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from datamodules.common import rle
from datamodules.common.files import atomic_path


def nine_digits(value: float) -> float:
    """So many tell any two float32 apart."""
    return float(f"{value:.9g}")


def thousandth(value: float) -> float:
    """Rounded to a thousandth of a pixel."""
    return round(value, 3)


def to_xywh(corners: Sequence[float], rounded: Callable[[float], float] = nine_digits) -> list[float]:
    """x1 y1 x2 y2 in pixels -> COCO's x, y, width, height.

    Args:
        corners: Four floats; float64 or Python's, so that differences are exact.
        rounded: What is done with each number.
    """
    x1, y1, x2, y2 = corners
    return [rounded(value) for value in (x1, y1, x2 - x1, y2 - y1)]


def category_ids(class_names: Sequence[str], class_ids: Sequence[int] | None) -> list[int]:
    """The categories' ids: those of the source, or else 1 to K."""
    return list(class_ids) if class_ids is not None else list(range(1, len(class_names) + 1))


def plain_mask(mask: Any) -> Any:
    """A mask as JSON holds it: polygons as they are, compressed run lengths as text."""
    if not isinstance(mask, Mapping):
        return mask
    counts = mask["counts"]
    return {"size": list(mask["size"]), "counts": counts.decode() if isinstance(counts, bytes) else counts}


class JsonList:
    """A JSON list that is written item by item, one a line.

    Args:
        file: An open text file.
    """

    def __init__(self, file: TextIO) -> None:
        self.file = file
        self.count = 0
        file.write("[")

    def add(self, value: Any) -> None:
        """Append one item."""
        self.file.write(",\n" if self.count else "\n")
        self.file.write(json.dumps(value))
        self.count += 1

    def end(self) -> None:
        """Close the list."""
        self.file.write("\n]")


class CocoFile:
    """A data set that is being written; see ``write_coco``."""

    def __init__(self, annotations: JsonList, images: JsonList, ids: Sequence[int]) -> None:
        self._annotations, self._images, self._ids = annotations, images, ids

    def add_image(self, image_id: int, file_name: str, size: tuple[int, int]) -> None:
        """Append an image of height and width ``size``."""
        height, width = size
        self._images.add({"id": image_id, "file_name": file_name, "width": width, "height": height})

    def add_object(
        self,
        image_id: int,
        label: int,
        bbox: Sequence[float],
        *,
        annotation_id: int | None = None,
        area: float | None = None,
        is_crowd: bool = False,
        score: float | None = None,
        mask: Any = None,
    ) -> None:
        """Append an object.

        Args:
            image_id: As for ``add_image``.
            label: Class, 0..K-1.
            bbox: x, y, width and height in pixels, as they are to be written; see ``to_xywh``.
            annotation_id: By default the objects are counted from 1.
            area: In pixels; that of the mask, or else of the box, by default.
            is_crowd: Whether it is a group of objects.
            score: Of a predicted object.
            mask: Polygons, or run lengths of any form; an empty list is written as it is, None leaves the key out.
        """
        if area is None:
            area = rle.area(mask) if isinstance(mask, Mapping) else nine_digits(bbox[2] * bbox[3])
        entry: dict[str, Any] = {
            "id": self._annotations.count + 1 if annotation_id is None else annotation_id,
            "image_id": image_id,
            "category_id": self._ids[label],
            "bbox": list(bbox),
            "area": area,
            "iscrowd": int(is_crowd),
        }
        if score is not None:
            entry["score"] = score
        if mask is not None:
            entry["segmentation"] = plain_mask(mask)
        self._annotations.add(entry)


@contextmanager
def write_coco(
    path: Path,
    class_names: Sequence[str],
    class_ids: Sequence[int] | None = None,
    info: Mapping[str, Any] | None = None,
) -> Iterator[CocoFile]:
    """A COCO file of images, objects and categories, which are added in the block.

    Args:
        path: A ``.json`` file; replaced in one step when the block ends, left as it is when the block raises.
        class_names: K names.
        class_ids: The K categories' ids; 1 to K by default.
        info: Further values of the file, under ``info``.
    """
    ids = category_ids(class_names, class_ids)
    named = zip(ids, class_names, strict=True)
    categories = [{"id": number, "name": name, "supercategory": ""} for number, name in named]
    rest = {"categories": categories} | ({"info": info} if info else {})
    with (
        atomic_path(path) as temporary,
        open(temporary, "w", newline="", encoding="utf-8") as file,
        tempfile.TemporaryFile("w+", newline="", encoding="utf-8", dir=temporary.parent) as images_file,
    ):
        file.write('{"annotations": ')
        annotations, images = JsonList(file), JsonList(images_file)
        yield CocoFile(annotations, images, ids)
        annotations.end()
        images.end()
        file.write(', "images": ')
        images_file.seek(0)
        shutil.copyfileobj(images_file, file)
        file.write(", " + json.dumps(rest)[1:] + "\n")
