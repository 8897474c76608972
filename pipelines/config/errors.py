"""Errors for people: what a config or a flag says, and in which file and line."""

from __future__ import annotations

import re
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import yaml

from datamodules.common.errors import UserError
from pipelines.config.peers import key_of
from pipelines.config.words import CONFIG, SWITCHES, flags

KEY = r"(?:model|data|trainer)(?:\.\w+)+"  # how a message about the config begins
MOST_VALUES = 1_000_000  # of a config, with what its anchors stand for
WORDS = ("on", "off", "yes", "no")  # YAML 1.1 takes these for true and false; a flag, as in a shell, does not
Keys = tuple[str | int, ...]


class UsageError(UserError):
    """A mistake in the command line or a config, found before anything is read or written; exit status 2."""


class Mistake(Exception):
    """What is wrong with the value at ``keys``."""

    def __init__(self, keys: Keys, text: str) -> None:
        super().__init__(text)
        self.keys = keys


@dataclass(frozen=True)
class Source:
    """One config, or one flag, as nested plain values.

    Attributes:
        file: The config's name for messages; None for a flag.
        values: What it says.
        text: The config's YAML, in which the lines of keys are looked up.
        classes: The classes that it names, for a config that came from a checkpoint: such names are never imported, and
            its values were checked when it was read. None for what the user wrote.
    """

    file: str | None
    values: dict[str, Any]
    text: str = ""
    classes: Mapping[Keys, type] | None = None

    @property
    def is_flag(self) -> bool:
        """Whether it was typed in place of standing in a config."""
        return self.file is None


def load_config(file: str | Path) -> dict[str, Any]:
    """Read a config.

    Raises:
        UsageError: If it is no YAML, does not hold keys, or holds one twice.
    """
    try:
        text = Path(file).read_text(encoding="utf-8")
        node = checked_anchors(text)
        content = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f" line {mark.line + 1}" if mark else ""
        raise UsageError(f"{file}{line}: this is not valid YAML: {error.problem or error.context}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{file}: this is not a text file with YAML: {error}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UsageError(f"{file} holds a {type(content).__name__}, not keys with values such as 'model:' and 'data:'.")
    if twice := _key_given_twice(node):
        raise UsageError(f"{file} line {twice.start_mark.line + 1}: the key '{twice.value}' is given twice.")
    return content


def checked_anchors(text: str) -> yaml.Node | None:
    """The nodes of a YAML text.

    Raises:
        yaml.YAMLError: If it is none, an anchor holds itself, or anchors stand for very much (a few lines can stand for
            gigabytes).
    """
    node = yaml.compose(text)
    sizes: dict[int, int] = {}

    def size(one: yaml.Node) -> int:
        if sizes.setdefault(id(one), -1) >= 0:
            return sizes[id(one)]
        below = one.value if isinstance(one, yaml.CollectionNode) else []
        parts = [part for item in below for part in (item if isinstance(item, tuple) else (item,))]
        if any(sizes.get(id(part)) == -1 for part in parts):
            raise yaml.YAMLError("an anchor (&) holds itself.")
        sizes[id(one)] = 1 + sum(size(part) for part in parts)
        return sizes[id(one)]

    if node is not None and size(node) > MOST_VALUES:
        raise yaml.YAMLError(f"its anchors (&) stand for more than {MOST_VALUES:,} values.")
    return node


def sources(words: Sequence[str]) -> list[Source]:
    """Configs and flags in their order.

    Args:
        words: What follows the command.

    Raises:
        Mistake: If a word stands alone, or a flag has no value.
    """
    found: list[Source] = []
    for flag in flags(words):
        if not flag.name.startswith("-"):
            raise Mistake((), f"'{flag.name}' stands alone; {_meant(flag.name)}")
        if flag.name in SWITCHES:
            continue
        if flag.value is None:
            raise Mistake((), f"{flag.name} needs a value: {flag.name} VALUE.")
        if flag.name in CONFIG:
            found.append(_config_source(flag.value))
            continue
        found.append(Source(None, _nested(flag.name, flag.value)))
    return found


def _meant(word: str) -> str:
    """What somebody meant who wrote a word without dashes: a config, or ``epochs=3`` as other tools have it."""
    key, equals, value = word.partition("=")
    if equals:
        return f"did you mean --{key_of(key) or key} {value}?"
    if word.endswith(".yaml"):
        return f"did you mean --config {word}?"
    if Path(word).exists():
        return "put a pattern in quotes, else the shell makes many words of it; settings are given as --key value."
    return "settings are given as --key value."


def _config_source(file: str) -> Source:
    if not Path(file).is_file():
        return Source(file, {})
    return Source(file, load_config(file), Path(file).read_text(encoding="utf-8"))


def _nested(name: str, value: str) -> dict[str, Any]:
    """``--model.optim.lr 0.1`` as ``{model: {optim: {lr: 0.1}}}``; ``init_args`` is never spoken of."""
    nested = flag_value(value)
    for part in reversed(name.lstrip("-").rstrip("+").split(".")):
        if part != "init_args":
            nested = {part: nested}
    return dict(nested)


def flag_value(text: str) -> Any:
    """A flag's value: YAML, but for bare words such as ``off``; what is no YAML is text."""
    if text.lower() in WORDS:
        return text
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def names_key(message: str) -> bool:
    """Whether a message begins with a key or a flag."""
    return re.match(KEY, message) is not None or message.startswith("--")


def with_place(message: str, given: Sequence[Source]) -> str:
    """Put ``FILE line N: `` before a message that begins with a key such as ``model.optim.lr``, ``--`` for a flag."""
    if not (found := re.match(KEY, message)):
        return message
    keys = tuple(found[0].split("."))
    for source in reversed(given):
        if source.is_flag and has(source.values, keys):
            return f"--{message}"
        if place := place_of(source, keys):
            return f"{place}{message}"
    return message


def place_of(source: Source, keys: Keys) -> str:
    """``FILE line N: `` of a key, or nothing where the source does not have it or is a flag."""
    if source.is_flag:
        return ""
    node, line = yaml.compose(source.text), None
    for key in keys:
        found = _below(node, key)
        if found is None:
            return ""
        line, node = found
    return f"{source.file}: " if line is None else f"{source.file} line {line + 1}: "


def _below(node: yaml.Node | None, key: str | int) -> tuple[int, yaml.Node] | None:
    """The line of a key, and what stands below it; None where there is no such key."""
    if isinstance(node, yaml.SequenceNode) and isinstance(key, int):
        item = node.value[key]
        return item.start_mark.line, item
    pairs = _pairs_of(node)
    if key not in pairs and "init_args" in pairs:  # keys are spoken of without it
        pairs = _pairs_of(pairs["init_args"][1])
    if key not in pairs:
        return None
    name, value = pairs[str(key)]
    return name.start_mark.line, value


def _pairs_of(node: yaml.Node | None) -> dict[str, tuple[yaml.Node, yaml.Node]]:
    if not isinstance(node, yaml.MappingNode):
        return {}
    return {name.value: (name, value) for name, value in node.value}


def constructor_message(error: BaseException) -> str:
    """What a constructor said, with the name of its class in front unless it begins with a key."""
    if names_key(str(error)):
        return str(error)
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    made = next((f.f_locals["self"] for f in frames if f.f_code.co_name == "__init__" and "self" in f.f_locals), None)
    return str(error) if made is None else f"{type(made).__name__}: {error}"


def unwrapped(error: BaseException) -> BaseException:
    """What a constructor raised, without the parser's report around it."""
    while error.__cause__ is not None and "jsonargparse" in traceback.extract_tb(error.__traceback__)[-1].filename:
        error = error.__cause__
    return error


def has(values: Any, keys: Keys) -> bool:
    """Whether nested values have a key."""
    for key in keys:
        if not isinstance(values, dict) or key not in values:
            return False
        values = values[key]
    return True


def _key_given_twice(node: yaml.Node | None) -> yaml.ScalarNode | None:
    children = [] if not isinstance(node, yaml.CollectionNode) else node.value
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                return cast("yaml.ScalarNode", key)
            if key.value != "<<" and isinstance(key.value, str):
                seen.add(key.value)
        children = [value for _, value in node.value]
    return next((found for child in children if (found := _key_given_twice(child))), None)
