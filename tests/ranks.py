"""Two ranks for tests: forked, so that they have all imports already, with the environment that torchrun gives.

The ranks meet at a store that this process holds, as torchrun's agent does: the system chooses its port when the store
listens, so that no other process can take it first.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping

from tests.conftest import import_commands, leave_figures_blank

# Only a rank that hangs is ended. A busy machine may take minutes for what takes seconds.
LIMIT_SECONDS = 600
LIMIT_AFTER_A_FAILURE = 30


def torchrun_environment(rank: int, world_size: int, port: int) -> dict[str, str]:
    """What torchrun sets for a worker on one machine."""
    return {
        **meeting_point(port),
        "RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(world_size),
        "GROUP_RANK": "0",
        "TORCHELASTIC_RUN_ID": "test",
    }


def meeting_point(port: int) -> dict[str, str]:
    """Where the ranks find the store; rank 0 does not open one of its own.

    https://github.com/pytorch/pytorch/blob/main/torch/distributed/rendezvous.py (_torchelastic_use_agent_store)
    """
    return {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True"}


def in_ranks(
    work: Callable[[], object],
    world_size: int = 2,
    environment: Callable[[int, int, int], Mapping[str, str]] = torchrun_environment,
) -> list[int]:
    """Run `work` in forked ranks; their exit statuses (negative: the signal). No rank outlives the call.

    A rank that fails while the others wait for it in a collective call ends them too, as a launcher would.
    """
    from torch.distributed import TCPStore

    import_commands()
    sys.stdout.flush()
    sys.stderr.flush()
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    pids = [_fork(work, environment(rank, world_size, store.port), rank) for rank in range(world_size)]
    statuses: dict[int, int] = {}
    deadline = time.monotonic() + LIMIT_SECONDS
    while len(statuses) < world_size:
        for pid in set(pids) - set(statuses):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                statuses[pid] = os.waitstatus_to_exitcode(status)
        if any(statuses.values()):
            deadline = min(deadline, time.monotonic() + LIMIT_AFTER_A_FAILURE)
        if time.monotonic() > deadline:
            for pid in set(pids) - set(statuses):
                os.kill(pid, signal.SIGKILL)
            deadline = float("inf")
        time.sleep(0.02)
    return [statuses[pid] for pid in pids]


def _fork(work: Callable[[], object], environment: Mapping[str, str], rank: int) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        import torch
        from pytorch_lightning.utilities import rank_zero_only

        torch.set_num_threads(1)  # OpenMP's threads do not survive a fork, and waiting for them hangs
        os.environ.update(environment)
        rank_zero_only.rank = rank  # Lightning reads the environment for it when it is imported
        leave_figures_blank()
        result = work()
        status = result if isinstance(result, int) else 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
