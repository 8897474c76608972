"""RetinaNet (Lin et al. 2017, https://arxiv.org/abs/1708.02002): torchvision's heads on a timm pyramid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops import Conv2dNormActivation, box_iou

from tasks.detection.detectors.anchors import anchor_shapes, decode_offsets, encode_offsets
from tasks.detection.detectors.arguments import BackboneArguments
from tasks.detection.detectors.dense import BACKGROUND, IGNORED, DenseArguments, DenseDetector
from tasks.detection.detectors.fpn import FPN, group_norm
from tasks.detection.detectors.losses import iou_loss
from tasks.detection.detectors.protocol import Family
from tasks.detection.detectors.targets import Truth
from tasks.pyramid import Pyramid

FOREGROUND_IOU, BACKGROUND_IOU = 0.5, 0.4


@dataclass(frozen=True, kw_only=True)
class RetinaNetArguments(DenseArguments):
    """Arguments of RetinaNet; see also `DenseArguments`.

    Attributes:
        anchor_scales: sides of the square anchors in strides of their map. The default is the paper's: 32 pixels at
            stride 8, and in thirds of an octave.
        anchor_ratios: heights divided by widths.
        box_loss: `l1` of the offsets, or `giou` of the boxes.
    """

    anchor_scales: Sequence[float] = (4.0, 4 * 2 ** (1 / 3), 4 * 2 ** (2 / 3))
    anchor_ratios: Sequence[float] = (0.5, 1.0, 2.0)
    box_loss: Literal["l1", "giou"] = "l1"


def match_anchors(boxes: Tensor, learned: Tensor, anchors: Tensor) -> Tensor:
    """Which box each anchor learns, by IoU; the anchors that fit a box best learn it, however badly they fit.

    As torchvision's `Matcher`, but with static shapes; and a box that touches no anchor is not given to all of them.

    Args:
        boxes: float32 (M, 4), x1 y1 x2 y2 in pixels.
        learned: bool (M,), which of them count.
        anchors: float32 (A, 4).

    Returns:
        int64 (A,), the box's place, `BACKGROUND`, or `IGNORED` where the IoU is between both thresholds.
    """
    iou = box_iou(boxes, anchors).masked_fill(~learned.unsqueeze(1), -1)
    best, place = iou.max(0)
    unsure = torch.where(best < FOREGROUND_IOU, IGNORED, place)
    matched = torch.where(best < BACKGROUND_IOU, BACKGROUND, unsure)
    best_of_box = iou.amax(1, keepdim=True)
    forced = ((iou == best_of_box) & (best_of_box > 0)).any(0)
    return torch.where(forced, place, matched)


class RetinaNet(DenseDetector):
    """One stage, several anchors a cell."""

    def __init__(
        self,
        backbone: Pyramid,
        fpn: FPN,
        head: RetinaNetHead,
        shapes: Tensor,
        num_classes: int,
        arguments: RetinaNetArguments,
        class_weights: Sequence[float] | None,
    ) -> None:
        """Join the parts that `build_retinanet` makes."""
        super().__init__(backbone, fpn, shapes, num_classes, arguments, class_weights)
        self.head = head
        self.box_loss = arguments.box_loss

    def heads(self, maps: list[Tensor]) -> dict[str, Tensor]:
        """As torchvision's."""
        of_maps: dict[str, Tensor] = self.head(maps)
        return of_maps

    def match(self, truth: Truth, levels: list[Tensor]) -> Tensor:
        """By IoU."""
        anchors = torch.cat(levels)
        pairs = zip(truth.boxes, truth.learned, strict=True)
        return torch.stack([match_anchors(boxes, learned, anchors) for boxes, learned in pairs])

    def anchor_losses(self, dense: Mapping[str, Any], boxes: Tensor, anchors: Tensor) -> dict[str, Tensor]:
        """`box_loss`."""
        offsets = dense["bbox_regression"].float()
        if self.box_loss == "giou":
            return {"box_loss": iou_loss(decode_offsets(offsets, anchors), boxes, "giou")}
        return {"box_loss": F.l1_loss(offsets, encode_offsets(boxes, anchors), reduction="none").sum(2)}

    def scores(self, dense: Mapping[str, Any]) -> Tensor:
        """The classes' probabilities."""
        logits: Tensor = dense["cls_logits"].float()
        return logits.sigmoid()

    def decode(self, offsets: Tensor, anchors: Tensor) -> Tensor:
        """Offsets in the anchors' sides."""
        return decode_offsets(offsets, anchors)


def build_retinanet(
    backbone: BackboneArguments,
    num_classes: int,
    arguments: RetinaNetArguments = RetinaNetArguments(),
    class_weights: Sequence[float] | None = None,
) -> RetinaNet:
    """RetinaNet on any net: maps of stride 8, 16 and 32, and two coarser ones.

    Raises:
        UserError: as `tasks.pyramid.create_pyramid`; an argument that makes no sense, by its key.
    """
    shapes = anchor_shapes(arguments.anchor_scales, arguments.anchor_ratios)
    pyramid = backbone.detection_pyramid(8, arguments.strides)
    width = arguments.head_channels
    head = RetinaNetHead(width, len(shapes), num_classes, norm_layer=group_norm)
    for branch in (head.classification_head, head.regression_head):
        branch.conv = _tower(width, arguments.head_depth)
    fpn = FPN(pyramid.channels, pyramid.strides, width, "p6p7")
    return RetinaNet(pyramid, fpn, head, shapes, num_classes, arguments, class_weights)


def _tower(channels: int, depth: int) -> nn.Sequential:
    """`depth` convolutions with GroupNorm, initialized as torchvision's four."""
    tower = nn.Sequential(*(Conv2dNormActivation(channels, channels, norm_layer=group_norm) for _ in range(depth)))
    for layer in tower.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, std=0.01)
    return tower


FAMILY = Family(RetinaNetArguments, build_retinanet)
