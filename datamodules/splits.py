"""Seeded stratified splits."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path

from datamodules.annotations.records import Record
from datamodules.common.errors import UserError
from datamodules.groups import by_group, most_frequent_label, set_groups, split_groups
from datamodules.readers.text import load_json


def common_folder(paths: Iterable[str]) -> str:
    """The folder that all paths lie below; nothing for absolute and relative paths together."""
    try:
        return os.path.commonpath([os.path.dirname(path) for path in paths])
    except ValueError:
        return ""


def split_records(records: list[Record], val: float, test: float, seed: int) -> None:
    """Give each record whose ``split`` is None one: fractions of them are ``val`` and ``test``, the rest ``train``.

    Stratified by class where labels are ints; other records are one stratum. Which image goes
    where depends on the seed and on the paths below the images' common folder only: not on the records' order, nor on
    where the folder lies. A class with two images or more keeps at least one for training; small classes take turns,
    so that the fractions of the whole come out right; a fraction of few images is one of them at least. Records with a
    ``group`` go where their whole group goes.

    Args:
        records: Plain records; changed in place.
        val: Fraction for validation, in [0, 1).
        test: Fraction for test, in [0, 1).
        seed: Seed of the draw.

    Raises:
        UserError: If the fractions are not in range, or one that is asked for gets no image.
    """
    if val < 0 or test < 0 or val + test >= 1:
        raise UserError(
            f"The fractions for validation ({val:g}) and test ({test:g}) must be at least 0 and sum to below 1."
        )
    todo = [r for r in records if r["split"] is None]
    if not todo:
        return
    _draw_groups(todo, val, test, seed)
    _draw_images(todo, val, test, seed)
    for fraction, name in ((val, "val"), (test, "test")):
        if fraction > 0:
            if name not in {record["split"] for record in records}:
                _hold_one_out(todo, name, seed)
            _check_drawn(records, name, f"A {name} fraction of {fraction:g} of {len(todo)} images")


def _draw_groups(records: list[Record], val: float, test: float, seed: int) -> None:
    """Give the records that have a group a split, all of a group the same."""
    grouped = by_group(records)
    drawn = sorted(grouped, key=lambda name: (most_frequent_label(grouped[name]), keyed(seed, name)))
    for split, own in split_groups([grouped[name] for name in drawn], val, test):
        for record in own:
            record["split"] = split


def _draw_images(records: list[Record], val: float, test: float, seed: int) -> None:
    """Give the records that have no split yet one, class by class."""
    top = common_folder(r["path"] for r in records)
    rounding = _Rounding(val, test)
    for members in strata([record for record in records if record["split"] is None]):
        members.sort(key=partial(order_of, seed, top))
        num_val, num_test = rounding.counts(len(members))
        splits = ["test"] * num_test + ["val"] * num_val + ["train"] * (len(members) - num_test - num_val)
        for record, split in zip(members, splits, strict=True):
            record["split"] = split


def _hold_one_out(records: list[Record], split: str, seed: int) -> None:
    """Of images too few for the fraction, give the split one all the same, of the class with most training images."""
    spare = [own for own in strata([r for r in records if r["split"] == "train" and "group" not in r]) if len(own) > 1]
    if spare:
        top = common_folder(record["path"] for record in records)
        most = max(spare, key=len)
        min(most, key=partial(order_of, seed, top))["split"] = split


def _check_drawn(records: list[Record], split: str, what: str) -> None:
    if split not in {record["split"] for record in records}:
        raise UserError(f"{what} holds no image; raise it or add images.")


def strata(records: list[Record]) -> list[list[Record]]:
    """The records of each class, in the order of their numbers; all others together, first."""
    strata: dict[int, list[Record]] = defaultdict(list)
    for record in records:
        label = record.get("label")
        strata[label if isinstance(label, int) else -1].append(record)
    return [strata[label] for label in sorted(strata)]


def order_of(seed: int, top: str, record: Record) -> tuple[bytes, str]:
    """What images are sorted by: a digest of the seed and of the path below the folder ``top``."""
    name = record["path"].removeprefix(top).lstrip(os.sep).replace(os.sep, "/")
    return keyed(seed, name), name


def keyed(seed: int, name: str) -> bytes:
    """A digest of a seed and a name, by which things are put into a random order that does not depend on theirs."""
    return hashlib.blake2b(f"{seed}/{name}".encode("utf-8", "surrogateescape"), digest_size=8).digest()


class _Rounding:
    """Whole numbers for fractions of classes: what rounding owes is passed on from class to class."""

    def __init__(self, val: float, test: float) -> None:
        self._val, self._test = val, test
        self._val_debt = self._test_debt = 0.5

    def counts(self, members: int) -> tuple[int, int]:
        """Images for validation and test of a class with so many; one stays for training."""
        self._val_debt += self._val * members
        self._test_debt += self._test * members
        spare = members - 1
        num_test = min(int(self._test_debt), math.ceil(self._test * members), spare)
        num_val = min(int(self._val_debt), math.ceil(self._val * members), spare - num_test)
        self._val_debt -= num_val
        self._test_debt -= num_test
        return num_val, num_test


def hold_out(
    records: list[Record], val: float, test: float, seed: int, split_file: str | None, group: str | None = None
) -> None:
    """Give each record a split: that of ``split_file``, or else what is missing is held out of the training images.

    Args:
        records: Plain records; changed in place.
        val: Fraction for validation where no record is in ``val``.
        test: The same for ``test``.
        seed: Seed of the draw.
        split_file: ``split.json`` of an earlier run, or None.
        group: See ``groups.set_groups``.

    Raises:
        UserError: If there is no such file.
        UserError: If it does not name all images; as ``split_records``.
    """
    if group is not None:
        set_groups(records, group)
    if split_file is not None:
        _apply_split_file(records, split_file)
        return
    has = {r["split"] for r in records}
    for record in records:
        if record["split"] == "train":
            record["split"] = None
    split_records(records, 0.0 if "val" in has else val, 0.0 if "test" in has else test, seed)


def _apply_split_file(records: list[Record], file: str) -> None:
    path = Path(file)
    if not path.exists():
        raise UserError(f"data.split_file '{file}' does not exist. It is the split.json of a run directory.")
    stored = load_json(path)
    if not isinstance(stored, dict) or not all(isinstance(names, list) for names in stored.values()):
        raise UserError(f"data.split_file '{file}' is no split.json of a run: it has a list of images for each split.")
    split_of = {str(name): split for split, names in stored.items() for name in names}
    missing = [r["path"] for r in records if r["path"] not in split_of]
    if missing:
        raise UserError(
            f"data.split_file '{file}' does not name {len(missing)} of the images, for example {missing[0]}. The data"
            " has changed since that split was stored: leave data.split_file out to draw a new one."
        )
    for record in records:
        record["split"] = split_of[record["path"]]


def left_out(split_file: str | None, splits: Mapping[str, list[str]]) -> list[str]:
    """Images of a file of splits that are in none of these splits: another file of splits has to name them, too."""
    if split_file is None:
        return []
    known = {path for paths in splits.values() for path in paths}
    return [path for paths in load_json(Path(split_file)).values() for path in paths if path not in known]


def set_weights(records: list[Record], file: str) -> None:
    """Give records the weights of a file; one that it does not name keeps its own, or 1.

    Args:
        records: Plain records; changed in place.
        file: JSON, path -> a number of at least 0.

    Raises:
        UserError: If there is no such file, it holds something else, or names none of the images.
    """
    path = Path(file)
    if not path.exists():
        raise UserError(f"data.weight_file '{file}' does not exist. It is JSON: an image's path -> its weight.")
    weights = load_json(path)
    wrong = {"": weights} if not isinstance(weights, dict) else {n: w for n, w in weights.items() if not _is_weight(w)}
    if wrong:
        name, value = next(iter(wrong.items()))
        raise UserError(f"data.weight_file '{file}' has {name!r}: {value!r}; a weight is a number of at least 0.")
    if not any(record["path"] in weights for record in records):
        raise UserError(f"data.weight_file '{file}' names none of the {len(records)} training images by their path.")
    for record in records:
        record["weight"] = float(weights.get(record["path"], record.get("weight", 1.0)))


def _is_weight(value: object) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and 0 <= value < math.inf  # type: ignore[operator]


def split_digest(records: Mapping[str, list[Record]]) -> str:
    """A digest of which image is in which split, wherever the folder lies; it tells whether it changed."""
    paths = [(split, record["path"]) for split, own in records.items() for record in own if split != "predict"]
    top = common_folder(path for _, path in paths)
    names = sorted((split, path.removeprefix(top)) for split, path in paths)
    return hashlib.sha256(json.dumps(names).encode()).hexdigest()[:16]


def require_split(records: dict[str, list[Record]], split: str) -> None:
    """Refuse data without a split, naming those that it has.

    Raises:
        UserError: There is no image in it.
    """
    if not records[split]:
        have = ", ".join(f"{name} ({len(found)} images)" for name, found in records.items() if found)
        raise UserError(
            f"The data has no {split} split; it has {have}. Add one, or set data.{split}_fraction before training."
        )
