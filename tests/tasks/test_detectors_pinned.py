"""Every family keeps what checkpoints rely on: names and order of parameters, state keys, and the seeded losses."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import pytest
import torch

from tasks import Detection

SMALL: dict[str, dict[str, Any]] = {
    "box_regression": {"head_channels": 16},
    "faster_rcnn": {"head_channels": 16, "box_head_width": 16, "candidates": [50, 50], "proposals": [20, 20]},
    "fcos": {"head_channels": 16, "head_depth": 2},
    "mask_rcnn": {
        "head_channels": 16,
        "box_head_width": 16,
        "candidates": [50, 50],
        "proposals": [20, 20],
        "mask_head_width": 16,
        "mask_head_depth": 2,
    },
    "retinanet": {"head_channels": 16, "head_depth": 2},
    "rtdetr": {"width": 32, "heads": 4, "ffn_width": 64, "queries": 30, "decoder_layers": 2, "denoising": 20},
    "yolo": {"width": 16},
}
#: SHA-256 (12 digits) of the names of the parameters in order, and of the keys of the state, at commit 93d963b.
NAMES: dict[str, tuple[str, str]] = {
    "box_regression": ("90ae90bcaeb1", "33dc53cec7f0"),
    "faster_rcnn": ("6cd33d518931", "02a240d3360e"),
    "fcos": ("aa3dbac74d91", "7a372eab8f68"),
    "mask_rcnn": ("9de3676fec81", "863a1512dd14"),
    "retinanet": ("781adc3001c4", "3f9fa45abb1d"),
    "rtdetr": ("4368d1a0d27d", "22754deb491a"),
    "yolo": ("1431832ed243", "52e3e16b6fa1"),
}
#: Losses of a seeded batch at commit 93d963b.
LOSSES: dict[str, dict[str, float]] = {
    "box_regression": {
        "loss": 2.40075,
        "class_loss": 0.7356762,
        "box_loss": 1.665074,
    },
    "faster_rcnn": {
        "loss": 2.252665,
        "objectness_loss": 0.6957517,
        "proposal_loss": 0.04394303,
        "class_loss": 1.388475,
        "box_loss": 0.1244949,
    },
    "fcos": {
        "loss": 1.585403,
        "class_loss": 0.7435355,
        "box_loss": 0.378577,
        "centerness_loss": 0.4632908,
    },
    "mask_rcnn": {
        "loss": 2.713654,
        "objectness_loss": 0.6957517,
        "proposal_loss": 0.04394303,
        "class_loss": 1.388475,
        "box_loss": 0.1244949,
        "mask_loss": 0.4609892,
    },
    "retinanet": {
        "loss": 1.267194,
        "class_loss": 0.7570691,
        "box_loss": 0.5101253,
    },
    "rtdetr": {
        "loss": 47.15951,
        "class_loss": 27.09533,
        "l1_loss": 14.26856,
        "giou_loss": 5.795624,
    },
    "yolo": {
        "loss": 5.52992,
        "class_loss": 4.52063,
        "box_loss": 0.6781254,
        "dfl_loss": 0.3311642,
    },
}


def digest(names: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:12]


def seeded_task(family: str) -> Detection:
    if family == "rtdetr":
        pytest.importorskip("transformers")
    torch.manual_seed(0)
    task = Detection(
        family,  # type: ignore[arg-type]
        "test_resnet",
        num_classes=3,
        in_chans=3,
        image_size=64,
        detector_args=SMALL[family],
    )
    task.configure_model()
    return task


def seeded_batch() -> dict[str, torch.Tensor]:
    """Three images of 64 x 64: two objects, an object and a crowd, nothing."""
    random = torch.Generator().manual_seed(1)
    image = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8, generator=random)
    boxes = torch.tensor(
        [
            [[4.0, 6.0, 40.0, 50.0], [44.0, 20.0, 62.0, 36.0]],
            [[10.0, 30.0, 60.0, 60.0], [0.0, 0.0, 20.0, 20.0]],
            [[0.0] * 4] * 2,
        ]
    )
    masks = torch.zeros(3, 1, 64, 64, dtype=torch.int16)
    for i in range(2):
        for number, (x1, y1, x2, y2) in enumerate(boxes[i].int().tolist(), 1):
            masks[i, 0, y1:y2, x1:x2] = number
    return {
        "image": image,
        "boxes": boxes,
        "labels": torch.tensor([[0, 2], [1, 0], [-1, -1]]),
        "iscrowd": torch.tensor([[0, 0], [0, 1], [0, 0]], dtype=torch.uint8),
        "masks": masks,
    }


@pytest.mark.parametrize("family", SMALL)
def test_names_and_their_order_and_seeded_losses_stay(family: str) -> None:
    """An optimizer's state is matched to the parameters by their position, a checkpoint's weights by their names."""
    task = seeded_task(family)
    network = task.network
    assert (digest(name for name, _ in network.named_parameters()), digest(network.state_dict())) == NAMES[family]
    torch.manual_seed(2)  # two-stage families choose samples at random
    losses = {name: float(value) for name, value in task.loss(seeded_batch()).items()}
    assert losses == pytest.approx(LOSSES[family], rel=2e-4)  # rounding differs from CPU to CPU
