"""Secrets of a configuration, before it is shown or sent anywhere."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

SECRET_WORDS = {"token", "key", "apikey", "password", "passwd", "secret", "credential", "credentials"}
MASK = "***"


def masked(config: Any) -> Any:
    """Replace secrets of a configuration by ``***``.

    Args:
        config: Nested dicts and lists of plain values.

    Returns:
        A copy, in which text under a key with a word such as token, key, password or secret is masked (``api_key``,
        ``accessToken``; not ``num_tokens`` or ``class_token: true``), and so are passwords in URLs.
    """
    if isinstance(config, Mapping):
        return {k: _hidden(v) if _is_secret(str(k)) else masked(v) for k, v in config.items()}
    if isinstance(config, list | tuple):
        return [masked(value) for value in config]
    if isinstance(config, str):
        return re.sub(r"://[^/@\s]+@", f"://{MASK}@", config)
    return config


def _is_secret(key: str) -> bool:
    words = re.split(r"[^a-z0-9]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", key).lower())
    return not SECRET_WORDS.isdisjoint(words)


def _hidden(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _hidden(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_hidden(v) for v in value]
    return value if value is None or isinstance(value, bool) else MASK
