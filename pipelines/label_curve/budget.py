"""The fractions that are asked for, and how long their trainings are."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Literal

from datamodules.common.errors import UserError
from datamodules.samplers import choose_batch

FRACTIONS = "0.1,0.25,0.5,1"
MORE = 500
Budget = Literal["steps", "epochs"]


def read_fractions(text: str) -> list[float]:
    """``0.1,0.25,0.5,1`` as rising numbers.

    Raises:
        UserError: If one is no number above 0 and at most 1, or there are fewer than two.
    """
    try:
        found = sorted({float(word) for word in text.strip("[] ").split(",") if word.strip()})
    except ValueError:
        raise UserError(f"--fractions is {text}; it must be numbers, as {FRACTIONS}.") from None
    wrong = [value for value in found if not 0 < value <= 1]
    if wrong:
        raise UserError(f"--fractions has {wrong[0]:g}; each must be above 0 and at most 1, as {FRACTIONS}.")
    if len(found) < 2:
        raise UserError(f"--fractions is {text}: a curve needs two or more, and its extrapolation three.")
    return found


def check_counts(seeds: int, more: int) -> None:
    """Refuse numbers that cannot be.

    Raises:
        UserError: Naming the flag.
    """
    for name, value in (("seeds", seeds), ("more", more)):
        if value < 1:
            raise UserError(f"--{name} is {value}; it must be at least 1.")


def steps(images: int, data: Any, batch_size: Any, world: int) -> int:
    """Optimizer batches an epoch of so many labeled images over ``world`` devices.

    Args:
        images: Labeled ones.
        data: The datamodule.
        batch_size: As set; None for the data's choice.
        world: Devices.

    Raises:
        UserError: If the batch size is not known before a training.
    """
    if batch_size == "auto":
        raise UserError("data.batch_size is auto, but the length of an epoch follows from it: give curve a number.")
    batch = batch_size or choose_batch(data.most_images, images // world)
    return max(1, images // (batch * world))


def longer(trainer: Mapping[str, Any], factor: float) -> dict[str, Any]:
    """A trainer's settings with ``factor`` times the epochs, which are shorter, validated as often as before.

    Args:
        trainer: Its settings; without ``max_epochs`` it is left as it is, since ``max_steps`` counts steps.
        factor: How many times shorter an epoch is.
    """
    out = copy.deepcopy(dict(trainer))
    epochs = out.get("max_epochs")
    if factor <= 1 or not isinstance(epochs, int) or epochs < 1:
        return out
    every = int(out.get("check_val_every_n_epoch") or 1)
    out["check_val_every_n_epoch"] = max(1, round(every * factor))
    out["max_epochs"] = max(1, round(epochs * factor))
    if epochs % every == 0:  # the last epoch is validated, and stays so
        out["max_epochs"] = epochs // every * out["check_val_every_n_epoch"]
    return out


def with_longer_model(model: dict[str, Any], factor: float) -> dict[str, Any]:
    """A task's config with its own epochs stretched likewise: of the schedule, and of the frozen backbone."""
    out = copy.deepcopy(model)
    arguments = out.get("init_args") or {}
    optim = arguments.get("optim") or {}
    if factor > 1:
        if optim.get("warmup_epochs"):
            optim["warmup_epochs"] *= factor
        if optim.get("step_epochs"):
            optim["step_epochs"] = [epoch * factor for epoch in optim["step_epochs"]]
        if arguments.get("unfreeze_at_epoch"):
            arguments["unfreeze_at_epoch"] = round(arguments["unfreeze_at_epoch"] * factor)
    return out
