"""What the ranks saw of the images, brought together: one object a rank, gathered on rank 0 alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch.distributed as dist

from datamodules.common.errors import UserError
from tasks.detection.evaluation.matching import Ints
from tasks.detection.evaluation.objects import Objects

Result = TypeVar("Result")


@dataclass(frozen=True)
class Seen:
    """What one rank saw: the images' ids int64 (I,), detections, annotations."""

    images: Ints
    predicted: Objects
    true: Objects

    @staticmethod
    def join(parts: Sequence[Seen]) -> Seen:
        """All of them, in order."""
        images = np.concatenate([np.zeros(0, np.int64), *(part.images for part in parts)])
        predicted = Objects.join([part.predicted for part in parts])
        return Seen(images, predicted, Objects.join([part.true for part in parts]))

    def in_order(self) -> Seen:
        """In the order of the images' ids; objects name their image by its position in place of its id.

        Raises:
            UserError: If two images have the same id.
        """
        images, counts = np.unique(self.images, return_counts=True)
        if (counts > 1).any():
            raise UserError(
                f"Image id {images[counts > 1][0]} was evaluated {counts.max()} times, which would count it so often:"
                " give each image an id of its own, and use a sampler that does not repeat images."
            )
        return Seen(images, _by_position(self.predicted, images), _by_position(self.true, images))


def _by_position(objects: Objects, images: Ints) -> Objects:
    position = np.searchsorted(images, objects.image)
    return replace(objects, image=position).take(np.argsort(position, kind="stable"))


def on_rank_zero(work: Callable[[Sequence[Seen]], Result], part: Seen, *, sync: bool) -> Result:
    """`work` on the parts of all ranks, on rank 0; its result, or its error, on all.

    Gathered as one object a rank, which may be empty; to rank 0 alone, so that the others need no room for it.

    Args:
        work: What is done with the parts.
        part: This rank's.
        sync: Whether there are parts of other ranks to wait for.
    """
    if not (sync and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return work([part])
    first = dist.get_rank() == 0
    parts: list[Any] | None = [None] * dist.get_world_size() if first else None
    dist.gather_object(part, parts, dst=0)
    shared: list[Any] = [None, None]
    if parts is not None:
        try:
            shared[0] = work(parts)
        except Exception as error:  # without it, the others would wait for ever
            shared[1] = error
    dist.broadcast_object_list(shared, src=0)
    result, failure = shared
    if failure is not None:
        raise failure
    outcome: Result = result
    return outcome
