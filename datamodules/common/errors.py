"""The error for people, and the suggestion that many of its messages end with."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


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
