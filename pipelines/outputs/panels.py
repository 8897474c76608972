"""Panels: image, truth, prediction and error side by side, above a legend of the classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from datamodules.common.batch import IGNORE
from pipelines.outputs.box_errors import MISSED_COLOR, RIGHT_COLOR, box_error_picture
from pipelines.outputs.drawing import Annotation, drawn, error_picture, name_of, rescaled, resized
from pipelines.outputs.fonts import SIZE as FONT_SIZE
from pipelines.outputs.fonts import font_for
from pipelines.outputs.palettes import WRONG_COLOR, Palette, color_of
from pipelines.outputs.sheets import BACKGROUND, GAP, INK, Picture, printable

MAX_SIDE = 480  # of a tile in a panel; larger images are reduced to it
MIN_SIDE = 192  # smaller ones are enlarged by a whole number to about this many pixels
COLUMNS = ("image", "truth", "prediction", "error")
LINE = FONT_SIZE + 4
BOX_ERRORS = {"right": RIGHT_COLOR, "wrong": WRONG_COLOR, "missed": MISSED_COLOR}


class Sample(NamedTuple):
    """One row of a panel: an image uint8 (H, W, C), what is true (None where unknown), what is predicted, a text."""

    image: NDArray[Any]
    truth: Annotation | None
    prediction: Annotation
    caption: str = ""


def display_size(size: tuple[int, int]) -> tuple[int, int]:
    """Height and width at which an image of (H, W) is shown in a panel."""
    longest = max(size)
    factor = MAX_SIDE / longest if longest > MAX_SIDE else max(1, round(MIN_SIDE / longest))
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def panels(samples: Sequence[Sample], palette: Palette, class_names: Sequence[str]) -> Picture:
    """Image, truth, prediction and error side by side, one row a sample, above a legend of the classes that occur.

    Args:
        samples: Images with their annotations. Images above 480 pixels a side are reduced, small ones enlarged by a
            whole number. There is no column for what no sample has: a truth, or an error.
        palette: uint8 (256, 3).
        class_names: K names.

    Returns:
        uint8 (H, W, 3).
    """
    rows = [_tiles(sample, palette, class_names) for sample in samples]
    body = _rows(samples, rows)
    legend = _legend(samples, palette, class_names)
    return np.concatenate([body, _legend_strip(legend, body.shape[1])]) if legend else body


def _rows(samples: Sequence[Sample], rows: Sequence[dict[str, Picture]]) -> Picture:
    """The tiles below their headers, each row with its sample's caption below it."""
    headers = [name for name in COLUMNS if any(name in row for row in rows)]
    tile = max(picture.shape[1] for row in rows for picture in row.values())
    lefts = {name: GAP + number * (tile + GAP) for number, name in enumerate(headers)}
    width = GAP + len(headers) * (tile + GAP)
    top = Image.new("RGB", (width, GAP + LINE), BACKGROUND)
    for name, left in lefts.items():
        ImageDraw.Draw(top).text((left, GAP - 2), name, fill=INK, font=font_for(name))
    below = GAP + (LINE if any(sample.caption for sample in samples) else 0)
    strips = [_row(row, lefts, width, below, sample.caption) for sample, row in zip(samples, rows, strict=True)]
    return np.concatenate([np.asarray(top), *strips])


def _row(tiles: dict[str, Picture], lefts: dict[str, int], width: int, below: int, caption: str) -> Picture:
    """One sample's tiles at their columns, with room for its caption ``below`` them: uint8 (H, width, 3)."""
    height = tiles["image"].shape[0]
    canvas = Image.new("RGB", (width, height + below), BACKGROUND)
    for name, tile in tiles.items():
        canvas.paste(Image.fromarray(tile), (lefts[name], 0))
    text = printable(caption)
    ImageDraw.Draw(canvas).text((GAP, height + 1), text, fill=INK, font=font_for(text))
    return np.asarray(canvas)


def _tiles(sample: Sample, palette: Palette, class_names: Sequence[str]) -> dict[str, Picture]:
    """The tiles of one row by their headers, all of one size."""
    size = sample.image.shape[:2]
    new = display_size(size)
    image = resized(sample.image, new)
    prediction = rescaled(sample.prediction, size, new)
    tiles = {"image": image}
    if sample.truth is not None:
        truth = rescaled(sample.truth, size, new)
        tiles["truth"] = drawn(image, truth, palette, class_names)
    tiles["prediction"] = drawn(image, prediction, palette, class_names)
    if sample.truth is not None and "mask" in truth and "mask" in prediction:
        tiles["error"] = error_picture(image, truth["mask"], prediction["mask"])
    elif sample.truth is not None and "boxes" in truth and "boxes" in prediction:
        tiles["error"] = box_error_picture(image, truth, prediction)
    return tiles


def _legend(samples: Sequence[Sample], palette: Palette, class_names: Sequence[str]) -> list[tuple[Any, str]]:
    """Color and name of each class that occurs, and of what the error pictures show."""
    seen: set[int] = set()
    errors: dict[str, Any] = {}
    for sample in samples:
        seen |= _classes_in(sample.prediction)
        if sample.truth is not None:
            seen |= _classes_in(sample.truth)
            errors |= {"wrong": WRONG_COLOR} if "mask" in sample.truth else {}
            errors |= BOX_ERRORS if {"boxes"} <= sample.truth.keys() & sample.prediction.keys() else {}
    marks = []
    for label in sorted(seen):
        color = palette[IGNORE] if label == IGNORE else color_of(palette, label)
        if color.any():  # background has none
            marks.append((tuple(color.tolist()), name_of(label, class_names)))
    return [*marks, *((color, name) for name, color in errors.items())]


def _classes_in(annotation: Annotation) -> set[int]:
    """The classes that occur, and 255 where pixels are ignored."""
    seen = {int(label) for label in annotation.get("labels", ()) if label >= 0}
    mask = annotation.get("mask")
    if mask is None:
        return seen
    if mask.ndim == 2:
        return seen | set(np.unique(mask).tolist())
    seen |= {k for k, plane in enumerate(mask) if (plane == 1).any()}
    return seen | {IGNORE} if (mask == IGNORE).any() else seen


def _legend_strip(legend: Sequence[tuple[Any, str]], width: int) -> Picture:
    """The legend's entries side by side, in as many lines as they need."""
    font = font_for("".join(name for _, name in legend))
    places, x, y = [], GAP, 0
    for _, name in legend:
        length = int(LINE + 4 + font.getlength(name) + 14)
        if x + length > width and x > GAP:
            x, y = GAP, y + LINE + 2
        places.append((x, y))
        x += length
    canvas = Image.new("RGB", (width, y + LINE + GAP), BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    for (color, name), (x, y) in zip(legend, places, strict=True):
        draw.rectangle((x, y + 2, x + LINE - 4, y + LINE - 2), fill=color, outline=(150, 150, 150))
        draw.text((x + LINE + 1, y), name, fill=INK, font=font)
    return np.asarray(canvas)
