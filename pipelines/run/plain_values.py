"""Makes what a checkpoint holds readable with ``weights_only=True``, or says which value cannot be."""

from __future__ import annotations

import dataclasses
import datetime
import enum
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import PurePath
from typing import Any

import numpy as np
import torch

from datamodules.common.errors import UserError

#: What torch reads and writes as it is.
READABLE = (torch.Tensor, torch.dtype, torch.device, torch.layout, torch.memory_format)
PLAIN = (bool, int, float, complex, str, bytes, bytearray)
#: Arguments, which are only looked at: these also become numbers and text that say the same.
CONVERSIONS: tuple[tuple[Any, Callable[[Any], Any]], ...] = (
    (enum.Enum, lambda value: value.value),
    (datetime.timedelta, lambda value: value.total_seconds()),
    ((datetime.datetime, datetime.date, datetime.time), lambda value: value.isoformat()),
    (np.ndarray, lambda value: value.tolist()),
    (np.dtype, str),
)


def plain_checkpoint(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """A checkpoint that can be read back without running anything; tensors are the same ones.

    Numbers of numpy, paths and kinds of dicts become Python's plain ones everywhere. In hyper-parameters, which say
    what a model was made with, so do enums, dates, arrays and dataclasses; the state of a callback or a loop has to be
    given back as it was, so that these are refused there.

    Raises:
        UserError: Naming the value that cannot be read back.
    """
    return {key: _plain(value, (str(key),), key.endswith("hyper_parameters")) for key, value in checkpoint.items()}


def _plain(value: Any, keys: tuple[str, ...], is_argument: bool) -> Any:
    if value is None or isinstance(value, READABLE) or type(value) in PLAIN:
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, Mapping | Namespace):
        return _plain_dict(value, keys, is_argument)
    if isinstance(value, list | tuple | set | frozenset):
        return _plain_items(value, keys, is_argument)
    try:
        converted = _converted(value) if is_argument else _base_value(value)
    except LookupError:
        raise UserError(_refusal(value, keys, is_argument)) from None
    return _plain(converted, keys, is_argument)


def _converted(value: Any) -> Any:
    """An argument's value as what it was made from; LookupError where no rule knows it."""
    for kind, convert in CONVERSIONS:
        if isinstance(value, kind):
            return convert(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    raise LookupError(type(value))


def _base_value(value: Any) -> Any:
    """A number or text of a class of its own as Python's; LookupError for others, and for enums, which would change."""
    base = next((kind for kind in PLAIN if isinstance(value, kind)), None)
    if base is None or isinstance(value, enum.Enum):
        raise LookupError(type(value))
    return base(value)


def _plain_dict(value: Any, keys: tuple[str, ...], is_argument: bool) -> Any:
    items = vars(value) if isinstance(value, Namespace) else value
    found = {
        _plain(key, keys, is_argument): _plain(item, (*keys, str(key)), is_argument) for key, item in items.items()
    }
    same = all(one is other for one, other in zip(items.values(), found.values(), strict=True))
    if same and type(value) in (dict, OrderedDict):
        return value  # a state_dict carries the versions of its modules as an attribute
    return found


def _plain_items(value: Any, keys: tuple[str, ...], is_argument: bool) -> Any:
    items = [_plain(item, (*keys, str(i)), is_argument) for i, item in enumerate(value)]
    if isinstance(value, torch.Size):
        return value
    if isinstance(value, set | frozenset):
        return set(items)
    return tuple(items) if isinstance(value, tuple) else items


def _refusal(value: Any, keys: tuple[str, ...], is_argument: bool) -> str:
    what = f"a {type(value).__name__}, which could not be read back from a checkpoint without running its code"
    if is_argument:
        name = keys[1] if len(keys) > 1 else keys[0]
        return (
            f"The hyper-parameter {'.'.join(keys[1:])} is {what}: leave it out"
            f" (save_hyperparameters(ignore=['{name}'])), or give a name or numbers in its place."
        )
    owner = f"The state of {keys[1].partition('{')[0]}" if keys[0] == "callbacks" and len(keys) > 1 else "A checkpoint"
    return (
        f"{owner} holds {what} (at {'.'.join(keys)}): its state_dict() must return numbers, text, lists, dicts and"
        " tensors only."
    )
