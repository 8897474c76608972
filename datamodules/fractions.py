"""A fraction of the training images, as if only these were labeled: stratified, and a larger one holds the smaller."""

from __future__ import annotations

from datamodules.annotations.records import Record
from datamodules.common.errors import UserError
from datamodules.groups import most_frequent_label
from datamodules.splits import common_folder, keyed, order_of


def first_labeled(records: list[Record], fraction: float, seed: int) -> set[int]:
    """The images of a fraction.

    All images stand in one order, and a fraction takes the first of them: of two fractions the larger holds the
    smaller. Where labels are ints each class begins with one image, and goes on in proportion to its size. Images with
    a ``group`` come with their whole group, so there may be a few more. As for ``split_records`` the order depends on
    the seed and on the paths below the common folder only.

    Args:
        records: The training images.
        fraction: Above 0, at most 1.
        seed: Seed of the draw.

    Returns:
        Their numbers.

    Raises:
        UserError: If it is out of range, or the images are fewer than the classes.
    """
    if not 0 < fraction <= 1:
        raise UserError(f"The fraction of labeled images is {fraction:g}; it must be above 0 and at most 1.")
    wanted = round(fraction * len(records))
    if wanted < 1:
        raise UserError(f"A fraction of {fraction:g} of {len(records)} training images is no image: give a larger one.")
    ordered, classes = _units(records, seed)
    if wanted < classes:
        raise UserError(
            f"A fraction of {fraction:g} of {len(records)} training images is {wanted}, fewer than the {classes}"
            f" classes: give at least {classes / len(records):.2g}."
        )
    found: set[int] = set()
    for unit in ordered:
        if len(found) >= wanted:
            break
        found |= set(unit)
    return found


def _units(records: list[Record], seed: int) -> tuple[list[list[int]], int]:
    """Images, or whole groups of them, in the order in which they are labeled; and how many classes there are."""
    top = common_folder(record["path"] for record in records)
    groups: dict[str, list[int]] = {}
    for number, record in enumerate(records):
        groups.setdefault(record.get("group", f"\0{number}"), []).append(number)
    strata: dict[int, list[tuple[bytes, str, list[int]]]] = {}
    for name, unit in groups.items():
        alone = name.startswith("\0")
        key = order_of(seed, top, records[unit[0]]) if alone else (keyed(seed, name), name)
        strata.setdefault(most_frequent_label([records[i] for i in unit]), []).append((*key, unit))
    placed = []
    for label, units in strata.items():
        size, before = sum(len(unit) for _, _, unit in units), 0
        for keys in sorted(units):
            placed.append((before / size, *keys[:2], label, keys[2]))
            before += len(keys[2])
    return [place[-1] for place in sorted(placed)], len(strata)
