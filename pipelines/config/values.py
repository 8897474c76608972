"""Nested plain values, as configs hold them: joining them, and where they differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pipelines.config.signatures import as_float


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Nested values, those of ``over`` before those of ``base``; lists are replaced."""
    out = dict(base)
    for key, value in over.items():
        old = out.get(key)
        out[key] = merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return out


def differences(written: Any, resolved: Any, key: str) -> Iterator[tuple[str, Any, Any]]:
    """Where a config's values are not those that a run was started with.

    Args:
        written: As in the config; what it leaves out, or null, is not compared.
        resolved: Complete values of the same part, as a checkpoint carries them.
        key: The part's, ``model``.

    Yields:
        The key without ``init_args``, the config's value, the run's.
    """
    if isinstance(written, Mapping) and isinstance(resolved, Mapping):
        for name, value in written.items():
            theirs = resolved.get(name)
            if name == "class_path":  # modules move, classes keep their names
                value, theirs = (str(path).rpartition(".")[2] for path in (value, theirs))
            yield from differences(value, theirs, key if name in ("init_args", "class_path") else f"{key}.{name}")
    elif written is not None and not isinstance(resolved, Mapping) and not _same(written, resolved):
        yield key, written, resolved


def _same(written: Any, resolved: Any) -> bool:
    """Whether two values mean the same: 1e-3 is text in YAML 1.1, and one size stands for both sides."""
    if isinstance(written, str) and isinstance(resolved, int | float):
        return as_float(written) == resolved
    if isinstance(resolved, list) and not isinstance(written, list):
        return resolved == [written] * len(resolved)
    return bool(written == resolved)
