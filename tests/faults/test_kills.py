"""Rows 1, 3, 4 and 7 in long series: killed again and again at random moments, a run is the undisturbed one."""

from __future__ import annotations

import csv
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning.callbacks import Callback

from pipelines.__main__ import main
from pipelines.run.checkpoints import AtomicCheckpointIO, newest_good_checkpoint
from tests.conftest import in_child, write_images

SERIES, KILLS = 4, 5  # twenty kills a task
TRAINER = """
trainer:
  accelerator: cpu
  max_epochs: 3
  accumulate_grad_batches: 2
  ema_decay: 0.9
  log_every_n_steps: 2
  save_every_n_steps: 2
  val_check_interval: 4
  num_sanity_val_steps: 0
  enable_progress_bar: false
  enable_model_summary: false
  wandb: {mode: "off"}
"""
CLASSIFICATION = """
model:
  class_path: Classification
  init_args: {backbone: test_resnet, drop_rate: 0.3, mixup: 0.4, color_jitter: 0.2, optim: {name: sgd, lr: 0.05}}
data:
  class_path: ClassificationData
  init_args: {source: SOURCE, image_size: 32, batch_size: 4, num_workers: 0, augment: {preset: light, crop: pad}}
"""
DETECTION = """
model:
  class_path: Detection
  init_args: {detector: yolo, backbone: test_resnet, detector_args: {width: 16}, color_jitter: 0.2, optim: {lr: 0.003}}
data:
  class_path: DetectionData
  init_args:
    source: digits
    num_scenes: {train: 40, val: 4, test: 2}
    image_size: 64
    batch_size: 4
    num_workers: 0
    augment: {preset: light, mosaic: 0.5, mixup: 0.3}
"""
SEGMENTATION = """
model:
  class_path: Segmentation
  init_args: {backbone: test_resnet, color_jitter: 0.2, optim: {lr: 0.003}}
data:
  class_path: SegmentationData
  init_args:
    source: digits
    num_scenes: {train: 40, val: 4, test: 2}
    image_size: 32
    batch_size: 4
    num_workers: 0
    augment: {preset: light}
"""
NOISY_STUDENT = """
model:
  class_path: NoisyStudent
  init_args:
    student:
      class_path: Classification
      init_args: {backbone: test_resnet, drop_rate: 0.3, mixup: 0.4, optim: {name: sgd, lr: 0.05}}
data:
  class_path: SemiSupervised
  init_args:
    labeled:
      class_path: ClassificationData
      init_args: {source: SOURCE, image_size: 32, batch_size: 2, num_workers: 0, augment: {preset: light}}
    unlabeled:
      class_path: ClassificationData
      init_args: {source: SOURCE, image_size: 32, num_workers: 0, augment: {preset: rand}, cache: none}
    ratio: 2
"""
CONFIGS = {
    "classification": CLASSIFICATION,
    "detection": DETECTION,
    "segmentation": SEGMENTATION,
    "noisy_student": NOISY_STUDENT,
}


class Kill(Callback):
    """SIGKILL at a batch, counted over all epochs, or the first one after it that is not done yet.

    Before it, behind it, or in the next validation.
    """

    batch, place = 0, "end"

    def _dies(self, trainer: Any, batch_idx: int, place: str) -> None:
        number = trainer.current_epoch * trainer.num_training_batches + batch_idx
        if self.place == place and number >= self.batch:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self._dies(trainer, batch_idx, "start")

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.seen = trainer.current_epoch * trainer.num_training_batches + batch_idx
        self._dies(trainer, batch_idx, "end")

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        if self.place == "validation" and getattr(self, "seen", -1) >= self.batch:
            os.kill(os.getpid(), signal.SIGKILL)


def fit(config: Path, runs: str, *flags: str) -> int:
    return in_child(lambda: main(["fit", "--config", str(config), "--runs_dir", runs, "--name", "run", *flags]))


def rows(runs: str) -> list[dict[str, str]]:
    with open(Path(runs, "run", "0", "metrics.csv"), newline="") as file:
        return list(csv.DictReader(file))


def assert_equal(a: Any, b: Any, where: str) -> None:
    """Tensors bit by bit, at any depth."""
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_equal(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_equal(x, y, f"{where}.{i}")
    else:
        assert a == b, where


def assert_the_same(runs: str, whole: str) -> None:
    for name in ("last", "best"):
        ours, theirs = (
            torch.load(Path(folder, "run", "0", "checkpoints", f"{name}.ckpt"), weights_only=True)
            for folder in (runs, whole)
        )
        for key in ("epoch", "global_step", "state_dict", "current_model_state", "optimizer_states", "lr_schedulers"):
            assert_equal(ours[key], theirs[key], f"{name}.{key}")
    assert rows(runs) == rows(whole)


@pytest.mark.slow
@pytest.mark.parametrize("task", CONFIGS)
def test_killed_at_twenty_random_steps_a_run_is_the_undisturbed_one(task: str, tmp_path: Path):
    counts = {"train/a": 20, "train/b": 20, "val/a": 3, "val/b": 4}
    source = write_images(tmp_path / "pictures", counts, (32, 32))
    config = tmp_path / "config.yaml"
    config.write_text(CONFIGS[task].replace("SOURCE", str(source)) + TRAINER)
    assert fit(config, "whole", "--trainer.save_every_n_steps=1000") == 0
    batches = 3 * 10
    killer = f"--trainer.callbacks={__name__}.Kill"
    killed = 0
    for series in range(SERIES):
        rng, runs = random.Random(f"{task} {series}"), f"cut{series}"
        for number in sorted(rng.sample(range(batches - 1), KILLS)):
            Kill.batch, Kill.place = number, rng.choice(["start", "end", "validation"])
            status = fit(config, runs, killer, "--resume=auto")
            killed += status == -signal.SIGKILL
            assert status in (0, -signal.SIGKILL), (series, number, Kill.place)  # 0: the last validation was over
        assert fit(config, runs, "--resume=auto") == 0
        found = [path.name for path in Path(runs, "run").iterdir()]
        newest = max(found, key=int)  # a run that was killed before its first checkpoint is begun anew
        if newest != "0":
            Path(runs, "run", "0").rename(tmp_path / f"{runs}.first")
            Path(runs, "run", newest).rename(Path(runs, "run", "0"))
        assert_the_same(runs, "whole")
    assert killed >= SERIES * KILLS - 2
    print(f"{task}: killed {killed} times in {SERIES} runs")


@pytest.mark.slow
def test_fifty_kills_while_saving_on_another_filesystem(tmp_path: Path):
    """Row 7: /dev/shm is a tmpfs; the files are as large as those of a small net, so that a kill often hits a write."""
    shared = Path("/dev/shm")
    if not shared.is_dir() or shared.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("no other filesystem here")
    folder = shared / f"kills-{os.getpid()}"
    state = {"state_dict": {f"w{i}": torch.full((1_000_000,), float(i)) for i in range(5)}}
    rng, hit = random.Random(0), 0
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        step = 0
        for _ in range(50):
            reader, writer = os.pipe()
            child = os.fork()
            if child == 0:
                try:
                    for number in range(step + 1, step + 1000):
                        for name in ("last", "best"):
                            AtomicCheckpointIO().save_checkpoint(
                                {**state, "global_step": number}, folder / f"{name}.ckpt"
                            )
                            os.write(writer, number.to_bytes(4, "little"))
                finally:
                    os._exit(1)
            os.close(writer)
            saved = int.from_bytes(os.read(reader, 4), "little")  # the first save is done
            time.sleep(rng.uniform(0, 0.1))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            while more := os.read(reader, 4):
                saved = int.from_bytes(more, "little")
            os.close(reader)
            hit += any(folder.glob(".*.tmp"))
            newest = newest_good_checkpoint(folder)
            assert newest is not None
            step = AtomicCheckpointIO().load_checkpoint(newest)["global_step"]
            assert step >= saved
            for file in folder.glob("*.ckpt"):
                AtomicCheckpointIO().load_checkpoint(file)
        assert hit > 10, f"only {hit} kills came while a file was written"
        print(f"{hit} of 50 kills came while a file was written")
    finally:
        torch.set_num_threads(threads)
        for file in folder.glob("*") if folder.is_dir() else ():
            file.unlink()
        folder.rmdir()
