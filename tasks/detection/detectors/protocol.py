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
from tasks.detection.detectors.selection import Candidates, Found, Limits, Sources, best_boxes, found_in_tensors


class Detector(nn.Module, ABC):
    """A network that finds objects, on normalized float images (B, C, H, W) of any size that the backbone takes.

    Attributes:
        backbone: the `Pyramid`; all other parameters are the head's.
        pretrained_cfg: timm's description of the backbone, for `tasks.backbones.normalization`.
        class_weights: float32 (K,), factors of the class loss where the class is the target; None for 1.
        queries: whether sources are chosen anew for each image, so that their order says nothing.
    """

    class_weights: Tensor | None
    queries = False

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
    def candidates(self, dense: Any, size: tuple[int, int], limits: Limits) -> Candidates:
        """What may be found, before the suppression, in tensors of one shape for all images, so that it can be traced.

        Args:
            dense: what `forward` gives.
            size: height and width of the canvas.
            limits: what is kept behind it.
        """

    @abstractmethod
    def sources(self, image: Tensor, label: int, region: Tensor | None = None) -> Sources:
        """What makes the boxes of a class, always in the same order, so that a box's own source can be asked again.

        Args:
            image: float (B, C, H, W), normalized; of families of two stages one image, unless there is a region.
            label: the class.
            region: float32 (4,): where the second stage looks, in place of all that the first one proposes.
        """

    def detect(self, image: Tensor, limits: Limits) -> list[Found]:
        """What is found on each image, the best first; boxes are clipped to the canvas.

        Args:
            image: float (B, C, H, W), normalized.
            limits: what is kept.
        """
        size = (image.shape[2], image.shape[3])
        columns = self.candidates(self(image), size, limits)
        return [best_boxes(*of_image, size, limits) for of_image in zip(*columns, strict=True)]

    def in_tensors(self, image: Tensor, limits: Limits, suppress: bool = True) -> dict[str, Tensor]:
        """As `detect`, in tensors that can be traced for an export; `decoded_...` are the candidates.

        Args:
            image: float (B, C, H, W), normalized.
            limits: what is kept.
            suppress: whether duplicates are dropped; without it, what is found are the candidates.

        Returns:
            `boxes` float32 (B, n, 4); `scores` float32 (B, n), 0 where there is no box; `labels` int64 (B, n), -1 where
            there is none; of some families `masks`.
        """
        size = (image.shape[2], image.shape[3])
        return found_in_tensors(self.candidates(self(image), size, limits), size, limits, suppress, self.num_classes)


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
