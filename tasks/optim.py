"""Optimiser and schedule: one frozen dataclass of settings, and functions that build what they say."""

from __future__ import annotations

import difflib
import fnmatch
import inspect
import math
import warnings
from collections.abc import Collection
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, Literal

import torch
from timm.models import group_parameters
from timm.optim import create_optimizer_v2, get_optimizer_class, get_optimizer_info, list_optimizers, muon
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

from datamodules.common.errors import UserError

# Settings that only some schedules read; the others refuse them.
SCHEDULE_SETTINGS = {
    "warmup_epochs": ("cosine", "step", "poly", "constant"),
    "min_lr_ratio": ("cosine", "poly"),
    "step_epochs": ("step",),
    "gamma": ("step",),
    "poly_power": ("poly",),
    "plateau_patience": ("plateau",),
    "plateau_factor": ("plateau",),
}
# One-cycle as in torch: https://pytorch.org/docs/stable/generated/torch.optim.lr_scheduler.OneCycleLR.html
ONE_CYCLE_RISE, ONE_CYCLE_START, ONE_CYCLE_END = 0.3, 1 / 25, 1 / 25e4

_orthogonalise = muon.zeropower_via_newtonschulz


def _orthogonalise_on(matrix: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Newton-Schulz of timm's Muon; on a CPU in float32, seven times as fast there as bfloat16 without units for it."""
    dtype = torch.float32 if matrix.is_cpu else torch.bfloat16
    result: Tensor = _orthogonalise(matrix, *args, **{"dtype": dtype, **kwargs})
    return result


# Its type is no argument of Muon: https://github.com/huggingface/pytorch-image-models/blob/main/timm/optim/muon.py
muon.zeropower_via_newtonschulz = _orthogonalise_on


@dataclass(frozen=True)
class Optim:
    """How a model is optimised.

    Norms, biases and other one-dimensional parameters have no weight decay.

    Attributes:
        name: timm's name of an optimiser: adamw, sgd, lamb, lion, muon, ...
        lr: highest learning rate, before scaling with the batch.
        weight_decay: weight decay.
        momentum: for optimisers that have one; others are set by `opt_args` (`betas`).
        opt_args: more arguments of the optimiser.
        layer_decay: the learning rate of each layer is this times that of the layer after it (BEiT; 0.65 to 0.9 is
            usual).
        backbone_lr_scale: learning rate of all but the head, relative to the head's.
        lr_scaling: scale lr with (global batch / lr_base_batch), or its square root; off unless asked.
        lr_base_batch: batch size that lr was chosen for.
        schedule: per optimiser step; `plateau` after each validation.
        warmup_epochs: linear rise from almost 0; may be a fraction.
        min_lr_ratio: cosine and poly end at this part of lr.
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
    warmup_epochs: float = 0.0
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


def _refuse(key: str, value: object, reason: str) -> None:
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
        "warmup_epochs": (optim.warmup_epochs >= 0, "it must be 0 or more."),
        "min_lr_ratio": (0 <= optim.min_lr_ratio <= 1, "it is a part of lr, from 0 to 1."),
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
            _refuse(key, getattr(optim, key), reason)
    if optim.lr_base_batch != 256 and optim.lr_scaling is None:
        _refuse("lr_base_batch", optim.lr_base_batch, "it has no effect without lr_scaling: linear or sqrt.")


def _check_optimizer(optim: Optim) -> None:
    name = optim.name.lower().removeprefix("lookahead_")
    names = list_optimizers()
    if name not in names:
        near = difflib.get_close_matches(name, names, n=3)
        _refuse(
            "name", optim.name, f"did you mean {' or '.join(near)}?" if near else f"choose from {', '.join(names)}."
        )
    info = get_optimizer_info(name)
    if not info.has_momentum and optim.momentum != 0.9:
        _refuse(
            "momentum", optim.momentum, f"{optim.name} has none; leave it out (betas are set in model.optim.opt_args)."
        )
    known = inspect.signature(get_optimizer_class(name, bind_defaults=False).__init__).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values()):
        return
    for key in optim.opt_args or {}:
        if key in ("lr", "weight_decay", "momentum"):
            _refuse("opt_args", optim.opt_args, f"set model.optim.{key} instead.")
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1) or [
                name for name in known if name not in ("self", "params")
            ]
            _refuse("opt_args", optim.opt_args, f"{optim.name} has no argument '{key}'; perhaps {', '.join(near)}?")


def _check_schedule(optim: Optim) -> None:
    schedules = ("cosine", "step", "poly", "one_cycle", "plateau", "constant")
    if optim.schedule not in schedules:
        near = difflib.get_close_matches(str(optim.schedule), schedules, n=1) or schedules
        _refuse("schedule", optim.schedule, f"choose {' or '.join(near)}.")
    for item in fields(optim):
        default = item.default_factory() if item.default_factory is not MISSING else item.default
        readers = SCHEDULE_SETTINGS.get(item.name)
        value = getattr(optim, item.name)
        if readers and optim.schedule not in readers and value != default:
            _refuse(
                item.name, value, f"schedule: {optim.schedule} ignores it; leave it out, or use {' or '.join(readers)}."
            )
    if optim.schedule == "step" and not optim.step_epochs:
        _refuse("step_epochs", optim.step_epochs, "schedule: step needs the epochs at which the rate falls.")


def effective_lr(optim: Optim, global_batch: int) -> float:
    """The highest learning rate after scaling with the global batch (all ranks, times accumulation)."""
    ratio = global_batch / optim.lr_base_batch
    return optim.lr * {"linear": ratio, "sqrt": math.sqrt(ratio), None: 1.0}[optim.lr_scaling]


def describe(optim: Optim, global_batch: int) -> str:
    """One line for people: optimiser, learning rate and how it came about, schedule."""
    lr = effective_lr(optim, global_batch)
    how = "not scaled with the batch"
    if optim.lr_scaling:
        root = " square root of" if optim.lr_scaling == "sqrt" else ""
        how = f"{optim.lr:g} times{root} {global_batch} / {optim.lr_base_batch}"
    warmup = f", {optim.warmup_epochs:g} epochs of warm-up" if optim.warmup_epochs else ""
    return f"{optim.name}, lr {lr:.4g} ({how}), global batch {global_batch}, {optim.schedule} schedule{warmup}"


def _with_prefix(module: nn.Module, method: str) -> tuple[str, nn.Module] | None:
    """The first sub-module (or the module itself) that has timm's method, and the prefix of its parameters' names."""
    for name, child in module.named_modules():
        if hasattr(child, method):
            return f"{name}." if name else "", child
    return None


def _layer_scales(module: nn.Module, decay: float) -> dict[str, float]:
    """For each parameter of the backbone decay ** (number of layers behind it), as in timm."""
    found = _with_prefix(module, "group_matcher")
    if found is None:
        raise UserError("model.optim.layer_decay: this net does not say what its layers are; leave it out.")
    prefix, net = found
    layers = group_parameters(net, net.group_matcher(coarse=False), reverse=True)  # type: ignore[operator]
    return {prefix + name: decay ** (max(layers.values()) - layer) for name, layer in layers.items()}


def _parameter_groups(
    module: nn.Module, optim: Optim, lr: float, head_names: Collection[str] | None
) -> list[dict[str, Any]]:
    scales = _layer_scales(module, optim.layer_decay) if optim.layer_decay else {}
    prefix, net = _with_prefix(module, "no_weight_decay") or ("", None)
    exempt = [prefix + pattern for pattern in net.no_weight_decay()] if net else []  # type: ignore[operator]
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        scale = scales.get(name, 1.0)
        if head_names is not None and name not in head_names:
            scale *= optim.backbone_lr_scale
        plain = parameter.ndim <= 1 or name.endswith(".bias") or any(fnmatch.fnmatch(name, one) for one in exempt)
        groups.setdefault((scale, 0.0 if plain else optim.weight_decay), []).append(parameter)
    return [
        {
            "params": parameters,
            # torch's schedulers ignore timm's `lr_scale`, so the rate itself is scaled.
            "lr": lr * scale,
            "initial_lr": lr * scale,
            "weight_decay": weight_decay,
            "name": f"lr_x{scale:.6g}" + ("" if weight_decay else "_no_decay"),
        }
        for (scale, weight_decay), parameters in groups.items()
    ]


def build_optimizer(
    module: nn.Module, optim: Optim, global_batch: int, head_names: Collection[str] | None = None
) -> torch.optim.Optimizer:
    """The optimiser over all parameters that want gradients, in groups of one learning rate and weight decay each.

    Groups have `name` (unique) and `initial_lr`. When a state is loaded, the groups keep the settings given here
    (rate, decay, momentum, `opt_args`), and only a schedule's present fall of the rate is taken over: on resume the
    config is the truth.

    Args:
        module: the network, whose parameter names `head_names` are; layer decay needs a timm net in it.
        optim: the settings.
        global_batch: images in one optimiser step: all ranks, times accumulation.
        head_names: parameters of the head; needed for `backbone_lr_scale`.

    Raises:
        UserError: nothing to train; `backbone_lr_scale` without head; the optimiser refuses its arguments.
    """
    if optim.backbone_lr_scale != 1 and not head_names:
        _refuse("backbone_lr_scale", optim.backbone_lr_scale, "this net has no head to set apart; leave it out.")
    groups = _parameter_groups(module, optim, effective_lr(optim, global_batch), head_names)
    if not groups:
        raise UserError("Nothing is left to train: all parameters of the model are frozen.")
    arguments = dict(optim.opt_args or {})
    parameters = [parameter for group in groups for parameter in group["params"]]
    fused = all(parameter.is_cuda for parameter in parameters) and _can_fuse(optim.name)
    if fused and not arguments.get("foreach"):
        arguments.setdefault("fused", True)
    try:
        optimizer: torch.optim.Optimizer = create_optimizer_v2(
            groups, optim.name, lr=optim.lr, momentum=optim.momentum, **arguments
        )
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"model.optim.opt_args: {optim.name} refuses {optim.opt_args}: {error}") from error
    if fused:
        # Lightning refuses to clip gradients for optimisers that unscale by themselves; without this mark the gradient
        # scaler unscales before the step, as for any other: https://github.com/Lightning-AI/pytorch-lightning/issues/16434
        optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
    _keep_settings_on_load(optimizer, {"weight_decay", "momentum", *arguments})
    return optimizer


def _can_fuse(name: str) -> bool:
    if name.lower().startswith("lookahead_"):
        return False
    return "fused" in inspect.signature(get_optimizer_class(name.lower(), bind_defaults=False).__init__).parameters


def _keep_settings_on_load(optimizer: torch.optim.Optimizer, keys: Collection[str]) -> None:
    """A loaded state replaces all group settings by the old run's: put ours back."""
    ours = [
        {key: value for key, value in group.items() if key in keys or key == "initial_lr"}
        for group in optimizer.param_groups
    ]

    def restore(loaded: torch.optim.Optimizer) -> None:
        for group, settings in zip(loaded.param_groups, ours, strict=True):
            before, now = group["initial_lr"], settings["initial_lr"]
            if before != now:
                group["lr"] *= now / before
            group.update(settings)
            if group.get("fused"):
                # torch placed them by the old run's setting, and Lightning leaves them there; the fused kernel wants
                # them beside the parameters: https://github.com/pytorch/pytorch/issues/104767
                for parameter in group["params"]:
                    state = loaded.state.get(parameter, {})
                    if "step" in state:
                        state["step"] = torch.as_tensor(state["step"], dtype=torch.float32, device=parameter.device)

    inner = getattr(optimizer, "_base_optimizer", optimizer)  # timm's Lookahead shares another's groups
    inner.register_load_state_dict_post_hook(restore)


def lr_factor(step: int, optim: Optim, total_steps: int, steps_per_epoch: int) -> float:
    """What the highest learning rate is multiplied by in optimiser step number `step` (from 0); not for `plateau`.

    Warm-up is (step + 1) / (warm-up steps + 1), which is 1 in the first step after it. Cosine and poly fall from
    there to `min_lr_ratio` at `total_steps`. One-cycle is torch's with its default arguments, without cycled
    momentum.
    """
    warmup = round(optim.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = min(1.0, (step - warmup) / max(1, total_steps - warmup))
    floor = optim.min_lr_ratio
    match optim.schedule:
        case "cosine":
            return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))
        case "poly":
            return float(floor + (1 - floor) * (1 - progress) ** optim.poly_power)
        case "step":
            return float(optim.gamma ** sum(step >= round(epoch * steps_per_epoch) for epoch in optim.step_epochs))
        case "one_cycle":
            return _one_cycle(step, total_steps)
        case _:
            return 1.0


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
        """Take over what was seen, not how it is judged."""
        kept = ("best", "num_bad_epochs", "cooldown_counter", "last_epoch", "_last_lr")
        super().load_state_dict({key: state_dict[key] for key in kept if key in state_dict})


def build_scheduler(
    optimizer: torch.optim.Optimizer,
    optim: Optim,
    total_steps: int,
    steps_per_epoch: int,
    mode: Literal["min", "max"] = "max",
) -> tuple[LRScheduler, Literal["step", "plateau"]]:
    """The schedule, and when to step it: after each optimiser step, or (`plateau`) with the metric after validation.

    Args:
        optimizer: from `build_optimizer`.
        optim: the settings.
        total_steps: optimiser steps of the whole run.
        steps_per_epoch: optimiser steps of one epoch.
        mode: for `plateau`, whether a higher or a lower metric is better.
    """
    if optim.schedule == "plateau":
        return Plateau(optimizer, mode, factor=optim.plateau_factor, patience=optim.plateau_patience), "plateau"
    if optim.warmup_epochs * steps_per_epoch >= total_steps:
        warnings.warn(
            f"model.optim.warmup_epochs is {optim.warmup_epochs:g}, but the run has only {total_steps} steps of "
            f"{steps_per_epoch} an epoch: the learning rate never reaches its height.",
            stacklevel=2,
        )
    factor = lambda step: lr_factor(step, optim, total_steps, steps_per_epoch)  # noqa: E731  # not saved in the state
    return StepSchedule(optimizer, factor), "step"
