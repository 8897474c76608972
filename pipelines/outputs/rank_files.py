"""JSON lines that each rank appends to a file of its own, and rank 0 reads back in the order of the images."""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: The image's number in the data set, then whatever belongs to it.
Line = Sequence[Any]


@dataclass(frozen=True)
class RankFiles:
    """The files of all ranks for one kind of line, hidden in the folder of the results until they are merged.

    Attributes:
        directory: The folder, shared by all ranks.
        kind: What the lines are about; part of the files' names.
    """

    directory: Path
    kind: str

    def path(self, rank: int) -> Path:
        """The file of a rank."""
        return self.directory / f".{self.kind}.{rank}.jsonl"

    def start(self, rank: int) -> None:
        """Begin with an empty file: an interrupted command may have left one."""
        self.path(rank).write_text("", encoding="utf-8")

    def append(self, rank: int, lines: Iterable[Line]) -> None:
        """Append lines; a rank meets its images in the order of their numbers."""
        with open(self.path(rank), "a", encoding="utf-8") as file:
            for line in lines:
                file.write(json.dumps(line) + "\n")

    def merged(self, ranks: int) -> Iterator[Any]:
        """All ranks' lines by the images' numbers; one line of each rank is held at a time."""
        with ExitStack() as stack:
            files = [stack.enter_context(open(self.path(rank), encoding="utf-8")) for rank in range(ranks)]
            lines = [map(json.loads, file) for file in files]
            yield from heapq.merge(*lines, key=lambda line: line[0])

    def remove(self, ranks: int) -> None:
        """Remove the files of all ranks."""
        for rank in range(ranks):
            self.path(rank).unlink()
