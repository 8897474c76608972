"""Loss, metric and learning rate over the epochs, from the rows of ``metrics.csv``: uint8 (H, W, 3)."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipelines.outputs.figures import new_figure, rendered
from pipelines.outputs.sheets import Picture

Row = Mapping[str, float]
STEEP = 30  # between the greatest and the least loss from which the axis is logarithmic


def read_rows(file: Path) -> list[dict[str, float]]:
    """The numbers of ``metrics.csv``, a row a step; what was not measured is left out. No rows without the file."""
    if not file.is_file():
        return []
    with open(file, newline="", encoding="utf-8") as lines:
        rows = [{key: float(value) for key, value in row.items() if key and value} for row in csv.DictReader(lines)]
    return [{key: value for key, value in row.items() if math.isfinite(value)} for row in rows]


def best_row(rows: Sequence[Row], monitor: str, mode: str) -> Row | None:
    """The row with the best value; of equal ones the last, as ``best.ckpt`` is chosen."""
    known = [row for row in reversed(rows) if monitor in row]
    sign = 1 if mode == "max" else -1
    return max(known, key=lambda row: sign * row[monitor]) if known else None


def curves_figure(rows: Sequence[Row], monitor: str, mode: str, steps_per_epoch: float) -> Picture:
    """Draw them side by side.

    Args:
        rows: See ``read_rows``; at least two.
        monitor: The metric that decides, ``val/accuracy``; its best value is marked.
        mode: ``max`` or ``min``.
        steps_per_epoch: Optimizer steps.
    """
    from matplotlib.ticker import MaxNLocator

    figure = new_figure(10, 2.9)
    loss, metric, rate = figure.subplots(1, 3)

    def points(key: str) -> tuple[list[float], list[float]]:
        have = [row for row in rows if key in row]
        return [(row["step"] + 1) / steps_per_epoch for row in have], [row[key] for row in have]

    losses = {key: points(key) for key in ("train/loss", "val/loss")}
    for (key, (x, y)), style in zip(losses.items(), ("-", ".-"), strict=True):
        if x:
            loss.plot(x, y, style, label=key, linewidth=1.3)
    values = [value for _, y in losses.values() for value in y]
    if values and min(values) > 0 and max(values) > STEEP * min(values):
        loss.set_yscale("log")
    loss.legend(fontsize=7, frameon=False)
    best = best_row(rows, monitor, mode)
    if best is not None:
        metric.plot(*points(monitor), ".-", color="#54a24b", linewidth=1.3)
        at = (best["step"] + 1) / steps_per_epoch
        metric.plot(at, best[monitor], "*", color="#e45756", markersize=11)
        metric.set_title(f"{monitor}: best {best[monitor]:.4f}, epoch {best['epoch'] + 1:.0f}", fontsize=9)
    loss.set_title("loss", fontsize=9)
    rate.plot(*points("train/lr"), color="#b279a2", linewidth=1.3)
    rate.set_title("highest learning rate", fontsize=9)
    for axes in (loss, metric, rate):
        axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
        axes.set_xlabel("epoch", fontsize=8)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.subplots_adjust(left=0.05, right=0.99, bottom=0.17, top=0.9, wspace=0.2)
    return rendered(figure)
