"""What makes a student's run leave an ordinary checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from datamodules.semisupervised import SemiSupervised
from pipelines.run.checkpoints import AtomicCheckpointIO
from pipelines.run.directory import best_or_last, run_config
from tasks.noisy_student import NoisyStudent

#: What a checkpoint needs to be tested, to predict and to teach; the optimizer's state is not among it.
KEPT = ("state_dict", "hyper_parameters", "config", "epoch", "global_step", "pytorch-lightning_version", "task_state")


def task_config(config: dict[str, Any], model: Any, datamodule: Any) -> dict[str, Any]:
    """The config of the student and its labeled data alone, which a noisy student's checkpoints carry.

    Args:
        config: The run's, as resolved; returned as it is where it is no noisy student's.
        model: The run's model, with its resolved values.
        datamodule: The run's data.
    """
    if not isinstance(model, NoisyStudent):
        return config
    config = {**config, "model": config["model"]["init_args"]["student"]}
    data = datamodule
    if isinstance(datamodule, SemiSupervised):
        config["data"] = config["data"]["init_args"]["labeled"]
        data = datamodule.labeled
    return run_config(config, dict(model.student.hparams), data.resolved() if hasattr(data, "resolved") else {})


def write_student(checkpoints: Path) -> None:
    """Write ``student.ckpt`` beside ``best.ckpt`` and ``last.ckpt``: a copy of the best, or of the last without one.

    Whole, because a run is continued from the newest file of this folder.
    """
    source = best_or_last(checkpoints)
    if source is not None:
        checkpoint = torch.load(source, map_location="cpu", weights_only=True, mmap=True)
        AtomicCheckpointIO().save_checkpoint(checkpoint, checkpoints / "student.ckpt")


def export(source: Path, target: Path) -> None:
    """Copy a checkpoint without the state that only its own training needs.

    Args:
        source: An ordinary checkpoint, or a noisy student's.
        target: Where to; replaced in one step.
    """
    checkpoint = torch.load(source, map_location="cpu", weights_only=True, mmap=True)
    AtomicCheckpointIO().save_checkpoint({key: checkpoint[key] for key in KEPT if key in checkpoint}, target)
