"""Locks that are themselves files, on any shared disk: one of several processes builds, or writes into a folder.

The holder touches its lock again and again: this heartbeat is seen from other machines, which a process number is not.
No collective of the network is involved: those end with an error after some minutes, and a build may take hours.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

#: Seconds between two signs of life of a builder.
BEAT_SECONDS = 5.0
#: Seconds without a sign after which a builder counts as dead.
STALE_SECONDS = 60.0

Stamp = tuple[int, int]
"""Number and modification time (ns) of a lock file."""


@contextmanager
def only_one_builds(
    lock: Path,
    finished: Callable[[], bool],
    *,
    beat: float = BEAT_SECONDS,
    stale: float = STALE_SECONDS,
    poll: float = 0.5,
) -> Iterator[bool]:
    """Whether this process is to build; the block of all others begins when the build is finished.

    The builder holds the lock file and touches it again and again. Where it dies, one of those that wait takes its
    place. Two builders at a time are possible if a live one is silent for too long, so the result has to be renamed
    into place in one step.

    Args:
        lock: The lock file; its folder exists.
        finished: Whether the result is there.
        beat: Seconds between two touches.
        stale: Seconds without a touch after which a builder counts as dead.
        poll: Seconds between two looks of those that wait.
    """
    mine = _wait_for_turn(lock, finished, stale, poll)
    if not mine:
        yield False
        return
    with _beating(lock, beat):
        yield True


class HeldError(Exception):
    """A live process holds the lock.

    Attributes:
        machine: Where it runs.
        process: Its number there.
    """

    def __init__(self, lock: Path) -> None:
        found = lock.read_text().split() if lock.exists() else []
        self.machine, self.process = [*found, "?", "?"][:2]
        super().__init__(f"process {self.process} on {self.machine}")


@contextmanager
def held(lock: Path, *, beat: float = BEAT_SECONDS, stale: float = STALE_SECONDS, poll: float = 0.5) -> Iterator[bool]:
    """Hold a lock inside the block, which is told whether the lock had to be waited for.

    Args:
        lock: The lock file; its folder exists.
        beat: Seconds between two touches.
        stale: Seconds without a touch after which a holder counts as dead.
        poll: Seconds between two looks at a holder that may be dead.

    Raises:
        HeldError: If its holder gives a sign of life.
        OSError: If the file cannot be made.
    """
    waited = False
    watch, first = Watch(stale), _stamp(lock)
    while not _create(lock):
        waited = True
        stamp = _stamp(lock)
        if stamp is not None and (_owner_is_dead(lock) or watch.stale(stamp, time.monotonic())):
            lock.unlink(missing_ok=True)
            continue
        if stamp is not None and first is not None and stamp[0] == first[0] and stamp != first:
            raise HeldError(lock)
        first = stamp if first is None else first
        time.sleep(poll)
    with _beating(lock, beat):
        yield waited


@contextmanager
def _beating(lock: Path, beat: float) -> Iterator[None]:
    """Touch a lock that is held, and remove it in the end."""
    ended = threading.Event()
    heart = threading.Thread(target=_touch_until, args=(lock, ended, beat), daemon=True)
    heart.start()
    try:
        yield
    finally:
        ended.set()
        heart.join()
        lock.unlink(missing_ok=True)


def _wait_for_turn(lock: Path, finished: Callable[[], bool], stale: float, poll: float) -> bool:
    """True with the lock held, or False once the build is finished."""
    watch = Watch(stale)
    while not finished():
        if _create(lock):
            if not finished():  # it may have been, just before the last builder let go
                return True
            lock.unlink(missing_ok=True)
            return False
        stamp = _stamp(lock)
        if stamp is not None and (_owner_is_dead(lock) or watch.stale(stamp, time.monotonic())):
            lock.unlink(missing_ok=True)
            continue
        time.sleep(poll)
    return False


class Watch:
    """Tells when a lock's stamp has stood still for too long, by the clock of the process that waits."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._seen: Stamp | None = None
        self._since = 0.0

    def stale(self, stamp: Stamp, now: float) -> bool:
        """Take a look at time ``now``, in seconds; True when the stamp is the same for longer than allowed."""
        if stamp != self._seen:
            self._seen, self._since = stamp, now
            return False
        return now - self._since > self.seconds


def token(process: int | None = None) -> str:
    """What a lock file says of its owner: machine, process, and a random number."""
    return f"{socket.gethostname()} {process or os.getpid()} {secrets.token_hex(4)}"


def _create(lock: Path) -> bool:
    try:
        handle = os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    except FileExistsError:
        return False
    with os.fdopen(handle, "w") as file:
        file.write(token())
    return True


def _stamp(lock: Path) -> Stamp | None:
    try:
        found = lock.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns


def _owner_is_dead(lock: Path) -> bool:
    """Whether the owner was a process of this machine that is gone; a killed run then need not wait for itself."""
    try:
        machine, process, _ = lock.read_text().split()
    except (OSError, ValueError):
        return False  # just made, or just gone
    return machine == socket.gethostname() and not is_alive(int(process))


def is_alive(process: int) -> bool:
    """Whether there is a process of this number on this machine, also another user's."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        pass
    return True


def _touch_until(lock: Path, ended: threading.Event, beat: float) -> None:
    while not ended.wait(beat):
        with contextlib.suppress(FileNotFoundError):
            os.utime(lock)
