"""Equal and nearly equal pictures, within and across splits."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from datamodules.annotations.records import Record
from datamodules.checking.findings import Finding
from datamodules.checking.images import Look
from datamodules.groups import by_group

POOL = "pool"
_EVALUATED = ("val", "test")
_BITS = 10  # of 64 by which the hashes of near duplicates may differ
_ALIKE = 0.97  # correlation of their thumbnails
_FLAT = 4.0  # standard deviation of a thumbnail below which there is too little to compare
_BLOCK = 512


def exact_findings(records: Sequence[Record], looks: Sequence[Look]) -> list[Finding]:
    """Files that are equal byte for byte; pictures of one color, as empty tiles are, may be equal.

    Args:
        records: Of all splits, those of the unlabeled pool with the split ``pool``.
        looks: One for each.
    """
    groups: dict[bytes, list[Record]] = defaultdict(list)
    for record, look in zip(records, looks, strict=True):
        if look.digest and not look.is_uniform:
            groups[look.digest].append(record)
    return [found for group in groups.values() if len(group) > 1 for found in _of_copies(group)]


def _of_copies(group: Sequence[Record]) -> Iterable[Finding]:
    kind = "duplicate"
    if _is_leak(group):
        kind = "duplicate-split" if len({record["split"] for record in group} - {POOL}) > 1 else "duplicate-pool"
    yield _together(kind, "the same file as", group)
    labels = {repr(record["label"]) for record in group if "label" in record}
    if len(labels) > 1:
        yield _together("contradiction", "another label than", group)


def _is_leak(group: Sequence[Record]) -> bool:
    """Whether an evaluated picture of the group is anywhere else; training pictures may be in the pool."""
    splits = {record["split"] for record in group}
    return len(splits) > 1 and not splits.isdisjoint(_EVALUATED)


def _together(kind: str, verb: str, group: Sequence[Record]) -> Finding:
    """One finding for pictures that are alike: the first is compared with the others."""
    first, *others = sorted(group, key=lambda record: (record["split"] in ("train", POOL), record["path"]))
    named = ", ".join(f"{record['path']} ({record['split']})" for record in others[:3])
    more = f" and {len(others) - 3} more" if len(others) > 3 else ""
    paths = tuple(record["path"] for record in others)
    return Finding(kind, f"{verb} {named}{more}", first["path"], first["split"], others=paths)


def group_findings(records: Sequence[Record]) -> list[Finding]:
    """Groups (``data.group``) that are in two splits."""
    crossing = [own for own in by_group(records).values() if len({record["split"] for record in own}) > 1]
    return [_together("group-split", f"its group '{own[0]['group']}' has", own) for own in crossing]


def near_findings(records: Sequence[Record], looks: Sequence[Look]) -> list[Finding]:
    """Pictures that are nearly the same: scaled, stored again, slightly cropped; and frames of one scene.

    Candidates have difference hashes (Krawetz 2013, dHash) that differ in few of 64 bits; their thumbnails must
    correlate, too, since dark pictures with a few spots often have equal hashes. Time grows with the square of the
    number: 20,000 pictures take seconds, 100,000 a minute or two.

    Args:
        records: As for ``exact_findings``.
        looks: One for each.
    """
    places = [
        i for i, look in enumerate(looks) if look.thumbnail is not None and float(np.std(look.thumbnail)) >= _FLAT
    ]
    if len(places) < 2:
        return []
    thumbnails = np.stack([look.thumbnail for i in places if (look := looks[i]).thumbnail is not None])
    first, second = _near_pairs(thumbnails)
    different = [looks[places[a]].digest != looks[places[b]].digest or not looks[places[a]].digest
                 for a, b in zip(first, second, strict=True)]  # fmt: skip
    first, second = first[different], second[different]
    if not len(first):
        return []
    graph = coo_array((np.ones(len(first)), (first, second)), shape=(len(places), len(places)))
    _, component = connected_components(graph, directed=False)
    groups: dict[int, list[Record]] = defaultdict(list)
    for place in np.unique(np.concatenate([first, second])).tolist():
        groups[int(component[place])].append(records[places[place]])
    return [
        _together("near-split" if _is_leak(group) else "near", "nearly the same as", group) for group in groups.values()
    ]


def _near_pairs(thumbnails: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Places of pictures that are alike, the first smaller than the second: twice int64 (P,)."""
    signs = np.stack([_hash(thumbnail) for thumbnail in thumbnails])
    flat = thumbnails.reshape(len(thumbnails), -1).astype(np.float32)
    flat -= flat.mean(1, keepdims=True)
    flat /= np.linalg.norm(flat, axis=1, keepdims=True)
    pairs: list[Any] = []
    for start in range(0, len(signs), _BLOCK):
        agree = signs[start : start + _BLOCK] @ signs[start:].T  # 64 minus twice the bits that differ
        a, b = np.nonzero(agree >= 64 - 2 * _BITS)
        a, b = a[a < b] + start, b[a < b] + start
        alike = np.einsum("nd,nd->n", flat[a], flat[b]) >= _ALIKE
        pairs.append((a[alike], b[alike]))
    first, second = (np.concatenate(part) for part in zip(*pairs, strict=True))
    return first, second


def _hash(thumbnail: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Whether each of 8 x 8 fields is brighter than the one to its left: float32 (64,) of 1 and -1."""
    small = cv2.resize(thumbnail, (9, 8), interpolation=cv2.INTER_AREA).astype(np.int16)
    return np.where(small[:, 1:] > small[:, :-1], 1.0, -1.0).astype(np.float32).ravel()
