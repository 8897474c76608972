"""Where a rank stands, by its main thread's stack, and which rank the others wait for."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Literal

#: Innermost files of a thread that waits for other ranks.
WAITS = re.compile(
    r"/torch/distributed/|/torch/nn/parallel/distributed\.py|/lightning_fabric/(strategies|utilities/distributed)"
    r"|/pytorch_lightning/strategies/"
)
#: A backward pass computes, and waits for the others' gradients, in one call: it may be either.
BACKWARD = re.compile(r"/torch/autograd/")
#: Files of what one rank does alone, while the others wait: saving, drawing, measuring, tracking.
ALONE = re.compile(
    r"/pipelines/(callbacks|outputs|run)/|/tasks/.*(metrics|evaluation)|/torchmetrics/|/pycocotools/|/wandb/"
    r"|/torch/serialization\.py"
)
LIBRARIES = re.compile(r"/site-packages/|/lib/python3")
#: Seconds that such work may stand at one line; below the half hour of the process group.
ALONE_SECONDS = 1500.0

Doing = Literal["works", "works alone", "waits", "backward", "ended"]


@dataclass(frozen=True)
class Standing:
    """What a rank tells the others of itself.

    Attributes:
        host: Its machine.
        process: Its number there.
        doing: Whether it waits for other ranks.
        where: File, line and function.
        seconds: For how long it has stood there, with no line and no batch done.
        beat: Grows each time that it is told: the rank lives.
    """

    host: str
    process: int
    doing: Doing
    where: str
    seconds: float
    beat: int

    def text(self) -> str:
        """For the other ranks."""
        return json.dumps(asdict(self))

    @classmethod
    def of(cls, text: str | bytes) -> Standing:
        """What another rank told."""
        return cls(**json.loads(text))


Stack = tuple[tuple[str, int, str], ...]
"""File, line and function of a thread's frames, the innermost first."""


def stack_of(thread: int | None) -> Stack:
    """A thread's frames at this moment; no frame is kept."""
    frame: FrameType | None = sys._current_frames().get(thread or -1)
    found = []
    while frame is not None:
        found.append((frame.f_code.co_filename.replace("\\", "/"), frame.f_lineno, frame.f_code.co_name))
        frame = frame.f_back
    return tuple(found)


def doing(stack: Stack) -> Doing:
    """Whether a thread waits for other ranks, does what only one rank does, or anything else."""
    innermost = stack[0][0] if stack else ""
    if WAITS.search(innermost):
        return "waits"
    if BACKWARD.search(innermost):
        return "backward"
    return "works alone" if any(ALONE.search(file) for file, *_ in stack) else "works"


def where(stack: Stack) -> str:
    """The innermost line, and the innermost one outside of libraries."""
    own = next((frame for frame in stack if not LIBRARIES.search(frame[0])), None)
    shown = dict.fromkeys([*stack[:1], *([own] if own else [])])
    return ", called at ".join(f"{'/'.join(Path(file).parts[-3:])}:{line} ({name})" for file, line, name in shown)


def late(others: Mapping[int, Standing | None], silent: Mapping[int, float], limit: float) -> dict[int, str]:
    """Which of the other ranks keep this one waiting, by number, each with what is known of it.

    Args:
        others: The other ranks; None for one that never came.
        silent: Seconds since each one's last sign of life.
        limit: Seconds that a rank may stand at one place.

    Returns:
        Nothing where one that works has not stood for that long yet. All that wait, where all do.
    """
    found: dict[int, str] = {}
    for rank, other in others.items():
        if other is None:
            found[rank] = f"rank {rank} has not come"
        elif other.doing == "ended":
            found[rank] = f"{_name(rank, other)} has ended"
        elif silent.get(rank, 0.0) > limit:
            found[rank] = f"{_name(rank, other)} gives no sign of life; it was last at {other.where}"
        elif other.doing in ("works", "works alone"):
            if other.seconds < (limit if other.doing == "works" else ALONE_SECONDS):
                return {}
            found[rank] = f"{_name(rank, other)} hangs: for {other.seconds:.0f} s it has stood at {other.where}"
    if found:
        return found
    waiting = {rank: other for rank, other in others.items() if other is not None}
    if any(other.doing == "backward" or other.seconds < limit for other in waiting.values()):
        return {}
    return {rank: f"{_name(rank, other)} waits at {other.where}" for rank, other in waiting.items()}


def _name(rank: int, standing: Standing) -> str:
    return f"rank {rank} ({standing.host}, process {standing.process})"
