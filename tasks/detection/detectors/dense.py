"""What RetinaNet and FCOS share: one prediction an anchor on a feature pyramid, learned with the focal loss."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tasks.detection.detectors.anchors import centers_of, grid_anchors
from tasks.detection.detectors.arguments import DetectorArguments
from tasks.detection.detectors.fpn import FPN
from tasks.detection.detectors.losses import by_foreground, focal_loss
from tasks.detection.detectors.protocol import Detector
from tasks.detection.detectors.selection import Candidates, Limits, Sources, dense_candidates
from tasks.detection.detectors.targets import Truth, in_crowd, read_targets
from tasks.pyramid import Pyramid

BACKGROUND, IGNORED = -1, -2  # in place of the box that an anchor learns


@dataclass(frozen=True, kw_only=True)
class DenseArguments(DetectorArguments):
    """Arguments that both families have.

    Attributes:
        strides: of the backbone's maps; None for 8, 16 and 32, or the nearest that the net has. Two coarser follow.
        head_channels: width of FPN and heads.
        head_depth: convolutions of each head, each with GroupNorm.
        focal_alpha: weight of the positive side in the focal loss.
        focal_gamma: its exponent.
    """

    strides: Sequence[int] | None = None
    head_channels: int = 256
    head_depth: int = 4
    focal_alpha: float = 0.25
    focal_gamma: float = 2.0


class DenseDetector(Detector):
    """A detector whose `forward` gives torchvision's dictionary; see there.

    A subclass says which box each anchor learns, what a box's loss is, and how it is decoded.
    """

    shapes: Tensor

    def __init__(
        self,
        backbone: Pyramid,
        fpn: FPN,
        shapes: Tensor,
        num_classes: int,
        arguments: DenseArguments,
        class_weights: Sequence[float] | None,
    ) -> None:
        """Start with the pyramid and the anchors' shapes; a subclass adds its heads."""
        super().__init__(backbone, num_classes, class_weights)
        self.fpn = fpn
        self.alpha, self.gamma = arguments.focal_alpha, arguments.focal_gamma
        self.register_buffer("shapes", shapes, persistent=False)

    @abstractmethod
    def heads(self, maps: list[Tensor]) -> dict[str, Tensor]:
        """`cls_logits` (B, A, K) and `bbox_regression` (B, A, 4) of A anchors of all maps, and more."""

    @abstractmethod
    def match(self, truth: Truth, levels: list[Tensor]) -> Tensor:
        """Which box each anchor learns: int64 (B, A), its place, or `BACKGROUND` or `IGNORED`.

        Args:
            truth: the annotations.
            levels: for each map its anchors, float32 (A_i, 4), A in all.
        """

    @abstractmethod
    def anchor_losses(self, dense: Mapping[str, Any], boxes: Tensor, anchors: Tensor) -> dict[str, Tensor]:
        """Each anchor's losses but that of its class, by name, (B, A); those of the background are not used.

        Args:
            dense: what `forward` gives.
            boxes: float32 (B, A, 4), the box that each anchor learns; for background the anchor itself.
            anchors: float32 (A, 4).
        """

    @abstractmethod
    def scores(self, dense: Mapping[str, Any]) -> Tensor:
        """Scores in 0..1, float32 (B, A, K)."""

    @abstractmethod
    def decode(self, offsets: Tensor, anchors: Tensor) -> Tensor:
        """`bbox_regression` float32 (..., 4) of anchors (..., 4) to boxes (..., 4)."""

    def forward(self, image: Tensor) -> dict[str, Any]:
        """The dense part: what `heads` gives, and `sizes`, the maps' heights and widths."""
        maps = self.fpn(self.backbone(image))
        return {**self.heads(maps), "sizes": [(x.shape[2], x.shape[3]) for x in maps]}

    def image_losses(self, image: Tensor, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`class_loss`, and what `anchor_losses` gives, each divided by the image's number of foreground anchors."""
        dense, truth = self(image), read_targets(targets)
        levels = grid_anchors(dense["sizes"], self.fpn.strides, self.shapes)
        anchors = torch.cat(levels)
        inside = torch.stack([in_crowd(centers_of(anchors), crowds) for crowds in truth.crowds])
        place = self.match(truth, levels)
        place = torch.where((place == BACKGROUND) & inside, IGNORED, place)
        foreground, row = place >= 0, place.clamp(min=0)
        class_loss = focal_loss(
            dense["cls_logits"].float(),
            truth.labels_at(row),
            foreground,
            place == IGNORED,
            alpha=self.alpha,
            gamma=self.gamma,
            class_weights=self.class_weights,
        )
        # Background gets its anchor for a box, so that nothing is infinite where the loss is then set to 0.
        boxes = torch.where(foreground.unsqueeze(2), truth.boxes_at(row), anchors)
        losses = {"class_loss": class_loss}
        for name, loss in self.anchor_losses(dense, boxes, anchors).items():
            losses[name] = by_foreground(loss.masked_fill(~foreground, 0), foreground)
        return losses

    def candidates(self, dense: Mapping[str, Any], size: tuple[int, int], limits: Limits) -> Candidates:
        """As every detector; of each map the best candidates are decoded."""
        anchors = grid_anchors(dense["sizes"], self.fpn.strides, self.shapes)
        return dense_candidates(self.scores(dense), dense["bbox_regression"].float(), anchors, self.decode, limits)

    def sources(self, image: Tensor, label: int, region: Tensor | None = None) -> Sources:
        """As every detector: the anchors."""
        dense = self(image)
        anchors = torch.cat(grid_anchors(dense["sizes"], self.fpn.strides, self.shapes))
        boxes = self.decode(dense["bbox_regression"].float(), anchors)
        return Sources(boxes, dense["cls_logits"][..., label].float(), self.scores(dense)[..., label])
