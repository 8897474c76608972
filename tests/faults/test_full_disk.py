"""Row 8: a full disk costs no older checkpoint, and no training where there is room again in time.

A limit on the size of files, set in a child, is a real failure in the middle of a write.
"""

from __future__ import annotations

import csv
import resource
from pathlib import Path

import pytest
import torch
from pytorch_lightning.callbacks import Callback

from pipelines.__main__ import main
from pipelines.run.metrics_file import MetricsCSV
from tests.conftest import in_child, write_images
from tests.pipelines.test_ranks import CONFIG

UNLIMITED = resource.RLIM_INFINITY


def limit(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, UNLIMITED))


class Fill(Callback):
    """The disk is full in the second epoch, and from then on where there is no fourth."""

    def on_train_epoch_start(self, trainer, pl_module):
        is_full = trainer.current_epoch == 1 or (trainer.current_epoch > 1 and trainer.max_epochs < 4)
        limit(20_000 if is_full else UNLIMITED)


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    source = write_images(tmp_path / "pictures", {"train/a": 8, "train/b": 8, "val/a": 2, "val/b": 2}, (32, 32))
    (tmp_path / "config.yaml").write_text(CONFIG.format(source=source))
    return ["fit", "--config", "config.yaml", f"--trainer.callbacks={__name__}.Fill"]


def state(name: str) -> dict:
    return torch.load(f"runs/config/0/checkpoints/{name}.ckpt", weights_only=True)


@pytest.mark.slow
def test_a_full_disk_is_outlived(command, capfd):
    assert in_child(lambda: main([*command, "--trainer.max_epochs", "4"])) == 0
    said = capfd.readouterr().err
    assert said.count("warning: cannot write the checkpoint") == 2, "one line a file: best and last"
    assert "Traceback" not in said
    assert state("last")["global_step"] == 16
    assert state("best")["epoch"] != 1
    with open("runs/config/0/metrics.csv", newline="") as file:
        assert [int(row["step"]) for row in csv.DictReader(file)] == list(range(16))


@pytest.mark.slow
def test_a_disk_that_stays_full_ends_the_run_with_the_older_checkpoint_intact(command, capfd):
    assert in_child(lambda: main([*command, "--trainer.max_epochs", "3", "--trainer.max_failed_saves", "9"])) == 1
    said = capfd.readouterr().err
    assert said.count("error: ") == 1
    assert "last.ckpt (File too large" in said
    assert "The training has ended, and its last weights are in no file." in said
    assert "Traceback" not in said
    assert state("last")["global_step"] == 4


@pytest.mark.slow
def test_several_failures_in_a_row_end_the_run(command, capfd):
    flags = ["--trainer.max_epochs", "3", "--trainer.max_failed_saves", "1"]
    assert in_child(lambda: main([*command, *flags])) == 1
    said = capfd.readouterr().err
    assert "That happened once (trainer.max_failed_saves 1), so the run ends." in said
    assert "Traceback" not in said


def test_rows_wait_in_memory_where_the_disk_is_full(tmp_path):
    """Also one that was cut in the middle; nothing is written twice."""

    def work() -> int:
        log = MetricsCSV(tmp_path)
        for step in range(9):
            limit(60 if 3 <= step < 6 else UNLIMITED)
            log.log_metrics({"a": step, "epoch": 0}, step)
            log.log_metrics({"b": step + 0.5}, step)
        log.finalize("success")
        return 0

    assert in_child(work) == 0
    with open(tmp_path / "metrics.csv", newline="") as file:
        rows = [tuple(row.values()) for row in csv.DictReader(file)]
    assert rows == [(str(step), "0", str(step), str(step + 0.5)) for step in range(9)]
