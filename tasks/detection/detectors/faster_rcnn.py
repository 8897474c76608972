"""Faster R-CNN (Ren et al. 2015, https://arxiv.org/abs/1506.01497) on a timm pyramid, of torchvision's parts.

torchvision's proposal network and RoI heads are used as boxes of tools: their own `forward` resizes nothing, but takes
strides from sizes, means over the whole batch, and only trains in training mode.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead, concat_box_prediction_layers

from tasks.detection.detectors.anchors import anchor_shapes, centers_of, grid_anchors
from tasks.detection.detectors.arguments import BackboneArguments, DetectorArguments
from tasks.detection.detectors.fpn import FPN
from tasks.detection.detectors.proposals import propose_in_tensors
from tasks.detection.detectors.protocol import Detector, Family
from tasks.detection.detectors.regions import Samples, means_by_image, named, pool_places, roi_pool
from tasks.detection.detectors.selection import Candidates, Found, Limits, Sources, best_boxes, least, rows_of
from tasks.detection.detectors.targets import Truth, in_crowd, read_targets
from tasks.pyramid import Pyramid

PAIRS = 5000  # of region and class at most, that go into an export's suppression
SMOOTH = 1 / 9  # where the smooth L1 loss turns linear, as in torchvision


@dataclass(frozen=True, kw_only=True)
class FasterRCNNArguments(DetectorArguments):
    """Arguments of Faster R-CNN.

    Attributes:
        strides: of the backbone's maps; None for 4, 8, 16 and 32, or the nearest that the net has. A coarser follows.
        head_channels: width of FPN and proposal network.
        head_depth: convolutions of the proposal network.
        anchor_scales: sides of the square anchors in strides of their map; 8 is 32 pixels at stride 4.
        anchor_ratios: heights divided by widths.
        candidates: boxes of each map that go into the proposals' suppression, in training and in evaluation.
        proposals: regions of an image that come out of it, in training and in evaluation; for pictures of many objects
            at least as many as detections are wanted.
        rpn_samples: anchors of an image that the proposal network learns from, at most half of them with an object.
        box_samples: regions of an image that the box head learns from, at most a quarter of them with an object, which
            are those that learn masks.
        pool_size: cells along each side of what is pooled of a region.
        box_head_width: of the two linear layers of the box head.
    """

    strides: Sequence[int] | None = None
    head_channels: int = 256
    head_depth: int = 1
    anchor_scales: Sequence[float] = (8.0,)
    anchor_ratios: Sequence[float] = (0.5, 1.0, 2.0)
    candidates: Sequence[int] = (2000, 1000)
    proposals: Sequence[int] = (2000, 1000)
    rpn_samples: int = 256
    box_samples: int = 512
    pool_size: int = 7
    box_head_width: int = 1024

    def __post_init__(self) -> None:
        """Refuse values that make no sense."""
        super().__post_init__()
        for key in ("candidates", "proposals"):
            pair = getattr(self, key)
            if len(pair) != 2 or min(pair) < 1:
                self.refuse(key, "two numbers of 1 or more, for training and for evaluation")


class FasterRCNN(Detector):
    """Two stages: regions that may hold an object, then a class and a box for each. Class weights leave background."""

    shapes: Tensor

    def __init__(
        self,
        backbone: Pyramid,
        fpn: FPN,
        rpn: RegionProposalNetwork,
        roi_heads: RoIHeads,
        shapes: Tensor,
        num_classes: int,
        class_weights: Sequence[float] | None,
    ) -> None:
        """Join the parts that `build_faster_rcnn` makes; `shapes` are those of `anchors.anchor_shapes`."""
        super().__init__(backbone, num_classes, class_weights)
        self.fpn = fpn
        self.rpn = rpn
        self.roi_heads = roi_heads
        self.register_buffer("shapes", shapes, persistent=False)

    def forward(self, image: Tensor) -> dict[str, list[Tensor]]:
        """The dense part.

        Returns:
            For each map, finest first: `maps` (B, width, H_i, W_i), `objectness` (B, k, H_i, W_i) and `offsets`
            (B, 4 * k, H_i, W_i) of the k anchors of each cell.
        """
        maps = self.fpn(self.backbone(image))
        objectness, offsets = self.rpn.head(maps)
        return {"maps": maps, "objectness": objectness, "offsets": offsets}

    def image_losses(self, image: Tensor, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`objectness_loss`, `proposal_loss`, `class_loss` and `box_loss`, means over what each image samples."""
        dense, truth = self(image), read_targets(targets)
        boxes = [of_image[learned] for of_image, learned in zip(truth.boxes, truth.learned, strict=True)]
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
        centers = centers_of(anchors)
        labels = [
            label.masked_fill((label == 0) & in_crowd(centers, crowds), -1)
            for label, crowds in zip(labels, truth.crowds, strict=True)
        ]
        label = torch.stack(labels)
        positive, negative = (torch.stack(chosen).bool() for chosen in self.rpn.fg_bg_sampler(labels))
        count = (positive | negative).sum(1).clamp(min=1)
        loss = F.binary_cross_entropy_with_logits(objectness, label.clamp(min=0), reduction="none")
        # Background gets its anchor for a box, so that nothing is infinite where the loss is then set to 0.
        true = torch.where(positive.unsqueeze(2), torch.stack(matched), anchors)
        target = self.rpn.box_coder.encode_single(true.flatten(0, 1), anchors.repeat(len(boxes), 1)).view_as(offsets)
        box_loss = F.smooth_l1_loss(offsets, target, beta=SMOOTH, reduction="none").sum(2)
        return {
            "objectness_loss": loss.masked_fill(~(positive | negative), 0).sum(1) / count,
            "proposal_loss": box_loss.masked_fill(~positive, 0).sum(1) / count,
        }

    def _sample(self, regions: list[Tensor], truth: Truth, boxes: list[Tensor]) -> Samples:
        """Choose what the second stage learns, with the true boxes among the regions."""
        heads = self.roi_heads
        # torchvision counts classes from 1, background is 0.
        classes = [labels[learned] + 1 for labels, learned in zip(truth.labels, truth.learned, strict=True)]
        regions = heads.add_gt_proposals(regions, boxes)
        rows, labels = heads.assign_targets_to_proposals(regions, boxes, classes)
        labels = [
            label.masked_fill((label == 0) & in_crowd(centers_of(of_image), crowds), -1)
            for label, of_image, crowds in zip(labels, regions, truth.crowds, strict=True)
        ]
        chosen = heads.subsample(labels)
        regions, rows, labels = (
            [part[index] for part, index in zip(parts, chosen, strict=True)] for parts in (regions, rows, labels)
        )
        targets = [
            torch.where(label.unsqueeze(1) > 0, of_image[row], region) if len(of_image) else region
            for label, of_image, row, region in zip(labels, boxes, rows, regions, strict=True)
        ]
        places = [learned.nonzero().squeeze(1) for learned in truth.learned]
        rows = [place[row] if len(place) else row for place, row in zip(places, rows, strict=True)]
        return Samples(regions, rows, labels, torch.cat(targets))

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
        target = self.roi_heads.box_coder.encode_single(samples.boxes, regions)
        offsets = offsets.gather(1, label.view(-1, 1, 1).expand(-1, 1, 4)).squeeze(1)
        box_loss = F.smooth_l1_loss(offsets, target, beta=SMOOTH, reduction="none").sum(1) * (label > 0)
        return {
            "class_loss": means_by_image(class_loss, samples.labels),
            "box_loss": means_by_image(box_loss, samples.labels),
        }

    def _predict(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Logits float32 (S, K + 1), background first, and offsets (S, K + 1, 4)."""
        logits, offsets = self.roi_heads.box_predictor(self.roi_heads.box_head(pooled))
        return logits.float(), offsets.float().unflatten(1, (-1, 4))

    def candidates(self, dense: Mapping[str, list[Tensor]], size: tuple[int, int], limits: Limits) -> Candidates:
        """As every detector; of places for regions that stay empty, the boxes have a score of -1."""
        levels = grid_anchors([(x.shape[2], x.shape[3]) for x in dense["maps"]], self.fpn.strides, self.shapes)
        regions, there = propose_in_tensors(self.rpn, dense, levels, size)
        pooled = pool_places(self.roi_heads.box_roi_pool, dense["maps"], regions)
        logits, offsets = self._predict(pooled)
        boxes = self.roi_heads.box_coder.decode_single(offsets.flatten(1), regions.flatten(0, 1))
        boxes = boxes.view(*regions.shape[:2], -1, 4)[:, :, 1:]
        scores = logits.softmax(1)[:, 1:].unflatten(0, regions.shape[:2]).masked_fill(~there.unsqueeze(2), -1.0)
        best, places = scores.flatten(1).topk(least(PAIRS, scores.shape[1] * scores.shape[2]), 1)
        return Candidates(rows_of(boxes.flatten(1, 2), places), best, places % scores.shape[2])

    def detect(self, image: Tensor, limits: Limits) -> list[Found]:
        """As every detector."""
        return self._detect(self(image), image, limits)

    def _detect(self, dense: Mapping[str, list[Tensor]], image: Tensor, limits: Limits) -> list[Found]:
        regions, _ = self._propose(dense, image)
        boxes, logits = self._boxes_of(dense, regions, image)
        scores = logits.softmax(1)[:, 1:]
        counts, num_classes = [len(part) for part in regions], scores.shape[1]
        labels = torch.arange(num_classes, device=scores.device)
        size = (image.shape[2], image.shape[3])
        return [
            best_boxes(box.reshape(-1, 4), score.flatten(), labels.repeat(len(score)), size, limits)
            for box, score in zip(boxes.split(counts), scores.split(counts), strict=True)
        ]

    def _boxes_of(
        self, dense: Mapping[str, list[Tensor]], regions: list[Tensor], image: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Boxes float32 (S, K, 4) of all regions, and logits (S, K + 1), background first."""
        logits, offsets = self._predict(self._pool(dense, regions, image))
        return self.roi_heads.box_coder.decode(offsets.flatten(1), regions)[:, 1:], logits

    def sources(self, image: Tensor, label: int, region: Tensor | None = None) -> Sources:
        """As every detector: the regions."""
        dense = self(image)
        regions = self._propose(dense, image)[0] if region is None else [region.unsqueeze(0)] * len(image)
        boxes, logits = self._boxes_of(dense, regions, image)
        columns = boxes[:, label], logits[:, label + 1], logits.softmax(1)[:, label + 1], torch.cat(regions)
        return Sources(*(column.unflatten(0, (len(image), -1)) for column in columns))


def build_faster_rcnn(
    backbone: BackboneArguments,
    num_classes: int,
    arguments: FasterRCNNArguments = FasterRCNNArguments(),
    class_weights: Sequence[float] | None = None,
) -> FasterRCNN:
    """Faster R-CNN on any net: maps of stride 4, 8, 16 and 32, and a coarser one for proposals.

    Raises:
        UserError: as `tasks.pyramid.create_pyramid`; an argument that makes no sense, by its key.
    """
    shapes = anchor_shapes(arguments.anchor_scales, arguments.anchor_ratios)
    pyramid = backbone.detection_pyramid(4, arguments.strides)
    rpn = RegionProposalNetwork(
        None,  # anchors are made here, see `anchors.grid_anchors`
        RPNHead(arguments.head_channels, len(shapes), arguments.head_depth),
        fg_iou_thresh=0.7,
        bg_iou_thresh=0.3,
        batch_size_per_image=arguments.rpn_samples,
        positive_fraction=0.5,
        pre_nms_top_n=dict(zip(("training", "testing"), arguments.candidates, strict=True)),
        post_nms_top_n=dict(zip(("training", "testing"), arguments.proposals, strict=True)),
        nms_thresh=0.7,
    )
    predictor = FastRCNNPredictor(arguments.box_head_width, num_classes + 1)
    for layer, std in ((predictor.cls_score, 0.01), (predictor.bbox_pred, 0.001)):  # as in Detectron2
        nn.init.normal_(layer.weight, std=std)
        nn.init.zeros_(layer.bias)
    roi_heads = RoIHeads(
        roi_pool(pyramid.strides, arguments.pool_size),
        TwoMLPHead(arguments.head_channels * arguments.pool_size**2, arguments.box_head_width),
        predictor,
        fg_iou_thresh=0.5,
        bg_iou_thresh=0.5,
        batch_size_per_image=arguments.box_samples,
        positive_fraction=0.25,
        bbox_reg_weights=None,
        score_thresh=0.0,  # the last three are in the `Limits` of `detect`
        nms_thresh=0.5,
        detections_per_img=100,
    )
    fpn = FPN(pyramid.channels, pyramid.strides, arguments.head_channels, "pool")
    return FasterRCNN(pyramid, fpn, rpn, roi_heads, shapes, num_classes, class_weights)


FAMILY = Family(FasterRCNNArguments, build_faster_rcnn)
