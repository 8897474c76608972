"""RetinaNet (Lin et al. 2017, https://arxiv.org/abs/1708.02002): torchvision's heads and coder on a timm pyramid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder, encode_boxes
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops import Conv2dNormActivation, box_iou

from datamodules.common.errors import UserError
from tasks.detection.detectors.fpn import FPN, detection_pyramid, group_norm
from tasks.detection.detectors.parts import (
    Limits,
    anchor_shapes,
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

BoxLoss = Literal["l1", "giou"]
FOREGROUND_IOU, BACKGROUND_IOU = 0.5, 0.4
BETWEEN = -2  # an anchor that is neither


def match_anchors(boxes: Tensor, learnt: Tensor, anchors: Tensor) -> Tensor:
    """Which box each anchor learns, by IoU; the anchors that fit a box best learn it, however badly they fit.

    As torchvision's `Matcher`, but with static shapes; and a box that touches no anchor is not given to all of them.

    Args:
        boxes: float32 (M, 4), x1 y1 x2 y2 in pixels.
        learnt: bool (M,), which of them count.
        anchors: float32 (A, 4).

    Returns:
        int64 (A,), the box's place, -1 for background, -2 for neither.
    """
    iou = box_iou(boxes, anchors).masked_fill(~learnt.unsqueeze(1), -1)
    best, place = iou.max(0)
    matched = torch.where(best < BACKGROUND_IOU, -1, torch.where(best < FOREGROUND_IOU, BETWEEN, place))
    best_of_box = iou.amax(1, keepdim=True)
    forced = ((iou == best_of_box) & (best_of_box > 0)).any(0)
    return torch.where(forced, place, matched)


class RetinaNet(nn.Module):
    """Normalised float images (B, C, H, W) of any size that the backbone takes to boxes and classes.

    Attributes:
        backbone: the `Pyramid`; all other parameters are the head's.
        pretrained_cfg: timm's description of the backbone, for `tasks.backbones.normalization`.
    """

    shapes: Tensor
    class_weights: Tensor | None

    def __init__(
        self,
        backbone: Pyramid,
        fpn: FPN,
        head: RetinaNetHead,
        shapes: Tensor,
        *,
        focal_alpha: float,
        focal_gamma: float,
        box_loss: BoxLoss,
        class_weights: Tensor | None,
    ) -> None:
        """Join the parts that `build_retinanet` makes; `shapes` are those of `parts.anchor_shapes`."""
        super().__init__()
        self.backbone = backbone
        self.pretrained_cfg = backbone.pretrained_cfg
        self.fpn = fpn
        self.head = head
        self.coder = BoxCoder((1.0, 1.0, 1.0, 1.0))
        self.alpha, self.gamma, self.box_loss = focal_alpha, focal_gamma, box_loss
        self.register_buffer("class_weights", class_weights, persistent=False)
        self.register_buffer("shapes", shapes, persistent=False)

    def forward(self, image: Tensor) -> dict[str, Any]:
        """The dense part, with static shapes, so that `compile` takes all of it; A anchors of all maps.

        Returns:
            `cls_logits` (B, A, K) and `bbox_regression` (B, A, 4) as torchvision's; `sizes`, the maps' heights and
            widths.
        """
        maps = self.fpn(self.backbone(image))
        return {**self.head(maps), "sizes": [(x.shape[2], x.shape[3]) for x in maps]}

    def losses(self, image: Tensor, targets: Mapping[str, Tensor], weight: Tensor | None = None) -> dict[str, Tensor]:
        """`loss` and its parts `class_loss` and `box_loss`, each a mean over the images of each image's own.

        Args:
            image: float (B, C, H, W), normalised.
            targets: `boxes` float32 (B, M, 4), canvas pixels; `labels` int64 (B, M), -1 where there is no box; M may be
                0. `iscrowd` uint8 (B, M), optional: crowds are not learnt, and no background is learnt by anchors
                whose centre is inside one.
            weight: float (B,), scales each image's loss.
        """
        dense, truth = self(image), read_targets(targets)
        anchors = torch.cat(grid_anchors(dense["sizes"], self.fpn.strides, self.shapes))
        centres = centres_of(anchors)
        matched = []
        for boxes, learnt, crowds in zip(truth.boxes, truth.learnt, truth.crowds, strict=True):
            place = match_anchors(boxes, learnt, anchors)
            matched.append(torch.where((place == -1) & in_crowd(centres, crowds), BETWEEN, place))
        place = torch.stack(matched)
        foreground = place >= 0
        row = place.clamp(min=0)
        class_loss = focal_loss(
            dense["cls_logits"].float(),
            truth.labels.gather(1, row),
            foreground,
            place == BETWEEN,
            alpha=self.alpha,
            gamma=self.gamma,
            class_weights=self.class_weights,
        )
        # Background gets its anchor for a box, so that nothing is infinite where the loss is then set to 0.
        boxes = truth.boxes.gather(1, row.unsqueeze(2).expand(-1, -1, 4))
        boxes = torch.where(foreground.unsqueeze(2), boxes, anchors)
        offsets = dense["bbox_regression"].float()
        box_loss = by_foreground(self._box_losses(offsets, boxes, anchors).masked_fill(~foreground, 0), foreground)
        return batch_means({"class_loss": class_loss, "box_loss": box_loss}, weight)

    def _box_losses(self, offsets: Tensor, boxes: Tensor, anchors: Tensor) -> Tensor:
        """Of each anchor: offsets and true boxes (B, A, 4), anchors (A, 4), to (B, A)."""
        batch = len(offsets)
        anchors = anchors.repeat(batch, 1)
        if self.box_loss == "l1":
            # Not by the coder, which copies its weights to the device and waits for it.
            goal = encode_boxes(boxes.flatten(0, 1), anchors, torch.ones(4, device=anchors.device)).view_as(offsets)
            return F.l1_loss(offsets, goal, reduction="none").sum(2)
        return iou_loss(self.coder.decode_single(offsets.flatten(0, 1), anchors).view_as(boxes), boxes, self.box_loss)

    def detect(
        self, image: Tensor, *, score_threshold: float, nms_iou: float, max_detections: int
    ) -> list[dict[str, Tensor]]:
        """Boxes of each image, the best first.

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
            dense["cls_logits"].float().sigmoid(),
            dense["bbox_regression"].float(),
            grid_anchors(dense["sizes"], self.fpn.strides, self.shapes),
            self.coder.decode_single,
            (image.shape[2], image.shape[3]),
            Limits(score_threshold, nms_iou, max_detections),
        )


def build_retinanet(
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
    anchor_scales: Sequence[float] = (4.0, 4 * 2 ** (1 / 3), 4 * 2 ** (2 / 3)),
    anchor_ratios: Sequence[float] = (0.5, 1.0, 2.0),
    focal_alpha: float = 0.25,
    focal_gamma: float = 2.0,
    box_loss: BoxLoss = "l1",
    class_weights: Sequence[float] | None = None,
) -> RetinaNet:
    """RetinaNet on any net: maps of stride 8, 16 and 32, and two coarser ones.

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
        anchor_scales: sides of the square anchors in strides of their map. The default is the paper's: 32 pixels at
            stride 8, and in thirds of an octave.
        anchor_ratios: heights divided by widths.
        focal_alpha: weight of the positive side in the focal loss.
        focal_gamma: its exponent.
        box_loss: `l1` of the offsets, or `giou` of the boxes.
        class_weights: K factors of the class loss where the class is to be found.

    Raises:
        UserError: as `tasks.backbones.create_pyramid`; an argument that makes no sense, by its key.
    """
    if box_loss not in get_args(BoxLoss):
        raise UserError(f"model.detector_args.box_loss is '{box_loss}'; retinanet takes l1 or giou.")
    shapes = anchor_shapes(anchor_scales, anchor_ratios)
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
    head = RetinaNetHead(head_channels, len(shapes), num_classes, norm_layer=group_norm)
    for branch in (head.classification_head, head.regression_head):
        branch.conv = _tower(head_channels, head_depth)
    return RetinaNet(
        pyramid,
        FPN(pyramid.channels, pyramid.strides, head_channels, "p6p7"),
        head,
        shapes,
        focal_alpha=focal_alpha,
        focal_gamma=focal_gamma,
        box_loss=box_loss,
        class_weights=weights,
    )


def _tower(channels: int, depth: int) -> nn.Sequential:
    """`depth` convolutions with GroupNorm, initialised as torchvision's four."""
    tower = nn.Sequential(*(Conv2dNormActivation(channels, channels, norm_layer=group_norm) for _ in range(depth)))
    for layer in tower.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, std=0.01)
    return tower
