"""Which errors are for people: these lose their traceback; every other one keeps it, since it is a fault of ours."""

from __future__ import annotations

import errno
import re
import sys
import traceback
from pathlib import Path

from pytorch_lightning.utilities.exceptions import MisconfigurationException  # type: ignore[attr-defined]

from datamodules.common.errors import UserError

HOUSE = Path(__file__).resolve().parents[2]
OURS = tuple(HOUSE / name for name in ("pipelines", "tasks", "datamodules"))
#: What the operating system says about a whole disk, for which it names no file.
DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO}
#: Libraries whose constructors refuse values that a config gives them.
CONSTRUCTORS = ("pytorch_lightning", "lightning_fabric", "jsonargparse")


def reason_of(error: BaseException) -> str | None:
    """The message of an error that is for people, also where a loader's worker process raised it.

    Such are our own ``UserError``, Lightning's error about its settings, and what the operating system says about a
    file of the user or a full disk.

    Returns:
        The message; None for any other error, whose traceback is wanted.
    """
    text = _text_of(error)
    if isinstance(error, UserError | MisconfigurationException):
        return text or None
    if isinstance(error, OSError):
        return _about_a_file(error, text)
    return None


def is_about_arguments(error: BaseException) -> bool:
    """Whether a library's constructor refused an argument: the error was raised there, not in code of ours."""
    if isinstance(error, MisconfigurationException):
        return True
    frames = traceback.extract_tb(error.__traceback__)
    if not isinstance(error, ValueError | TypeError) or not frames:
        return False
    return any(f"/{library}/" in Path(frames[-1].filename).as_posix() for library in CONSTRUCTORS)


def _text_of(error: BaseException) -> str:
    """The message alone: torch raises a worker's error again with the worker's whole report as its message."""
    text = str(error)
    if not text.startswith("Caught "):
        return text
    behind_last_frame = text.rpartition("\n  File ")[2]
    last = re.search(r"^[\w.]+: (.+)", behind_last_frame, re.MULTILINE | re.DOTALL)
    return last[1].strip() if last else text


def _about_a_file(error: OSError, text: str) -> str | None:
    number, problem, file = error.errno, error.strerror, error.filename
    # A worker's error comes without its attributes: they are read from its message.
    if number is None and (found := re.fullmatch(r"\[Errno (\d+)\] ([^:]+)(?:: '(.*)')?", text)):
        number, problem, file = int(found[1]), found[2], found[3]
    if number in DISK and file is None:
        return f"{problem}: make room or allow writing there, or choose another place (--runs_dir)."
    if number is None or not isinstance(file, str | bytes | Path):
        return None
    name = file.decode(errors="replace") if isinstance(file, bytes) else str(file)
    return None if _is_of_the_program(Path(name)) else f"{name}: {problem}."


def _is_of_the_program(path: Path) -> bool:
    """Whether a file belongs to this program or to Python: that it is missing is no mistake of the user."""
    full = path.resolve()
    return any(full.is_relative_to(place) for place in (*OURS, Path(sys.prefix).resolve()))
