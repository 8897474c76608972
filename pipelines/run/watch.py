"""The watch of ranks over each other: a hung rank is named and ended, and what ends one rank ends all."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pipelines.run.meeting import Ending, Meeting, Place, open_store, place_of_environment
from pipelines.run.standing import Stack, Standing, doing, late, stack_of, where

#: Most seconds between two signs of life.
BEAT_SECONDS = 2.0
#: Seconds in which a rank that fails tries to reach the others.
REACH_SECONDS = 5.0
#: Seconds for which rank 0 keeps its store open, so that ranks that are still starting learn how it ended.
LINGER_SECONDS = 30.0


class Watch:
    """A thread beside a rank's work, for one command.

    It tells the other ranks where the main thread stands. Where that waits for another rank for longer than allowed,
    it looks which one is late, says so, and ends the process; so it does where another rank has failed.

    Args:
        place: Where the ranks meet.
        number: Of the command in this process.
    """

    def __init__(self, place: Place, number: int) -> None:
        self.place = place
        self.start_limit, self.limit = 300.0, 120.0
        self.batches = 0  # done by the main thread
        self._number = number
        self._meeting: Meeting | None = None
        self._met, self._stopped = threading.Event(), threading.Event()
        self._main = threading.main_thread().ident
        self._stack: Stack = ()
        self._at = (-1, time.monotonic())  # batches, and since when the thread has stood where it stands
        self._beats = 0
        self._seen: dict[int, tuple[int, float]] = {}  # the last beat of each other rank, and when it was new
        self._thread = threading.Thread(target=self._run, name="watch-of-ranks", daemon=True)
        self._thread.start()

    def limits(self, start: float, training: float) -> None:
        """Take over the user's limits in seconds; 0 for none."""
        self.start_limit, self.limit = start or float("inf"), training or float("inf")

    def stop(self) -> None:
        """Tell the others that this rank waits for nobody any more."""
        self._stopped.set()
        self._thread.join(self._beat() + 1)
        with contextlib.suppress(Exception):  # the store ends with its holder
            if self._meeting is not None:
                self._meeting.tell(self._standing(ended=True))

    def fail(self, status: int) -> Ending:
        """Say that this rank ends with an error; the ending of the first rank to say so, which alone speaks."""
        if self._met.wait(REACH_SECONDS) and self._meeting is not None:
            with contextlib.suppress(Exception):
                return self._meeting.end(status)
        return Ending(self.place.rank, status)

    def ending(self, seconds: float) -> Ending | None:
        """The ending of another rank, for which it waits so long."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self._meeting is not None:
            with contextlib.suppress(Exception):
                found = self._meeting.ending()
                if found is not None and found.rank != self.place.rank:
                    return found
            time.sleep(0.1)
        return None

    # The thread.

    def _beat(self) -> float:
        return max(0.2, min(BEAT_SECONDS, self._allowed() / 5))

    def _allowed(self) -> float:
        return self.limit if self.batches else self.start_limit

    def _run(self) -> None:
        while not self._stopped.wait(self._beat()):
            self._look_at_self()
            try:
                if self._meeting is None:
                    self._meeting = Meeting(self.place, self._number, self._beat())
                    self._met.set()
                self._look_around(self._meeting)
            except Exception:  # of the store: it is not open yet, or has gone with its holder
                self._meeting = None
                self._without_store()

    def _look_at_self(self) -> None:
        stack = stack_of(self._main)
        if (stack, self.batches) != (self._stack, self._at[0]):
            self._stack, self._at = stack, (self.batches, time.monotonic())

    def _standing(self, *, ended: bool = False) -> Standing:
        self._beats += 1
        seconds = time.monotonic() - self._at[1]
        state = "ended" if ended else doing(self._stack)
        return Standing(socket.gethostname(), os.getpid(), state, where(self._stack), seconds, self._beats)

    def _look_around(self, meeting: Meeting) -> None:
        mine = self._standing()
        meeting.tell(mine)
        ending = meeting.ending()
        if ending is not None:
            self._follow(ending, mine, meeting)
            return
        allowed = self._allowed()
        if mine.doing not in ("waits", "backward") or mine.seconds < allowed / 2:
            return
        others = meeting.others()
        silent = self._silence(others)
        if mine.seconds >= allowed and (found := late(others, silent, allowed)):
            self._name(found, mine, meeting)

    def _silence(self, others: dict[int, Standing | None]) -> dict[int, float]:
        """Seconds since the last new sign of life of each, by this process's clock."""
        now = time.monotonic()
        for rank, other in others.items():
            if other is not None and self._seen.get(rank, (-1, 0.0))[0] != other.beat:
                self._seen[rank] = (other.beat, now)
        # It has been looked at for half of what is allowed: as much may be added.
        return {rank: 2 * (now - since) for rank, (_, since) in self._seen.items()}

    def _name(self, found: dict[int, str], mine: Standing, meeting: Meeting) -> None:
        if meeting.end(1).rank == self.place.rank:
            key = "rank_timeout" if self.batches else "rank_start_timeout"
            alike = all(" waits at " in text for text in found.values())
            what = "the ranks wait for each other" if alike else "; ".join(found.values())
            rest = f" ({'; '.join(found.values())})" if alike else ""
            _say(
                f"{what}{rest}. Rank {self.place.rank} ({mine.host}, process {mine.process}) has waited for"
                f" {mine.seconds:.0f} s at {mine.where}. Look there; --resume auto goes on from the last checkpoint."
                f" trainer.{key} ({self._allowed():g}) is how long a rank may stand at one place."
            )
            time.sleep(2 * self._beat())  # whoever holds the store lets the others read this
        self._leave(meeting, 1)

    def _follow(self, ending: Ending, mine: Standing, meeting: Meeting) -> None:
        """End as another rank did: at once before the first step, later once this one waits for it, or hangs itself."""
        hangs = mine.seconds >= self._allowed()
        if ending.rank == self.place.rank:
            if hangs:
                self._leave(meeting, ending.status)
            return
        if hangs and mine.doing.startswith("works"):
            frames = [traceback.FrameSummary(*frame) for frame in reversed(self._stack[:8])]
            _say(f"rank {self.place.rank} stood here:\n{''.join(traceback.format_list(frames)).rstrip()}", "note")
        if hangs or not self.batches or mine.doing in ("waits", "backward"):
            time.sleep(self._beat())  # it may be about to end by itself
            self._leave(meeting, ending.status)

    def _leave(self, meeting: Meeting, status: int) -> None:
        """End the process at once: its main thread waits inside a library, where no exception reaches it."""
        with contextlib.suppress(Exception):
            meeting.tell(self._standing(ended=True))
        _end(status)

    def _without_store(self) -> None:
        mine = self._standing()
        if mine.doing == "waits" and mine.seconds >= self._allowed():
            place = self.place
            _say(
                f"rank {place.rank} ({mine.host}) has waited for {mine.seconds:.0f} s for rank 0, which is to open the"
                f" ranks' meeting point at {place.host}:{place.port} and does not answer."
            )
            _end(1)


def _say(text: str, kind: str = "error") -> None:
    print(f"{kind}: {text}", file=sys.stderr, flush=True)


def _end(status: int) -> None:
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


_watch: Watch | None = None
_commands = 0


@contextmanager
def watched() -> Iterator[None]:
    """Inside, the ranks of a command watch each other, from its start where a launcher has made them."""
    global _watch, _commands
    if _watch is not None:  # a command of a command
        yield
        return
    _commands += 1
    place, store = place_of_environment(), None
    if place is not None:
        store = open_store(place) if place.rank == 0 else None
        _watch = Watch(place, _commands)
    try:
        yield
    finally:
        if _watch is not None:
            _watch.stop()
        _linger(store, place)
        _watch = None


def join(place: Place) -> None:
    """Start the watch where the environment did not say that there are several ranks."""
    global _watch
    if _watch is None:
        _watch = Watch(place, max(1, _commands))


def watch() -> Watch | None:
    """The watch of the command that runs; None for one process."""
    return _watch


def _linger(store: Any, place: Place | None) -> None:
    """Keep the store until all ranks have ended or learned of this one's end."""
    if store is None or place is None or _watch is None:
        return
    deadline = time.monotonic() + LINGER_SECONDS
    with contextlib.suppress(Exception):
        meeting = Meeting(place, _commands, 1.0)
        while time.monotonic() < deadline and not all(
            other is not None and other.doing == "ended" for other in meeting.others().values()
        ):
            time.sleep(0.2)
