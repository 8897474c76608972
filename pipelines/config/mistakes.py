"""Turns what the parser refuses into one message: file, key, value and the nearest right name.

The parser buries a misspelt key inside a report on all members of a type union, so its text is not read
(https://github.com/Lightning-AI/pytorch-lightning/issues/17254). Once it has refused, what was written is compared here
with the signatures of the classes that it names, and the first difference is told.
"""

from __future__ import annotations

import argparse
import collections.abc
import dataclasses
import difflib
import importlib
import inspect
import re
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn

from datamodules.common.errors import UserError
from pipelines.config.errors import Keys, Mistake, Source, place_of, sources, with_place

COMPONENT_KEYS = ("class_path", "init_args", "dict_kwargs")
KINDS = {"Task": "task", "DataModule": "datamodule", "Callback": "callback", "Logger": "logger"}


class Context(NamedTuple):
    """What the comparison knows: all arguments of the command, the classes named so far, and how keys are written."""

    arguments: dict[str, Any]
    classes: dict[Keys, type]
    prefix: str = ""


def explain(error: BaseException, args: list[str]) -> str | None:
    """One message for a mistake in the command line or a config.

    Args:
        error: What was raised.
        args: The command and its flags.

    Returns:
        The message, or None where the error is of another kind.
    """
    if isinstance(error, argparse.ArgumentError):
        return find_mistake(args) or " ".join(str(error).split())[:500]
    if isinstance(error, UserError):
        # Lightning and the parser complain of wrong arguments in words of their own.
        wrong_call = isinstance(error.__cause__, TypeError)
        return (find_mistake(args) if wrong_call else None) or with_place(str(error), args)
    return None


def find_mistake(args: list[str]) -> str | None:
    """Compare configs and flags with the signatures of what they name.

    Args:
        args: The command and its flags.

    Returns:
        The first mistake, with its place; None if all is as it should be.
    """
    arguments = _command_arguments(args[0])
    given: list[Source] = []
    context = Context(arguments, {})
    source = Source(None, {})
    try:
        given = sources(args)
        for source in given:  # flags speak of the class that a config names
            for key in ("model", "data"):
                if named := _class_path(source.values.get(key)):
                    context.classes[(key,)] = find_class(named, arguments[key]) or arguments[key]
        for source in given:
            check_keys(source.values, arguments, (), context._replace(prefix="" if source.file else "--"))
    except Mistake as mistake:
        return f"{place_of(source.file, mistake.keys) if source.file else ''}{mistake}"
    for key in ("model", "data"):
        if not any(key in source.values for source in given):
            files = [source.file for source in given if source.file]
            if not files:
                return f"Nothing says what '{key}' is: give a config, for example {args[0]} --config quickstart."
            return f"{files[0]} has no '{key}:'. Add it, or a second config that has it (--config MORE)."
    return None


# What could have been written.


def _class_path(value: Any) -> str | None:
    name = value.get("class_path") if isinstance(value, dict) else value
    return name if isinstance(name, str) else None


def _command_arguments(command: str) -> dict[str, Any]:
    """All top-level arguments of a command, with their types."""
    from datamodules.base import DataModule
    from pipelines.trainer import Trainer
    from tasks.base import Task

    not_flags = ("self", "train_dataloaders", "val_dataloaders", "dataloaders", "datamodule", "return")
    own = {k: v for k, v in typing.get_type_hints(getattr(Trainer, command)).items() if k not in not_flags}
    top = {"model": Task, "data": DataModule, "trainer": Trainer}
    own.pop("model")
    return {**top, **own, "name": str | None, "runs_dir": str, "seed_everything": bool | int}


def _arguments(cls: Any) -> dict[str, Any] | None:
    """A class's constructor arguments with their types, or None where it takes any."""
    if isinstance(cls, dict):
        return cls
    arguments: dict[str, Any] = {}
    for base in cls.__mro__[:-1]:  # those of a base class where the class passes them on
        parameters = inspect.signature(base.__init__).parameters
        try:
            hints = typing.get_type_hints(base.__init__)
        except NameError:  # a type that was imported for type checkers only
            hints = {}
        for name, parameter in list(parameters.items())[1:]:
            if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
                arguments.setdefault(name, hints.get(name, Any))
        if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            return arguments
    return None


def _members(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _is_list(hint: Any) -> bool:
    return typing.get_origin(hint) in (list, collections.abc.Iterable, collections.abc.Sequence)


def _is_group(hint: Any) -> bool:
    """Whether a type's arguments are written as keys, without a class path."""
    return dataclasses.is_dataclass(hint) or (inspect.isclass(hint) and hint.__name__ == "Trainer")


def _is_component(hint: Any) -> bool:
    return inspect.isclass(hint) and hint.__module__.partition(".")[0] in ("tasks", "datamodules", "pytorch_lightning")


def _subclasses(base: type) -> dict[str, type]:
    found: dict[str, type] = {}
    cls: type
    for cls in base.__subclasses__():
        found |= _subclasses(cls)
        if not inspect.isabstract(cls) and not cls.__name__.startswith("_"):
            found[cls.__name__] = cls
    return found


def find_class(name: str, base: type) -> type | None:
    """The subclass that a config names, by its short or its full name; None where there is none."""
    if "." not in name:
        return _subclasses(base).get(name)
    module, _, last = name.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), last, None)
    except ImportError:
        return None
    return found if inspect.isclass(found) else None


def _all_keys(arguments: dict[str, Any], context: Context, above: Keys = ()) -> Iterator[Keys]:
    for name, hint in arguments.items():
        keys = (*above, name)
        yield keys
        below = next((m for m in _members(hint) if _is_group(m)), context.classes.get(keys))
        yield from _all_keys((_arguments(below) if below else None) or {}, context, keys)


# The comparison.


def _refuse_key(name: str, above: Keys, known: list[str], context: Context) -> NoReturn:
    """An unknown key: its nearest neighbours, else keys of (almost) that name elsewhere, else all neighbours."""
    near = [(*above, n) for n in difflib.get_close_matches(name, known, n=1, cutoff=0.65)]
    if not near:
        elsewhere = list(_all_keys(context.arguments, context))
        close = difflib.get_close_matches(name, {str(k[-1]) for k in elsewhere}, n=1, cutoff=0.8)
        near = [k for k in elsewhere if k[-1] in close][:2]
    if near:
        hint = f"did you mean {' or '.join(_written(keys, context) for keys in near)}?"
    else:
        hint = f"there are {', '.join(known)}."
    kind = "flag" if context.prefix else "key"
    raise Mistake((*above, name), f"unknown {kind} {_written((*above, name), context)}; {hint}")


def _written(keys: Keys, context: Context) -> str:
    return context.prefix + ".".join(key for key in keys if isinstance(key, str))


def check_keys(values: dict[Any, Any], cls: Any, above: Keys, context: Context) -> None:
    """Refuse what a class or function does not take, at any depth.

    Args:
        values: A part of a config.
        cls: What its keys are arguments of.
        above: The keys above that part.
        context: What else is known.

    Raises:
        Mistake: Naming the key, and the nearest that exists.
    """
    arguments = _arguments(cls)
    if arguments is None:
        return
    for name, value in values.items():
        if name not in arguments:
            _refuse_key(str(name), above, list(arguments), context)
        _check(value, arguments[name], (*above, name), context)


def _check(value: Any, hint: Any, keys: Keys, context: Context) -> None:
    members = _members(hint)
    lists = [m for m in members if _is_list(m)]
    if isinstance(value, list) and lists:
        for i, item in enumerate(value):
            _check(item, typing.get_args(lists[0])[0], (*keys, i), context)
        return
    groups = [m for m in members if _is_group(m)]
    items = tuple(part for m in lists for part in _members(typing.get_args(m)[0]))
    components = [m for m in (*members, *items) if _is_component(m) and m not in groups]
    if isinstance(value, dict) and groups:
        check_keys(value, groups[0], keys, context)
    elif components and (isinstance(value, dict) or (isinstance(value, str) and str not in members)):
        _check_component(value, components[0], keys, context)
    elif not any(_fits(value, m) for m in members):
        expected = " or ".join(dict.fromkeys(_expected(m) for m in members))
        raise Mistake(keys, f"{_written(keys, context)} is {value!r}; it must be {expected}.{_hint(value, members)}")


def _check_component(value: Any, base: type, keys: Keys, context: Context) -> None:
    """A class path, with or without arguments, or (as flags) arguments of a class that was named before."""
    name = _class_path(value)
    if isinstance(value, str) and Path(value).is_file():
        return  # a config of its own
    if name is not None:
        cls = find_class(name, base)
        if cls is None:
            known = _subclasses(base)
            near = difflib.get_close_matches(name.rpartition(".")[2], known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(known))}."
            kind = KINDS.get(base.__name__, base.__name__)
            place = (*keys, "class_path") if isinstance(value, dict) else keys
            raise Mistake(place, f"{_written(keys, context)} names an unknown {kind} '{name}'; {hint}")
        context.classes[keys] = cls
    cls = context.classes.get(keys, base)
    if not isinstance(value, dict):
        return
    if not context.prefix:
        for key in value:
            if key not in COMPONENT_KEYS:
                _refuse_component_key(key, cls, keys, context)
        if name is None and cls is base:
            example = next(iter(_subclasses(base)), "NAME")
            raise Mistake(keys, f"{_written(keys, context)} names no class; add, for example, class_path: {example}.")
    given = value.get("init_args", {}) if {"class_path", "init_args"} & value.keys() else value
    check_keys(given or {}, cls, keys, context)
    if name is not None and not context.prefix:
        for parameter in inspect.signature(cls).parameters.values():
            needed = parameter.default is parameter.empty and parameter.kind is not parameter.VAR_KEYWORD
            if needed and parameter.name not in (given or {}):
                raise Mistake(keys, f"{_written(keys, context)}: {name} needs '{parameter.name}' below init_args.")


def _refuse_component_key(key: str, cls: type, above: Keys, context: Context) -> NoReturn:
    where = _written(above, context)
    if key in (_arguments(cls) or {}):
        raise Mistake((*above, key), f"{where}.{key} belongs one level deeper, below '{where}: init_args:'.")
    _refuse_key(key, above, list(COMPONENT_KEYS), context)


def _fits(value: Any, hint: Any) -> bool:
    """Whether a plain value fits a type; True where this cannot be told."""
    origin = typing.get_origin(hint)
    if hint is types.NoneType:
        return value is None
    if origin is Literal:
        return value in typing.get_args(hint) and not isinstance(value, bool)
    if hint is bool:
        return isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint is float:
        if isinstance(value, str):  # 1e-3 is text in YAML 1.1, and a number for the parser
            return re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?|[-+]?\.?(inf|nan)", value) is not None
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is str:
        return not isinstance(value, list | dict) and value is not None
    if origin is tuple:
        inner = typing.get_args(hint)
        return isinstance(value, list) and len(value) == len(inner) and all(map(_fits, value, inner))
    if _is_list(hint):
        return isinstance(value, list)
    if hint is dict or origin is dict:
        return isinstance(value, dict)
    return not _is_group(hint)


def _expected(hint: Any) -> str:
    """``int`` -> ``a whole number``; ``Literal['a', 'b']`` -> ``one of a, b``."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return f"one of {', '.join(map(str, inner))}"
    if _is_list(hint):
        return f"a list ([a, b]) whose items are each {_expected(inner[0])}"
    if origin is tuple:
        return f"a list of {len(inner)}, each {_expected(inner[0])}"
    if hint is dict or origin is dict:
        return "keys with values ({a: b})"
    if _is_group(hint):
        return f"keys with values ({{{', '.join(list(_arguments(hint) or {})[:3])}, ...}})"
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text", types.NoneType: "null"}
    return words.get(hint, getattr(hint, "__name__", str(hint)))


def _hint(value: Any, members: tuple[Any, ...]) -> str:
    choices = [str(c) for m in members if typing.get_origin(m) is Literal for c in typing.get_args(m)]
    if isinstance(value, bool) and choices:
        return " YAML reads bare on, off, yes and no as true and false: put the word in quotes."
    near = difflib.get_close_matches(str(value), choices, n=1)
    return f" Did you mean {near[0]}?" if near else ""
