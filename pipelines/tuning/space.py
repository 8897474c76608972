"""The file of ``tune`` that says which keys of the config are searched, and over what."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datamodules.common.errors import UserError
from pipelines.config.errors import load_config
from pipelines.listing import nearest

RANGE = {"low", "high", "log", "step"}
EXAMPLE = "a list of values ([8, 16, 32]), or a range ({low: 0.001, high: 0.1, log: true}; step: for a grid)"


@dataclass(frozen=True)
class Dimension:
    """One key and its values.

    Attributes:
        key: As written.
        path: The same as keys of the nested config, with ``init_args``.
        choices: The values; none for a range.
        low: Of a range.
        high: Of a range, included.
        log: Whether a range is searched on a logarithmic scale.
        step: Between the values of a range; integers have 1.
    """

    key: str
    path: tuple[str, ...]
    choices: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    step: float | None = None

    def suggest(self, trial: Any) -> Any:
        """The value that an optuna trial proposes."""
        if self.choices:
            named = {choice if _is_scalar(choice) else json.dumps(choice): choice for choice in self.choices}
            return named[trial.suggest_categorical(self.key, list(named))]
        if isinstance(self.low, int) and isinstance(self.high, int):
            step = 1 if self.step is None else int(self.step)
            return trial.suggest_int(self.key, self.low, self.high, step=step, log=self.log)
        return trial.suggest_float(self.key, self.low, self.high, step=self.step, log=self.log)


def read_space(file: str, config: Mapping[str, Any]) -> list[Dimension]:
    """Read the file.

    Args:
        file: YAML: keys of the config, ``init_args`` may be left out, each with its values.
        config: The complete config.

    Raises:
        UserError: If there is no such file, or a key is none of the config's, or its values are neither list nor range.
    """
    if not Path(file).is_file():
        raise UserError(f"--space {file}: there is no such file. It has keys of the config, each with {EXAMPLE}.")
    content = load_config(file)
    if not content:
        raise UserError(f"--space {file} is empty: give keys of the config, each with {EXAMPLE}.")
    return [_dimension(file, str(key), values, config) for key, values in content.items()]


def with_values(config: Mapping[str, Any], values: Mapping[tuple[str, ...], Any]) -> dict[str, Any]:
    """A copy of the config with other values, by path."""
    result = copy.deepcopy(dict(config))
    for path, value in values.items():
        parent = result
        for name in path[:-1]:
            parent = parent[name]
        parent[path[-1]] = value
    return result


def _dimension(file: str, key: str, values: Any, config: Mapping[str, Any]) -> Dimension:
    path = _path(file, key, config)
    if isinstance(values, Mapping) and set(values) == {"choices"}:
        values = values["choices"]
    if isinstance(values, list) and values:
        return Dimension(key, path, choices=tuple(values))
    if not isinstance(values, Mapping) or not {"low", "high"} <= set(values) <= RANGE:
        raise UserError(f"--space {file}: {key} is {values!r}; it must be {EXAMPLE}.")
    low, high, step = (_number(file, key, values.get(name)) for name in ("low", "high", "step"))
    log = values.get("log", False)
    if low is None or high is None or low >= high:
        raise UserError(f"--space {file}: {key} goes from {low} to {high}; low must lie below high.")
    if log is True and (low <= 0 or step is not None):
        raise UserError(f"--space {file}: {key} is logarithmic: low must be above 0, and there is no step.")
    return Dimension(key, path, low=low, high=high, log=bool(log), step=step)


def _path(file: str, key: str, config: Mapping[str, Any]) -> tuple[str, ...]:
    """The key as a path in the config.

    Raises:
        UserError: If it is not there, with the nearest one that is.
    """
    parts = key.split(".")
    if parts[0] in ("model", "data") and parts[1:2] != ["init_args"]:
        parts.insert(1, "init_args")
    found: Any = config
    for number, name in enumerate(parts):
        if not isinstance(found, Mapping) or name not in found:
            there = list(found) if isinstance(found, Mapping) else []
            close = nearest(name, there, 1)
            place = ".".join(part for part in [*parts[:number], *close] if part != "init_args")
            meant = f"did you mean {place}?" if close else f"{'.'.join(parts[:number]) or 'the config'} has none."
            raise UserError(f"--space {file}: unknown key {key}; {meant}")
        found = found[name]
    return tuple(parts)


def _number(file: str, key: str, value: Any) -> float | None:
    """A number; YAML reads 1e-4, without a dot, as text."""
    if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
        return value
    try:
        return float(value)
    except (TypeError, ValueError):
        raise UserError(f"--space {file}: {key} has {value!r}, which is no number.") from None


def _is_scalar(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str)
