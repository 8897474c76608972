"""``val_images.npz`` and ``test_images.npz`` of a run: what was measured on each image, for reports and comparisons.

Each is one file of numpy's arrays without objects, with these keys:

- ``facts``: JSON text: ``kind`` (``images``, ``labels``, ``pixels`` or ``boxes``), ``split``, ``class_names``,
  ``temperature`` (of the checkpoint, 1 where there is none), ``digest`` (of the images and their truth) and what else
  does not depend on images;
- of each of N images ``path``, ``group`` (empty where the data have none), ``size`` (height, width), ``brightness``
  (mean of its pixels on the canvas, 0 to 1), ``sharpness`` (deviation of its Laplacian, 0 to 1);
- what ``kind`` needs of each image, with N entries; see ``pipelines.report.images``, ``labels``, ``pixels`` and
  ``boxes``;
- what has any number of entries an image: ``each.NAME`` with one after the other, and ``each.NAME.count``, (N,).

Images are in the order of the data set.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodules.common.errors import UserError
from datamodules.common.files import atomic_path
from datamodules.splits import common_folder

Arrays = dict[str, NDArray[Any]]
SPLITS = ("val", "test")
_EACH, _COUNT = "each.", ".count"


def file_of(run: Path, split: str) -> Path:
    """The file of a run's split."""
    return run / f"{split}_images.npz"


@dataclass(frozen=True)
class Measured:
    """What a file holds.

    Attributes:
        facts: What does not depend on images.
        arrays: Of each image, first axis N.
        each: What has any number of entries an image: by name the entries (E, ...) in the order of the images.
        counts: How many of them each image has, int64 (N,), by name.
    """

    facts: Mapping[str, Any]
    arrays: Arrays
    each: Arrays
    counts: dict[str, NDArray[np.int64]]

    def __len__(self) -> int:
        return len(self.arrays["path"])

    @property
    def class_names(self) -> list[str]:
        """K names."""
        return list(self.facts["class_names"])

    @property
    def temperature(self) -> float:
        """Of the checkpoint."""
        return float(self.facts.get("temperature", 1.0))

    @cached_property
    def names(self) -> list[str]:
        """Of the images: their paths below the common folder, which does not depend on where the data lie."""
        return short_names(self.arrays["path"].tolist())

    @property
    def groups(self) -> NDArray[np.int64] | None:
        """The number of each image's group (N,); None where the data have no groups."""
        names = self.arrays["group"]
        if not (names != "").any():
            return None
        _, numbers = np.unique(names, return_inverse=True)
        return np.asarray(numbers, np.int64)

    def image_of(self, name: str) -> NDArray[np.int64]:
        """Of each entry of ``each`` its image, (E,)."""
        return np.repeat(np.arange(len(self)), self.counts[name])

    def entries(self, name: str, image: int) -> NDArray[Any]:
        """The entries of one image."""
        end = int(self.counts[name][: image + 1].sum())
        return self.each[name][end - int(self.counts[name][image]) : end]

    def take(self, images: NDArray[Any] | list[int]) -> Measured:
        """Some of the images, by their rising numbers or as a mask."""
        chosen = np.zeros(len(self), bool)
        chosen[images] = True
        kept = {name: values[np.repeat(chosen, self.counts[name])] for name, values in self.each.items()}
        arrays = {name: values[chosen] for name, values in self.arrays.items()}
        return Measured(self.facts, arrays, kept, {name: count[chosen] for name, count in self.counts.items()})


def ordered(measured: Measured, order: NDArray[np.int64]) -> Measured:
    """The images in another order (N,)."""
    if (order == np.arange(len(measured))).all():
        return measured
    each = {}
    for name, values in measured.each.items():
        parts = np.split(values, np.cumsum(measured.counts[name])[:-1])
        each[name] = np.concatenate([parts[i] for i in order.tolist()])
    counts = {name: count[order] for name, count in measured.counts.items()}
    arrays = {name: values[order] for name, values in measured.arrays.items()}
    return Measured(measured.facts, arrays, each, counts)


def joined(a: Measured, b: Measured) -> Measured:
    """The images of both, one after the other."""
    return Measured(
        a.facts,
        {name: np.concatenate([values, b.arrays[name]]) for name, values in a.arrays.items()},
        {name: np.concatenate([values, b.each[name]]) for name, values in a.each.items()},
        {name: np.concatenate([count, b.counts[name]]) for name, count in a.counts.items()},
    )


def short_names(paths: list[str]) -> list[str]:
    """Paths below their common folder."""
    top = common_folder(paths) if paths else ""
    return [path.removeprefix(top).lstrip("/\\").replace("\\", "/") for path in paths]


def digest_of(paths: list[str], truth: list[bytes]) -> str:
    """A digest of the images and what is true of them, wherever they lie and in whichever order."""
    lines = sorted(zip(short_names(paths), truth, strict=True))
    content = hashlib.sha256()
    for name, value in lines:
        content.update(name.encode("utf-8", "surrogateescape") + b"\0" + value + b"\0")
    return content.hexdigest()[:16]


def write(measured: Measured, path: Path) -> None:
    """Write the file in one step."""
    columns: Arrays = {"facts": np.array(json.dumps(dict(measured.facts))), **measured.arrays}
    for name, values in measured.each.items():
        columns[_EACH + name], columns[_EACH + name + _COUNT] = values, measured.counts[name]
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **columns)  # type: ignore[arg-type]


def read(path: Path) -> Measured:
    """Read the file.

    Raises:
        UserError: If there is none, or it is damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            columns = {name: file[name] for name in file.files}
        facts = json.loads(str(columns.pop("facts")))
    except FileNotFoundError:
        raise UserError(
            f"There is no {path}: `test` writes it (of a validation `fit` or `validate`). Run it with this version."
        ) from None
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path} cannot be read ({error}): run `test` or `validate` again, which write it.") from error
    counts = {
        name.removeprefix(_EACH).removesuffix(_COUNT): columns.pop(name)
        for name in list(columns)
        if name.startswith(_EACH) and name.endswith(_COUNT)
    }
    each = {name.removeprefix(_EACH): columns.pop(name) for name in list(columns) if name.startswith(_EACH)}
    return Measured(facts, columns, each, counts)


def read_splits(run: Path) -> dict[str, Measured]:
    """The splits that a run has files of."""
    return {split: read(file_of(run, split)) for split in SPLITS if file_of(run, split).is_file()}


@dataclass
class Collector:
    """Batches as they are evaluated; a batch's values are arrays (B, ...), or lists of B arrays of any length."""

    ids: list[int] = field(default_factory=list)
    parts: list[tuple[Arrays, dict[str, list[NDArray[Any]]]]] = field(default_factory=list)

    def add(self, ids: list[int], values: Mapping[str, Any]) -> None:
        """Add a batch of the images with these numbers."""
        self.ids += ids
        lists = {name: value for name, value in values.items() if isinstance(value, list)}
        self.parts.append(({name: value for name, value in values.items() if name not in lists}, lists))

    def joined(self, facts: Mapping[str, Any]) -> Measured | None:
        """All images in the order of their numbers, each once; None where there are none."""
        if not self.ids:
            return None
        _, order = np.unique(np.array(self.ids), return_index=True)
        arrays = {name: np.concatenate([dense[name] for dense, _ in self.parts])[order] for name in self.parts[0][0]}
        each, counts = {}, {}
        for name in self.parts[0][1]:
            lists = [value for _, ragged in self.parts for value in ragged[name]]
            mine = [lists[i] for i in order.tolist()]
            each[name] = np.concatenate(mine)
            counts[name] = np.array([len(value) for value in mine], np.int64)
        return Measured(facts, arrays, each, counts)
