"""What several teachers say together, of boxes and of pixels."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.ops import box_iou

from datamodules.common.errors import UserError
from pipelines.run.checkpoints import open_checkpoint
from pipelines.run.loading import Loaded

SAME_OBJECT = 0.55  # IoU, the paper's default
PIXEL_VIEW = ("image_size", "in_chans", "dtype", "resize", "interpolation", "tile", "tile_overlap")


def fused(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The boxes of several teachers for one image, fused: weighted boxes fusion.

    Solovyev et al. 2021, https://arxiv.org/abs/1910.13302. In the order of falling score each box joins the group of
    its class that it overlaps most, by an IoU of more than ``SAME_OBJECT`` with the group's box, or begins one. A
    group's box is the mean of its boxes weighted by their scores; its score is the mean of theirs, times the
    fraction of the teachers that found it.

    Args:
        entries: Of each teacher ``bbox`` (x, y, width, height, in pixels), ``labels``, ``scores`` and ``size``.

    Returns:
        The same of all, by falling score.
    """
    corners, scores, labels = _columns(entries)
    groups: list[_Group] = []
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        by_score = rows[np.argsort(-scores[rows], kind="stable")]
        for members in _groups(corners, scores, by_score):
            found_by = min(len(members), len(entries)) / len(entries)
            box = np.average(corners[members], axis=0, weights=scores[members])
            groups.append(_Group(float(scores[members].mean() * found_by), int(label), box.tolist()))
    groups.sort(key=lambda group: -group.score)
    return {
        "bbox": [group.bbox for group in groups],
        "scores": [group.score for group in groups],
        "labels": [group.label for group in groups],
        "size": entries[0]["size"],
    }


@dataclass(frozen=True)
class _Group:
    """One object: its box is x1, y1, x2, y2."""

    score: float
    label: int
    box: list[float]

    @property
    def bbox(self) -> list[float]:
        """x, y, width, height."""
        x1, y1, x2, y2 = self.box
        return [x1, y1, x2 - x1, y2 - y1]


def _columns(
    entries: Sequence[Mapping[str, Any]],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """The boxes of all teachers: corners (D, 4), scores (D,), labels (D,)."""
    bbox = np.array([box for entry in entries for box in entry["bbox"]], np.float64).reshape(-1, 4)
    scores = np.array([score for entry in entries for score in entry["scores"]], np.float64)
    labels = np.array([label for entry in entries for label in entry["labels"]], np.int64)
    return np.concatenate([bbox[:, :2], bbox[:, :2] + bbox[:, 2:]], axis=1), scores, labels


def _groups(corners: NDArray[np.float64], scores: NDArray[np.float64], order: NDArray[np.int64]) -> list[list[int]]:
    """Numbers of the boxes of each group; ``order`` are those of one class by falling score."""
    members: list[list[int]] = []
    boxes = np.zeros((0, 4))
    for i in order.tolist():
        overlaps = box_iou(torch.from_numpy(boxes), torch.from_numpy(corners[i][None])).flatten()
        if len(boxes) and float(overlaps.max()) > SAME_OBJECT:
            best = int(overlaps.argmax())
            members[best].append(i)
            boxes[best] = np.average(corners[members[best]], axis=0, weights=scores[members[best]])
        else:
            members.append([i])
            boxes = np.concatenate([boxes, corners[i][None]])
    return members


@contextlib.contextmanager
def averaged_scores(teachers: Sequence[Loaded]) -> Iterator[Loaded]:
    """The first teacher, whose scores of each pixel are the mean of all teachers' within.

    Raises:
        UserError: If the teachers see images in different ways, naming the key.
    """
    first, *others = teachers
    for other in others:
        for key in PIXEL_VIEW:
            mine, theirs = (getattr(teacher.data, key, None) for teacher in (first, other))
            if mine != theirs:
                raise UserError(
                    f"{other.checkpoint} has data.{key} {theirs}, but {first.checkpoint} has {mine}: masks of several"
                    " teachers are averaged pixel by pixel, so they need the same view of an image."
                )
        other.task.load_state_dict(open_checkpoint(other.checkpoint)["state_dict"])
        other.task.eval()
    scores = first.task.scores

    def mean(image: Tensor) -> Tensor:
        views = [scores(image), *(other.task.to(image.device).scores(image) for other in others)]
        return torch.stack(views).mean(0)

    if others:
        first.task.scores = mean
    try:
        yield first
    finally:
        first.task.scores = scores
