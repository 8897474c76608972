"""Detection: a training step against torchvision's own detectors in a bare loop, and the evaluation of boxes.

Both detectors have the same backbone and pyramid, the same widths, depths and numbers of proposals, and see the same
digit scenes; torchvision's takes lists of float images and of boxes, as its tutorials give them, and its resize is
told to leave the size alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torchvision.models.detection as torchvision_detectors
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign

from benchmarks.common import Row, row
from benchmarks.detection_metrics import evaluation
from benchmarks.training import Marked, beside, make_task, ours
from datamodules import DetectionData
from datamodules.transforms.augment import DetectionAugment
from tasks import Detection
from tasks.detection.detectors.targets import read_targets
from tasks.hooks import Batch
from tasks.optimizers import build_optimizer

BACKBONE = "resnet18"
WIDTH = 64
SIZE = 128
BATCH = 4
ARGS: Mapping[str, dict[str, Any]] = {
    "fcos": {"head_channels": WIDTH},
    "retinanet": {"head_channels": WIDTH},
    "faster_rcnn": {"head_channels": WIDTH, "box_head_width": 256, "proposals": [500, 500]},
}


class MarkedBoxes(Marked, DetectionData):
    """The usual datamodule of detection."""


def run(repeats: int, warm_up: int = 5, steps: int = 20, images: int = 5_000) -> tuple[dict[str, Any], list[Row]]:
    """Measure.

    Args:
        repeats: Rounds.
        warm_up: Steps before the clock starts.
        steps: Steps that are timed.
        images: Images of 100 boxes that are evaluated.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rows = training_step(repeats, warm_up, steps) + evaluation(repeats, images)
    finally:
        torch.set_num_threads(threads)
    settings = {"backbone": BACKBONE, "batch": BATCH, "size": SIZE, "steps": steps, "threads": 1, "clock": "cpu"}
    return settings, rows


def training_step(repeats: int, warm_up: int, steps: int) -> list[Row]:
    """Images per second of training on the CPU, ours and torchvision's, for each family."""
    data = MarkedBoxes(
        num_scenes={"train": (warm_up + steps + 1) * BATCH, "val": 0, "test": 0},
        image_size=SIZE,
        batch_size=BATCH,
        num_workers=0,
        augment=DetectionAugment("none"),
    )
    data.mark(warm_up, steps)
    data.marks.loader = list(data.marks.loader)  # drawn once: the detectors are to be compared, not the loader
    times: dict[str, list[float]] = {}
    for _ in range(repeats):
        for family, args in ARGS.items():
            make = task_of(family, args)
            timed = beside(data, torchvision_step(data, make), ours(data, make))
            times.setdefault(f"{family}, ours", []).append(BATCH / timed.seconds_per_step())
            times.setdefault(f"{family}, ours over torchvision's in a bare loop", []).append(timed.speed())
    return [
        row(name, values, "x" if "over" in name else "images/s", ">= 0.97" if "over" in name else "")
        for name, values in times.items()
    ]


def task_of(family: str, args: dict[str, Any]) -> Callable[[], Detection]:
    """What makes the task of a family."""
    return lambda: Detection(family, BACKBONE, detector_args=args)  # type: ignore[arg-type]


class Maps(nn.Module):
    """A task's own pyramid as torchvision wants a backbone: one module that gives maps by name."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.pyramid, self.fpn = network.backbone, network.fpn
        self.out_channels = network.fpn.width

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Normalized float (B, C, H, W) to maps of ``out_channels``, finest first."""
        return {str(i): x for i, x in enumerate(self.fpn(self.pyramid(image)))}


def torchvision_detector(task: Detection) -> Any:
    """The detector of torchvision of the same family, on the task's own backbone and pyramid."""
    maps = Maps(task.network)
    levels = len(maps.fpn.strides)
    same: dict[str, Any] = {
        "num_classes": int(task.num_classes or 0) + 1,
        "min_size": SIZE,
        "max_size": SIZE,
        "image_mean": task.get_buffer("mean").flatten().tolist(),
        "image_std": task.get_buffer("std").flatten().tolist(),
    }
    if task.detector == "fcos":
        anchors = AnchorGenerator(tuple((stride,) for stride in maps.fpn.strides), ((1.0,),) * levels)
        return torchvision_detectors.FCOS(maps, anchor_generator=anchors, **same)
    if task.detector == "retinanet":
        sizes = tuple(tuple(round(4 * s * 2 ** (i / 3)) for i in range(3)) for s in maps.fpn.strides)
        anchors = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * levels)
        return torchvision_detectors.RetinaNet(maps, anchor_generator=anchors, **same)
    sizes = tuple((8 * stride,) for stride in maps.fpn.strides)
    head = torchvision_detectors.faster_rcnn.TwoMLPHead(maps.out_channels * 7**2, 256)
    predictor = torchvision_detectors.faster_rcnn.FastRCNNPredictor(256, same.pop("num_classes"))
    return torchvision_detectors.FasterRCNN(
        maps,
        rpn_anchor_generator=AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * levels),
        box_roi_pool=MultiScaleRoIAlign([str(i) for i in range(levels - 1)], 7, 2),
        box_head=head,
        box_predictor=predictor,
        rpn_post_nms_top_n_train=500,
        **same,
    )


def torchvision_step(data: MarkedBoxes, make: Callable[[], Detection]) -> Callable[[Batch], None]:
    """A step of the loop of torchvision's tutorial: no logging, no progress bar, nothing saved."""
    task = make_task(data, make)
    assert isinstance(task, Detection)
    net = torchvision_detector(task).train()
    if task.channels_last:
        net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = build_optimizer(net, task.optim, data.train_batch)

    def step(batch: Batch) -> None:
        images, targets = as_lists(batch, offset=task.detector == "faster_rcnn")
        loss = torch.stack(list(net(images, targets).values())).sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def as_lists(batch: Batch, *, offset: bool) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """A batch as torchvision's detectors take it; ``offset``: classes count from 1, 0 is background."""
    truth = read_targets(batch)
    images = [image.float() / 255 for image in batch["image"]]
    targets = [
        {"boxes": boxes[learned], "labels": labels[learned] + offset}
        for boxes, labels, learned in zip(truth.boxes, truth.labels, truth.learned, strict=True)
    ]
    return images, targets
