"""A batch's annotations as the detectors read them: objects to learn, and crowds to leave alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from tasks.detection.detectors.assign import centers_inside


class Truth(NamedTuple):
    """A batch's annotations; M at least 1.

    Attributes:
        boxes: float32 (B, M, 4), x1 y1 x2 y2 in canvas pixels.
        labels: int64 (B, M), 0..K-1, -1 where there is no box.
        learned: bool (B, M), boxes with an area that are no crowds.
        crowds: float32 (B, M, 4), the crowds' boxes, zeros elsewhere.
    """

    boxes: Tensor
    labels: Tensor
    learned: Tensor
    crowds: Tensor

    def boxes_at(self, place: Tensor) -> Tensor:
        """The boxes of these places: int64 (B, A), at least 0, to float32 (B, A, 4)."""
        return self.boxes.gather(1, place.unsqueeze(2).expand(-1, -1, 4))

    def labels_at(self, place: Tensor) -> Tensor:
        """The labels of these places: int64 (B, A), at least 0, to int64 (B, A)."""
        return self.labels.gather(1, place)


def read_targets(targets: Mapping[str, Tensor]) -> Truth:
    """The batch's `boxes`, `labels` and optional `iscrowd`; a row that is no box is added where M is 0."""
    boxes, labels = targets["boxes"].float(), targets["labels"]
    crowd = targets.get("iscrowd", torch.zeros_like(labels)).bool()
    if not labels.shape[1]:
        boxes, labels = boxes.new_zeros(len(boxes), 1, 4), labels.new_full((len(labels), 1), -1)
        crowd = torch.zeros_like(labels, dtype=torch.bool)
    has_area = (boxes[..., 2:] > boxes[..., :2]).all(-1)
    sound = (labels >= 0) & has_area
    return Truth(boxes, labels, sound & ~crowd, boxes * (sound & crowd).unsqueeze(-1))


def in_crowd(points: Tensor, crowds: Tensor) -> Tensor:
    """Whether points lie in crowds' boxes: float (A, 2) and (M, 4) to bool (A,)."""
    return centers_inside(points, crowds.unsqueeze(0))[0].any(0)
