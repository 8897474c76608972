"""Exact resume: killed inside an epoch and continued, a run ends with the very weights of an undisturbed one."""

from __future__ import annotations

import csv
import os
import signal
from pathlib import Path

import pytest
import torch
from pytorch_lightning.callbacks import Callback

from pipelines.__main__ import main
from tests.conftest import in_child, write_images
from tests.ranks import in_ranks

CONFIG = """
model:
  class_path: Classification
  init_args:
    backbone: test_resnet
    drop_rate: 0.3
    mixup: 0.4
    erasing: 0.3
    color_jitter: 0.2
    optim: {{name: sgd, lr: 0.05, warmup_epochs: 1}}
data:
  class_path: ClassificationData
  init_args:
    source: {source}
    image_size: 32
    batch_size: 4
    num_workers: {workers}
    cache: {cache}
    augment: {{preset: light, crop: pad}}
trainer:
  max_epochs: 3
  accumulate_grad_batches: 2
  ema_decay: 0.9
  log_every_n_steps: 2
  save_every_n_steps: 3
  enable_progress_bar: false
  enable_model_summary: false
  num_sanity_val_steps: 0
  val_check_interval: {val_check_interval}
  wandb: {{mode: "off"}}
"""
# 44 images in batches of 4, two batches a step: 11 batches and 6 steps an epoch (the last of one batch).
# Saved inside an epoch at steps 3, 9 and 15, that is behind batch 6.


class KillAt(Callback):
    """SIGKILL behind a batch of an epoch: no handler runs, nothing is flushed."""

    epoch, batch = 1, 8

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.current_epoch == self.epoch and batch_idx == self.batch:
            os.kill(os.getpid(), signal.SIGKILL)


def fit(config: Path, runs: str, *flags: str) -> int:
    return in_child(lambda: main(["fit", "--config", str(config), "--runs_dir", runs, *flags]))


def last_state(runs: str) -> dict:
    return torch.load(Path(runs) / "config" / "0" / "checkpoints" / "last.ckpt", weights_only=True)


def rows(runs: str) -> list[dict[str, str]]:
    with open(Path(runs) / "config" / "0" / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def assert_equal(a: dict, b: dict, key: str) -> None:
    assert a[key].keys() == b[key].keys()
    for name in a[key]:
        assert torch.equal(a[key][name], b[key][name]), f"{key}: {name}"


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    counts = {"train/a": 22, "train/b": 22, "val/a": 3, "val/b": 4}
    return write_images(tmp_path_factory.mktemp("data") / "pictures", counts, (32, 32))


@pytest.fixture(scope="module")
def undisturbed(source, tmp_path_factory):
    """A function that gives the folder of an undisturbed run; each is trained once.

    Loader workers and checkpoints inside epochs change no outcome, so that it has neither.
    """
    made: dict[tuple[str, float], str] = {}

    def get(cache: str, val_check_interval: float) -> str:
        key = (cache, val_check_interval)
        if key not in made:
            root = tmp_path_factory.mktemp("whole")
            settings = {"source": source, "workers": 0, "cache": cache, "val_check_interval": val_check_interval}
            (root / "config.yaml").write_text(CONFIG.format(**settings))
            assert fit(root / "config.yaml", str(root / "runs"), "--trainer.save_every_n_steps", "100") == 0
            made[key] = str(root / "runs")
        return made[key]

    return get


@pytest.mark.parametrize(
    ("workers", "cache", "val_check_interval", "resume_workers"),
    [
        pytest.param(0, "none", 1.0, 2, marks=pytest.mark.slow),  # no validation between save and kill
        (2, "none", 8, 0),  # persistent workers; a validation between the save behind batch 6 and the kill behind 8
        pytest.param(0, "tensor", 8, 0, marks=pytest.mark.slow),
    ],
)
def test_killed_and_continued_equals_undisturbed(
    tmp_path, source, undisturbed, workers, cache, val_check_interval, resume_workers
):
    config = tmp_path / "config.yaml"
    settings = {"source": source, "workers": workers, "cache": cache, "val_check_interval": val_check_interval}
    config.write_text(CONFIG.format(**settings))
    whole_run = undisturbed(cache, val_check_interval)

    killer = f"--trainer.callbacks={__name__}.KillAt"
    assert fit(config, "cut", killer) == -signal.SIGKILL
    saved = last_state("cut")
    assert (saved["epoch"], saved["global_step"]) == (1, 9)  # written inside the second epoch
    loader = saved["loops"]["fit_loop"]["state_dict"]["combined_loader"][0]
    assert loader == {"epoch": 1, "batches": 6}
    assert fit(config, "cut", "--resume", "auto", "--data.num_workers", str(resume_workers)) == 0
    assert [d.name for d in (Path("cut") / "config").iterdir()] == ["0"]

    whole, cut = last_state(whole_run), last_state("cut")
    assert whole["global_step"] == cut["global_step"] == 18
    assert_equal(whole, cut, "state_dict")
    assert_equal(whole, cut, "current_model_state")
    assert any(not torch.equal(whole["state_dict"][k], whole["current_model_state"][k]) for k in whole["state_dict"])
    steps = [int(row["step"]) for row in rows("cut")]
    assert steps == sorted(set(steps))
    assert rows("cut") == rows(whole_run)


class SignalAt(Callback):
    """What a cluster does before it takes a job back; between the two batches of an accumulated step."""

    number, batch = signal.SIGTERM, 4

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.current_epoch == 1 and batch_idx == self.batch and trainer.is_global_zero:
            os.kill(os.getpid(), self.number)


class SignalInTheLastBatch(SignalAt):
    """The other signal, in the last batch of an epoch, to the whole process group: loader workers get it, too."""

    number, batch = signal.SIGUSR1, 10

    def on_fit_start(self, trainer, pl_module):
        os.setpgid(0, 0)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.current_epoch == 1 and batch_idx == self.batch:
            os.killpg(os.getpgrp(), self.number)


class SignalToTheGroup(SignalInTheLastBatch):
    """SIGTERM in an early batch: workers have to go on until the step is complete."""

    number, batch = signal.SIGTERM, 4


@pytest.mark.parametrize(
    ("signaller", "step", "workers"),
    [
        ("SignalAt", 9, 0),
        ("SignalInTheLastBatch", 12, 1),
        pytest.param("SignalToTheGroup", 9, 1, marks=pytest.mark.slow),
    ],
)
def test_a_job_that_is_taken_back_saves_and_goes_on_exactly(tmp_path, source, undisturbed, signaller, step, workers):
    config, epoch = tmp_path / "config.yaml", 1
    config.write_text(CONFIG.format(source=source, workers=workers, cache="none", val_check_interval=1.0))
    never = "--trainer.save_every_n_steps=100"
    whole = undisturbed("none", 1.0)
    number = globals()[signaller].number
    assert fit(config, "cut", never, f"--trainer.callbacks={__name__}.{signaller}") == 128 + number
    saved = last_state("cut")
    assert (saved["epoch"], saved["global_step"]) == (epoch, step)
    assert fit(config, "cut", never, "--resume", "auto", "--data.num_workers=0") == 0
    assert_equal(last_state(whole), last_state("cut"), "state_dict")
    assert rows("cut") == rows(whole)


class SignalBeforeValidation(SignalAt):
    """In the batch behind which a validation inside the epoch follows, and an accumulated step is complete."""

    batch = 7


class KillInValidation(Callback):
    """SIGKILL inside a validation inside an epoch, whose step was to be saved."""

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        if trainer.current_epoch == 1 and trainer.global_step == 10:
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    ("disturber", "status"),
    [
        ("SignalBeforeValidation", 128 + signal.SIGTERM),
        pytest.param("KillInValidation", -signal.SIGKILL, marks=pytest.mark.slow),
    ],
)
def test_a_validation_inside_an_epoch_is_done_once(tmp_path, source, undisturbed, disturber, status):
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG.format(source=source, workers=0, cache="none", val_check_interval=8))
    whole = undisturbed("none", 8)
    often = "--trainer.save_every_n_steps=5"
    assert fit(config, "cut", often, f"--trainer.callbacks={__name__}.{disturber}") == status
    assert fit(config, "cut", often, "--resume", "auto") == 0
    assert rows("cut") == rows(whole)
    assert_equal(last_state(whole), last_state("cut"), "state_dict")
    best = [torch.load(Path(runs) / "config/0/checkpoints/best.ckpt", weights_only=True) for runs in (whole, "cut")]
    assert_equal(*best, "state_dict")
    assert best[0]["global_step"] == best[1]["global_step"]


def test_one_signalled_rank_stops_all(tmp_path, folder):
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG.format(source=folder, workers=0, cache="none", val_check_interval=1.0))
    flags = ["--trainer.accelerator=cpu", "--trainer.devices=2", "--trainer.strategy=ddp"]
    flags += ["--data.batch_size=2", f"--trainer.callbacks={__name__}.SignalAt"]
    SignalAt.batch = 0
    try:
        words = ["fit", "--config", str(config), "--runs_dir", "runs", *flags]
        assert in_ranks(lambda: main(words)) == [128 + signal.SIGTERM] * 2
    finally:
        SignalAt.batch = 4
    assert last_state("runs")["epoch"] == 1


def test_resume_auto_starts_a_run_where_there_is_nothing_to_resume_and_leaves_older_runs_alone(tmp_path, folder):
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG.format(source=folder, workers=0, cache="none", val_check_interval=1.0))
    assert fit(config, "runs", "--resume", "auto", "--trainer.max_epochs", "1") == 0
    before = last_state("runs")
    assert before["epoch"] == 0
    (Path("runs") / "config" / "1").mkdir()  # a newer run that was killed before its first checkpoint
    assert fit(config, "runs", "--resume", "auto", "--trainer.max_epochs", "2") == 0
    assert (Path("runs") / "config" / "2" / "checkpoints" / "last.ckpt").exists()
    assert last_state("runs")["global_step"] == before["global_step"]


def test_the_config_is_the_source_of_truth_on_resume(tmp_path, folder):
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG.format(source=folder, workers=0, cache="none", val_check_interval=1.0))
    assert fit(config, "runs", "--trainer.max_epochs", "1") == 0
    changed = ["--model.optim.momentum", "0.5", "--model.optim.weight_decay", "0.01"]
    assert fit(config, "runs", "--resume", "auto", "--trainer.max_epochs", "2", *changed) == 0
    group = last_state("runs")["optimizer_states"][0]["param_groups"][0]
    assert group["momentum"] == 0.5
    assert (Path("runs") / "config" / "0" / "config.1.yaml").exists()
