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

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datamodules.common.errors import UserError
from tasks.detection.detectors.assign import centres_inside, task_aligned_assignment
from tasks.detection.detectors.fpn import detection_pyramid
from tasks.detection.detectors.parts import (
    Limits,
    Truth,
    batch_means,
    best_boxes,
    class_weight_tensor,
    iou_loss,
    read_targets,
)
from tasks.pyramid import Pyramid

Norm = Literal["group", "batch"]
BoxLoss = Literal["ciou", "giou"]

START = 2.0  # cells; what the distances begin with, but for the cut at `reg_max`
LEAST_DISTANCE = 1e-2  # cells; a predicted box is at least twice this wide in its loss, as CIoU divides by its sides


def _conv(inputs: int, outputs: int, size: int, norm: Norm, stride: int = 1) -> nn.Sequential:
    """Convolution, norm, SiLU."""
    convolution = nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)
    layer = nn.BatchNorm2d(outputs) if norm == "batch" else nn.GroupNorm(math.gcd(outputs, 8), outputs)
    return nn.Sequential(convolution, layer, nn.SiLU(inplace=True))


class _CSPBlock(nn.Module):
    """Half of the channels pass `depth` residual blocks, the other half does not; then both are mixed."""

    def __init__(self, inputs: int, outputs: int, depth: int, norm: Norm) -> None:
        super().__init__()
        half = outputs // 2
        self.through = _conv(inputs, half, 1, norm)
        self.past = _conv(inputs, half, 1, norm)
        self.blocks = nn.ModuleList(
            nn.Sequential(_conv(half, half, 1, norm), _conv(half, half, 3, norm)) for _ in range(depth)
        )
        self.mix = _conv(2 * half, outputs, 1, norm)

    def forward(self, x: Tensor) -> Tensor:
        through = self.through(x)
        for block in self.blocks:
            through = through + block(through)
        mixed: Tensor = self.mix(torch.cat([through, self.past(x)], 1))
        return mixed


class _Neck(nn.Module):
    """PAN: maps (B, channels[i], H_i, W_i) to maps of `width` channels and the same sizes."""

    def __init__(self, channels: Sequence[int], width: int, depth: int, norm: Norm) -> None:
        super().__init__()
        steps = len(channels) - 1
        self.lateral = nn.ModuleList(_conv(count, width, 1, norm) for count in channels)
        self.down = nn.ModuleList(_CSPBlock(2 * width, width, depth, norm) for _ in range(steps))
        self.shrink = nn.ModuleList(_conv(width, width, 3, norm, stride=2) for _ in range(steps))
        self.up = nn.ModuleList(_CSPBlock(2 * width, width, depth, norm) for _ in range(steps))

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        maps = [lateral(x) for lateral, x in zip(self.lateral, maps, strict=True)]
        for i in reversed(range(len(maps) - 1)):
            maps[i] = self.down[i](torch.cat([maps[i], _resize(maps[i + 1], maps[i])], 1))
        for i in range(len(maps) - 1):
            maps[i + 1] = self.up[i](torch.cat([maps[i + 1], _resize(self.shrink[i](maps[i]), maps[i + 1])], 1))
        return maps


def _resize(x: Tensor, like: Tensor) -> Tensor:
    """To the height and width of another map; sizes of odd canvases are no multiples of each other."""
    return x if x.shape[-2:] == like.shape[-2:] else F.interpolate(x, size=like.shape[-2:], mode="nearest")


class _Head(nn.Module):
    """One map's decoupled head: (B, width, H, W) to class logits (B, K, H, W) and (B, 4 * bins, H, W) for the box."""

    def __init__(self, width: int, num_classes: int, bins: int, norm: Norm, prior: float) -> None:
        """Build it; classes begin at a probability of `prior`, boxes with sides that are `START` cells away."""
        super().__init__()
        self.stem = _conv(width, width, 1, norm)
        self.classes = nn.Sequential(_conv(width, width, 3, norm), _conv(width, width, 3, norm))
        self.box = nn.Sequential(_conv(width, width, 3, norm), _conv(width, width, 3, norm))
        self.class_logits = nn.Conv2d(width, num_classes, 1)
        self.box_logits = nn.Conv2d(width, 4 * bins, 1)
        for layer in (self.class_logits, self.box_logits):
            nn.init.normal_(layer.weight, std=0.01)
        self.class_logits.bias = nn.Parameter(torch.full((num_classes,), -math.log((1 - prior) / prior)))
        # A geometric distribution of that mean. Equal bins would begin with boxes of bins - 1 cells, which overlap
        # small objects by next to nothing.
        slope = math.log(1 + 1 / START)
        self.box_logits.bias = nn.Parameter((-slope * torch.arange(bins)).repeat(4))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.stem(x)
        return self.class_logits(self.classes(x)), self.box_logits(self.box(x))


class Dense(NamedTuple):
    """What the net says about its A cells, those of all maps, finest map first, rows first.

    Attributes:
        logits: float (B, A, K), one sigmoid a class.
        distances: float (B, A, 4, bins), logits of the distances from the centre to the left, top, right and bottom.
        points: float32 (A, 2), centres of the cells, x y in canvas pixels.
        strides: float32 (A,), the cells' sides in pixels.
    """

    logits: Tensor
    distances: Tensor
    points: Tensor
    strides: Tensor


def expected_distances(distances: Tensor) -> Tensor:
    """Means of the distributions: logits (..., bins) to float32 (...), 0 .. bins - 1 cells."""
    probability = distances.float().softmax(-1)
    bins = torch.arange(distances.shape[-1], dtype=torch.float32, device=distances.device)
    return (probability * bins).sum(-1)


def decode(distances: Tensor, points: Tensor, strides: Tensor) -> Tensor:
    """Distances (..., A, 4) in cells to boxes float32 (..., A, 4), x1 y1 x2 y2 in pixels."""
    pixels = distances.float() * strides.unsqueeze(-1)
    return torch.cat([points - pixels[..., :2], points + pixels[..., 2:]], -1)


def encode(boxes: Tensor, points: Tensor, strides: Tensor) -> Tensor:
    """Boxes (..., A, 4) to distances in cells, the inverse of `decode`; negative where the centre is outside."""
    boxes = boxes.float()
    return torch.cat([points - boxes[..., :2], boxes[..., 2:] - points], -1) / strides.unsqueeze(-1)


def complete_iou_loss(predicted: Tensor, true: Tensor) -> Tensor:
    """1 - CIoU (Zheng et al. 2020) of boxes (..., 4) one by one; all sides above 0.

    As torchvision's `complete_box_iou_loss`, which indexes with masks and so waits for the device.

    Returns:
        float32 (...).
    """
    loss = iou_loss(predicted, true, "iou")
    outer = torch.maximum(predicted[..., 2:], true[..., 2:]) - torch.minimum(predicted[..., :2], true[..., :2])
    apart = (predicted[..., :2] + predicted[..., 2:] - true[..., :2] - true[..., 2:]) / 2
    angles = [torch.atan2(*(box[..., 2:] - box[..., :2]).unbind(-1)) for box in (predicted, true)]
    shape = (angles[0] - angles[1]).square() * (4 / math.pi**2)
    with torch.no_grad():
        share = shape / (loss + shape + 1e-7)
    return loss + apart.square().sum(-1) / (outer.square().sum(-1) + 1e-7) + share * shape


def distribution_focal_loss(distances: Tensor, target: Tensor) -> Tensor:
    """Li et al. 2020, equation 6: cross-entropy of the two bins beside the target, weighted by their nearness.

    Args:
        distances: float (..., bins), logits.
        target: float32 (...), clamped to 0 .. bins - 1.

    Returns:
        float32 (...).
    """
    last = distances.shape[-1] - 1
    target = target.clamp(0, last)
    left = target.floor().clamp(max=last - 1)
    logs = distances.float().log_softmax(-1)
    both = torch.stack([left, left + 1], -1).long()
    nearness = torch.stack([left + 1 - target, target - left], -1)
    return -(logs.gather(-1, both) * nearness).sum(-1)


class YOLO(nn.Module):
    """Normalised float images (B, C, H, W) of any size that the backbone takes to boxes and classes.

    Attributes:
        backbone: the `Pyramid`; all other parameters are the head's.
        pretrained_cfg: timm's description of the backbone, for `tasks.backbones.normalization`.
    """

    class_weights: Tensor | None

    def __init__(
        self,
        backbone: Pyramid,
        neck: nn.Module,
        heads: nn.ModuleList,
        *,
        num_classes: int,
        bins: int,
        topk: int,
        alpha: float,
        beta: float,
        box_loss: BoxLoss,
        loss_weights: Mapping[str, float],
        class_weights: Tensor | None,
        pre_nms: int,
        multi_label: bool,
    ) -> None:
        """Join the parts that `build_yolo` makes."""
        super().__init__()
        self.backbone = backbone
        self.pretrained_cfg = backbone.pretrained_cfg
        self.neck = neck
        self.heads = heads
        self.num_classes, self.bins = num_classes, bins
        self.topk, self.alpha, self.beta = topk, alpha, beta
        self.box_loss, self.loss_weights = box_loss, dict(loss_weights)
        self.pre_nms, self.multi_label = pre_nms, multi_label
        self.register_buffer("class_weights", class_weights, persistent=False)

    def forward(self, image: Tensor) -> Dense:
        """The dense part: backbone, neck and heads; static shapes, so that `compile` takes all of it."""
        logits, distances, points, strides = [], [], [], []
        maps = self.neck(self.backbone(image))
        for head, x, stride in zip(self.heads, maps, self.backbone.strides, strict=True):
            of_class, of_box = head(x)
            logits.append(of_class.flatten(2).transpose(1, 2))
            distances.append(of_box.flatten(2).transpose(1, 2).unflatten(2, (4, self.bins)))
            rows, columns = (torch.arange(side, dtype=torch.float32, device=x.device) + 0.5 for side in x.shape[2:])
            points.append(torch.stack([columns.repeat(len(rows)), rows.repeat_interleave(len(columns))], 1) * stride)
            strides.append(torch.full_like(points[-1][:, 0], stride))
        return Dense(torch.cat(logits, 1), torch.cat(distances, 1), torch.cat(points), torch.cat(strides))

    def losses(self, image: Tensor, targets: Mapping[str, Tensor], weight: Tensor | None = None) -> dict[str, Tensor]:
        """`loss` and its parts `class_loss`, `box_loss`, `dfl_loss`: means over the images of each image's own.

        Args:
            image: float (B, C, H, W), normalised.
            targets: `boxes` float32 (B, M, 4), canvas pixels; `labels` int64 (B, M), -1 where there is no box; M may be
                0. `iscrowd` uint8 (B, M), optional: crowds are not learnt, and no background is learnt by cells whose
                centre is inside one.
            weight: float (B,), scales each image's loss.
        """
        parts = self._losses_by_image(self(image), read_targets(targets))
        return batch_means({name: part * self.loss_weights[name] for name, part in parts.items()}, weight)

    def _losses_by_image(self, dense: Dense, truth: Truth) -> dict[str, Tensor]:
        """Each part for each image, float32 (B,), without its weight."""
        logits = dense.logits.float()
        distances = expected_distances(dense.distances)
        index, score = task_aligned_assignment(
            logits,
            decode(distances, dense.points, dense.strides),
            dense.points,
            truth.boxes,
            truth.labels.masked_fill(~truth.learnt, -1),
            topk=self.topk,
            alpha=self.alpha,
            beta=self.beta,
            least_side=float(self.backbone.strides[0]),
        )
        positive, place = index >= 0, index.clamp(min=0)

        label = truth.labels.gather(1, place).clamp(min=0).unsqueeze(2)
        target = torch.zeros_like(logits).scatter_(2, label, score.unsqueeze(2))
        class_loss = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        if self.class_weights is not None:
            class_loss = torch.where(target > 0, class_loss * self.class_weights, class_loss)
        ignored = ~positive & centres_inside(dense.points, truth.crowds).any(1)
        class_loss = class_loss.sum(2).masked_fill(ignored, 0)

        goal = truth.boxes.gather(1, place.unsqueeze(2).expand(-1, -1, 4))
        goal = encode(goal, dense.points, dense.strides)
        goal = torch.where(positive.unsqueeze(2), goal, 1.0)  # any box with an area: its loss is multiplied by 0
        # As boxes around the centre, in cells: there narrow ones keep their precision, and no IoU depends on place or
        # scale.
        sign = goal.new_tensor([-1.0, -1.0, 1.0, 1.0])
        predicted, true = distances.clamp(min=LEAST_DISTANCE) * sign, goal * sign
        ciou = self.box_loss == "ciou"
        box_loss = complete_iou_loss(predicted, true) if ciou else iou_loss(predicted, true, "giou")
        dfl_loss = distribution_focal_loss(dense.distances, goal).mean(2)

        total = score.sum(1).clamp(min=1)
        return {
            "class_loss": class_loss.sum(1) / total,
            "box_loss": (box_loss * score).sum(1) / total,
            "dfl_loss": (dfl_loss * score).sum(1) / total,
        }

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
        boxes = decode(expected_distances(dense.distances), dense.points, dense.strides)
        scores = dense.logits.float().sigmoid()
        if not self.multi_label:
            scores = torch.where(scores == scores.amax(2, keepdim=True), scores, 0)
        flat = scores.flatten(1)
        best, places = flat.topk(min(max(self.pre_nms, max_detections), flat.shape[1]), 1)
        size, limits = (image.shape[2], image.shape[3]), Limits(score_threshold, nms_iou, max_detections)
        return [
            best_boxes(of_image[place // self.num_classes], score, place % self.num_classes, size, limits)
            for of_image, score, place in zip(boxes, best, places, strict=True)
        ]


def build_yolo(
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
    width: int = 128,
    depth: int = 1,
    norm: Norm = "group",
    reg_max: int = 16,
    prior: float = 0.01,
    topk: int = 10,
    alpha: float = 1.0,
    beta: float = 6.0,
    box_loss: BoxLoss = "ciou",
    class_loss_weight: float = 1.0,
    box_loss_weight: float = 2.0,
    dfl_loss_weight: float = 0.25,
    class_weights: Sequence[float] | None = None,
    pre_nms: int = 3000,
    multi_label: bool = True,
) -> YOLO:
    """A YOLO on any net: maps of stride 8, 16 and 32; see the module's docstring.

    Args:
        backbone: timm's name, or one of ours.
        num_classes: K, without background.
        in_chans: number of input channels.
        pretrained: True for the hub, or a local file of the backbone's weights.
        image_size: height and width of the images, for nets of fixed size.
        drop_path_rate: stochastic depth in the backbone.
        backbone_args: more arguments of timm's constructor.
        grad_checkpointing: recompute the backbone's activations in the backward pass.
        strides: of the maps; None for 8, 16 and 32, or the nearest that the net has. 4 besides, for small objects,
            costs three times what the others cost together.
        width: channels of neck and heads, an even number.
        depth: residual blocks in each block of the neck.
        norm: in neck and heads. `group` (Wu & He 2018, https://arxiv.org/abs/1803.08494; 8 groups) does not depend on
            the batch, so that batches of one or two large images train as well as large ones; `batch` can be folded
            into the convolutions for inference.
        reg_max: a side is at most this many cells from a cell's centre; so the largest box has 2 * reg_max times the
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
        class_weights: K factors of the class loss where the class is to be found.
        pre_nms: scores of an image that go into the suppression, the highest; at least as many as detections.
        multi_label: a cell may report a box for each class above the threshold, as COCO's evaluation rewards, and not
            only for its best class.

    Raises:
        UserError: as `tasks.backbones.create_pyramid`; an argument that makes no sense, by its key.
    """
    counts = {"depth": (depth, 0), "reg_max": (reg_max, 1), "topk": (topk, 1), "pre_nms": (pre_nms, 1)}
    for key, (value, least) in counts.items():
        if value < least:
            raise UserError(f"model.detector_args.{key} is {value}; it must be at least {least}.")
    if width < 2 or width % 2:
        raise UserError(f"model.detector_args.width is {width}; it must be an even number above 0.")
    if not 0 < prior < 1:
        raise UserError(f"model.detector_args.prior is {prior}; it must be between 0 and 1.")
    for key, name, allowed in (("norm", norm, get_args(Norm)), ("box_loss", box_loss, get_args(BoxLoss))):
        if name not in allowed:
            raise UserError(f"model.detector_args.{key} is '{name}'; yolo takes {' or '.join(allowed)}.")
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
    return YOLO(
        pyramid,
        _Neck(pyramid.channels, width, depth, norm),
        nn.ModuleList(_Head(width, num_classes, reg_max + 1, norm, prior) for _ in pyramid.strides),
        num_classes=num_classes,
        bins=reg_max + 1,
        topk=topk,
        alpha=alpha,
        beta=beta,
        box_loss=box_loss,
        loss_weights={"class_loss": class_loss_weight, "box_loss": box_loss_weight, "dfl_loss": dfl_loss_weight},
        class_weights=weights,
        pre_nms=pre_nms,
        multi_label=multi_label,
    )
