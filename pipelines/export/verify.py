"""Whether an exported file is the same model: the task's own metric on both sides, and where they part."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import torch

from datamodules.base import DataModule
from datamodules.common.errors import UserError
from datamodules.common.files import write_json
from pipelines.ensemble import members_of
from pipelines.export.side import Export
from pipelines.export.stages import Difference, compare
from pipelines.exported.metadata import REFUSED, metadata_path
from tasks.base import Task

#: A metric may fall by so much, by precision.
TOLERANCES = {"fp32": 0.001, "fp16": 0.001, "int8": 0.01}
#: Stages that no precision may change.
EXACT = ("decoded picture", "resized picture", "network input", "class names")
PICTURES = 12  # whose stages are compared


@torch.inference_mode()
def check_tolerance(tolerance: float | None) -> None:
    """Refuse one below 0, with which no file would pass.

    Raises:
        UserError: Naming the flag.
    """
    if tolerance is not None and not tolerance >= 0:
        raise UserError(f"--tolerance is {tolerance:g}; by how much the metric may fall is 0 or more.")


def verify(
    task: Task,
    data: DataModule,
    path: Path,
    *,
    split: Literal["val", "test"] = "val",
    tolerance: float | None = None,
    pictures: int = PICTURES,
) -> dict[str, Any]:
    """Evaluate the checkpoint and the exported file on one split, compare their stages, and write the outcome.

    An export is refused if its metric falls by more than the tolerance, or if pixels, network input or class names
    differ; in 32 bits also if any later stage does. It is renamed to ``NAME.refused.onnx`` then, and its metadata say
    why.

    Args:
        task: With the checkpoint's weights, in evaluation mode.
        data: Set up.
        path: The exported file.
        split: Whose images.
        tolerance: By how much the metric may fall; 0.001 by default, 0.01 for 8 bits.
        pictures: How many have their stages compared.

    Returns:
        ``metric`` (its name), ``checkpoint``, ``export``, ``difference``, ``tolerance``, ``split``, ``images``,
        ``stages``, ``first_difference``, ``picture``, ``passed`` and ``reason``; as in the metadata.

    Raises:
        UserError: If the file is of another task or other classes, or the split has no images.
    """
    if not data.records.get(split):
        raise UserError(f"--split is '{split}', but the data has no such images: choose the other split.")
    check_tolerance(tolerance)
    task.eval()
    export = Export(path, task, data.class_names or [], data.make_reader())
    metric = task.monitor.partition("/")[2]
    checkpoint, exported = _metrics(task, data, export, split, metric)
    stages = compare(export, data, split, pictures)
    sign = 1.0 if task.mode == "max" else -1.0
    limit = TOLERANCES[export.about["precision"]] if tolerance is None else tolerance
    outcome: dict[str, Any] = {
        "metric": metric,
        "checkpoint": checkpoint,
        "export": exported,
        "difference": exported - checkpoint,
        "tolerance": limit,
        "split": split,
        "images": len(data.records[split]),
        "stages": {stage.stage: {"difference": stage.value, "limit": stage.limit} for stage in stages},
    }
    falls = not sign * (checkpoint - exported) <= limit
    outcome |= _judged(outcome, stages, export.about["precision"], falls)
    mark(path, export.about, outcome)
    return outcome


def _metrics(task: Task, data: DataModule, export: Export, split: str, metric: str) -> tuple[float, float]:
    """The metric of the checkpoint and of the export."""
    ours, theirs = task.build_metrics(), task.build_metrics()
    first = members_of(task)[0]
    loader = data.val_dataloader() if split == "val" else data.test_dataloader()
    for batch in loader:
        records = [data.records[split][number] for number in batch["id"].tolist()]
        found = export.found(records)
        for metrics, predictions in ((ours, task.predict(batch)), (theirs, found)):
            first.eval_metrics = metrics
            first.update_metrics(batch, predictions)
    return float(ours.compute()[metric]), float(theirs.compute()[metric])  # type: ignore[operator]


def _judged(outcome: dict[str, Any], stages: list[Difference], precision: str, falls: bool) -> dict[str, Any]:
    """Whether it passed, the first stage that differs, and one line that says why."""
    counts = [s for s in stages if s.differs and (precision == "fp32" or falls or s.stage in EXACT)]
    first = counts[0] if counts else None
    passed = not falls and first is None
    where = ""
    if first is not None:
        value = "its shape" if first.value == float("inf") else f"{first.value:.4g}, limit {first.limit:g}"
        where = f"the first stage that differs is '{first.stage}' ({value}), most of all on {first.picture}"
    metric = (
        f"{outcome['metric']} is {outcome['export']:.4f}, the checkpoint's {outcome['checkpoint']:.4f}"
        f" (tolerance {outcome['tolerance']:g})"
    )
    reason = "" if passed else "; ".join(part for part in (metric, where or "no stage differs by itself") if part)
    return {
        "first_difference": first.stage if first else None,
        "picture": first.picture if first else None,
        "passed": passed,
        "reason": reason,
    }


def mark(path: Path, about: dict[str, Any], outcome: dict[str, Any]) -> Path:
    """Write the outcome into the metadata, and the name of the file: a refused one cannot be taken by mistake.

    Returns:
        The file's name from now on.
    """
    stem = path.stem.removesuffix(REFUSED)
    name = f"{stem}{path.suffix}" if outcome["passed"] else f"{stem}{REFUSED}{path.suffix}"
    target = path.with_name(name)
    weights = path.with_suffix(".bin")
    if target != path:
        if about["format"] == "openvino" and weights.exists():
            os.replace(weights, target.with_suffix(".bin"))
        os.replace(path, target)
    write_json(metadata_path(target), {**about, "file": name, "verified": outcome})
    return target
