"""Keyed randomness between records and batches: samplers, the dataset, the loaders.

Nothing here imports Lightning or timm, so that a worker that is spawned starts quickly.
Every random choice is a function of ``(seed, stream, pass, position)``: a run has no hidden random state and resumes
bit for bit at any batch, with any number of workers and the same global batch on any number of ranks.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler

from datamodules.common.errors import UserError
from datamodules.decoding.images import read_image

Record = dict[str, Any]
#: What evaluation also keeps as it is in the original picture (``target``); see ``datamodules.base``.
ANNOTATIONS = ("mask", "boxes", "labels", "masks", "iscrowd", "area")
Key = tuple[int, int, int]
"""``(index, pass, position)`` of one draw; pass is -1 in evaluation, where nothing is random."""


def available_cores() -> int:
    """Cores that this process may use; where the system does not tell (macOS, Windows), all that there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def key_seed(seed: int, stream: str, *key: int) -> int:
    """A 32-bit seed that depends on the run's seed, the stream's name and the numbers of ``key``."""
    words = [seed & 0xFFFFFFFF, zlib.crc32(stream.encode()), *key]
    return int(np.random.SeedSequence(words).generate_state(1)[0])


def read_record(record: Record, channels: int, dtype: Literal["uint8", "float32"]) -> Record:
    """The record with its image decoded: (H, W, C) in original pixels; see ``decoding.images.read_image``."""
    return {**record, "image": read_image(record["image"], channels, dtype)}


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


class RecordDataset(Dataset[Record]):
    """Decodes and transforms one record a draw.

    Args:
        records: Plain records, see ``datamodules.readers``.
        read: Record -> sample: a dict with ``image`` (H, W, C) and the annotations, in original pixels.
        transform: ``(sample, seed | None) -> sample``; None as seed means evaluation.
        seed: The run's seed.
        stream: Name of the stream, part of every key.
    """

    def __init__(
        self,
        records: Sequence[Record],
        read: Callable[[Record], Record],
        transform: Callable[[Record, int | None], Record],
        *,
        seed: int = 0,
        stream: str = "train",
    ) -> None:
        self.records, self.read, self.transform = records, read, transform
        self.seed, self.stream = seed, stream

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: Key) -> Record:
        index, pass_, position = key
        record = self.records[index]
        seed = None if pass_ < 0 else key_seed(self.seed, self.stream, pass_, position)
        original = self.read(record)
        sample = {**self.transform(original, seed), "path": record["path"], "id": index}
        if seed is None and any(key in original for key in ANNOTATIONS):
            sample["target"] = {key: original[key] for key in ANNOTATIONS if key in original}
        return sample


def collate(samples: list[Record]) -> dict[str, Any]:
    """Stack samples into a batch (see ``datamodules.base``); images become a (B, C, H, W) view of B x H x W x C memory.

    Args:
        samples: What ``RecordDataset`` returns; ``image`` (H, W, C) of one size, ``geometry`` float32 (6,),
            ``label`` int or a list of K floats, ``weight`` float, ``mask`` (H, W) or, for several labels a pixel,
            (H, W, K), ``soft_mask`` (K, H, W), ``boxes`` (N, 4), ``labels`` (N,), ``iscrowd`` (N,), ``masks``
            (L, H, W), and in evaluation ``target`` (a dict of arrays) and ``tiles`` (T, 4).

    Raises:
        UserError: If the images differ in size, naming two of the files.
    """
    batch: dict[str, Any] = {"path": [s["path"] for s in samples], "id": torch.tensor([s["id"] for s in samples])}
    first = samples[0]["image"].shape
    for sample in samples:
        if sample["image"].shape != first:
            raise UserError(
                f"Images of different size in one batch: {samples[0]['path']} is {first}, {sample['path']} is"
                f" {sample['image'].shape} (height, width, channels). Set data.image_size."
            )
    batch["image"] = torch.from_numpy(np.stack([s["image"] for s in samples])).permute(0, 3, 1, 2)
    batch["geometry"] = torch.from_numpy(np.stack([s["geometry"] for s in samples]))
    if "label" in samples[0]:
        soft = isinstance(samples[0]["label"], list | tuple | np.ndarray)
        dtype = torch.float32 if soft else torch.int64
        batch["label"] = torch.from_numpy(np.asarray([s["label"] for s in samples])).to(dtype)
    if any("weight" in s for s in samples):
        batch["weight"] = torch.tensor([float(s.get("weight", 1.0)) for s in samples])
    if "mask" in samples[0]:
        mask = torch.from_numpy(np.stack([s["mask"] for s in samples]))
        batch["mask"] = mask if mask.ndim == 3 else mask.permute(0, 3, 1, 2)
    if "soft_mask" in samples[0]:
        batch["soft_mask"] = torch.from_numpy(np.stack([s["soft_mask"] for s in samples])).to(torch.float16)
    for key, fill, dtype in PADDED:
        if key in samples[0]:
            batch[key] = _padded([np.asarray(s[key]) for s in samples], fill, dtype)
    if "target" in samples[0]:
        batch["target"] = [
            {k: torch.from_numpy(np.ascontiguousarray(_layers_first(k, v))) for k, v in s["target"].items()}
            for s in samples
        ]
    if "tiles" in samples[0]:
        batch["tiles"] = [torch.from_numpy(s["tiles"]) for s in samples]
    return batch


#: Annotations whose number differs between images: what fills them up to the largest number, and their type.
PADDED = (
    ("boxes", 0, torch.float32),
    ("labels", -1, torch.int64),
    ("iscrowd", 0, torch.uint8),
    ("masks", 0, torch.int16),
)


def _padded(arrays: list[NDArray[Any]], fill: int, dtype: torch.dtype) -> torch.Tensor:
    most = max(len(a) for a in arrays)
    out = torch.full((len(arrays), most, *arrays[0].shape[1:]), fill, dtype=dtype)
    for row, array in zip(out, arrays, strict=True):
        row[: len(array)] = torch.from_numpy(array)
    return out


def _layers_first(key: str, array: NDArray[Any]) -> NDArray[Any]:
    """A mask of several labels, (H, W, K), as (K, H, W), like in a batch."""
    return np.moveaxis(array, 2, 0) if key == "mask" and array.ndim == 3 else array


def _init_worker(_: int) -> None:
    import cv2

    cv2.setNumThreads(0)  # one process a core already; OpenCV's own threads would fight over them
    torch.set_num_threads(1)


class Resumable:
    """The state that both loaders share: batches given out in this epoch, and where to continue after a resume.

    Lightning saves and restores it through ``state_dict`` (it does so for any loader that has both methods), and
    calls ``set_epoch`` on ``sampler`` before the first batch is asked for.
    """

    _done: int = 0
    _restored: tuple[int, int] | None = None

    def state_dict(self) -> dict[str, int]:
        """Epoch and number of batches given out in it."""
        return {"epoch": self._epoch(), "batches": self._done}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continue inside epoch ``state["epoch"]`` after ``state["batches"]`` batches."""
        self._restored = (state["epoch"], state["batches"])

    def _epoch(self) -> int:
        raise AssertionError("a loader says which epoch it is in")

    def _first_batch(self) -> int:
        restored, self._restored = self._restored, None
        self._done = restored[1] if restored is not None and restored[0] == self._epoch() else 0
        return self._done


class TrainLoader(Resumable, DataLoader[Record]):
    """A DataLoader over a ``TrainSampler`` that can continue inside an epoch."""

    batch_sampler: TrainSampler

    def _epoch(self) -> int:
        return self.batch_sampler.epoch

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        # A generator: nothing happens until the first batch is asked for, after Lightning has set the epoch.
        self.batch_sampler.start = self._first_batch()
        for batch in super().__iter__():
            self._done += 1
            yield batch


class TensorLoader(Resumable):
    """A whole small set as tensors in memory: batched indexing, batched augmentation, no workers.

    Args:
        batch: The whole set as one collated batch (images (N, C, H, W), labels, geometry, path, id).
        sampler: Order and batches.
        augment: Batched augmentation ``(uint8 (B, H, W, C), seed, place of the first in the batch of all ranks, images
            of that batch) -> the same``, or None.
        seed: The run's seed.
    """

    def __init__(
        self,
        batch: dict[str, Any],
        sampler: TrainSampler | EvalSampler,
        augment: Callable[[torch.Tensor, int, int, int], torch.Tensor] | None = None,
        seed: int = 0,
    ) -> None:
        self.batch_sampler, self.augment, self.seed = sampler, augment, seed
        self._images = batch["image"].permute(0, 2, 3, 1).contiguous()
        self._rest = {k: v for k, v in batch.items() if isinstance(v, torch.Tensor) and k != "image"}
        self._paths = np.asarray(batch["path"], dtype=object)

    def _epoch(self) -> int:
        return self.batch_sampler.epoch if isinstance(self.batch_sampler, TrainSampler) else 0

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        sampler = self.batch_sampler
        start = self._first_batch()
        if isinstance(sampler, TrainSampler):
            sampler.start = start
        for keys in sampler:
            index = torch.tensor([k[0] for k in keys])
            images = self._images[index]
            if isinstance(sampler, TrainSampler) and self.augment is not None:
                _, pass_, position = keys[0]
                place = sampler.rank * sampler.batch_size
                seed = key_seed(self.seed, "batch", pass_, position - place)  # of the batch of all ranks
                images = self.augment(images, seed, place, sampler.world_size * sampler.batch_size)
            self._done += 1
            yield {
                "image": images.permute(0, 3, 1, 2),
                **{k: v[index] for k, v in self._rest.items()},
                "path": self._paths[index.numpy()].tolist(),
            }


def make_loader(
    dataset: RecordDataset,
    sampler: TrainSampler | EvalSampler,
    *,
    num_workers: int,
    pin_memory: bool,
    timeout: float = 300.0,
) -> DataLoader[Record]:
    """A loader with this project's defaults: persistent workers, prefetch of 4, one OpenCV and torch thread a worker.

    Args:
        dataset: Records and their transform.
        sampler: A ``TrainSampler`` gives a loader that resumes inside an epoch.
        num_workers: 0 loads in the training process.
        pin_memory: For copies to a GPU that overlap with work.
        timeout: Seconds after which a worker that gives nothing is an error instead of an endless wait.
    """
    cls = TrainLoader if isinstance(sampler, TrainSampler) else DataLoader
    return cls(
        dataset,
        batch_sampler=sampler,
        collate_fn=collate,
        num_workers=num_workers,
        pin_memory=pin_memory,
        persistent_workers=num_workers > 0,
        prefetch_factor=4 if num_workers > 0 else None,
        timeout=timeout if num_workers > 0 else 0,
        worker_init_fn=_init_worker,
    )
