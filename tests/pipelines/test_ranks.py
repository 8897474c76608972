"""Two ranks on a CPU (gloo) give what one process gives: metrics, losses, files, predictions, a resumed run.

Most ranks are forked with the environment that torchrun sets; one test really launches `--trainer.devices 2`, and the
slow one real torchrun.
"""

from __future__ import annotations

import csv
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning.callbacks import Callback

from datamodules import ClassificationData
from pipelines.__main__ import main
from pipelines.report.measured import file_of, read
from tests.conftest import in_child, write_images
from tests.ranks import in_ranks

HOUSE = Path(__file__).parents[2]
CONFIG = """
model:
  class_path: Classification
  init_args:
    backbone: test_resnet
    optim: {{name: sgd, lr: 0.02}}
data:
  class_path: ClassificationData
  init_args:
    source: {source}
    image_size: 32
    batch_size: 4
    eval_batch_size: 3
    num_workers: 0
    cache: none
    augment: {{preset: light, crop: pad}}
trainer:
  accelerator: cpu
  max_epochs: 2
  log_every_n_steps: 1
  enable_progress_bar: false
  enable_model_summary: false
  wandb: {{mode: "off"}}
"""
TWO = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
# 7 validation images: rank 0 has 4 in 2 batches, rank 1 has 3 in 1 batch.
COUNTS = {"train/a": 12, "train/b": 12, "val/a": 3, "val/b": 4, "test/a": 4, "test/b": 3}


class Watch(Callback):
    """Writes what each rank sees and holds: the paths of each step, and the state at each epoch's end."""

    def on_train_start(self, trainer, pl_module):
        self.paths: list[list[str]] = []
        self.states = [self.state(pl_module)]

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.paths.append(batch["path"])

    def on_train_epoch_end(self, trainer, pl_module):
        self.states.append(self.state(pl_module))

    def on_train_end(self, trainer, pl_module):
        torch.save(self.states, f"states.{trainer.world_size}.{trainer.global_rank}.pt")
        Path(f"paths.{trainer.world_size}.{trainer.global_rank}.json").write_text(json.dumps(self.paths))

    @staticmethod
    def state(pl_module) -> dict[str, torch.Tensor]:
        return {name: value.clone() for name, value in pl_module.network.state_dict().items()}


class KillAt(Callback):
    """SIGKILL behind the second batch of the second epoch, on every rank."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.current_epoch == 1 and batch_idx == 1:
            trainer.strategy.barrier()
            os.kill(os.getpid(), signal.SIGKILL)


WATCH = f"--trainer.callbacks={__name__}.Watch"


def write_config(directory: Path) -> Path:
    source = write_images(directory / "pictures", COUNTS, (32, 32))
    # One image of each class has the color of the other: accuracy is neither 0 nor 1, whatever the net has learned.
    for split in ("val", "test"):
        a, b, between = (source / split / name for name in ("a/000.jpg", "b/000.jpg", "between"))
        a.rename(between), b.rename(a), between.rename(b)
    path = directory / "config.yaml"
    path.write_text(CONFIG.format(source=source))
    return path


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return write_config(tmp_path)


def launch(directory: Path, *launcher: str) -> subprocess.Popen[str]:
    """Start a real launcher in a session of its own."""
    flags = ["fit", "--config", str(write_config(directory)), *TWO, "--trainer.wandb.mode", "offline"]
    return subprocess.Popen(
        [sys.executable, *launcher, *flags],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(HOUSE), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


@pytest.fixture(scope="module", autouse=True)
def devices_2(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """`python -m pipelines fit --trainer.devices 2`: it runs beside the other tests, for its imports take 20 s."""
    if not any(item.name == "test_launched_by_devices" for item in request.session.items):
        yield None
        return
    directory = tmp_path_factory.mktemp("devices")
    process = launch(directory, "-m", "pipelines")
    yield process, directory
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)


def one(command: str, config: Path, *flags: str) -> None:
    assert in_child(lambda: main([command, "--config", str(config), *flags])) == 0


def two(command: str, config: Path, *flags: str) -> None:
    assert in_ranks(lambda: main([command, "--config", str(config), *TWO, *flags])) == [0, 0]


def rows(runs: str) -> list[dict[str, str]]:
    with open(Path(runs) / "config" / "0" / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def last(runs: str, name: str = "last") -> dict:
    return torch.load(Path(runs) / "config" / "0" / "checkpoints" / f"{name}.ckpt", weights_only=True)


def evaluated(runs: str, command: str) -> dict:
    """What the last ``validate`` or ``test`` wrote; the file goes, so that it is not read twice."""
    path = Path(runs) / "config" / "0" / f"{command}.json"
    content = json.loads(path.read_text())
    path.unlink()
    return content


def assert_same_metrics(a: dict, b: dict) -> None:
    """Counts are exact; of the mean loss the last bit depends on the order of the sum."""
    assert a.keys() == b.keys()
    for name in a:
        if name.endswith("/loss"):
            assert math.isclose(a[name], b[name], rel_tol=1e-6), name
        else:
            assert a[name] == b[name], name


def test_metrics_and_predictions_of_odd_sets_equal_one_process(config):
    two("fit", config, "--trainer.ema_decay", "0.9")  # without it: the launched runs below
    in_fit = {name: float(value) for name, value in rows("runs")[-1].items() if name.startswith("val/")}
    two("validate", config, "--ckpt_path", "last")
    of_two = evaluated("runs", "validate")
    one("validate", config, "--ckpt_path", "last")
    of_one = evaluated("runs", "validate")
    assert_same_metrics(of_two, of_one)
    assert_same_metrics(in_fit, {name: of_one[name] for name in in_fit})  # the net has batch norm
    assert of_one["val/accuracy"] * 7 == pytest.approx(round(of_one["val/accuracy"] * 7), abs=1e-5)
    assert 0 < of_one["val/accuracy"] < 1
    assert sum(of_one["per_class"]["support"]) == 7

    written = Path("runs/config/0/predictions.csv")
    two("test", config)
    tested, predictions = evaluated("runs", "test"), written.read_bytes()
    written.unlink()
    of_images = file_of(Path("runs/config/0"), "test")
    gathered = read(of_images)
    of_images.unlink()
    one("test", config)
    alone = read(of_images)
    assert gathered.facts == alone.facts
    assert gathered.names == alone.names
    assert gathered.arrays["classes"].tolist() == alone.arrays["classes"].tolist()
    assert len(gathered) == 7
    assert_same_metrics(tested, evaluated("runs", "test"))
    assert written.read_bytes() == predictions
    assert len(predictions.splitlines()) == 1 + 7
    assert not list(Path("runs/config/0").glob(".predictions*"))

    # A checkpoint that was copied elsewhere: rank 1 learns from rank 0 where to write.
    Path("copied.ckpt").write_bytes(Path("runs/config/0/checkpoints/best.ckpt").read_bytes())
    flags = ["--ckpt_path", "copied.ckpt", "--trainer.accelerator", "cpu", *TWO]
    assert in_ranks(lambda: main(["test", *flags])) == [0, 0]
    assert Path("runs/config/1/predictions.csv").read_bytes() == predictions


def test_a_rank_without_images(config, tmp_path):
    lone = write_images(tmp_path / "lone", {"train/a": 8, "train/b": 8, "val/a": 1, "test/b": 1}, (32, 32))
    flags = ["--data.source", str(lone), "--trainer.max_epochs", "1"]
    two("fit", config, *flags)
    assert float(rows("runs")[-1]["val/accuracy"]) in (0.0, 1.0)
    two("test", config, *flags)
    of_two = evaluated("runs", "test")
    one("test", config, *flags)
    assert_same_metrics(of_two, evaluated("runs", "test"))
    assert of_two["per_class"]["support"] == [0, 1]
    two("predict", config, *flags)
    assert len(Path("runs/config/0/predict/predictions.csv").read_text().splitlines()) == 1 + 1


def test_training_equals_one_process_and_goes_on_with_one(config):
    """The same global batch and a net without batch norm; augmentation is keyed by the place in the global order."""
    net = ["--model.backbone", "lenet5"]
    two("fit", config, *net, WATCH, "--runs_dir", "two")
    one("fit", config, *net, WATCH, "--runs_dir", "one", "--data.batch_size", "8")
    assert_close(rows("two"), rows("one"))
    assert len(rows("two")) == 6

    both, alone = (
        [json.loads(Path(f"paths.{name}.json").read_text()) for name in n] for n in (("2.0", "2.1"), ("1.0",))
    )
    for first, second, whole in zip(both[0], both[1], alone[0], strict=True):
        assert len(first) == len(second) == 4
        assert not set(first) & set(second)
        assert first + second == whole
    assert len(both[0]) == 6

    killed = [-signal.SIGKILL] * 2
    flags = [*net, "--runs_dir", "cut", "--trainer.save_every_n_steps", "1", "--trainer.log_every_n_steps", "3"]
    killer = f"--trainer.callbacks={__name__}.KillAt"
    assert in_ranks(lambda: main(["fit", "--config", str(config), *TWO, *flags, killer])) == killed
    one("fit", config, *net, "--runs_dir", "cut", "--resume", "auto", "--data.batch_size", "8")
    assert_close(rows("cut")[-1:], rows("one")[-1:])
    assert_close_states(last("cut"), last("one"))


def assert_close(a: list[dict[str, str]], b: list[dict[str, str]]) -> None:
    assert [row["step"] for row in a] == [row["step"] for row in b]
    for row, other in zip(a, b, strict=True):
        assert row.keys() == other.keys()
        for name in row:
            if "loss" in name and row[name]:
                assert abs(float(row[name]) - float(other[name])) < 1e-5, (row["step"], name)


def assert_close_states(a: dict, b: dict) -> None:
    for name, value in a["state_dict"].items():
        assert torch.allclose(value, b["state_dict"][name], atol=1e-5), name


def test_killed_and_continued_on_two_ranks_equals_undisturbed(config):
    """Batch norm, dropout and sums of the loss that are not flushed yet where the checkpoint is written."""
    flags = ["--model.drop_rate", "0.3", "--trainer.log_every_n_steps", "3", "--trainer.save_every_n_steps", "1"]
    flags += ["--trainer.ema_decay", "0.9"]
    two("fit", config, *flags, "--runs_dir", "whole")
    killer = f"--trainer.callbacks={__name__}.KillAt"
    cut = ["fit", "--config", str(config), *TWO, *flags, "--runs_dir", "cut"]
    assert in_ranks(lambda: main([*cut, killer])) == [-signal.SIGKILL] * 2
    assert (last("cut")["epoch"], last("cut")["global_step"]) == (1, 4)  # inside the epoch
    assert in_ranks(lambda: main([*cut, "--resume", "auto"])) == [0, 0]
    assert [d.name for d in Path("cut/config").iterdir()] == ["0"]
    for name, value in last("whole")["state_dict"].items():
        assert torch.equal(value, last("cut")["state_dict"][name]), name
    assert rows("cut") == rows("whole")


def test_scheduled_unfreezing(config):
    """Before its epoch the backbone and its norms' statistics stay as they are; after it the ranks stay equal."""
    two("fit", config, "--model.freeze_backbone", "true", "--model.unfreeze_at_epoch", "1", WATCH)
    (start, frozen, trained), other = (torch.load(f"states.2.{rank}.pt") for rank in (0, 1))
    head = {name for name in start if name.startswith("fc.")}
    counters = {name for name in start if name.endswith("num_batches_tracked")}
    weights = {name for name in start if name not in counters and "running_" not in name}
    assert head
    assert counters
    for name in start:
        assert torch.equal(start[name], frozen[name]) == (name not in head), name
    assert all(trained[name] - frozen[name] == 3 for name in counters)  # norms work in training mode, 3 steps an epoch
    assert all(not torch.equal(frozen[name], trained[name]) for name in weights if start[name].ndim > 1)
    for moment, state in enumerate((start, frozen, trained)):
        for name in weights:
            assert torch.equal(state[name], other[moment][name]), (moment, name)


def test_staged_data_are_the_same_data(tmp_path):
    """A job that unpacks its images somewhere else goes on without a warning; a changed folder is told apart."""
    digests = []
    for place, counts in (("a", COUNTS), ("elsewhere/b", COUNTS), ("c", {**COUNTS, "test/a": 5})):
        data = ClassificationData(str(write_images(tmp_path / place, counts)))
        data.setup()
        digests.append(data.split_digest)
    assert digests[0] == digests[1] != digests[2]


def test_launched_by_devices(devices_2, monkeypatch):
    process, directory = devices_2
    monkeypatch.chdir(directory)
    assert_one_run_of_two_ranks(process)


@pytest.mark.slow
def test_launched_by_torchrun(tmp_path):
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    process = launch(tmp_path, *torchrun, "-m", "pipelines")
    try:
        assert_one_run_of_two_ranks(process)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def assert_one_run_of_two_ranks(process: subprocess.Popen[str]) -> None:
    output, _ = process.communicate(timeout=900)
    assert process.returncode == 0, output
    assert "2 processes" in output
    assert output.count("  trained ") == 1
    assert "Warning" not in output
    assert "sync_dist" not in output
    run = Path("runs/config/0")
    assert list(Path("runs").iterdir()) == [run.parent]
    assert list(run.parent.iterdir()) == [run]
    (offline,) = (run / "wandb").glob("offline-run-*")
    assert offline.name.endswith((run / "wandb_id.txt").read_text().strip())
    assert [p.name for p in run.glob("config*.yaml")] == ["config.yaml"]
    assert len(json.loads((run / "environment.json").read_text())) == 1
    assert [int(row["step"]) for row in rows("runs")] == [0, 1, 2, 3, 4, 5]
    in_fit = {name: float(value) for name, value in rows("runs")[-1].items() if name.startswith("val/")}
    one("validate", Path("config.yaml"), "--ckpt_path", "last")
    of_one = evaluated("runs", "validate")
    assert_same_metrics(in_fit, {name: of_one[name] for name in in_fit})
