"""Checkpoints of tasks that were never trained, written in a tenth of a second, with random weights all over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import yaml

import pipelines.run.loading  # noqa: F401 - it names the classes that a checkpoint may hold
from datamodules.base import DataModule
from pipelines.config.carried import Names, make
from tasks.base import Task

#: Class and arguments of a task and its data, with ``source`` still to be given.
CASES: dict[str, tuple[str, dict[str, Any], str, dict[str, Any]]] = {
    "classification": (
        "Classification",
        {"backbone": "test_resnet"},
        "ClassificationData",
        {"class_names": ["ant", "bee"], "image_size": 48},
    ),
    "detection": (
        "Detection",
        {"detector": "fcos", "detector_args": {"head_channels": 16, "head_depth": 1}},
        "DetectionData",
        {"class_names": ["disc", "square"], "class_ids": [7, 3], "image_size": 64},
    ),
    "instances": (
        "Detection",
        {
            "detector": "mask_rcnn",
            "detector_args": {
                "head_channels": 16,
                "box_head_width": 16,
                "candidates": [50, 50],
                "proposals": [20, 20],
                "mask_head_width": 16,
                "mask_head_depth": 1,
            },
        },
        "DetectionData",
        {"class_names": ["disc", "square"], "class_ids": [7, 3], "image_size": 64, "masks": True},
    ),
    "segmentation": (
        "Segmentation",
        {"architecture": "unet"},
        "SegmentationData",
        {"class_names": ["ground", "disc", "square"], "image_size": 32},
    ),
}


def write_checkpoint(
    path: Path,
    case: str,
    source: Path | str,
    *,
    seed: int = 0,
    model: dict[str, Any] | None = None,
    data: dict[str, Any] | None = None,
) -> Path:
    """Write a checkpoint of a case, with further arguments of its model and data."""
    task_class, task_args, data_class, data_args = CASES[case]
    boxes = {"min_score": 0.001, "nms_iou": 0.5, "max_detections": 20} if task_class == "Detection" else {}
    loading = {"source": str(source), "batch_size": 4, "num_workers": 0}
    config: dict[str, Any] = {
        "name": case,
        "model": {
            "class_path": f"tasks.{task_class}",
            "init_args": {"backbone": "test_resnet", **task_args, **boxes, **(model or {})},
        },
        "data": {"class_path": f"datamodules.{data_class}", "init_args": {**data_args, **loading, **(data or {})}},
    }
    torch.manual_seed(seed)
    names = Names((), ())
    task, datamodule = (
        make(config["model"], Task, ("model",), names),
        make(config["data"], DataModule, ("data",), names),
    )
    task.resolve(datamodule.spec(), "data")
    task.configure_model()
    with torch.no_grad():
        for parameter in task.parameters():  # heads start near 0: nothing would be sure, and all boxes alike
            parameter.add_(0.05 * torch.randn_like(parameter))
    torch.save(
        {
            "state_dict": task.state_dict(),
            "hyper_parameters": dict(task.hparams),
            "task_state": task.state(),
            "config": yaml.safe_dump(config),
            "epoch": 0,
            "global_step": 0,
            "pytorch-lightning_version": pl.__version__,
        },
        path,
    )
    return path
