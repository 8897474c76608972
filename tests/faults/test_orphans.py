"""Row 13: a rank whose launcher has died does not train on."""

from __future__ import annotations

import os
import signal
import time

from pipelines.orphans import end_with_the_launcher


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
