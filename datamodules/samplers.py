"""Which sample is drawn when: every random choice is a function of ``(seed, stream, pass, position)``.

So a run has no hidden random state: it resumes bit for bit at any batch, with any number of workers, and sees the same
global batch on any number of ranks. Nothing here imports Lightning or timm, so that a spawned worker starts quickly.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from datamodules.common.errors import UserError

LEAST_STEPS, LEAST_BATCH = 8, 4

Key = tuple[int, int, int]
"""``(index, pass, position)`` of one draw; pass is -1 in evaluation, where nothing is random."""


def key_seed(seed: int, stream: str, *key: int) -> int:
    """A 32-bit seed that depends on the run's seed, the stream's name and the numbers of ``key``."""
    words = [seed & 0xFFFFFFFF, zlib.crc32(stream.encode()), *key]
    return int(np.random.SeedSequence(words).generate_state(1)[0])


def choose_batch(most: int, images: int) -> int:
    """The batch size for ``images`` images a device: ``most``, halved (to 4) while an epoch has fewer than 8 steps.

    Measured on 16 pictures (docs/recipes.md): batches of 4 in place of 8 are worth 5 points of mean IoU in the same
    time. Batch norm needs a few images.
    """
    batch = most
    while batch > LEAST_BATCH and images < LEAST_STEPS * batch:
        batch //= 2
    return max(1, min(batch, images))


class TrainSampler(Sampler[list[Key]]):
    """Batches of ``(index, pass, position)`` for one rank; the order is a function of seed, stream and pass.

    A global batch is ``batch_size * world_size`` consecutive positions; rank r takes the r-th part of it, so that the
    union over ranks is the batch that one process would have drawn. An incomplete last batch is dropped.

    Args:
        num_samples: Number of samples in the data set.
        batch_size: Samples a rank and step.
        weights: One weight a sample, to draw with replacement (class balancing); None draws each sample once a pass.
        seed: The run's seed.
        stream: Name of the stream; two streams of one run are independent.
        rank: This process's number among ``world_size``.
        world_size: Number of processes.
        same_pass: Each epoch repeats the first pass, order and augmentation: to overfit a few batches on purpose.

    Raises:
        UserError: If the data set is smaller than one global batch.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        *,
        weights: Sequence[float] | None = None,
        seed: int = 0,
        stream: str = "train",
        rank: int = 0,
        world_size: int = 1,
        same_pass: bool = False,
    ) -> None:
        self.num_samples, self.batch_size, self.seed, self.stream = num_samples, batch_size, seed, stream
        self.same_pass = same_pass
        self.rank, self.world_size = rank, world_size
        self.weights = None if weights is None else np.asarray(weights, np.float64) / np.sum(weights)
        self.epoch = 0
        self.start = 0
        if len(self) == 0:
            raise UserError(
                f"data.batch_size is {batch_size}{f' on {world_size} devices' if world_size > 1 else ''}, but the"
                f" training set has only {num_samples} images. Set it to at most {max(1, num_samples // world_size)}."
            )

    def set_epoch(self, epoch: int) -> None:
        """Choose the pass; Lightning calls this before each epoch."""
        self.epoch = epoch

    @property
    def sampler(self) -> TrainSampler:
        """Itself: Lightning looks for ``set_epoch`` on a loader's ``batch_sampler.sampler``."""
        return self

    def order(self, pass_: int) -> NDArray[np.int64]:
        """The whole order of a pass, over all ranks: int64 (num_samples,)."""
        rng = np.random.default_rng(key_seed(self.seed, self.stream, pass_))
        if self.weights is not None:
            return rng.choice(self.num_samples, self.num_samples, p=self.weights)
        return rng.permutation(self.num_samples)

    def __len__(self) -> int:
        return self.num_samples // (self.batch_size * self.world_size)

    def __iter__(self) -> Iterator[list[Key]]:
        pass_ = 0 if self.same_pass else self.epoch
        order, start = self.order(pass_), self.start
        self.start = 0
        for batch in range(start, len(self)):
            first = (batch * self.world_size + self.rank) * self.batch_size
            yield [(int(order[p]), pass_, p) for p in range(first, first + self.batch_size)]


class EvalSampler(Sampler[list[Key]]):
    """Every sample exactly once over all ranks, in order, without padding: rank r takes samples r, r + world, ...

    A padded sampler (torch's DistributedSampler) counts some samples twice: metrics then differ from one process's.
    """

    def __init__(self, num_samples: int, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        self.indices = range(rank, num_samples, world_size)
        self.batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self.indices) // self.batch_size)

    def __iter__(self) -> Iterator[list[Key]]:
        for first in range(0, len(self.indices), self.batch_size):
            yield [(i, -1, i) for i in self.indices[first : first + self.batch_size]]
