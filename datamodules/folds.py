"""Folds for cross-validation: every image is tested once."""

from __future__ import annotations

from collections import Counter
from functools import partial

from datamodules.annotations.records import Record
from datamodules.common.errors import UserError
from datamodules.groups import by_group, most_frequent_label
from datamodules.splits import common_folder, keyed, order_of, split_records, strata


def fold_numbers(records: list[Record], folds: int, seed: int) -> list[int]:
    """Which fold each image is tested in.

    Stratified by class where labels are ints: the images of a class are dealt out one by one. Images with a ``group``
    go where their whole group goes: the largest groups first, each to the fold with fewest images of its most frequent
    class, then with fewest images. As for ``split_records`` the outcome depends on the seed and on the paths below the
    common folder only.

    Args:
        records: Plain records.
        folds: Number of folds, at least 2.
        seed: Seed of the draw.

    Returns:
        Numbers from 0 to ``folds - 1``, one a record.

    Raises:
        UserError: If there are fewer images, or groups, than folds.
    """
    grouped = by_group(records)
    units = len(grouped) + sum("group" not in record for record in records)
    if not 2 <= folds <= units:
        what = "groups" if grouped else "images"
        raise UserError(f"--folds is {folds}; it must be at least 2, and at most the {units:,} {what} that there are.")
    number: dict[int, int] = {}  # identity of a record -> its fold
    of_class: Counter[tuple[int, int]] = Counter()
    of_fold: Counter[int] = Counter()
    names = sorted(grouped, key=lambda name: (-len(grouped[name]), keyed(seed, name)))
    for name in names:
        own = grouped[name]
        label = most_frequent_label(own)
        chosen = min(range(folds), key=lambda fold: (of_class[fold, label], of_fold[fold], fold))
        of_class[chosen, label] += len(own)
        of_fold[chosen] += len(own)
        number |= {id(record): chosen for record in own}
    top = common_folder(record["path"] for record in records)
    dealt = 0  # goes on from class to class, so that small classes do not all lie in the first folds
    for members in strata([record for record in records if "group" not in record]):
        for record in sorted(members, key=partial(order_of, seed, top)):
            number[id(record)] = dealt % folds
            dealt += 1
    return [number[id(record)] for record in records]


def splits_of_fold(records: list[Record], numbers: list[int], fold: int, val: float, seed: int) -> dict[str, list[str]]:
    """The splits of one fold: its own images are the test, validation images are held out of the rest.

    So the epoch is not chosen on the images that are scored.

    Args:
        records: Plain records.
        numbers: Of ``fold_numbers``.
        fold: Which.
        val: Fraction of the rest for validation.
        seed: Seed of the draw.

    Returns:
        Split -> paths, as in ``split.json``.
    """
    rest: list[Record] = [
        {**record, "split": None} for record, number in zip(records, numbers, strict=True) if number != fold
    ]
    split_records(rest, val, 0.0, seed)
    found: dict[str, list[str]] = {"train": [], "val": []}
    for record in rest:
        found[record["split"] or "train"].append(record["path"])
    found["test"] = [record["path"] for record, number in zip(records, numbers, strict=True) if number == fold]
    return found
