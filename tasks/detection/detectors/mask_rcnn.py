"""Mask R-CNN (He et al. 2017, https://arxiv.org/abs/1703.06870): Faster R-CNN and torchvision's mask head.

Masks leave `detect` as 28 x 28 probabilities in their boxes, because whole ones are large: 500 objects on a picture of
1388 x 1040 pixels take 720 MB. In `masks`, `mask_windows` makes them pixels inside their boxes alone, `encode_masks`
the run-length encodings that the metrics take, and `paste_masks` whole pictures, where these are wanted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor

from datamodules.common.errors import UserError
from tasks.detection.detectors.arguments import BackboneArguments
from tasks.detection.detectors.faster_rcnn import FasterRCNN, FasterRCNNArguments, build_faster_rcnn
from tasks.detection.detectors.masks import mask_targets
from tasks.detection.detectors.protocol import Family
from tasks.detection.detectors.regions import Samples, means_by_image, named, pool_places, roi_pool
from tasks.detection.detectors.selection import Found, Limits, found_in_tensors


@dataclass(frozen=True, kw_only=True)
class MaskRCNNArguments(FasterRCNNArguments):
    """Arguments of Mask R-CNN; see also `FasterRCNNArguments`.

    Attributes:
        mask_pool_size: cells along each side of what is pooled for a mask; the mask has twice as many.
        mask_head_width: channels of the mask head.
        mask_head_depth: its 3 x 3 convolutions.
    """

    mask_pool_size: int = 14
    mask_head_width: int = 256
    mask_head_depth: int = 4


class MaskRCNN(FasterRCNN):
    """Faster R-CNN that gives a mask to each box; see there."""

    def __init__(self, boxes: FasterRCNN, arguments: MaskRCNNArguments) -> None:
        """Take over the parts of a detector of boxes, and add those of masks."""
        super().__init__(boxes.backbone, boxes.fpn, boxes.rpn, boxes.roi_heads, boxes.shapes, boxes.num_classes, None)
        self.class_weights = boxes.class_weights
        width, depth = arguments.mask_head_width, arguments.mask_head_depth
        self.mask_pool = roi_pool(boxes.backbone.strides, arguments.mask_pool_size)
        self.mask_head = MaskRCNNHeads(arguments.head_channels, [width] * depth, 1)
        channels = width if depth else arguments.head_channels
        self.mask_predictor = MaskRCNNPredictor(channels, width, boxes.num_classes + 1)
        logits = self.mask_predictor.mask_fcn_logits
        nn.init.normal_(logits.weight, std=0.001)  # as in Detectron2; torchvision begins far from 0
        nn.init.zeros_(logits.bias)

    def image_losses(self, image: Tensor, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """As Faster R-CNN's, with `mask_loss`: the mean cross-entropy of the image's regions with an object.

        Raises:
            UserError: no masks.
        """
        if "masks" not in targets:
            raise UserError(
                "model.detector is 'mask_rcnn', which learns masks, but the data has none: take faster_rcnn, or"
                " annotations with masks."
            )
        return super().image_losses(image, targets)

    def _region_losses(
        self, dense: Mapping[str, list[Tensor]], image: Tensor, samples: Samples, targets: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        chosen = [label > 0 for label in samples.labels]
        regions, rows, labels = (
            [part[index] for part, index in zip(parts, chosen, strict=True)]
            for parts in (samples.regions, samples.rows, samples.labels)
        )
        logits = self._mask_logits(dense["maps"], regions, image, torch.cat(labels))
        covered = [
            mask_targets(layers, row + 1, of_image, logits.shape[-1])
            for layers, row, of_image in zip(targets["masks"], rows, regions, strict=True)
        ]
        loss = F.binary_cross_entropy_with_logits(logits, torch.cat(covered), reduction="none").mean((1, 2))
        parts = super()._region_losses(dense, image, samples, targets)
        return parts | {"mask_loss": means_by_image(loss, regions)}

    def _mask_logits(self, maps: Sequence[Tensor], regions: list[Tensor], image: Tensor, labels: Tensor) -> Tensor:
        """Logits float32 (S, 28, 28) of each region's own class; labels count from 1."""
        pooled = self.mask_pool(named(maps), regions, [image.shape[-2:]] * len(regions))
        logits: Tensor = self.mask_predictor(self.mask_head(pooled)).float()
        return logits[torch.arange(len(labels), device=labels.device), labels]

    def detect(self, image: Tensor, limits: Limits) -> list[Found]:
        """As every detector, with `masks` float32 (n, 28, 28), probabilities on a grid of cells that fills each box."""
        dense = self(image)
        found = self._detect(dense, image, limits)
        for i, of_image in enumerate(found):  # one by one: 500 regions pass the head as 100 MB a layer
            maps = [x[i : i + 1] for x in dense["maps"]]
            of_image["masks"] = self._mask_logits(maps, [of_image["boxes"]], image, of_image["labels"] + 1).sigmoid()
        return found

    def in_tensors(self, image: Tensor, limits: Limits, suppress: bool = True) -> dict[str, Tensor]:
        """As every detector, with `masks` float32 (B, n, 28, 28).

        Raises:
            UserError: without the suppression, behind which the masks are made.
        """
        if not suppress:
            raise UserError("--nms is 'outside', but mask_rcnn makes the masks of what is left: use --nms inside.")
        size, dense = (image.shape[2], image.shape[3]), self(image)
        candidates = self.candidates(dense, size, limits)
        found = found_in_tensors(candidates, size, limits, suppress, self.num_classes)
        boxes, labels = found["boxes"], found["labels"].clamp(min=0).flatten()
        pooled = pool_places(self.mask_pool, dense["maps"], boxes)
        logits = self.mask_predictor(self.mask_head(pooled)).float()
        own = (labels + 1).view(-1, 1, 1, 1).expand(-1, 1, *logits.shape[2:])
        masks = logits.gather(1, own).sigmoid().unflatten(0, boxes.shape[:2]).squeeze(2)
        return {"masks": masks, **found}


def build_mask_rcnn(
    backbone: BackboneArguments,
    num_classes: int,
    arguments: MaskRCNNArguments = MaskRCNNArguments(),
    class_weights: Sequence[float] | None = None,
) -> MaskRCNN:
    """Mask R-CNN on any net.

    Raises:
        UserError: as `build_faster_rcnn`.
    """
    return MaskRCNN(build_faster_rcnn(backbone, num_classes, arguments, class_weights), arguments)


FAMILY = Family(MaskRCNNArguments, build_mask_rcnn, has_masks=True)
