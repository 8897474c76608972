"""Files that could not be written for want of room: the training goes on, and the next attempt may succeed."""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from datamodules.common.errors import UserError

#: What the operating system says of a place that takes no more data; EFBIG is a limit on the size of files.
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG}


class Saves:
    """The checkpoints that could not be written.

    Args:
        limit: So many failures of one file in a row end the run.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._failed: dict[str, tuple[int, str]] = {}

    def note(self, path: str | Path, problem: str | None) -> None:
        """Take note of an attempt.

        Args:
            path: The file.
            problem: Why it was not written; None where it was.

        Raises:
            UserError: At the last failure in a row that is allowed.
        """
        if problem is None:
            self._failed.pop(str(path), None)
            return
        count = self._failed.get(str(path), (0, ""))[0] + 1
        self._failed[str(path)] = count, problem
        if count >= self.limit:
            times = f"{count} times in a row" if count > 1 else "once"
            raise UserError(
                f"{problem} That happened {times} (trainer.max_failed_saves {self.limit}), so the run ends."
            )
        if count == 1:
            warn(
                f"{problem} The training goes on and tries again at the next save; {self.limit} failures in a row"
                " (trainer.max_failed_saves) end it."
            )

    def problem(self, path: str | Path) -> str | None:
        """Why the last attempt at a file failed; None where it did not."""
        return self._failed.get(str(path), (0, None))[1]


def unsaved(trainer: Any, path: str | Path) -> str | None:
    """Why a trainer's last attempt at a checkpoint failed; None where it did not."""
    saves = getattr(trainer, "saves", None)
    return saves.problem(path) if isinstance(saves, Saves) else None


@contextmanager
def left_out_if_full(file: Path) -> Iterator[None]:
    """Inside, a file that nothing depends on is left out, and said, where the disk takes no more."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        warn(f"{file} is left out ({error.strerror}): make room there.")


def warn(text: str) -> None:
    """One line for people, on rank 0."""
    from pytorch_lightning.utilities import rank_zero_only

    if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
        with suppress(OSError):  # what is printed may go to the same disk
            print(f"warning: {text}", file=sys.stderr, flush=True)
