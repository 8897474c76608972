"""FCOS (Tian et al. 2019, 2020, https://arxiv.org/abs/2006.09214): torchvision's head and coder on a timm pyramid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxLinearCoder
from torchvision.models.detection.fcos import FCOSClassificationHead, FCOSRegressionHead

from datamodules.common.errors import UserError
from tasks.detection.detectors.fpn import FPN, detection_pyramid, group_norm
from tasks.detection.detectors.parts import (
    Limits,
    batch_means,
    by_foreground,
    centres_of,
    class_weight_tensor,
    dense_detections,
    focal_loss,
    grid_anchors,
    in_crowd,
    iou_loss,
    read_targets,
)
from tasks.pyramid import Pyramid

BoxLoss = Literal["giou", "iou"]
RANGE = 8.0  # strides; a map learns boxes whose farthest side is at most so far from the cell's centre
START = 2.0  # strides; what the distances begin with


def match_points(boxes: Tensor, learnt: Tensor, anchors: Tensor, ranges: Tensor, radius: float) -> Tensor:
    """Which box each cell learns: one whose centre is near, whose size is that of the map; of several the smallest.

    Args:
        boxes: float32 (M, 4), x1 y1 x2 y2 in pixels.
        learnt: bool (M,), which of them count.
        anchors: float32 (A, 4), the cells themselves.
        ranges: float32 (A, 2): the farthest side's distance in pixels is above the first and at most the second.
        radius: how far from the box's centre the cell's centre may be, in strides.

    Returns:
        int64 (A,), the box's place, or -1 for background.
    """
    centres = centres_of(anchors).unsqueeze(1)
    side = (anchors[:, 2:] - anchors[:, :2]).amin(1, keepdim=True)
    distances = torch.cat([centres - boxes[:, :2], boxes[:, 2:] - centres], 2)  # (A, M, 4)
    farthest = distances.amax(2)
    match = (centres - centres_of(boxes)).abs().amax(2) < radius * side
    match &= (distances.amin(2) > 0) & (farthest > ranges[:, :1]) & (farthest <= ranges[:, 1:]) & learnt
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    place = areas.where(match, torch.inf).argmin(1)
    return torch.where(match.any(1), place, -1)


class FCOS(nn.Module):
    """Normalised float images (B, C, H, W) of any size that the backbone takes to boxes and classes.

    Attributes:
        backbone: the `Pyramid`; all other parameters are the head's.
        pretrained_cfg: timm's description of the backbone, for `tasks.backbones.normalization`.
    """

    cell: Tensor
    class_weights: Tensor | None

    def __init__(
        self,
        backbone: Pyramid,
        fpn: FPN,
        classification_head: FCOSClassificationHead,
        regression_head: FCOSRegressionHead,
        *,
        radius: float,
        focal_alpha: float,
        focal_gamma: float,
        box_loss: BoxLoss,
        class_weights: Tensor | None,
    ) -> None:
        """Join the parts that `build_fcos` makes."""
        super().__init__()
        self.backbone = backbone
        self.pretrained_cfg = backbone.pretrained_cfg
        self.fpn = fpn
        self.classification_head = classification_head
        self.regression_head = regression_head
        self.coder = BoxLinearCoder(normalize_by_size=True)
        self.radius, self.alpha, self.gamma, self.box_loss = radius, focal_alpha, focal_gamma, box_loss
        self.register_buffer("class_weights", class_weights, persistent=False)
        self.register_buffer("cell", torch.ones(1, 2), persistent=False)  # anchors are the cells

    def forward(self, image: Tensor) -> dict[str, Any]:
        """The dense part, with static shapes, so that `compile` takes all of it; A cells of all maps.

        Returns:
            `cls_logits` (B, A, K), `bbox_regression` (B, A, 4) and `bbox_ctrness` (B, A, 1) as torchvision's; `sizes`,
            the maps' heights and widths.
        """
        maps = self.fpn(self.backbone(image))
        distances, centerness = self.regression_head(maps)
        return {
            "cls_logits": self.classification_head(maps),
            "bbox_regression": distances,
            "bbox_ctrness": centerness,
            "sizes": [(x.shape[2], x.shape[3]) for x in maps],
        }

    def losses(self, image: Tensor, targets: Mapping[str, Tensor], weight: Tensor | None = None) -> dict[str, Tensor]:
        """`loss`, `class_loss`, `box_loss`, `centerness_loss`: means over the images of each image's own.

        Args:
            image: float (B, C, H, W), normalised.
            targets: `boxes` float32 (B, M, 4), canvas pixels; `labels` int64 (B, M), -1 where there is no box; M may be
                0. `iscrowd` uint8 (B, M), optional: crowds are not learnt, and no background is learnt by cells whose
                centre is inside one.
            weight: float (B,), scales each image's loss.
        """
        dense, truth = self(image), read_targets(targets)
        cells = grid_anchors(dense["sizes"], self.fpn.strides, self.cell)
        anchors, ranges = torch.cat(cells), self._ranges(cells)
        centres = centres_of(anchors)
        place = torch.stack(
            [
                match_points(boxes, learnt, anchors, ranges, self.radius)
                for boxes, learnt in zip(truth.boxes, truth.learnt, strict=True)
            ]
        )
        foreground = place >= 0
        ignored = ~foreground & torch.stack([in_crowd(centres, crowds) for crowds in truth.crowds])
        row = place.clamp(min=0)
        class_loss = focal_loss(
            dense["cls_logits"].float(),
            truth.labels.gather(1, row),
            foreground,
            ignored,
            alpha=self.alpha,
            gamma=self.gamma,
            class_weights=self.class_weights,
        )
        # Background gets its cell for a box, so that nothing is infinite where the loss is then set to 0.
        boxes = truth.boxes.gather(1, row.unsqueeze(2).expand(-1, -1, 4))
        boxes = torch.where(foreground.unsqueeze(2), boxes, anchors)
        box_loss = iou_loss(self.coder.decode(dense["bbox_regression"].float(), anchors), boxes, self.box_loss)
        sides = torch.stack([centres - boxes[..., :2], boxes[..., 2:] - centres])  # (2, B, A, 2)
        goal = (sides.amin(0) / sides.amax(0)).prod(2).sqrt()
        logits = dense["bbox_ctrness"].float().squeeze(2)
        centerness_loss = F.binary_cross_entropy_with_logits(logits, goal, reduction="none")
        parts = {"box_loss": box_loss, "centerness_loss": centerness_loss}
        parts = {name: by_foreground(part.masked_fill(~foreground, 0), foreground) for name, part in parts.items()}
        return batch_means({"class_loss": class_loss, **parts}, weight)

    def _ranges(self, cells: list[Tensor]) -> Tensor:
        """For each cell the distances that its map learns, float32 (A, 2); the outermost maps take what is left."""
        edges = [0.0, *(RANGE * stride for stride in self.fpn.strides[:-1]), torch.inf]
        pairs = zip(cells, edges, edges[1:], strict=False)
        return torch.cat(
            [
                torch.stack([part.new_full((len(part),), low), part.new_full((len(part),), high)], 1)
                for part, low, high in pairs
            ]
        )

    def detect(
        self, image: Tensor, *, score_threshold: float, nms_iou: float, max_detections: int
    ) -> list[dict[str, Tensor]]:
        """Boxes of each image, the best first; a score is the geometric mean of class probability and centerness.

        Args:
            image: float (B, C, H, W), normalised.
            score_threshold: scores must be above it.
            nms_iou: of two boxes of a class that overlap more, the lower is dropped.
            max_detections: boxes of an image at most.

        Returns:
            B dicts: `boxes` float32 (n, 4), x1 y1 x2 y2 in canvas pixels, clipped to the canvas; `scores` float32 (n,),
            descending; `labels` int64 (n,).
        """
        dense = self(image)
        return dense_detections(
            (dense["cls_logits"].float().sigmoid() * dense["bbox_ctrness"].float().sigmoid()).sqrt(),
            dense["bbox_regression"].float(),
            grid_anchors(dense["sizes"], self.fpn.strides, self.cell),
            self.coder.decode,
            (image.shape[2], image.shape[3]),
            Limits(score_threshold, nms_iou, max_detections),
        )


def build_fcos(
    backbone: str,
    num_classes: int,
    *,
    in_chans: int = 3,
    pretrained: bool | str = False,
    image_size: tuple[int, int] | None = None,
    drop_path_rate: float = 0.0,
    backbone_args: dict[str, Any] | None = None,
    grad_checkpointing: bool = False,
    strides: Sequence[int] | None = None,
    head_channels: int = 256,
    head_depth: int = 4,
    radius: float = 1.5,
    focal_alpha: float = 0.25,
    focal_gamma: float = 2.0,
    box_loss: BoxLoss = "giou",
    class_weights: Sequence[float] | None = None,
) -> FCOS:
    """FCOS on any net: maps of stride 8, 16 and 32, and two coarser ones; no anchors.

    Args:
        backbone: timm's name, or one of ours.
        num_classes: K, without background.
        in_chans: number of input channels.
        pretrained: True for the hub, or a local file of the backbone's weights.
        image_size: height and width of the images, for nets of fixed size.
        drop_path_rate: stochastic depth.
        backbone_args: more arguments of timm's constructor.
        grad_checkpointing: recompute the backbone's activations in the backward pass.
        strides: of the backbone's maps; None for 8, 16 and 32, or the nearest that the net has. Two coarser follow.
        head_channels: width of FPN and heads.
        head_depth: convolutions of each head, each with GroupNorm.
        radius: a cell learns a box if their centres are nearer than this along both axes, in strides.
        focal_alpha: weight of the positive side in the focal loss.
        focal_gamma: its exponent.
        box_loss: `giou` or `iou`.
        class_weights: K factors of the class loss where the class is to be found.

    Raises:
        UserError: as `tasks.backbones.create_pyramid`; an argument that makes no sense, by its key.
    """
    if box_loss not in get_args(BoxLoss):
        raise UserError(f"model.detector_args.box_loss is '{box_loss}'; fcos takes giou or iou.")
    weights = class_weight_tensor(class_weights, num_classes)
    pyramid = detection_pyramid(
        backbone,
        finest=8,
        strides=strides,
        in_chans=in_chans,
        pretrained=pretrained,
        image_size=image_size,
        drop_path_rate=drop_path_rate,
        backbone_args=backbone_args,
        grad_checkpointing=grad_checkpointing,
    )
    regression_head = FCOSRegressionHead(head_channels, 1, head_depth, norm_layer=group_norm)
    # torchvision's distances begin around 0, where half of them are cut off by the head's ReLU and learn nothing.
    nn.init.constant_(regression_head.bbox_reg.bias, START)
    return FCOS(
        pyramid,
        FPN(pyramid.channels, pyramid.strides, head_channels, "p6p7"),
        FCOSClassificationHead(head_channels, 1, num_classes, head_depth, norm_layer=group_norm),
        regression_head,
        radius=radius,
        focal_alpha=focal_alpha,
        focal_gamma=focal_gamma,
        box_loss=box_loss,
        class_weights=weights,
    )
