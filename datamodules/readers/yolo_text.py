"""YOLO text: a file of normalized boxes or polygons for each image, and the YAML that names sets and classes."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from datamodules.annotations.records import Listing, Record
from datamodules.common import rle
from datamodules.common.errors import UserError, examples
from datamodules.decoding.sizes import image_size
from datamodules.readers.class_files import CLASSES_FILE
from datamodules.readers.text import read_lines
from datamodules.readers.yolo_sets import Sets, find_names, find_sets, label_file

_MOST_CLASSES = 1_000_000
_WHOLE = 2.0  # a normalized coordinate beyond this is no rounding: the file holds pixels
_SEEN = (0.0, 1.0, 2.0)  # how well a key point is seen


def read_yolo(source: str | Path, class_names: list[str] | None = None) -> Listing:
    """Read YOLO's text labels; records as in ``datamodules.readers.coco``.

    A line is ``class cx cy width height``, a box, or ``class x1 y1 x2 y2 x3 y3 ...``, a polygon with at least three
    corners (oriented boxes are such); all but the class are fractions of the image's width and height. Key points
    behind a box are left out where the YAML has ``kpt_shape``. The labels of ``.../images/a/b.jpg`` are
    in ``.../labels/a/b.txt`` (the last folder named ``images`` counts), or beside the image where no folder has that
    name. An empty or missing label file means an image without objects. Sizes come from the images' headers, EXIF
    orientation included.

    Args:
        source: A YAML file with ``train``, ``val`` and ``test`` (each a folder, a ``.txt`` list of images, or a list
            of those), ``names`` (a list, or a dict of class number to name) and optionally ``path``, where relative
            paths start (the YAML's own folder by default). Or CVAT's ``obj.data``. Or a folder, with such a
            ``data.yaml`` or the only YAML with ``names`` in it, or with ``images/{train,val,test}`` or
            ``{train,val,test}/images`` (or plain ``images``, split None) and the labels beside.
        class_names: All classes by their numbers; by default those of the YAML, or of ``classes.txt`` or
            ``obj.names`` in the folder or beside the labels, or else the numbers themselves.

    Returns:
        Records, ``annotation_ids`` being line numbers, and class names. Numbers of a dict with gaps are mapped to
        0..K-1 in their order.

    Raises:
        UserError: If the source, a folder, a list or an image is missing.
        UserError: If the YAML or a line is not as above, naming file, line and value.
    """
    source = Path(source)
    if not source.exists():
        raise UserError(f"YOLO data '{source}' does not exist (looked in {Path.cwd()}).")
    data = find_sets(source)
    _refuse_repeats(data.sets)
    jobs = [(image, split, data.keypoints) for images, split in data.sets for image in images]
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(lambda job: _read_image(*job), jobs))
    records = [record for record, _ in read]
    notes = [*data.notes, *_count_labels(source, read)]
    names = data.names
    if class_names is None and names is None:
        class_names = find_names(source if source.is_dir() else source.parent, _label_folders(records))
    if class_names is not None and (names is None or [names[i] for i in sorted(names)] != class_names):
        names = dict(enumerate(class_names))  # the same names as in the YAML keep its numbers, which may have gaps
    if names is None:
        names = _numbered(source, records)
        notes.append(
            f"'{source}' names no classes: they are called {examples(list(names.values()), 3)}. Write their names into"
            f" '{source / CLASSES_FILE}', one a line, or set data.class_names."
        )
    _map_classes(records, names, data.file)
    return Listing(records, [names[i] for i in sorted(names)], notes=tuple(notes))


def _label_folders(records: list[Record]) -> list[str]:
    return list(dict.fromkeys(os.path.dirname(record["annotation_file"]) for record in records))


def _count_labels(source: Path, read: list[_Read]) -> list[str]:
    """A sentence about each split that lacks label files.

    Raises:
        UserError: If a split for training or validation has none at all.
    """
    notes = []
    for split in dict.fromkeys(record["split"] for record, _ in read):
        own = [(record, found) for record, found in read if record["split"] == split]
        missing = [record for record, found in own if not found]
        if not missing:
            continue
        first, stray = missing[0]["annotation_file"], _stray_labels([record for record, _ in own])
        name = f"{split} images" if split else "images"
        beside = f" {len(stray)} label file(s) there have no image, for example '{stray[0]}'." if stray else ""
        if len(missing) < len(own) or split == "test":
            notes.append(
                f"'{source}': {len(missing):,} of {len(own):,} {name} have no label file and count as images without"
                f" objects, for example '{first}'.{beside}"
            )
            continue
        raise UserError(
            f"'{source}': none of the {len(own):,} {name} has a label file; the first was looked for at '{first}'."
            f"{beside} Put the label files there, named like the images; an empty file is an image without objects."
        )
    return notes


def _stray_labels(records: list[Record]) -> list[str]:
    """Text files beside the label files that belong to no image."""
    known = {record["annotation_file"] for record in records}
    folders = [folder for folder in _label_folders(records) if os.path.isdir(folder)]
    texts = [os.path.join(f, name) for f in folders for name in sorted(os.listdir(f)) if name.endswith(".txt")]
    return [text for text in texts if text not in known and os.path.basename(text) != CLASSES_FILE]


def _numbered(source: Path, records: list[Record]) -> dict[int, str]:
    """Classes named by their numbers, up to the highest that occurs."""
    highest = max((int(record["labels"].max()) for record in records if len(record["labels"])), default=-1)
    if highest < 0:
        raise UserError(f"'{source}' names no classes and its label files hold no objects.")
    return {i: str(i) for i in range(highest + 1)}


def _refuse_repeats(sets: Sets) -> None:
    places: dict[str, str | None] = {}
    for images, split in sets:
        for image in images:
            if image in places:
                again = "twice" if places[image] == split else f"in {places[image]} and in {split}"
                raise UserError(f"Image '{image}' is {again}; remove it from one place.")
            places[image] = split


class _Read(NamedTuple):
    """A record whose labels are still the file's class numbers, and whether there is such a file."""

    record: Record
    found: bool


def _read_image(image: str, split: str | None, keypoints: int) -> _Read:
    file = label_file(image)
    height, width = image_size(image)
    try:
        lines, found = read_lines(file), True
    except FileNotFoundError:
        lines, found = [], False
    rows = [(number, words) for number, line in enumerate(lines, 1) if (words := line.split())]
    values = [_numbers(file, number, words, keypoints) for number, words in rows]
    segmentation: list[list[list[float]] | None] = [None] * len(rows)
    boxes = np.array([v[1:5] for v in values], np.float64).reshape(-1, 4) * (width, height, width, height)
    boxes = np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], axis=1)
    area = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    for i, value in enumerate(values):
        if len(value) > 5:
            corners = np.array(value[1:]).reshape(-1, 2) * (width, height)
            boxes[i] = *corners.min(0), *corners.max(0)
            segmentation[i] = polygons = [corners.ravel().tolist()]
            area[i] = _area(polygons, height, width)
    record: Record = {
        "image": image,
        "path": image,
        "split": split,
        "height": height,
        "width": width,
        "boxes": boxes.astype(np.float32),
        "labels": np.array([v[0] for v in values], np.int64),
        "iscrowd": np.zeros(len(rows), np.uint8),
        "area": area.astype(np.float32),
        "segmentation": segmentation if any(p is not None for p in segmentation) else None,
        "annotation_ids": np.array([number for number, _ in rows], np.int64),
        "annotation_file": file,
    }
    return _Read(record, found)


def _numbers(file: str, line: int, words: Sequence[str], keypoints: int) -> list[float]:
    """The numbers of one line, without those of key points."""
    try:
        values = [float(word.replace("_", "?")) for word in words]  # Python takes 1_000 for a number
    except ValueError as error:
        raise UserError(f"{file}, line {line}: {error}; a line is: class cx cy width height.") from None
    values = _without_keypoints(f"{file}, line {line}", values, keypoints)
    if len(values) < 5 or (len(values) > 5 and (len(values) == 6 or len(values) % 2 == 0)):
        hint = " Is the last one a confidence? Labels have none." if len(values) == 6 else ""
        raise UserError(
            f"{file}, line {line}: {len(values)} numbers; a box has 5 (class cx cy width height), a polygon 7, 9, 11,"
            f" ... (class x1 y1 x2 y2 x3 y3 ...).{hint}"
        )
    if not values[0].is_integer() or not 0 <= values[0] < _MOST_CLASSES:
        raise UserError(f"{file}, line {line}: the class is {words[0]}; it must be an integer from 0 on.")
    if any(abs(value) > _WHOLE for value in values[1:]):
        raise UserError(
            f"{file}, line {line}: {max(values[1:], key=abs):g} is no fraction of the image's size. Are the numbers"
            " pixels? Divide x by the width, y by the height."
        )
    if len(values) > 5 and not all(map(math.isfinite, values)):
        raise UserError(f"{file}, line {line}: a corner of the polygon is NaN. Draw it again, or remove the line.")
    return values


def _without_keypoints(where: str, values: list[float], keypoints: int) -> list[float]:
    """Class and box of a line with key points behind; any other line as it is.

    Raises:
        UserError: If there are not so many as ``kpt_shape`` says, or they are there and nothing says so.
    """
    if keypoints and len(values) not in (5, 5 + keypoints):
        raise UserError(
            f"{where}: {len(values)} numbers; with the YAML's kpt_shape a line has {5 + keypoints} (class cx cy width"
            " height, then the key points)."
        )
    if keypoints:
        return values[:5]
    seen = values[7::3]  # of key points x y visible x y visible ...; a polygon's would all lie on the image's border
    if len(values) > 5 and not len(values[5:]) % 3 and all(v in _SEEN for v in seen) and (2.0 in seen or len(seen) > 3):
        raise UserError(
            f"{where}: this looks like a box with {len(seen)} key points, not like a polygon. Add kpt_shape:"
            f" [{len(seen)}, 3] to the data's YAML; the boxes are read then."
        )
    return values


def _area(polygons: Any, height: int, width: int) -> float:
    return float(rle.area(rle.from_segmentation(polygons, height, width)))


def _map_classes(records: list[Record], names: dict[int, str], file: Path | None) -> None:
    numbers = np.array(sorted(names), np.int64)
    for record in records:
        given = record["labels"]
        place = np.searchsorted(numbers, given)
        wrong = np.flatnonzero(numbers[np.minimum(place, len(numbers) - 1)] != given)
        if len(wrong):
            source = f"names of '{file}'" if file is not None else "the class names"
            raise UserError(
                f"{record['annotation_file']}, line {int(record['annotation_ids'][wrong[0]])}: class"
                f" {given[wrong[0]]} is none of the {source} ({numbers[0]} to {numbers[-1]}, {len(numbers)} classes)."
                " Add its name, or correct the line."
            )
        record["labels"] = place.astype(np.int64)
