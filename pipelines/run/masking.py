"""Secrets of a configuration, before it is shown or sent anywhere."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import yaml

SECRET_WORDS = {"token", "key", "apikey", "password", "passwd", "secret", "credential", "credentials"}
MASK = "***"


def masked(config: Any, *, marked: bool = False) -> Any:
    """Replace secrets of a configuration by ``***``.

    Args:
        config: Nested dicts and lists of plain values.
        marked: Append four hex digits of a digest, so that another secret is told from the same one.

    Returns:
        A copy, in which text under a key with a word such as token, key, password or secret is masked (``api_key``,
        ``accessToken``; not ``num_tokens`` or ``class_token: true``), and so are passwords and tokens in URLs.
    """
    if isinstance(config, Mapping):
        return {k: _hidden(v, marked) if _is_secret(str(k)) else masked(v, marked=marked) for k, v in config.items()}
    if isinstance(config, list | tuple):
        return [masked(value, marked=marked) for value in config]
    return _masked_text(config) if isinstance(config, str) else config


def masked_words(words: Sequence[str]) -> list[str]:
    """A command line without its secrets: values of flags such as ``--trainer.logger.api_key``, and inside values."""
    found: list[str] = []
    hides_next = False
    for word in words:
        name, equals, value = word.partition("=")
        is_flag = name.startswith("-")
        if hides_next and not word.startswith("--"):
            found.append(MASK)
        elif is_flag and equals:
            found.append(f"{name}={MASK if _is_secret(name.rpartition('.')[2]) else _masked_value(value)}")
        else:
            found.append(word if is_flag else _masked_value(word))
        hides_next = is_flag and not equals and _is_secret(name.rpartition(".")[2])
    return found


@contextmanager
def masked_command_line() -> Iterator[None]:
    """Inside, what records the process's command line finds no secrets in it."""
    words = sys.argv
    sys.argv = masked_words(words)
    try:
        yield
    finally:
        sys.argv = words


def _masked_value(text: str) -> str:
    """A flag's value, which may be keys with values in YAML or JSON."""
    if "{" not in text:
        return _masked_text(text)
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError:
        return _masked_text(text)
    hidden = masked(values)
    return text if hidden == values else json.dumps(hidden, default=str)


def _masked_text(text: str) -> str:
    text = re.sub(r"://[^/@\s]+@", f"://{MASK}@", text)
    return re.sub(r"([?&])([\w-]+)=([^&\s]+)", lambda m: f"{m[1]}{m[2]}={MASK if _is_secret(m[2]) else m[3]}", text)


def _is_secret(key: str) -> bool:
    words = re.split(r"[^a-z0-9]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", key).lower())
    return not SECRET_WORDS.isdisjoint(words)


def _hidden(value: Any, marked: bool) -> Any:
    if isinstance(value, Mapping):
        return {k: _hidden(v, marked) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_hidden(v, marked) for v in value]
    if value is None or isinstance(value, bool) or str(value).startswith(MASK):
        return value
    return MASK + (hashlib.sha256(str(value).encode()).hexdigest()[:4] if marked else "")
