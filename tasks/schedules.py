"""From settings to a schedule of the learning rate."""

from __future__ import annotations

import math
import warnings
from typing import Any, Literal

import torch
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

from tasks.optim import MOST_WARMUP, WARMUP, Optim

# One-cycle as in torch: https://pytorch.org/docs/stable/generated/torch.optim.lr_scheduler.OneCycleLR.html
ONE_CYCLE_RISE, ONE_CYCLE_START, ONE_CYCLE_END = 0.3, 1 / 25, 1 / 25e4


def lr_factor(step: int, optim: Optim, total_steps: int, steps_per_epoch: int) -> float:
    """What the highest learning rate is multiplied by in optimizer step number `step` (from 0); not for `plateau`.

    Warm-up is (step + 1) / (warm-up steps + 1), which is 1 in the first step after it. Cosine and poly fall from
    there to `min_lr_ratio` at `total_steps`. One-cycle is torch's with its default arguments, without cycled
    momentum.
    """
    warmup = warmup_steps(optim, total_steps, steps_per_epoch)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = min(1.0, (step - warmup) / max(1, total_steps - warmup))
    floor = optim.min_lr_ratio
    match optim.schedule:
        case "cosine":
            return floor + (1 - floor) * 0.5 * (
                1 + math.cos(math.pi * _of_cycle(step, warmup, total_steps, optim.cycles))
            )
        case "poly":
            return float(floor + (1 - floor) * (1 - progress) ** optim.poly_power)
        case "step":
            return float(optim.gamma ** sum(step >= round(epoch * steps_per_epoch) for epoch in optim.step_epochs))
        case "one_cycle":
            return _one_cycle(step, total_steps)
        case _:
            return 1.0


def _of_cycle(step: int, warmup: int, total_steps: int, cycles: int) -> float:
    """How far a step is within its cycle, 0 to 1: the cycles are equal parts of all steps, warm-up included."""
    cycle = min(cycles - 1, step * cycles // max(1, total_steps))
    first, last = max(warmup, cycle * total_steps / cycles), (cycle + 1) * total_steps / cycles
    return min(1.0, (step - first) / max(1.0, last - first))


def warmup_steps(optim: Optim, total_steps: int, steps_per_epoch: int) -> int:
    """How many optimizer steps are warm-up: in proportion, so that a short run does not spend itself on it."""
    if optim.schedule in ("one_cycle", "plateau"):
        return 0
    if optim.warmup_epochs is None:
        return round((WARMUP if optim.warmup is None else optim.warmup) * total_steps)
    return min(round(optim.warmup_epochs * steps_per_epoch), round(MOST_WARMUP * total_steps))


def _one_cycle(step: int, total_steps: int) -> float:
    top, last = ONE_CYCLE_RISE * total_steps - 1, total_steps - 1
    if step <= top:
        start, end, part = ONE_CYCLE_START, 1.0, step / top
    else:
        start, end, part = 1.0, ONE_CYCLE_END, min(1.0, (step - top) / (last - top))
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * part))


class StepSchedule(LambdaLR):
    """`lr_factor` times each group's own rate; a loaded state sets only the step, so that a changed config counts."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go to the step of the saved schedule."""
        self.last_epoch = state_dict["last_epoch"]
        self._step_count = state_dict["_step_count"]
        rates = [base * self.lr_lambdas[0](self.last_epoch) for base in self.base_lrs]
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        self._last_lr = rates


class Plateau(ReduceLROnPlateau):
    """torch's schedule; a loaded state leaves patience and factor as they are configured."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what was seen, not how it is evaluated."""
        kept = ("best", "num_bad_epochs", "cooldown_counter", "last_epoch", "_last_lr")
        super().load_state_dict({key: state_dict[key] for key in kept if key in state_dict})


def build_scheduler(
    optimizer: torch.optim.Optimizer,
    optim: Optim,
    total_steps: int,
    steps_per_epoch: int,
    mode: Literal["min", "max"] = "max",
) -> tuple[LRScheduler, Literal["step", "plateau"]]:
    """The schedule, and when to step it: after each optimizer step, or (`plateau`) with the metric after validation.

    Args:
        optimizer: from `build_optimizer`.
        optim: the settings.
        total_steps: optimizer steps of the whole run.
        steps_per_epoch: optimizer steps of one epoch.
        mode: for `plateau`, whether a higher or a lower metric is better.
    """
    if optim.schedule == "plateau":
        return Plateau(optimizer, mode, factor=optim.plateau_factor, patience=optim.plateau_patience), "plateau"
    steps = warmup_steps(optim, total_steps, steps_per_epoch)
    if optim.warmup_epochs is not None and steps < round(optim.warmup_epochs * steps_per_epoch):
        warnings.warn(
            f"model.optim.warmup_epochs is {optim.warmup_epochs:g}, but the run has only {total_steps} steps of "
            f"{steps_per_epoch} an epoch: warm-up is cut to {steps} steps, a quarter. model.optim.warmup sets a "
            "fraction of any run.",
            stacklevel=2,
        )
    factor = lambda step: lr_factor(step, optim, total_steps, steps_per_epoch)  # noqa: E731  # not saved in the state
    return StepSchedule(optimizer, factor), "step"
