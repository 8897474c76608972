"""Seeded stratified splits."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from datamodules.annotations.records import Record
from datamodules.common.errors import UserError


def common_folder(paths: Iterable[str]) -> str:
    """The folder that all paths lie below; nothing for absolute and relative paths together."""
    try:
        return os.path.commonpath([os.path.dirname(path) for path in paths])
    except ValueError:
        return ""


def split_records(records: list[Record], val: float, test: float, seed: int) -> None:
    """Give each record whose ``split`` is None one: ``val`` and ``test`` get these parts, ``train`` the rest.

    Stratified by class where labels are ints; other records are one stratum. Which image goes
    where depends on the seed and on the paths below the images' common folder only: not on the records' order, nor on
    where the folder lies. A class with two images or more keeps at least one for training; small classes take turns,
    so that the whole parts come out right.

    Args:
        records: Plain records; changed in place.
        val: Part for validation, in [0, 1).
        test: Part for test, in [0, 1).
        seed: Seed of the draw.

    Raises:
        UserError: If the parts are not in range, or a part that is asked for gets no image.
    """
    if val < 0 or test < 0 or val + test >= 1:
        raise UserError(
            f"The parts for validation ({val:g}) and test ({test:g}) must be at least 0 and sum to below 1."
        )
    todo = [r for r in records if r["split"] is None]
    if not todo:
        return
    top = common_folder(r["path"] for r in todo)

    def order(record: Record) -> tuple[bytes, str]:
        name = record["path"].removeprefix(top).lstrip(os.sep).replace(os.sep, "/")
        return hashlib.blake2b(f"{seed}/{name}".encode("utf-8", "surrogateescape"), digest_size=8).digest(), name

    strata: dict[int, list[Record]] = defaultdict(list)
    for record in todo:
        label = record.get("label")
        strata[label if isinstance(label, int) else -1].append(record)
    val_debt = test_debt = 0.5  # what rounding owes; it is passed on from class to class
    for label in sorted(strata):
        members = sorted(strata[label], key=order)
        val_debt += val * len(members)
        test_debt += test * len(members)
        spare = len(members) - 1  # one stays for training
        num_test = min(int(test_debt), math.ceil(test * len(members)), spare)
        num_val = min(int(val_debt), math.ceil(val * len(members)), spare - num_test)
        val_debt -= num_val
        test_debt -= num_test
        for i, record in enumerate(members):
            record["split"] = "test" if i < num_test else "val" if i < num_test + num_val else "train"
    for part, name in ((val, "val"), (test, "test")):
        if part > 0 and all(r["split"] != name for r in records):
            raise UserError(f"A {name} part of {part:g} of {len(todo)} images holds no image; raise it or add images.")


def hold_out(records: list[Record], val: float, test: float, seed: int, split_file: str | None) -> None:
    """Give each record a split: that of ``split_file``, or else what is missing is held out of the training images.

    Args:
        records: Plain records; changed in place.
        val: Part for validation where no record is in ``val``.
        test: The same for ``test``.
        seed: Seed of the draw.
        split_file: ``split.json`` of an earlier run, or None.

    Raises:
        UserError: If there is no such file.
        UserError: If it does not name all images; as ``split_records``.
    """
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
    split_of = {name: split for split, names in json.loads(path.read_text()).items() for name in names}
    missing = [r["path"] for r in records if r["path"] not in split_of]
    if missing:
        raise UserError(
            f"data.split_file '{file}' does not name {len(missing)} of the images, for example {missing[0]}. The data"
            " has changed since that split was stored: leave data.split_file out to draw a new one."
        )
    for record in records:
        record["split"] = split_of[record["path"]]
