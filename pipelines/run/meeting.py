"""What ranks tell each other beside the collectives of the training, at the store where their group meets."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from pipelines.run.standing import Standing


@dataclass(frozen=True)
class Place:
    """Where ranks meet.

    Attributes:
        host: Machine of the store.
        port: Of the store.
        rank: This process's number.
        world_size: Number of ranks.
    """

    host: str
    port: int
    rank: int
    world_size: int


@dataclass(frozen=True)
class Ending:
    """How the first rank to fail ended.

    Attributes:
        rank: Its number.
        status: The exit status, which the others take over.
    """

    rank: int
    status: int


def place_of_environment() -> Place | None:
    """Where the ranks meet, by what a launcher set; None for one process, and where the strategy has yet to say so."""
    found = os.environ
    if not {"WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= found.keys():
        return None
    rank = found.get("RANK") or (found.get("LOCAL_RANK") if found.get("NODE_RANK") == "0" else None)
    numbers = [found["WORLD_SIZE"], found["MASTER_PORT"], rank or ""]
    if not all(text.isdigit() for text in numbers) or int(found["WORLD_SIZE"]) < 2:
        return None
    return Place(found["MASTER_ADDR"], int(found["MASTER_PORT"]), int(rank or 0), int(found["WORLD_SIZE"]))


class Meeting:
    """A rank's own connection to the store, for one command.

    Args:
        place: Where.
        number: Of the command in this process; all ranks do the same ones.
        timeout: Seconds to wait for the store to open.

    Raises:
        RuntimeError: If the store does not answer; so do all methods.
    """

    def __init__(self, place: Place, number: int, timeout: float) -> None:
        from torch.distributed import TCPStore  # type: ignore[attr-defined]

        self.place = place
        self._prefix = f"pipelines/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{number}"
        self._lock = threading.Lock()
        self._store = TCPStore(
            place.host, place.port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=timeout)
        )
        self._store.set_timeout(timedelta(seconds=30))

    def tell(self, standing: Standing) -> None:
        """Tell the others where this rank stands."""
        with self._lock:
            self._store.set(self._key(self.place.rank), standing.text())

    def others(self) -> dict[int, Standing | None]:
        """Where the other ranks stood when they last told it; None for one that never came."""
        found: dict[int, Standing | None] = {}
        with self._lock:
            for rank in set(range(self.place.world_size)) - {self.place.rank}:
                told = self._store.check([self._key(rank)])
                found[rank] = Standing.of(self._store.get(self._key(rank))) if told else None
        return found

    def end(self, status: int) -> Ending:
        """Say that this rank has failed.

        Returns:
            The ending of the rank that was the first to say so.
        """
        mine = json.dumps([self.place.rank, status])
        with self._lock:
            return _ending(self._store.compare_set(f"{self._prefix}/ending", "", mine))

    def ending(self) -> Ending | None:
        """How another rank has failed, if one has."""
        key = f"{self._prefix}/ending"
        with self._lock:
            return _ending(self._store.get(key)) if self._store.check([key]) else None

    def _key(self, rank: int) -> str:
        return f"{self._prefix}/rank/{rank}"


def _ending(text: Any) -> Ending:
    return Ending(*json.loads(text))


def open_store(place: Place) -> Any:
    """Open the store, on rank 0 of ranks that no launcher gave one; the process group then meets there too.

    Without it, ranks whose rank 0 refused before the group was made would wait for it.

    Returns:
        The store, which lives as long as it is held; None where there is one.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        return None
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    with contextlib.suppress(RuntimeError):  # the port is taken: the group's own attempt says so
        store = TCPStore(place.host, place.port, is_master=True, wait_for_workers=False)
        # https://github.com/pytorch/pytorch/blob/main/torch/distributed/rendezvous.py (_torchelastic_use_agent_store)
        os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"
        return store
    return None
