"""The peers of the training benchmarks: our Trainer and task, a bare PyTorch loop, a usual Lightning script.

All take the same datamodule, and with it the same loader and batches, the same network and the same optimiser.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable
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
from pipelines.trainer import Trainer
from pipelines.wandb_run import Wandb
from tasks import Classification
from tasks.base import Batch, Task
from tasks.optim import build_optimizer

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
    """A network behind the normalisation that any loop needs."""

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
    """The task's own network and optimiser without the task."""
    assert task.network is not None
    net = BareNet(task.network, task.get_buffer("mean"), task.get_buffer("std")).train()
    return net, build_optimizer(task.network, task.optim, data.batch_size)


def label_loss(logits: Tensor, batch: Batch) -> Tensor:
    """Cross-entropy of one class an image."""
    return F.cross_entropy(logits, batch["label"])


def bare(data: Marked, made: Made, loss_of: Callable[[Tensor, Batch], Tensor] = label_loss) -> Callable[[], float]:
    """The loop of a PyTorch tutorial: no logging, no progress bar, nothing saved."""

    def once() -> float:
        net, optimizer = make_bare(make_task(data, made), data)
        for batch in data.marks:
            loss = loss_of(net(batch["image"]), batch)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return data.marks.seconds_per_step()

    return once


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
