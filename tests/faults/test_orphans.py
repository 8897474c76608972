"""Row 13: a rank whose launcher has died does not train on."""

from __future__ import annotations

import datetime
import os
import signal
import time

import torch
from torch.distributed import all_reduce, init_process_group

from pipelines.orphans import end_with_the_launcher, meet_anew
from tests.ranks import in_ranks


def test_a_rank_ends_with_its_launcher():
    reader, writer = os.pipe()
    launcher = os.fork()
    if launcher == 0:
        os.environ["RANK"] = "0"
        rank = os.fork()
        if rank == 0:
            signal.signal(signal.SIGTERM, lambda *_: (os.write(writer, b"saved"), os._exit(0)))
            end_with_the_launcher()
            os.write(writer, b"ready ")
            time.sleep(30)
            os._exit(1)
        os.close(writer)
        time.sleep(30)
        os._exit(1)
    os.close(writer)
    assert os.read(reader, 6) == b"ready "
    os.kill(launcher, signal.SIGKILL)
    os.waitpid(launcher, 0)
    assert os.read(reader, 5) == b"saved"
    os.close(reader)


def test_a_process_of_its_own_outlives_its_shell(monkeypatch):
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("ctypes.CDLL", None)
    end_with_the_launcher()


def test_ranks_that_are_started_again_meet_at_a_store_of_their_own():
    """torchrun's store still holds the addresses of the ranks that are gone."""

    def connect() -> None:
        init_process_group("gloo", timeout=datetime.timedelta(seconds=60))
        total = torch.ones(1)
        all_reduce(total)
        assert total == 2

    def work() -> None:
        first = os.fork()
        if first == 0:
            connect()
            os._exit(0)
        assert os.waitpid(first, 0)[1] == 0
        os.environ["TORCHELASTIC_RESTART_COUNT"] = "1"
        before = os.environ["MASTER_PORT"]
        meet_anew()
        assert os.environ["MASTER_PORT"] != before
        connect()

    assert in_ranks(work) == [0, 0]


def test_ranks_that_are_started_once_use_the_launchers_store(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    monkeypatch.setenv("MASTER_PORT", "1")
    meet_anew()
    assert os.environ["MASTER_PORT"] == "1"
