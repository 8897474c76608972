"""Row 52: one training writes into a run directory at a time, on whichever machines."""

from __future__ import annotations

import functools
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from datamodules.common import locks
from datamodules.common.errors import UserError
from datamodules.common.locks import HeldError, held
from pipelines.__main__ import main
from pipelines.run import lock as run_lock
from pipelines.run.checkpoints import AtomicCheckpointIO
from pipelines.run.lock import LOCK, only_writer
from pipelines.stages import manifest

fast = functools.partial(held, beat=0.05, stale=0.4, poll=0.02)


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_lock, "held", fast)
    monkeypatch.setattr(manifest, "held", fast)


@contextmanager
def holder_on_another_machine(lock: Path) -> Iterator[None]:
    lock.write_text("node17 4711 abcd")
    ended = threading.Event()
    thread = threading.Thread(target=locks._touch_until, args=(lock, ended, 0.05))
    thread.start()
    yield
    ended.set()
    thread.join()


def test_a_live_holder_is_named_wherever_it_runs(tmp_path: Path):
    refused = pytest.raises(UserError, match=r"is being trained by process 4711 on node17: two trainings")
    with holder_on_another_machine(tmp_path / LOCK), refused, only_writer(tmp_path):
        pass
    assert (tmp_path / LOCK).exists()


def test_a_loop_of_another_machine_keeps_a_second_one_out(tmp_path: Path):
    refused = pytest.raises(manifest.BusyError, match=r"another tune \(process 4711 on node17\) works in")
    lock = tmp_path / ".running.lock"
    with holder_on_another_machine(lock), refused, manifest.only_one(tmp_path, "tune"):
        pass
    with manifest.only_one(tmp_path, "tune"):  # it has ended without a word
        assert lock.read_text().split()[1] == str(os.getpid())
    assert not lock.exists()


def test_one_that_is_silent_is_dead_and_one_that_ends_is_waited_for(tmp_path: Path):
    (tmp_path / LOCK).write_text("node17 4711 abcd")
    start = time.monotonic()
    with only_writer(tmp_path) as waited:
        assert waited
        assert time.monotonic() - start > 0.4
        assert (tmp_path / LOCK).read_text().split()[1] == str(os.getpid())
    assert not (tmp_path / LOCK).exists()
    with only_writer(tmp_path) as waited:
        assert not waited


def test_a_dead_process_of_this_machine_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    ended = subprocess.Popen(["true"])
    ended.wait()
    (tmp_path / LOCK).write_text(locks.token(ended.pid))
    monkeypatch.setattr(run_lock, "held", functools.partial(fast, stale=60))
    with only_writer(tmp_path):
        pass


def test_the_holder_beats(tmp_path: Path):
    refused = pytest.raises(HeldError, match=f"process {os.getpid()} on {socket.gethostname()}")
    with fast(tmp_path / "x"), refused, fast(tmp_path / "x"):
        pass


def test_a_second_resume_beside_a_live_run_is_refused(capsys: pytest.CaptureFixture[str]):
    run = Path("runs/x/0")
    AtomicCheckpointIO().save_checkpoint({"global_step": 1, "state_dict": {}}, run / "checkpoints" / "last.ckpt")
    words = ["fit", "--model=Classification", "--model.backbone=lenet5", "--data=ClassificationData", "--name=x"]
    with holder_on_another_machine(run / LOCK):
        assert main([*words, "--trainer.accelerator=cpu", "--trainer.wandb.mode=off", "--resume=auto"]) == 1
    assert "is being trained by process 4711 on node17" in capsys.readouterr().err
    assert {path.name for path in run.rglob("*")} == {LOCK, "checkpoints", "last.ckpt"}
