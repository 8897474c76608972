"""The settings of optimizer and schedule, and their checks. What they say is built in ``optimizers``, ``schedules``."""

from __future__ import annotations

import difflib
import inspect
import math
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, Literal, NoReturn

from timm.optim import get_optimizer_class, get_optimizer_info, list_optimizers

from datamodules.common.errors import UserError

# Settings that only some schedules read; the others refuse them.
WARMUP, MOST_WARMUP = 0.05, 0.25  # of all steps: the default, and what `warmup_epochs` is cut to
SCHEDULE_SETTINGS = {
    "warmup": ("cosine", "step", "poly", "constant"),
    "warmup_epochs": ("cosine", "step", "poly", "constant"),
    "cycles": ("cosine",),
    "min_lr_ratio": ("cosine", "poly"),
    "step_epochs": ("step",),
    "gamma": ("step",),
    "poly_power": ("poly",),
    "plateau_patience": ("plateau",),
    "plateau_factor": ("plateau",),
}


@dataclass(frozen=True)
class Optim:
    """How a model is optimized.

    Norms, biases and other one-dimensional parameters have no weight decay.

    Attributes:
        name: timm's name of an optimizer: adamw, sgd, lamb, lion, muon, ...
        lr: highest learning rate, before scaling with the batch.
        weight_decay: weight decay.
        momentum: for optimizers that have one; others are set by `opt_args` (`betas`).
        opt_args: more arguments of the optimizer.
        layer_decay: the learning rate of each layer is this times that of the layer after it (BEiT; 0.65 to 0.9 is
            usual).
        backbone_lr_scale: learning rate of all but the head, relative to the head's.
        lr_scaling: scale lr with (global batch / lr_base_batch), or its square root; off unless asked. Of a
            semi-supervised batch the labeled images count.
        lr_base_batch: batch size that lr was chosen for.
        schedule: per optimizer step; `plateau` after each validation.
        warmup: linear rise from almost 0 in this fraction of all steps; 0.05 unless `warmup_epochs` is given.
        warmup_epochs: the same in epochs, in place of `warmup`; may be a fraction. In a short run it is cut to a
            quarter of all steps.
        cycles: how often `cosine` falls; each further fall starts at the full rate again (Loshchilov and Hutter 2017,
            https://arxiv.org/abs/1608.03983), without another warm-up.
        min_lr_ratio: cosine and poly end at this fraction of lr.
        step_epochs: epochs at which `step` multiplies the rate by gamma; may be fractions.
        gamma: see step_epochs.
        poly_power: exponent of poly.
        plateau_patience: validations without improvement before `plateau` lowers the rate.
        plateau_factor: by what it is multiplied then.

    Raises:
        UserError: an unknown name or argument, a value out of range, a setting that the schedule would ignore.
    """

    name: str = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.05
    momentum: float = 0.9
    opt_args: dict[str, Any] | None = None
    layer_decay: float | None = None
    backbone_lr_scale: float = 1.0
    lr_scaling: Literal["linear", "sqrt"] | None = None
    lr_base_batch: int = 256
    schedule: Literal["cosine", "step", "poly", "one_cycle", "plateau", "constant"] = "cosine"
    warmup: float | None = None
    warmup_epochs: float | None = None
    cycles: int = 1
    min_lr_ratio: float = 0.0
    step_epochs: list[float] = field(default_factory=list)
    gamma: float = 0.1
    poly_power: float = 0.9
    plateau_patience: int = 5
    plateau_factor: float = 0.1

    def __post_init__(self) -> None:
        _check_values(self)
        _check_optimizer(self)
        _check_schedule(self)


def refuse(key: str, value: object, reason: str) -> NoReturn:
    """Refuse a setting.

    Raises:
        UserError: Always.
    """
    raise UserError(f"model.optim.{key} is {value!r}; {reason}")


def _check_values(optim: Optim) -> None:
    ranges: dict[str, tuple[bool, str]] = {
        "lr": (optim.lr > 0, "it must be above 0."),
        "weight_decay": (optim.weight_decay >= 0, "it must be 0 or more."),
        "momentum": (0 <= optim.momentum < 1, "it must be in [0, 1)."),
        "layer_decay": (optim.layer_decay is None or 0 < optim.layer_decay <= 1, "it must be in (0, 1]."),
        "backbone_lr_scale": (
            optim.backbone_lr_scale > 0,
            "it must be above 0; to keep the backbone fixed, freeze it.",
        ),
        "lr_scaling": (optim.lr_scaling in (None, "linear", "sqrt"), "it must be linear, sqrt or null."),
        "lr_base_batch": (optim.lr_base_batch > 0, "it must be above 0."),
        "warmup": (optim.warmup is None or 0 <= optim.warmup < 1, "it is a fraction of all steps, from 0 to below 1."),
        "warmup_epochs": (optim.warmup_epochs is None or optim.warmup_epochs >= 0, "it must be 0 or more."),
        "cycles": (optim.cycles >= 1, "it must be at least 1."),
        "min_lr_ratio": (0 <= optim.min_lr_ratio <= 1, "it is a fraction of lr, from 0 to 1."),
        "step_epochs": (
            all(a < b for a, b in zip([0, *optim.step_epochs], optim.step_epochs, strict=False)),
            "it must be a rising list of epochs above 0.",
        ),
        "gamma": (0 < optim.gamma <= 1, "it must be in (0, 1]."),
        "poly_power": (optim.poly_power > 0, "it must be above 0."),
        "plateau_patience": (optim.plateau_patience >= 0, "it must be 0 or more."),
        "plateau_factor": (0 < optim.plateau_factor < 1, "it must be between 0 and 1."),
    }
    for key, (right, reason) in ranges.items():
        if not right:
            refuse(key, getattr(optim, key), reason)
    if optim.lr_base_batch != 256 and optim.lr_scaling is None:
        refuse("lr_base_batch", optim.lr_base_batch, "it has no effect without lr_scaling: linear or sqrt.")
    if optim.warmup is not None and optim.warmup_epochs is not None:
        refuse("warmup", optim.warmup, f"warmup_epochs is {optim.warmup_epochs:g}, too: leave one of them out.")


def _check_optimizer(optim: Optim) -> None:
    name = optim.name.lower().removeprefix("lookahead_")
    names = list_optimizers()
    if name not in names:
        near = difflib.get_close_matches(name, names, n=3)
        refuse("name", optim.name, f"did you mean {' or '.join(near)}?" if near else f"choose from {', '.join(names)}.")
    info = get_optimizer_info(name)
    if not info.has_momentum and optim.momentum != 0.9:
        refuse(
            "momentum", optim.momentum, f"{optim.name} has none; leave it out (betas are set in model.optim.opt_args)."
        )
    _check_opt_args(optim, name)


def _check_opt_args(optim: Optim, name: str) -> None:
    known = inspect.signature(get_optimizer_class(name, bind_defaults=False).__init__).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values()):
        return
    for key in optim.opt_args or {}:
        if key in ("lr", "weight_decay", "momentum"):
            refuse("opt_args", optim.opt_args, f"set model.optim.{key} instead.")
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1) or [
                name for name in known if name not in ("self", "params")
            ]
            refuse("opt_args", optim.opt_args, f"{optim.name} has no argument '{key}'; perhaps {', '.join(near)}?")


def _check_schedule(optim: Optim) -> None:
    schedules = ("cosine", "step", "poly", "one_cycle", "plateau", "constant")
    if optim.schedule not in schedules:
        near = difflib.get_close_matches(str(optim.schedule), schedules, n=1) or schedules
        refuse("schedule", optim.schedule, f"choose {' or '.join(near)}.")
    for item in fields(optim):
        default = item.default_factory() if item.default_factory is not MISSING else item.default
        readers = SCHEDULE_SETTINGS.get(item.name)
        value = getattr(optim, item.name)
        unset = value == default or (item.name in ("warmup", "warmup_epochs") and value == 0)
        if readers and optim.schedule not in readers and not unset:
            refuse(
                item.name, value, f"schedule: {optim.schedule} ignores it; leave it out, or use {' or '.join(readers)}."
            )
    if optim.schedule == "step" and not optim.step_epochs:
        refuse("step_epochs", optim.step_epochs, "schedule: step needs the epochs at which the rate falls.")


def effective_lr(optim: Optim, global_batch: int) -> float:
    """The highest learning rate after scaling with the global batch (all ranks, times accumulation)."""
    ratio = global_batch / optim.lr_base_batch
    return optim.lr * {"linear": ratio, "sqrt": math.sqrt(ratio), None: 1.0}[optim.lr_scaling]


def describe(optim: Optim, global_batch: int) -> str:
    """One line for people: optimizer, learning rate and how it came about, schedule."""
    lr = effective_lr(optim, global_batch)
    how = "not scaled with the batch"
    if optim.lr_scaling:
        root = " square root of" if optim.lr_scaling == "sqrt" else ""
        how = f"{optim.lr:g} times{root} {global_batch} / {optim.lr_base_batch}"
    return f"{optim.name}, lr {lr:.4g} ({how}), global batch {global_batch}, {optim.schedule} schedule{_warmup(optim)}"


def _warmup(optim: Optim) -> str:
    if optim.schedule not in SCHEDULE_SETTINGS["warmup"]:
        return ""
    if optim.warmup_epochs is not None:
        return f", {optim.warmup_epochs:g} epochs of warm-up" if optim.warmup_epochs else ""
    part = WARMUP if optim.warmup is None else optim.warmup
    return f", {100 * part:.3g} % of the steps as warm-up" if part else ""
