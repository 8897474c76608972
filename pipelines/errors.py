"""Turns what the parser says of a mistake into one message: the file, the key, the value, the nearest right name."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import importlib
import inspect
import re
import typing
from pathlib import Path
from typing import Any


class UsageError(ValueError):
    """A mistake in the command line or a config; the message is for the person who made it."""


def explain(error: BaseException, args: list[str]) -> str | None:
    """One message for a parsing error.

    The parser (jsonargparse) reports a wrong key inside a report on all members of a type union; the innermost line is
    the one that helps. https://github.com/Lightning-AI/pytorch-lightning/issues/17254

    Args:
        error: What was raised.
        args: The command and its flags.

    Returns:
        The message, or None where the error is none of the parser's.
    """
    if not isinstance(error, argparse.ArgumentError):
        return None
    text = str(error)
    key = _first(r'Parser key "([^"]+)"', text)
    if found := re.search(r"Problems parsing config: (.+)", text, re.DOTALL):
        return f"A config is not valid YAML: {' '.join(found[1].split())}"
    if found := re.search(r"the following arguments are required: (.+)", text):
        missing = [name.split(".", 1)[-1] for name in found[1].split(", ")]
        return f"Nothing says what '{', '.join(missing)}' is. Give a config that has it: --config FILE."
    if found := re.search(r"unrecognized arguments: (.+)", text):
        return _unknown_flag(found[1], key, text)
    class_path = _last(r"Problem with given class_path '([^']+)'", text)
    if found := re.search(r"Group '([^']+)' does not accept option '([^']+)'", text):
        parts = [p for p in found[1].split(".") if p != "init_args"]
        return _unknown(found[2], ".".join(filter(None, [key, *parts])), _group_names(class_path, parts), args)
    if found := re.search(r"Option '([^']+)' is not accepted", text):
        return _unknown(found[1], key, _names(class_path), args, of=class_path)
    if found := re.search(r"Subcommand '([^']+)' does not accept (?:option|nested key|key) '([^']+)'", text):
        return _unknown_top(found[2], args)
    if found := re.search(r"(?:Expected a dot import path string|Unable to import|not a subclass)[^:]*: ?(\S+)", text):
        return _unknown_class(found[1], key, args)
    leaves = re.findall(r'(?:Parser key "([^"]+)":\s+)?(Expected .+?|[^\n]*?)\.? Got value: (.+)', text)
    if leaves:
        inner, expected, value = leaves[0]
        path = ".".join(dict.fromkeys(p for p in (key, inner) if p))
        return f"{_where(path.split('.')[-1], args)}{path} is {value.strip()!r}: {_plain(expected)}."
    return " ".join(text.split())


def _first(pattern: str, text: str) -> str | None:
    found = re.search(pattern, text)
    return found[1] if found else None


def _last(pattern: str, text: str) -> str | None:
    found = re.findall(pattern, text)
    return str(found[-1]) if found else None


def _plain(expected: str) -> str:
    """``Expected a typing.Literal['a', 'b']`` -> ``it must be one of 'a', 'b'``."""
    expected = expected.strip()
    if found := re.search(r"Literal\[(.+)\]", expected):
        return f"it must be one of {found[1]}"
    kind = re.sub(r"<class '([^']+)'>|typing\.", lambda m: m[1] or "", expected.removeprefix("Expected a").strip())
    names = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text"}
    return f"it must be {names.get(kind, kind)}"


def _nearest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    if close:
        return f" Did you mean {' or '.join(repr(c) for c in close)}?"
    return f" Known names: {', '.join(sorted(known))}." if known else ""


def _unknown(name: str, key: str | None, known: list[str], args: list[str], of: str | None = None) -> str:
    owner = f" of {of.rsplit('.', 1)[-1]}" if of else ""
    return f"{_where(name, args)}'{name}' is no argument{owner} ({key}.{name}).{_nearest(name, known)}"


def _unknown_top(name: str, args: list[str]) -> str:
    group, _, last = name.rpartition(".")
    known = _top_names() if not group else _group_names("pipelines.trainer.Trainer", group.split(".")[1:])
    return f"{_where(last, args)}there is no key '{name}'.{_nearest(last, known)}"


def _unknown_flag(flags: str, key: str | None, text: str) -> str:
    flag = flags.split()[0].partition("=")[0].lstrip("-")
    path = [*(key.split(".") if key else []), *flag.split(".")]
    class_path = _last(r"Problem with given class_path '([^']+)'", text)
    if class_path:
        known = _group_names(class_path, path[1:-1])
    elif path[0] == "trainer" and len(path) > 1:
        known = _group_names("pipelines.trainer.Trainer", path[1:-1])
    else:
        known = _top_names()
    return f"There is no flag --{'.'.join(path)}.{_nearest(path[-1], known)}"


def _unknown_class(name: str, key: str | None, args: list[str]) -> str:
    import datamodules
    import tasks

    exported = {"model": tasks.__all__, "data": datamodules.__all__}.get(key or "", [])
    if key == "trainer.callbacks":
        import pytorch_lightning.callbacks as callbacks

        exported = callbacks.__all__
    kind = {"model": "task", "data": "datamodule", "trainer.callbacks": "callback"}.get(key or "", "class")
    return f"{_where(name, args)}there is no {kind} '{name}' ({key}).{_nearest(name, list(exported))}"


def _top_names() -> list[str]:
    return [
        "model",
        "data",
        "trainer",
        "name",
        "runs_dir",
        "seed_everything",
        "ckpt_path",
        "resume",
        "source",
        "output",
    ]


def _class(class_path: str) -> Any:
    module, _, name = class_path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def _names(class_path: str | None) -> list[str]:
    """Names of a class's constructor arguments, with those of its base classes where it passes them on."""
    if class_path is None:
        return []
    names: list[str] = []
    for cls in _class(class_path).__mro__[:-1]:
        parameters = inspect.signature(cls.__init__).parameters
        names += [n for n, p in parameters.items() if n != "self" and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
        if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            break
    return names


def _group_names(class_path: str | None, groups: list[str]) -> list[str]:
    """Names inside a nested group: the fields of the dataclass that the argument has as its type."""
    if class_path is None or not groups:
        return _names(class_path)
    hint = typing.get_type_hints(_class(class_path).__init__).get(groups[0])
    for member in (hint, *typing.get_args(hint)):
        if dataclasses.is_dataclass(member):
            return [f.name for f in dataclasses.fields(member)]
    return []


def _where(word: str, args: list[str]) -> str:
    """``FILE line N: `` of the first config that has the word as a key or a value; nothing where it was a flag."""
    for i, arg in enumerate(args):
        name = arg.partition("=")[2] if arg.startswith("--config=") else args[i + 1] if arg == "--config" else None
        if name is None or not Path(name).is_file():
            continue
        for number, line in enumerate(Path(name).read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            if re.search(rf"(^|[^\w]){re.escape(word)}([^\w]|$)", line.partition("#")[0]):
                return f"{name} line {number}: "
    return ""
