"""Figures of a detector as uint8 arrays (H, W, 3): precision over recall, F1 over confidence, confusions, errors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.outputs.figures import confusion_matrix_figure, new_figure, rendered, short
from pipelines.outputs.palettes import Palette, color_of
from pipelines.outputs.sheets import Picture
from tasks.detection.evaluation.curves import RECALLS, Curve, Thresholds, f1_over_confidence
from tasks.detection.evaluation.metrics import Report

MAX_LEGEND = 12  # classes that the legend of the curves names: with more, the best and the worst ones
MAX_BARS = 40
CONFIDENCES = np.linspace(0, 1, 201)
#: What becomes of annotations and detections, in the order of `error_kinds`, with its color.
KINDS = {
    "correct": "#54a24b",
    "localization": "#f2cf5b",
    "class": "#b279a2",
    "duplicate": "#4c78a8",
    "background": "#e45756",
    "both": "#9d755d",
    "missed": "#bab0ac",
}


def detection_figures(report: Report, class_names: Sequence[str], palette: Palette) -> dict[str, Picture]:
    """All figures of a report (see `CocoMetrics.report`) by name.

    Args:
        report: Of K classes.
        class_names: K names, or none.
        palette: uint8 (256, 3), the classes' colors.
    """
    names = list(class_names) or [str(k) for k in range(len(report.curves))]
    found, objects = int(report.confusion.diagonal()[:-1].sum()), int(report.confusion[:-1].sum())
    wrong = int(report.confusion[:, :-1].sum()) - found
    title = f"{found:,} of {objects:,} objects found, {wrong:,} wrong boxes (IoU 0.5)"
    return {
        "confusion_matrix": confusion_matrix_figure(report.confusion, [*names, "background"], title),
        "precision_recall": precision_recall_figure(report.curves, names, palette),
        "f1_confidence": f1_figure(report.curves, report.thresholds, names, palette),
        "error_kinds": error_figure(report.errors, names),
    }


def precision_recall_figure(curves: Sequence[Curve], class_names: Sequence[str], palette: Palette) -> Picture:
    """Draw the interpolated precision over recall of each class, and their mean, at an IoU of 0.5."""
    lines = np.stack([curve.interpolated() for curve in curves])
    average = lines.mean(1)
    known = ~np.isnan(average)
    texts = [f"{short(name, 20)} {value:.3f}" for name, value in zip(class_names, average, strict=True)]
    mean = float(average[known].mean()) if known.any() else np.nan
    title = f"AP50 {mean:.3f}, mean of {int(known.sum())} classes"
    return _curves(RECALLS, lines, average, texts, palette, title, "recall", "precision")


def f1_figure(curves: Sequence[Curve], thresholds: Thresholds, class_names: Sequence[str], palette: Palette) -> Picture:
    """Draw F1 over the confidence threshold, with a dot at each class's best one."""
    lines = f1_over_confidence(curves, CONFIDENCES)
    best = np.asarray(thresholds.f1)
    dots = np.asarray(thresholds.per_class)
    texts = [f"{short(name, 20)} {f1:.3f} at {dot:.2f}" for name, f1, dot in zip(class_names, best, dots, strict=True)]
    title = f"mean F1 {thresholds.overall_f1:.3f} at {thresholds.overall:.2f} for all classes"
    return _curves(CONFIDENCES, lines, best, texts, palette, title, "confidence", "F1 at IoU 0.5", dots)


def _curves(
    x: NDArray[Any],
    lines: NDArray[Any],
    values: NDArray[Any],
    texts: Sequence[str],
    palette: Palette,
    title: str,
    across: str,
    upwards: str,
    dots: NDArray[Any] | None = None,
) -> Picture:
    """A line for each class that has a value (K,), of lines (K, X), and a black one for their mean."""
    figure = new_figure(6.4, 4.2)
    axes = figure.subplots()
    known = np.flatnonzero(~np.isnan(values))
    order = known[np.argsort(-values[known], kind="stable")]
    named = set(order if len(order) <= MAX_LEGEND else [*order[: MAX_LEGEND // 2], *order[-MAX_LEGEND // 2 :]])
    for k in order.tolist():
        color = color_of(palette, k) / 255
        axes.plot(x, lines[k], color=color, linewidth=1.2, label=texts[k] if k in named else None)
        if dots is not None:
            axes.plot(dots[k], values[k], "o", color=color, markersize=4)
    if len(order) > 1:
        axes.plot(x, lines[order].mean(0), color="black", linewidth=2, label="mean")
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel=across, ylabel=upwards)
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.25)
    if len(order):
        axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    else:
        axes.text(0.5, 0.5, "no annotations", ha="center", color="#777777")
    return rendered(figure, tight=True)


def error_figure(errors: dict[str, NDArray[np.int64]], class_names: Sequence[str]) -> Picture:
    """Draw what became of each class's objects and boxes as bars; the classes with the most errors, at most 40.

    Args:
        errors: Counts (K,) by kind; see `tasks.detection.evaluation.curves.error_kinds`.
        class_names: K names.
    """
    counts = np.stack([errors[kind] for kind in KINDS])  # (kinds, K)
    order = np.argsort(-counts[1:].sum(0), kind="stable")[:MAX_BARS]
    totals = counts.sum(1)
    cell = 0.3
    figure = new_figure(6.4, max(cell * len(order), 0.7) + 1.1)
    axes = figure.subplots()
    left = np.zeros(len(order))
    places = np.arange(len(order))
    for kind, row, total in zip(KINDS, counts[:, order], totals, strict=True):
        axes.barh(places, row, 0.72, left=left, color=KINDS[kind], label=f"{kind} {int(total):,}")
        left += row
    axes.set_yticks(places, [short(class_names[k], 32) for k in order.tolist()], fontsize=8)
    axes.tick_params(axis="y", length=0)
    axes.set(ylim=(len(order) - 0.4, -0.6), xlabel="boxes and objects", xlim=(0, max(1.0, float(left.max()) * 1.02)))
    axes.spines[["top", "right"]].set_visible(False)
    rest = len(class_names) - len(order)
    axes.set_title("kinds of errors at IoU 0.5" + (f" ({rest} more classes)" if rest else ""), fontsize=10)
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    return rendered(figure, tight=True)
