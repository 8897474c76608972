"""Readers: one file per on-disk format, each turning it into plain records."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, NamedTuple, TypeAlias

Record: TypeAlias = dict[str, Any]

_SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_INTEGER = re.compile(r"-?(0|[1-9][0-9]*)")


class Listing(NamedTuple):
    """What a reader gives.

    A record is a plain dict, one per image: ``image`` (path as str, or uint8/float array (H, W, C)), ``path`` (what is
    printed and written; ``file.npz#12`` for arrays), ``label`` (int in 0..K-1, or K floats for several or soft labels),
    ``split`` (``train``, ``val``, ``test``, or None where the source does not say), and ``weight`` (float) where given.
    """

    records: list[Record]
    class_names: list[str]
    class_ids: list[int] | None = None  # the classes' numbers in the file, where they are not 0..K-1


def split_name(word: str) -> str | None:
    """``train``, ``val`` or ``test`` for any usual spelling; None for another word."""
    return _SPLITS.get(word.strip().lower())


def sort_classes(names: Iterable[str]) -> list[str]:
    """Distinct names in the order of their class ids: numerically if all are integers, else as text."""
    distinct = set(names)
    return sorted(distinct, key=int) if all(_INTEGER.fullmatch(n) for n in distinct) else sorted(distinct)
