"""torchvision's feature pyramid network (Lin et al. 2016, https://arxiv.org/abs/1612.03144) on any timm net."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7


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
