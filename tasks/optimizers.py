"""From settings to an optimizer whose groups have their own learning rates and weight decays."""

from __future__ import annotations

import fnmatch
import inspect
from collections.abc import Collection
from typing import Any

import torch
from timm.models import group_parameters
from timm.optim import create_optimizer_v2, get_optimizer_class, muon
from torch import Tensor, nn

from datamodules.common.errors import UserError
from tasks.optim import Optim, effective_lr, refuse

_orthogonalise = muon.zeropower_via_newtonschulz


def _orthogonalise_on(matrix: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Newton-Schulz of timm's Muon; on a CPU in float32, seven times as fast there as bfloat16 without units for it."""
    dtype = torch.float32 if matrix.is_cpu else torch.bfloat16
    result: Tensor = _orthogonalise(matrix, *args, **{"dtype": dtype, **kwargs})
    return result


# Its type is no argument of Muon: https://github.com/huggingface/pytorch-image-models/blob/main/timm/optim/muon.py
muon.zeropower_via_newtonschulz = _orthogonalise_on


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


def _without_decay(module: nn.Module) -> set[str]:
    """Names of biases, and of the parameters that the net exempts from weight decay by patterns."""
    names = [name for name, _ in module.named_parameters()]
    exempt = {name for name in names if name.endswith(".bias")}
    prefix, net = _with_prefix(module, "no_weight_decay") or ("", None)
    for pattern in net.no_weight_decay() if net else ():  # type: ignore[operator]
        exempt |= set(fnmatch.filter(names, prefix + pattern))
    return exempt


def _parameter_groups(
    module: nn.Module, optim: Optim, lr: float, head_names: Collection[str] | None
) -> list[dict[str, Any]]:
    scales = _layer_scales(module, optim.layer_decay) if optim.layer_decay else {}
    exempt = _without_decay(module)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        scale = scales.get(name, 1.0)
        if head_names is not None and name not in head_names:
            scale *= optim.backbone_lr_scale
        decays = parameter.ndim > 1 and name not in exempt
        groups.setdefault((scale, optim.weight_decay if decays else 0.0), []).append(parameter)
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
    """The optimizer over all parameters that want gradients, in groups of one learning rate and weight decay each.

    Groups have `name` (unique) and `initial_lr`. When a state is loaded, the groups keep the settings given here
    (rate, decay, momentum, `opt_args`), and only a schedule's present fall of the rate is taken over: on resume the
    config is the truth.

    Args:
        module: the network, whose parameter names `head_names` are; layer decay needs a timm net in it.
        optim: the settings.
        global_batch: images in one optimizer step: all ranks, times accumulation.
        head_names: parameters of the head; needed for `backbone_lr_scale`.

    Raises:
        UserError: nothing to train; `backbone_lr_scale` without head; the optimizer refuses its arguments.
    """
    if optim.backbone_lr_scale != 1 and not head_names:
        refuse("backbone_lr_scale", optim.backbone_lr_scale, "this net has no head to set apart; leave it out.")
    groups = _parameter_groups(module, optim, effective_lr(optim, global_batch), head_names)
    if not groups:
        raise UserError("Nothing is left to train: all parameters of the model are frozen.")
    arguments = dict(optim.opt_args or {})
    on_gpu = all(parameter.is_cuda for group in groups for parameter in group["params"])
    fused = on_gpu and _can_fuse(optim.name)
    if fused and not arguments.get("foreach"):
        arguments.setdefault("fused", True)
    try:
        optimizer: torch.optim.Optimizer = create_optimizer_v2(
            groups, optim.name, lr=optim.lr, momentum=optim.momentum, **arguments
        )
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"model.optim.opt_args: {optim.name} refuses {optim.opt_args}: {error}") from error
    if fused:
        # Lightning refuses to clip gradients for optimizers that unscale by themselves; without this mark the gradient
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

    def refuse_others(present: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        theirs = [len(group["params"]) for group in state["param_groups"]]
        if theirs != [len(group["params"]) for group in present.param_groups]:
            raise UserError(
                "model.optim: the checkpoint's optimizer has other groups of parameters: layer_decay,"
                " backbone_lr_scale, a weight_decay of 0 or what is frozen has changed. Continue with the run's own"
                " settings, or begin a new run from its weights (model.pretrained)."
            )

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
    inner.register_load_state_dict_pre_hook(refuse_others)
    inner.register_load_state_dict_post_hook(restore)
