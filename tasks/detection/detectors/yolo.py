"""A YOLO: one stage, one prediction a grid cell, no anchors; written from the papers.

- Anchor-free, with a decoupled head: YOLOX (Ge et al. 2021, https://arxiv.org/abs/2107.08430).
- Neck: a top-down and a bottom-up path over the pyramid (PANet, Liu et al. 2018, https://arxiv.org/abs/1803.01534), of
  cross-stage partial blocks (CSPNet, Wang et al. 2019, https://arxiv.org/abs/1911.11929).
- Which cells learn an object: task-aligned assignment (TOOD, Feng et al. 2021, https://arxiv.org/abs/2108.07755).
- Each side of a box is a distribution over distances, with the distribution focal loss (Li et al. 2020,
  https://arxiv.org/abs/2006.04388), and a CIoU (Zheng et al. 2020, https://arxiv.org/abs/1911.08287) or GIoU loss
  (Rezatofighi et al. 2019, https://arxiv.org/abs/1902.09630) on the box that the distributions' means make.

The papers divide a batch's losses by its sum of target scores. Here each image's losses are divided by the image's own
sum (at least 1), and the batch's loss is the mean over its images, because an image's loss must not depend on the
others in its batch. So an image of two objects weighs as much as one of fifty.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tasks.detection.detectors.anchors import decode_distances, encode_distances, grid_centers
from tasks.detection.detectors.arguments import BackboneArguments, DetectorArguments
from tasks.detection.detectors.assign import centers_inside, task_aligned_assignment
from tasks.detection.detectors.losses import (
    complete_iou_loss,
    distribution_focal_loss,
    expected_distances,
    iou_loss,
    weighted_where_target,
)
from tasks.detection.detectors.protocol import Detector, Family
from tasks.detection.detectors.selection import Candidates, Limits, Sources, best_candidates
from tasks.detection.detectors.targets import Truth, read_targets
from tasks.detection.detectors.yolo_net import Head, Neck, Norm
from tasks.pyramid import Pyramid

LEAST_DISTANCE = 1e-2  # cells; a predicted box is at least twice this wide in its loss, as CIoU divides by its sides


@dataclass(frozen=True, kw_only=True)
class YOLOArguments(DetectorArguments):
    """Arguments of the YOLO.

    Attributes:
        strides: of the maps; None for 8, 16 and 32, or the nearest that the net has. 4 besides, for small objects,
            costs three times what the others cost together.
        width: channels of neck and heads, an even number.
        depth: residual blocks in each block of the neck.
        norm: in neck and heads. `group` (Wu & He 2018, https://arxiv.org/abs/1803.08494; 8 groups) does not depend on
            the batch, so that batches of one or two large images train as well as large ones; `batch` can be folded
            into the convolutions for inference.
        reg_max: a side is at most this many cells from a cell's center; so the largest box has 2 * reg_max times the
            largest stride, 1,024 pixels by default.
        prior: probability of each class in each cell that training begins with (Lin et al. 2017,
            https://arxiv.org/abs/1708.02002); it keeps the first losses from being swamped by background.
        topk: cells that an object takes at most.
        alpha: exponent of the class score in the assignment.
        beta: exponent of the IoU in the assignment.
        box_loss: `ciou` or `giou`.
        class_loss_weight: factor of the class loss.
        box_loss_weight: factor of the box loss; the defaults of the three are those of Li et al. 2020.
        dfl_loss_weight: factor of the distribution focal loss.
        pre_nms: scores of an image that go into the suppression, the highest; at least as many as detections.
        multi_label: a cell may report a box for each class above the threshold, as COCO's evaluation rewards, and not
            only for its best class.
    """

    strides: Sequence[int] | None = None
    width: int = 128
    depth: int = 1
    norm: Norm = "group"
    reg_max: int = 16
    prior: float = 0.01
    topk: int = 10
    alpha: float = 1.0
    beta: float = 6.0
    box_loss: Literal["ciou", "giou"] = "ciou"
    class_loss_weight: float = 1.0
    box_loss_weight: float = 2.0
    dfl_loss_weight: float = 0.25
    pre_nms: int = 3000
    multi_label: bool = True

    def __post_init__(self) -> None:
        """Refuse values that make no sense."""
        super().__post_init__()
        self.at_least(0, "depth")
        self.at_least(1, "reg_max", "topk", "pre_nms")
        if self.width < 2 or self.width % 2:
            self.refuse("width", "an even number above 0")
        if not 0 < self.prior < 1:
            self.refuse("prior", "between 0 and 1")


class Dense(NamedTuple):
    """What the net says about its A cells, those of all maps, finest map first, rows first.

    Attributes:
        logits: float (B, A, K), one sigmoid a class.
        distances: float (B, A, 4, bins), logits of the distances from the center to the left, top, right and bottom.
        points: float32 (A, 2), centers of the cells, x y in canvas pixels.
        strides: float32 (A,), the cells' sides in pixels.
    """

    logits: Tensor
    distances: Tensor
    points: Tensor
    strides: Tensor


class YOLO(Detector):
    """One stage, one prediction a cell; see the module's docstring."""

    def __init__(
        self,
        backbone: Pyramid,
        num_classes: int,
        arguments: YOLOArguments,
        class_weights: Sequence[float] | None,
    ) -> None:
        """Put neck and heads on a pyramid."""
        super().__init__(backbone, num_classes, class_weights)
        width, norm = arguments.width, arguments.norm
        self.bins = arguments.reg_max + 1
        self.neck = Neck(backbone.channels, width, arguments.depth, norm)
        self.heads = nn.ModuleList(Head(width, num_classes, self.bins, norm, arguments.prior) for _ in backbone.strides)
        self.arguments = arguments

    def forward(self, image: Tensor) -> Dense:
        """The dense part: backbone, neck and heads."""
        logits, distances, points, strides = [], [], [], []
        maps = self.neck(self.backbone(image))
        for head, x, stride in zip(self.heads, maps, self.backbone.strides, strict=True):
            of_class, of_box = head(x)
            logits.append(of_class.flatten(2).transpose(1, 2))
            distances.append(of_box.flatten(2).transpose(1, 2).unflatten(2, (4, self.bins)))
            points.append(grid_centers(x.shape[2], x.shape[3], x.device) * stride)
            strides.append(torch.full_like(points[-1][:, 0], stride))
        return Dense(torch.cat(logits, 1), torch.cat(distances, 1), torch.cat(points), torch.cat(strides))

    def image_losses(self, image: Tensor, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`class_loss`, `box_loss` and `dfl_loss`, each divided by the image's sum of target scores, at least 1."""
        dense, truth, settings = self(image), read_targets(targets), self.arguments
        distances = expected_distances(dense.distances)
        place, score = task_aligned_assignment(
            dense.logits.float(),
            decode_distances(distances, dense.points, dense.strides),
            dense.points,
            truth.boxes,
            truth.labels.masked_fill(~truth.learned, -1),
            topk=settings.topk,
            alpha=settings.alpha,
            beta=settings.beta,
            least_side=float(self.backbone.strides[0]),
        )
        box_loss, dfl_loss = self._box_losses(dense, distances, truth, place)
        total = score.sum(1).clamp(min=1)
        return {
            "class_loss": self._class_loss(dense, truth, place, score) / total * settings.class_loss_weight,
            "box_loss": (box_loss * score).sum(1) / total * settings.box_loss_weight,
            "dfl_loss": (dfl_loss * score).sum(1) / total * settings.dfl_loss_weight,
        }

    def _class_loss(self, dense: Dense, truth: Truth, place: Tensor, score: Tensor) -> Tensor:
        """Binary cross-entropy with the assignment's scores for targets, summed over each image's cells: (B,)."""
        logits, positive = dense.logits.float(), place >= 0
        label = truth.labels_at(place.clamp(min=0)).clamp(min=0)
        target = torch.zeros_like(logits).scatter_(2, label.unsqueeze(2), score.unsqueeze(2))
        loss = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        loss = weighted_where_target(loss, target, self.class_weights)
        ignored = ~positive & centers_inside(dense.points, truth.crowds).any(1)
        return loss.sum(2).masked_fill(ignored, 0).sum(1)

    def _box_losses(self, dense: Dense, distances: Tensor, truth: Truth, place: Tensor) -> tuple[Tensor, Tensor]:
        """Each cell's IoU loss and distribution focal loss, (B, A); those of the background are not used."""
        target = encode_distances(truth.boxes_at(place.clamp(min=0)), dense.points, dense.strides)
        target = torch.where((place >= 0).unsqueeze(2), target, 1.0)  # any box with an area
        # As boxes around the center, in cells: there narrow ones keep their precision, and no IoU depends on place or
        # scale.
        sign = target.new_tensor([-1.0, -1.0, 1.0, 1.0])
        predicted, true = distances.clamp(min=LEAST_DISTANCE) * sign, target * sign
        if self.arguments.box_loss == "ciou":
            box_loss = complete_iou_loss(predicted, true)
        else:
            box_loss = iou_loss(predicted, true, "giou")
        return box_loss, distribution_focal_loss(dense.distances, target).mean(2)

    def candidates(self, dense: Dense, size: tuple[int, int], limits: Limits) -> Candidates:
        """As every detector; the highest scores of all maps go into the suppression."""
        boxes = decode_distances(expected_distances(dense.distances), dense.points, dense.strides)
        scores = dense.logits.float().sigmoid()
        if not self.arguments.multi_label:
            scores = torch.where(scores == scores.amax(2, keepdim=True), scores, 0)
        count = max(self.arguments.pre_nms, limits.max_detections)
        return best_candidates(boxes, scores, count)

    def sources(self, image: Tensor, label: int, region: Tensor | None = None) -> Sources:
        """As every detector: the cells."""
        dense = self(image)
        boxes = decode_distances(expected_distances(dense.distances), dense.points, dense.strides)
        logits = dense.logits[..., label].float()
        return Sources(boxes, logits, logits.sigmoid())


def build_yolo(
    backbone: BackboneArguments,
    num_classes: int,
    arguments: YOLOArguments = YOLOArguments(),
    class_weights: Sequence[float] | None = None,
) -> YOLO:
    """A YOLO on any net: maps of stride 8, 16 and 32; see the module's docstring.

    Raises:
        UserError: as `tasks.pyramid.create_pyramid`; an argument that makes no sense, by its key.
    """
    pyramid = backbone.detection_pyramid(8, arguments.strides)
    return YOLO(pyramid, num_classes, arguments, class_weights)


FAMILY = Family(YOLOArguments, build_yolo)
