"""``doctor``: one page for a bug report."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipelines.__main__ import main
from pipelines.doctor import machine, two_ranks
from pipelines.doctor.machine import _packages, _shared
from pipelines.doctor.trial import _pace, _part
from pipelines.hardware import memory, number_in

DIGITS = ["--model=Classification", "--model.backbone=lenet5", "--data=ClassificationData", "--data.source=digits"]
DIGITS += ["--data.image_size=28", "--data.in_chans=1", "--data.batch_size=16", "--data.num_workers=0"]
DIGITS += ["--trainer.accelerator=cpu", "--trainer.max_epochs=3"]


@pytest.fixture
def without_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each process takes seconds to import torch."""
    monkeypatch.setattr(machine, "difference", lambda limit: 0.0)


def test_the_page(without_ranks: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef0123456789abcdef01234567")
    assert main(["doctor"]) == 0
    page = capsys.readouterr().out
    for word in ("torch ", "cores", "memory", "/dev/shm", "open files", "fonts", "two ranks", "offline, by WANDB_MODE"):
        assert word in page
    assert len(page.splitlines()) < 60
    assert "0123456789abcdef" not in page
    assert str(Path.home()) not in page
    assert main(["doctor", "now"]) == 2


def test_a_config_is_measured_and_nothing_is_written(without_ranks: None, capsys: pytest.CaptureFixture[str]):
    assert main(["doctor", *DIGITS]) == 0
    page = capsys.readouterr().out
    assert "recipe    3 epochs, 78 batches an epoch" in re.sub(r"recipe +", "recipe    ", page)
    assert re.search(r"s a batch of 16 with loading, \S+ images/s \(20 batches measured\)", page)
    assert re.search(r"an epoch: about \S+ \(78 batches and \d+ of validation\); 3 epochs: about", page)
    assert re.search(r"memory: \S+ GiB of \S+ GiB at most", page)
    assert list(Path().iterdir()) == []


def test_what_is_wrong_is_told_and_fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def broken(limit: float) -> float:
        raise TimeoutError("not done after 90 s")

    monkeypatch.setattr(machine, "difference", broken)
    assert main(["doctor"]) == 1
    page = capsys.readouterr().out
    assert "problem: Two processes of this machine do not train together (TimeoutError: not done after 90 s)" in page
    monkeypatch.setattr("resource.getrlimit", lambda _: (256, 4096))
    assert "ulimit -n" in str(machine._files().problem)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=60 * 2**20, total=64 * 2**20))
    assert "60 MiB free" in str(_shared().problem)


def test_packages_are_compared_with_what_is_needed(monkeypatch: pytest.MonkeyPatch):
    assert _packages().problem is None
    versions = {"timm": "0.9", "wandb": None}
    monkeypatch.setattr(machine, "version_of", lambda name: versions.get(name, "999"))
    problem = str(_packages().problem)
    assert "timm is 0.9, but <2,>=1.0.22 is needed" in problem
    assert "wandb is not installed" in problem


def test_numbers(tmp_path: Path):
    (tmp_path / "info").write_text("MemTotal: 3 kB\nMemAvailable: 2 kB\n")
    assert number_in(tmp_path / "info", "MemAvailable:") == 2
    assert number_in(tmp_path / "info", "Swap:") is None
    assert number_in(tmp_path / "none") is None
    limit, free = memory()
    assert 0 < free <= limit
    assert _pace([9, 9, 9, 9, 9, 1, 3]) == pytest.approx((9 + 9 + 1 + 3) / 4)
    assert _pace([9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 1, 3]) == pytest.approx((9 * 5 + 4) / 7)
    assert _pace([]) == 0
    assert (_part(5, range(9)), _part(0.5, [range(4), range(6)]), _part(1.0, None)) == (5, 5, 0)


@pytest.mark.slow
def test_two_processes_train_as_one():
    assert two_ranks.difference(120) <= two_ranks.TOLERANCE
