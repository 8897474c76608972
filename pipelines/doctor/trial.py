"""A few real steps of a training, for its memory and its time; nothing is written."""

from __future__ import annotations

import contextlib
import io
import time
from dataclasses import dataclass, field
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from pipelines.advice import with_advice
from pipelines.batch_trial import settle_batch
from pipelines.callbacks.overview import Overview
from pipelines.callbacks.progress import duration
from pipelines.doctor.machine import gib
from pipelines.hardware import AveragedWeights, memory, most_used
from pipelines.preparation import check_training, prepare
from pipelines.trainer import Trainer
from tasks.hooks import TaskHooks

WARM, MEASURED = 5, 20  # batches; the first ones also fill the loaders' queues and choose kernels
VALIDATED = 5
LIMIT_SECONDS = 60.0  # then fewer batches will do


@dataclass
class Trial:
    """What a few steps have told.

    Attributes:
        overview: The block that a training prints first.
        setup_seconds: Reading the data and building the net.
        batch_size: Images of one batch.
        step_seconds: A batch, loading included, behind the warm-up.
        measured: Batches measured.
        train_batches: Batches of a whole epoch.
        val_seconds: A batch of validation.
        val_batches: Batches of a whole validation.
        epochs: Of the whole training, None where it is limited by steps.
        peak: Bytes at most, of the GPU or, on a CPU, of this process.
        limit: Bytes that there are.
        device: ``cuda`` or ``cpu``.
    """

    overview: str
    setup_seconds: float
    batch_size: int
    step_seconds: float
    measured: int
    train_batches: int
    val_seconds: float
    val_batches: int
    epochs: int | None
    peak: int
    limit: int
    device: str

    def lines(self) -> list[str]:
        """For people."""
        rate = self.batch_size / self.step_seconds
        epoch = self.train_batches * self.step_seconds + self.val_batches * self.val_seconds
        validation = f" and {self.val_batches:,} of validation" if self.val_batches else ""
        whole = f"; {self.epochs} epochs: about {duration(self.epochs * epoch)}" if self.epochs else ""
        where = "on the GPU" if self.device == "cuda" else "in this process, without those of loaders"
        return [
            f"data read and net built in {self.setup_seconds:.1f} s",
            f"{self.step_seconds:.3g} s a batch of {self.batch_size} with loading, {rate:,.3g} images/s"
            f" ({self.measured} batches measured)",
            f"an epoch: about {duration(epoch)} ({self.train_batches:,} batches{validation}){whole}."
            " Extrapolated from those few batches, on one device",
            f"memory: {gib(self.peak)} of {gib(self.limit)} at most {where}",
        ]


@dataclass
class _Stopwatch(Callback):
    """Takes the seconds of batches, once the device has done its work, and ends the training when it is enough."""

    train: list[float] = field(default_factory=list)
    val: list[float] = field(default_factory=list)
    last: float = 0.0

    def on_train_epoch_start(self, *args: Any) -> None:
        self.last = _now()

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        self._took(self.train)
        enough = len(self.train) >= WARM + MEASURED or sum(self.train) > LIMIT_SECONDS
        trainer.should_stop = trainer.should_stop or enough

    def on_validation_start(self, *args: Any) -> None:
        self.last = _now()

    def on_validation_batch_end(self, *args: Any) -> None:
        self._took(self.val)

    def on_validation_end(self, *args: Any) -> None:
        self.last = _now()

    def _took(self, seconds: list[float]) -> None:
        now = _now()
        seconds.append(now - self.last)
        self.last = now


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.monotonic()


def try_out(trainer: Trainer, model: TaskHooks, datamodule: pl.LightningDataModule) -> Trial:
    """Train and validate some batches on one device, as ``fit`` would, but without its files.

    Args:
        trainer: As configured; it cannot be used afterwards.
        model: The task; its weights are changed.
        datamodule: The data.

    Raises:
        UserError: If the training would be refused, or does not fit into the memory.
    """
    start = time.monotonic()
    prepare(trainer, model, datamodule, "fit", weights_follow=False)
    settle_batch(trainer, model, datamodule)
    check_training(trainer, model, datamodule)
    ready = time.monotonic() - start
    epochs = trainer.max_epochs if (trainer.max_epochs or -1) > 0 and trainer.max_steps < 0 else None
    train_batches = _part(trainer.limit_train_batches, datamodule.train_dataloader())
    val_batches = _part(trainer.limit_val_batches, datamodule.val_dataloader())
    watch = _Stopwatch()
    _shorten(trainer, watch, val_batches)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with contextlib.redirect_stdout(io.StringIO()) as overview, with_advice(trainer, datamodule):
        pl.Trainer.fit(trainer, model, datamodule=datamodule)
    device = trainer.strategy.root_device
    on_gpu = device.type == "cuda"
    return Trial(
        overview=overview.getvalue().rstrip(),
        setup_seconds=ready,
        batch_size=model.global_batch() // trainer.accumulate_grad_batches,
        step_seconds=_pace(watch.train),
        measured=len(watch.train) - _warm(watch.train),
        train_batches=train_batches,
        val_seconds=_pace(watch.val),
        val_batches=val_batches,
        epochs=epochs,
        peak=most_used(device),
        limit=torch.cuda.mem_get_info(device)[1] if on_gpu else memory()[0],
        device=device.type,
    )


def _part(limit: int | float, loader: Any) -> int:
    """Batches of an epoch, of which ``limit`` is a number or a part."""
    length = sum(map(len, loader)) if isinstance(loader, list) else 0 if loader is None else len(loader)
    return min(limit, length) if isinstance(limit, int) else int(length * limit)


def _shorten(trainer: Trainer, watch: Callback, val_batches: int) -> None:
    """Short validations, no least length, and nothing that writes."""
    trainer.callbacks[:] = [watch, *(c for c in trainer.callbacks if isinstance(c, AveragedWeights | Overview))]
    trainer.limit_val_batches = min(val_batches, VALIDATED)
    trainer.fit_loop.min_epochs, trainer.fit_loop.epoch_loop.min_steps = 0, None
    trainer.num_sanity_val_steps = 0


def _warm(seconds: list[float]) -> int:
    return min(WARM, len(seconds) // 2)


def _pace(seconds: list[float]) -> float:
    """The mean of what was measured behind the warm-up; 0 of nothing."""
    measured = seconds[_warm(seconds) :]
    return sum(measured) / max(1, len(measured))
