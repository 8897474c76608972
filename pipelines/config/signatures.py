"""What classes and functions take, read from their signatures, and whether a plain value fits a type."""

from __future__ import annotations

import collections.abc
import dataclasses
import importlib
import inspect
import re
import types
import typing
from collections.abc import Callable, Iterator
from typing import Any, Literal


def arguments_of(cls: Any) -> dict[str, Any] | None:
    """A class's constructor arguments with their types; None where it takes any.

    Args:
        cls: A class, or arguments as they are returned here.
    """
    if isinstance(cls, dict):
        return cls
    arguments: dict[str, Any] = {}
    for base in cls.__mro__[:-1]:  # those of a base class where the class passes them on
        parameters = inspect.signature(base.__init__).parameters
        hints = _hints_of(base.__init__)
        for name, parameter in list(parameters.items())[1:]:
            if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
                arguments.setdefault(name, hints.get(name, Any))
        passes_on = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        if not passes_on:
            return arguments
    return None


def arguments_of_function(function: Callable[..., Any], leave_out: collections.abc.Collection[str]) -> dict[str, Any]:
    """A function's arguments with their types, but for those that are left out."""
    return {name: hint for name, hint in _hints_of(function).items() if name not in leave_out and name != "return"}


def required_of(cls: type) -> list[str]:
    """The constructor arguments without a default."""
    parameters = inspect.signature(cls).parameters.values()
    return [p.name for p in parameters if p.default is p.empty and p.kind is not p.VAR_KEYWORD]


def _hints_of(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function)
    except NameError:  # a type that was imported for type checkers only
        return {}


def members(hint: Any) -> tuple[Any, ...]:
    """The members of a union; a type alone is its own."""
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def is_list(hint: Any) -> bool:
    """Whether a type is a list of items."""
    return typing.get_origin(hint) in (list, collections.abc.Iterable, collections.abc.Sequence)


def is_dict(hint: Any) -> bool:
    """Whether a type is a dict."""
    return hint is dict or typing.get_origin(hint) is dict


def is_group(hint: Any) -> bool:
    """Whether a type's arguments are written as keys, without a class path."""
    return dataclasses.is_dataclass(hint) or (inspect.isclass(hint) and hint.__name__ == "Trainer")


def is_component(hint: Any) -> bool:
    """Whether a type's values are written with a class path."""
    packages = ("tasks", "datamodules", "pytorch_lightning")
    return inspect.isclass(hint) and hint.__module__.partition(".")[0] in packages and not is_group(hint)


def class_path(value: Any) -> str | None:
    """The class that a value names, as text or below ``class_path``."""
    name = value.get("class_path") if isinstance(value, dict) else value
    return name if isinstance(name, str) else None


def class_paths(value: Any, keys: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """All that nested values name as a class, with the keys where they do."""
    if isinstance(value, list):
        for i, one in enumerate(value):
            yield from class_paths(one, (*keys, i))
    if not isinstance(value, dict):
        return
    if name := class_path(value):
        yield keys, name
    for key, below in value.items():
        yield from class_paths(below, keys if key == "init_args" else (*keys, str(key)))


def subclasses(base: type) -> dict[str, type]:
    """All public classes below a base that can be made, by name."""
    found: dict[str, type] = {}
    cls: type
    for cls in base.__subclasses__():
        found |= subclasses(cls)
        if not inspect.isabstract(cls) and not cls.__name__.startswith("_"):
            found[cls.__name__] = cls
    return found


def find_class(name: str, base: type) -> type | None:
    """The class that a user's config or flag names, by its short or its full name; None where there is none.

    A module that is named is imported: never ask for a name that comes out of a checkpoint.
    """
    if "." not in name:
        return subclasses(base).get(name)
    module, _, last = name.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), last, None)
    except ImportError:
        return None
    return found if inspect.isclass(found) else None


def fits(value: Any, hint: Any) -> bool:
    """Whether a plain value fits a type; True where this cannot be told."""
    if hint in _CHECKS:
        return _CHECKS[hint](value)
    origin = typing.get_origin(hint)
    if origin is Literal:
        return value in typing.get_args(hint) and not isinstance(value, bool)
    if origin is tuple:
        return _fits_tuple(value, typing.get_args(hint))
    if is_list(hint):
        return isinstance(value, list)
    if is_dict(hint):
        return isinstance(value, dict)
    return not is_group(hint)


def as_float(text: str) -> float | None:
    """A number as text: 1e-3 is text in YAML 1.1, and a number for the parser; None for any other text."""
    number = re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?|[-+]?\.?(inf|nan)", text)
    return float(text.replace(".inf", "inf").replace(".nan", "nan")) if number else None


def _fits_tuple(value: Any, inner: tuple[Any, ...]) -> bool:
    if not isinstance(value, list | tuple):
        return False
    if len(inner) == 2 and inner[1] is Ellipsis:
        inner = (inner[0],) * len(value)
    return len(value) == len(inner) and all(map(fits, value, inner))


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    if isinstance(value, str):
        return as_float(value) is not None
    return isinstance(value, float) or _is_whole(value)


def _is_text(value: Any) -> bool:
    return value is not None and not isinstance(value, list | dict)


_CHECKS: dict[Any, Callable[[Any], bool]] = {
    types.NoneType: lambda value: value is None,
    bool: lambda value: isinstance(value, bool),
    int: _is_whole,
    float: _is_number,
    str: _is_text,
}
