"""The error for people, and what many of its messages have: a suggestion, a few examples of many."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class UserError(ValueError):
    """Something that the person at the command line can put right: a value, a file, a flag.

    The command line prints its message alone, without a traceback, so the message names the key or the file, the value
    and the fix. Every other exception is taken for a fault of ours and keeps its traceback.
    """


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`` Did you mean 'x'?`` with the nearest known word, or nothing."""
    lowered = {k.lower(): k for k in known}
    near = difflib.get_close_matches(word.lower(), lowered, n=1, cutoff=0.5)
    return f" Did you mean '{lowered[near[0]]}'?" if near else ""


def examples(values: Sequence[object], most: int = 10) -> str:
    """``a, b, c``, and ``, ...`` behind the first ``most``."""
    return ", ".join(str(value) for value in values[:most]) + (", ..." if len(values) > most else "")


def bullets(lines: Sequence[object], total: int | None = None, most: int = 10) -> str:
    """One line each, indented, below the sentence before; ``... and 3 more`` behind the first ``most``.

    Args:
        lines: What is listed.
        total: How many there are, where ``lines`` holds the first of them only.
        most: How many are shown.
    """
    more = (len(lines) if total is None else total) - most
    shown = "".join(f"\n  {line}" for line in lines[:most])
    return shown + (f"\n  ... and {more:,} more" if more > 0 else "")
