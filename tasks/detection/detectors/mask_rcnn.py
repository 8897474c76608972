"""Mask R-CNN (He et al. 2017, https://arxiv.org/abs/1703.06870): Faster R-CNN and torchvision's mask head.

Masks leave `detect` as 28 x 28 probabilities in their boxes, because whole ones are large: 500 objects on a picture of
1388 x 1040 pixels take 720 MB. `mask_windows` makes them pixels inside their boxes alone, `encode_masks` the run
lengths that the metrics take, and `paste_masks` whole pictures, where these are wanted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from faster_coco_eval import mask as run_lengths
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import MultiScaleRoIAlign, roi_align

from datamodules.common.errors import UserError
from tasks.detection.detectors.faster_rcnn import (
    FasterRCNN,
    Samples,
    build_faster_rcnn,
    means_by_image,
    named,
    roi_pool,
)
from tasks.detection.detectors.parts import Limits

CHUNK_BYTES = 1 << 26  # of objects' whole masks that are cut up at once


def mask_targets(layers: Tensor, numbers: Tensor, regions: Tensor, size: int) -> Tensor:
    """What the mask head is to predict: each region's object, cut out by RoI align.

    Equal to torchvision's `project_masks_on_boxes` on masks of all objects, but only those of the objects that are
    asked for are made, and a few at a time.

    Args:
        layers: int16 (L, H, W), object numbers.
        numbers: int64 (S,), the object that is looked for in each region.
        regions: float32 (S, 4), x1 y1 x2 y2 in pixels.
        size: cells along each side.

    Returns:
        float32 (S, size, size), parts of the cells that the object covers.
    """
    targets = regions.new_zeros(len(regions), size, size)
    objects, place = numbers.unique(return_inverse=True)
    step = max(1, CHUNK_BYTES // (4 * layers[0].numel()))
    for start in range(0, len(objects), step):
        some = objects[start : start + step].to(layers.dtype)
        masks = (layers == some.view(-1, 1, 1, 1)).any(1, keepdim=True).to(regions.dtype)
        here = ((place >= start) & (place < start + step)).nonzero().squeeze(1)
        rois = torch.cat([(place[here] - start).unsqueeze(1).to(regions.dtype), regions[here]], 1)
        targets[here] = roi_align(masks, rois, size).squeeze(1)
    return targets


class MaskRCNN(FasterRCNN):
    """Faster R-CNN that gives a mask to each box; see there."""

    def __init__(
        self, boxes: FasterRCNN, pool: MultiScaleRoIAlign, head: MaskRCNNHeads, predictor: MaskRCNNPredictor
    ) -> None:
        """Take over the parts of a detector of boxes, and add those of `build_mask_rcnn`."""
        super().__init__(boxes.backbone, boxes.fpn, boxes.rpn, boxes.roi_heads, boxes.shapes, boxes.class_weights)
        self.mask_pool = pool
        self.mask_head = head
        self.mask_predictor = predictor

    def losses(self, image: Tensor, targets: Mapping[str, Tensor], weight: Tensor | None = None) -> dict[str, Tensor]:
        """As Faster R-CNN's, with `mask_loss`: the mean cross-entropy of the image's regions with an object.

        Args:
            image: float (B, C, H, W), normalised.
            targets: as there, and `masks` int16 (B, L, H, W), the place in `boxes` from 1 of each pixel's object, 0 for
                none; objects of one layer do not overlap.
            weight: float (B,), scales each image's loss.

        Raises:
            UserError: no masks.
        """
        if "masks" not in targets:
            raise UserError(
                "model.detector is 'mask_rcnn', which learns masks, but the data has none: take faster_rcnn, or"
                " annotations with masks."
            )
        return super().losses(image, targets, weight)

    def _region_losses(
        self, dense: Mapping[str, list[Tensor]], image: Tensor, samples: Samples, targets: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        chosen = [label > 0 for label in samples.labels]
        regions, rows, labels = (
            [part[index] for part, index in zip(parts, chosen, strict=True)]
            for parts in (samples.regions, samples.rows, samples.labels)
        )
        logits = self._mask_logits(dense["maps"], regions, image, torch.cat(labels))
        goals = [
            mask_targets(layers, row + 1, of_image, logits.shape[-1])
            for layers, row, of_image in zip(targets["masks"], rows, regions, strict=True)
        ]
        loss = F.binary_cross_entropy_with_logits(logits, torch.cat(goals), reduction="none").mean((1, 2))
        parts = super()._region_losses(dense, image, samples, targets)
        return parts | {"mask_loss": means_by_image(loss, regions)}

    def _mask_logits(self, maps: Sequence[Tensor], regions: list[Tensor], image: Tensor, labels: Tensor) -> Tensor:
        """Logits float32 (S, 28, 28) of each region's own class; labels count from 1."""
        pooled = self.mask_pool(named(maps), regions, [image.shape[-2:]] * len(regions))
        logits: Tensor = self.mask_predictor(self.mask_head(pooled)).float()
        return logits[torch.arange(len(labels), device=labels.device), labels]

    def detect(
        self, image: Tensor, *, score_threshold: float, nms_iou: float, max_detections: int
    ) -> list[dict[str, Tensor]]:
        """As Faster R-CNN's, with masks.

        Returns:
            B dicts as there, and `masks` float32 (n, 28, 28), probabilities on a grid of 28 x 28 cells that fills each
            box; see `encode_masks` and `paste_masks`, for boxes in pixels of any picture.
        """
        dense = self(image)
        found = self._detect(dense, image, Limits(score_threshold, nms_iou, max_detections))
        for i, of_image in enumerate(found):  # one by one: 500 regions pass the head as 100 MB a layer
            maps = [x[i : i + 1] for x in dense["maps"]]
            of_image["masks"] = self._mask_logits(maps, [of_image["boxes"]], image, of_image["labels"] + 1).sigmoid()
        return found


def mask_windows(
    probs: Tensor, boxes: Tensor, height: int, width: int, threshold: float = 0.5
) -> Iterator[tuple[int, int, NDArray[np.bool_]]]:
    """Each object's pixels inside its box: those whose centre has at least the threshold.

    The probabilities are taken between the cells' centres linearly, and as 0 around the box, as Detectron2 and
    `torch.nn.functional.grid_sample` do. (torchvision's `paste_masks_in_image` rounds the boxes.)

    Args:
        probs: float (n, m, m), as from `MaskRCNN.detect`.
        boxes: float (n, 4), x1 y1 x2 y2 in pixels of the picture.
        height: of the picture.
        width: of the picture.
        threshold: from which on a pixel is the object's.

    Yields:
        Top row and left column of the window, and bool (h, w).
    """
    grids = probs.float().cpu().numpy()
    for grid, (x1, y1, x2, y2) in zip(grids, boxes.double().cpu().tolist(), strict=True):
        top, rows = _between(y1, y2, height, len(grid))
        left, columns = _between(x1, x2, width, len(grid))
        yield top, left, rows @ grid @ columns.T >= threshold


def _between(low: float, high: float, side: int, cells: int) -> tuple[int, NDArray[np.float32]]:
    """The first pixel whose centre is between two edges, and how much of each cell each pixel has: (pixels, cells)."""
    first, last = max(0, math.ceil(low - 0.5)), min(side, math.floor(high - 0.5) + 1)
    place = (np.arange(first, last) + 0.5 - low) / max(high - low, 1e-6) * cells - 0.5
    return first, np.maximum(0, 1 - np.abs(place[:, None] - np.arange(cells))).astype(np.float32)


def encode_masks(probs: Tensor, boxes: Tensor, height: int, width: int, threshold: float = 0.5) -> list[dict[str, Any]]:
    """Masks as COCO's compressed run lengths (`size`, `counts`), without making whole ones; see `mask_windows`."""
    total, rles = height * width, []
    for top, left, window in mask_windows(probs, boxes, height, width, threshold):
        columns, rows = np.nonzero(window.T)  # run lengths go down the columns
        pixels = (left + columns) * height + top + rows
        starts = pixels[np.diff(pixels, prepend=-2) > 1]
        ends = pixels[np.diff(pixels, append=total + 1) > 1] + 1
        edges = np.stack([starts, ends], 1).ravel()
        counts = np.diff(edges, prepend=0, append=total)
        if len(edges) and edges[-1] == total:
            counts = counts[:-1]
        rles.append({"size": [height, width], "counts": counts.tolist()})
    return list(run_lengths.frPyObjects(rles, height, width)) if rles else []


def paste_masks(probs: Tensor, boxes: Tensor, height: int, width: int, threshold: float = 0.5) -> Tensor:
    """Masks of whole pictures, bool (n, height, width) on the CPU: a byte for each pixel of each object.

    For many objects on large pictures take `encode_masks`. The arguments are those of `mask_windows`.
    """
    masks = torch.zeros(len(probs), height, width, dtype=torch.bool)
    for mask, (top, left, window) in zip(masks, mask_windows(probs, boxes, height, width, threshold), strict=True):
        mask[top : top + window.shape[0], left : left + window.shape[1]] = torch.from_numpy(window)
    return masks


def build_mask_rcnn(
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
    mask_pool_size: int = 14,
    mask_head_width: int = 256,
    mask_head_depth: int = 4,
    class_weights: Sequence[float] | None = None,
) -> MaskRCNN:
    """Mask R-CNN on any net; the other arguments are those of `build_faster_rcnn`.

    Args:
        backbone: timm's name, or one of ours.
        num_classes: K, without background.
        in_chans: number of input channels.
        pretrained: True for the hub, or a local file of the backbone's weights.
        image_size: height and width of the images, for nets of fixed size.
        drop_path_rate: stochastic depth.
        backbone_args: more arguments of timm's constructor.
        grad_checkpointing: recompute the backbone's activations in the backward pass.
        strides: see there.
        head_channels: see there.
        head_depth: see there.
        anchor_scales: see there.
        anchor_ratios: see there.
        candidates: see there.
        proposals: see there; for pictures of many objects at least as many as detections are wanted.
        rpn_samples: see there.
        box_samples: see there; a quarter of them, those with an object, learn masks.
        pool_size: see there.
        box_head_width: see there.
        mask_pool_size: cells along each side of what is pooled for a mask; the mask has twice as many.
        mask_head_width: channels of the mask head.
        mask_head_depth: its 3 x 3 convolutions.
        class_weights: see there.

    Raises:
        UserError: as `build_faster_rcnn`.
    """
    detector = build_faster_rcnn(
        backbone,
        num_classes,
        in_chans=in_chans,
        pretrained=pretrained,
        image_size=image_size,
        drop_path_rate=drop_path_rate,
        backbone_args=backbone_args,
        grad_checkpointing=grad_checkpointing,
        strides=strides,
        head_channels=head_channels,
        head_depth=head_depth,
        anchor_scales=anchor_scales,
        anchor_ratios=anchor_ratios,
        candidates=candidates,
        proposals=proposals,
        rpn_samples=rpn_samples,
        box_samples=box_samples,
        pool_size=pool_size,
        box_head_width=box_head_width,
        class_weights=class_weights,
    )
    head = MaskRCNNHeads(head_channels, [mask_head_width] * mask_head_depth, 1)
    predictor = MaskRCNNPredictor(
        mask_head_width if mask_head_depth else head_channels, mask_head_width, num_classes + 1
    )
    nn.init.normal_(predictor.mask_fcn_logits.weight, std=0.001)  # as in Detectron2; torchvision begins far from 0
    nn.init.zeros_(predictor.mask_fcn_logits.bias)
    return MaskRCNN(detector, roi_pool(detector.backbone.strides, mask_pool_size), head, predictor)
