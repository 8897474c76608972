"""Pairs of 64-bit hashes that are close to each other, without comparing all with all."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

Places = npt.NDArray[np.int64]

RADIUS = 10  # bits of 64 by which two hashes may differ
_PARTS = 4  # of a hash, of 16 bits
_OWN = RADIUS // _PARTS  # bits by which at least one part of two close hashes differs at most
_KEYS = 1 << 16
_MOST = 1 << 20  # pairs that are compared at a time
_BITS: npt.NDArray[np.uint8] = np.array([number.bit_count() for number in range(_KEYS)], np.uint8)


def close_pairs(hashes: npt.NDArray[np.uint64]) -> Iterator[tuple[Places, Places]]:
    """All pairs of hashes (N,) that differ in at most ``RADIUS`` bits: their places, the first smaller, in pieces.

    Multi-index hashing (Norouzi et al. 2012, https://arxiv.org/abs/1307.2982): of two such hashes at least one of four
    parts differs in at most 2 of its 16 bits, so that only hashes with such a part are compared, a hundredth of all
    pairs where hashes are random. No pair is missed.
    """
    parts = np.ascontiguousarray(hashes).view(np.uint16).reshape(-1, _PARTS)
    changes = np.flatnonzero(_BITS <= _OWN).astype(np.uint16)
    for part in range(_PARTS):
        keys = parts[:, part]
        order = np.argsort(keys, kind="stable")
        number = np.bincount(keys, minlength=_KEYS)
        start = np.cumsum(number) - number
        for change in changes:
            for first, second in _candidates(keys ^ change, order, number, start):
                bits = _BITS[parts[first] ^ parts[second]]
                close = bits.sum(1) <= RADIUS
                seen = (bits[:, :part] <= _OWN).any(1)  # by an earlier part
                yield first[close & ~seen], second[close & ~seen]


def _candidates(
    wanted: npt.NDArray[np.uint16], order: Places, number: Places, start: Places
) -> Iterator[tuple[Places, Places]]:
    """Each hash and the later ones with the part that it wants, in pieces.

    Args:
        wanted: (N,).
        order: Places of the hashes, sorted by this part.
        number: How many hashes have each of all parts.
        start: Where these begin in ``order``.
    """
    own = number[wanted]
    some = np.flatnonzero(own)
    total = np.cumsum(own[some])
    if not len(some):
        return
    edges = np.searchsorted(total, np.arange(_MOST, total[-1] + _MOST, _MOST))
    for piece in np.split(some, edges):
        length = own[piece]
        first = np.repeat(piece, length)
        within = np.arange(len(first)) - np.repeat(np.cumsum(length) - length, length)
        second = order[np.repeat(start[wanted[piece]], length) + within]
        later = first < second
        yield first[later], second[later]
