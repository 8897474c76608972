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

from datamodules.common import rle
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
    groups = _fused_groups(entries)
    return {
        "bbox": [group.bbox for group in groups],
        "scores": [group.score for group in groups],
        "labels": [group.label for group in groups],
        "size": entries[0]["size"],
    }


def fused_found(predictions: Sequence[Mapping[str, Any]], most: int) -> dict[str, Any]:
    """What several detectors predict for a batch, fused as by ``fused``.

    The mask of an object is where the mean of its masks, weighted by their scores, is above a half.

    Args:
        predictions: Of each detector ``boxes``, ``scores``, ``labels`` and where there are masks ``masks``, lists of
            one entry an image, as ``Detection.predict`` gives them.
        most: Objects of an image at most.

    Returns:
        The same of all, on the first one's device.
    """
    found: dict[str, list[Any]] = {key: [] for key in predictions[0]}
    for i, first in enumerate(predictions[0]["boxes"]):
        entries = [_entry(prediction, i) for prediction in predictions]
        groups = _fused_groups(entries)[:most]
        found["boxes"].append(first.new_tensor([group.box for group in groups]).reshape(-1, 4))
        found["scores"].append(first.new_tensor([group.score for group in groups]))
        found["labels"].append(torch.tensor([group.label for group in groups], dtype=torch.int64, device=first.device))
        if "masks" in found:
            scores = np.concatenate([np.asarray(entry["scores"]) for entry in entries])
            masks = [mask for prediction in predictions for mask in prediction["masks"][i]]
            found["masks"].append([_mean_mask(masks, scores, group.members) for group in groups])
    return found


def mean_thresholds(each: Sequence[Mapping[str, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """The mean of several detectors' ``best_thresholds``, where all have some; their F1 is the first's."""
    mean = {}
    for kind, best in each[0].items():
        if all(kind in other for other in each):
            per_class = np.mean([other[kind]["per_class"] for other in each], axis=0).tolist()
            mean[kind] = {**best, "per_class": per_class, "overall": float(np.mean([o[kind]["overall"] for o in each]))}
    return mean


def _entry(prediction: Mapping[str, Any], index: int) -> dict[str, Any]:
    """One image's boxes, as ``fused`` takes them."""
    boxes = prediction["boxes"][index].cpu().double()
    sides = torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1)
    scores, labels = (prediction[key][index].tolist() for key in ("scores", "labels"))
    return {"bbox": sides.tolist(), "scores": scores, "labels": labels}


def _mean_mask(masks: Sequence[Mapping[str, Any]], scores: NDArray[np.float64], members: list[int]) -> dict[str, Any]:
    """The mask of a group, run-length encoded; its members are numbers of masks and scores."""
    own = [masks[i] for i in members]
    if len(own) == 1:
        return dict(own[0])
    height, width = own[0]["size"]
    mean = np.average(rle.decoded(own, height, width), axis=0, weights=scores[members])
    return rle.of_masks(torch.from_numpy(mean > 0.5)[None])[0]


@dataclass(frozen=True)
class _Group:
    """One object: its box is x1, y1, x2, y2; ``members`` are the places of its boxes among those of all."""

    score: float
    label: int
    box: list[float]
    members: list[int]

    @property
    def bbox(self) -> list[float]:
        """x, y, width, height."""
        x1, y1, x2, y2 = self.box
        return [x1, y1, x2 - x1, y2 - y1]


def _fused_groups(entries: Sequence[Mapping[str, Any]]) -> list[_Group]:
    """The objects that several teachers find on one image, by falling score; see ``fused``."""
    corners, scores, labels = _columns(entries)
    groups: list[_Group] = []
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        by_score = rows[np.argsort(-scores[rows], kind="stable")]
        for members in _groups(corners, scores, by_score):
            found_by = min(len(members), len(entries)) / len(entries)
            box = np.average(corners[members], axis=0, weights=scores[members])
            groups.append(_Group(float(scores[members].mean() * found_by), int(label), box.tolist(), members))
    return sorted(groups, key=lambda group: -group.score)


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
