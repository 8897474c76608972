"""One box and its class for an image: the simplest thing that localizes.

The backbone's last map, with the coordinates of its cells as two more channels (CoordConv, Liu et al. 2018,
https://arxiv.org/abs/1807.03247), is mixed by one convolution and averaged over all cells. Without coordinates, an
average knows where things are only from the zeros around the picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tasks.detection.detectors.anchors import sides_of
from tasks.detection.detectors.arguments import BackboneArguments, DetectorArguments
from tasks.detection.detectors.protocol import Detector, Family
from tasks.detection.detectors.selection import Candidates, Found, Limits, Sources
from tasks.detection.detectors.targets import read_targets
from tasks.pyramid import Pyramid

SMOOTH = 0.05  # fraction of the canvas; where the smooth L1 loss turns linear


@dataclass(frozen=True, kw_only=True)
class BoxRegressionArguments(DetectorArguments):
    """Arguments of this family.

    Attributes:
        head_channels: width of the head.
        box_weight: factor of the box's loss, which is small as it counts in fractions of the canvas.
    """

    head_channels: int = 256
    box_weight: float = 5.0


class BoxRegression(Detector):
    """One box and one class for each image."""

    def __init__(
        self,
        backbone: Pyramid,
        num_classes: int,
        arguments: BoxRegressionArguments,
        class_weights: Sequence[float] | None,
    ) -> None:
        """Put a head on a pyramid, of which the last map is used."""
        super().__init__(backbone, num_classes, class_weights)
        width = arguments.head_channels
        self.box_weight = arguments.box_weight
        self.mix = nn.Conv2d(backbone.channels[-1] + 2, width, 1)
        self.class_layer = nn.Linear(width, num_classes)
        self.box_layer = nn.Linear(width, 4)
        for layer in (self.class_layer, self.box_layer):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """All that is learned: `logits` (B, K), and `places` (B, 4), center and size before the sigmoid."""
        features = self.backbone(image)[-1]
        batch, _, height, width = features.shape
        y, x = (
            (torch.arange(side, dtype=features.dtype, device=features.device) + 0.5) / side * 2 - 1
            for side in (height, width)
        )
        cells = torch.stack([x.expand(height, width), y.unsqueeze(1).expand(height, width)])
        pooled = self.mix(torch.cat([features, cells.expand(batch, 2, height, width)], 1)).relu().mean((2, 3))
        return {"logits": self.class_layer(pooled), "places": self.box_layer(pooled)}

    def image_losses(self, image: Tensor, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`class_loss` and `box_loss`.

        The largest box of an image, crowds left out, is the target. An image without boxes has no loss.
        """
        dense, truth = self(image), read_targets(targets)
        area = sides_of(truth.boxes).prod(2).masked_fill(~truth.learned, -1)
        largest = area.argmax(1, keepdim=True)
        has_target = truth.learned.any(1)
        label = truth.labels_at(largest).squeeze(1).clamp(min=0)
        class_loss = F.cross_entropy(dense["logits"].float(), label, reduction="none")
        if self.class_weights is not None:
            class_loss = class_loss * self.class_weights[label]
        canvas = _canvas((image.shape[2], image.shape[3]), image.device)
        target = truth.boxes_at(largest).squeeze(1) / canvas
        box_loss = F.smooth_l1_loss(_corners(dense["places"]), target, beta=SMOOTH, reduction="none").sum(1)
        parts = {"class_loss": class_loss, "box_loss": self.box_weight * box_loss}
        return {name: part.masked_fill(~has_target, 0) for name, part in parts.items()}

    def candidates(self, dense: Mapping[str, Tensor], size: tuple[int, int], limits: Limits) -> Candidates:
        """The box of each image, with the class's probability for a score."""
        scores, labels = dense["logits"].float().softmax(1).max(1, keepdim=True)
        boxes = _corners(dense["places"]).clamp(0, 1) * _canvas(size, scores.device)
        return Candidates(boxes.unsqueeze(1), scores, labels)

    def detect(self, image: Tensor, limits: Limits) -> list[Found]:
        """The candidate of each image, however small, if its score is above the threshold."""
        columns = self.candidates(self(image), (image.shape[2], image.shape[3]), limits)._asdict()
        above = columns["scores"] > limits.score_threshold
        return [{key: column[i][above[i]] for key, column in columns.items()} for i in range(len(image))]

    def sources(self, image: Tensor, label: int, region: Tensor | None = None) -> Sources:
        """As every detector: the one box."""
        dense = self(image)
        logits = dense["logits"].float()
        boxes = _corners(dense["places"]).clamp(0, 1) * _canvas((image.shape[2], image.shape[3]), logits.device)
        return Sources(boxes.unsqueeze(1), logits[:, label, None], logits.softmax(1)[:, label, None])


def _corners(places: Tensor) -> Tensor:
    """Center and size before the sigmoid to x1 y1 x2 y2, in fractions of the canvas, float32 (B, 4)."""
    center, size = places.float().sigmoid().chunk(2, 1)
    return torch.cat([center - size / 2, center + size / 2], 1)


def _canvas(size: tuple[int, int], device: torch.device) -> Tensor:
    """Width, height, width, height."""
    canvas = torch.empty(4, device=device)
    canvas[0::2], canvas[1::2] = size[1], size[0]  # filled there: a copy would wait for the device
    return canvas


def build_box_regression(
    backbone: BackboneArguments,
    num_classes: int,
    arguments: BoxRegressionArguments = BoxRegressionArguments(),
    class_weights: Sequence[float] | None = None,
) -> BoxRegression:
    """One box and its class on any net's coarsest map.

    Raises:
        UserError: as `tasks.pyramid.create_pyramid`; an argument that makes no sense, by its key.
    """
    return BoxRegression(backbone.pyramid([backbone.strides()[-1]]), num_classes, arguments, class_weights)


FAMILY = Family(BoxRegressionArguments, build_box_regression)
