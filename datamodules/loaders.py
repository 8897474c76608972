"""The data set and the loaders; randomness is keyed, see ``datamodules.samplers``.

Nothing here imports Lightning or timm, so that a worker that is spawned starts quickly.
"""

from __future__ import annotations

import atexit
import itertools
import os
import signal
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from datamodules.annotations.records import Record as Record  # handed on
from datamodules.collate import collate
from datamodules.common.batch import ANNOTATIONS
from datamodules.common.errors import examples
from datamodules.decoding.images import read_image
from datamodules.decoding.limits import limit_pixels, max_pixels
from datamodules.samplers import EvalSampler, Key, TrainSampler, key_seed

#: Begins the note of an error of a loader's process; the images that were waited for follow.
AWAITED = "images that were waited for: "


def available_cores() -> int:
    """Cores that this process may use; where the system does not tell (macOS, Windows), all that there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def read_record(record: Record, channels: int, dtype: Literal["uint8", "float32"]) -> Record:
    """The record with its image decoded: (H, W, C) in original pixels; see ``decoding.images.read_image``."""
    return {**record, "image": read_image(record["image"], channels, dtype)}


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
        if seed is None:
            target = {key: original[key] for key in ANNOTATIONS if key in original}
            if target:
                sample["target"] = target
        return sample


def _end_at_the_second(number: int, frame: Any) -> None:
    """Ignore a SIGTERM that the whole job got; the next one is the training process's, which ends its workers by it."""
    signal.signal(number, signal.SIG_DFL)


def _init_worker(_: int, most_pixels: int) -> None:
    import cv2

    limit_pixels(most_pixels)
    # Ctrl-C, and what a cluster sends to the whole job, reach all: the training process saves, then ends these.
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end_at_the_second)
    cv2.setNumThreads(0)  # one process a core already; OpenCV's own threads would fight over them
    torch.set_num_threads(1)


_with_workers: weakref.WeakSet[DataLoader[Any]] = weakref.WeakSet()


@atexit.register
def _end_workers() -> None:
    """End workers that are left at exit, where multiprocessing sends them one SIGTERM and waits for them.

    They do not end by one, see ``_init_worker``.
    """
    for loader in list(_with_workers):
        if loader._iterator is not None:
            loader._iterator._shutdown_workers()  # type: ignore[attr-defined]


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


class EvalLoader(DataLoader[Record]):
    """A DataLoader whose errors of its processes name the images that were waited for."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        return _naming(super().__iter__(), self, 0)


def _naming(batches: Iterator[Any], loader: DataLoader[Record], first: int) -> Iterator[Any]:
    """The batches; where a loader process hangs or is killed, the error gets a note with the images of the batch."""
    number = first
    while True:
        try:
            batch = next(batches, None)
        except (RuntimeError, ConnectionError) as error:
            # Of a process that hangs or was killed: torch's own, or that of a batch which it was just handing over.
            if str(error).startswith("DataLoader ") or isinstance(error, ConnectionError):
                error.add_note(f"{AWAITED}{_paths_of(loader, number)}")
            raise
        if batch is None:
            return
        number += 1
        yield batch


def _paths_of(loader: DataLoader[Record], number: int) -> str:
    """The images of a batch, by its place in the order, which can be asked for again."""
    dataset, sampler = loader.dataset, loader.batch_sampler
    keys = next(itertools.islice(iter(sampler or ()), number, None), [])
    records = dataset.records if isinstance(dataset, RecordDataset) else []
    return examples([records[key[0]]["path"] for key in keys if isinstance(key, tuple) and records])


class TrainLoader(Resumable, DataLoader[Record]):
    """A DataLoader over a ``TrainSampler`` that can continue inside an epoch."""

    batch_sampler: TrainSampler

    def _epoch(self) -> int:
        return self.batch_sampler.epoch

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        # A generator: nothing happens until the first batch is asked for, after Lightning has set the epoch.
        self.batch_sampler.start = first = self._first_batch()
        for batch in _naming(super().__iter__(), self, first):
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
    cls = TrainLoader if isinstance(sampler, TrainSampler) else EvalLoader
    loader = cls(
        dataset,
        batch_sampler=sampler,
        collate_fn=collate,
        num_workers=num_workers,
        pin_memory=pin_memory,
        persistent_workers=num_workers > 0,
        prefetch_factor=4 if num_workers > 0 else None,
        timeout=timeout if num_workers > 0 else 0,
        worker_init_fn=partial(_init_worker, most_pixels=max_pixels()),
    )
    if num_workers > 0:
        _with_workers.add(loader)
    return loader


def empty_batch(dataset: RecordDataset) -> Any:
    """One batch of no images, for a rank that gets none; its keys are those of the data set's first sample.

    Without a batch Lightning leaves the epoch out on that rank, and the others wait for it in ``compute`` for ever
    (``skip`` in https://github.com/Lightning-AI/pytorch-lightning/blob/master/src/lightning/pytorch/loops/evaluation_loop.py).
    """
    batch = {key: value[:0] for key, value in collate([dataset[0, -1, 0]]).items()}
    return DataLoader([batch], batch_size=None)  # type: ignore[arg-type]
