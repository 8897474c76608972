"""What `test` and `predict` write of found objects: COCO's JSON, YOLO's text, a CSV table.

Writers take lines ``[number, path, name, entry]`` in the order of the images, one at a time: the image's number in the
data set, its path, what its files are called, and its objects (`entry_of`). See `pipelines.outputs.rank_files`.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TextIO

import numpy as np

from datamodules.annotations.instance_masks import masks_of
from datamodules.common.files import atomic_path
from pipelines.outputs.drawing import Annotation, annotation_of
from pipelines.outputs.formats.coco import JsonList, nine_digits, plain_mask, to_xywh, write_coco
from pipelines.outputs.formats.yolo import object_line, write_class_names, write_labels
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
    corners = np.asarray(outputs["boxes"][index].cpu(), np.float64).reshape(-1, 4).tolist()
    entry: Entry = {
        "size": size,
        "bbox": [to_xywh(box) for box in corners],
        "scores": [nine_digits(score) for score in outputs["scores"][index].tolist()],
        "labels": outputs["labels"][index].tolist(),
    }
    if "masks" in outputs:
        entry["masks"] = [plain_mask(mask) for mask in outputs["masks"][index]]
    return entry


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
            for label, box, score, mask in _objects(entry):
                result = {"image_id": image_id(number), "category_id": class_ids[label], "bbox": box, "score": score}
                results.add(result if mask is None else {**result, "segmentation": mask})
        results.end()
        file.write("\n")


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
    info = {"image_root": os.path.abspath(folder)}
    with write_coco(directory / ANNOTATIONS, class_names, class_ids, info) as file:
        for number, path, _, entry in lines:
            file.add_image(image_id(number), os.path.relpath(path, folder or None), entry["size"])
            for label, box, score, mask in _objects(entry):
                file.add_object(image_id(number), label, box, score=score, mask=mask)


def _objects(entry: Entry) -> Iterable[tuple[int, list[float], float, Any]]:
    """Class, box (x, y, width, height), score and mask (or None) of each object of an image."""
    masks = entry.get("masks") or [None] * len(entry["labels"])
    return zip(entry["labels"], entry["bbox"], entry["scores"], masks, strict=True)


def write_yolo(directory: Path, lines: Iterable[Line], class_names: Sequence[str]) -> None:
    """Write ``labels/NAME.txt`` for each image, one object a line without its score, and ``classes.txt``."""
    for _, _, name, entry in lines:
        objects = [object_line(label, _corners(box), entry["size"]) for label, box, *_ in _objects(entry)]
        write_labels(directory / "labels" / f"{name}.txt", objects)
    write_class_names(directory / "classes.txt", class_names)


def write_csv(directory: Path, lines: Iterable[Line], class_names: Sequence[str]) -> None:
    """Write ``boxes.csv``: one object a line, with path, class, score and corners in original pixels."""
    with _new_file(directory / TABLE) as file:
        writer = csv.writer(file)
        writer.writerow(["path", "class", "score", "x1", "y1", "x2", "y2"])
        for _, path, _, entry in lines:
            for label, box, score, _ in _objects(entry):
                writer.writerow([path, class_names[label], score, *map(nine_digits, _corners(box))])


def _corners(box: Sequence[float]) -> list[float]:
    """x, y, width, height -> x1 y1 x2 y2."""
    x, y, width, height = box
    return [x, y, x + width, y + height]


@contextmanager
def _new_file(path: Path) -> Iterator[TextIO]:
    """A text file that takes its name when it is complete."""
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        yield file
