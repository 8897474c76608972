"""One batch of a labeled and an unlabeled one, whatever their annotations."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from datamodules.common.batch import NO_LABEL, NO_OBJECT
from tasks.hooks import Batch

#: Annotations of which each image has another number, and what they are filled up with.
FILLS = {"boxes": 0, "labels": NO_LABEL, "iscrowd": 0, "masks": NO_OBJECT}


def join_batches(first: Batch, second: Batch, num_classes: int | None) -> Batch:
    """One batch of two; keys that only one has are left out.

    Class numbers beside soft labels become one-hot, of images and of pixels; annotations of different number (boxes)
    are filled up to the longer, with zeros, or ``NO_LABEL`` for ``labels``.

    Args:
        first: A batch of B images.
        second: A batch of U images of the same size.
        num_classes: K, for one-hot labels.
    """
    if ("soft_mask" in first) != ("soft_mask" in second):
        first, second = (_with_soft_mask(batch, int(num_classes or 0)) for batch in (first, second))
    shared = [key for key in first if key in second]
    return {key: _joined(key, first[key], second[key], int(num_classes or 0)) for key in shared}


def _joined(key: str, a: Any, b: Any, num_classes: int) -> Any:
    """The values of one key, one after the other: a list, or a tensor (B + U, ...) of the first one's dtype."""
    if isinstance(a, list):
        return [*a, *b]
    if key == "label" and a.is_floating_point() != b.is_floating_point():
        a, b = (_one_hot(x, num_classes) for x in (a, b))
    if a.is_floating_point() != b.is_floating_point():  # an augmented image beside one of bytes
        a, b = (x if x.is_floating_point() else x.float() / 255 for x in (a, b))
    if key in FILLS and a.ndim > 1:
        most = max(a.shape[1], b.shape[1])
        a, b = (_filled(x, most, FILLS[key]) for x in (a, b))
    return torch.cat([a, b.to(a.dtype)])


def _one_hot(label: Tensor, num_classes: int) -> Tensor:
    return label if label.is_floating_point() else F.one_hot(label, num_classes).float()


def _with_soft_mask(batch: Batch, num_classes: int) -> Batch:
    """A batch whose masks are soft: one-hot where they were not, and nothing at ignored pixels, which do not count."""
    if "soft_mask" in batch:
        return batch
    classes = torch.arange(num_classes, device=batch["mask"].device, dtype=batch["mask"].dtype).view(1, -1, 1, 1)
    return {**batch, "soft_mask": (batch["mask"].unsqueeze(1) == classes).to(torch.float16)}


def _filled(x: Tensor, most: int, value: int) -> Tensor:
    missing = x.new_full((len(x), most - x.shape[1], *x.shape[2:]), value)
    return torch.cat([x, missing], 1)
