"""The only caller of timm's models: any timm name as a net, a classifier, and freezing that stays frozen.

Feature maps are in `tasks.pyramid`.

Importing this module also registers the nets of `tasks.networks`, so that they are names like any other.
"""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Collection
from itertools import cycle, islice
from typing import Any

import timm
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import PatchEmbed, convert_sync_batchnorm
from torch import nn

import tasks.networks  # noqa: F401  # registers our nets with timm
from datamodules.common.errors import UserError
from tasks.pretrained import HUB_PREFIXES, classifier_names, create_from_file, net_config


def list_backbones(pattern: str = "*") -> list[str]:
    """Names of all nets, timm's and ours, sorted naturally.

    Args:
        pattern: wildcard pattern (`resnet*`) or part of a name (`resnet`); upper and lower case are the same.
    """
    pattern = pattern.lower()
    if not any(mark in pattern for mark in "*?["):
        pattern = f"*{pattern}*"
    return [name for name in timm.list_models() if fnmatch.fnmatchcase(name.lower(), pattern)]


def check_backbone(name: str) -> None:
    """Check a name, with or without a tag of weights (`resnet18.a1_in1k`), without building anything.

    Raises:
        UserError: an unknown name or tag, with the nearest right ones.
    """
    if name.startswith(HUB_PREFIXES):
        return
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture.lower(), timm.list_models(), n=3)
        hint = (
            f"did you mean {' or '.join(near)}?" if near else "`python -m pipelines list backbones PATTERN` shows all."
        )
        raise UserError(f"model.backbone: there is no net named '{name}'; {hint}")
    if tag:
        tags = [found.partition(".")[2] for found in timm.list_pretrained(f"{architecture}.*")]
        if tag not in tags:
            near = difflib.get_close_matches(tag, tags, n=3) or tags
            hint = f"it has {', '.join(near)}" if near else "it has none"
            raise UserError(f"model.backbone: '{architecture}' has no weights tagged '{tag}'; {hint}.")


def default_image_size(name: str) -> tuple[int, int]:
    """Height and width in pixels that a net was made for (of its default weights, or of those that a tag names)."""
    check_backbone(name)
    config = net_config(name)
    _, height, width = config.input_size if config else (3, 224, 224)
    return height, width


def normalization(model: nn.Module, in_chans: int) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each input channel, for pixels in [0, 1].

    They are those of the net's pretrained weights. One channel gets the mean of three; any other number of channels
    repeats them, as timm repeats the first convolution's weights.
    """
    config = getattr(model, "pretrained_cfg", None) or {}
    result = []
    for key, default in (("mean", IMAGENET_DEFAULT_MEAN), ("std", IMAGENET_DEFAULT_STD)):
        values = [float(value) for value in config.get(key) or default]
        if in_chans == 1:
            values = [sum(values) / len(values)]
        result.append(list(islice(cycle(values), in_chans)))
    return result[0], result[1]


def create_net(name: str, pretrained: bool | str, arguments: dict[str, Any]) -> nn.Module:
    """timm.create_model with messages for people."""
    try:
        if isinstance(pretrained, str):
            return create_from_file(name, pretrained, arguments)
        model: nn.Module = timm.create_model(name, pretrained=pretrained, **arguments)
        return model
    except TypeError as error:
        if not (found := re.search(r"unexpected keyword argument '(\w+)'", str(error))):
            raise
        key = found[1] if found[1] in ("drop_rate", "drop_path_rate") else f"backbone_args.{found[1]}"
        raise UserError(f"model.{key}: the net '{name}' has no such argument; leave it out.") from error
    except Exception as error:
        if isinstance(pretrained, str) and isinstance(error, ValueError | FileNotFoundError):
            raise
        if not pretrained:
            raise UserError(f"model.backbone: '{name}' cannot be built with {arguments}: {error}") from error
        raise UserError(
            f"model.pretrained: the weights of '{name}' could not be loaded: {error}. "
            "Give a local file (pretrained: FILE), or pretrained: false."
        ) from error


def net_arguments(
    name: str,
    in_chans: int,
    image_size: tuple[int, int] | None,
    drop_rate: float,
    drop_path_rate: float,
    backbone_args: dict[str, Any] | None,
) -> dict[str, Any]:
    """Arguments of timm's constructor: only what is set, as most nets lack some.

    Raises:
        UserError: an unknown name; weights at an address.
    """
    check_backbone(name)
    for key in ("pretrained_cfg", "pretrained_cfg_overlay"):
        url = (given.get("url") or "") if isinstance(given := (backbone_args or {}).get(key), dict) else ""
        if "://" in str(url):
            raise UserError(
                f"model.backbone_args.{key}.url is {url}: weights of an address are not fetched, since nothing says"
                " that they are the ones you mean. Download the file, compare its digest with the one published, and"
                " set model.pretrained: FILE."
            )
    arguments: dict[str, Any] = {"in_chans": in_chans}
    config = net_config(name)
    if image_size and config and config.fixed_input_size:
        arguments["img_size"] = tuple(image_size)
    arguments |= {key: rate for key, rate in (("drop_rate", drop_rate), ("drop_path_rate", drop_path_rate)) if rate}
    return arguments | (backbone_args or {})


def enable_checkpointing(model: nn.Module, name: str) -> None:
    """Recompute activations in the backward pass.

    Raises:
        UserError: the net cannot do it.
    """
    try:
        model.set_grad_checkpointing(True)  # type: ignore[operator]
    except (AttributeError, AssertionError) as error:
        raise UserError(f"model.grad_checkpointing: the net '{name}' cannot do it; set it to false.") from error


def try_out(model: nn.Module, name: str, in_chans: int, image_size: tuple[int, int] | None) -> None:
    """Run one black image, so that a net that cannot take this size is refused here and not in the first batch."""
    if image_size is None:
        return
    height, width = image_size
    for embedding in (module for module in model.modules() if isinstance(module, PatchEmbed)):
        across, along = embedding.patch_size
        if height % across or width % along:  # timm would silently crop the borders
            raise UserError(
                f"model.backbone: '{name}' splits images into patches of {across} x {along}, and {height} x {width} is "
                f"no multiple of that; take {-(-height // across) * across} x {-(-width // along) * along}."
            )
    was_training = model.training
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, in_chans, height, width))
    except (RuntimeError, AssertionError, ValueError) as error:
        made_for = " x ".join(str(side) for side in default_image_size(name))
        raise UserError(
            f"model.backbone: '{name}' (made for {made_for} pixels) cannot take images of {height} x {width}: {error}"
        ) from error
    finally:
        model.train(was_training)


def create_classifier(
    name: str,
    num_classes: int,
    *,
    in_chans: int = 3,
    pretrained: bool | str = False,
    image_size: tuple[int, int] | None = None,
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
    backbone_args: dict[str, Any] | None = None,
    grad_checkpointing: bool = False,
) -> nn.Module:
    """A net from normalized float images (B, in_chans, H, W) to logits (B, num_classes), or to features if that is 0.

    Args:
        name: timm's name, with or without a tag (`resnet18.a1_in1k`), or one of ours (`list_backbones`).
        num_classes: number of outputs. Weights for another number are loaded without their classifier.
        in_chans: number of input channels; pretrained first convolutions are summed or repeated by timm.
        pretrained: True for the net's weights from the hub, or a local file (.safetensors, .pth, .bin).
        image_size: height and width of the images. Given to nets of fixed size, and tried out with one image.
        drop_rate: dropout before the classifier.
        drop_path_rate: stochastic depth.
        backbone_args: more arguments of timm's constructor.
        grad_checkpointing: recompute activations in the backward pass, to save memory.

    Raises:
        UserError: an unknown name, an argument that the net lacks, an image size that it cannot take, weights that
            do not fit (the keys are named).
        UserError: `pretrained` names a file that does not exist.
    """
    arguments = net_arguments(name, in_chans, image_size, drop_rate, drop_path_rate, backbone_args)
    model = create_net(name, pretrained, {"num_classes": num_classes} | arguments)
    config: Any = getattr(model, "pretrained_cfg", None) or {}
    if pretrained and num_classes and config.get("num_classes") != num_classes:
        quiet_head(model)
    try_out(model, name, in_chans, image_size)
    if grad_checkpointing:
        enable_checkpointing(model, name)
    return model


def quiet_head(model: nn.Module) -> None:
    """Start a new classifier on pretrained features near zero, so that its first gradients do not destroy them.

    timm's rule for MobileNets and EfficientNets draws from a range of 1 / sqrt(num_classes): with two classes on 1,280
    features the first losses are about 5 in place of ln 2.
    https://github.com/huggingface/pytorch-image-models/blob/main/timm/models/_efficientnet_builder.py
    """
    heads = head_parameters(model)
    for name, parameter in model.named_parameters():
        if name in heads and parameter.ndim > 1:
            nn.init.trunc_normal_(parameter, std=0.01)
        elif name in heads and name.endswith("bias"):
            nn.init.zeros_(parameter)


def synchronized_norms(module: nn.Module) -> nn.Module:
    """Batch norms take their statistics over all ranks; parameters and buffers stay the same ones.

    Torch's own conversion puts a bare norm in place of timm's norm with activation, whose activation is silently gone:
    https://github.com/huggingface/pytorch-image-models/issues/1254
    """
    converted: nn.Module = convert_sync_batchnorm(module)
    return converted


def head_parameters(model: nn.Module) -> set[str]:
    """Names of the classifier's parameters; empty for nets without one (pyramids, `num_classes` 0)."""
    heads = classifier_names(getattr(model, "pretrained_cfg", None) or {})
    return {name for name, _ in model.named_parameters() if name.startswith(tuple(f"{head}." for head in heads))}


def freeze(model: nn.Module, keep: Collection[str] | None = None) -> None:
    """Switch gradients off for all parameters but those named in `keep` (default: the classifier's)."""
    keep = head_parameters(model) if keep is None else keep
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in keep)


def frozen_modules(model: nn.Module, keep: Collection[str] | None = None) -> list[nn.Module]:
    """The largest sub-modules with parameters or buffers, but none of the parameters in `keep` (default: classifier).

    They are found by name and not by `requires_grad`: parts to be unfrozen later keep their gradients on where DDP
    wraps the model. Dropout before the classifier is in none of them.
    """
    keep = head_parameters(model) if keep is None else keep

    def collect(module: nn.Module, prefix: str) -> list[nn.Module]:
        names = [prefix + name for name, _ in module.named_parameters()]
        if not any(name in keep for name in names):
            return [module] if names or any(True for _ in module.buffers()) else []
        return [part for name, child in module.named_children() for part in collect(child, f"{prefix}{name}.")]

    return collect(model, "")


def keep_frozen_in_eval(model: nn.Module, keep: Collection[str] | None = None) -> None:
    """Put `frozen_modules` in eval mode; to be called at the end of a module's own `train(mode)`.

    Lightning sets everything to training each epoch. In eval mode norm statistics stay as they are, and there is no
    dropout or drop path in the backbone.
    """
    for module in frozen_modules(model, keep):
        module.eval()


def uses_grouped_convs(model: nn.Module) -> bool:
    """Whether there are convolutions of several groups that are not depthwise (RegNet, ResNeXt)."""
    convs = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    return any(1 < conv.groups < conv.in_channels for conv in convs)


def prefers_channels_last(model: nn.Module) -> bool:
    """Whether channels_last memory is expected to be faster: convolutional nets, not grouped ones, not ViTs.

    timm's published training benchmark (RTX 3090; results/benchmark-train-amp-nhwc-pt112-cu113-rtx3090.csv in its
    repository, and its nchw sibling) gains 1.2 to 1.5 times on ResNets and EfficientNets and loses a third on RegNet-Y.
    ConvNeXt, whose MLPs are linear layers, counts as convolutional: it has a depthwise convolution in each block.
    """
    spatial = sum(isinstance(module, nn.Conv2d) and max(module.kernel_size) > 1 for module in model.modules())
    linear = sum(isinstance(module, nn.Linear) for module in model.modules())
    return spatial > linear / 4 and not uses_grouped_convs(model)
