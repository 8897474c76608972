"""Eight families of backbones under three detectors overfit four pictures.

docs/detection_matrix.md has the table:

    python -m pytest -m slow -s tests/tasks/test_detection_matrix.py
"""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch

from datamodules.readers.digits import digit_scene
from tasks import Detection

BACKBONES = {
    "resnet18": 1e-3,
    "mobilenetv2_100": 1e-3,
    "efficientnet_b0": 1e-3,
    "regnetx_002": 1e-3,
    "vgg11_bn": 1e-3,
    "convnext_atto": 1e-3,
    "swin_tiny_patch4_window7_224": 3e-4,
    "vit_tiny_patch16_224": 5e-4,
}
ARGS = {
    "fcos": {"head_channels": 64, "head_depth": 2},
    "faster_rcnn": {"head_channels": 64, "box_head_width": 128, "candidates": [300, 100], "proposals": [100, 50]},
    "yolo": {"width": 64},
}
SIZE, STEPS = 96, 80
PATIENT = 160  # steps of transformers under faster_rcnn, whose regions change while the boxes are learned


@pytest.mark.slow
@pytest.mark.parametrize("detector", ARGS)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_overfits_four_pictures(backbone, detector):
    started = time.process_time()
    steps = PATIENT if detector == "faster_rcnn" and backbone.startswith(("swin", "vit")) else STEPS
    scenes = [digit_scene(i, size=SIZE) for i in range(4)]
    most = max(len(s["labels"]) for s in scenes)
    boxes, labels = torch.zeros(4, most, 4), torch.full((4, most), -1)
    for i, scene in enumerate(scenes):
        boxes[i, : len(scene["labels"])] = torch.from_numpy(scene["boxes"])
        labels[i, : len(scene["labels"])] = torch.from_numpy(scene["labels"])
    image = torch.from_numpy(np.stack([s["image"] for s in scenes])).permute(0, 3, 1, 2)
    batch = {"image": image, "boxes": boxes, "labels": labels}
    torch.manual_seed(0)
    task = Detection(detector, backbone, num_classes=10, in_chans=3, image_size=SIZE, detector_args=ARGS[detector])
    task.configure_model()
    task.train()
    rate = BACKBONES[backbone]
    optimizer = torch.optim.AdamW(task.parameters(), lr=rate, weight_decay=1e-4)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * min(1, (step + 1) / 10, (steps - step) / 30)
        optimizer.zero_grad()
        task.loss(batch)["loss"].backward()
        torch.nn.utils.clip_grad_norm_(task.parameters(), 10.0)
        optimizer.step()
    if any(isinstance(m, torch.nn.BatchNorm2d) for m in task.modules()):
        # Running means lag behind so few steps: take those of the very pictures.
        for module in task.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = 1.0
        with torch.no_grad():
            task.loss(batch)
    task.eval()
    metric = task.build_metrics()
    with torch.inference_mode():
        predictions = task.predict({**batch, "geometry": torch.tensor([[SIZE, SIZE, 1, 1, 0, 0]] * 4).float()})
    targets = [{"boxes": torch.from_numpy(s["boxes"]), "labels": torch.from_numpy(s["labels"])} for s in scenes]
    metric.update(predictions, targets, list(range(4)))
    reached = float(metric.compute()["map_50"])
    strides, seconds = task.network.backbone.strides, time.process_time() - started
    print(f"| {backbone} | {detector} | {strides} | {reached:.3f} | {steps} | {seconds:.0f} s |", flush=True)
    assert reached >= 0.9
