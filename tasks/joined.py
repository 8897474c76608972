"""One batch of a labeled and an unlabeled one, whatever their annotations."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from datamodules.common.batch import NO_LABEL
from tasks.hooks import Batch


def join_batches(first: Batch, second: Batch, num_classes: int | None) -> Batch:
    """One batch of two; keys that only one has are left out.

    Class numbers beside soft labels become one-hot, of images and of pixels; annotations of different number (boxes)
    are filled up to the longer, with zeros, or ``NO_LABEL`` for ``labels``.

    Args:
        first: A batch of B images.
        second: A batch of U images of the same size.
        num_classes: K, for one-hot labels.
    """
    joined: Batch = {}
    if ("soft_mask" in first) != ("soft_mask" in second):
        first, second = (_with_soft_mask(batch, int(num_classes or 0)) for batch in (first, second))
    for key in first:
        if key not in second:
            continue
        a, b = first[key], second[key]
        if isinstance(a, list):
            joined[key] = [*a, *b]
            continue
        if key == "label" and a.is_floating_point() != b.is_floating_point():
            a, b = (x if x.is_floating_point() else F.one_hot(x, int(num_classes or 0)).float() for x in (a, b))
        if a.is_floating_point() != b.is_floating_point():  # an augmented image beside one of bytes
            a, b = (x if x.is_floating_point() else x.float() / 255 for x in (a, b))
        if a.ndim > 1 and key in ("boxes", "labels", "iscrowd", "masks"):
            most = max(a.shape[1], b.shape[1])
            a, b = (_filled(x, most, NO_LABEL if key == "labels" else 0) for x in (a, b))
        joined[key] = torch.cat([a, b.to(a.dtype)])
    return joined


def _with_soft_mask(batch: Batch, num_classes: int) -> Batch:
    """A batch whose masks are soft: one-hot where they were not, and nothing at ignored pixels, which do not count."""
    if "soft_mask" in batch:
        return batch
    classes = torch.arange(num_classes, device=batch["mask"].device, dtype=batch["mask"].dtype).view(1, -1, 1, 1)
    return {**batch, "soft_mask": (batch["mask"].unsqueeze(1) == classes).to(torch.float16)}


def _filled(x: Tensor, most: int, value: int) -> Tensor:
    missing = x.new_full((len(x), most - x.shape[1], *x.shape[2:]), value)
    return torch.cat([x, missing], 1)
