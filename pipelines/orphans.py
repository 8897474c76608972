"""A rank whose launcher has died ends too, behind a checkpoint: nobody would wait for it or end it otherwise."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # linux/prctl.h


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
