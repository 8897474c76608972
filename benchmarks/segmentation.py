"""Segmentation: what a training step costs beyond a bare loop, the metrics, and the memory of tiled prediction.

The step is that of a U-Net so small (two images of 32 x 32) that the milliseconds are visible; they are the same for
any net. With a CUDA device also a U-Net of a usual size: eager, compiled, and in a bare loop.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.classification import MulticlassJaccardIndex
from torchmetrics.segmentation import MeanIoU

from benchmarks.common import Marks, Row, alternate, per_round, row
from benchmarks.gpu import Resident, clock_of
from benchmarks.tiles import SIDES, memory_of_tiles
from benchmarks.training import LossOf, Made, Marked, bare, bare_step, beside, empty, make_bare, make_task, ours
from datamodules import SegmentationData
from datamodules.common.batch import IGNORE
from datamodules.transforms.augment import Augment
from tasks import Segmentation
from tasks.hooks import Batch
from tasks.segmentation.losses import segmentation_loss
from tasks.segmentation.metrics import SegmentationMetrics

BACKBONE = "test_resnet"
BATCH = 2


class MarkedScenes(Marked, SegmentationData):
    """The usual datamodule of segmentation."""


def run(
    repeats: int,
    warm_up: int = 30,
    steps: int = 100,
    metric_size: int = 512,
    sides: tuple[int, ...] = SIDES,
) -> tuple[dict[str, Any], list[Row]]:
    """Measure.

    Args:
        repeats: Rounds; the memory of tiled prediction is measured once.
        warm_up: Steps before the clock starts.
        steps: Steps that are timed.
        metric_size: Height and width of the maps that the metrics are given.
        sides: Heights and widths of the images that are predicted tile by tile.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        # First, while this process has no freed memory that its children could use unseen.
        rows = memory_of_tiles(sides)
        rows += training_step(repeats, warm_up, steps) + metric_update(repeats, metric_size)
    finally:
        torch.set_num_threads(threads)
    settings = {"backbone": BACKBONE, "batch": BATCH, "steps": steps, "threads": 1, "clock": "cpu"}
    if torch.cuda.is_available():
        rows += on_device(torch.device("cuda"), repeats)
        settings["device"] = torch.cuda.get_device_name()
    return settings, rows


# A training step.


def pixel_loss(logits: Tensor, batch: Batch) -> Tensor:
    """What a bare loop would use; the same value as ours where no pixel is ignored."""
    return F.cross_entropy(logits, batch["mask"].long(), ignore_index=IGNORE)


def our_loss(logits: Tensor, batch: Batch) -> Tensor:
    """The task's loss."""
    return segmentation_loss(logits, batch["mask"], kind="multiclass", losses={"cross_entropy": 1.0})["loss"]


def small_unet() -> Segmentation:
    """A task whose step takes some milliseconds."""
    return Segmentation(backbone=BACKBONE, decoder_args={"encoder_depth": 2, "decoder_channels": [8, 8]})


def make_scenes(count: int, size: int, batch_size: int) -> MarkedScenes:
    """Digit scenes, all for training."""
    return MarkedScenes(
        num_scenes={"train": count, "val": 0, "test": 0},
        image_size=size,
        batch_size=batch_size,
        num_workers=0,
        augment=Augment("none"),
        check_masks=False,
    )


def training_step(repeats: int, warm_up: int, steps: int) -> list[Row]:
    """Milliseconds of a step on the CPU, ours and bare."""
    data = make_scenes((warm_up + steps + 1) * BATCH, 32, BATCH)
    data.mark(warm_up, steps)
    data.marks.loader = list(data.marks.loader)  # drawn once: to draw a scene takes longer than what is measured

    def over(loss_of: LossOf, peer: Callable[[], float]) -> Callable[[], float]:
        return lambda: beside(data, bare_step(data, small_unet, loss_of), peer).difference()

    lightning = empty(data, small_unet, pixel_loss)
    variants = {
        "bare loop": bare(data, small_unet, pixel_loss),
        "Lightning with an empty module, over the bare loop": over(pixel_loss, lightning),
        "ours, over the bare loop": over(pixel_loss, ours(data, small_unet)),
        "ours, over the bare loop with our loss": over(our_loss, ours(data, small_unet)),
    }
    goals = {"ours, over the bare loop": "<= 1.2"}
    seconds = alternate(variants, repeats)
    return [row(name, [1000 * s for s in runs], "ms/step", goals.get(name, "")) for name, runs in seconds.items()]


# The metrics.


def metric_update(repeats: int, size: int, batch_size: int = 8, classes: int = 21) -> list[Row]:
    """Milliseconds of an update with a batch of maps, ours and torchmetrics'."""
    generator = torch.Generator().manual_seed(0)
    # Truths are patches of 16 x 16 pixels with a border that is ignored; one prediction in five is wrong.
    patches = torch.randint(0, classes, (batch_size, size // 16, size // 16), generator=generator, dtype=torch.uint8)
    target = patches.repeat_interleave(16, 1).repeat_interleave(16, 2)
    noise = torch.randint(0, classes, target.shape, generator=generator, dtype=torch.uint8)
    prediction = torch.where(torch.rand(target.shape, generator=generator) < 0.2, noise, target)
    ignored = target.clone()
    ignored[:, :, -size // 20 :] = IGNORE
    metric = SegmentationMetrics(classes)
    jaccard = MulticlassJaccardIndex(classes, ignore_index=IGNORE)
    unchecked = MulticlassJaccardIndex(classes, ignore_index=IGNORE, validate_args=False)
    mean_iou = MeanIoU(classes, input_format="index")  # it knows no ignored pixels, and takes int64
    variants: dict[str, Callable[[], Any]] = {
        "metrics, ours": lambda: metric.update(prediction, ignored),
        "metrics, torchmetrics' JaccardIndex": lambda: jaccard.update(prediction, ignored),
        "metrics, the same without its checks": lambda: unchecked.update(prediction, ignored),
        "metrics, torchmetrics' segmentation.MeanIoU": lambda: mean_iou.update(prediction.long(), target.long()),
    }
    seconds = alternate({name: timed(update) for name, update in variants.items()}, repeats)
    rows = []
    for name, values in seconds.items():
        rows.append(row(name, [1000 * s for s in values], "ms", "<= 20" if name.endswith("ours") else ""))
    return rows


def timed(update: Callable[[], Any], times: int = 3) -> Callable[[], float]:
    """CPU seconds of a call, the median of some."""

    def once() -> float:
        seconds = []
        for _ in range(times):
            started = time.process_time()
            update()
            seconds.append(time.process_time() - started)
        return statistics.median(seconds)

    return once


# With a GPU.


class Graphs(pl.Callback):
    """Notes at each step how many graphs torch.compile has compiled in this process."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count."""
        from torch._dynamo.utils import counters  # takes seconds to import, and most runs compile nothing

        self.seen.append(counters["stats"]["unique_graphs"])


def on_device(
    device: torch.device,
    repeats: int,
    backbone: str = "resnet50",
    size: int = 512,
    batch_size: int = 16,
    warm_up: int = 20,
    steps: int = 60,
) -> list[Row]:
    """Images per second of a U-Net on one batch that stays on the device: bare, eager, compiled.

    Args:
        device: Where to train; on a CPU for the tests.
        repeats: Rounds.
        backbone: A timm name.
        size: Height and width of the images.
        batch_size: Images a step.
        warm_up: Steps before the clock starts, in which the net is compiled.
        steps: Steps that are timed.
    """
    accelerator = "gpu" if device.type == "cuda" else "cpu"
    torch.backends.cudnn.benchmark = True  # as our Trainer does
    data = make_scenes(2 * batch_size, size, batch_size)
    data.mark(warm_up, steps, clock_of(device))
    first = next(iter(data.marks.loader))
    batch = {key: value.to(device) if isinstance(value, Tensor) else value for key, value in first.items()}
    data.marks.loader = Resident(batch)
    graphs = Graphs()

    def compiled_task() -> Segmentation:
        torch.compiler.reset()  # each round compiles anew: code that is recompiled too often would be left eager
        return Segmentation(backbone=backbone, compile=True)

    variants = {
        "bare loop, on the device": bare_on_device(data, lambda: Segmentation(backbone=backbone), device),
        "ours, on the device": ours(data, lambda: Segmentation(backbone=backbone), accelerator),
        "ours, compiled": ours(data, compiled_task, accelerator, [graphs]),
    }
    rates = {name: [batch_size / s for s in values] for name, values in alternate(variants, repeats).items()}
    rows = [row(name, values, "images/s") for name, values in rates.items()]
    bare_rates, eager, compiled = rates.values()
    rows.append(row("ours over the bare loop, on the device", per_round(lambda a, b: a / b, eager, bare_rates), "x"))
    rows.append(row("compiled over eager", per_round(lambda a, b: a / b, compiled, eager), "x", ">= 1.15"))
    length = len(data.marks)
    runs = [graphs.seen[i : i + length] for i in range(0, len(graphs.seen), length)]
    assert graphs.seen[-1] > 0, "nothing was compiled"
    rows.append(row("graphs compiled after the warm-up", [seen[-1] - seen[warm_up - 1] for seen in runs], "", "<= 0"))
    return rows


def bare_on_device(data: Marked, made: Made, device: torch.device) -> Callable[[], float]:
    """As ``benchmarks.gpu``'s bare loop: bf16 autocast, a normalized float batch, cross-entropy of torch."""

    def once() -> float:
        task = make_task(data, made).to(device)
        net, optimizer = make_bare(task, data)
        batch = data.marks.loader.batch
        image = torch.addcmul(net.shift, batch["image"].float(), net.scale)
        if task.channels_last:
            image = image.contiguous(memory_format=torch.channels_last)
        item = {"image": image, "mask": batch["mask"].long()}
        marks = Marks(Resident(item), data.marks.warm_up, data.marks.steps, data.marks.clock)
        for given in marks:
            optimizer.zero_grad()
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
                loss = pixel_loss(net.network(given["image"]), given)
            loss.backward()
            optimizer.step()
        return marks.seconds_per_step()

    return once
