"""Figures of matplotlib as uint8 arrays (H, W, 3): confusion matrix, calibration, IoU of classes. No display needed.

scikit-learn's ``ConfusionMatrixDisplay`` lets long names and the numbers of many classes overlap, and colors by counts,
which hides rare classes; its ``CalibrationDisplay`` does not show how many samples a bin has. Both import pyplot.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipelines.outputs.fonts import families_for
from pipelines.outputs.sheets import Picture, printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARGIN = 12
MAX_NUMBERS = 25  # classes up to which the cells of a confusion matrix have their numbers
MAX_TICKS = 60
MAX_BAR_NAMES = 240


def confusion_matrix_figure(matrix: ArrayLike, class_names: Sequence[str], title: str | None = None) -> Picture:
    """Draw a confusion matrix, colored by the fraction of each true class.

    Args:
        matrix: Counts (K, K), rows the true classes.
        class_names: K names.
        title: Text above; the fraction of correct answers by default.

    Returns:
        uint8 (H, W, 3). Numbers are written for up to 25 classes, fractions where counts (of pixels) have more than
        five digits; names are thinned beyond 60.

    Raises:
        ValueError: If the shapes do not fit.
    """
    from matplotlib.colors import PowerNorm

    counts = np.asarray(matrix)
    size = len(class_names)
    if counts.shape != (size, size) or not size:
        raise ValueError(f"confusion matrix: ({size}, {size}) expected for {size} class names, got {counts.shape}")
    fractions = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    names = [short(name, 24) for name in class_names]
    longest = max(map(len, names))
    # All in inches: the matrix, the names left of it and below, the bar of colors at its right.
    side = max(_cell(size) * size, 2.4)
    margin = 0.9 + 0.085 * longest
    width, height = side + margin + 1.1, side + margin + 0.5
    figure = new_figure(width, height)
    axes = figure.add_axes((margin / width, margin / height, side / width, side / height))
    # Square root: rare mistakes, spread over many classes, would be invisible.
    image = axes.imshow(fractions, cmap="Blues", norm=PowerNorm(0.5, 0, 1), interpolation="nearest", aspect="equal")
    _name_cells(axes, names, side)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    if size <= MAX_NUMBERS:
        _number_cells(axes, counts, fractions)
    correct = np.trace(counts) / max(1, counts.sum())
    axes.set_title(title or f"{correct:.1%} of {counts.sum():,} correct", fontsize=10)
    bar = figure.add_axes(((margin + side + 0.18) / width, margin / height, 0.14 / width, side / height))
    figure.colorbar(image, cax=bar).ax.tick_params(labelsize=7)
    bar.set_ylabel("fraction of the true class", fontsize=8)
    return rendered(figure)


def _cell(size: int) -> float:
    """Side of a cell of a matrix of so many classes, in inches."""
    if size <= 4:
        return 0.75
    return 0.52 if size <= MAX_NUMBERS else max(0.105, 9.0 / size)


def _name_cells(axes: Axes, names: Sequence[str], side: float) -> None:
    """Write the names along both sides of a matrix, ``side`` inches wide; not all of them where there are too many."""
    size = len(names)
    step = math.ceil(size / MAX_TICKS)
    ticks = range(0, size, step)
    # Beyond the numbers, a name must fit into its row: 72 points an inch.
    font = 9.0 if size <= MAX_NUMBERS else min(8.0, max(4.5, 72 * side / size * step * 0.8))
    fits = max(map(len, names)) <= (8 if size <= 4 else 3) and size <= 10
    shown = [names[i] for i in ticks]
    axes.set_xticks(ticks, shown, rotation=0 if fits else 90, fontsize=font)
    axes.set_yticks(ticks, shown, fontsize=font)


def _number_cells(axes: Axes, counts: NDArray[Any], fractions: NDArray[Any]) -> None:
    """Write each cell's count into it, or its fraction of the true class where counts have too many digits."""
    digits = len(str(int(counts.max(initial=0))))
    for row, column in np.argwhere(counts > 0):
        fraction = fractions[row, column]
        text = f"{counts[row, column]}" if digits <= 5 else f"{fraction:.2f}"
        color = "white" if fraction > 0.4 else "black"
        axes.text(column, row, text, ha="center", va="center", fontsize=9 if digits < 4 else 7, color=color)


def reliability_diagram(confidence: ArrayLike, accuracy: ArrayLike, counts: ArrayLike) -> Picture:
    """Draw how far the stated probabilities can be trusted (Guo et al. 2017, https://arxiv.org/abs/1706.04599).

    Args:
        confidence: Mean probability of the predicted class in each of B equal bins of [0, 1]; of empty bins, anything.
        accuracy: Fraction of correct answers in each bin.
        counts: Samples in each bin.

    Returns:
        uint8 (H, W, 3): accuracy over confidence above, with the expected calibration error in the title; the fraction
        of samples below.

    Raises:
        ValueError: If the three are not of one length.
    """
    stated, right, number = (np.asarray(a, dtype=np.float64) for a in (confidence, accuracy, counts))
    if stated.ndim != 1 or not stated.shape == right.shape == number.shape or not stated.size:
        raise ValueError(
            f"calibration: three equal lengths expected, got {stated.shape}, {right.shape}, {number.shape}"
        )
    used = number > 0
    weight = number / max(1.0, number.sum())
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
    lower.set(xlabel="confidence", ylabel="fraction")
    return rendered(figure, tight=True)


def iou_bars(values: ArrayLike, class_names: Sequence[str]) -> Picture:
    """Draw one bar a class, the best class on top.

    Args:
        values: Intersection over union of each class (K,), in [0, 1]; NaN for classes that do not occur.
        class_names: K names.

    Returns:
        uint8 (H, W, 3). Classes that do not occur are grayed, at the bottom; names are thinned beyond 240.

    Raises:
        ValueError: If the numbers do not fit.
    """
    iou = np.asarray(values, dtype=np.float64)
    size = len(class_names)
    if iou.shape != (size,) or not size:
        raise ValueError(f"IoU bars: ({size},) expected for {size} class names, got {iou.shape}")
    order = np.argsort(-iou, kind="stable")  # NaN comes last
    iou, absent = iou[order], np.isnan(iou[order])
    cell = _bar_height(size)
    font = min(9.0, 50 * cell)
    figure = new_figure(5.6, max(cell * size, 0.6) + 1)
    axes = figure.subplots()
    places = np.arange(size)
    axes.barh(places, np.where(absent, 1, 0), 0.72, color="#eeeeee")
    axes.barh(places, np.nan_to_num(iou), 0.72, color="#4c78a8")
    if font >= 5:
        _number_bars(axes, iou, font * 0.9)
    step = math.ceil(size / MAX_BAR_NAMES)
    axes.set_yticks(places[::step], [short(class_names[k], 32) for k in order[::step]], fontsize=max(5.0, font))
    axes.tick_params(axis="y", length=0)
    axes.set(xlim=(0, 1), ylim=(size - 0.4, -0.6), xlabel="IoU")
    axes.spines[["top", "right"]].set_visible(False)
    occur = int((~absent).sum())
    mean = float(iou[~absent].mean()) if occur else math.nan
    axes.axvline(mean, color="#e45756", linestyle="--", linewidth=1)
    axes.set_title(f"mean IoU {mean:.3f} of {occur} classes", fontsize=10)
    return rendered(figure, tight=True)


def _bar_height(size: int) -> float:
    """Height of each of so many bars and the gap below it, in inches."""
    if size <= 40:
        return 0.26
    return max(0.12, 10.4 / size) if size <= MAX_BAR_NAMES else 29 / size


def _number_bars(axes: Axes, values: NDArray[np.float64], font: float) -> None:
    """Write each value (K,) at the end of its bar: inside of long ones, behind short ones."""
    for place, value in enumerate(values):
        if np.isnan(value):
            axes.text(0.01, place, "does not occur", va="center", fontsize=font, color="#777777")
        elif value > 0.5:
            axes.text(value - 0.01, place, f"{value:.3f}", va="center", ha="right", fontsize=font, color="white")
        else:
            axes.text(value + 0.01, place, f"{value:.3f}", va="center", fontsize=font, color="#777777")


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

    _use_fonts(figure)
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


def _use_fonts(figure: Figure) -> None:
    """Give texts in other scripts fonts that have them."""
    from matplotlib.text import Text

    for axes in figure.axes:
        axes.get_xticklabels(), axes.get_yticklabels()  # names at the axes are put in place here, else when drawn
    for text in figure.findobj(Text):
        families = families_for(text.get_text())
        if families:
            text.set_fontfamily(families)


def short(text: str, length: int) -> str:
    """The text in one line of at most ``length`` characters, as matplotlib takes it."""
    # A dollar sign would start a formula in matplotlib.
    text = printable(text)
    text = text if len(text) <= length else text[: length - 1] + "…"
    return text.replace("$", r"\$")
