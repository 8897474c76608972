"""What `test` and `predict` write of found objects: COCO's JSON, YOLO's text, a CSV table."""

from __future__ import annotations

import csv
import heapq
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from datamodules.annotations.instance_masks import masks_of
from datamodules.common import rle
from pipelines.outputs.panels import Annotation, annotation_of

BoxFormat = Literal["coco", "yolo", "csv"]
RESULTS = "predictions.json"
ANNOTATIONS = "annotations.json"
TABLE = "boxes.csv"
Entry = dict[str, Any]


def entry_of(outputs: Mapping[str, Any], index: int, size: tuple[int, int]) -> Entry:
    """One image's objects as plain numbers, of what a task predicts for a batch: one line of a rank's file.

    Args:
        outputs: Lists of one entry an image: ``boxes`` (n, 4) x1 y1 x2 y2 in original pixels, ``scores`` (n,),
            ``labels`` (n,) and where there are masks ``masks``, n run lengths.
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
    """One image's objects as ``pipelines.outputs.panels`` draws them, on the CPU; arguments as for `entry_of`.

    Run lengths become int16 (L, H, W) of object numbers: a map for each object would fill the memory.
    """
    found = annotation_of(outputs, index)
    annotation = {key: np.asarray(v.detach().cpu() if hasattr(v, "detach") else v) for key, v in found.items()}
    shapes = outputs.get("masks", {index: ()})[index]
    if "masks" not in annotation and len(shapes):
        count = len(shapes)
        numbered = {"boxes": shapes, "segmentation": list(shapes), "path": "", "annotation_ids": np.arange(count)}
        annotation["masks"] = masks_of(numbered, *shapes[0]["size"])
    return annotation


def merged(parts: Sequence[Path]) -> Iterator[Any]:
    """The lines ``[number, path, name, entry]`` of all ranks' files in the order of the images; one is held at a time.

    NAME is what the image's files are called. Each rank's own file is in the order of the images.
    """
    with ExitStack() as stack:
        files = [stack.enter_context(open(part, encoding="utf-8")) for part in parts]
        lines = ((json.loads(line) for line in file) for file in files)
        yield from heapq.merge(*lines, key=lambda line: line[0])


def write_coco(
    directory: Path,
    parts: Sequence[Path],
    *,
    class_names: Sequence[str],
    class_ids: Sequence[int] | None = None,
    image_ids: Mapping[int, int] | None = None,
    folder: str = "",
    results_only: bool = False,
) -> None:
    """Write ``predictions.json``, a list of COCO results, and ``annotations.json``, the same as a data set.

    The data set has images and categories, and a ``score`` beside each object; ``data.source`` and ``convert`` read it,
    given the ``image_root`` that stands in its ``info``. Masks are run lengths.

    Args:
        directory: Where to write.
        parts: The ranks' files; see `merged`.
        class_names: K names.
        class_ids: The K categories' ids; 1 to K by default.
        image_ids: The images' ids by number; number + 1 by default.
        folder: The folder that all images have in common, below which their names start.
        results_only: Write no ``annotations.json``.
    """
    ids = list(range(1, len(class_names) + 1)) if class_ids is None else class_ids
    images, count = [], 0
    with ExitStack() as stack:
        results, annotations = (
            stack.enter_context(open(os.devnull if skipped else directory / name, "w", encoding="utf-8"))
            for name, skipped in ((RESULTS, False), (ANNOTATIONS, results_only))
        )
        results.write("[")
        annotations.write('{"annotations": [')
        for number, path, _, entry in merged(parts):
            image = (image_ids or {}).get(number, number + 1)
            height, width = entry["size"]
            file_name = os.path.relpath(path, folder or None)
            images.append({"id": image, "file_name": file_name, "height": height, "width": width})
            masks = entry.get("masks") or [None] * len(entry["labels"])
            for box, score, label, mask in zip(entry["bbox"], entry["scores"], entry["labels"], masks, strict=True):
                result = {"image_id": image, "category_id": ids[label], "bbox": box, "score": score}
                result |= {} if mask is None else {"segmentation": mask}
                comma = ",\n" if count else "\n"
                count += 1
                results.write(comma + json.dumps(result))
                if not results_only:
                    area = float(f"{box[2] * box[3]:.9g}") if mask is None else rle.area(mask)
                    annotations.write(comma + json.dumps({"id": count, **result, "area": area, "iscrowd": 0}))
        results.write("\n]\n")
        categories = [{"id": number, "name": name} for number, name in zip(ids, class_names, strict=True)]
        rest = {"images": images, "categories": categories, "info": {"image_root": os.path.abspath(folder)}}
        annotations.write("\n], " + json.dumps(rest)[1:] + "\n")


def write_yolo(directory: Path, parts: Sequence[Path], class_names: Sequence[str]) -> None:
    """Write ``labels/NAME.txt`` for each image, one object a line, and ``classes.txt``; there is no place for a score.

    A line is the class, the box's centre and its size as parts of the image's width and height.
    """
    for _, _, name, entry in merged(parts):
        height, width = entry["size"]
        lines = []
        for (x, y, w, h), label in zip(entry["bbox"], entry["labels"], strict=True):
            numbers = ((x + w / 2) / width, (y + h / 2) / height, w / width, h / height)
            lines.append(" ".join([str(label), *(f"{n:.8f}" for n in numbers)]) + "\n")
        file = directory / "labels" / f"{name}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(lines), encoding="utf-8")
    (directory / "classes.txt").write_text("".join(f"{name}\n" for name in class_names), encoding="utf-8")


def write_csv(directory: Path, parts: Sequence[Path], class_names: Sequence[str]) -> None:
    """Write ``boxes.csv``: one object a line, with path, class, score and corners in original pixels."""
    with open(directory / TABLE, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "class", "score", "x1", "y1", "x2", "y2"])
        for _, path, _, entry in merged(parts):
            for (x, y, w, h), score, label in zip(entry["bbox"], entry["scores"], entry["labels"], strict=True):
                corners = [float(f"{v:.9g}") for v in (x, y, x + w, y + h)]
                writer.writerow([path, class_names[label], score, *corners])
