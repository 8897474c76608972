"""Which images a YOLO data set has, in which splits, and what its classes are called."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from datamodules.annotations.records import split_name
from datamodules.common.errors import UserError
from datamodules.decoding.files import find_file, is_visible, left_out, list_images, scan_images, subfolders
from datamodules.readers.class_files import CLASSES_FILE, class_names_of
from datamodules.readers.text import read_lines, read_text, whole

_YAMLS = ("data.yaml", "dataset.yaml", "data.yml", "dataset.yml")
_DARKNET = "obj.data"  # as CVAT's "YOLO 1.1" and darknet have it
_CLASS_LISTS = (CLASSES_FILE, "obj.names", "_darknet.labels")
_MOST_CLASSES = 1_000_000
_NOTHING = ("", "null", "~")  # what YAML has for no value

Sets = list[tuple[list[str], str | None]]  # images and their split


class DataSet(NamedTuple):
    """What the files say, the label files apart."""

    sets: Sets
    names: dict[int, str] | None = None  # by class number
    keypoints: int = 0  # numbers of the key points behind each box
    file: Path | None = None  # the YAML
    notes: tuple[str, ...] = ()


def find_sets(source: Path) -> DataSet:
    """The images of a YAML file, of CVAT's ``obj.data``, or of a folder with or without them.

    Raises:
        UserError: If something that is named does not exist, or the file is not as ``read_yolo`` describes.
    """
    file = _file_of(source)
    others: Counter[str] = Counter()
    if file is None:
        return DataSet(_folders(source, others), notes=tuple(left_out(others, source)))
    data = _load(file)
    names = _names(file, data)
    keypoints = _keypoints(file, data)
    if source.is_dir() and not any(_places(data, split) for split in ("train", "val", "test")):
        return DataSet(_folders(source, others), names, keypoints, file, tuple(left_out(others, source)))
    sets, notes = _sets(file, data, others)
    return DataSet(sets, names, keypoints, file, (*notes, *left_out(others, source)))


def find_names(source: Path, label_folders: list[str]) -> list[str] | None:
    """The names in ``classes.txt``, ``obj.names`` or ``_darknet.labels`` of the folder, or beside the label files.

    Raises:
        UserError: If two of them differ.
    """
    folders = dict.fromkeys([source, source / "labels", *map(Path, label_folders)])
    files = [folder / name for folder in folders for name in _CLASS_LISTS if (folder / name).is_file()]
    if not files:
        return None
    names = class_names_of(files[0])
    for file in files[1:]:
        if class_names_of(file) != names:
            raise UserError(f"'{files[0]}' and '{file}' name different classes; remove one of them.")
    return names


def is_yolo(root: Path) -> bool:
    """Whether a folder has YOLO's label files or its description of a set."""
    if _file_of(root) is not None:
        return True
    patterns = ("labels/**/*.txt", "train/labels", "val*/labels", "test/labels", "obj_train_data")
    return any(next(root.glob(pattern), None) for pattern in patterns)


def _file_of(source: Path) -> Path | None:
    """The file that a source is, or that its folder has: by its name, or the only YAML with ``names``."""
    if source.is_file():
        return source
    for name in (*_YAMLS, _DARKNET):
        if (source / name).is_file():
            return source / name
    found = []
    for file in sorted(path for path in source.iterdir() if path.suffix.lower() in (".yaml", ".yml")):
        try:
            data = _load(file)
        except UserError:
            continue  # of another program
        if "names" in data and is_visible(file.name):
            found.append(file)
    if len(found) > 1:
        raise UserError(f"'{found[0]}' and '{found[1]}' both name classes; give one of them as data.source.")
    return found[0] if found else None


def _load(file: Path) -> dict[str, Any]:
    """The keys of a YAML file, its values as they are written: YAML would read ``no`` as false and 1.10 as 1.1."""
    if file.suffix.lower() not in (".yaml", ".yml"):
        return _load_darknet(file)
    try:
        data = yaml.load(read_text(file), Loader=yaml.BaseLoader)
    except (yaml.YAMLError, RecursionError) as error:
        raise UserError(f"'{file}' cannot be read as YAML ({error}).") from error
    if not isinstance(data, dict) or not any(key in data for key in ("train", "val", "test", "names")):
        have = ", ".join(map(str, data)) if isinstance(data, dict) else "no keys"
        raise UserError(f"'{file}' describes no data set: it needs train, val or test, and names (it has: {have}).")
    return data


def _load_darknet(file: Path) -> dict[str, Any]:
    """The same keys, of lines ``train = data/train.txt``."""
    pairs = [line.partition("=") for line in read_lines(file) if "=" in line and not line.startswith("#")]
    data: dict[str, Any] = {key.strip(): value.strip() for key, _, value in pairs}
    if not any(key in data for key in ("train", "valid", "names")):
        raise UserError(f"'{file}' describes no data set: it needs lines such as train = data/train.txt.")
    if "valid" in data:
        data["val"] = data.pop("valid")
    if "names" in data:
        names = next((p for n in spellings(data["names"]) if os.path.isfile(p := file.parent / n)), None)
        if names is None:
            raise UserError(f"'{file}': names is '{data['names']}', and there is no such file in '{file.parent}'.")
        data["names"] = class_names_of(names)
    return data


def _names(file: Path, data: dict[str, Any]) -> dict[int, str] | None:
    """The classes by their numbers, or ``nc`` of them without names; None where the file has neither."""
    names = data.get("names")
    number = None if data.get("nc", "") in _NOTHING else whole(data["nc"], f"'{file}': nc")
    if names is None:
        return None if number is None else {i: str(i) for i in range(min(number, _MOST_CLASSES))}
    named = _by_number(names)
    if named is None:
        raise UserError(
            f"'{file}': names is {names!r:.200}; it must be a list of names, or a dict of numbers to names."
        )
    repeated = [name for name, count in Counter(named.values()).items() if count > 1]
    if repeated:
        raise UserError(f"'{file}': names has '{repeated[0]}' twice; give each class a name of its own.")
    if number not in (None, len(named)):
        raise UserError(f"'{file}': nc is {number}, but names has {len(named)} names; correct one of them.")
    return named


def _by_number(names: Any) -> dict[int, str] | None:
    """The names of a list or a dict by their numbers; None where it is neither, or has other keys or values."""
    pairs = dict(enumerate(names)) if isinstance(names, list) else names
    if not isinstance(pairs, dict) or not pairs:
        return None
    if not all(str(key).isdecimal() and len(str(key)) < 10 and int(key) < _MOST_CLASSES for key in pairs):
        return None
    return {int(key): name for key, name in pairs.items()} if all(map(_is_name, pairs.values())) else None


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _keypoints(file: Path, data: dict[str, Any]) -> int:
    """How many numbers of key points follow each box."""
    shape = data.get("kpt_shape", "")
    if shape in _NOTHING:
        return 0
    sides = [whole(side, f"'{file}': kpt_shape") for side in (shape if isinstance(shape, list) else [shape])]
    if len(sides) != 2 or sides[0] < 1 or sides[1] not in (2, 3):
        raise UserError(f"'{file}': kpt_shape is {shape}; it must be [number of key points, 2 or 3].")
    return math.prod(sides)


def _places(data: dict[str, Any], split: str) -> list[str]:
    """What a key of a split names."""
    places = data.get(split, "")
    return [str(p) for p in (places if isinstance(places, list) else [places]) if p not in _NOTHING]


def _sets(file: Path, data: dict[str, Any], others: Counter[str]) -> tuple[Sets, list[str]]:
    """Images by split, and what is missing without being needed."""
    given = data.get("path", "")
    root = file.parent if not isinstance(given, str) or given in _NOTHING else file.parent / given.replace("\\", "/")
    if not os.path.isdir(root):  # not `is_dir`, which raises where a name is too long for the system
        raise UserError(
            f"'{file}': path is '{given}', and '{root}' is no folder. Relative paths start at the YAML file;"
            " leave path out if the data lie beside it."
        )
    sets: Sets = []
    notes: list[str] = []
    for split in ("train", "val", "test"):
        for place in _places(data, split):
            path = next((root / p for p in spellings(place) if os.path.exists(root / p)), root / place)
            if split == "test" and sets and not os.path.exists(path):
                notes.append(f"'{file}': test is '{place}', which does not exist: there is no test split.")
            else:
                sets.append((_images(file, split, root, path, place, others), split))
    return sets, notes


def spellings(place: str) -> Iterator[str]:
    """A path as it stands, and as it is meant where it comes from Windows, from Roboflow or from CVAT."""
    yield place
    for spelled in dict.fromkeys((place, place.replace("\\", "/"))):
        yield spelled
        yield spelled.removeprefix("../")  # Roboflow's files start one folder too high
        yield spelled.removeprefix("./").removeprefix("data/")  # and darknet's one too low


def _images(file: Path, split: str, root: Path, path: Path, place: str, others: Counter[str]) -> list[str]:
    """The images that one entry of a YAML file means."""
    if os.path.isdir(path):
        return _scan(path, others)
    if os.path.isfile(path) and path.suffix.lower() == ".txt":
        return _listed_images(path, root)
    raise UserError(
        f"'{file}': {split} is '{place}', and '{path}' is no folder and no .txt list. Relative paths start at"
        f" {'path' if root != file.parent else 'the YAML file'}: {root}."
    )


def _scan(folder: Path, others: Counter[str]) -> list[str]:
    """The images of a folder; files left out because of their suffix are added to ``others``."""
    found = scan_images(folder)
    others.update(found.others)
    return found.images


def _listed_images(file: Path, root: Path) -> list[str]:
    """The images of a text file, one path a line, from ``root`` or the file's own folder."""
    found = []
    for line, name in enumerate(read_lines(file), 1):
        if not name:
            continue
        places = (find_file(spelled, (root, file.parent)) for spelled in spellings(name))
        image = next((place for place in places if place is not None), None)
        if image is None:
            raise UserError(f"{file}, line {line}: image '{name}' does not exist (from {root}).")
        found.append(os.path.normpath(image))
    return found


def label_file(image: str) -> str:
    """Where the labels of an image are."""
    parts = image.split(os.sep)
    folders = [i for i, part in enumerate(parts[:-1]) if part == "images"]
    if folders:
        parts[folders[-1]] = "labels"
    return os.path.splitext(os.sep.join(parts))[0] + ".txt"


def _folders(root: Path, others: Counter[str]) -> Sets:
    """The images of a folder without a YAML file."""
    folders = _split_folders(root / "images", "") or _split_folders(root, "images")
    if folders:
        order = ("train", "val", "test")
        folders.sort(key=lambda found: order.index(found[0]))
        return [(_scan(images, others), split) for split, images in folders]
    if (root / "images").is_dir():
        return [(_scan(root / "images", others), None)]
    found = list_images(root)
    loose = [str(root / name) for name in found.images]
    if any(os.path.isfile(label_file(image)) for image in loose):
        others.update(found.others)
        return [(loose, None)]
    raise UserError(
        f"'{root}' holds no YOLO data: expected a data.yaml, images/train and labels/train, or images and labels."
    )


def _split_folders(above: Path, below: str) -> list[tuple[str, Path]]:
    """Splits and their folders of images: ``above/SPLIT/below``."""
    if not above.is_dir():
        return []
    named = [(split_name(folder.name), folder / below) for folder in subfolders(above)]
    return [(split, images) for split, images in named if split is not None and images.is_dir()]
