"""The worst mistakes of an evaluation with what the network looked at: one picture for the run's report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from datamodules.common.errors import UserError
from datamodules.common.files import atomic_path
from datamodules.loaders import Record
from pipelines.explaining.attribution import Settings, explain_target
from pipelines.explaining.targets import Target, Wanted, as_pixels, find_targets
from pipelines.inference import Batch, Predictor
from pipelines.outputs.heat import framed, heat_overlay, sized
from pipelines.outputs.sheets import Picture, sheet
from tasks.flops import predicting

METHOD = "layercam"


def explain_mistakes(predictor: Predictor, records: Sequence[Record], class_names: Sequence[str], path: Path) -> int:
    """Write a sheet: each picture, Layer-CAM of what the network says of it and, of a class, of the true one.

    Args:
        predictor: One model's.
        records: Of the pictures, with annotations.
        class_names: K names.
        path: A JPEG file; nothing is written where nothing can be explained.

    Returns:
        The number of pictures in it.
    """
    rows = []
    with torch.inference_mode(False), predicting(predictor.task):  # type: ignore[arg-type]
        for record in records:
            if row := _row(predictor, record, class_names):
                rows.append(row)
    if not rows:
        return 0
    columns = max(len(row) for row in rows)
    tiles, captions = zip(
        *(tile for row in rows for tile in [*row, *[_empty(row)] * (columns - len(row))]), strict=True
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        picture = sheet([Image.fromarray(tile) for tile in tiles], captions, columns)
        Image.fromarray(picture).save(temporary, format="JPEG", quality=85)
    return len(rows)


def _row(predictor: Predictor, record: Record, class_names: Sequence[str]) -> list[tuple[Picture, str]]:
    """The picture as the network sees it, and its explanations, each with a caption; nothing without a target."""
    task: Any = predictor.task
    batch: Batch = predictor.batch([record])
    batch = {key: value.to(predictor.device) if torch.is_tensor(value) else value for key, value in batch.items()}
    image = as_pixels(batch["image"])
    pixels = (image[0].permute(1, 2, 0).clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
    try:
        targets = find_targets(task, batch, Wanted(), class_names)[:1]
        truth = batch["label"][0] if "label" in batch else None
        if targets and truth is not None and truth.ndim == 0 and int(truth) != targets[0].label:
            targets += find_targets(task, batch, Wanted(label=int(truth)), class_names)
        heats = [explain_target(task, target, image, METHOD, Settings()).values.cpu().numpy() for target in targets]
    except UserError:  # tiles, or a network without maps
        return []
    if not targets:
        return []
    boxes = [_corners(target) for target in targets]
    name = str(batch["path"][0]).replace("\\", "/").rpartition("/")[2]
    row = [(framed(sized(pixels), pixels.shape, boxes[0]), name)]
    for number, (target, heat, box) in enumerate(zip(targets, heats, boxes, strict=True)):
        row.append((heat_overlay(pixels, heat, box), ("truly " if number else "") + target.name))
    return row


def _corners(target: Target) -> list[float] | None:
    return None if target.box is None else target.box.cpu().tolist()


def _empty(row: Sequence[tuple[Picture, str]]) -> tuple[Picture, str]:
    return np.full_like(row[0][0], 255), ""
