"""What commands that evaluate a checkpoint leave in its run."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

from datamodules.common.files import write_json

#: Files and folders; ``pictures/test_*``, too.
RESULTS: tuple[str, ...] = (
    "validate.json",
    "test.json",
    "test_images.npz",
    "predictions.csv",
    "predictions.json",
    "contact_sheet.png",
    "predict",
)


def write_metrics(path: Path, metrics: dict[str, Any]) -> None:
    """Write metrics as JSON; NaN, which JSON lacks, becomes null."""
    write_json(path, _plain(metrics))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def set_results_aside(run: Path) -> Path | None:
    """Move what ``test``, ``validate`` and ``predict`` left into the folder ``older_results``: the weights will change.

    Returns:
        The folder, which has no others than these; None where there was nothing.
    """
    found = [path for name in RESULTS if (path := run / name).exists()]
    found += sorted((run / "pictures").glob("test_*"))
    folder = run / "older_results"
    if not found:
        return None
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for path in found:
        path.rename(folder / path.name)
    return folder
