"""An exported file in place of a task's network: `predict` and the metrics around it stay the task's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datamodules.common.errors import UserError
from pipelines.exported.metadata import is_exported, read_metadata
from pipelines.exported.runner import Array, Run, open_model, suppress
from tasks.base import Task

PACKAGES = {"onnx": "onnxruntime", "openvino": "openvino", "torch_export": "torch"}


def open_exported(path: Path, kind: str, threads: int = 0) -> Run:
    """A function of uint8 (B, C, H, W) that runs an exported file.

    Raises:
        UserError: Without the package that runs it.
    """
    try:
        return open_model(path, kind, threads)
    except ImportError as error:
        raise UserError(
            f"{path} needs the package {PACKAGES[kind]}: pip install 'vision-pipelines[{kind}]'."
        ) from error


def use_exported(task: Task, path: str | Path) -> bool:
    """Let an exported file compute what the task's network would.

    Returns:
        Whether the file is one; a checkpoint is left to others.

    Args:
        task: Its network is built, and never run.
        path: The exported file, with its metadata beside it.

    Raises:
        UserError: As ``read_metadata`` and ``open_exported``.
    """
    path = Path(path)
    if not is_exported(path):
        return False
    about = read_metadata(path)
    run = open_exported(path, about["format"])
    given = about["input"]

    def runtime(image: Tensor) -> dict[str, Tensor]:
        size = tuple(image.shape[2:])
        if given["height"] is not None and size != (given["height"], given["width"]):
            raise UserError(
                f"{path} takes images of {given['height']} x {given['width']} pixels, but this one has"
                f" {size[0]} x {size[1]}: export with --dynamic size."
            )
        pixels = np.ascontiguousarray(image.cpu().numpy())
        step = given["batch"] or len(pixels)
        parts = [run(pixels[first : first + step]) for first in range(0, len(pixels), step)]
        return {
            name: torch.from_numpy(np.concatenate([part[name] for part in parts])).to(image.device) for name in parts[0]
        }

    task.load_state(about["task_state"])
    task.runtime = runtime
    return True


def _suppressed(outputs: dict[str, Array], limits: dict[str, Any]) -> dict[str, Array]:
    """A batch's boxes without duplicates, where the graph leaves them in: labels of those are -1."""
    labels = np.full_like(outputs["labels"], -1)
    for i, (boxes, scores, of_image) in enumerate(
        zip(outputs["boxes"], outputs["scores"], outputs["labels"], strict=True)
    ):
        kept = suppress(boxes, scores, of_image, np.flatnonzero(of_image >= 0), limits)
        labels[i, kept] = of_image[kept]
    return {**outputs, "labels": labels}
