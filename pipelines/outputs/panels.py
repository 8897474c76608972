"""Label maps, object masks and boxes drawn over images: overlays, panels of truth and prediction, label PNGs.

An *annotation* is what belongs to one image, truth or prediction: a dict of arrays in that image's pixels. What it
holds says how it is drawn (``drawn``):

====== ========================== =======================================================================
key    dtype and shape            meaning
====== ========================== =======================================================================
mask   uint8 (H, W) or (K, H, W)  class of each pixel, or 0 / 1 of classes that may overlap; 255: ignored
boxes  float32 (N, 4)             x1 y1 x2 y2, pixel edges
labels int64 (N,)                 class of each box; those below 0 are padding
scores float32 (N,)               of a prediction
masks  bool or uint8 (N, H, W)    the boxes' objects; or int16 (L, H, W), object numbers 1..N as in a batch
====== ========================== =======================================================================

Palettes are uint8 (256, 3). Classes whose colour is black are background: no colour is laid over them.
"""

from __future__ import annotations

import functools
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from datamodules.common.errors import UserError
from pipelines.outputs.figures import BACKGROUND, FONT_SIZE, GAP, INK, Picture, printable, rgb, text_font

Annotation = dict[str, NDArray[Any]]
Palette = NDArray[np.uint8]
KEYS = ("mask", "boxes", "labels", "scores", "masks")
IGNORE = 255
IGNORE_COLOR = (222, 222, 222)
WRONG_COLOR = (214, 39, 40)
BACKGROUND_NAMES = ("background", "_background_", "__background__", "bg")
MAX_SIDE = 480  # of a tile in a panel; larger images are reduced to it
MIN_SIDE = 192  # smaller ones are enlarged by a whole number to about this many pixels
ALPHA = 0.55
MAX_TAGS = 40  # boxes in an image up to which each has its name and score; more tags would hide what they name


class Sample(NamedTuple):
    """One row of a panel: an image uint8 (H, W, C), what is true (None where unknown), what is predicted, a text."""

    image: NDArray[Any]
    truth: Annotation | None
    prediction: Annotation
    caption: str = ""


# Colours.


def default_palette(num_classes: int, background: bool = True) -> Palette:
    """Colours of which each differs as much as possible from those before it, in CIELAB.

    The greedy choice of Glasbey et al. 2007, "Colour displays for categorical images"
    (https://doi.org/10.1002/col.20327), among colours neither dark, pale nor grey.

    Args:
        num_classes: Classes, at most 255.
        background: Whether class 0 is background, which is black.

    Returns:
        uint8 (256, 3): a colour a class, black for numbers that are no class, light grey for 255 (ignored).

    Raises:
        UserError: For more than 255 classes.
    """
    if not 0 <= num_classes <= IGNORE:
        raise UserError(f"A palette has at most 255 classes, got {num_classes}.")
    palette = np.zeros((256, 3), np.uint8)
    first = int(background)
    palette[first:num_classes] = _distinct_colors()[: max(0, num_classes - first)]
    palette[IGNORE] = IGNORE_COLOR
    return palette


def class_palette(class_names: Sequence[str], class_colors: Sequence[Sequence[int]] | None = None) -> Palette:
    """The palette of a data set: its own colours, or the default ones; class 0 is black where it is background."""
    if class_colors is None:
        background = not class_names or class_names[0].lower() in BACKGROUND_NAMES
        return default_palette(len(class_names) or IGNORE, background)
    palette = default_palette(0)
    palette[: len(class_colors)] = np.asarray(class_colors, np.uint8).reshape(-1, 3)
    return palette


@functools.cache
def _distinct_colors() -> Palette:
    """uint8 (255, 3)."""
    steps = np.linspace(0, 255, 14).round()
    candidates = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(-1, 3).astype(np.uint8)
    lab = _lab(candidates)
    chroma = np.hypot(lab[:, 1], lab[:, 2])
    good = (lab[:, 0] > 44) & (lab[:, 0] < 86) & (chroma > 30) & (chroma < 84)
    candidates, lab = candidates[good], lab[good]
    taken = _lab(np.array([IGNORE_COLOR, WRONG_COLOR, (0, 0, 0), (128, 128, 128)], np.uint8))
    distance = np.linalg.norm(lab[:, None] - taken[None], axis=2).min(axis=1)
    colors = np.empty((255, 3), np.uint8)
    for number in range(255):
        best = int(distance.argmax())
        colors[number] = candidates[best]
        distance = np.minimum(distance, np.linalg.norm(lab - lab[best], axis=1))
    return colors


def _lab(colors: Palette) -> NDArray[np.float32]:
    lab: NDArray[np.float32] = cv2.cvtColor(colors[None].astype(np.float32) / 255, cv2.COLOR_RGB2LAB)[0]
    return lab


# Label maps as files.


def label_png(mask: NDArray[np.uint8], palette: Palette, path: str | Path) -> Path:
    """Write a label map (H, W) as an 8-bit PNG with a palette, whose indices are the classes.

    Raises:
        UserError: If it cannot be written.
    """
    image = Image.frombytes("P", (mask.shape[1], mask.shape[0]), np.ascontiguousarray(mask, np.uint8).tobytes())
    image.putpalette(palette.tobytes())
    return _write_png(image, path)


def label_pngs(mask: NDArray[np.uint8], class_names: Sequence[str], stem: str | Path) -> list[Path]:
    """Write masks (K, H, W) that may overlap as ``STEM_CLASS.png``, each an 8-bit grey PNG of 0 and 255.

    Raises:
        UserError: If one cannot be written.
    """
    names = [re.sub(r"[^\w .+-]", "_", name) for name in class_names]
    names = [name if names.count(name) == 1 else f"{name}_{k}" for k, name in enumerate(names)]
    planes = (mask != 0).astype(np.uint8) * np.uint8(255)
    return [_write_png(Image.fromarray(plane), f"{stem}_{name}.png") for plane, name in zip(planes, names, strict=True)]


def _write_png(image: Image.Image, path: str | Path) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    data = io.BytesIO()
    image.save(data, format="PNG")
    path.write_bytes(data.getvalue())
    return path


# Drawing.


def drawn(image: NDArray[Any], annotation: Annotation, palette: Palette, class_names: Sequence[str]) -> Picture:
    """An annotation of any kind over its image uint8 (H, W, C): uint8 (H, W, 3)."""
    picture = rgb(image)
    if "mask" in annotation:
        picture = overlay(picture, annotation["mask"], palette)
    if "boxes" in annotation:
        labels, scores, masks = (annotation.get(key) for key in ("labels", "scores", "masks"))
        picture = draw_boxes(picture, annotation["boxes"], labels, scores, class_names, palette, masks)
    return picture


def overlay(image: NDArray[Any], mask: NDArray[np.uint8], palette: Palette, alpha: float = ALPHA) -> Picture:
    """Classes in translucent colours, each region with a thin solid border.

    Args:
        image: uint8 (H, W, C) or (H, W).
        mask: uint8 (H, W), classes; or (K, H, W), 0 / 1 of classes that may overlap. 255 is ignored, light grey.
        palette: uint8 (256, 3).
        alpha: Opacity of the colours.

    Returns:
        uint8 (H, W, 3).

    Raises:
        UserError: If the sizes differ.
    """
    picture = rgb(image).copy()
    if mask.shape[-2:] != picture.shape[:2]:
        raise UserError(f"overlay: the mask is {mask.shape[-2:]}, the image {picture.shape[:2]} (height, width)")
    if mask.ndim == 2:
        _tint(picture, mask, palette, alpha)
    else:
        for plane, color in zip(mask, palette, strict=False):
            _tint(picture, plane, _one_color(color), alpha)
    return picture


def _tint(picture: Picture, index: NDArray[np.uint8], colors: Palette, alpha: float) -> None:
    """Lay ``colors[index]`` over ``picture`` in place, solid at the borders of regions; black is no colour."""
    index = np.ascontiguousarray(index, np.uint8)
    solid = cv2.applyColorMap(index, colors[:, None])  # three times faster than NumPy's indexing
    where = cv2.LUT(index, colors.any(axis=1).astype(np.uint8))
    width = 1 + max(picture.shape) // 1000
    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (2 * width + 1, 2 * width + 1))
    borders = cv2.morphologyEx(index, cv2.MORPH_GRADIENT, cross)
    cv2.copyTo(cv2.addWeighted(picture, 1 - alpha, solid, alpha, 0), where, picture)
    cv2.copyTo(solid, cv2.min(where, borders), picture)


def _one_color(color: NDArray[np.uint8]) -> Palette:
    """The palette of a map of 0, 1 and 255 (ignored)."""
    palette = np.zeros((256, 3), np.uint8)
    palette[1], palette[IGNORE] = color, IGNORE_COLOR
    return palette


def draw_boxes(
    image: NDArray[Any],
    boxes: NDArray[Any],
    labels: NDArray[Any] | None = None,
    scores: NDArray[Any] | None = None,
    class_names: Sequence[str] = (),
    palette: Palette | None = None,
    masks: NDArray[Any] | None = None,
) -> Picture:
    """Thin boxes in the colours of their classes, each with its name and score; the best boxes on top.

    Args:
        image: uint8 (H, W, C) or (H, W).
        boxes: (N, 4) x1 y1 x2 y2, pixel edges.
        labels: (N,) classes; boxes with one below 0 are left out. One class by default.
        scores: (N,), written behind the name.
        class_names: K names; numbers are written without them.
        palette: uint8 (256, 3); the default one without a background by default.
        masks: The boxes' objects, drawn as translucent areas; see the module.

    Returns:
        uint8 (H, W, 3).
    """
    picture = rgb(image).copy()
    labels = np.zeros(len(boxes), np.int64) if labels is None else labels
    palette = default_palette(IGNORE, background=False) if palette is None else palette
    order = np.argsort(np.arange(len(boxes)) * -1.0 if scores is None else scores, kind="stable")
    order = order[labels[order] >= 0]
    for i in order if masks is not None else ():
        assert masks is not None
        window = _window(boxes[i], picture.shape)  # a whole picture for each of 500 objects would take seconds
        area = (masks[:, *window] == i + 1).any(0) if masks.dtype == np.int16 else masks[i][window] != 0
        if area.any():
            _tint(picture[window], area.astype(np.uint8), _one_color(palette[labels[i]]), ALPHA)
    canvas = Image.fromarray(picture)
    draw = ImageDraw.Draw(canvas)
    font = text_font()
    width = 1 + max(canvas.size) // 400
    tagged = len(order) <= MAX_TAGS
    for i in order:
        label = int(labels[i])
        color = tuple(int(v) for v in palette[label])
        x1, y1, x2, y2 = (float(v) for v in boxes[i])
        draw.rectangle((x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)), outline=color, width=width)
        if not tagged:
            continue
        text = _name(label, class_names) + ("" if scores is None else f" {float(scores[i]):.2f}")
        long, high = font.getlength(text) + 4, FONT_SIZE + 3
        left = min(max(0.0, x1), max(0.0, canvas.width - long))
        top = y1 - high if y1 >= high else min(max(0.0, y1), canvas.height - high)
        draw.rectangle((left, top, left + long, top + high), fill=color)
        bright = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2] > 140
        draw.text((left + 2, top), text, fill=INK if bright else BACKGROUND, font=font)
    return np.asarray(canvas)


def _window(box: NDArray[Any], shape: Sequence[int]) -> tuple[slice, slice]:
    """Rows and columns of a box, and two pixels around it: rescaling rounds masks otherwise than boxes."""
    x1, y1, x2, y2 = np.nan_to_num(np.asarray(box, np.float64)).tolist()
    rows = slice(max(0, int(y1) - 2), max(0, min(int(y2) + 3, shape[0])))
    return rows, slice(max(0, int(x1) - 2), max(0, min(int(x2) + 3, shape[1])))


def error_picture(image: NDArray[Any], truth: NDArray[np.uint8], prediction: NDArray[np.uint8]) -> Picture:
    """Where a label map is wrong: red; ignored pixels light grey, right ones the dim grey image. uint8 (H, W, 3)."""
    grey = cv2.cvtColor(rgb(image), cv2.COLOR_RGB2GRAY) // 2 + 24
    picture = cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB)
    wrong, ignored = _wrong(truth, prediction)
    picture[ignored] = IGNORE_COLOR
    picture[wrong] = WRONG_COLOR
    return np.asarray(picture)


def _wrong(truth: NDArray[Any], prediction: NDArray[Any]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Wrong and ignored pixels, (H, W) each; with several labels wrong in any class, ignored in all."""
    ignored = truth == IGNORE
    wrong = (truth != prediction) & ~ignored
    return (wrong, ignored) if truth.ndim == 2 else (wrong.any(0), ignored.all(0))


# Panels.


def display_size(size: tuple[int, int]) -> tuple[int, int]:
    """Height and width at which an image of (H, W) is shown in a panel."""
    longest = max(size)
    factor = MAX_SIDE / longest if longest > MAX_SIDE else max(1, round(MIN_SIDE / longest))
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def resized(image: NDArray[Any], size: tuple[int, int]) -> Picture:
    """An image (H, W, C) at another height and width: uint8 (h, w, 3); reduced by area, enlarged without smoothing."""
    method = cv2.INTER_AREA if size < image.shape[:2] else cv2.INTER_NEAREST
    return np.asarray(cv2.resize(rgb(image), (size[1], size[0]), interpolation=method))


def annotation_of(values: Mapping[str, Any], index: int | None = None) -> dict[str, Any]:
    """What can be drawn of ``values``: of its image ``index`` where they are a batch's or a task's predictions."""
    found = {key: values[key] if index is None else values[key][index] for key in KEYS if key in values}
    return {key: value for key, value in found.items() if hasattr(value, "shape")}


def rescaled(annotation: Mapping[str, Any], size: tuple[int, int], new: tuple[int, int]) -> Annotation:
    """An annotation of an image of ``size`` (H, W) as that of the image at ``new``; masks by the nearest pixel.

    Tensors may be on any device; only what is left of them is copied from it.
    """
    rows, columns = (((np.arange(n) + 0.5) * (s / n)).astype(np.int64) for s, n in zip(size, new, strict=True))
    result = {}
    for key, value in annotation.items():
        if key in ("mask", "masks") and tuple(value.shape[-2:]) != new:
            value = value[..., rows, :][..., columns]
        array = np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
        if key == "boxes":
            array = array * np.array([new[1] / size[1], new[0] / size[0]] * 2, np.float32)
        result[key] = array
    return result


def panel(
    image: NDArray[Any], truth: Annotation | None, prediction: Annotation, palette: Palette, class_names: Sequence[str]
) -> Picture:
    """One image as a panel; see ``panels``."""
    return panels([Sample(image, truth, prediction)], palette, class_names)


def panels(samples: Sequence[Sample], palette: Palette, class_names: Sequence[str]) -> Picture:
    """Image, truth, prediction and error side by side, one row a sample, above a legend of the classes that occur.

    Args:
        samples: Images with their annotations. Images above 480 pixels a side are reduced, small ones enlarged by a
            whole number. There is no column for what no sample has: a truth, or an error (of label maps).
        palette: uint8 (256, 3).
        class_names: K names.

    Returns:
        uint8 (H, W, 3).
    """
    rows = [_tiles(sample, palette, class_names) for sample in samples]
    headers = [name for name in ("image", "truth", "prediction", "error") if any(name in row for row in rows)]
    width = max(tile.shape[1] for row in rows for tile in row.values())
    heights = [row["image"].shape[0] for row in rows]
    line, font = FONT_SIZE + 4, text_font()
    legend = _legend(samples, palette, class_names)
    total = GAP + len(headers) * (width + GAP)
    places, x, y = [], GAP, 0
    for _, name in legend:
        long = int(line + 4 + font.getlength(name) + 14)
        if x + long > total and x > GAP:
            x, y = GAP, y + line + 2
        places.append((x, y))
        x += long
    below = line if any(sample.caption for sample in samples) else 0
    top = GAP + line
    bottom = top + sum(height + below + GAP for height in heights)
    canvas = Image.new("RGB", (total, bottom + (y + line + GAP if legend else 0)), BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    lefts = {name: GAP + number * (width + GAP) for number, name in enumerate(headers)}
    for name, left in lefts.items():
        draw.text((left, GAP - 2), name, fill=INK, font=font)
    for sample, row, height in zip(samples, rows, heights, strict=True):
        for name, tile in row.items():
            canvas.paste(Image.fromarray(tile), (lefts[name], top))
        draw.text((GAP, top + height + 1), printable(sample.caption), fill=INK, font=font)
        top += height + below + GAP
    for (color, name), (x, y) in zip(legend, places, strict=True):
        swatch = (x, bottom + y + 2, x + line - 4, bottom + y + line - 2)
        draw.rectangle(swatch, fill=color, outline=(150, 150, 150))
        draw.text((x + line + 1, bottom + y), name, fill=INK, font=font)
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
    return tiles


def _legend(samples: Sequence[Sample], palette: Palette, class_names: Sequence[str]) -> list[tuple[Any, str]]:
    """Colour and name of each class that occurs, and of what the error pictures show."""
    seen: set[int] = set()
    for annotation in (a for sample in samples for a in (sample.truth or {}, sample.prediction)):
        mask = annotation.get("mask", np.zeros((0, 0), np.uint8))
        if mask.ndim == 3:
            seen |= {k for k, plane in enumerate(mask) if (plane == 1).any()}
            mask = mask[mask == IGNORE]
        seen |= set(np.unique(mask).tolist())
        seen |= {int(k) for k in annotation.get("labels", ()) if k >= 0}
    marks = [(tuple(palette[k].tolist()), _name(k, class_names)) for k in sorted(seen) if palette[k].any()]
    has_error = any("mask" in (sample.truth or {}) for sample in samples)
    return [*marks, (WRONG_COLOR, "wrong")] if has_error else marks


def _name(label: int, class_names: Sequence[str]) -> str:
    return printable(class_names[label]) if label < len(class_names) else "ignored" if label == IGNORE else str(label)
