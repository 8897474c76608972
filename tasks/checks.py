"""Checks of a task against its trainer and data, before a run directory exists."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from datamodules.common.errors import UserError


@dataclass(frozen=True)
class TrainingPlan:
    """What a task is told of a training before it starts.

    Attributes:
        batch_size: Images a device and step, where known.
        has_validation: Whether there is a validation split.
        has_end: Whether the number of epochs or steps is limited.
        monitors: Metrics that callbacks watch.
    """

    batch_size: int | None = None
    has_validation: bool = True
    has_end: bool = True
    monitors: Sequence[str] = ()


def check_training(task: Any, plan: TrainingPlan) -> None:
    """Refuse what can only fail later.

    Args:
        task: A task whose network is built.
        plan: The training.

    Raises:
        UserError: Naming the setting.
    """
    if task.optim.schedule == "plateau" and not plan.has_validation:
        raise UserError(
            "model.optim.schedule is 'plateau', which follows the validation, but the data has no validation split."
            " Set data.val_fraction, or take another schedule."
        )
    if not plan.has_end:
        raise UserError(
            "trainer.max_epochs is -1 and trainer.max_steps is not set, but the schedule needs an end: set one."
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # computed without a batch, for the names
        metrics = task.eval_metrics.compute() if plan.has_validation else {}
    known = ["train/loss", *(f"val/{name}" for name, value in metrics.items() if value.numel() == 1)]
    for name in plan.monitors:
        if name not in known and not name.startswith("train/"):
            near = difflib.get_close_matches(name, known, n=1) or known
            raise UserError(
                f"trainer.callbacks: a callback watches '{name}', which is never logged; take {' or '.join(near)}."
            )
