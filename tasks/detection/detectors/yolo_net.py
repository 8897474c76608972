"""The parts of a YOLO: convolutions, cross-stage partial blocks, the neck, and one map's head."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Norm = Literal["group", "batch"]

START = 2.0  # cells; what the distances begin with, but for the limit, `reg_max`


def _conv(inputs: int, outputs: int, size: int, norm: Norm, stride: int = 1) -> nn.Sequential:
    """Convolution, norm, SiLU."""
    convolution = nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)
    layer = nn.BatchNorm2d(outputs) if norm == "batch" else nn.GroupNorm(math.gcd(outputs, 8), outputs)
    return nn.Sequential(convolution, layer, nn.SiLU(inplace=True))


class CSPBlock(nn.Module):
    """Half of the channels pass `depth` residual blocks, the other half does not; then both are mixed."""

    def __init__(self, inputs: int, outputs: int, depth: int, norm: Norm) -> None:
        """Build it for maps of `inputs` channels."""
        super().__init__()
        half = outputs // 2
        self.through = _conv(inputs, half, 1, norm)
        self.past = _conv(inputs, half, 1, norm)
        self.blocks = nn.ModuleList(
            nn.Sequential(_conv(half, half, 1, norm), _conv(half, half, 3, norm)) for _ in range(depth)
        )
        self.mix = _conv(2 * half, outputs, 1, norm)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, H, W)."""
        through = self.through(x)
        for block in self.blocks:
            through = through + block(through)
        mixed: Tensor = self.mix(torch.cat([through, self.past(x)], 1))
        return mixed


class Neck(nn.Module):
    """PAN: maps (B, channels[i], H_i, W_i) to maps of `width` channels and the same sizes."""

    def __init__(self, channels: Sequence[int], width: int, depth: int, norm: Norm) -> None:
        """Build it with `depth` residual blocks in each of its blocks."""
        super().__init__()
        steps = len(channels) - 1
        self.lateral = nn.ModuleList(_conv(count, width, 1, norm) for count in channels)
        self.down = nn.ModuleList(CSPBlock(2 * width, width, depth, norm) for _ in range(steps))
        self.shrink = nn.ModuleList(_conv(width, width, 3, norm, stride=2) for _ in range(steps))
        self.up = nn.ModuleList(CSPBlock(2 * width, width, depth, norm) for _ in range(steps))

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Down from the coarsest map, then up again."""
        maps = [lateral(x) for lateral, x in zip(self.lateral, maps, strict=True)]
        for i in reversed(range(len(maps) - 1)):
            maps[i] = self.down[i](torch.cat([maps[i], _resize(maps[i + 1], maps[i])], 1))
        for i in range(len(maps) - 1):
            maps[i + 1] = self.up[i](torch.cat([maps[i + 1], _resize(self.shrink[i](maps[i]), maps[i + 1])], 1))
        return maps


def _resize(x: Tensor, like: Tensor) -> Tensor:
    """To the height and width of another map; sizes of odd canvases are no multiples of each other."""
    return x if x.shape[-2:] == like.shape[-2:] else F.interpolate(x, size=like.shape[-2:], mode="nearest")


class Head(nn.Module):
    """One map's decoupled head: (B, width, H, W) to class logits (B, K, H, W) and (B, 4 * bins, H, W) for the box."""

    def __init__(self, width: int, num_classes: int, bins: int, norm: Norm, prior: float) -> None:
        """Build it; classes begin at a probability of `prior`, boxes with sides that are `START` cells away."""
        super().__init__()
        self.stem = _conv(width, width, 1, norm)
        self.classes = nn.Sequential(_conv(width, width, 3, norm), _conv(width, width, 3, norm))
        self.box = nn.Sequential(_conv(width, width, 3, norm), _conv(width, width, 3, norm))
        self.class_logits = nn.Conv2d(width, num_classes, 1)
        self.box_logits = nn.Conv2d(width, 4 * bins, 1)
        for layer in (self.class_logits, self.box_logits):
            nn.init.normal_(layer.weight, std=0.01)
        self.class_logits.bias = nn.Parameter(torch.full((num_classes,), -math.log((1 - prior) / prior)))
        # A geometric distribution of that mean. Equal bins would begin with boxes of bins - 1 cells, which overlap
        # small objects by next to nothing.
        slope = math.log(1 + 1 / START)
        self.box_logits.bias = nn.Parameter((-slope * torch.arange(bins)).repeat(4))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Class logits and the logits of the distances' distributions."""
        x = self.stem(x)
        return self.class_logits(self.classes(x)), self.box_logits(self.box(x))
