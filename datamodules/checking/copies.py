"""Equal and nearly equal pictures, within and across splits."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

import cv2
import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from datamodules.annotations.records import Record
from datamodules.checking.findings import Finding
from datamodules.checking.images import Look
from datamodules.checking.near import close_pairs
from datamodules.groups import by_group

POOL = "pool"
_EVALUATED = ("val", "test")
_ALIKE = 0.97  # correlation of their thumbnails
_FLAT = 4.0  # standard deviation of a thumbnail below which there is too little to compare
_BLOCK = 1 << 16  # pairs that are correlated at a time


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

    Candidates have difference hashes (Krawetz 2013, dHash) that differ in few of 64 bits, see ``near``. Their
    thumbnails must correlate, too, since dark pictures with a few spots often have equal hashes.

    Args:
        records: As for ``exact_findings``.
        looks: One for each.
    """
    seen = [(i, look.thumbnail) for i, look in enumerate(looks) if look.thumbnail is not None]
    if not seen:
        return []
    thumbnails = np.stack([thumbnail for _, thumbnail in seen])
    textured = np.flatnonzero(thumbnails.std((1, 2)) >= _FLAT).tolist()
    if len(textured) < 2:
        return []
    places = [seen[i][0] for i in textured]
    first, second = _near_pairs(thumbnails[textured])
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
    hashes = np.concatenate([_hash(thumbnail) for thumbnail in thumbnails]).view(np.uint64)
    flat = thumbnails.reshape(len(thumbnails), -1).astype(np.float32)
    flat -= flat.mean(1, keepdims=True)
    flat /= np.linalg.norm(flat, axis=1, keepdims=True)
    pairs = [(np.zeros(0, np.int64), np.zeros(0, np.int64))]
    for first, second in close_pairs(hashes):
        for start in range(0, len(first), _BLOCK):
            a, b = first[start : start + _BLOCK], second[start : start + _BLOCK]
            alike = np.einsum("nd,nd->n", flat[a], flat[b]) >= _ALIKE
            pairs.append((a[alike], b[alike]))
    firsts, seconds = zip(*pairs, strict=True)
    return np.concatenate(firsts), np.concatenate(seconds)


def _hash(thumbnail: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Whether each of 8 x 8 fields is brighter than the one to its left, a bit each: uint8 (8,)."""
    small = cv2.resize(thumbnail, (9, 8), interpolation=cv2.INTER_AREA)
    return np.packbits(small[:, 1:] > small[:, :-1])
