"""WebDataset's tar shards: images with a class, with boxes, or with a mask."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from datamodules.annotations.records import Listing, Record, split_name
from datamodules.common.errors import UserError, examples
from datamodules.decoding.archives import read_member
from datamodules.decoding.shards import MASKS, Sample, find_shards, picture_of, read_samples
from datamodules.readers.class_files import read_class_file
from datamodules.readers.drawn import record_of
from datamodules.readers.label_cells import multiple_labels, probabilities, single_labels
from datamodules.readers.shard_boxes import box_names, read_drawing

T = TypeVar("T")

_CLASS_FILES = ("classes.txt", "class_names.txt")
_KINDS: dict[str, Callable[..., Any]] = {
    "label": single_labels,
    "labels": multiple_labels,
    "probabilities": probabilities,
}


class _Found(NamedTuple):
    """A sample with its picture, and the split that its archive's name or folder says."""

    sample: Sample
    picture: str
    split: str | None


def read_labels(source: str) -> Listing:
    """Read images with a class: ``12.jpg`` and ``12.cls``, which holds a number or a name, or ``12.json``.

    JSON has one of the keys ``label`` (a class), ``labels`` (a list of classes) and ``probabilities`` (a list of
    numbers); see ``lists.read_list``. A ``classes.txt`` beside the archives names classes that are numbers.

    Raises:
        UserError: If an archive cannot be read, see ``find_shards``, or a picture has no label that can be.
    """
    found, names = _samples(source, ("cls", "json"))
    labels = [_label(one.sample) for one in found]
    kinds = {kind for kind, _ in labels}
    if len(kinds) > 1:
        raise UserError(f"'{source}': some pictures have '{kinds.pop()}', others '{kinds.pop()}'; give all the same.")
    kind = kinds.pop()
    cells = [cell for _, cell in labels]
    if kind == "label" and names:
        numbered = [_named(cell, names, one.sample.name) for cell, one in zip(cells, found, strict=True)]
        values, class_names = [names.index(name) for name in numbered], names
    else:
        values, class_names = _KINDS[kind](cells, lambda i: found[i].sample.name)
    records: list[Record] = [
        {"image": one.picture, "path": one.picture, "label": value, "split": one.split}
        for one, value in zip(found, values, strict=True)
    ]
    return Listing(records, class_names)


def read_shard_boxes(source: str, class_names: list[str] | None) -> Listing:
    """Read images with boxes: ``12.jpg`` and ``12.json``; see ``shard_boxes.read_drawing``.

    Args:
        source: See ``find_shards``.
        class_names: All classes in the order of their ids; by default those of a ``classes.txt`` beside the archives,
            or else all that occur, sorted.

    Raises:
        UserError: If an archive cannot be read, a picture has no JSON file, or its boxes cannot be read.
    """
    found, names = _samples(source, ("json",))
    names = class_names or names
    drawn = [read_drawing(one.picture, _json(one.sample), one.sample.files["json"], one.split, names) for one in found]
    classes = box_names(drawn, names, source)
    records = []
    for one, (drawing, crowds) in zip(found, drawn, strict=True):
        record = record_of(Path(one.sample.files["json"]), one.picture, drawing, classes)
        records.append({**record, "split": one.split, "iscrowd": crowds})
    return Listing(records, classes)


def read_shard_masks(source: str) -> Listing:
    """Read images with a mask: ``12.jpg`` and ``12.png`` (also ``12.seg.png``, ``12.mask.png``).

    Raises:
        UserError: If an archive cannot be read, or a picture has no mask or several.
    """
    found, names = _samples(source, ())
    records: list[Record] = []
    for one in found:
        masks = [
            file
            for suffix, file in one.sample.files.items()
            if file != one.picture and (suffix == "png" or suffix.rpartition(".")[0] in MASKS)
        ]
        if len(masks) != 1:
            have = f"the masks {', '.join(masks)}" if masks else f"no mask, only {', '.join(one.sample.files)}"
            raise UserError(
                f"{one.sample.name} has {have}. A picture has one mask: 12.jpg and 12.png, or 12.png and 12.seg.png."
            )
        records.append({"image": one.picture, "path": one.picture, "mask": masks[0], "split": one.split})
    return Listing(records, names)


def _samples(source: str, wanted: tuple[str, ...]) -> tuple[list[_Found], list[str]]:
    """All samples with a picture and one of the wanted files, and the names of a file of classes beside them."""
    shards = find_shards(source)
    found: list[_Found] = []
    without: list[str] = []
    for shard in shards:
        split = _split_of(shard)
        for sample in read_samples(shard):
            picture = picture_of(sample)
            if picture is None:
                continue
            if wanted and not any(suffix in sample.files for suffix in wanted):
                without.append(picture)
            found.append(_Found(sample, picture, split))
    if not found:
        raise UserError(
            f"'{source}' holds no picture. Files with one name up to the first dot are one sample: 12.jpg, 12.cls."
        )
    if without:
        files = " or ".join(f".{suffix}" for suffix in wanted)
        raise UserError(
            f"{len(without):,} of {len(found):,} pictures of '{source}' have no {files} file beside them:"
            f" {examples(without, 5)}."
        )
    return found, _class_names(shards)


def _class_names(shards: list[Path]) -> list[str]:
    """The names of a file of classes beside the archives, or in the folder above; none without one."""
    folders = dict.fromkeys(folder for shard in shards for folder in (shard.parent, shard.parent.parent))
    found = (read_class_file(folder, _CLASS_FILES) for folder in folders)
    return next((names for names in found if names), [])


def _split_of(shard: Path) -> str | None:
    """The split that is a word of an archive's name, or else of its folder."""
    words = [*re.split(r"[-_. ]", shard.stem), shard.parent.name]
    return next((split for word in words if (split := split_name(word))), None)


def _label(sample: Sample) -> tuple[str, Any]:
    """Which kind of label a sample has, and the label."""
    if "cls" in sample.files:
        return "label", _text(sample.files["cls"])
    values = _json(sample)
    if isinstance(values, dict):
        kinds = [kind for kind in _KINDS if kind in values]
        if len(kinds) == 1:
            return kinds[0], values[kinds[0]]
    raise UserError(
        f"{sample.files['json']}: there must be one of the keys label (a class), labels (a list of classes) and"
        " probabilities in it."
    )


def _named(cell: Any, names: list[str], where: str) -> str:
    """A class of a file of classes, by its name or number."""
    text = str(cell).strip()
    if text in names:
        return text
    if text.isdecimal() and int(text) < len(names):
        return names[int(text)]
    raise UserError(
        f"{where}: the class is '{text:.60}', which is neither a name in the file of classes beside the archives nor a"
        f" number below {len(names)}."
    )


def _text(member: str) -> str:
    try:
        return read_member(member).decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise UserError(f"{member}: it holds no text ({error}).") from error


def _json(sample: Sample) -> Any:
    text = _text(sample.files["json"])
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{sample.files['json']}: it is no JSON ({error}).") from error
