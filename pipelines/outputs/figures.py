"""Pictures of a run as uint8 arrays (H, W, 3): grids of images, confusion matrix, calibration. No display needed."""

from __future__ import annotations

import functools
import importlib.util
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFont

from datamodules.common.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Picture = NDArray[np.uint8]
TILE = 144  # smaller images are enlarged until a tile has about this many pixels, so that they can be seen
MAX_TILE = 320  # larger ones are reduced to it
GAP = 8
MARGIN = 12
FONT_SIZE = 12
CAPTION_LINES = 3
BACKGROUND = (255, 255, 255)
INK = (20, 20, 20)
MAX_NUMBERS = 25  # classes up to which the cells of a confusion matrix have their numbers
MAX_TICKS = 60


def image_grid(
    images: ArrayLike, captions: Sequence[str] | None = None, columns: int | None = None, max_images: int = 64
) -> Picture:
    """Put images side by side.

    Args:
        images: uint8 (N, H, W, C) with C = 1 (grey), 3 (RGB) or more (the first three are shown), or (N, H, W).
        captions: One text below each image, wrapped.
        columns: Images in a row; by default about as many as rows.
        max_images: Only so many are shown.

    Returns:
        uint8 (H', W', 3). Small images are enlarged by a whole number, without smoothing.

    Raises:
        UserError: For other dtypes or shapes, no images, and a wrong number of captions.
    """
    array = np.asarray(images)
    if array.dtype != np.uint8 or array.ndim not in (3, 4) or 0 in array.shape:
        raise UserError(f"images: uint8 (N, H, W, C) with N > 0 wanted, got {array.dtype} {array.shape}")
    if captions is not None and len(captions) != len(array):
        raise UserError(f"captions: one per image wanted, got {len(captions)} for {len(array)} images")
    tiles = [scaled(rgb(image)) for image in array[:max_images]]
    return sheet(tiles, captions[:max_images] if captions else None, columns)


def contact_sheet(
    images: Sequence[str | Path | NDArray[Any]],
    captions: Sequence[str] | None,
    path: str | Path,
    columns: int | None = None,
    tile: int = 176,
) -> Path:
    """Write a sheet of thumbnails of images of any sizes.

    Args:
        images: Files, or uint8 arrays (H, W, C) or (H, W). A file that cannot be read is shown as an empty tile.
        captions: One text below each.
        path: PNG file to write.
        columns: Images in a row; by default about as many as rows.
        tile: Side of a thumbnail in pixels.

    Returns:
        The file.

    Raises:
        UserError: For no images, and a wrong number of captions.
    """
    if not images or (captions is not None and len(captions) != len(images)):
        raise UserError(f"contact sheet: {len(images)} images, {'no' if captions is None else len(captions)} captions")
    tiles = []
    for image in images:
        canvas = Image.new("RGB", (tile, tile), (238, 238, 238))
        picture = _open(image)
        if picture is not None:
            factor = min(tile / picture.width, tile / picture.height)
            size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
            method = Image.Resampling.NEAREST if factor >= 2 else Image.Resampling.LANCZOS
            canvas.paste(picture.resize(size, method), ((tile - size[0]) // 2, (tile - size[1]) // 2))
        tiles.append(canvas)
    return save_png(sheet(tiles, captions, columns), path)


def save_png(array: NDArray[Any], path: str | Path) -> Path:
    """Write uint8 (H, W, 3) or (H, W) as a PNG file, making its folder.

    Returns:
        The file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, format="PNG")
    return path


def confusion_matrix_figure(matrix: ArrayLike, class_names: Sequence[str], title: str | None = None) -> Picture:
    """Draw a confusion matrix, coloured by the share of each true class.

    Args:
        matrix: Counts (K, K), rows the true classes.
        class_names: K names.
        title: Text above; the share of right answers by default.

    Returns:
        uint8 (H, W, 3). Numbers are written for up to 25 classes, shares where counts (of pixels) have more than five
        digits; names are thinned beyond 60.

    Raises:
        UserError: If the shapes do not fit.
    """
    from matplotlib.colors import PowerNorm

    counts = np.asarray(matrix)
    size = len(class_names)
    if counts.shape != (size, size) or not size:
        raise UserError(f"confusion matrix: ({size}, {size}) wanted for {size} class names, got {counts.shape}")
    totals = counts.sum(axis=1, keepdims=True)
    share = counts / np.maximum(totals, 1)
    names = [short(name, 24) for name in class_names]
    cell = 0.75 if size <= 4 else 0.52 if size <= MAX_NUMBERS else max(0.105, 9.0 / size)
    letters = max(map(len, names))
    margin = 0.9 + 0.085 * letters
    side = max(cell * size, 2.4)
    figure = new_figure(side + margin + 1.1, side + margin + 0.5)
    axes = figure.add_axes(
        (
            margin / figure.get_figwidth(),
            margin / figure.get_figheight(),
            side / figure.get_figwidth(),
            side / figure.get_figheight(),
        )
    )
    # Square root: rare mistakes, spread over many classes, would be invisible.
    drawn = axes.imshow(share, cmap="Blues", norm=PowerNorm(0.5, 0, 1), interpolation="nearest", aspect="equal")
    step = math.ceil(size / MAX_TICKS)
    ticks = range(0, size, step)
    # Beyond the numbers, a name must fit into its row: 72 points an inch.
    font = 9.0 if size <= MAX_NUMBERS else min(8.0, max(4.5, 72 * side / size * step * 0.8))
    axes.set_xticks(
        ticks,
        [names[i] for i in ticks],
        rotation=90 if letters > (8 if size <= 4 else 3) or size > 10 else 0,
        fontsize=font,
    )
    axes.set_yticks(ticks, [names[i] for i in ticks], fontsize=font)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    if size <= MAX_NUMBERS:
        digits = len(str(int(counts.max(initial=0))))
        for row, column in np.argwhere(counts > 0):
            axes.text(
                column,
                row,
                f"{counts[row, column]}" if digits <= 5 else f"{share[row, column]:.2f}",
                ha="center",
                va="center",
                fontsize=9 if digits < 4 else 7,
                color="white" if share[row, column] > 0.4 else "black",
            )
    right = np.trace(counts) / max(1, counts.sum())
    axes.set_title(title or f"{right:.1%} of {counts.sum():,} right", fontsize=10)
    bar_axes = figure.add_axes(
        (
            (margin + side + 0.18) / figure.get_figwidth(),
            margin / figure.get_figheight(),
            0.14 / figure.get_figwidth(),
            side / figure.get_figheight(),
        )
    )
    figure.colorbar(drawn, cax=bar_axes).ax.tick_params(labelsize=7)
    bar_axes.set_ylabel("share of the true class", fontsize=8)
    return rendered(figure)


def reliability_diagram(
    confidence: ArrayLike, accuracy: ArrayLike, counts: ArrayLike, error: float | None = None
) -> Picture:
    """Draw how far the stated probabilities can be trusted (Guo et al. 2017, https://arxiv.org/abs/1706.04599).

    Args:
        confidence: Mean probability of the predicted class in each of B equal bins of [0, 1]; of empty bins, anything.
        accuracy: Share of right answers in each bin.
        counts: Samples in each bin.
        error: Expected calibration error, shown in the title; computed from the bins by default.

    Returns:
        uint8 (H, W, 3): accuracy over confidence above, share of samples below.

    Raises:
        UserError: If the three are not of one length.
    """
    stated, right, number = (np.asarray(a, dtype=np.float64) for a in (confidence, accuracy, counts))
    if stated.ndim != 1 or not stated.shape == right.shape == number.shape or not stated.size:
        raise UserError(f"calibration: three equal lengths wanted, got {stated.shape}, {right.shape}, {number.shape}")
    used = number > 0
    weight = number / max(1.0, number.sum())
    if error is None:
        error = float(np.sum(weight[used] * np.abs(stated[used] - right[used])))
    figure = new_figure(4.6, 5.4)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    edges = np.linspace(0, 1, len(stated) + 1)
    width = 1 / len(stated)
    upper.bar(edges[:-1][used], right[used], width, align="edge", color="#4c78a8", edgecolor="white", label="accuracy")
    gap = {"color": "#e45756", "alpha": 0.35, "hatch": "//", "label": "gap to mean confidence"}
    upper.bar(edges[:-1][used], (stated - right)[used], width, right[used], align="edge", **gap)
    upper.plot([0, 1], [0, 1], "--", color="#999999", linewidth=1, label="perfect")
    upper.set(ylabel="accuracy", ylim=(0, 1), xlim=(0, 1))
    upper.set_title(f"calibration error {error:.3f} ({int(number.sum())} samples)", fontsize=10)
    upper.legend(fontsize=8, loc="upper left")
    lower.bar(edges[:-1], weight, width, align="edge", color="#bbbbbb", edgecolor="white")
    lower.set(xlabel="confidence", ylabel="share")
    return rendered(figure, tight=True)


def iou_bars(values: ArrayLike, class_names: Sequence[str], title: str | None = None) -> Picture:
    """Draw one bar a class, the best class on top.

    Args:
        values: Intersection over union of each class (K,), in [0, 1]; NaN for classes that do not occur.
        class_names: K names.
        title: Text above; the mean over the classes that occur by default.

    Returns:
        uint8 (H, W, 3). Classes that do not occur are greyed, at the bottom; names are thinned beyond 240.

    Raises:
        UserError: If the numbers do not fit.
    """
    iou = np.asarray(values, dtype=np.float64)
    size = len(class_names)
    if iou.shape != (size,) or not size:
        raise UserError(f"IoU bars: ({size},) wanted for {size} class names, got {iou.shape}")
    order = np.argsort(-iou, kind="stable")  # NaN comes last
    iou, absent = iou[order], np.isnan(iou[order])
    cell = 0.26 if size <= 40 else max(0.12, 10.4 / size) if size <= 240 else 29 / size
    font = min(9.0, 50 * cell)
    figure = new_figure(5.6, max(cell * size, 0.6) + 1)
    axes = figure.subplots()
    places = np.arange(size)
    axes.barh(places, np.where(absent, 1, 0), 0.72, color="#eeeeee")
    axes.barh(places, np.nan_to_num(iou), 0.72, color="#4c78a8")
    for place, value in enumerate(iou if font >= 5 else ()):
        text, x = ("does not occur", 0.0) if absent[place] else (f"{value:.3f}", value)
        inside: dict[str, Any] = {"ha": "right", "color": "white"} if x > 0.5 else {"color": "#777777"}
        axes.text(x + (-0.01 if x > 0.5 else 0.01), place, text, va="center", fontsize=font * 0.9, **inside)
    step = math.ceil(size / 240)
    axes.set_yticks(places[::step], [short(class_names[k], 32) for k in order[::step]], fontsize=max(5.0, font))
    axes.tick_params(axis="y", length=0)
    axes.set(xlim=(0, 1), ylim=(size - 0.4, -0.6), xlabel="IoU")
    axes.spines[["top", "right"]].set_visible(False)
    occur = int((~absent).sum())
    mean = float(iou[~absent].mean()) if occur else math.nan
    axes.axvline(mean, color="#e45756", linestyle="--", linewidth=1)
    axes.set_title(title or f"mean IoU {mean:.3f} of {occur} classes", fontsize=10)
    return rendered(figure, tight=True)


def new_figure(width: float, height: float) -> Figure:
    """A figure of so many inches that needs no display."""
    # Not pyplot: it keeps figures alive, and looks for a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=110, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def rendered(figure: Figure, tight: bool = False) -> Picture:
    """Its pixels, with a margin around what is drawn."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = figure.canvas
    assert isinstance(canvas, FigureCanvasAgg)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a name in a script that the font lacks
        if tight:
            figure.tight_layout()
        canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3]
    rows, columns = np.nonzero((pixels < 255).any(axis=-1))
    drawn = pixels[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    return np.pad(drawn, ((MARGIN, MARGIN), (MARGIN, MARGIN), (0, 0)), constant_values=255)


def printable(text: str) -> str:
    """The text in one line, control characters as question marks."""
    return "".join(char if char.isprintable() else "?" for char in str(text))


def short(text: str, length: int) -> str:
    """The text in one line of at most ``length`` characters, as matplotlib takes it."""
    # A dollar sign would start a formula in matplotlib.
    text = printable(text)
    text = text if len(text) <= length else text[: length - 1] + "…"
    return text.replace("$", r"\$")


@functools.cache
def text_font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The font of all captions, ``FONT_SIZE`` pixels high."""
    # PIL's own font has ASCII only. Matplotlib's has Latin, Greek and Cyrillic; looked up without importing it.
    spec = importlib.util.find_spec("matplotlib")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
        if path.is_file():
            return ImageFont.truetype(path, FONT_SIZE)
    return ImageFont.load_default(FONT_SIZE)


def rgb(image: NDArray[Any]) -> Picture:
    """An image (H, W) or (H, W, C) as C-contiguous (H, W, 3): grey is repeated, of more channels the first three."""
    if image.ndim == 2:
        image = image[..., None]
    if image.shape[-1] < 3:
        image = np.repeat(image[..., :1], 3, axis=-1)
    return np.ascontiguousarray(image[..., :3])


def scaled(image: Picture) -> Image.Image:
    """A tile of readable size: enlarged by a whole number, or reduced to ``MAX_TILE`` pixels."""
    picture = Image.fromarray(image)
    longest = max(picture.size)
    if longest > MAX_TILE:
        picture.thumbnail((MAX_TILE, MAX_TILE), Image.Resampling.LANCZOS)
    elif longest < TILE:
        factor = max(1, round(TILE / longest))
        picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    return picture


def _open(image: str | Path | NDArray[Any]) -> Image.Image | None:
    if isinstance(image, np.ndarray):
        return Image.fromarray(rgb(image))
    from datamodules.decoding.images import read_image  # late: its package needs torch

    try:
        return Image.fromarray(read_image(image))
    except (OSError, ValueError):
        return None


def _wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    """Break a caption at spaces, and inside of words where it must be, into a few lines."""
    lines: list[str] = []
    for part in "".join(c if c.isprintable() or c == "\n" else "?" for c in text).split("\n"):
        line = ""
        for word in part.split(" "):
            joined = f"{line} {word}" if line else word
            if font.getlength(joined) <= width:
                line = joined
                continue
            if line:
                lines.append(line)
            while font.getlength(word) > width and len(word) > 1:
                cut = next(n for n in range(len(word) - 1, 0, -1) if n == 1 or font.getlength(word[:n]) <= width)
                lines.append(word[:cut])
                word = word[cut:]
            line = word
        lines.append(line)
    if len(lines) > CAPTION_LINES:
        last = lines[CAPTION_LINES - 1]
        while last and font.getlength(last + "...") > width:
            last = last[:-1]
        lines = [*lines[: CAPTION_LINES - 1], last + "..."]
    return lines


def sheet(tiles: Sequence[Image.Image], captions: Sequence[str] | None, columns: int | None = None) -> Picture:
    """Tiles in rows, each with its caption, wrapped, below it: uint8 (H, W, 3)."""
    count = len(tiles)
    width, height = max(t.width for t in tiles), max(t.height for t in tiles)
    columns = min(count, columns or math.ceil(math.sqrt(count)))
    rows = math.ceil(count / columns)
    font = text_font()
    texts = [_wrapped(str(caption), font, width) for caption in captions] if captions else [[] for _ in tiles]
    line = FONT_SIZE + 3
    below = max(map(len, texts)) * line + (4 if captions else 0)
    canvas = Image.new("RGB", (GAP + columns * (width + GAP), GAP + rows * (height + below + GAP)), BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    for index, (tile, lines) in enumerate(zip(tiles, texts, strict=True)):
        left, top = GAP + index % columns * (width + GAP), GAP + index // columns * (height + below + GAP)
        canvas.paste(tile, (left + (width - tile.width) // 2, top + height - tile.height))
        for number, text in enumerate(lines):
            draw.text((left, top + height + 2 + number * line), text, fill=INK, font=font)
    return np.asarray(canvas)
