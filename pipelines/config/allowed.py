"""What a config may name: importing a module runs it, so that a name is refused before anything of it is imported.

Allowed are this project's classes, and of Lightning the kinds of parts that a trainer takes. ``--trust PACKAGE`` allows
a package of the user's own; a name that the user typed as a flag is allowed as it stands. All other names are refused
at any depth of a config, also as callables and in files that it names: jsonargparse asks the same list.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import jsonargparse

from pipelines.config.errors import Source, UsageError, flag_value, place_of
from pipelines.config.launchers import check_launch
from pipelines.config.signatures import class_paths
from pipelines.config.words import CONFIG, flags

OURS = ("tasks", "datamodules")
LIGHTNING = ("callbacks", "loggers", "strategies", "plugins", "profilers", "accelerators")
ALLOWED = (
    *OURS,
    "pipelines.callbacks",
    *(f"{package}.{part}" for package in ("pytorch_lightning", "lightning_fabric") for part in LIGHTNING),
    "pipelines.noisy_student.selection.Selection",
    "datetime.timedelta",
)
_trusted: tuple[str, ...] = ()


@contextmanager
def allowing(words: Sequence[str]) -> Iterator[None]:
    """Inside, configs may name what is always allowed, what ``--trust`` gives, and names that were typed.

    Args:
        words: What follows the command; what a command around this one allows stays allowed.
    """
    global _trusted
    before = _trusted
    _trusted = tuple(dict.fromkeys([*before, *trusted(words), *_typed_names(words)]))
    jsonargparse.set_parsing_settings(import_path_denylist=["*"], import_path_allowlist=[*ALLOWED, *_trusted])
    try:
        yield
    finally:
        no_more = [name for name in _trusted if name not in before]
        _trusted = before
        jsonargparse.set_parsing_settings(import_path_denylist=no_more)


def trusted(words: Sequence[str]) -> list[str]:
    """What ``--trust`` allows, given once or several times.

    Raises:
        UsageError: For what is no name of a package.
    """
    given = [flag.value for flag in flags(words) if flag.name == "--trust" and flag.value]
    for name in given:
        if not _is_name(name):
            raise UsageError(
                f"--trust is '{name}'; it must be the name of a Python package, such as mine or mine.nets."
            )
    return given


def is_allowed(name: str) -> bool:
    """Whether a full name may be imported for a config's sake."""
    return any(name == entry or name.startswith(f"{entry}.") for entry in (*ALLOWED, *_trusted))


def trust_flags(packages: Sequence[str]) -> list[str]:
    """What a command that this one starts is told: the packages that were allowed here."""
    return [f"--trust={name}" for name in packages if is_allowed(f"{name}.x")]


def refusal(name: str) -> str:
    """The end of a sentence that says where the name stands."""
    package = name.partition(".")[0]
    return (
        f"names '{name}', which is none of this project's classes: nothing of it was imported."
        f" If you know and trust it, add --trust {package}."
    )


def check_names(given: Sequence[Source]) -> None:
    """Refuse what configs name and may not, before the parser sees them.

    Raises:
        UsageError: Naming file, line and key.
    """
    for source in given:
        if source.is_flag or source.classes is not None:
            continue
        if "trust" in source.values:
            place = place_of(source, ("trust",))
            raise UsageError(f"{place}trust is set in a config; only you can say whom you trust: --trust PACKAGE.")
        if isinstance(launch := source.values.get("launch"), str | list):
            check_launch(launch, place_of(source, ("launch",)))
        for keys, name in class_paths(source.values):
            if "." in name and not is_allowed(name):
                written = ".".join(key for key in keys if isinstance(key, str))
                raise UsageError(f"{place_of(source, keys)}{written} {refusal(name)}")


def _typed_names(words: Sequence[str]) -> Iterator[str]:
    """All full names in the values of flags."""
    for flag in flags(words):
        if flag.name.startswith("-") and flag.name not in (*CONFIG, "--trust") and flag.value:
            yield from (text for text in _texts(flag_value(flag.value)) if "." in text and _is_name(text))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    if isinstance(value, list | dict):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _texts(one)


def _is_name(text: str) -> bool:
    return re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*", text) is not None and text.partition(".")[0] != "jsonargparse"
