"""A folder that ``predict`` writes into: what is there already, and that nothing of an earlier call stays."""

from __future__ import annotations

import shutil
from pathlib import Path

from datamodules.common.errors import UserError, examples

#: All that ``predict`` writes, whatever the task.
FILES = ("predictions.csv", "contact_sheet.png", "predictions.json", "annotations.json", "boxes.csv", "classes.txt")
FOLDERS = ("masks", "overlays", "labels")
_MARKS = ("predictions.csv", ".predictions.*.jsonl")  # of a folder that it wrote, or of an interrupted call


def check_folder(output: Path) -> None:
    """Refuse a folder that holds what ``predict`` did not write: a set's own ``masks`` or ``labels`` would be lost.

    Raises:
        UserError: Naming some of it.
    """
    if not output.is_dir():
        return
    names = sorted(path.name for path in output.iterdir())
    ours = any(next(output.glob(mark), None) for mark in _MARKS)
    foreign = [name for name in names if not name.startswith(".") and (not ours or name not in FILES + FOLDERS)]
    if foreign:
        raise UserError(
            f"--output {output} holds other files already: {examples(foreign, 3)}. Give a folder that is empty or does"
            " not exist, or one that predict wrote."
        )


def clear_folder(directory: Path) -> None:
    """Remove what an earlier ``predict`` wrote into a folder, so that none of it lies among the new files."""
    for name in FILES:
        (directory / name).unlink(missing_ok=True)
    for name in FOLDERS:
        if (directory / name).is_dir():
            shutil.rmtree(directory / name)
