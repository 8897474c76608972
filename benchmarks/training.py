"""The peers of the training benchmarks: our Trainer and task, a bare PyTorch loop, a usual Lightning script.

All take the same datamodule, and with it the same loader and batches, the same network and the same optimizer.
"""

from __future__ import annotations

import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from benchmarks.common import Marks, quiet
from datamodules import ClassificationData
from datamodules.base import DataModule
from pipelines.run.tracking import Wandb
from pipelines.trainer import Trainer
from tasks import Classification
from tasks.base import Task
from tasks.hooks import Batch
from tasks.optimizers import build_optimizer

Made = str | Callable[[], Task]
"""A backbone, for the classification task with its defaults; or what makes another task."""


class Marked(DataModule):
    """Mixed into a datamodule: its training loader is built once and notes the clock at two of its batches."""

    marks: Marks

    def mark(self, warm_up: int, steps: int, clock: Callable[[], float] = time.process_time) -> None:
        """Build the loader."""
        self.setup("fit")
        self.marks = Marks(super().train_dataloader(), warm_up, steps, clock)

    def train_dataloader(self) -> Marks:
        """Built by ``mark``."""
        return self.marks


class MarkedData(Marked, ClassificationData):
    """The usual datamodule of classification."""


class BareNet(nn.Module):
    """A network behind the normalization that any loop needs."""

    scale: Tensor
    shift: Tensor

    def __init__(self, network: nn.Module, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("scale", 1 / (255 * std))
        self.register_buffer("shift", -mean / std)

    def forward(self, image: Tensor) -> Any:
        """uint8 (B, C, H, W) to logits (B, K)."""
        return self.network(torch.addcmul(self.shift, image.to(self.scale.dtype), self.scale))


class UsualScript(pl.LightningModule):
    """What most Lightning scripts look like: a torchmetrics object called and values logged in each step."""

    def __init__(self, net: BareNet, optimizer: torch.optim.Optimizer, num_classes: int) -> None:
        super().__init__()
        self.net, self.optimizer = net, optimizer
        self.accuracy = MulticlassAccuracy(num_classes, average="micro")

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Loss and accuracy, logged for the step and the epoch."""
        logits = self.net(batch["image"])
        loss = F.cross_entropy(logits, batch["label"])
        self.accuracy(logits, batch["label"])
        self.log("train_loss", loss, on_step=True, on_epoch=True, prog_bar=True, batch_size=len(logits))
        self.log("train_acc", self.accuracy, on_step=True, on_epoch=True, prog_bar=True, batch_size=len(logits))
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The one given."""
        return self.optimizer


def write_arrays(folder: Path, count: int, side: int, num_classes: int = 10) -> Path:
    """A ``.npz`` file of uint8 noise: ``count`` images of side x side pixels, all for training."""
    rng = np.random.default_rng(0)
    path = folder / "images.npz"
    images = rng.integers(0, 256, (count, side, side), dtype=np.uint8)
    np.savez(path, images=images, labels=np.arange(count) % num_classes)
    return path


def make_task(data: DataModule, made: Made) -> Task:
    """The task, its network built for the data."""
    torch.manual_seed(0)
    task = Classification(backbone=made) if isinstance(made, str) else made()
    task.resolve(data.spec(), "benchmark")
    task.configure_model()
    return task


def make_bare(task: Task, data: DataModule) -> tuple[BareNet, torch.optim.Optimizer]:
    """The task's own network and optimizer without the task."""
    assert task.network is not None
    net = BareNet(task.network, task.get_buffer("mean"), task.get_buffer("std")).train()
    return net, build_optimizer(task.network, task.optim, data.train_batch)


LossOf = Callable[[Tensor, Batch], Tensor]


def label_loss(logits: Tensor, batch: Batch) -> Tensor:
    """Cross-entropy of one class an image."""
    return F.cross_entropy(logits, batch["label"])


def bare_step(data: DataModule, made: Made, loss_of: LossOf = label_loss) -> Callable[[Batch], None]:
    """A step of a PyTorch tutorial's loop, on a network of its own: no logging, no progress bar, nothing saved."""
    net, optimizer = make_bare(make_task(data, made), data)

    def step(batch: Batch) -> None:
        loss = loss_of(net(batch["image"]), batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def bare(data: Marked, made: Made, loss_of: LossOf = label_loss) -> Callable[[], float]:
    """The loop of a PyTorch tutorial."""

    def once() -> float:
        step = bare_step(data, made, loss_of)
        for batch in data.marks:
            step(batch)
        return data.marks.seconds_per_step()

    return once


class Beside(Marks):
    """Batches for a training; behind each of its steps one of a bare loop is taken, and both are timed.

    So the two meet the same clock rate and the same neighbors, which change within a second on a shared machine: a
    bare loop measured so against itself differs by 0.1 ms of 13, where rounds of 100 steps in turns differ by 3.

    Args:
        marks: Its loader, warm-up, steps and clock are taken.
        step: The bare loop's.
    """

    def __init__(self, marks: Marks, step: Callable[[Batch], None]) -> None:
        super().__init__(marks.loader, marks.warm_up, marks.steps, marks.clock)
        self.step = step
        self.pairs: list[tuple[float, float]] = []

    def __iter__(self) -> Iterator[Any]:
        self.pairs = []
        for number, batch in enumerate(self.loader):
            if number > self.warm_up + self.steps:
                return
            started = self.clock()
            yield batch
            between = self.clock()
            self.step(batch)
            if number >= self.warm_up:
                self.pairs.append((between - started, self.clock() - between))

    def seconds_per_step(self) -> float:
        """The training's, the median."""
        return statistics.median(theirs for theirs, _ in self.pairs)

    def difference(self) -> float:
        """Seconds that a step of the training takes longer, the median."""
        return statistics.median(theirs - bare for theirs, bare in self.pairs)

    def speed(self) -> float:
        """The training's speed over the bare loop's, the median."""
        return statistics.median(bare / theirs for theirs, bare in self.pairs)


def beside(data: Marked, step: Callable[[Batch], None], peer: Callable[[], float]) -> Beside:
    """Run a training once on ``data.marks``, each step followed by one of a bare loop."""
    marks = data.marks
    data.marks = timed = Beside(marks, step)
    try:
        peer()
    finally:
        data.marks = marks
    return timed


def ours(
    data: Marked, made: Made, accelerator: str = "cpu", callbacks: list[pl.Callback] | None = None
) -> Callable[[], float]:
    """Our Trainer as it is by default, W&B off: progress bar, metrics.csv, checkpoints, pictures, schedule."""

    def once() -> float:
        with quiet(), tempfile.TemporaryDirectory() as folder:
            trainer = Trainer(
                max_steps=len(data.marks),
                accelerator=accelerator,
                devices=1,
                wandb=Wandb(mode="off"),
                callbacks=callbacks,
            )
            trainer.runs_dir = Path(folder)
            trainer.fit(make_task(data, made), datamodule=data)
        return data.marks.seconds_per_step()

    return once


class EmptyScript(pl.LightningModule):
    """The least that Lightning trains: no metric, no logging, no schedule."""

    def __init__(self, net: BareNet, optimizer: torch.optim.Optimizer, loss_of: LossOf) -> None:
        super().__init__()
        self.net, self.optimizer, self.loss_of = net, optimizer, loss_of

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """The loss."""
        return self.loss_of(self.net(batch["image"]), batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The one given."""
        return self.optimizer


def empty(data: Marked, made: Made, loss_of: LossOf) -> Callable[[], float]:
    """Lightning's own Trainer with everything off, and a module that does nothing but train."""

    def once() -> float:
        with quiet():
            net, optimizer = make_bare(make_task(data, made), data)
            trainer = pl.Trainer(
                max_steps=len(data.marks),
                accelerator="cpu",
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
            )
            trainer.fit(EmptyScript(net, optimizer, loss_of), train_dataloaders=data.marks)
        return data.marks.seconds_per_step()

    return once


def usual(data: MarkedData, backbone: str) -> Callable[[], float]:
    """The usual script with Lightning's own Trainer, progress bar, CSV logger and checkpoint."""

    def once() -> float:
        with quiet(), tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            net, optimizer = make_bare(make_task(data, backbone), data)
            script = UsualScript(net, optimizer, int(data.spec()["num_classes"]))
            logger = pl.loggers.CSVLogger(folder)
            trainer = pl.Trainer(max_steps=len(data.marks), accelerator="cpu", logger=logger, default_root_dir=folder)
            trainer.fit(script, train_dataloaders=data.marks)
        return data.marks.seconds_per_step()

    return once
