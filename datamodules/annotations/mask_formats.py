"""From settings and a look at the files to one format of masks, the classes and their colors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from datamodules.annotations.mask_files import load_mask, stored_colors
from datamodules.annotations.masks import (
    MAX_CLASSES,
    MaskFormat,
    MaskKind,
    binary_format,
    index_format,
    rgb_format,
)
from datamodules.common.batch import IGNORE
from datamodules.common.errors import UserError, did_you_mean, examples
from datamodules.decoding.headers import ImageError

_SAMPLED = 20

Color = Sequence[int]


@dataclass(frozen=True)
class MaskSettings:
    """The arguments of ``SegmentationData`` that say what mask files hold; named and described there.

    ``colors`` and ``class_values`` are lists of colors, or of values, for each class.
    """

    mask_format: Literal["auto", "index", "rgb", "binary"] = "auto"
    class_names: list[str] | None = None
    colors: Mapping[str, Sequence[Color]] | None = None
    class_values: Mapping[str, Sequence[int]] | None = None
    ignore_values: Sequence[Any] | None = None
    multi_label: bool = False

    def __post_init__(self) -> None:
        """Refuse what contradicts itself, whatever the files hold."""
        self._check_names()
        for key, table in (("colors", self.colors), ("class_values", self.class_values)):
            if table is not None:
                self._check_keys(key, table)
                _check_table(key, table)
        if self.class_values is not None and (self.mask_format in ("rgb", "binary") or self.multi_label):
            other = "multi_label: true" if self.multi_label else f"mask_format: {self.mask_format}"
            raise UserError(f"data.class_values is set, but only index masks use it, and data.{other} is set.")
        if self.multi_label and self.mask_format in ("index", "rgb"):
            raise UserError(
                f"data.multi_label is true, but data.mask_format: {self.mask_format} masks hold one class a pixel. Give"
                " one binary mask a class (data.masks with {class}), or a COCO file."
            )

    def _check_names(self) -> None:
        names = self.class_names
        if names is None:
            return
        if not names or len(set(names)) < len(names):
            raise UserError(f"data.class_names is {names}; each class is named once, and one at least.")
        if len(names) > MAX_CLASSES:
            raise UserError(f"data.class_names has {len(names)} names; masks hold at most {MAX_CLASSES} classes.")

    def _check_keys(self, key: str, table: Mapping[str, Sequence[Any]]) -> None:
        """Refuse a table that is not of the named classes."""
        names = self.class_names
        if names is None or set(table) == set(names):
            return
        missing = [name for name in names if name not in table]
        extra = [name for name in table if name not in names]
        message = f"data.{key} and data.class_names differ:"
        if missing:
            message += f" {missing} have none."
        if extra:
            message += f" {extra} are no classes.{did_you_mean(extra[0], missing)}"
        raise UserError(message)

    def names(self) -> list[str] | None:
        """The classes in their order, as far as the settings say."""
        if self.class_names is not None:
            return list(self.class_names)
        table = self.class_values or self.colors
        return None if table is None else list(table)


class Settled(NamedTuple):
    """What came out."""

    fmt: MaskFormat
    class_names: list[str] | None  # None: as many as the masks hold, numbered; `fmt` takes up to 254
    palette: list[list[int]] | None  # the first file's, a color for each stored value


def settle_format(
    settings: MaskSettings, paths: Sequence[str], listed: Sequence[str] = (), *, by_class: bool = False
) -> Settled:
    """Look at the files where the settings leave it open.

    Args:
        settings: What the user says.
        paths: Mask files, those for training first.
        listed: Class names that the source gives.
        by_class: Each file is a binary mask of one class.

    Raises:
        UserError: If the settings do not fit what the files hold.
    """
    names = settings.names() or (list(listed) or None)
    kind = _kind(settings, paths, names, by_class=by_class)
    ignore = settings.ignore_values
    if ignore is None:
        ignore = [IGNORE] if kind == "index" else []
    _check_ignore(kind, ignore)
    if kind == "rgb":
        return _settle_rgb(settings, names, ignore, paths)
    if kind == "binary":
        return _settle_binary(settings, names, ignore, by_class=by_class)
    _disjoint("class_values", settings.class_values, ignore)
    numbered = names or [str(i) for i in range(MAX_CLASSES)]
    return Settled(index_format(numbered, settings.class_values, ignore), names, _palette(paths))


def _kind(settings: MaskSettings, paths: Sequence[str], names: list[str] | None, *, by_class: bool) -> MaskKind:
    if by_class or settings.multi_label:
        return "binary"
    if settings.mask_format != "auto":
        return settings.mask_format
    if settings.class_values is not None:
        return "index"
    two_classes = settings.ignore_values is None and (names is None or len(names) == 2)
    return guess_kind(paths, settings.colors, two_classes=two_classes)


def _settle_rgb(
    settings: MaskSettings, names: list[str] | None, ignore: Sequence[Any], paths: Sequence[str]
) -> Settled:
    if settings.colors is None:
        raise UserError(_no_colors(paths))
    names = names or list(settings.colors)
    table = {name: [list(color) for color in colors] for name, colors in settings.colors.items()}
    _disjoint("colors", table, [list(color) for color in ignore])
    return Settled(rgb_format(names, settings.colors, ignore), names, None)


def _settle_binary(
    settings: MaskSettings, names: list[str] | None, ignore: Sequence[Any], *, by_class: bool
) -> Settled:
    if by_class:
        return Settled(binary_format(ignore), names, None)
    expected = ["foreground"] if settings.multi_label else ["background", "foreground"]
    if names is not None and len(names) != len(expected):
        raise UserError(
            f"data.class_names lists {len(names)} classes ({', '.join(names[:5])}), but binary masks have"
            f" {len(expected)}: {', '.join(expected)}. Name {len(expected)}, or set data.mask_format: index."
        )
    return Settled(binary_format(ignore), names or expected, None)


def guess_kind(paths: Sequence[str], colors: Mapping[str, Sequence[Color]] | None, *, two_classes: bool) -> MaskKind:
    """What a set of mask files holds, from about 20 of them.

    Args:
        paths: Mask files.
        colors: Colors of each class, where they are given.
        two_classes: Whether the classes, as far as they are named, may be background and foreground.

    Returns:
        ``rgb`` for pictures of colors, and for palettes and greys where colors are given (greys only if they are
        among them); ``binary`` for grey JPEGs and for nothing but 0 and 255 (or 65535); ``index`` else.
    """
    values: set[int] = set()
    for path in paths[:: max(1, len(paths) // _SAMPLED)]:
        try:
            stored = load_mask(path)
        except (ImageError, OSError):
            continue  # the check of all masks reports it
        if stored.lossy:
            return "binary"
        if stored.pixels.ndim == 3 or (stored.palette is not None and colors is not None):
            return "rgb"
        values |= set(np.flatnonzero(np.bincount(stored.pixels.ravel())).tolist())
    if values and values <= _greys(colors or {}):
        return "rgb"
    is_black_and_white = values <= {0, 255, 65535} and bool(values - {0})
    return "binary" if two_classes and is_black_and_white else "index"


def _greys(colors: Mapping[str, Sequence[Color]]) -> set[int]:
    """The values v for which [v, v, v] is a class's color."""
    return {red for group in colors.values() for red, green, blue in group if red == green == blue}


def _check_table(key: str, table: Mapping[str, Sequence[Any]]) -> None:
    owner: dict[Any, str] = {}
    for name, entries in table.items():
        for entry in entries:
            if key == "colors":
                good = len(entry) == 3 and all(0 <= v <= 255 for v in entry)
                what = "red, green and blue, 0 to 255 each"
            else:
                good, what = 0 <= entry <= 65535, "a whole number, 0 to 65535"
            if not good:
                raise UserError(f"data.{key} of '{name}' is {entry}; it must be {what}.")
            raw = tuple(entry) if key == "colors" else entry
            if raw in owner:
                raise UserError(
                    f"data.{key} gives {entry} to '{owner[raw]}' and to '{name}'; a pixel has one class. Change one."
                )
            owner[raw] = name


def _check_ignore(kind: MaskKind, ignore: Sequence[Any]) -> None:
    for value in ignore:
        if kind == "rgb" and (not isinstance(value, Sequence) or len(value) != 3):
            raise UserError(f"data.ignore_values holds {value}, but the masks are rgb: give colors, [[r, g, b], ...].")
        if kind != "rgb" and (not isinstance(value, int) or not 0 <= value <= 65535):
            raise UserError(
                f"data.ignore_values holds {value}, but the masks are {kind}: give whole numbers, 0 to 65535."
            )


def _disjoint(key: str, table: Mapping[str, Sequence[Any]] | None, ignore: Sequence[Any]) -> None:
    """Refuse a value that is both a class's and ignored."""
    for name, entries in (table or {}).items():
        both = [entry for entry in entries if entry in ignore]
        if both:
            raise UserError(
                f"data.{key} gives {both[0]} to '{name}', and data.ignore_values ignores it. Take it out of one."
            )


def _no_colors(paths: Sequence[str]) -> str:
    for path in paths:
        try:
            stored = load_mask(path)
            colors = np.unique(stored_colors(stored).reshape(-1, 3), axis=0).tolist()
        except (ValueError, OSError):
            continue
        return (
            f"data.colors is missing: {path} is coded by colors, {len(colors)} of them ({examples(colors, 8)}). Give"
            " each class its color, data.colors: {road: [128, 64, 128], ...}; colors to leave out go into"
            " data.ignore_values."
        )
    return "data.mask_format is 'rgb', but data.colors, a color for each class, is missing."


def _palette(paths: Sequence[str]) -> list[list[int]] | None:
    try:
        palette = load_mask(paths[0]).palette if paths else None
    except (ImageError, OSError):
        return None
    return None if palette is None else [[int(v) for v in color] for color in palette]


def class_palette(settled: Settled, settings: MaskSettings, num_classes: int) -> list[list[int]] | None:
    """[r, g, b] of each class: the first of ``colors``, or of a palette file's colors; None where there are none.

    Raises:
        UserError: If ``colors`` leaves out a class.
    """
    names = settled.class_names
    if settings.colors is not None and names is not None:
        bare = [name for name in names if name not in settings.colors]
        if bare:
            raise UserError(f"data.colors has no color for {bare}; the classes are {names}.")
        return [list(settings.colors[name][0]) for name in names]
    if settled.palette is None:
        return None
    lowest: dict[int, int] = {}  # the least stored value of each class
    for raw, class_ in settled.fmt.values:
        lowest.setdefault(class_, raw)
    if any(lowest.get(k, 256) > 255 for k in range(num_classes)):
        return None
    colors = [settled.palette[lowest[k]] for k in range(num_classes)]
    are_distinct = len({tuple(color) for color in colors}) == num_classes
    return colors if are_distinct else None  # a grey or empty palette shows nothing
