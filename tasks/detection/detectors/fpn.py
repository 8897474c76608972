"""torchvision's feature pyramid network (Lin et al. 2016, https://arxiv.org/abs/1612.03144) on any timm net."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from datamodules.common.errors import UserError
from tasks.pyramid import Pyramid, create_pyramid

COARSEST = 32  # stride of the deepest map that is taken from a net


def available_strides(
    backbone: str, *, in_chans: int = 3, image_size: tuple[int, int] | None = None, backbone_args: Any = None
) -> list[int]:
    """Strides of the maps that a net has, finest first; without its weights and, where possible, without memory.

    Raises:
        UserError: as `tasks.backbones.create_pyramid`.
    """
    build = partial(create_pyramid, backbone, in_chans=in_chans, backbone_args=backbone_args)
    try:
        with torch.device("meta"):
            return build().strides
    except (ValueError, RuntimeError):  # a net that cannot be built there, or a mistake, which the next line explains
        return build(image_size=image_size).strides


def detection_pyramid(
    backbone: str,
    *,
    finest: int,
    strides: Sequence[int] | None,
    in_chans: int,
    pretrained: bool | str,
    image_size: tuple[int, int] | None,
    drop_path_rate: float,
    backbone_args: dict[str, Any] | None,
    grad_checkpointing: bool,
) -> Pyramid:
    """A net's maps from about stride `finest` to stride 32, or those of `strides`.

    A net that has none of these (CIFAR's) gives its coarsest map. A net of other strides (7, 14, 28) gives those that
    are nearest.

    Raises:
        UserError: as `tasks.backbones.create_pyramid`; strides that do not double.
    """
    if strides is None:
        has = available_strides(backbone, in_chans=in_chans, image_size=image_size, backbone_args=backbone_args)
        strides = [stride for stride in has if finest / 2 < stride <= COARSEST] or [max(has)]
    strides = sorted(strides)
    if any(coarse != 2 * fine for fine, coarse in pairwise(strides)):
        raise UserError(f"model.detector_args.strides is {list(strides)}; each must be twice the one before.")
    return create_pyramid(
        backbone,
        in_chans=in_chans,
        pretrained=pretrained,
        image_size=image_size,
        strides=strides,
        drop_path_rate=drop_path_rate,
        backbone_args=backbone_args,
        grad_checkpointing=grad_checkpointing,
    )


def group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm in groups of 8 channels, as torchvision's 32 groups of 256, or of more where 8 do not go into them."""
    return nn.GroupNorm(math.gcd(channels, max(1, channels // 8)), channels)


class FPN(nn.Module):
    """Maps (B, channels[i], H_i, W_i), finest first, to maps (B, width, H_i, W_i) and coarser ones.

    Each map is laid on the enlarged next coarser one, whatever their sizes are: no multiple of 32 is needed.

    Attributes:
        width: channels of all maps.
        strides: of all maps, the additional ones included; each is twice the one before.
    """

    def __init__(
        self, channels: Sequence[int], strides: Sequence[int], width: int, extra: Literal["pool", "p6p7"]
    ) -> None:
        """Build it.

        Args:
            channels: of the maps that are given.
            strides: of the maps that are given.
            width: channels of the maps that come out.
            extra: ``pool``, one more map by leaving out every second cell (for proposals); ``p6p7``, two more by
                convolutions on the last of these maps.
        """
        super().__init__()
        self.width = width
        self.strides = [*strides, *(strides[-1] * 2**i for i in range(1, 2 if extra == "pool" else 3))]
        block: Callable[[], nn.Module] = LastLevelMaxPool if extra == "pool" else partial(LastLevelP6P7, width, width)
        self.net = FeaturePyramidNetwork(list(channels), width, extra_blocks=block())

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """All maps, finest first."""
        return list(self.net(OrderedDict((str(i), x) for i, x in enumerate(maps))).values())
