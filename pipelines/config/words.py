"""The words of a command line, read as flags; every place that looks for a flag asks here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

CONFIG = ("--config", "-c")
HELP = ("--help", "-h")
SWITCHES = ("--print_config", *HELP)  # flags that take no value


@dataclass(frozen=True)
class Flag:
    """A flag as typed.

    Attributes:
        name: With its dashes, ``--data.source``; a word that stands alone is taken as it is, ``config.yaml``.
        value: What follows it, None where nothing does.
        position: Of the flag among the words.
        size: How many words it has: 1 for ``--name=value``, 2 for ``--name value``.
    """

    name: str
    value: str | None
    position: int
    size: int


def flags(words: Sequence[str]) -> list[Flag]:
    """Read words as flags, by their whole names: ``--configs`` is another flag than ``--config``.

    Args:
        words: What follows the command.
    """
    found: list[Flag] = []
    position = 0
    while position < len(words):
        flag = _flag_at(words, position)
        found.append(flag)
        position += flag.size
    return found


def _flag_at(words: Sequence[str], position: int) -> Flag:
    word = words[position]
    name, equals, value = word.partition("=")
    if not name.startswith("-"):
        return Flag(word, None, position, 1)
    if equals:
        return Flag(name, value, position, 1)
    following = words[position + 1] if position + 1 < len(words) else "--"
    takes_no_value = name in SWITCHES or name.endswith(".help")
    if takes_no_value or following.startswith("--"):
        return Flag(name, None, position, 1)
    return Flag(name, following, position, 2)


def value_of(words: Sequence[str], name: str) -> str | None:
    """The last value given to a flag; None without one."""
    values = [flag.value for flag in flags(words) if flag.name == name]
    return values[-1] if values else None


def without(words: Sequence[str], name: str) -> list[str]:
    """The words without a flag and its value."""
    taken = {flag.position + i for flag in flags(words) if flag.name == name for i in range(flag.size)}
    return [word for i, word in enumerate(words) if i not in taken]


def asks_for_help(words: Sequence[str]) -> bool:
    """Whether the options are to be shown (``--help``, ``--model.help``) in place of a run."""
    return any(flag.name in HELP or flag.name.endswith(".help") for flag in flags(words))


def config_names(words: Sequence[str]) -> list[str]:
    """What ``--config`` names, in order."""
    return [flag.value for flag in flags(words) if flag.name in CONFIG and flag.value is not None]
