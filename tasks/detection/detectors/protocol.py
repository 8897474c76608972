"""What the task asks of a detector, whatever its family: `forward`, `losses` and `detect`, in pixels of the canvas.

A family is one file of the name that ``model.detector`` has. It defines its arguments, its network, a function that
builds it, and ``FAMILY``, which names them; the file's name is added to `tasks.detection.detectors.families.Name`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from tasks.detection.detectors.arguments import DetectorArguments
from tasks.detection.detectors.losses import batch_means, class_weight_tensor

Found = dict[str, Tensor]
"""One image's `boxes` float32 (n, 4), x1 y1 x2 y2; `scores` float32 (n,), descending; `labels` int64 (n,), 0..K-1; and
of some families `masks` float32 (n, m, m), probabilities on a grid that fills each box."""


@dataclass(frozen=True)
class Limits:
    """What `Detector.detect` keeps.

    Attributes:
        score_threshold: scores must be above it.
        nms_iou: of two boxes of a class that overlap more, the one of lower score is dropped.
        max_detections: boxes of an image at most.
    """

    score_threshold: float
    nms_iou: float
    max_detections: int


class Detector(nn.Module, ABC):
    """A network that finds objects, on normalized float images (B, C, H, W) of any size that the backbone takes.

    Attributes:
        backbone: the `Pyramid`; all other parameters are the head's.
        pretrained_cfg: timm's description of the backbone, for `tasks.backbones.normalization`.
        class_weights: float32 (K,), factors of the class loss where the class is the target; None for 1.
    """

    class_weights: Tensor | None

    def __init__(self, backbone: Any, num_classes: int, class_weights: Sequence[float] | None = None) -> None:
        """Start with the pyramid.

        Args:
            backbone: the `Pyramid`, or a backbone of its kind.
            num_classes: K, without background.
            class_weights: K factors, or None.

        Raises:
            UserError: another number of weights than of classes.
        """
        super().__init__()
        self.backbone = backbone
        self.pretrained_cfg = backbone.pretrained_cfg
        self.num_classes = num_classes
        self.register_buffer("class_weights", class_weight_tensor(class_weights, num_classes), persistent=False)

    @abstractmethod
    def forward(self, image: Tensor) -> Any:
        """The dense part (backbone, neck, heads), with static shapes, so that ``compile`` takes all of it."""

    @abstractmethod
    def image_losses(self, image: Tensor, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The terms of the loss by name, float32 (B,): each image's own, whatever else is in the batch.

        Args:
            image: float (B, C, H, W), normalized.
            targets: see `losses`.
        """

    def losses(self, image: Tensor, targets: Mapping[str, Tensor], weight: Tensor | None = None) -> dict[str, Tensor]:
        """`loss`, the sum of its terms, and the terms: means over the images of each image's own.

        Args:
            image: float (B, C, H, W), normalized.
            targets: `boxes` float32 (B, M, 4), x1 y1 x2 y2; `labels` int64 (B, M), 0..K-1, -1 where there is no box; M
                may be 0. `iscrowd` uint8 (B, M), optional: crowds are neither learned nor learned as background. For
                families with masks, `masks` int16 (B, L, H, W): the place in `boxes`, from 1, of each pixel's object, 0
                for none; objects of one layer do not overlap.
            weight: float (B,), scales each image's loss.
        """
        return batch_means(self.image_losses(image, targets), weight)

    @abstractmethod
    def detect(self, image: Tensor, limits: Limits) -> list[Found]:
        """What is found on each image, the best first; boxes are clipped to the canvas.

        Args:
            image: float (B, C, H, W), normalized.
            limits: what is kept.
        """


@dataclass(frozen=True)
class Family:
    """What a family's file offers.

    Attributes:
        arguments: the dataclass of its own arguments, ``model.detector_args``.
        build: makes its network from `BackboneArguments`, the number of classes, those arguments, and class weights or
            None.
        has_masks: whether it finds masks besides boxes, and needs them in the targets.
    """

    arguments: type[DetectorArguments]
    build: Callable[..., Detector]
    has_masks: bool = False
