"""One training writes into a run directory at a time, on whichever machines."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from datamodules.common.errors import UserError
from datamodules.common.locks import HeldError, held

LOCK = "run.lock"


@contextmanager
def only_writer(run: Path) -> Iterator[bool]:
    """Inside, no other training can be continued in this run directory; the block is told whether one had to end first.

    A lock whose holder is dead is taken over: at once where it was a process of this machine, after a minute without a
    heartbeat where it was one of another.

    Raises:
        UserError: If a live process holds it, or the directory cannot be written.
    """
    with ExitStack() as stack:
        yield _taken(run, stack)


def _taken(run: Path, stack: ExitStack) -> bool:
    try:
        return stack.enter_context(held(run / LOCK))
    except HeldError as holder:
        raise UserError(
            f"{run} is being trained by {holder}: two trainings would write into the same files. Wait for it or end"
            " it, or train another run (without --resume, or with another --name)."
        ) from None
    except OSError as error:
        raise UserError(
            f"The run directory {run} cannot be written ({error.strerror}): make it writable or make room there, or"
            " choose another place with --runs_dir."
        ) from error
