"""Faster R-CNN (Ren et al. 2015, https://arxiv.org/abs/1506.01497) on a timm pyramid, of torchvision's parts.

torchvision's proposal network and RoI heads are used as boxes of tools: their own `forward` resizes nothing, but takes
strides from sizes, means over the whole batch, and only trains in training mode.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead, concat_box_prediction_layers
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.poolers import LevelMapper

from datamodules.common.errors import UserError
from tasks.detection.detectors.fpn import FPN, detection_pyramid
from tasks.detection.detectors.parts import (
    Limits,
    Truth,
    anchor_shapes,
    batch_means,
    best_boxes,
    centres_of,
    class_weight_tensor,
    grid_anchors,
    in_crowd,
    read_targets,
)
from tasks.pyramid import Pyramid

CANONICAL_SIDE = 14  # strides; a region of 224 pixels is pooled at stride 16 (equation 1 of the FPN paper)
SMOOTH = 1 / 9  # where the smooth L1 loss turns linear, as in torchvision


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


class FasterRCNN(nn.Module):
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
        rpn: RegionProposalNetwork,
        roi_heads: RoIHeads,
        shapes: Tensor,
        class_weights: Tensor | None,
    ) -> None:
        """Join the parts that `build_faster_rcnn` makes; `shapes` are those of `parts.anchor_shapes`."""
        super().__init__()
        self.backbone = backbone
        self.pretrained_cfg = backbone.pretrained_cfg
        self.fpn = fpn
        self.rpn = rpn
        self.roi_heads = roi_heads
        self.register_buffer("class_weights", class_weights, persistent=False)
        self.register_buffer("shapes", shapes, persistent=False)

    def forward(self, image: Tensor) -> dict[str, list[Tensor]]:
        """The dense part, with static shapes, so that `compile` takes all of it.

        Returns:
            For each map, finest first: `maps` (B, width, H_i, W_i), `objectness` (B, k, H_i, W_i) and `offsets`
            (B, 4 * k, H_i, W_i) of the k anchors of each cell.
        """
        maps = self.fpn(self.backbone(image))
        objectness, offsets = self.rpn.head(maps)
        return {"maps": maps, "objectness": objectness, "offsets": offsets}

    def losses(self, image: Tensor, targets: Mapping[str, Tensor], weight: Tensor | None = None) -> dict[str, Tensor]:
        """`loss`, `objectness_loss`, `proposal_loss`, `class_loss`, `box_loss`: means over each image's own.

        Args:
            image: float (B, C, H, W), normalised.
            targets: `boxes` float32 (B, M, 4), canvas pixels; `labels` int64 (B, M), -1 where there is no box; M may be
                0. `iscrowd` uint8 (B, M), optional: crowds are not learnt, and no background is learnt by anchors and
                regions whose centre is inside one.
            weight: float (B,), scales each image's loss.
        """
        return batch_means(self._losses(image, targets), weight)

    def _losses(self, image: Tensor, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Each part's value for each image, float32 (B,)."""
        dense, truth = self(image), read_targets(targets)
        boxes = [of_image[learnt] for of_image, learnt in zip(truth.boxes, truth.learnt, strict=True)]
        regions, parts = self._propose(dense, image, (truth, boxes))
        return parts | self._region_losses(dense, image, self._sample(regions, truth, boxes), targets)

    def _region_losses(
        self, dense: Mapping[str, list[Tensor]], image: Tensor, samples: Samples, targets: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        return self._box_losses(self._pool(dense, samples.regions, image), samples)

    def _propose(
        self, dense: Mapping[str, list[Tensor]], image: Tensor, truth: tuple[Truth, list[Tensor]] | None = None
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Regions float32 (n_i, 4) of each image; with the truth also the losses of the first stage."""
        batch = len(image)
        levels = grid_anchors([(x.shape[2], x.shape[3]) for x in dense["maps"]], self.fpn.strides, self.shapes)
        anchors = torch.cat(levels)
        objectness, offsets = concat_box_prediction_layers(dense["objectness"], dense["offsets"])
        objectness, offsets = objectness.float().view(batch, -1), offsets.float().view(batch, -1, 4)
        with torch.no_grad():
            boxes = self.rpn.box_coder.decode(offsets.flatten(0, 1), [anchors] * batch).view(batch, -1, 4)
            sizes = [(image.shape[2], image.shape[3])] * batch
            regions, _ = self.rpn.filter_proposals(boxes, objectness, sizes, [len(level) for level in levels])
        return regions, {} if truth is None else self._proposal_losses(objectness, offsets, anchors, *truth)

    def _proposal_losses(
        self, objectness: Tensor, offsets: Tensor, anchors: Tensor, truth: Truth, boxes: list[Tensor]
    ) -> dict[str, Tensor]:
        of_images = [{"boxes": of_image} for of_image in boxes]
        labels, matched = self.rpn.assign_targets_to_anchors([anchors] * len(boxes), of_images)
        centres = centres_of(anchors)
        labels = [
            label.masked_fill((label == 0) & in_crowd(centres, crowds), -1)
            for label, crowds in zip(labels, truth.crowds, strict=True)
        ]
        label = torch.stack(labels)
        positive, negative = (torch.stack(chosen).bool() for chosen in self.rpn.fg_bg_sampler(labels))
        count = (positive | negative).sum(1).clamp(min=1)
        loss = F.binary_cross_entropy_with_logits(objectness, label.clamp(min=0), reduction="none")
        # Background gets its anchor for a box, so that nothing is infinite where the loss is then set to 0.
        true = torch.where(positive.unsqueeze(2), torch.stack(matched), anchors)
        goal = self.rpn.box_coder.encode_single(true.flatten(0, 1), anchors.repeat(len(boxes), 1)).view_as(offsets)
        box_loss = F.smooth_l1_loss(offsets, goal, beta=SMOOTH, reduction="none").sum(2)
        return {
            "objectness_loss": loss.masked_fill(~(positive | negative), 0).sum(1) / count,
            "proposal_loss": box_loss.masked_fill(~positive, 0).sum(1) / count,
        }

    def _sample(self, regions: list[Tensor], truth: Truth, boxes: list[Tensor]) -> Samples:
        """Choose what the second stage learns, with the true boxes among the regions."""
        heads = self.roi_heads
        # torchvision counts classes from 1, background is 0.
        classes = [labels[learnt] + 1 for labels, learnt in zip(truth.labels, truth.learnt, strict=True)]
        regions = heads.add_gt_proposals(regions, boxes)
        rows, labels = heads.assign_targets_to_proposals(regions, boxes, classes)
        labels = [
            label.masked_fill((label == 0) & in_crowd(centres_of(of_image), crowds), -1)
            for label, of_image, crowds in zip(labels, regions, truth.crowds, strict=True)
        ]
        chosen = heads.subsample(labels)
        regions, rows, labels = (
            [part[index] for part, index in zip(parts, chosen, strict=True)] for parts in (regions, rows, labels)
        )
        goals = [
            torch.where(label.unsqueeze(1) > 0, of_image[row], region) if len(of_image) else region
            for label, of_image, row, region in zip(labels, boxes, rows, regions, strict=True)
        ]
        places = [learnt.nonzero().squeeze(1) for learnt in truth.learnt]
        rows = [place[row] if len(place) else row for place, row in zip(places, rows, strict=True)]
        return Samples(regions, rows, labels, torch.cat(goals))

    def _pool(self, dense: Mapping[str, list[Tensor]], regions: list[Tensor], image: Tensor) -> Tensor:
        """Pooled features of all regions, (S, width, size, size)."""
        pooled: Tensor = self.roi_heads.box_roi_pool(named(dense["maps"]), regions, [image.shape[-2:]] * len(image))
        return pooled

    def _box_losses(self, pooled: Tensor, samples: Samples) -> dict[str, Tensor]:
        logits, offsets = self._predict(pooled)
        label, regions = torch.cat(samples.labels), torch.cat(samples.regions)
        class_loss = F.cross_entropy(logits, label, reduction="none")
        if self.class_weights is not None:
            class_loss = class_loss * F.pad(self.class_weights, (1, 0), value=1.0)[label]
        goal = self.roi_heads.box_coder.encode_single(samples.boxes, regions)
        offsets = offsets.gather(1, label.view(-1, 1, 1).expand(-1, 1, 4)).squeeze(1)
        box_loss = F.smooth_l1_loss(offsets, goal, beta=SMOOTH, reduction="none").sum(1) * (label > 0)
        return {
            "class_loss": means_by_image(class_loss, samples.labels),
            "box_loss": means_by_image(box_loss, samples.labels),
        }

    def _predict(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Logits float32 (S, K + 1), background first, and offsets (S, K + 1, 4)."""
        logits, offsets = self.roi_heads.box_predictor(self.roi_heads.box_head(pooled))
        return logits.float(), offsets.float().unflatten(1, (-1, 4))

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
        return self._detect(self(image), image, Limits(score_threshold, nms_iou, max_detections))

    def _detect(self, dense: Mapping[str, list[Tensor]], image: Tensor, limits: Limits) -> list[dict[str, Tensor]]:
        regions, _ = self._propose(dense, image)
        logits, offsets = self._predict(self._pool(dense, regions, image))
        scores = logits.softmax(1)[:, 1:]
        boxes = self.roi_heads.box_coder.decode(offsets.flatten(1), regions)[:, 1:]
        counts, num_classes = [len(part) for part in regions], scores.shape[1]
        labels = torch.arange(num_classes, device=scores.device)
        size = (image.shape[2], image.shape[3])
        return [
            best_boxes(box.reshape(-1, 4), score.flatten(), labels.repeat(len(score)), size, limits)
            for box, score in zip(boxes.split(counts), scores.split(counts), strict=True)
        ]


def means_by_image(loss: Tensor, of_images: Sequence[Tensor]) -> Tensor:
    """Means (B,) of a loss (S,) over each image's part, which is as long as its tensor; 0 where there is none."""
    parts = loss.split([len(of_image) for of_image in of_images])
    return torch.stack([part.sum() / max(1, len(part)) for part in parts])


def named(maps: Sequence[Tensor]) -> OrderedDict[str, Tensor]:
    """Maps by their place, as torchvision's pooling wants them."""
    return OrderedDict((str(i), x) for i, x in enumerate(maps))


def build_faster_rcnn(
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
    head_depth: int = 1,
    anchor_scales: Sequence[float] = (8.0,),
    anchor_ratios: Sequence[float] = (0.5, 1.0, 2.0),
    candidates: Sequence[int] = (2000, 1000),
    proposals: Sequence[int] = (2000, 1000),
    rpn_samples: int = 256,
    box_samples: int = 512,
    pool_size: int = 7,
    box_head_width: int = 1024,
    class_weights: Sequence[float] | None = None,
) -> FasterRCNN:
    """Faster R-CNN on any net: maps of stride 4, 8, 16 and 32, and a coarser one for proposals.

    Args:
        backbone: timm's name, or one of ours.
        num_classes: K, without background.
        in_chans: number of input channels.
        pretrained: True for the hub, or a local file of the backbone's weights.
        image_size: height and width of the images, for nets of fixed size.
        drop_path_rate: stochastic depth.
        backbone_args: more arguments of timm's constructor.
        grad_checkpointing: recompute the backbone's activations in the backward pass.
        strides: of the backbone's maps; None for 4, 8, 16 and 32, or the nearest that the net has. A coarser follows.
        head_channels: width of FPN and proposal network.
        head_depth: convolutions of the proposal network.
        anchor_scales: sides of the square anchors in strides of their map; 8 is 32 pixels at stride 4.
        anchor_ratios: heights divided by widths.
        candidates: boxes of each map that go into the proposals' suppression, in training and in evaluation.
        proposals: regions of an image that come out of it, in training and in evaluation.
        rpn_samples: anchors of an image that the proposal network learns from, at most half of them with an object.
        box_samples: regions of an image that the box head learns from, at most a quarter of them with an object.
        pool_size: cells along each side of what is pooled of a region.
        box_head_width: of the two linear layers of the box head.
        class_weights: K factors of the class loss; background has 1.

    Raises:
        UserError: as `tasks.backbones.create_pyramid`; an argument that makes no sense, by its key.
    """
    for name, pair in (("candidates", candidates), ("proposals", proposals)):
        if len(pair) != 2 or min(pair) < 1:
            raise UserError(
                f"model.detector_args.{name} is {list(pair)}; it needs two numbers of 1 or more, for training and for"
                " evaluation."
            )
    shapes = anchor_shapes(anchor_scales, anchor_ratios)
    weights = class_weight_tensor(class_weights, num_classes)
    pyramid = detection_pyramid(
        backbone,
        finest=4,
        strides=strides,
        in_chans=in_chans,
        pretrained=pretrained,
        image_size=image_size,
        drop_path_rate=drop_path_rate,
        backbone_args=backbone_args,
        grad_checkpointing=grad_checkpointing,
    )
    rpn = RegionProposalNetwork(
        None,  # anchors are made here, see `parts.grid_anchors`
        RPNHead(head_channels, len(shapes), head_depth),
        fg_iou_thresh=0.7,
        bg_iou_thresh=0.3,
        batch_size_per_image=rpn_samples,
        positive_fraction=0.5,
        pre_nms_top_n=dict(zip(("training", "testing"), candidates, strict=True)),
        post_nms_top_n=dict(zip(("training", "testing"), proposals, strict=True)),
        nms_thresh=0.7,
    )
    predictor = FastRCNNPredictor(box_head_width, num_classes + 1)
    for layer, std in ((predictor.cls_score, 0.01), (predictor.bbox_pred, 0.001)):  # as in Detectron2
        nn.init.normal_(layer.weight, std=std)
        nn.init.zeros_(layer.bias)
    roi_heads = RoIHeads(
        roi_pool(pyramid.strides, pool_size),
        TwoMLPHead(head_channels * pool_size**2, box_head_width),
        predictor,
        fg_iou_thresh=0.5,
        bg_iou_thresh=0.5,
        batch_size_per_image=box_samples,
        positive_fraction=0.25,
        bbox_reg_weights=None,
        score_thresh=0.0,  # the last three are arguments of `detect`
        nms_thresh=0.5,
        detections_per_img=100,
    )
    fpn = FPN(pyramid.channels, pyramid.strides, head_channels, "pool")
    return FasterRCNN(pyramid, fpn, rpn, roi_heads, shapes, weights)
