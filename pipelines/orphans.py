"""A rank and its launcher: ranks whose launcher has died end too, and those that are started again meet anew."""

from __future__ import annotations

import ctypes
import datetime
import os
import signal
import socket
import sys

from torch.distributed import TCPStore  # type: ignore[attr-defined]

PR_SET_PDEATHSIG = 1  # linux/prctl.h
MEETING_SECONDS = 300.0  # ranks of other nodes may start later


def end_with_the_launcher() -> None:
    """Ask Linux for SIGTERM when the process dies that started this rank; nothing for a process of its own.

    torchrun's agent, killed or ended by a signal that it does not know (SIGUSR1), leaves its ranks training.
    """
    if sys.platform != "linux" or not {"RANK", "LOCAL_RANK"} & os.environ.keys():
        return
    launcher = os.getppid()
    try:
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    except (OSError, AttributeError):  # a C library without it
        return
    if os.getppid() != launcher:  # it died just now
        os.kill(os.getpid(), signal.SIGTERM)


def meet_anew() -> None:
    """Where torchrun has started the ranks again after one had died, let them connect at a store of their own.

    torchrun's store, at which they would meet, still has the addresses of the ranks that are gone, and gloo would wait
    for those until its time is over: https://github.com/pytorch/pytorch/issues/135712. Rank 0 tells the others a port.
    """
    attempt = int(os.environ.get("TORCHELASTIC_RESTART_COUNT") or 0)
    if attempt == 0 or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return
    limit = datetime.timedelta(seconds=MEETING_SECONDS)
    store = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, timeout=limit)
    key = f"pipelines/attempt_{attempt}/port"
    if os.environ["RANK"] == "0":
        with socket.socket() as free:
            free.bind(("", 0))
            store.set(key, str(free.getsockname()[1]))
    os.environ["MASTER_PORT"] = store.get(key).decode()  # waits for it
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "False"
