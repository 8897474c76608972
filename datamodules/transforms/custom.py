"""albumentations transforms from plain settings (`data.augment.transforms`), with errors that name the mistake."""

from __future__ import annotations

import inspect
import os
from typing import Any

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # no network request at import

import albumentations as A

from datamodules.common.errors import UserError, did_you_mean

_REFUSED = ("Normalize", "ToFloat", "FromFloat", "ToTensor", "ToTensorV2", "ToTensor3D")
_INPUTS = {"image", "mask", "masks", "bboxes"}


def build_transforms(specs: list[Any], key: str = "data.augment.transforms") -> list[A.BasicTransform | A.BaseCompose]:
    """Make the transforms of a list.

    Args:
        specs: Each one `{Name: {argument: value}}`, `{class_path: Name, init_args: {...}}` (also `name:`), or a
            transform that is already made (jsonargparse makes nested ones given by their full path). OneOf, SomeOf,
            Sequential and the like hold a list of the same kind as their argument `transforms`.
        key: Where the list stands, for messages.

    Raises:
        UserError: Unknown or refused transform, unknown, missing or wrong argument.
    """
    return [_build(spec, f"{key}[{index}]") for index, spec in enumerate(specs)]


def _build(spec: object, key: str) -> A.BasicTransform | A.BaseCompose:
    if isinstance(spec, A.BasicTransform | A.BaseCompose):
        return _check(spec, type(spec).__name__, key)
    name, arguments = _read(spec, key)
    key = f"{key} ({name})"
    if name in _REFUSED:
        raise _refusal(key)
    cls = _find(name, key)
    _check_arguments(arguments, cls, key)
    if issubclass(cls, A.BaseCompose):
        inner = arguments.get("transforms")
        if not isinstance(inner, list) or not inner:
            raise UserError(f"{key} needs 'transforms', a list of at least one transform; got {inner!r}")
        arguments = {**arguments, "transforms": build_transforms(inner, f"{key}.transforms")}
    try:
        made = cls(**arguments)
    except (ValueError, TypeError) as error:
        raise UserError(f"{key}: {_explain(error)}") from error
    return _check(made, name, key)


def _check_arguments(arguments: dict[str, Any], cls: type[Any], key: str) -> None:
    allowed = [name for name in inspect.signature(cls.__init__).parameters if name != "self"]
    for argument in arguments:
        if argument not in allowed:
            raise UserError(
                f"{key} has no argument '{argument}'.{did_you_mean(argument, allowed)} It has: {', '.join(allowed)}"
            )


def _read(spec: object, key: str) -> tuple[str, dict[str, Any]]:
    """Name and arguments of one entry."""
    arguments: Any = None
    name: Any = None
    if isinstance(spec, dict) and ("class_path" in spec or "name" in spec):
        unknown = set(spec) - {"class_path", "name", "init_args"}
        if unknown:
            raise UserError(f"{key}: unknown key '{min(map(str, unknown))}'; allowed are class_path and init_args")
        name, arguments = spec.get("class_path", spec.get("name")), spec.get("init_args")
    elif isinstance(spec, dict) and len(spec) == 1:
        ((name, arguments),) = spec.items()
    arguments = {} if arguments is None else arguments
    if not isinstance(name, str) or not isinstance(arguments, dict):
        raise UserError(
            f"{key} is {spec!r}; write {{HorizontalFlip: {{p: 0.5}}}} or"
            " {class_path: HorizontalFlip, init_args: {p: 0.5}}"
        )
    return name.rsplit(".", 1)[-1], arguments


def _find(name: str, key: str) -> type[Any]:
    known = {n: c for n, c in vars(A).items() if inspect.isclass(c) and issubclass(c, A.BasicTransform | A.BaseCompose)}
    if name not in known:
        raise UserError(f"{key}: albumentations has no transform '{name}'.{did_you_mean(name, known)}")
    return known[name]


def _check(made: A.BasicTransform | A.BaseCompose, name: str, key: str) -> A.BasicTransform | A.BaseCompose:
    """Refuse what cannot work on a sample: conversions, transforms of volumes, transforms that need other pictures."""
    if name in _REFUSED:
        raise _refusal(key)
    if isinstance(made, A.BaseCompose):
        for inner in made.transforms:
            _check(inner, type(inner).__name__, f"{key}.transforms")
        return made
    others = set(made.targets_as_params) - _INPUTS
    if others or "image" not in made.available_keys:
        needs = f"needs {', '.join(sorted(others))} beside the image" if others else "is not for single images"
        raise UserError(f"{key} {needs}; it cannot be used here")
    return made


def _refusal(key: str) -> UserError:
    return UserError(
        f"{key} is refused: normalization and conversion live in the model, so that training, evaluation and export"
        " cannot differ, and images stay uint8 until there. Leave it out"
    )


def _explain(error: Exception) -> str:
    """One line from pydantic's report: the argument, what is wrong, the value."""
    details = getattr(error.__cause__, "errors", None)
    if details is None:
        return str(error)
    lines: dict[str, str] = {}
    for item in details():
        argument = str(item["loc"][0]) if item["loc"] else "arguments"
        missing = item["type"] == "missing"
        lines.setdefault(
            argument, f"argument '{argument}': {item['msg']}" + ("" if missing else f", got {item['input']!r}")
        )
    return "; ".join(lines.values())
