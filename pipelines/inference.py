"""From pictures to predictions without a Trainer: what the Python API, exports and their checks share.

    predictor = load_predictor("best.ckpt")
    batch = predictor.batch([{"image": "a.jpg", "path": "a.jpg"}])  # the network's input, as `test` makes it
    predictions = predictor.predict(batch)  # the task's, in original pixels

Reading, resizing and tiles are the datamodule's, and what is decided of the network's output the task's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, islice
from pathlib import Path
from typing import Any, TypeAlias

import torch

from datamodules.base import DataModule
from datamodules.collate import collate
from datamodules.common.batch import Sample
from datamodules.common.errors import UserError
from datamodules.decoding.limits import limit_pixels
from datamodules.loaders import Record, RecordDataset, available_cores
from pipelines.ensemble import Ensemble, joined
from pipelines.hardware import Precision, resolve_precision
from pipelines.run.loading import load, load_weights, read_carried
from tasks.base import Task

Batch: TypeAlias = dict[str, Any]
MOST_READERS = 8  # threads


@dataclass(frozen=True)
class Predictor:
    """A task with its weights on a device, and the data that says how it sees pictures.

    Attributes:
        task: In evaluation mode.
        data: Not set up: no data set is needed.
        device: Where the task is.
        precision: What it computes in, as in a Trainer.
    """

    task: Task | Ensemble
    data: DataModule
    device: torch.device
    precision: str

    @cached_property
    def _dataset(self) -> RecordDataset:
        """What reads and transforms a record of its own list, which stays empty here."""
        return RecordDataset([], self.data.make_reader(), self.data.make_transform(train=False))

    def sample(self, record: Record, number: int = 0) -> Sample:
        """A picture as ``test`` and ``predict`` see it: decoded, resized and, where the data has tiles, cut into them.

        Args:
            record: ``image``, a file or an array (H, W, C), and ``path``, its name; annotations become ``target``.
            number: The sample's ``id``.

        Returns:
            ``image`` (h, w, C), ``geometry`` float32 (6,), ``path``, ``id``, and with tiles ``tiles`` int64 (T, 4).

        Raises:
            UserError: If the picture cannot be read, naming it.
        """
        dataset = self._dataset
        one = RecordDataset([record], dataset.read, dataset.transform)
        return {**one[0, -1, 0], "id": number}

    def batch(self, records: Sequence[Record], first: int = 0) -> Batch:
        """The input of ``predict``, see ``datamodules.common.batch``; on the CPU.

        Args:
            records: As for ``sample``; together they must come out in one size.
            first: Number of the first.

        Raises:
            UserError: If a picture cannot be read, or sizes differ, naming it.
        """
        limit_pixels(self.data.max_pixels)
        return collate([self.sample(record, first + i) for i, record in enumerate(records)])

    def batches(
        self, records: Iterable[Record], batch_size: int | None = None, *, ahead: bool = True
    ) -> Iterator[Batch]:
        """Batches of pictures in their order, read in threads.

        With ``data.resize: native`` neighbors of one size share a batch.

        Args:
            records: As for ``sample``; taken as they are needed.
            batch_size: Pictures a batch; that of ``test`` and ``predict`` by default.
            ahead: Read a batch while the one before is in use.
        """
        limit_pixels(self.data.max_pixels)  # again: another datamodule may have been made since
        size = batch_size or self.data.eval_batch
        waiting: list[Future[Sample]] = []
        numbered = enumerate(records)
        with ThreadPoolExecutor(min(MOST_READERS, available_cores(), size), "pictures") as pool:
            while chunk := list(islice(numbered, size)):
                reading = [pool.submit(self.sample, record, number) for number, record in chunk]
                if not ahead:
                    yield from _collated(reading)
                    continue
                yield from _collated(waiting)
                waiting = reading
            yield from _collated(waiting)

    @torch.inference_mode()
    def predict(self, batch: Batch) -> dict[str, Any]:
        """What the task predicts, in original pixels; tensors on the CPU. See the task's ``predict``.

        Args:
            batch: As ``batch`` makes it.
        """
        moved = {key: value.to(self.device) if torch.is_tensor(value) else value for key, value in batch.items()}
        with self.computing():
            return {key: _on_cpu(value) for key, value in self.task.predict(moved).items()}

    def computing(self) -> contextlib.AbstractContextManager[Any]:
        """What a Trainer of this precision wraps around a step."""
        if self.precision == "32-true":
            return contextlib.nullcontext()
        half = self.precision == "16-mixed" and self.device.type != "cpu"  # as Lightning: bf16 on a CPU
        return torch.autocast(self.device.type, torch.float16 if half else torch.bfloat16)


def load_predictor(
    checkpoints: str | Path | Sequence[str | Path],
    *,
    device: str | torch.device = "auto",
    precision: Precision | None = None,
    trust: Sequence[str] = (),
    changes: Sequence[tuple[str, Any]] = (),
) -> Predictor:
    """Load a checkpoint's task with its weights; no data set is read.

    Args:
        checkpoints: The file; several are joined, see ``pipelines.ensemble.Ensemble``.
        device: ``auto`` is the GPU where there is one; or as torch calls it, ``cpu``, ``cuda:1``.
        precision: That of the training by default, as for ``test``; ``auto`` is bf16 on a GPU that has it.
        trust: Packages of the user's own whose classes the checkpoint may name.
        changes: Arguments that differ from the checkpoint's: ``("data.tile", 512)``.

    Raises:
        UserError: If there is no such file or device, the file is damaged or does not say what it was trained with, or
            several do not go together.
    """
    place = device_of(device)
    files = [checkpoints] if isinstance(checkpoints, str | Path) else list(checkpoints)
    if missing := next((file for file in files if not Path(file).is_file()), None):
        raise UserError(f"{missing} does not exist (looked in {Path.cwd()}). Give a run's checkpoints/best.ckpt.")
    loaded = joined([load(file, trust=trust, changes=changes) for file in files])
    task: Task | Ensemble = loaded.task
    data = loaded.data
    if data.class_names is not None:
        task.resolve(data.spec(), str(loaded.checkpoint))
    if isinstance(task, Ensemble):
        task.configure_model()
    else:
        load_weights(task, loaded.checkpoint)
    asked: Any = precision or read_carried(loaded.checkpoint).precision or "auto"
    return Predictor(task.to(place).eval(), data, place, resolve_precision(asked, place.type))


def device_of(name: str | torch.device) -> torch.device:
    """The device of a name; ``auto`` is the GPU where there is one.

    Raises:
        UserError: If there is none of that name.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch without CUDA
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"device is '{name}', which cannot be used here ({reason}). Give auto, cpu or cuda.") from error
    return device


def _collated(reading: Sequence[Future[Sample]]) -> Iterator[Batch]:
    samples = [one.result() for one in reading]
    for _, same in groupby(samples, lambda sample: sample["image"].shape):
        yield collate(list(same))


def _on_cpu(value: Any) -> Any:
    """A tensor, or a list of one entry an image, on the CPU."""
    if isinstance(value, list):
        return [_on_cpu(one) for one in value]
    return value.cpu() if torch.is_tensor(value) else value
