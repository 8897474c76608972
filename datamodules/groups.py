"""Groups of images that belong together (of a patient, a scene, a video): all of a group are in one split."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from datamodules.annotations.records import Record
from datamodules.common.errors import UserError, bullets

FIELD = "{group}"


def is_pattern(group: str) -> bool:
    """Whether ``data.group`` is a pattern of paths; else it is a column of a list."""
    return FIELD in group


def set_groups(records: Sequence[Record], group: str) -> None:
    """Give each record its group; changed in place.

    Args:
        records: Those of a list have it already where ``group`` is a column.
        group: The end of a path, with ``{group}`` for the group and ``*`` for anything within a name:
            ``{group}/*.png``, ``{group}_*.jpg``.

    Raises:
        UserError: If an image's path does not fit, or the source is no list that has columns.
    """
    if not is_pattern(group):
        if records and "group" not in records[0]:
            raise UserError(
                f"data.group is '{group}', a column, but data.source is no list. For files give the end of a path, with"
                f" {FIELD}: '{FIELD}/*.png' for folders, '{FIELD}_*.jpg' for the first part of a name."
            )
        return
    fits = re.compile(r"(?:.*/)?" + _expression(group))
    for record in records:
        match = fits.fullmatch(re.sub(r"\.tar#", ".tar/", record["path"].replace("\\", "/"), flags=re.IGNORECASE))
        if match is None:
            raise UserError(f"data.group is '{group}', which does not fit the path {record['path']}.")
        record["group"] = match["group"]


def _expression(pattern: str) -> str:
    text = re.escape(pattern.strip("/")).replace(re.escape("*"), "[^/]*")
    first, _, rest = text.partition(re.escape(FIELD))
    return first + "(?P<group>[^/]+?)" + rest.replace(re.escape(FIELD), "(?P=group)")


def split_groups(groups: Iterable[Sequence[Record]], val: float, test: float) -> Iterable[tuple[str, Sequence[Record]]]:
    """A split for each group: the one that is owed most images, so that the fractions come out right.

    Args:
        groups: Their records, in the order of drawing.
        val: Fraction for validation.
        test: Fraction for test.
    """
    parts = {"train": 1 - val - test, "val": val, "test": test}
    owed = dict.fromkeys(parts, 0.0)
    for records in groups:
        for split, part in parts.items():
            owed[split] += part * len(records)
        chosen = max(owed, key=lambda split: owed[split])
        owed[chosen] -= len(records)
        yield chosen, records


def most_frequent_label(records: Sequence[Record]) -> int:
    """The class of most images of a group; -1 where labels are no single classes."""
    labels = Counter(label if isinstance(label := record.get("label"), int) else -1 for record in records)
    return labels.most_common(1)[0][0]


def by_group(records: Iterable[Record]) -> dict[str, list[Record]]:
    """The records of each group; those without one are left out."""
    found: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        if "group" in record:
            found[record["group"]].append(record)
    return found


def refuse_crossing(records: Iterable[Record]) -> None:
    """Refuse groups in two splits.

    Raises:
        UserError: Naming up to ten, with an image of each split.
    """
    wrong = []
    for name, own in by_group(records).items():
        splits = {record["split"]: record["path"] for record in own}
        if len(splits) > 1:
            wrong.append(f"{name}: " + ", ".join(f"{path} ({split})" for split, path in splits.items()))
    if wrong:
        raise UserError(
            f"{len(wrong):,} group(s) of data.group are in two splits:{bullets(wrong)}\nThe source (or data.split_file)"
            " has these splits: change them there, or leave data.group out to train all the same."
        )
