"""A null where none may be: the parser does not look at nulls, so that one would fail far from its key."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from pipelines.config.errors import Source, UsageError
from pipelines.config.mistakes import find_mistake

_OF_OURS = re.compile(r"(?:^|[ -])(?:model|data)\.[\w.]+ is None; ")


def check_nulls(command: str, arguments: dict[str, Any], given: Sequence[Source]) -> None:
    """Refuse null for keys of the task and the data that have no such value.

    Args:
        command: Its name.
        arguments: All that the command takes, with their types.
        given: The configs and flags, in order.

    Raises:
        UsageError: Naming the key and what it takes.
    """
    if any(_has_null(source.values) for source in given):
        found = find_mistake(command, arguments, given)
        if found is not None and _OF_OURS.search(found):
            raise UsageError(found)


def _has_null(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_has_null, value.values()))
    return value is None or (isinstance(value, list) and any(map(_has_null, value)))
