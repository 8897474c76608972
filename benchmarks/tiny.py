"""An epoch over 60,000 images of 28 x 28 pixels, against a bare loop over one tensor.

Ours is the usual Trainer, task and datamodule with ``cache: tensor``, progress bar, metrics.csv and schedule; the bare
loop indexes one uint8 tensor and does nothing else. Both use LeNet-5 in channels_last memory and batches of 128. The
epoch is extrapolated from some of its steps; to ours what happens at its end (two checkpoints) is added.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.common import Marks, Row, alternate, per_round, row
from benchmarks.training import MarkedData, make_bare, make_task, ours, write_arrays
from datamodules.transforms.augment import Augment

BACKBONE = "lenet5"
BATCH = 128
IMAGES = 60_000


def run(repeats: int, images: int = IMAGES, warm_up: int = 5, steps: int = 50) -> tuple[dict[str, Any], list[Row]]:
    """Measure.

    Args:
        repeats: Rounds.
        images: Images in the set.
        warm_up: Steps before the clock starts.
        steps: Steps that are timed.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # then CPU seconds are those of the wall, whatever else the machine does
    try:
        with tempfile.TemporaryDirectory() as folder:
            source = write_arrays(Path(folder), images, 28)
            started = time.process_time()
            same, augmented = (make_data(source, augment, warm_up, steps) for augment in (Augment("none"), Augment()))
            set_up = (time.process_time() - started) / 2
            variants = {
                "bare loop over one tensor": bare_tensor(same, warm_up, steps),
                "ours": ours(same, BACKBONE),
                "ours, with random crops and flips": ours(augmented, BACKBONE),
            }
            seconds = alternate(variants, repeats)
            ending = EpochEnd()
            ours(same, BACKBONE, callbacks=[ending])()
    finally:
        torch.set_num_threads(threads)
    epoch = images // BATCH
    times = {name: [s * epoch + (ending.seconds if "ours" in name else 0) for s in seconds[name]] for name in variants}
    rows = [row(name, values, "s/epoch") for name, values in times.items()]
    bare = times["bare loop over one tensor"]
    for name in list(variants)[1:]:
        rows.append(row(f"{name}, over the bare loop", per_round(lambda a, b: a / b, times[name], bare), "x", "<= 1.2"))
    rows.append(row("the end of our epoch, in it", [ending.seconds], "s"))
    rows.append(row("reading the set into memory, once a run", [set_up], "s"))
    settings = {"backbone": BACKBONE, "images": images, "batch": BATCH, "steps timed": steps, "threads": 1}
    return settings | {"clock": "cpu"}, rows


class EpochEnd(pl.Callback):
    """The CPU seconds from an epoch's last step to the end of training."""

    seconds = 0.0

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Called before the checkpoints are written."""
        self.started = time.process_time()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Called behind them."""
        self.seconds = time.process_time() - self.started


def make_data(source: Path, augment: Augment, warm_up: int, steps: int) -> MarkedData:
    """The datamodule with the whole set in memory."""
    data = MarkedData(
        str(source), in_chans=1, val_fraction=0.0, batch_size=BATCH, augment=augment, cache="tensor", num_workers=0
    )
    data.mark(warm_up, steps)
    return data


def bare_tensor(data: MarkedData, warm_up: int, steps: int) -> Callable[[], float]:
    """A shuffled pass over one tensor, with the task's net and optimizer."""
    whole = data.marks.loader
    images: Tensor = whole._images.permute(0, 3, 1, 2).contiguous()
    labels: Tensor = whole._rest["label"]

    def batches() -> Iterator[dict[str, Tensor]]:
        for index in torch.randperm(len(images)).split(BATCH):
            yield {"image": images[index], "label": labels[index]}

    def once() -> float:
        net, optimizer = make_bare(make_task(data, BACKBONE), data)
        marks = Marks(batches(), warm_up, steps)
        for batch in marks:
            image = batch["image"].contiguous(memory_format=torch.channels_last)
            loss = F.cross_entropy(net(image), batch["label"])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return marks.seconds_per_step()

    return once
