"""Regions that the second stage pools, learns and averages over."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import MultiScaleRoIAlign, roi_align
from torchvision.ops.poolers import LevelMapper

CANONICAL_SIDE = 14  # strides; a region of 224 pixels is pooled at stride 16 (equation 1 of the FPN paper)


class Samples(NamedTuple):
    """The regions of a batch that the second stage learns; S of all images together.

    Attributes:
        regions: B tensors float32 (S_i, 4), x1 y1 x2 y2 in canvas pixels.
        rows: B tensors int64 (S_i,), the place of the box that each region learns, meaningless for background.
        labels: B tensors int64 (S_i,), the class from 1, 0 for background.
        boxes: float32 (S, 4), what is to be predicted: the true box, for background the region itself.
    """

    regions: list[Tensor]
    rows: list[Tensor]
    labels: list[Tensor]
    boxes: Tensor


def roi_pool(strides: Sequence[int], size: int) -> MultiScaleRoIAlign:
    """RoI align of `size` x `size` from maps of these strides, which torchvision would guess from the maps' sizes."""
    pool = MultiScaleRoIAlign([str(i) for i in range(len(strides))], size, sampling_ratio=2)
    pool.scales = [1 / stride for stride in strides]
    pool.map_levels = LevelMapper(0, len(strides) - 1, CANONICAL_SIDE * strides[0], 0)
    return pool


def means_by_image(loss: Tensor, of_images: Sequence[Tensor]) -> Tensor:
    """Means (B,) of a loss (S,) over each image's regions, as many as its tensor is long; 0 where there is none."""
    parts = loss.split([len(of_image) for of_image in of_images])
    return torch.stack([part.sum() / max(1, len(part)) for part in parts])


def named(maps: Sequence[Tensor]) -> OrderedDict[str, Tensor]:
    """Maps by their place, as torchvision's pooling wants them."""
    return OrderedDict((str(i), x) for i, x in enumerate(maps))


def pool_places(pool: MultiScaleRoIAlign, maps: Sequence[Tensor], regions: Tensor) -> Tensor:
    """What `pool` makes of as many regions for each image, traceable with any number of images.

    Args:
        pool: see `roi_pool`.
        maps: float (B, C, H_i, W_i), finest first; those behind the pool's are not used.
        regions: float32 (B, P, 4).

    Returns:
        float32 (B * P, C, size, size).
    """
    batch, count = regions.shape[:2]
    image = torch.arange(batch, device=regions.device, dtype=regions.dtype).view(-1, 1, 1).expand(-1, count, 1)
    rois = torch.cat([image, regions], 2).flatten(0, 1)
    levels = pool.map_levels([rois[:, 1:]])
    pooled: Tensor | None = None
    for level, (x, scale) in enumerate(zip(maps, pool.scales, strict=False)):
        part = roi_align(x, rois, pool.output_size, scale, pool.sampling_ratio)
        here = (levels == level).view(-1, 1, 1, 1)
        pooled = torch.where(here, part, 0.0 if pooled is None else pooled)
    assert pooled is not None
    return pooled
