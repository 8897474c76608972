"""Errors for people: what a config or a flag says, and in which file and line."""

from __future__ import annotations

import re
import traceback
from pathlib import Path
from typing import Any, NamedTuple, cast

import yaml

from datamodules.common.errors import UserError

KEY = r"(?:model|data|trainer)(?:\.\w+)+"  # how a message about the config begins
CHECKPOINT_MARK = "# The config in "  # first line of a config that was taken out of a checkpoint
WORDS = ("on", "off", "yes", "no")  # YAML 1.1 takes these for true and false; a flag, as in a shell, does not
Keys = tuple[str | int, ...]


class Mistake(Exception):
    """What is wrong with the value at ``keys``."""

    def __init__(self, keys: Keys, text: str) -> None:
        super().__init__(text)
        self.keys = keys


class Source(NamedTuple):
    """One config file, or one flag, as nested plain values."""

    file: str | None
    values: dict[str, Any]


def load_config(file: str | Path) -> dict[str, Any]:
    """Read a config.

    Raises:
        UserError: If it is no YAML, does not hold keys, or holds one twice.
    """
    try:
        text = Path(file).read_text(encoding="utf-8")
        content, node = yaml.safe_load(text), yaml.compose(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f" line {mark.line + 1}" if mark else ""
        raise UserError(f"{file}{line}: this is not valid YAML: {error.problem or error.context}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: this is not a text file with YAML: {error}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"{file} holds a {type(content).__name__}, not keys with values such as 'model:' and 'data:'.")
    if twice := _key_given_twice(node):
        raise UserError(f"{file} line {twice.start_mark.line + 1}: the key '{twice.value}' is given twice.")
    return content


def sources(args: list[str]) -> list[Source]:
    """Configs and flags in their order."""
    found: list[Source] = []
    words = iter(args[1:])
    for word in words:
        flag, equals, value = word.partition("=")
        if not flag.startswith("-"):
            hint = f"did you mean --config {word}?" if word.endswith(".yaml") else "settings are given as --key value."
            raise Mistake((), f"'{word}' stands alone; {hint}")
        if flag in ("--print_config", "--help", "-h"):
            continue
        if not equals:
            value = next(words, "--")
            if value.startswith("--"):
                raise Mistake((), f"{flag} needs a value: {flag} VALUE.")
        if flag in ("--config", "-c"):
            found.append(Source(value, load_config(value) if Path(value).is_file() else {}))
            continue
        try:
            nested: Any = value if value.lower() in WORDS else yaml.safe_load(value)
        except yaml.YAMLError:
            nested = value
        for part in reversed(flag.lstrip("-").rstrip("+").split(".")):
            if part != "init_args":
                nested = {part: nested}
        found.append(Source(None, nested))
    return found


def names_key(message: str) -> bool:
    """Whether a message begins with a key or a flag."""
    return re.match(KEY, message) is not None or message.startswith("--")


def with_place(message: str, args: list[str]) -> str:
    """Put ``FILE line N: `` before a message that begins with a key such as ``model.optim.lr``, ``--`` for a flag."""
    if not (found := re.match(KEY, message)):
        return message
    keys = tuple(found[0].split("."))
    for source in reversed(sources(args)):
        if source.file is None and has(source.values, keys):
            return f"--{message}"
        if source.file is not None and (place := place_of(source.file, keys)):
            return f"{place}{message}"
    return message


def place_of(file: str, keys: Keys) -> str:
    """``FILE line N: `` of a key, or nothing where the file does not have it."""
    text = Path(file).read_text(encoding="utf-8")
    node, line = yaml.compose(text), None
    if text.startswith(CHECKPOINT_MARK):
        file = text.partition("\n")[0].removeprefix("# ")
    for key in keys:
        if isinstance(node, yaml.SequenceNode) and isinstance(key, int):
            node = node.value[key]
            line = node.start_mark.line
            continue
        pairs = {k.value: (k, v) for k, v in node.value} if isinstance(node, yaml.MappingNode) else {}
        if key not in pairs and "init_args" in pairs:  # keys are spoken of without it
            inner = pairs["init_args"][1].value
            pairs = {k.value: (k, v) for k, v in inner} if isinstance(inner, list) else {}
        if key not in pairs:
            return ""
        line, node = pairs[str(key)][0].start_mark.line, pairs[str(key)][1]
    return f"{file}: " if line is None else f"{file} line {line + 1}: "


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
