"""FCOS (Tian et al. 2019, 2020, https://arxiv.org/abs/2006.09214): torchvision's heads on a timm pyramid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.fcos import FCOSClassificationHead, FCOSRegressionHead

from tasks.detection.detectors.anchors import centers_of, decode_distances, sides_of
from tasks.detection.detectors.arguments import BackboneArguments
from tasks.detection.detectors.dense import BACKGROUND, DenseArguments, DenseDetector
from tasks.detection.detectors.fpn import FPN, group_norm
from tasks.detection.detectors.losses import iou_loss
from tasks.detection.detectors.protocol import Family
from tasks.detection.detectors.targets import Truth
from tasks.pyramid import Pyramid

RANGE = 8.0  # strides; a map learns boxes whose farthest side is at most so far from the cell's center
START = 2.0  # strides; what the distances begin with


@dataclass(frozen=True, kw_only=True)
class FCOSArguments(DenseArguments):
    """Arguments of FCOS; see also `DenseArguments`.

    Attributes:
        radius: a cell learns a box if their centers are nearer than this along both axes, in strides.
        box_loss: `giou` or `iou`.
    """

    radius: float = 1.5
    box_loss: Literal["giou", "iou"] = "giou"


def match_points(boxes: Tensor, learned: Tensor, anchors: Tensor, ranges: Tensor, radius: float) -> Tensor:
    """Which box each cell learns: one whose center is near, whose size is that of the map; of several the smallest.

    Args:
        boxes: float32 (M, 4), x1 y1 x2 y2 in pixels.
        learned: bool (M,), which of them count.
        anchors: float32 (A, 4), the cells themselves.
        ranges: float32 (A, 2): the farthest side's distance in pixels is above the first and at most the second.
        radius: how far from the box's center the cell's center may be, in strides.

    Returns:
        int64 (A,), the box's place, or `BACKGROUND`.
    """
    centers = centers_of(anchors).unsqueeze(1)
    side = sides_of(anchors).amin(1, keepdim=True)
    distances = torch.cat([centers - boxes[:, :2], boxes[:, 2:] - centers], 2)  # (A, M, 4)
    farthest = distances.amax(2)
    near = (centers - centers_of(boxes)).abs().amax(2) < radius * side
    inside = distances.amin(2) > 0
    of_this_map = (farthest > ranges[:, :1]) & (farthest <= ranges[:, 1:])
    match = near & inside & of_this_map & learned
    areas = sides_of(boxes).prod(1)
    place = areas.where(match, torch.inf).argmin(1)
    return torch.where(match.any(1), place, BACKGROUND)


class FCOS(DenseDetector):
    """One stage, one prediction a cell, with a score for how central the cell is."""

    def __init__(
        self,
        backbone: Pyramid,
        fpn: FPN,
        classification_head: FCOSClassificationHead,
        regression_head: FCOSRegressionHead,
        num_classes: int,
        arguments: FCOSArguments,
        class_weights: Sequence[float] | None,
    ) -> None:
        """Join the parts that `build_fcos` makes; the anchors are the cells themselves."""
        super().__init__(backbone, fpn, torch.ones(1, 2), num_classes, arguments, class_weights)
        self.classification_head = classification_head
        self.regression_head = regression_head
        self.radius, self.box_loss = arguments.radius, arguments.box_loss

    def heads(self, maps: list[Tensor]) -> dict[str, Tensor]:
        """As torchvision's, with `bbox_ctrness` (B, A, 1)."""
        distances, centerness = self.regression_head(maps)
        logits = self.classification_head(maps)
        return {"cls_logits": logits, "bbox_regression": distances, "bbox_ctrness": centerness}

    def match(self, truth: Truth, levels: list[Tensor]) -> Tensor:
        """By centers and sizes."""
        anchors, ranges = torch.cat(levels), self._ranges(levels)
        pairs = zip(truth.boxes, truth.learned, strict=True)
        return torch.stack([match_points(boxes, learned, anchors, ranges, self.radius) for boxes, learned in pairs])

    def _ranges(self, levels: list[Tensor]) -> Tensor:
        """For each cell the distances that its map learns, float32 (A, 2); the outermost maps take what is left."""
        edges = [0.0, *(RANGE * stride for stride in self.fpn.strides[:-1]), torch.inf]
        ranges = []
        for cells, low, high in zip(levels, edges[:-1], edges[1:], strict=True):
            ranges.append(torch.stack([cells.new_full((len(cells),), low), cells.new_full((len(cells),), high)], 1))
        return torch.cat(ranges)

    def anchor_losses(self, dense: Mapping[str, Any], boxes: Tensor, anchors: Tensor) -> dict[str, Tensor]:
        """`box_loss` and `centerness_loss`."""
        predicted = self.decode(dense["bbox_regression"].float(), anchors)
        centers = centers_of(anchors)
        sides = torch.stack([centers - boxes[..., :2], boxes[..., 2:] - centers])  # (2, B, A, 2)
        centerness = (sides.amin(0) / sides.amax(0)).prod(2).sqrt()
        logits = dense["bbox_ctrness"].float().squeeze(2)
        return {
            "box_loss": iou_loss(predicted, boxes, self.box_loss),
            "centerness_loss": F.binary_cross_entropy_with_logits(logits, centerness, reduction="none"),
        }

    def scores(self, dense: Mapping[str, Any]) -> Tensor:
        """The geometric mean of class probability and centerness."""
        product: Tensor = dense["cls_logits"].float().sigmoid() * dense["bbox_ctrness"].float().sigmoid()
        return product.sqrt()

    def decode(self, offsets: Tensor, anchors: Tensor) -> Tensor:
        """Distances in sides of the cells."""
        return decode_distances(offsets, centers_of(anchors), sides_of(anchors)[..., 0])


def build_fcos(
    backbone: BackboneArguments,
    num_classes: int,
    arguments: FCOSArguments = FCOSArguments(),
    class_weights: Sequence[float] | None = None,
) -> FCOS:
    """FCOS on any net: maps of stride 8, 16 and 32, and two coarser ones; no anchors.

    Raises:
        UserError: as `tasks.pyramid.create_pyramid`; an argument that makes no sense, by its key.
    """
    pyramid = backbone.detection_pyramid(8, arguments.strides)
    width, depth = arguments.head_channels, arguments.head_depth
    regression_head = FCOSRegressionHead(width, 1, depth, norm_layer=group_norm)
    # torchvision's distances begin around 0, where the head's ReLU makes half of them 0, and those learn nothing.
    nn.init.constant_(regression_head.bbox_reg.bias, START)
    fpn = FPN(pyramid.channels, pyramid.strides, width, "p6p7")
    classification_head = FCOSClassificationHead(width, 1, num_classes, depth, norm_layer=group_norm)
    return FCOS(pyramid, fpn, classification_head, regression_head, num_classes, arguments, class_weights)


FAMILY = Family(FCOSArguments, build_fcos)
