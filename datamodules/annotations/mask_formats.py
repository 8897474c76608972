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
    pack_color,
    rgb_format,
)
from datamodules.common.errors import UserError, did_you_mean
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
        names = self.class_names
        if names is not None:
            if not names or len(set(names)) < len(names):
                raise UserError(f"data.class_names is {names}; each class is named once, and one at least.")
            if len(names) > MAX_CLASSES:
                raise UserError(f"data.class_names has {len(names)} names; masks hold at most {MAX_CLASSES} classes.")
        for key, table in (("colors", self.colors), ("class_values", self.class_values)):
            if table is None:
                continue
            if names is not None and set(table) != set(names):
                missing, extra = [n for n in names if n not in table], [n for n in table if n not in names]
                hint = did_you_mean(extra[0], missing) if extra and missing else ""
                raise UserError(
                    f"data.{key} and data.class_names differ:"
                    + (f" {missing} have none." if missing else "")
                    + (f" {extra} are no classes.{hint}" if extra else "")
                )
            _check_table(key, table)
        if self.class_values is not None and (self.mask_format in ("rgb", "binary") or self.multi_label):
            other = "multi_label: true" if self.multi_label else f"mask_format: {self.mask_format}"
            raise UserError(f"data.class_values is set, but only index masks use it, and data.{other} is set.")
        if self.multi_label and self.mask_format in ("index", "rgb"):
            raise UserError(
                f"data.multi_label is true, but data.mask_format: {self.mask_format} masks hold one class a pixel. Give"
                " one binary mask a class (data.masks with {class}), or a COCO file."
            )

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
    kind: MaskKind
    if by_class or settings.multi_label:
        kind = "binary"
    elif settings.mask_format != "auto":
        kind = settings.mask_format
    elif settings.class_values is not None:
        kind = "index"
    else:
        two = settings.ignore_values is None and (names is None or len(names) == 2)
        kind = guess_kind(paths, settings.colors, two_classes=two)
    ignore = settings.ignore_values
    if ignore is None:
        ignore = [255] if kind == "index" else []
    _check_ignore(kind, ignore)
    if kind == "rgb":
        if settings.colors is None:
            raise UserError(_no_colors(paths))
        names = names or list(settings.colors)
        _disjoint("colors", {n: [list(c) for c in cs] for n, cs in settings.colors.items()}, [list(c) for c in ignore])
        return Settled(rgb_format(names, settings.colors, ignore), names, None)
    if kind == "binary":
        expected = ["foreground"] if settings.multi_label else ["background", "foreground"]
        if not by_class and names is not None and len(names) != len(expected):
            raise UserError(
                f"data.class_names lists {len(names)} classes ({', '.join(names[:5])}), but binary masks have"
                f" {len(expected)}: {', '.join(expected)}. Name {len(expected)}, or set data.mask_format: index."
            )
        return Settled(binary_format(ignore), names if by_class else names or expected, None)
    _disjoint("class_values", settings.class_values, ignore)
    numbered = names or [str(i) for i in range(MAX_CLASSES)]
    return Settled(index_format(numbered, settings.class_values, ignore), names, _palette(paths))


def guess_kind(paths: Sequence[str], colors: Mapping[str, Sequence[Color]] | None, *, two_classes: bool) -> MaskKind:
    """What a set of mask files holds, from about 20 of them.

    Args:
        paths: Mask files.
        colors: Colours of each class, where they are given.
        two_classes: Whether the classes, as far as they are named, may be background and foreground.

    Returns:
        ``rgb`` for pictures of colors, and for palettes and greys where colors are given (greys only if they are
        among them); ``binary`` for grey JPEGs and for nothing but 0 and 255 (or 65535); ``index`` else.
    """
    values: set[int] = set()
    table = {pack_color(c) for group in (colors or {}).values() for c in group}
    for path in paths[:: max(1, len(paths) // _SAMPLED)]:
        try:
            stored = load_mask(path)
        except (ImageError, OSError):
            continue  # the check of all masks speaks of it
        if stored.pixels.ndim == 3 and not stored.lossy:
            return "rgb"
        if stored.lossy:
            return "binary"
        if stored.palette is not None and colors is not None:
            return "rgb"
        values |= set(np.flatnonzero(np.bincount(stored.pixels.ravel())).tolist())
    if values and all(v < 256 and pack_color([v, v, v]) in table for v in values):
        return "rgb"
    return "binary" if two_classes and values <= {0, 255, 65535} and values - {0} else "index"


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
        shown = ", ".join(str(c) for c in colors[:8]) + (", ..." if len(colors) > 8 else "")
        return (
            f"data.colors is missing: {path} is coded by colors, {len(colors)} of them ({shown}). Give each class its"
            " color, data.colors: {road: [128, 64, 128], ...}; colors to leave out go into data.ignore_values."
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
        if bare := [name for name in names if name not in settings.colors]:
            raise UserError(f"data.colors has no color for {bare}; the classes are {names}.")
        return [list(settings.colors[name][0]) for name in names]
    if settled.palette is None:
        return None
    stored = {}
    for raw, class_ in reversed(settled.fmt.values):
        stored[class_] = raw
    if any(stored.get(k, 256) > 255 for k in range(num_classes)):
        return None
    colors = [settled.palette[stored[k]] for k in range(num_classes)]
    return colors if len({tuple(c) for c in colors}) == num_classes else None  # a grey or empty palette shows nothing
