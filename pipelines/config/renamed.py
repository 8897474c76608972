"""Keys that were renamed: a checkpoint's config is translated, a user's gets an error that names the new key."""

from __future__ import annotations

#: Class (or base class, or dataclass) -> old key -> new key.
RENAMED: dict[str, dict[str, str]] = {}


def renamed_keys(cls: type) -> dict[str, str]:
    """The old keys of a class with their new names, those of its base classes included."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        found |= RENAMED.get(base.__name__, {})
    return found
