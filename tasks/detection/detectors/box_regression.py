"""One box and its class for an image: the simplest thing that localises.

The backbone's last map, with the coordinates of its cells as two more channels (CoordConv, Liu et al. 2018,
https://arxiv.org/abs/1807.03247), is mixed by one convolution and averaged over all cells. Without coordinates, an
average knows where things are only from the zeros around the picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tasks.detection.detectors.fpn import available_strides
from tasks.detection.detectors.parts import batch_means, class_weight_tensor, read_targets
from tasks.pyramid import Pyramid, create_pyramid

SMOOTH = 0.05  # parts of the canvas; where the smooth L1 loss turns linear


class BoxRegression(nn.Module):
    """Normalised float images (B, C, H, W) of any size that the backbone takes to one box and class each.

    Attributes:
        backbone: the `Pyramid`, of one map; all other parameters are the head's.
        pretrained_cfg: timm's description of the backbone, for `tasks.backbones.normalization`.
    """

    class_weights: Tensor | None

    def __init__(
        self, backbone: Pyramid, num_classes: int, width: int, box_weight: float, class_weights: Tensor | None
    ) -> None:
        """Put a head on a pyramid; the arguments are those of `build_box_regression`."""
        super().__init__()
        self.backbone = backbone
        self.pretrained_cfg = backbone.pretrained_cfg
        self.box_weight = box_weight
        self.register_buffer("class_weights", class_weights, persistent=False)
        self.mix = nn.Conv2d(backbone.channels[-1] + 2, width, 1)
        self.class_layer = nn.Linear(width, num_classes)
        self.box_layer = nn.Linear(width, 4)
        for layer in (self.class_layer, self.box_layer):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """All that is learnt: `logits` (B, K), and `places` (B, 4), centre and size before the sigmoid."""
        features = self.backbone(image)[-1]
        batch, _, height, width = features.shape
        y, x = (
            (torch.arange(side, dtype=features.dtype, device=features.device) + 0.5) / side * 2 - 1
            for side in (height, width)
        )
        cells = torch.stack([x.expand(height, width), y.unsqueeze(1).expand(height, width)])
        pooled = self.mix(torch.cat([features, cells.expand(batch, 2, height, width)], 1)).relu().mean((2, 3))
        return {"logits": self.class_layer(pooled), "places": self.box_layer(pooled)}

    def losses(self, image: Tensor, targets: Mapping[str, Tensor], weight: Tensor | None = None) -> dict[str, Tensor]:
        """`loss`, `class_loss` and `box_loss`: means over the images of each image's own.

        The largest box of an image, crowds left out, is the one to be found. An image without boxes has no loss.

        Args:
            image: float (B, C, H, W), normalised.
            targets: `boxes` float32 (B, M, 4), canvas pixels; `labels` int64 (B, M), -1 where there is no box; M may be
                0; `iscrowd` uint8 (B, M), optional.
            weight: float (B,), scales each image's loss.
        """
        dense, truth = self(image), read_targets(targets)
        area = (truth.boxes[..., 2:] - truth.boxes[..., :2]).prod(2).masked_fill(~truth.learnt, -1)
        largest = area.argmax(1, keepdim=True)
        some = truth.learnt.any(1)
        label = truth.labels.gather(1, largest).squeeze(1).clamp(min=0)
        box = truth.boxes.gather(1, largest.unsqueeze(2).expand(-1, -1, 4)).squeeze(1)
        class_loss = F.cross_entropy(dense["logits"].float(), label, reduction="none")
        if self.class_weights is not None:
            class_loss = class_loss * self.class_weights[label]
        goal = box / _canvas(image)
        box_loss = F.smooth_l1_loss(_corners(dense["places"]), goal, beta=SMOOTH, reduction="none").sum(1)
        parts = {"class_loss": class_loss, "box_loss": self.box_weight * box_loss}
        return batch_means({name: part.masked_fill(~some, 0) for name, part in parts.items()}, weight)

    def detect(
        self, image: Tensor, *, score_threshold: float, nms_iou: float, max_detections: int
    ) -> list[dict[str, Tensor]]:
        """The box of each image.

        Args:
            image: float (B, C, H, W), normalised.
            score_threshold: an image whose score is not above it has no box.
            nms_iou: unused; one box needs no suppression.
            max_detections: unused.

        Returns:
            B dicts: `boxes` float32 (1, 4), x1 y1 x2 y2 in canvas pixels, clipped to the canvas; `scores` float32 (1,),
            the class's probability; `labels` int64 (1,).
        """
        dense = self(image)
        scores, labels = dense["logits"].float().softmax(1).max(1)
        boxes = _corners(dense["places"]).clamp(0, 1) * _canvas(image)
        columns = {"boxes": boxes, "scores": scores, "labels": labels}
        above = scores > score_threshold
        return [
            {key: column[i : i + 1][above[i : i + 1]] for key, column in columns.items()} for i in range(len(image))
        ]


def _corners(places: Tensor) -> Tensor:
    """Centre and size before the sigmoid to x1 y1 x2 y2, parts of the canvas, float32 (B, 4)."""
    centre, size = places.float().sigmoid().chunk(2, 1)
    return torch.cat([centre - size / 2, centre + size / 2], 1)


def _canvas(image: Tensor) -> Tensor:
    """Width, height, width, height."""
    canvas = torch.empty(4, device=image.device)
    canvas[0::2], canvas[1::2] = image.shape[3], image.shape[2]  # filled there: a copy would wait for the device
    return canvas


def build_box_regression(
    backbone: str,
    num_classes: int,
    *,
    in_chans: int = 3,
    pretrained: bool | str = False,
    image_size: tuple[int, int] | None = None,
    drop_path_rate: float = 0.0,
    backbone_args: dict[str, Any] | None = None,
    grad_checkpointing: bool = False,
    head_channels: int = 256,
    box_weight: float = 5.0,
    class_weights: Sequence[float] | None = None,
) -> BoxRegression:
    """One box and its class on any net's coarsest map.

    Args:
        backbone: timm's name, or one of ours.
        num_classes: K.
        in_chans: number of input channels.
        pretrained: True for the hub, or a local file of the backbone's weights.
        image_size: height and width of the images, for nets of fixed size.
        drop_path_rate: stochastic depth.
        backbone_args: more arguments of timm's constructor.
        grad_checkpointing: recompute the backbone's activations in the backward pass.
        head_channels: width of the head.
        box_weight: factor of the box's loss, which is small as it counts in parts of the canvas.
        class_weights: K factors of the class loss.

    Raises:
        UserError: as `tasks.backbones.create_pyramid`; an argument that makes no sense, by its key.
    """
    weights = class_weight_tensor(class_weights, num_classes)
    has = available_strides(backbone, in_chans=in_chans, image_size=image_size, backbone_args=backbone_args)
    pyramid = create_pyramid(
        backbone,
        in_chans=in_chans,
        pretrained=pretrained,
        image_size=image_size,
        strides=[has[-1]],
        drop_path_rate=drop_path_rate,
        backbone_args=backbone_args,
        grad_checkpointing=grad_checkpointing,
    )
    return BoxRegression(pyramid, num_classes, head_channels, box_weight, weights)
