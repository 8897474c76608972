"""CIFAR-10 with the defaults of timm's train.py in a plain loop, to stand beside ``classification/cifar10_cpu``.

Optimizer, schedule, loss and transforms are timm's own functions with the values that its training script documents
as defaults (SGD with momentum 0.9, weight decay 2e-5, lr 0.1 per 256 images, cosine with 5 epochs of warm-up, label
smoothing 0.1, RandomResizedCrop 0.08 to 1, flip, color jitter 0.4):
https://github.com/huggingface/pytorch-image-models/blob/main/train.py

    python -m benchmarks.cifar10_timm data/cifar10 --epochs 5
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import timm
import torch
from timm.data import create_dataset, create_loader
from timm.loss import LabelSmoothingCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2

import tasks.networks  # noqa: F401 - registers cifar_resnet20

MEAN_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def accuracy(model: torch.nn.Module, loader: object) -> float:
    """Part of the images of a loader that the model gets right."""
    model.eval()
    right = total = 0
    with torch.inference_mode():
        for image, label in loader:  # type: ignore[attr-defined]
            right += int((model(image).argmax(1) == label).sum())
            total += len(label)
    return right / total


def main() -> None:
    """Train, evaluate, print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path)
    parser.add_argument("--backbone", default="cifar_resnet20")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    mean, std = MEAN_STD
    common = {"input_size": (3, 32, 32), "batch_size": 128, "use_prefetcher": False, "mean": mean, "std": std}
    train = create_loader(
        create_dataset("", root=str(args.root / "train")),
        is_training=True,
        num_workers=1,
        color_jitter=0.4,
        hflip=0.5,
        persistent_workers=True,
        **common,
    )
    test = create_loader(
        create_dataset("", root=str(args.root / "test")),
        num_workers=0,
        crop_pct=1.0,
        persistent_workers=False,
        **common,
    )
    model = timm.create_model(args.backbone, num_classes=10).to(memory_format=torch.channels_last)
    optimizer = create_optimizer_v2(model, opt="sgd", lr=0.1 * 128 / 256, momentum=0.9, weight_decay=2e-5)
    scheduler, _ = create_scheduler_v2(
        optimizer, "cosine", num_epochs=args.epochs, warmup_epochs=min(5, args.epochs // 2), warmup_lr=1e-5
    )
    loss = LabelSmoothingCrossEntropy(0.1)
    start, cpu = time.perf_counter(), time.process_time()
    for epoch in range(args.epochs):
        model.train()
        scheduler.step(epoch)
        for image, label in train:
            optimizer.zero_grad()
            loss(model(image.contiguous(memory_format=torch.channels_last)), label).backward()
            optimizer.step()
    minutes, cpu_minutes = (time.perf_counter() - start) / 60, (time.process_time() - cpu) / 60
    result = {
        "backbone": args.backbone,
        "epochs": args.epochs,
        "seed": args.seed,
        "test_accuracy": accuracy(model, test),
    }
    print(json.dumps({**result, "minutes": round(minutes, 2), "cpu_minutes": round(cpu_minutes, 2)}))


if __name__ == "__main__":
    main()
