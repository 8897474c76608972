"""Turns what the parser refuses into one message: file, key, value and the nearest right name.

The parser buries a misspelt key inside a report on all members of a type union, so its text is not read
(https://github.com/Lightning-AI/pytorch-lightning/issues/17254). Once it has refused, what was written is compared here
with the signatures of the classes that it names, and the first difference is told. The same comparison checks the
configs that never reach the parser: those of noisy student, and what a flag changes in a checkpoint's config.
"""

from __future__ import annotations

import argparse
import difflib
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn

from pipelines.config.allowed import is_allowed, refusal
from pipelines.config.errors import Keys, Mistake, Source, UsageError, place_of, with_place
from pipelines.config.peers import OWNERS, RENAMED, key_of
from pipelines.config.renamed import renamed_keys
from pipelines.config.signatures import (
    arguments_of,
    class_path,
    find_class,
    fits,
    is_component,
    is_dict,
    is_group,
    is_list,
    members,
    required_of,
    subclasses,
)

COMPONENT_KEYS = ("class_path", "init_args", "dict_kwargs")
KINDS = {"Task": "task", "TaskHooks": "task", "DataModule": "datamodule", "Callback": "callback", "Logger": "logger"}
PARTS = ("model", "data")  # what every config has to say


class Context(NamedTuple):
    """What the comparison knows: all arguments of the command, the classes named so far, and how keys are written."""

    arguments: dict[str, Any]
    classes: dict[Keys, type]
    prefix: str = ""


def explain(error: BaseException, command: str, arguments: dict[str, Any], given: Sequence[Source]) -> str | None:
    """One message for a mistake in the command line or a config.

    Args:
        error: What was raised.
        command: Its name.
        arguments: All that the command takes, with their types.
        given: The configs and flags.

    Returns:
        The message, or None where the error is of another kind.
    """
    if isinstance(error, argparse.ArgumentError):
        refused = re.search(r"Importing '([\w.]+)' is not allowed", str(error))
        text = f"A value {refusal(refused[1])}" if refused else " ".join(str(error).split())[:500]
        if lacking := re.fullmatch(r"the following arguments are required: (\w+)", text):
            text = f"--{RENAMED.get(lacking[1], lacking[1])} is missing; {command} needs it."
        return find_mistake(command, arguments, given) or text
    if not isinstance(error, UsageError):
        return None
    # Lightning and the parser complain of wrong arguments in words of their own.
    if isinstance(error.__cause__, TypeError) and (mistake := find_mistake(command, arguments, given)):
        return mistake
    return with_place(str(error), given)


def find_mistake(command: str, arguments: dict[str, Any], given: Sequence[Source]) -> str | None:
    """Compare configs and flags with the signatures of what they name.

    Args:
        command: Its name.
        arguments: All that the command takes, with their types.
        given: The configs and flags, in order.

    Returns:
        The first mistake, with its place; None if all is as it should be.
    """
    context = Context(arguments, {})
    for source in given:  # flags speak of the class that a config names
        if source.classes is not None:
            context.classes.update(source.classes)
            continue
        for key in PARTS:
            if (named := class_path(source.values.get(key))) and ("." not in named or is_allowed(named)):
                context.classes[(key,)] = find_class(named, arguments[key]) or arguments[key]
    for source in given:
        if source.classes is not None:
            continue
        try:
            check_keys(source.values, arguments, (), context._replace(prefix="--" if source.is_flag else ""))
        except Mistake as mistake:
            return f"{place_of(source, mistake.keys)}{mistake}"
    return _missing_part(command, given)


def _missing_part(command: str, given: Sequence[Source]) -> str | None:
    files = [source.file for source in given if not source.is_flag]
    for key in PARTS:
        if any(key in source.values for source in given):
            continue
        if not files:
            return f"Nothing says what '{key}' is: give a config, for example {command} --config quickstart."
        return f"{files[0]} has no '{key}:'. Add it, or a second config that has it (--config MORE)."
    return None


def _all_keys(arguments: Mapping[str, Any], context: Context, above: Keys = ()) -> Iterator[Keys]:
    """The keys of all that could be written, groups and named classes included."""
    for name, hint in arguments.items():
        keys = (*above, name)
        yield keys
        below = next((m for m in members(hint) if is_group(m)), context.classes.get(keys))
        yield from _all_keys((arguments_of(below) if below else None) or {}, context, keys)


def _peer(name: str, context: Context) -> list[Keys]:
    """Our key for a word of another tool, where the command and the classes named so far have it."""
    keys = tuple((key_of(name) or "").split("."))
    is_open = keys[0] in PARTS and (keys[0],) not in context.classes  # nothing says which class it is
    return [keys] if is_open or keys in _all_keys(context.arguments, context) else []


def _refuse_key(name: str, above: Keys, known: list[str], context: Context) -> NoReturn:
    """An unknown key: the nearest beside it, else keys of (almost) that name elsewhere, else all beside it."""
    owner = OWNERS.get(name) if not above else None
    near = _peer(name, context) if not above else []
    if not near:
        near = [(*above, n) for n in difflib.get_close_matches(name, known, n=1, cutoff=0.65)]
    if not near:
        elsewhere = list(_all_keys(context.arguments, context))
        close = difflib.get_close_matches(name, {str(k[-1]) for k in elsewhere}, n=1, cutoff=0.8)
        near = [k for k in elsewhere if k[-1] in close][:2]
    if owner:
        hint = f"it is of `{owner}`: give that command, or leave it out."
    elif near:
        hint = f"did you mean {' or '.join(_written(keys, context) for keys in near)}?"
    elif known:
        hint = f"there are {', '.join(known)}."
    else:  # a class is to be named first
        part = _written(above, context)
        hint = f"nothing says what {part} is: give a config (--config NAME), or its class ({part} CLASS; {part}.help)."
    kind = "flag" if context.prefix else "key"
    raise Mistake((*above, name), f"unknown {kind} {_written((*above, name), context)}; {hint}")


def _written(keys: Keys, context: Context) -> str:
    return context.prefix + ".".join(key for key in keys if isinstance(key, str))


def check_keys(values: dict[Any, Any], cls: Any, above: Keys, context: Context) -> None:
    """Refuse what a class or function does not take, at any depth.

    Args:
        values: Keys with values, as in a config.
        cls: What the keys are arguments of: a class, or names with types.
        above: The keys above these.
        context: What else is known.

    Raises:
        Mistake: Naming the key, and the nearest that exists.
    """
    arguments = arguments_of(cls)
    if arguments is None:
        return
    renamed = {} if isinstance(cls, dict) else renamed_keys(cls)
    for name, value in values.items():
        if name in renamed and name not in arguments:
            old, new = (_written((*above, key), context) for key in (name, renamed[name]))
            raise Mistake((*above, name), f"{old} has a new name: write {new}.")
        if name not in arguments:
            _refuse_key(str(name), above, list(arguments), context)
        _check(value, arguments[name], (*above, name), context)


def _check(value: Any, hint: Any, keys: Keys, context: Context) -> None:
    options = members(hint)
    lists = [option for option in options if is_list(option)]
    if isinstance(value, list) and lists:
        for i, item in enumerate(value):
            _check(item, typing.get_args(lists[0])[0], (*keys, i), context)
        return
    group = next((option for option in options if is_group(option)), None)
    if isinstance(value, dict) and group is not None:
        check_keys(value, group, keys, context)
        return
    component = _component_of(options, lists)
    names_class = isinstance(value, str) and str not in options
    if component is not None and (isinstance(value, dict) or names_class):
        _check_component(value, component, keys, context)
        return
    _check_plain(value, options, keys, context)


def _component_of(options: Sequence[Any], lists: Sequence[Any]) -> type | None:
    """The class that a value may name; where a list of them is taken, one alone is, too."""
    for option in options:
        if is_component(option):
            return option  # type: ignore[no-any-return]
    for one in lists:
        for option in members(typing.get_args(one)[0]):
            if is_component(option):
                return option  # type: ignore[no-any-return]
    return None


def _check_plain(value: Any, options: tuple[Any, ...], keys: Keys, context: Context) -> None:
    if any(fits(value, option) for option in options):
        return
    expected = " or ".join(dict.fromkeys(_expected(option) for option in options))
    raise Mistake(keys, f"{_written(keys, context)} is {value!r}; it must be {expected}.{_hint(value, options)}")


def _check_component(value: Any, base: type, keys: Keys, context: Context) -> None:
    """A class path, with or without arguments, or (as flags) arguments of a class that was named before."""
    if isinstance(value, str) and Path(value).is_file():
        return  # a config of its own
    name = class_path(value)
    if name is not None:
        context.classes[keys] = _named_class(name, base, value, keys, context)
    if not isinstance(value, dict):
        return
    cls = context.classes.get(keys, base)
    has_arguments_below = bool({"class_path", "init_args"} & value.keys())
    given = (value.get("init_args") or {}) if has_arguments_below else value
    is_in_file = not context.prefix
    if is_in_file:
        _check_component_keys(value, cls, base, keys, context)
    check_keys(given, cls, keys, context)
    if is_in_file and name is not None:
        _check_nothing_lacks(name, cls, given, keys, context)


def _check_nothing_lacks(name: str, cls: type, given: Any, keys: Keys, context: Context) -> None:
    for needed in required_of(cls):
        if needed not in given:
            raise Mistake(keys, f"{_written(keys, context)}: {name} needs '{needed}' below init_args.")


def _named_class(name: str, base: type, value: Any, keys: Keys, context: Context) -> type:
    place = (*keys, "class_path") if isinstance(value, dict) else keys
    if "." in name and not is_allowed(name):
        raise Mistake(place, f"{_written(keys, context)} {refusal(name)}")
    cls = find_class(name, base)
    if cls is not None:
        return cls
    known = subclasses(base)
    near = difflib.get_close_matches(name.rpartition(".")[2], known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(known))}."
    kind = KINDS.get(base.__name__, base.__name__)
    raise Mistake(place, f"{_written(keys, context)} names an unknown {kind} '{name}'; {hint}")


def _check_component_keys(value: dict[Any, Any], cls: type, base: type, keys: Keys, context: Context) -> None:
    """In a file, a component is ``class_path`` and ``init_args``."""
    where = _written(keys, context)
    for key in value:
        if key in COMPONENT_KEYS:
            continue
        if key in (arguments_of(cls) or {}):
            raise Mistake((*keys, key), f"{where}.{key} belongs one level deeper, below '{where}: init_args:'.")
        _refuse_key(str(key), keys, list(COMPONENT_KEYS), context)
    if class_path(value) is None and cls is base:
        example = next(iter(subclasses(base)), "NAME")
        raise Mistake(keys, f"{where} names no class; add, for example, class_path: {example}.")


def _expected(hint: Any) -> str:
    """``int`` -> ``a whole number``; ``Literal['a', 'b']`` -> ``one of a, b``."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return f"one of {', '.join(map(str, inner))}" if len(inner) > 1 else str(inner[0])
    if is_list(hint):
        return f"a list ([a, b]) whose items are each {_expected(inner[0])}"
    if origin is tuple:
        return f"a list of {len(inner)}, each {_expected(inner[0])}"
    if is_dict(hint):
        return "keys with values ({a: b})"
    if is_group(hint):
        return f"keys with values ({{{', '.join(list(arguments_of(hint) or {})[:3])}, ...}})"
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text", types.NoneType: "null"}
    return words.get(hint, getattr(hint, "__name__", str(hint)))


def _hint(value: Any, options: tuple[Any, ...]) -> str:
    literals = [option for option in options if typing.get_origin(option) is Literal]
    choices = [str(choice) for literal in literals for choice in typing.get_args(literal)]
    if isinstance(value, bool) and choices:
        return " YAML reads bare on, off, yes and no as true and false: put the word in quotes."
    near = difflib.get_close_matches(str(value), choices, n=1)
    return f" Did you mean {near[0]}?" if near else ""
