"""The simple feature pyramid of ViTDet (Li et al. 2022, https://arxiv.org/abs/2203.16527), for nets of one stride."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from timm.layers import LayerNorm2d
from torch import nn


def scalable_strides(stride: int) -> list[int]:
    """Strides that the pyramid can make from one map: `stride` / 4 to `stride` * 2, whole numbers only."""
    return [stride // part for part in (4, 2, 1) if stride % part == 0] + [stride * 2]


def _level(channels: int, width: int, scale: float) -> nn.Sequential:
    layers: list[nn.Module] = []
    doublings = round(math.log2(scale))
    for index in range(doublings):
        layers.append(nn.ConvTranspose2d(channels, channels // 2, 2, stride=2))
        channels //= 2
        if index + 1 < doublings:
            layers += [LayerNorm2d(channels), nn.GELU()]
    if doublings < 0:
        layers.append(nn.MaxPool2d(2**-doublings))
    layers += [nn.Conv2d(channels, width, 1, bias=False), LayerNorm2d(width)]
    layers += [nn.Conv2d(width, width, 3, padding=1, bias=False), LayerNorm2d(width)]
    return nn.Sequential(*layers)


class SimplePyramid(nn.Module):
    """Maps of several strides from the last map alone: transposed convolutions upwards, max-pooling downwards."""

    def __init__(self, channels: int, stride: int, strides: Sequence[int], width: int = 256) -> None:
        """Build one branch for each stride.

        Args:
            channels: channels of the given map.
            stride: its stride, in pixels.
            strides: strides wanted, each `stride` times a power of two.
            width: channels of each map that comes out.
        """
        super().__init__()
        self.width = width
        self.levels = nn.ModuleList([_level(channels, width, stride / wanted) for wanted in strides])

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """(B, channels, H, W) to one (B, width, H_i, W_i) for each stride."""
        return [level(x) for level in self.levels]
