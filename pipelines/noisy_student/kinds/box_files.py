"""A file of boxes with scores in COCO's format, written, read and reduced."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from datamodules.annotations.records import Record
from datamodules.common.errors import UserError
from datamodules.common.files import write_text
from pipelines.noisy_student.paths import listed, resolved
from tasks.detection.evaluation.objects import Objects


class Boxes(NamedTuple):
    """A file's boxes.

    Attributes:
        paths: N images.
        sizes: Their heights and widths.
        image: int64 (D,), each box's image, not falling.
        boxes: float32 (D, 4), x1 y1 x2 y2 in original pixels.
        labels: int64 (D,).
        scores: float32 (D,); 1 where somebody drew a box by hand.
        crowd: bool (D,).
    """

    paths: list[str]
    sizes: list[tuple[int, int]]
    image: NDArray[np.int64]
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    scores: NDArray[np.float32]
    crowd: NDArray[np.bool_]


def boxes_of_entries(paths: list[str], entries: Sequence[Mapping[str, Any]]) -> Boxes:
    """The boxes of images as ``outputs.detections.entry_of`` gives them: ``bbox`` (x, y, width, height), and so on."""
    corners = np.array([box for entry in entries for box in entry["bbox"]], np.float64).reshape(-1, 4)
    corners[:, 2:] += corners[:, :2]
    image = np.repeat(np.arange(len(paths)), [len(entry["labels"]) for entry in entries])
    return Boxes(
        paths,
        [tuple(entry["size"]) for entry in entries],
        image,
        corners.astype(np.float32),
        np.array([label for entry in entries for label in entry["labels"]], np.int64),
        np.array([score for entry in entries for score in entry["scores"]], np.float32),
        np.zeros(len(image), np.bool_),
    )


def write_boxes(
    found: Boxes, output: Path, class_names: Sequence[str], class_ids: Sequence[int] | None, digest: str = ""
) -> None:
    """Write COCO's format with a ``score`` beside each box; images by their paths, see ``listed``.

    Args:
        found: What to write.
        output: A ``.json`` file; replaced in one step.
        class_names: K names.
        class_ids: The categories' ids; 1 to K by default.
        digest: Kept in the file's ``info``.
    """
    ids = list(class_ids or range(1, len(class_names) + 1))
    images = [
        {"id": i + 1, "file_name": listed(path, output), "height": height, "width": width}
        for i, (path, (height, width)) in enumerate(zip(found.paths, found.sizes, strict=True))
    ]
    x1, y1, x2, y2 = found.boxes.astype(np.float64).T
    columns = zip(
        found.image.tolist(),
        found.labels.tolist(),
        np.stack([x1, y1, x2 - x1, y2 - y1], 1).tolist(),
        found.scores.tolist(),
        found.crowd.tolist(),
        strict=True,
    )
    annotations = [
        {
            "id": number,
            "image_id": image + 1,
            "category_id": ids[label],
            "bbox": [_nine_digits(v) for v in box],
            "area": _nine_digits(box[2] * box[3]),
            "score": _nine_digits(score),
            "iscrowd": int(crowd),
        }
        for number, (image, label, box, score, crowd) in enumerate(columns, 1)
    ]
    content = {
        "info": {"pseudo_label": {"digest": digest}},
        "categories": [{"id": number, "name": name} for number, name in zip(ids, class_names, strict=True)],
        "images": images,
        "annotations": annotations,
    }
    write_text(output, json.dumps(content))


def _nine_digits(value: float) -> float:
    """They tell any two float32 apart."""
    return float(f"{value:.9g}")


def read_boxes(file: Path, class_names: Sequence[str]) -> Boxes:
    """Read what ``write_boxes`` wrote, corrected by hand or not.

    Raises:
        UserError: If it has other classes.
    """
    data = json.loads(file.read_text(encoding="utf-8"))
    names = {category["id"]: category["name"] for category in data["categories"]}
    if unknown := [name for name in names.values() if name not in class_names]:
        raise UserError(f"{file} has the category '{unknown[0]}', which is none of the classes {list(class_names)}.")
    place = {image["id"]: i for i, image in enumerate(data["images"])}
    rows = sorted(data["annotations"], key=lambda a: place[a["image_id"]])  # stable
    corners = np.array([a["bbox"] for a in rows], np.float64).reshape(-1, 4)
    corners[:, 2:] += corners[:, :2]
    return Boxes(
        [resolved(image["file_name"], file) for image in data["images"]],
        [(image["height"], image["width"]) for image in data["images"]],
        np.array([place[a["image_id"]] for a in rows], np.int64),
        corners.astype(np.float32),
        np.array([class_names.index(names[a["category_id"]]) for a in rows], np.int64),
        np.array([a.get("score", 1.0) for a in rows], np.float32),
        np.array([bool(a.get("iscrowd", 0)) for a in rows], np.bool_),
    )


def take(found: Boxes, rows: NDArray[Any]) -> Boxes:
    """Some boxes of the same images."""
    return found._replace(**{key: getattr(found, key)[rows] for key in ("image", "boxes", "labels", "scores", "crowd")})


def images_of(found: Boxes, images: NDArray[np.int64]) -> Boxes:
    """Some of the images, by their rising numbers, with their boxes."""
    inside = np.isin(found.image, images)
    chosen = take(found, inside)
    return chosen._replace(
        paths=[found.paths[i] for i in images],
        sizes=[found.sizes[i] for i in images],
        image=np.searchsorted(images, chosen.image),
    )


def objects_of(found: Boxes) -> Objects:
    """What the matching takes."""
    return Objects(
        found.image,
        found.boxes,
        found.labels.astype(np.int32),
        found.scores,
        found.crowd,
        np.full(len(found.image), np.nan),
        np.full(len(found.image), None, dtype=object),
    )


def true_boxes(records: Sequence[Record], data: Any) -> Boxes:
    """The annotations of records in original pixels."""
    read = data.make_reader()
    samples = [record if "boxes" in record else read(record) for record in records]
    labels = [np.asarray(s["labels"], np.int64) for s in samples]
    return Boxes(
        [record["path"] for record in records],
        [s["image"].shape[:2] if hasattr(s["image"], "shape") else (s["height"], s["width"]) for s in samples],
        np.repeat(np.arange(len(records)), [len(of_image) for of_image in labels]),
        np.concatenate([np.zeros((0, 4), np.float32), *(s["boxes"] for s in samples)]).astype(np.float32),
        np.concatenate([np.zeros(0, np.int64), *labels]),
        np.ones(sum(map(len, labels)), np.float32),
        np.concatenate([np.zeros(0, np.bool_), *(s["iscrowd"] != 0 for s in samples)]),
    )
