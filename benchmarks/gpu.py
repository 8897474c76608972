"""A training step on a GPU, against a bare loop with the settings of timm's ``benchmark.py --bench train``.

Those are: one batch that stays on the device, bf16 autocast, channels_last memory, a fused optimizer, cuDNN's search
for the fastest kernels. Ours is the usual Trainer with its defaults, first on one batch that stays on the device (as
uint8, so our normalization is part of the time), then fed from JPEG files by the usual loader.
"""

from __future__ import annotations

import contextlib
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.common import Marks, Row, Unavailable, alternate, per_round, row
from benchmarks.photos import write_photos
from benchmarks.training import MarkedData, make_bare, make_task, ours
from datamodules.decoding import images
from datamodules.loaders import available_cores
from datamodules.transforms.augment import Augment

LOG_EVERY = 50  # the Trainer's default


class Resident:
    """The same batch, already on the device, again and again."""

    def __init__(self, batch: dict[str, Any]) -> None:
        self.batch = batch

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return itertools.repeat(self.batch)


class RefuseSyncs(pl.Callback):
    """Makes every operation that waits for the device an error, in the steps between two that log."""

    def __init__(self) -> None:
        super().__init__()
        self.checked = 0

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Start behind the first steps of a run, in which cuDNN searches and pictures are drawn."""
        if trainer.global_step >= LOG_EVERY and trainer.global_step % LOG_EVERY == 0:
            torch.cuda.set_sync_debug_mode("error")

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop before the step that logs."""
        self.checked += torch.cuda.get_sync_debug_mode() > 0
        if (trainer.global_step + 1) % LOG_EVERY == 0:
            torch.cuda.set_sync_debug_mode("default")


def run(repeats: int) -> tuple[dict[str, Any], list[Row]]:
    """Measure ResNet-50 at 224 pixels, batches of 128.

    Raises:
        Unavailable: Without a CUDA device.
    """
    if not torch.cuda.is_available():
        raise Unavailable("no CUDA device is available; this benchmark needs one.")
    return measure(torch.device("cuda"), repeats)


def measure(
    device: torch.device,
    repeats: int,
    backbone: str = "resnet50",
    size: int = 224,
    batch_size: int = 128,
    warm_up: int = 20,
    steps: int = 60,
    photos: int = 512,
) -> tuple[dict[str, Any], list[Row]]:
    """Measure on any device; on a CPU (for the tests) without looking for syncs.

    Args:
        device: Where to train.
        repeats: Rounds.
        backbone: A timm name.
        size: Height and width of the images.
        batch_size: Images a step.
        warm_up: Steps before the clock starts.
        steps: Steps that are timed.
        photos: JPEG files written; each is read several times, and each time augmented anew.
    """
    accelerator = "gpu" if device.type == "cuda" else "cpu"
    workers = min(8, available_cores()) if device.type == "cuda" else 0
    torch.backends.cudnn.benchmark = True  # as timm's script and our Trainer do
    with tempfile.TemporaryDirectory() as folder:
        write_photos(Path(folder), photos)
        length = max(warm_up + steps, 3 * LOG_EVERY) + 2
        fed = make_data(folder, size, batch_size, length, workers)
        fed.mark(warm_up, steps, clock_of(device))
        still = make_data(folder, size, batch_size, length, 0)
        still.mark(warm_up, steps, clock_of(device))
        first = next(iter(still.marks.loader))
        batch = {key: value.to(device) if isinstance(value, Tensor) else value for key, value in first.items()}
        still.marks.loader = Resident(batch)
        variants = {
            "bare loop, synthetic": bare_loop(still, backbone, device, batch),
            "ours, synthetic": ours(still, backbone, accelerator),
            "ours, from JPEG": ours(fed, backbone, accelerator),
        }
        seconds = alternate(variants, repeats)
        rates = {name: [batch_size / s for s in values] for name, values in seconds.items()}
        rows = [row(name, values, "images/s") for name, values in rates.items()]
        synthetic = rates["ours, synthetic"]
        over_bare = per_round(lambda a, b: a / b, synthetic, rates["bare loop, synthetic"])
        over_synthetic = per_round(lambda a, b: a / b, rates["ours, from JPEG"], synthetic)
        rows.append(row("ours over the bare loop, synthetic", over_bare, "x", ">= 0.97"))
        rows.append(row("from JPEG over synthetic", over_synthetic, "x", ">= 0.9"))
        if device.type == "cuda":
            memory = torch.cuda.max_memory_allocated() / 1e9
            rows.append(row("steps with a host sync between log points", [count_syncs(fed, backbone)], "", "<= 0"))
            rows.append(row("peak memory", [memory], "GB"))
    settings = {
        "backbone": backbone,
        "size": size,
        "batch": batch_size,
        "steps": steps,
        "workers": workers,
        "decoder": "cv2" if images.simplejpeg is None else "simplejpeg",
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
    }
    return settings, rows


def make_data(folder: str, size: int, batch_size: int, batches: int, workers: int) -> MarkedData:
    """The datamodule over the photos, each listed so often that an epoch has enough batches."""
    data = MarkedData(
        folder,
        image_size=size,
        val_fraction=0.0,
        batch_size=batch_size,
        num_workers=workers,
        cache="none",
        augment=Augment(crop="random_resized"),
    )
    data.setup("fit")
    data.records["train"] *= -(-batches * batch_size // len(data.records["train"]))
    return data


def clock_of(device: torch.device) -> Callable[[], float]:
    """Seconds on the wall, after the device has done all that it was given."""

    def clock() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    return clock


def bare_loop(data: MarkedData, backbone: str, device: torch.device, batch: dict[str, Any]) -> Callable[[], float]:
    """The training benchmark of timm: a normalized float batch on the device, forward, backward, step."""

    def once() -> float:
        task = make_task(data, backbone).to(device)
        net, optimizer = make_bare(task, data)
        image = torch.addcmul(net.shift, batch["image"].float(), net.scale)
        if task.channels_last:
            image = image.contiguous(memory_format=torch.channels_last)
        marks = Marks(Resident({"image": image}), data.marks.warm_up, data.marks.steps, clock_of(device))
        for item in marks:
            optimizer.zero_grad()
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
                loss = F.cross_entropy(net.network(item["image"]), batch["label"])
            loss.backward()
            optimizer.step()
        return marks.seconds_per_step()

    return once


def count_syncs(data: MarkedData, backbone: str) -> float:
    """Train past three log points with syncs refused in between; 0, or 1 with the operation's trace on the terminal."""
    data.marks.warm_up, data.marks.steps = 0, 3 * LOG_EVERY
    data.marks.clock = time.perf_counter
    refuse = RefuseSyncs()
    try:
        ours(data, backbone, "gpu", [refuse])()
    except RuntimeError as error:
        if "synchronizing" not in str(error):
            raise
        import traceback

        traceback.print_exc()
        return 1.0
    finally:
        with contextlib.suppress(RuntimeError):
            torch.cuda.set_sync_debug_mode("default")
    assert refuse.checked >= LOG_EVERY, f"only {refuse.checked} steps were looked at"
    return 0.0
