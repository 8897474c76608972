"""``check``: what is wrong with a data set, before anything is trained on it."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import pytorch_lightning as pl

from datamodules.annotations.records import Record
from datamodules.checking.findings import SEVERITIES, Finding
from datamodules.checking.whole import Checked
from datamodules.checking.whole import check as check_all
from datamodules.common.errors import UserError
from datamodules.decoding.images import read_image
from pipelines import cli
from pipelines.command import Command
from pipelines.commands.label_errors import find_label_errors
from pipelines.listing import PROGRAM
from pipelines.outputs.check_page import write_page
from pipelines.outputs.drawing import overlay
from pipelines.outputs.findings import counted, table, write_findings
from pipelines.outputs.palettes import default_palette
from pipelines.outputs.sheets import Picture
from pipelines.trainer import Trainer
from tasks.hooks import TaskHooks

#: The ready config, and its flags, of each kind of data that may be checked without a config of one's own.
TASKS = {
    "classification": ["--config", "classification/folder"],
    "detection": ["--config", "detection/folder"],
    "instance_segmentation": ["--config", "detection/folder", "--data.masks", "true"],
    "segmentation": ["--config", "segmentation/folder"],
}
_SECONDS = 0.5  # between two drawings of the progress


def main(words: list[str]) -> int:
    """The command ``check``.

    Args:
        words: Its flags; or a source and ``--task`` in front of them.

    Returns:
        The exit status, see ``cli.execute``; 1 where something is found that ``fail_on`` names.
    """
    try:
        flags = of_source(words)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return cli.execute(Command("check", check, optionally=True), flags)


def of_source(words: list[str]) -> list[str]:
    """``SOURCE --task TASK`` as the ready config of that task; other words as they are.

    Raises:
        UserError: If the task is missing, or there is none of that name.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--task", nargs="?", const="")
    given, rest = parser.parse_known_args(words)
    source = rest[0] if rest and not rest[0].startswith("-") else None
    if source is None and given.task is None:
        return words
    if source is None:
        raise UserError(f"--task is for a source without a config: {PROGRAM} check SOURCE --task {given.task}")
    if given.task not in TASKS:
        what = "is missing" if not given.task else f"is '{given.task}'"
        raise UserError(f"--task {what}: {PROGRAM} check {source} --task {{{','.join(TASKS)}}}")
    return [*TASKS[given.task], "--data.source", source, *rest[1:]]


def check(
    trainer: Trainer,
    model: TaskHooks,
    datamodule: pl.LightningDataModule,
    fail_on: Literal["error", "warning", "note", "never"] = "error",
    output: str = "check",
    pool: str | None = None,
    ckpt_path: str | None = None,
) -> Checked:
    """Look for everything that can be wrong with the data: files, annotations, classes, splits.

    Args:
        trainer: Where to run, with a checkpoint.
        model: The task; without a checkpoint only its settings are looked at.
        datamodule: The data.
        fail_on: The exit status is 1 where there is a finding as bad as this, or worse.
        output: Folder for ``check.json`` and ``check.html``, the page with pictures.
        pool: Unlabeled images (a folder, a pattern, a list), in which there must be no evaluated ones.
        ckpt_path: A trained classifier, whose predictions tell which labels are likely wrong.

    Returns:
        What was looked at and found.
    """
    data = getattr(datamodule, "labeled", datamodule)
    line = _Line()
    checked = check_all(data, pool, getattr(model.taught, "max_detections", None), line.show)
    line.end()
    if ckpt_path is not None and not any(finding.severity == "error" for finding in checked.findings):
        checked.findings.extend(find_label_errors(trainer, model, data, ckpt_path))
    folder = Path(output)
    source = str(getattr(data, "source", type(data).__name__))
    write_findings(
        checked.findings, folder / "check.json", source=source, images=_images(checked), classes=checked.class_names
    )
    described = _described(checked)
    write_page(folder / "check.html", source, described, checked.findings, partial(_drawn, checked, _by_path(checked)))
    print(f"{source}: {described}")
    if checked.findings:
        print("\n".join(table(checked.findings)))
    print(f"{counted(checked.findings)}: {folder / 'check.html'}", flush=True)
    _fail(checked.findings, fail_on)
    return checked


def _images(checked: Checked) -> dict[str, int]:
    """Images of each split, the pool's included."""
    splits = Counter(str(record["split"] or "unsplit") for record in [*checked.records, *checked.pool])
    order = ("train", "val", "test", "pool", "unsplit")
    return {split: splits[split] for split in order if splits[split]}


def _by_path(checked: Checked) -> dict[str, Record]:
    return {record["path"]: record for record in [*checked.pool, *checked.records]}


def _drawn(checked: Checked, by_path: dict[str, Record], path: str) -> Picture:
    """An image with its mask of classes, where it has one that can be read."""
    record = by_path[path]
    image = np.asarray(read_image(record["image"]))
    if checked.read_mask is None or "mask" not in record:
        return image
    try:
        mask = checked.read_mask(record)
        layers = mask if mask.ndim == 2 else np.ascontiguousarray(mask.transpose(2, 0, 1))
        return overlay(image, layers, default_palette(len(checked.class_names), background=mask.ndim == 2))
    except (OSError, ValueError):
        return image


def _described(checked: Checked) -> str:
    images = ", ".join(f"{split} {count:,}" for split, count in _images(checked).items())
    return f"{images} images, {len(checked.class_names):,} classes"


def _fail(findings: list[Finding], fail_on: str) -> None:
    """End with status 1 where there is something as bad as ``fail_on``."""
    worst = {"error": 1, "warning": 2, "note": 3}.get(fail_on, 0)
    found = sum(finding.severity in SEVERITIES[:worst] for finding in findings)
    if found:
        raise UserError(f"{found:,} finding(s) are as bad as --fail_on {fail_on} or worse.")


class _Line:
    """A line that is written over, where the error output is a terminal."""

    def __init__(self) -> None:
        self._at = 0.0
        self._shown = False

    def show(self, what: str, done: int, total: int) -> None:
        """Say how many of how many are done."""
        now = time.monotonic()
        if sys.stderr.isatty() and now - self._at > _SECONDS:
            self._at, self._shown = now, True
            bar = "#" * (16 * done // total)
            print(f"\r{what} [{bar:<16}] {done:,} of {total:,}", end="", file=sys.stderr, flush=True)

    def end(self) -> None:
        """Leave nothing behind."""
        if self._shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
