"""What is found out about masks before training: whether they can be read and fit, and how often each class is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from datamodules.annotations.mask_files import Mask
from datamodules.annotations.mask_formats import Settled
from datamodules.annotations.mask_records import check_size, decode_mask
from datamodules.annotations.masks import MAX_CLASSES, MaskError, MaskFormat, ranges
from datamodules.annotations.records import Record
from datamodules.common.batch import IGNORE
from datamodules.common.errors import UserError, bullets, examples
from datamodules.decoding.headers import ImageError
from datamodules.decoding.images import read_image
from datamodules.decoding.sizes import image_size

_SHOWN = 10


class MaskCheck(NamedTuple):
    """What is known of a record whose mask was read."""

    counts: npt.NDArray[np.int64]  # (K,) pixels of each class
    pixels: npt.NDArray[np.int64]  # (K,) for multi-label, else (1,): pixels that are not ignored
    error: Exception | None = None  # MaskError: it does not fit; another: it cannot be read


def check_all_masks(
    records: Sequence[Record], decode: Callable[[Record], Mask], num_classes: int, *, sizes: bool = True
) -> list[MaskCheck]:
    """Read all masks, in threads, and count their pixels.

    Args:
        records: With ``image``, ``path`` and ``mask``.
        decode: Record -> mask, uint8 (H, W) or (H, W, K).
        num_classes: K; above the greatest class that ``decode`` gives, 255 apart.
        sizes: Compare each mask's size with its image's.
    """

    def check(record: Record) -> MaskCheck:
        try:
            mask = decode(record)
            if sizes and isinstance(record["image"], str):
                _compare_sizes(record, mask)
        except (MaskError, ImageError, OSError) as error:
            return MaskCheck(np.zeros(num_classes, np.int64), np.zeros(1, np.int64), error)
        if mask.ndim == 3:
            counts = np.stack([np.bincount(mask[..., k].ravel(), minlength=256) for k in range(num_classes)])
            return MaskCheck(counts[:, 1].astype(np.int64), counts[:, :2].sum(1).astype(np.int64))
        count = np.bincount(mask.ravel(), minlength=256).astype(np.int64)
        return MaskCheck(count[:num_classes], count[:IGNORE].sum(keepdims=True))

    with ThreadPoolExecutor(max_workers=8) as pool:
        return list(pool.map(check, records))


def _compare_sizes(record: Record, mask: Mask) -> None:
    try:
        shape = image_size(record["image"])
        if shape != mask.shape[:2]:  # an orientation behind the pixels of a PNG is seen only by the decoder
            height, width = read_image(record["image"]).shape[:2]
            shape = (height, width)
    except (ImageError, OSError):
        return  # the check of images reports it
    check_size(record, mask, shape)


def report(errors: Sequence[Exception], total: int) -> None:
    """Raise one error for all masks that do not fit, the first 10 listed, each fix said once.

    Raises:
        UserError: If there are any.
    """
    if not errors:
        return
    lines = [error.what if isinstance(error, MaskError) else error for error in errors]
    fixes = [e.fix if isinstance(e, MaskError) else "Repair or remove unreadable files." for e in errors]
    raise UserError(
        f"{len(errors)} of {total} masks cannot be used:{bullets(lines, most=_SHOWN)}\n"
        + "\n".join(dict.fromkeys(fix for fix in fixes if fix))
    )


class Checked(NamedTuple):
    """Records whose masks can be used."""

    records: list[Record]
    checks: dict[str, MaskCheck]  # by path, of the masks that were read
    settled: Settled  # with class names
    absent: list[str]  # classes without a pixel in the training masks
    unreadable: list[tuple[str, str]]  # (path, reason) of images left out, their masks being damaged


def check_records(records: list[Record], settled: Settled, multi_label: bool, *, every: bool, skip: bool) -> Checked:
    """Read masks, refuse what does not fit, and number the classes where nothing names them.

    Args:
        records: With ``image``, ``path``, ``mask`` and ``split``.
        settled: What the masks mean.
        multi_label: Several classes a pixel.
        every: Read all masks; else only those of training, and only if the classes have no names.
        skip: Leave out damaged files; those that do not fit are refused all the same.

    Raises:
        UserError: If masks do not fit or, without ``skip``, cannot be read: the first 10 are listed.
    """
    names = settled.class_names
    read = _to_read(records, settled, every=every)
    checks = _check_each(read, settled, multi_label)
    unreadable = _damaged(checks) if skip else []
    for path, _ in unreadable:
        del checks[path]
    records = _without(records, {path for path, _ in unreadable})
    report([check.error for check in checks.values() if check.error is not None], len(read))
    train = [path for path in _training_paths(records) if path in checks]
    if names is None:
        settled, checks = _with_numbers(settled, checks, train)
        names = settled.class_names or []
    absent: list[str] = []
    if train:
        at_least = 1 if multi_label else 2
        absent = absent_classes([checks[path] for path in train], names, at_least=at_least, fmt=settled.fmt)
    return Checked(records, checks, settled, absent, unreadable)


def _to_read(records: list[Record], settled: Settled, *, every: bool) -> list[Record]:
    """All records; or those of training, and only if their masks name the classes."""
    if every:
        return records
    return [r for r in records if r["split"] == "train"] if settled.class_names is None else []


def _without(records: list[Record], paths: set[str]) -> list[Record]:
    return [record for record in records if record["path"] not in paths]


def _training_paths(records: list[Record]) -> list[str]:
    return [record["path"] for record in records if record["split"] == "train"]


def _check_each(records: list[Record], settled: Settled, multi_label: bool) -> dict[str, MaskCheck]:
    """What is known of each mask, by the image's path."""
    width = len(settled.class_names) if settled.class_names is not None else MAX_CLASSES
    decode = partial(decode_mask, fmt=settled.fmt, num_classes=width, multi_label=multi_label)
    checks = check_all_masks(records, decode, width)
    return {record["path"]: check for record, check in zip(records, checks, strict=True)}


def _damaged(checks: Mapping[str, MaskCheck]) -> list[tuple[str, str]]:
    """(path, reason) of images whose masks cannot be read, whatever their values would be."""
    errors = [(path, check.error) for path, check in checks.items() if check.error is not None]
    return [(path, f"its mask: {error}") for path, error in errors if not isinstance(error, MaskError)]


def _with_numbers(
    settled: Settled, checks: dict[str, MaskCheck], train: Sequence[str]
) -> tuple[Settled, dict[str, MaskCheck]]:
    """The classes named by their numbers, as many as the training masks hold."""
    fmt = number_classes(settled.fmt, checks, [checks[path] for path in train])
    num_classes = len({class_ for _, class_ in fmt.values} - {IGNORE})
    names = [str(k) for k in range(num_classes)]
    narrowed = {path: check._replace(counts=check.counts[:num_classes]) for path, check in checks.items()}
    return settled._replace(fmt=fmt, class_names=names), narrowed


def two_sizes(records: Sequence[Record]) -> list[str]:
    """``PATH is W x H`` of the first image and of the first one of another size, if there is one."""
    sizes: dict[tuple[int, int], str] = {}
    for record in records:
        try:
            height, width = image_size(record["image"])
        except (ImageError, OSError):
            continue  # the check of images reports it
        sizes.setdefault((height, width), f"{record['path']} is {width} x {height}")
        if len(sizes) == 2:
            break
    return list(sizes.values())


def number_classes(fmt: MaskFormat, checks: Mapping[str, MaskCheck], train: Sequence[MaskCheck]) -> MaskFormat:
    """The format with as many classes as the training masks have, where nothing names them.

    Args:
        fmt: Index masks of up to 254 classes.
        checks: What is known of each image's mask.
        train: Those of the training masks.

    Raises:
        UserError: If there are no training masks, their values have large gaps, as grey levels have, or other masks
            hold values that those for training have not.
    """
    stored = {class_: raw for raw, class_ in fmt.values}
    if not train:
        raise UserError("There are no training masks to find the classes in: set data.class_names.")
    present = np.flatnonzero(np.sum([c.counts for c in train], axis=0)).tolist()
    known = present[-1] + 1 if present else 0
    if 2 * len(present) < known:
        values = [stored[k] for k in present]
        example = examples([f"name{i}: {value}" for i, value in enumerate(values)], 4)
        raise UserError(
            f"The training masks hold the values {ranges(values)}, and nothing between. Name the classes and their"
            f" values, data.class_values: {{{example}}}, or values to leave out in data.ignore_values."
        )
    unknown = []
    for path, check in checks.items():
        more = [stored[known + k] for k in np.flatnonzero(check.counts[known:]).tolist()]
        if more:
            what = f"{path}: value(s) {ranges(more)}, which no training mask holds."
            fix = "Name all classes in data.class_names, or add the values to data.ignore_values."
            unknown.append(MaskError(what, fix))
    report(unknown, len(checks))
    return MaskFormat(fmt.kind, tuple((raw, k) for raw, k in fmt.values if k < known or k == IGNORE))


def absent_classes(train: Sequence[MaskCheck], names: Sequence[str], *, at_least: int, fmt: MaskFormat) -> list[str]:
    """Classes without a pixel in the training masks.

    Args:
        train: Those of the training masks.
        names: The K classes.
        at_least: Classes that must be there, so that something can be learned.
        fmt: How the masks were read, for the message.

    Raises:
        UserError: If fewer are there.
    """
    present = np.sum([c.counts for c in train], axis=0) > 0
    if present.sum() < at_least:
        held = f" but '{names[int(present.argmax())]}'" if present.any() else ""
        raise UserError(
            f"The {len(train)} training masks hold no class{held} (read as data.mask_format: {fmt.kind}, ignored pixels"
            " apart), so that nothing can be learned. Check data.mask_format, data.class_values and"
            " data.ignore_values; masks of 0 and 255 are data.mask_format: binary."
        )
    return [name for name, there in zip(names, present, strict=True) if not there]


def median_frequency(checks: Sequence[MaskCheck]) -> npt.NDArray[np.float64]:
    """A weight for each class: the median of the classes' frequencies over the class's own.

    A class's frequency is its fraction of the pixels of those images that hold it (Eigen and Fergus 2015, section
    6.3.2, https://arxiv.org/abs/1411.4734; also used for SegNet). Ignored pixels do not count. 1 for absent classes.

    Args:
        checks: Those of the training masks, of one class a pixel.

    Returns:
        float64 (K,), above 0.
    """
    counts = np.stack([c.counts for c in checks]).astype(np.float64)
    pixels = np.stack([c.pixels for c in checks]).astype(np.float64)
    own, around = counts.sum(0), ((counts > 0) * pixels).sum(0)
    frequency = own / np.maximum(around, 1)
    there = own > 0
    weights = np.ones(counts.shape[1])
    weights[there] = np.median(frequency[there]) / frequency[there]
    return weights
