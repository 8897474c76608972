"""What `test` and `predict` write of found objects: COCO's JSON, YOLO's text, a CSV table.

Writers take lines ``[number, path, name, entry]`` in the order of the images, one at a time: the image's number in the
data set, its path, what its files are called, and its objects (`entry_of`). See `pipelines.outputs.rank_files`.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TextIO

import numpy as np
from numpy.typing import NDArray

from datamodules.annotations.instance_masks import masks_of
from datamodules.common import rle
from datamodules.common.files import atomic_path, write_text
from pipelines.outputs.drawing import Annotation, annotation_of
from pipelines.outputs.rank_files import Line

BoxFormat = Literal["coco", "yolo", "csv"]
RESULTS = "predictions.json"
ANNOTATIONS = "annotations.json"
TABLE = "boxes.csv"
Entry = dict[str, Any]


def entry_of(outputs: Mapping[str, Any], index: int, size: tuple[int, int]) -> Entry:
    """One image's objects as plain numbers, of what a task predicts for a batch: one line of a rank's file.

    Args:
        outputs: Lists of one entry an image: ``boxes`` (n, 4) x1 y1 x2 y2 in original pixels, ``scores`` (n,),
            ``labels`` (n,) and where there are masks ``masks``, n run-length encoded ones.
        index: Of the image.
        size: Its original height and width.
    """
    x1, y1, x2, y2 = np.asarray(outputs["boxes"][index].cpu(), np.float64).reshape(-1, 4).T
    entry: Entry = {
        "size": size,
        "bbox": [_numbers(row) for row in np.stack([x1, y1, x2 - x1, y2 - y1], 1)],
        "scores": _numbers(outputs["scores"][index].cpu().numpy()),
        "labels": outputs["labels"][index].tolist(),
    }
    if "masks" in outputs:
        entry["masks"] = [{"size": list(m["size"]), "counts": _text(m["counts"])} for m in outputs["masks"][index]]
    return entry


def _numbers(values: NDArray[Any]) -> list[float]:
    """Nine digits, which tell any two float32 apart."""
    return [float(f"{value:.9g}") for value in values.tolist()]


def _text(counts: bytes | str) -> str:
    return counts.decode() if isinstance(counts, bytes) else counts


def drawable(outputs: Mapping[str, Any], index: int) -> Annotation:
    """One image's objects as ``pipelines.outputs.drawing`` draws them, on the CPU; arguments as for `entry_of`.

    Run-length encoded masks become int16 (L, H, W) of object numbers: a map for each object would fill the memory.
    """
    found = annotation_of(outputs, index)
    annotation = {key: np.asarray(v.detach().cpu() if hasattr(v, "detach") else v) for key, v in found.items()}
    shapes = outputs.get("masks", {index: ()})[index]
    if "masks" not in annotation and len(shapes):
        count = len(shapes)
        numbered = {"boxes": shapes, "segmentation": list(shapes), "path": "", "annotation_ids": np.arange(count)}
        annotation["masks"] = masks_of(numbered, *shapes[0]["size"])
    return annotation


def write_coco_results(
    directory: Path, lines: Iterable[Line], class_ids: Sequence[int], image_id: Callable[[int], Any]
) -> None:
    """Write ``predictions.json``, a list of COCO results; masks are run-length encoded.

    Args:
        directory: Where to write.
        lines: Of all images; see the module.
        class_ids: The K categories' ids.
        image_id: Of an image's number.
    """
    with _new_file(directory / RESULTS) as file:
        results = JsonList(file)
        for number, _, _, entry in lines:
            for result in _results(entry, image_id(number), class_ids):
                results.add(result)
        results.end()


def write_coco_data_set(
    directory: Path,
    lines: Iterable[Line],
    class_ids: Sequence[int],
    image_id: Callable[[int], Any],
    class_names: Sequence[str],
    folder: str = "",
) -> None:
    """Write ``annotations.json``, the results as a data set: images, categories, and a ``score`` beside each object.

    ``data.source`` and ``convert`` read it, given the ``image_root`` that stands in its ``info``.

    Args:
        directory: Where to write.
        lines: Of all images; see the module.
        class_ids: The K categories' ids.
        image_id: Of an image's number.
        class_names: K names.
        folder: The folder that all images have in common, below which their names start.
    """
    with (
        _new_file(directory / ANNOTATIONS) as file,
        tempfile.TemporaryFile("w+", encoding="utf-8", dir=directory) as later,  # in the file, images follow
    ):
        file.write('{"annotations": ')
        annotations, images = JsonList(file), JsonList(later)
        for number, path, _, entry in lines:
            identity, (height, width) = image_id(number), entry["size"]
            name = os.path.relpath(path, folder or None)
            images.add({"id": identity, "file_name": name, "height": height, "width": width})
            for result in _results(entry, identity, class_ids):
                annotations.add({"id": annotations.count + 1, **result, "area": _area(result), "iscrowd": 0})
        annotations.end()
        images.end()
        file.write(', "images": ')
        later.seek(0)
        shutil.copyfileobj(later, file)
        categories = [{"id": number, "name": name} for number, name in zip(class_ids, class_names, strict=True)]
        rest = {"categories": categories, "info": {"image_root": os.path.abspath(folder)}}
        file.write(", " + json.dumps(rest)[1:] + "\n")


def _results(entry: Entry, image_id: Any, class_ids: Sequence[int]) -> Iterator[dict[str, Any]]:
    """The objects of one image as COCO results."""
    masks = entry.get("masks") or [None] * len(entry["labels"])
    for box, score, label, mask in zip(entry["bbox"], entry["scores"], entry["labels"], masks, strict=True):
        result = {"image_id": image_id, "category_id": class_ids[label], "bbox": box, "score": score}
        yield result if mask is None else {**result, "segmentation": mask}


def _area(result: Mapping[str, Any]) -> float:
    """Pixels of the object's mask, or of its box where it has none."""
    if "segmentation" in result:
        return rle.area(result["segmentation"])
    _, _, width, height = result["bbox"]
    return float(f"{width * height:.9g}")


class JsonList:
    """A JSON list that is written item by item, one a line: memory does not grow with their number.

    Args:
        file: An open text file.

    Attributes:
        count: Items so far.
    """

    def __init__(self, file: TextIO) -> None:
        self.file, self.count = file, 0
        file.write("[")

    def add(self, value: Any) -> None:
        """Append one item."""
        self.file.write(",\n" if self.count else "\n")
        self.file.write(json.dumps(value))
        self.count += 1

    def end(self) -> None:
        """Close the list."""
        self.file.write("\n]\n")


@contextmanager
def _new_file(path: Path) -> Iterator[TextIO]:
    """A text file that takes its name when it is complete."""
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        yield file


def write_yolo(directory: Path, lines: Iterable[Line], class_names: Sequence[str]) -> None:
    """Write ``labels/NAME.txt`` for each image, one object a line, and ``classes.txt``; there is no place for a score.

    A line is the class, the box's center and its size as fractions of the image's width and height.
    """
    for _, _, name, entry in lines:
        height, width = entry["size"]
        objects = []
        for (x, y, w, h), label in zip(entry["bbox"], entry["labels"], strict=True):
            numbers = ((x + w / 2) / width, (y + h / 2) / height, w / width, h / height)
            objects.append(" ".join([str(label), *(f"{n:.8f}" for n in numbers)]) + "\n")
        write_text(directory / "labels" / f"{name}.txt", "".join(objects))
    write_text(directory / "classes.txt", "".join(f"{name}\n" for name in class_names))


def write_csv(directory: Path, lines: Iterable[Line], class_names: Sequence[str]) -> None:
    """Write ``boxes.csv``: one object a line, with path, class, score and corners in original pixels."""
    with _new_file(directory / TABLE) as file:
        writer = csv.writer(file)
        writer.writerow(["path", "class", "score", "x1", "y1", "x2", "y2"])
        for _, path, _, entry in lines:
            for (x, y, w, h), score, label in zip(entry["bbox"], entry["scores"], entry["labels"], strict=True):
                corners = [float(f"{v:.9g}") for v in (x, y, x + w, y + h)]
                writer.writerow([path, class_names[label], score, *corners])
