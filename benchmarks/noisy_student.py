"""Labeling a pool of images against a bare inference loop over the same loader and net.

Ours is ``pseudo-label`` without the parsing of its command: Lightning's predict loop, the files of the chunks, the
merged list. The bare loop keeps the probabilities and writes nothing. CPU seconds of the process, which neighbors on
the machine do not change; on a GPU seconds of the clock.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import torch

from benchmarks.common import Row, alternate, per_round, quiet, row
from datamodules.annotations.records import Record
from datamodules.classification import ClassificationData
from pipelines.noisy_student.labeling import Pool, label_pool
from pipelines.run.loading import Loaded
from pipelines.run.tracking import Wandb
from pipelines.trainer import Trainer
from tasks import Classification

BACKBONE = "cifar_resnet20"
BATCH = 128


def run(repeats: int, images: int = 4096) -> tuple[dict[str, Any], list[Row]]:
    """Measure.

    Args:
        repeats: Rounds.
        images: Images in the pool, files of 32 x 32 pixels.

    Returns:
        Settings and figures.
    """
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    with tempfile.TemporaryDirectory() as folder, quiet():
        root = Path(folder)
        records = _pool(root / "pool", images)
        teacher = _teacher(root)
        trainer = Trainer(
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            wandb=Wandb(mode="off"),
        )
        number = iter(range(10**6))

        def ours() -> float:
            output = root / f"{next(number)}.parquet"  # a finished file would not be made again
            began = clock()
            label_pool(trainer, [teacher], records, output)
            return clock() - began

        def bare() -> float:
            pool = Pool(teacher.data, records, root / f"nothing-{next(number)}")
            pool.trainer = SimpleNamespace(global_rank=0, world_size=1)
            device = trainer.strategy.root_device
            began = clock()
            task = teacher.task.eval().to(device)
            with torch.inference_mode():
                parts = [task.predict({**b, "image": b["image"].to(device)}) for b in pool.predict_dataloader()]
                torch.cat([part["probabilities"] for part in parts]).cpu()
            return clock() - began

        ours()
        bare()
        times = alternate({"ours": ours, "bare": bare}, repeats)
    rows = [
        row("pseudo-label", [images / t for t in times["ours"]], "images/s"),
        row("bare loop", [images / t for t in times["bare"]], "images/s"),
        row("ratio", per_round(lambda a, b: b / a, times["ours"], times["bare"]), "x", ">= 0.9"),
    ]
    return {"backbone": BACKBONE, "batch": BATCH, "images": images}, rows


def _pool(root: Path, images: int) -> list[Record]:
    root.mkdir()
    rng = np.random.default_rng(0)
    records = []
    for i in range(images):
        path = str(root / f"{i:06d}.jpg")
        cv2.imwrite(path, cv2.resize(rng.integers(0, 256, (8, 8, 3), np.uint8), (32, 32)))
        records.append({"image": path, "path": path})
    return records


def _teacher(root: Path) -> Loaded:
    """A teacher that was never trained, with its checkpoint."""
    data = ClassificationData(class_names=[str(k) for k in range(10)], image_size=32, batch_size=BATCH, num_workers=0)
    task = Classification(BACKBONE, num_classes=10, in_chans=3, image_size=32)
    task.configure_model()
    checkpoint = root / "teacher.ckpt"
    torch.save({"state_dict": task.state_dict(), "pytorch-lightning_version": "2.6.0", "global_step": 0}, checkpoint)
    return Loaded(checkpoint, task, data, {})
