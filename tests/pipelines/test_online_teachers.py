"""The online teachers from end to end: exact resume, ordinary checkpoints, one teacher on all ranks."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
from pathlib import Path

import pytest
import torch
from pytorch_lightning.callbacks import Callback

from pipelines.__main__ import main
from pipelines.config.ready import run_name
from tests.conftest import in_child
from tests.ranks import in_ranks

CONFIG = """
model:
  class_path: NoisyStudent
  init_args:
    teacher: mean_teacher
    threshold: 0.2
    ema_decay: 0.8
    burn_in_steps: 1
    student: {student}
data:
  class_path: SemiSupervised
  init_args:
    labeled:
      class_path: {data}
      init_args:
        source: digits
        num_scenes: {{train: 24, val: 3, test: 3}}
        image_size: 32
        batch_size: 2
        num_workers: 0
    labeled_images: 8
    ratio: 2
    steps_per_epoch: 5
trainer:
  accelerator: cpu
  max_epochs: 2
  accumulate_grad_batches: 2
  log_every_n_steps: 1
  save_every_n_steps: 1
  num_sanity_val_steps: 0
  enable_progress_bar: false
  enable_model_summary: false
  wandb: {{mode: "off"}}
"""
SEGMENTATION = "{class_path: Segmentation, init_args: {backbone: test_resnet, color_jitter: 0.2, optim: {lr: 0.003}}}"
DETECTION = "{class_path: Detection, init_args: {backbone: test_resnet, optim: {lr: 0.003}}}"


class KillAt(Callback):
    """SIGKILL behind a batch of the second epoch: no handler runs, nothing is flushed."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.current_epoch == 1 and batch_idx == 2:
            os.kill(os.getpid(), signal.SIGKILL)


class Keep(Callback):
    """Writes the teacher that each rank holds at the end, and the pool's images that it saw."""

    def on_train_start(self, trainer, pl_module):
        self.paths: list[str] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.paths += batch["unlabeled"]["path"]

    def on_train_end(self, trainer, pl_module):
        torch.save(pl_module.mean_teacher.state_dict(), f"teacher.{trainer.global_rank}.pt")
        torch.save(pl_module.student.state_dict(), f"student.{trainer.global_rank}.pt")
        Path(f"paths.{trainer.global_rank}.json").write_text(json.dumps(self.paths))


def fit(config: Path, runs: str, *flags: str) -> int:
    return in_child(lambda: main(["fit", "--config", str(config), "--runs_dir", runs, *flags]))


def checkpoint(runs: str, name: str = "last") -> dict:
    return torch.load(Path(runs) / "config" / "0" / "checkpoints" / f"{name}.ckpt", weights_only=True)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG.format(student=SEGMENTATION, data="SegmentationData"))
    return path


@pytest.mark.slow
def test_killed_and_continued_equals_undisturbed_and_its_checkpoints_are_ordinary(config):
    average = ["--trainer.ema_decay", "0.9"]
    assert fit(config, "whole", *average) == 0
    assert fit(config, "cut", *average, f"--trainer.callbacks={__name__}.KillAt") == -signal.SIGKILL
    saved = checkpoint("cut")
    assert (saved["global_step"], saved["mean_teacher"]["updates"]) == (4, 4)  # two batches a step
    assert fit(config, "cut", *average, "--resume", "auto") == 0
    whole, cut = checkpoint("whole"), checkpoint("cut")
    assert whole["mean_teacher"]["updates"] == cut["mean_teacher"]["updates"] == whole["global_step"] == 6
    teachers = [c["mean_teacher"]["state_dict"] for c in (whole, cut)]
    for a, b in ((whole["state_dict"], cut["state_dict"]), teachers):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in a)
    assert not any("teacher" in name for name in whole["state_dict"])
    assert any(not torch.equal(teachers[0][name], whole["current_model_state"][name]) for name in teachers[0])

    quiet = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
    files = [str(Path("cut/config/0/checkpoints") / f"{name}.ckpt") for name in ("student", "last")]
    assert in_child(lambda: sum(main(["test", "--ckpt_path", file, *quiet]) for file in files)) == 0
    assert "test/miou" in json.loads(Path("cut/config/0/test.json").read_text())


@pytest.mark.slow
def test_two_ranks_hold_one_teacher_and_see_other_images(config):
    config.write_text(CONFIG.format(student=DETECTION, data="DetectionData"))
    two = ["--trainer.devices", "2", "--trainer.strategy", "ddp", f"--trainer.callbacks={__name__}.Keep"]
    short = ["--trainer.max_epochs", "1", "--trainer.limit_val_batches", "0", "--trainer.enable_checkpointing", "false"]
    assert in_ranks(lambda: main(["fit", "--config", str(config), *two, *short])) == [0, 0]
    first, second = (torch.load(f"teacher.{rank}.pt", weights_only=True)["state_dict"] for rank in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    student = torch.load("student.0.pt", weights_only=True)
    assert any(not torch.equal(first[name], student[name]) for name in first if "running" in name)
    paths = [json.loads(Path(f"paths.{rank}.json").read_text()) for rank in range(2)]
    assert all(
        not set(a) & set(b) for a, b in zip(*[[p[i : i + 4] for i in range(0, 8, 4)] for p in paths], strict=True)
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model.teacher", "offline"], "model.teacher is 'offline', which teaches labels that are there"),
        (["--data.strong.preset", "rand"], "data.strong.preset is 'rand', which moves pixels"),
    ],
)
def test_mistakes_are_told_before_a_run_begins(config, capfd, flags, message):
    if "--model.teacher" in flags:  # without what has no effect beside it
        text = config.read_text()
        for line in ("    threshold: 0.2\n", "    ema_decay: 0.8\n", "    burn_in_steps: 1\n"):
            text = text.replace(line, "")
        config.write_text(text)
    assert fit(config, "runs", *flags) == 2
    assert message in capfd.readouterr().err
    assert not list(Path("runs").rglob("config.yaml"))


ONLINE = [f for f in (Path(__file__).parents[2] / "configs").rglob("*.yaml") if "teacher: " in f.read_text()]
# Options that make a step small, and how many images each split then has.
ONLINE_SIZES = {
    "fixmatch_digits": ([], {"train": 100, "val": 180, "test": 359, "pool": 1158}),
    "mean_teacher_digits": (
        [
            "--data.labeled.num_scenes={train: 60, val: 4, test: 4}",
            "--data.labeled_images=16",
            "--model.burn_in_steps=0",
        ],
        {"train": 16, "val": 4, "test": 4, "pool": 44},
    ),
}


LOSSES = ("train/loss_labeled", "train/loss_unlabeled", "train/cross_entropy", "train/dice")


@pytest.mark.parametrize("path", ONLINE, ids=lambda path: path.stem)
def test_the_ready_config_runs(path):
    """The command in its header, two steps; the pool and its labels are those of the loop's config.

    The teacher of the first steps is sure of nothing, so the threshold is one that each label of ten classes reaches.
    """
    command = re.search(r"^#   python -m pipelines (.+)$", path.read_text(), re.MULTILINE)[1].split()
    assert f"{path.parent.name}/{path.stem}" in command
    flags, sizes = ONLINE_SIZES[path.stem]
    short = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=2", "--trainer.accelerator=cpu", *flags]
    short.append("--model.threshold=0.05")
    assert in_child(lambda: main([*command, *short, "--trainer.wandb.mode=off"])) == 0
    run = Path("runs") / run_name(path) / "0"
    with open(run / "metrics.csv", newline="") as file:
        losses = {name: float(value) for name, value in list(csv.DictReader(file))[-1].items()}
    assert losses["train/kept"] == 1
    parts = [value for name, value in losses.items() if name in LOSSES]
    assert losses["train/loss"] == pytest.approx(sum(parts))
    assert len(parts) == 2
    assert min(parts) > 0
    assert {name: len(paths) for name, paths in json.loads((run / "split.json").read_text()).items()} == sizes
    carried = torch.load(run / "checkpoints" / "student.ckpt", weights_only=True)["config"]
    assert "NoisyStudent" not in carried
