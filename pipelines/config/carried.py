"""The config that a checkpoint carries: it comes from anywhere, so reading it executes nothing.

It may name this project's tasks and datamodules, whose names are looked up among the classes that exist; no module is
imported and no text is parsed for its sake, whatever it says. All else in it is plain data: numbers, text, lists and
keys with values, which are converted to the types of the constructors' arguments here, not by the parser of configs,
since that parser imports what a ``class_path`` at any depth names, reads text as YAML, and files that are named.
``--trust PREFIX`` allows classes of a package of the user's own.
"""

from __future__ import annotations

import importlib
import inspect
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pipelines.config.allowed import ALLOWED, OURS, refusal
from pipelines.config.errors import Keys, Mistake
from pipelines.config.renamed import renamed_keys
from pipelines.config.signatures import (
    arguments_of,
    as_float,
    class_path,
    class_paths,
    fits,
    is_component,
    is_dict,
    is_group,
    is_list,
    members,
    required_of,
    subclasses,
)


@dataclass(frozen=True)
class Names:
    """Which classes a carried config may name.

    Attributes:
        trust: Packages or modules, beside ours, whose classes may be imported.
        typed: Full names that the user typed as flags, which are trusted as any flag is.
    """

    trust: Sequence[str] = ()
    typed: Sequence[str] = field(default=())

    def find(self, name: str, base: type, keys: Keys) -> type:
        """The class of a name below a base.

        Raises:
            Mistake: If it is not allowed; then nothing was imported. Or if there is no such class.
        """
        package, _, last = name.rpartition(".")
        if not package or package.partition(".")[0] in OURS:
            return self._ours(name, last, base, keys)
        is_trusted = name in self.typed or any(name.startswith(f"{prefix}.") for prefix in self.trust)
        if not is_trusted:
            raise Mistake(keys, f"{_written(keys)} {refusal(name)}")
        try:
            found = getattr(importlib.import_module(package), last)
        except (ImportError, AttributeError) as error:
            raise Mistake(keys, f"{_written(keys)} names '{name}', which cannot be imported: {error}.") from error
        if not (inspect.isclass(found) and issubclass(found, base)):
            raise Mistake(keys, f"{_written(keys)} names '{name}', which is no {base.__name__}.")
        return found

    def _ours(self, name: str, last: str, base: type, keys: Keys) -> type:
        """By its last part: modules move, classes keep their names."""
        known = {n: cls for n, cls in subclasses(base).items() if cls.__module__.partition(".")[0] in OURS}
        if last not in known:
            raise Mistake(keys, f"{_written(keys)} names '{name}'; there are {', '.join(sorted(known))}.")
        return known[last]


def classes_in(value: Any, bases: Sequence[type]) -> dict[Keys, type]:
    """The classes of this project that nested values name, by their keys; other names are left out."""
    known = {name: cls for base in bases for name, cls in subclasses(base).items()}
    last_names = {keys: name.rpartition(".")[2] for keys, name in class_paths(value)}
    return {keys: known[last] for keys, last in last_names.items() if last in known}


def class_names_in(values: Any) -> list[str]:
    """The classes that nested values name, as they are written."""
    return [name for _, name in class_paths(values)]


def packages_of(values: Any) -> list[str]:
    """The packages of the classes that a user's own config names, beside ours; its checkpoints name them, too."""
    always = tuple(f"{entry}." for entry in ALLOWED)
    names = [name for name in class_names_in(values) if "." in name and not name.startswith(always)]
    return sorted({name.partition(".")[0] for name in names})


def make(value: Any, base: type, keys: Keys, names: Names) -> Any:
    """Make the task or datamodule that plain values describe.

    Args:
        value: ``{class_path: NAME, init_args: {...}}``.
        base: What it must be.
        keys: Where it stands, for messages.
        names: Which classes may be named.

    Raises:
        Mistake: If it names another class, or an argument that does not exist or does not fit its type.
    """
    name = class_path(value) if isinstance(value, dict) else None
    if name is None:
        raise Mistake(keys, f"{_written(keys)} is {value!r}; it must have a class_path and init_args.")
    unknown = value.keys() - {"class_path", "init_args"}
    if unknown:
        raise Mistake(keys, f"{_written(keys)} has {sorted(map(str, unknown))}; it takes class_path and init_args.")
    cls = names.find(name, base, keys)
    return _call(cls, value.get("init_args") or {}, keys, names)


def _call(cls: type, values: Any, keys: Keys, names: Names) -> Any:
    if not isinstance(values, dict):
        raise Mistake(keys, f"{_written(keys)} is {values!r}; it must be keys with values.")
    hints = arguments_of(cls)
    renamed = renamed_keys(cls)
    arguments: dict[str, Any] = {}
    for old, value in values.items():
        name = str(renamed.get(old, old))
        if hints is not None and name not in hints:
            raise Mistake((*keys, str(old)), f"{_written((*keys, str(old)))} is unknown to {cls.__name__}.")
        hint = Any if hints is None else hints[name]
        arguments[name] = convert(value, hint, (*keys, name), names)
    for needed in required_of(cls):
        if needed not in arguments:
            raise Mistake(keys, f"{_written(keys)}: {cls.__name__} needs '{needed}'.")
    return cls(**arguments)


def convert(value: Any, hint: Any, keys: Keys, names: Names) -> Any:
    """A plain value as a type wants it; of a union's members the first one that fits."""
    if hint is Any:
        return plain(value, keys)
    problems: list[Mistake] = []
    for option in _by_exactness(value, members(hint)):
        try:
            return _convert_one(value, option, keys, names)
        except Mistake as mistake:
            problems.append(mistake)
    raise problems[0]


def _by_exactness(value: Any, options: tuple[Any, ...]) -> list[Any]:
    """The value's own type first: ``true`` is no number, and 1 of ``int | float`` is whole."""
    return sorted(options, key=lambda option: option is not type(value))


def _convert_one(value: Any, hint: Any, keys: Keys, names: Names) -> Any:
    if hint is Any:
        return plain(value, keys)
    if is_component(hint):
        return make(value, hint, keys, names)
    if is_group(hint):
        return _call(hint, value, keys, names)
    if not is_plain_type(hint) or not fits(value, hint):
        raise Mistake(keys, f"{_written(keys)} is {value!r}, which does not fit its type.")
    if isinstance(value, list | dict):
        return _convert_items(value, hint, keys, names)
    if hint is float:
        return as_float(value) if isinstance(value, str) else float(value)
    return str(value) if hint is str else value


def _convert_items(value: Any, hint: Any, keys: Keys, names: Names) -> Any:
    inner = typing.get_args(hint)
    if typing.get_origin(hint) is tuple:
        return _as_tuple(value, inner, keys, names)
    if is_list(hint):
        return [convert(one, inner[0], (*keys, i), names) for i, one in enumerate(value)]
    of_values = inner[1] if inner else Any
    return {plain(key, keys): convert(one, of_values, (*keys, str(key)), names) for key, one in value.items()}


def _as_tuple(value: Any, items: tuple[Any, ...], keys: Keys, names: Names) -> tuple[Any, ...]:
    if items[1:] == (Ellipsis,):
        items = (items[0],) * len(value)
    return tuple(convert(one, item, (*keys, i), names) for i, (one, item) in enumerate(zip(value, items, strict=True)))


def is_plain_type(hint: Any) -> bool:
    """Types whose values are made of plain data; any other, such as a function, cannot be given by a checkpoint."""
    known = hint in (types.NoneType, bool, int, float, str)
    return known or is_list(hint) or is_dict(hint) or typing.get_origin(hint) in (tuple, Literal)


def plain(value: Any, keys: Keys = ()) -> Any:
    """A copy of plain data.

    Raises:
        Mistake: If it holds anything else.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [plain(one, keys) for one in value]
    if isinstance(value, dict):
        return {plain(k, keys): plain(v, keys) for k, v in value.items()}
    raise Mistake(keys, f"{_written(keys)} holds a {type(value).__name__}, which is no plain data.")


def changed(config: Mapping[str, Any], keys: Sequence[str], value: Any) -> dict[str, Any]:
    """A config with one value replaced, as a flag does; the config itself stays as it is.

    Args:
        config: Plain values.
        keys: Where; ``init_args`` is left out, and a trailing ``+`` appends to a list.
        value: The new value. For a task or datamodule a name, or keys with values, which join those that it has.
    """
    name, below = keys[0], keys[1:]
    if name == "init_args":
        return changed(config, below, value)
    if "class_path" in config and name != "class_path":
        return {**config, "init_args": changed(config.get("init_args") or {}, keys, value)}
    if below:
        old = config.get(name)
        return {**config, name: changed(old if isinstance(old, Mapping) else {}, below, value)}
    if name.endswith("+"):
        name = name[:-1]
        return {**config, name: [*(config.get(name) or []), *(value if isinstance(value, list) else [value])]}
    return {**config, name: _joined(config.get(name), value)}


def _joined(old: Any, value: Any) -> Any:
    """A new value for an old one; what names a class gets another class, or other arguments."""
    if not (isinstance(old, Mapping) and "class_path" in old):
        return value
    if isinstance(value, str):
        return {**old, "class_path": value}
    if not isinstance(value, Mapping):
        return value
    given = (value.get("init_args") or {}) if {"class_path", "init_args"} & value.keys() else value
    return {
        "class_path": value.get("class_path", old["class_path"]),
        "init_args": {**(old.get("init_args") or {}), **given},
    }


def _written(keys: Keys) -> str:
    return ".".join(str(key) for key in keys)
