"""Task-aligned assignment (TOOD, Feng et al. 2021, https://arxiv.org/abs/2108.07755, section 3.2), for whole batches.

The locations that learn an object are those whose own prediction is already best for it, in class and in box together:
t = s^alpha * u^beta, with s the predicted score of the object's class and u the IoU of the predicted and the true box.
Each object takes the `topk` locations of largest t among those inside it. A location that several objects take goes to
the one that its predicted box overlaps most. The target of the class score is t, scaled in each object so that its
largest value is the largest u there; so high scores mean good boxes, and one location an object stands out.

Where the paper is silent:

- t is compared as its logarithm, which does not underflow while scores and overlaps are still tiny.
- Equal values go to the location, or to the object, with the lower number; so the result is the same on all devices.
- A box that is narrower than a cell of the finest grid may hold no center of a cell. For this test it counts as wide as
  one cell, so that an object on the canvas always has a location.

Everything has static shapes and nothing waits for the device. Memory grows with B * M * A.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

_LEAST_IOU = 1e-9  # keeps the logarithm finite


class Assignment(NamedTuple):
    """What each location learns.

    Attributes:
        place: int64 (B, A), the object's place 0..M-1, or -1 for background.
        score: float32 (B, A), the target of that object's class score, 0..1; 0 for background.
    """

    place: Tensor
    score: Tensor


def centers_inside(points: Tensor, boxes: Tensor, least_side: float = 0.0) -> Tensor:
    """Which locations lie in which boxes, borders at the left and the top included.

    Args:
        points: float32 (A, 2), x y in pixels.
        boxes: float32 (B, M, 4), x1 y1 x2 y2 in pixels.
        least_side: Shorter sides count as this long, around the same middle.

    Returns:
        bool (B, M, A).
    """
    middle = (boxes[..., :2] + boxes[..., 2:]) / 2
    half = ((boxes[..., 2:] - boxes[..., :2]).clamp(min=least_side) / 2).unsqueeze(-1)
    away_x = points[:, 0] - middle[..., 0, None]
    away_y = points[:, 1] - middle[..., 1, None]
    half_x, half_y = half.unbind(2)
    return (away_x >= -half_x) & (away_x < half_x) & (away_y >= -half_y) & (away_y < half_y)


def pairwise_iou(first: Tensor, second: Tensor) -> Tensor:
    """IoU of boxes (B, M, 4) with boxes (B, A, 4) as (B, M, A); torchvision's `box_iou` takes no batches.

    Boxes without area have an IoU of 0 with everything.
    """
    x1, y1, x2, y2 = first.unsqueeze(2).unbind(-1)
    u1, v1, u2, v2 = second.unsqueeze(1).unbind(-1)
    width = (torch.minimum(x2, u2) - torch.maximum(x1, u1)).clamp(min=0)
    height = (torch.minimum(y2, v2) - torch.maximum(y1, v1)).clamp(min=0)
    shared = width * height
    union = (x2 - x1) * (y2 - y1) + (u2 - u1) * (v2 - v1) - shared
    return shared / union.clamp(min=torch.finfo(union.dtype).tiny)


def _largest(values: Tensor, count: int) -> Tensor:
    """Where the `count` largest finite values of the last axis are; of equal ones the first. -inf is never taken."""
    count = min(count, values.shape[-1])
    threshold = values.topk(count, -1).values[..., -1:]
    above = values > threshold
    equal = (values == threshold) & (values > -torch.inf)
    left = count - above.sum(-1, keepdim=True, dtype=torch.int32)
    return above | (equal & (equal.cumsum(-1, dtype=torch.int32) <= left))


@torch.no_grad()
def task_aligned_assignment(
    logits: Tensor,
    boxes: Tensor,
    points: Tensor,
    true_boxes: Tensor,
    true_labels: Tensor,
    *,
    topk: int,
    alpha: float,
    beta: float,
    least_side: float,
) -> Assignment:
    """Assign objects to locations, from the current predictions; see the module's docstring.

    Args:
        logits: float (B, A, K), class logits of each location.
        boxes: float32 (B, A, 4), predicted boxes, x1 y1 x2 y2 in pixels.
        points: float32 (A, 2), the locations' centers, x y in pixels.
        true_boxes: float32 (B, M, 4), M at least 1.
        true_labels: int64 (B, M), 0..K-1, or -1 where there is no object.
        topk: Locations an object takes.
        alpha: Exponent of the score.
        beta: Exponent of the IoU.
        least_side: Side of a cell of the finest grid in pixels.
    """
    candidate = centers_inside(points, true_boxes, least_side) & (true_labels >= 0).unsqueeze(-1)  # (B, M, A)
    overlap = pairwise_iou(true_boxes, boxes).clamp(min=_LEAST_IOU)
    of_class = true_labels.clamp(min=0).unsqueeze(-1).expand(-1, -1, logits.shape[1])
    score = F.logsigmoid(logits.float().transpose(1, 2).gather(1, of_class))
    alignment = (alpha * score + beta * overlap.log()).masked_fill(~candidate, -torch.inf)
    chosen = _largest(alignment, topk)
    # One object a location: the one it overlaps most (argmax gives the first of equals).
    index = overlap.masked_fill(~chosen, -1).argmax(1)  # (B, A)
    positive = chosen.any(1)
    numbers = torch.arange(true_boxes.shape[1], device=index.device)
    chosen &= numbers[:, None] == index.unsqueeze(1)
    best = alignment.masked_fill(~chosen, -torch.inf).amax(-1, keepdim=True).nan_to_num(neginf=0.0)
    best_overlap = overlap.masked_fill(~chosen, 0).amax(-1, keepdim=True)
    target = ((alignment - best).exp() * best_overlap).masked_fill(~chosen, 0)
    return Assignment(index.masked_fill(~positive, -1), target.sum(1))
