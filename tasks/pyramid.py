"""Feature pyramids: the maps of any net, from the finest to the coarsest stride, for segmentation and detection."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from datamodules.common.errors import UserError
from tasks.backbones import create_net, enable_checkpointing, net_arguments, try_out
from tasks.networks.simple_pyramid import SimplePyramid, scalable_strides


class Pyramid(nn.Module):
    """Feature maps of one net: normalized float images (B, C, H, W) to a list of (B, channels[i], H_i, W_i).

    H_i is about H / strides[i] (padded nets round up). Strides increase strictly. `pretrained_cfg` is the net's.
    """

    def __init__(self, net: nn.Module, channels: list[int], strides: list[int], neck: nn.Module | None = None) -> None:
        """Wrap a timm feature net; `neck` makes several maps out of its last one."""
        super().__init__()
        self.net = net
        self.neck = neck
        self.channels = channels
        self.strides = strides
        self.pretrained_cfg = getattr(net, "pretrained_cfg", None)
        # Swin and others without `forward_intermediates` give channels last.
        self.permute = str(getattr(net, "output_fmt", "NCHW")).endswith("NHWC")

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        """Maps from the finest to the coarsest stride."""
        maps: list[torch.Tensor] = list(self.net(image))
        if self.permute:
            maps = [features.permute(0, 3, 1, 2) for features in maps]
        return maps if self.neck is None else self.neck(maps[-1])


def gives_intermediates(net: nn.Module) -> bool:
    """Whether a timm feature net takes its maps from `forward_intermediates` (`feature_cls: getter`)."""
    return hasattr(getattr(net, "model", None), "forward_intermediates")


def create_features(name: str, pretrained: bool | str, arguments: dict[str, Any]) -> nn.Module:
    """A timm feature net; through `forward_intermediates` where the net has it, as its layers keep their names then."""
    arguments = arguments | {"features_only": True}
    try:
        net = create_net(name, pretrained, arguments | {"feature_cls": "getter"})
        if gives_intermediates(net):
            return net
    except ValueError:
        if isinstance(pretrained, str):
            raise
    return create_net(name, pretrained, arguments)


def create_pyramid(
    name: str,
    *,
    in_chans: int = 3,
    pretrained: bool | str = False,
    image_size: tuple[int, int] | None = None,
    strides: Sequence[int] | None = None,
    drop_path_rate: float = 0.0,
    backbone_args: dict[str, Any] | None = None,
    grad_checkpointing: bool = False,
) -> Pyramid:
    """A feature pyramid of any net, whatever its own layout; see `Pyramid`.

    Of several maps of one stride the last is taken. Nets that work at one stride (plain ViTs) get the simple feature
    pyramid of ViTDet, with 256 channels at stride / 4, / 2, 1 and * 2.

    Args:
        name: timm's name, or one of ours.
        in_chans: number of input channels.
        pretrained: True for the hub, or a local file; a head in it is left out.
        image_size: height and width of the images, for nets of fixed size.
        strides: the strides wanted, for example [4, 8, 16, 32]; None for all that the net has. Layers after the last
            are left out.
        drop_path_rate: stochastic depth.
        backbone_args: more arguments of timm's constructor.
        grad_checkpointing: recompute activations in the backward pass.

    Raises:
        UserError: as `create_classifier`; a net without feature maps; a stride that it does not have.
    """
    arguments = net_arguments(name, in_chans, image_size, 0.0, drop_path_rate, backbone_args)
    try:
        net = create_features(name, False, arguments)
    except (ValueError, AttributeError) as error:
        raise UserError(f"model.backbone: '{name}' gives no feature maps: {error}") from error
    layout = _layout(net)
    wanted = sorted(strides) if strides else layout.available
    if absent := [stride for stride in wanted if stride not in layout.available]:
        raise UserError(f"model.backbone: '{name}' has no maps of stride {absent}; it has {layout.available}.")
    used = layout.places_of(wanted)
    if pretrained or list(net.feature_info.out_indices) != used:  # type: ignore[union-attr, arg-type]
        net = create_features(name, pretrained, arguments | {"out_indices": tuple(used)})
    info: Any = net.feature_info
    channels = [int(count) for count in info.channels()]
    if grad_checkpointing:
        enable_checkpointing(getattr(net, "model", net), name)
    if layout.single is None:
        pyramid = Pyramid(net, channels, wanted)
    else:
        neck = SimplePyramid(channels[0], layout.single, wanted)
        pyramid = Pyramid(net, [neck.width] * len(wanted), wanted, neck)
    try_out(pyramid, name, in_chans, image_size)
    return pyramid


@dataclass(frozen=True)
class _Layout:
    """Where a net has its maps.

    Attributes:
        places: Of each stride the place in timm's `out_indices`.
        single: The stride of a net that works at one stride, whose pyramid is made of its last map; else None.
        available: Strides that a pyramid can have.
    """

    places: dict[int, int]
    single: int | None
    available: list[int]

    def places_of(self, strides: Sequence[int]) -> list[int]:
        """The places of the maps that a pyramid of these strides needs."""
        return [self.places[stride] for stride in strides] if self.single is None else [self.places[self.single]]


def _layout(net: nn.Module) -> _Layout:
    info: Any = net.feature_info
    strides = [int(stride) for stride in info.reduction()]
    places = dict(zip(strides, info.out_indices, strict=True))  # the last of a stride wins
    if len(strides) > 1 and len(places) == 1:
        return _Layout(places, strides[0], scalable_strides(strides[0]))
    return _Layout(places, None, sorted(places))
