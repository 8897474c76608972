"""What a record is: one image with its annotations, as a reader gives it and before anything is decoded.

A record is a plain dict, so that it is cheap to pickle to workers and to copy with a few values changed. ``FIELDS``
names every key with its type. A new kind of annotation (key points, depth) is a new line there: a reader writes the
key, and with ``per_object`` it is selected and dropped together with the boxes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

Record: TypeAlias = dict[str, Any]

_SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val"}
_SPLITS |= {"test": "test", "testing": "test"}
#: What a split may be called, as a part of a regular expression; the longer words first.
SPLIT_WORDS = "|".join(sorted(_SPLITS, key=len, reverse=True))
_SPLIT = re.compile(rf"(?:seg[-_ ])?({SPLIT_WORDS})(?:[-_ ]?(?:set|data|split))?")
_INTEGER = re.compile(r"-?(0|[1-9][0-9]{0,999})")  # Python reads no more than 4,300 digits


@dataclass(frozen=True)
class Field:
    """One key of a record.

    Attributes:
        meaning: For people.
        types: What the value may be; numpy arrays are described by ``dtype`` and ``shape``.
        dtype: Of an array.
        shape: Of an array, its first axis being the N objects where ``per_object`` is set; None: any number.
        per_object: Whether it has one entry for each of the N objects.
    """

    meaning: str
    types: tuple[type, ...]
    dtype: str = ""
    shape: tuple[int | None, ...] = ()
    per_object: bool = False


_NONE = type(None)
_EACH = (None,)  # one number for each object

FIELDS: dict[str, Field] = {
    # Every record.
    "image": Field("path, or pixels (H, W, C) as uint8 or float in [0, 1]", (str, np.ndarray)),
    "path": Field("what is printed and written: the image's path, or FILE.npz#12 for arrays", (str,)),
    "split": Field("train, val or test; None where the source does not say", (str, _NONE)),
    "group": Field("patient, scene or video, whose images are all in one split", (str,)),
    "weight": Field("scales the image's loss, at least 0", (float,)),
    # Classification.
    "label": Field("class, 0..K-1; or K floats where labels are multi-label or soft", (int, list)),
    # Boxes.
    "height": Field("of the image as shown, in pixels; 0 where the source does not say", (int,)),
    "width": Field("likewise", (int,)),
    "boxes": Field("x1 y1 x2 y2, pixel edges of the original image", (np.ndarray,), "float32", (None, 4), True),
    "labels": Field("classes, 0..K-1", (np.ndarray,), "int64", _EACH, True),
    "iscrowd": Field("1: a group of objects, or a difficult one", (np.ndarray,), "uint8", _EACH, True),
    "area": Field(
        "in pixels: the file's, or else the mask's, or else the box's", (np.ndarray,), "float32", _EACH, True
    ),
    "segmentation": Field(
        "polygons or run lengths (see `rle.from_segmentation`) or None each", (list, _NONE), "", (), True
    ),
    "annotation_ids": Field("COCO's ids (-1: none), VOC's objects, YOLO's lines", (np.ndarray,), "int64", _EACH, True),
    "annotation_file": Field("path of the file that has them", (str,)),
    "image_id": Field("the image's id in a COCO file", (int, str)),
    # Semantic masks.
    "mask": Field("path; K paths or None, one binary mask a class; or a dict of COCO's shapes", (str, list, dict)),
    "soft_mask": Field("path of class probabilities; see `annotations.soft_masks`", (str,)),
    # Drawn when it is asked for.
    "scene": Field("arguments of `readers.digits.digit_scene`; `image` is None then", (tuple,)),
}

#: Keys with one entry for each object.
PER_OBJECT = tuple(key for key, field in FIELDS.items() if field.per_object)


class Listing(NamedTuple):
    """What a reader gives: one record an image, and the classes in the order of their numbers."""

    records: list[Record]
    class_names: list[str]
    class_ids: list[int] | None = None  # the classes' numbers in the file, where they are not 0..K-1
    notes: tuple[str, ...] = ()  # what the person is told: what was left out, or may not be meant


def take_objects(record: Record, kept: npt.NDArray[np.int64]) -> Record:
    """The record with the objects of these places only."""
    out = dict(record)
    for key in PER_OBJECT:
        values = out.get(key)
        if values is not None:
            out[key] = [values[i] for i in kept] if isinstance(values, list) else values[kept]
    return out


def split_name(word: str) -> str | None:
    """``train``, ``val`` or ``test`` for any usual spelling (``Training``, ``val_set``, ``seg_test``); else None."""
    match = _SPLIT.fullmatch(word.strip().lower())
    return _SPLITS[match[1]] if match else None


def sort_classes(names: Iterable[str]) -> list[str]:
    """Distinct names in the order of their class ids: numerically if all are integers, else as text."""
    distinct = set(names)
    return sorted(distinct, key=int) if all(_INTEGER.fullmatch(n) for n in distinct) else sorted(distinct)
