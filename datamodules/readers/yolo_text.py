"""YOLO text: a file of normalized boxes or polygons for each image, and the YAML that names sets and classes."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from datamodules.annotations.records import Listing, Record, split_name
from datamodules.common import rle
from datamodules.common.errors import UserError
from datamodules.decoding.files import IMAGE_SUFFIXES, find_images
from datamodules.decoding.sizes import image_size
from datamodules.readers.class_files import CLASSES_FILE, read_class_file

_YAMLS = ("data.yaml", "dataset.yaml", "data.yml", "dataset.yml")
_CLASS_LISTS = (CLASSES_FILE, "obj.names")
_MOST_CLASSES = 1_000_000
_WHOLE = 2.0  # a normalized coordinate beyond this is no rounding: the file holds pixels

Sets = list[tuple[list[str], str | None]]  # images and their split


def read_yolo(source: str | Path, class_names: list[str] | None = None) -> Listing:
    """Read YOLO's text labels; records as in ``datamodules.readers.coco``.

    A line is ``class cx cy width height``, a box, or ``class x1 y1 x2 y2 x3 y3 ...``, a polygon with at least three
    corners; all but the class are fractions of the image's width and height. The labels of ``.../images/a/b.jpg`` are
    in ``.../labels/a/b.txt`` (the last folder named ``images`` counts), or beside the image where no folder has that
    name. An empty or missing label file means an image without objects. Sizes come from the images' headers, EXIF
    orientation included.

    Args:
        source: A YAML file with ``train``, ``val`` and ``test`` (each a folder, a ``.txt`` list of images, or a list
            of those), ``names`` (a list, or a dict of class number to name) and optionally ``path``, where relative
            paths start (the YAML's own folder by default). Or a folder, with such a ``data.yaml`` or ``dataset.yaml``
            in it, or with ``images/{train,val,test}`` or ``{train,val,test}/images`` (or plain ``images``, split
            None) and the labels beside.
        class_names: All classes by their numbers; by default those of the YAML, or of ``classes.txt`` or
            ``obj.names`` in the folder, or else the numbers themselves.

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
    file = _yaml_of(source)
    names: dict[int, str] | None = None
    if file is not None:
        sets, names = _dataset(file)
    else:
        sets = _folders(source)
        class_names = class_names if class_names is not None else read_class_file(source, _CLASS_LISTS)
    if class_names is not None and (names is None or [names[i] for i in sorted(names)] != class_names):
        names = dict(enumerate(class_names))  # the same names as in the YAML keep its numbers, which may have gaps
    _refuse_repeats(sets)
    jobs = [(image, split) for images, split in sets for image in images]
    with ThreadPoolExecutor(8) as pool:
        records = list(pool.map(lambda job: _read_image(*job), jobs))
    names = names if names is not None else _numbered(source, records)
    _map_classes(records, names, file)
    return Listing(records, [names[i] for i in sorted(names)])


def _yaml_of(source: Path) -> Path | None:
    """The YAML file that a source is, or that its folder has."""
    if source.is_file():
        return source
    return next((source / name for name in _YAMLS if (source / name).is_file()), None)


def _numbered(source: Path, records: list[Record]) -> dict[int, str]:
    """Classes named by their numbers, up to the highest that occurs."""
    highest = max((int(record["labels"].max()) for record in records if len(record["labels"])), default=-1)
    if highest < 0:
        raise UserError(f"'{source}' names no classes and its label files hold no objects.")
    return {i: str(i) for i in range(highest + 1)}


def label_file(image: str) -> str:
    """Where the labels of an image are."""
    parts = image.split(os.sep)
    folders = [i for i, part in enumerate(parts[:-1]) if part == "images"]
    if folders:
        parts[folders[-1]] = "labels"
    return os.path.splitext(os.sep.join(parts))[0] + ".txt"


def _dataset(file: Path) -> tuple[Sets, dict[int, str]]:
    """Images by split, and class names by number, of a YAML file."""
    try:
        data = yaml.safe_load(file.read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"'{file}' cannot be read as YAML ({error}).") from error
    if not isinstance(data, dict) or not any(key in data for key in ("train", "val", "test")):
        have = ", ".join(map(str, data)) if isinstance(data, dict) else type(data).__name__
        raise UserError(f"'{file}' describes no data set: it needs train, val or test, and names (it has: {have}).")
    names = _names(file, data)
    root = file.parent / str(data.get("path") or "")
    if not root.is_dir():
        raise UserError(
            f"'{file}': path is '{data['path']}', and '{root}' is no folder. Relative paths start at the YAML file;"
            " leave path out if the data lie beside it."
        )
    sets: Sets = []
    for split in ("train", "val", "test"):
        places = data.get(split) or []
        for place in [places] if isinstance(places, str) else places:
            sets.append((_images(file, split, root, str(place)), split))
    return sets, names


def _names(file: Path, data: dict[Any, Any]) -> dict[int, str]:
    names = data.get("names")
    if names is None and isinstance(data.get("nc"), int):
        return {i: str(i) for i in range(data["nc"])}
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not names or not all(isinstance(i, int) and i >= 0 for i in names):
        raise UserError(f"'{file}': names is {names!r}; it must be a list of names, or a dict of numbers to names.")
    named = {i: str(name) for i, name in names.items()}
    if len(set(named.values())) < len(named):
        twice = next(n for n in named.values() if list(named.values()).count(n) > 1)
        raise UserError(f"'{file}': names has '{twice}' twice; give each class a name of its own.")
    if data.get("nc") not in (None, len(named)):
        raise UserError(f"'{file}': nc is {data['nc']}, but names has {len(named)} names; correct one of them.")
    return named


def _images(file: Path, split: str, root: Path, place: str) -> list[str]:
    """The images that one entry of a YAML file means."""
    path = root / place
    if not path.exists() and place.startswith("../") and (root / place[3:]).exists():
        path = root / place[3:]  # Roboflow's files start one folder too high
    if path.is_dir():
        return find_images(path)
    if path.is_file() and path.suffix.lower() == ".txt":
        return _listed_images(path, root)
    raise UserError(
        f"'{file}': {split} is '{place}', and '{path}' is no folder and no .txt list. Relative paths start at"
        f" {'path' if root != file.parent else 'the YAML file'}: {root}."
    )


def _listed_images(file: Path, root: Path) -> list[str]:
    """The images of a text file, one path a line, from ``root`` or the file's own folder."""
    found = []
    for line, text in enumerate(file.read_text("utf-8").splitlines(), 1):
        name = text.strip()
        if not name:
            continue
        image = next((path for path in (root / name, file.parent / name) if path.is_file()), None)
        if image is None:
            raise UserError(f"{file}, line {line}: image '{name}' does not exist (from {root}).")
        found.append(os.path.normpath(image))
    return found


def _folders(root: Path) -> Sets:
    """The images of a folder without a YAML file."""
    folders = _split_folders(root / "images", "") or _split_folders(root, "images")
    if folders:
        order = ("train", "val", "test")
        folders.sort(key=lambda found: order.index(found[0]))
        return [(find_images(images), split) for split, images in folders]
    if (root / "images").is_dir():
        return [(find_images(root / "images"), None)]
    loose = [str(root / name) for name in sorted(os.listdir(root)) if name.lower().endswith(IMAGE_SUFFIXES)]
    if any(os.path.isfile(label_file(image)) for image in loose):
        return [(loose, None)]
    raise UserError(
        f"'{root}' holds no YOLO data: expected a data.yaml, images/train and labels/train, or images and labels."
    )


def _split_folders(above: Path, below: str) -> list[tuple[str, Path]]:
    """Splits and their folders of images: ``above/SPLIT/below``."""
    found: list[tuple[str, Path]] = []
    if not above.is_dir():
        return found
    for folder in sorted(above.iterdir()):
        split = split_name(folder.name)
        images = folder / below
        if split is not None and images.is_dir():
            found.append((split, images))
    return found


def _refuse_repeats(sets: Sets) -> None:
    places: dict[str, str | None] = {}
    for images, split in sets:
        for image in images:
            if image in places:
                again = "twice" if places[image] == split else f"in {places[image]} and in {split}"
                raise UserError(f"Image '{image}' is {again}; remove it from one place.")
            places[image] = split


def _read_image(image: str, split: str | None) -> Record:
    """A record whose labels are still the file's class numbers."""
    file = label_file(image)
    height, width = image_size(image)
    try:
        with open(file, encoding="utf-8-sig") as stream:
            lines = stream.read().splitlines()
    except FileNotFoundError:
        lines = []
    except UnicodeDecodeError as error:
        raise UserError(f"'{file}' is no text file ({error}).") from error
    rows = [(number, words) for number, line in enumerate(lines, 1) if (words := line.split())]
    values = [_numbers(file, number, words) for number, words in rows]
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
    return {
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


def _numbers(file: str, line: int, words: Sequence[str]) -> list[float]:
    """The numbers of one line."""
    try:
        values = [float(word) for word in words]
    except ValueError as error:
        raise UserError(f"{file}, line {line}: {error}; a line is: class cx cy width height.") from None
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
