"""Charts as SVG text, for pages: small, sharp at any size, and drawn in a millisecond, without matplotlib."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

COLORS = ("#4c78a8", "#e45756", "#54a24b", "#f2a33a", "#b279a2", "#72b7b2", "#9d755d", "#bab0ac")
WIDTH, HEIGHT = 420, 260  # pixels
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 26, 40  # margins
LONG = 26  # letters of a name in the legend that fit into half of the width
Range = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """What is drawn: x and y of P points, a name for the legend, and how.

    Attributes:
        x: P places.
        y: P values; NaN breaks a line.
        name: In the legend; none without one.
        style: ``line``, ``dots``, ``steps`` (bars from 0 as wide as the distance of two x), or ``dashed``.
        low: Lower ends of intervals, where there are some.
        high: Upper ends.
        color: By default the next one of ``COLORS``.
    """

    x: Sequence[float]
    y: Sequence[float]
    name: str = ""
    style: Literal["line", "dots", "steps", "dashed"] = "line"
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    color: str | None = None


def chart(
    series: Sequence[Series],
    title: str = "",
    xlabel: str = "",
    ylabel: str = "",
    xlim: Range | None = None,
    ylim: Range | None = None,
    names: Sequence[str] | None = None,
) -> str:
    """Draw series over common axes.

    Args:
        series: What is drawn; series without a finite value are left out.
        title: Above.
        xlabel: Below.
        ylabel: At the left.
        xlim: Ends of the axis; those of the values by default.
        ylim: Likewise.
        names: Texts for x = 0, 1, 2, ... in place of numbers.

    Returns:
        An ``<svg>`` element; nothing where no series has a value.
    """
    known = [one for one in series if any(map(math.isfinite, one.y))]
    if not known:
        return ""
    across = xlim or _limits([v for one in known for v in one.x])
    upwards = ylim or _limits([v for one in known for part in (one.y, one.low, one.high) for v in part or ()])
    colors = [one.color or COLORS[number % len(COLORS)] for number, one in enumerate(known)]
    parts = [_axes(across, upwards, title, xlabel, ylabel, names)]
    parts += [_drawn(one, color, across, upwards) for one, color in zip(known, colors, strict=True)]
    legend, below = _legend([(one.name, color) for one, color in zip(known, colors, strict=True) if one.name])
    height = HEIGHT + below
    parts.append(legend)
    font = "font-family='system-ui,sans-serif' font-size='11' fill='#444'"
    return f"<svg width='{WIDTH}' height='{height}' viewBox='0 0 {WIDTH} {height}' {font}>{''.join(parts)}</svg>"


def _limits(values: Sequence[float]) -> Range:
    finite = [v for v in values if math.isfinite(v)]
    low, high = min(finite), max(finite)
    margin = 0.05 * (high - low) or 0.5 * (abs(high) or 1)
    return low - margin, high + margin


def _x(value: float, limits: Range) -> float:
    return LEFT + (value - limits[0]) / (limits[1] - limits[0]) * (WIDTH - LEFT - RIGHT)


def _y(value: float, limits: Range) -> float:
    return HEIGHT - BOTTOM - (value - limits[0]) / (limits[1] - limits[0]) * (HEIGHT - TOP - BOTTOM)


def ticks(limits: Range, count: int = 6) -> list[float]:
    """Round numbers between two ends, about so many."""
    span = limits[1] - limits[0]
    step = 10 ** math.floor(math.log10(span / count))
    step = next(step * factor for factor in (1, 2, 5, 10) if span / (step * factor) <= count)
    first = math.ceil(limits[0] / step - 1e-9)
    return [number * step for number in range(first, math.floor(limits[1] / step + 1e-9) + 1)]


def _axes(across: Range, upwards: Range, title: str, xlabel: str, ylabel: str, names: Sequence[str] | None) -> str:
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    parts = []
    for value in ticks(upwards):
        y = _y(value, upwards)
        parts.append(f"<path d='M{LEFT} {y:.1f}H{right}' stroke='#e4e4e4'/>")
        parts.append(f"<text x='{LEFT - 5}' y='{y + 4:.1f}' text-anchor='end'>{value:.4g}</text>")
    marks = [(float(i), name) for i, name in enumerate(names)] if names else [(v, f"{v:.4g}") for v in ticks(across)]
    for value, text in marks:
        x = _x(value, across)
        parts.append(f"<path d='M{x:.1f} {bottom}v4' stroke='#999'/>")
        parts.append(f"<text x='{x:.1f}' y='{bottom + 15}' text-anchor='middle'>{html.escape(text)}</text>")
    parts.append(f"<path d='M{LEFT} {TOP}V{bottom}H{right}' stroke='#999' fill='none'/>")
    middle = (LEFT + right) / 2
    parts.append(f"<text x='{middle}' y='14' text-anchor='middle' font-size='12'>{html.escape(title)}</text>")
    parts.append(f"<text x='{middle}' y='{HEIGHT - 8}' text-anchor='middle'>{html.escape(xlabel)}</text>")
    turned = f"x='12' y='{(TOP + bottom) / 2}' text-anchor='middle' transform='rotate(-90 12 {(TOP + bottom) / 2})'"
    parts.append(f"<text {turned}>{html.escape(ylabel)}</text>")
    return "".join(parts)


def _drawn(one: Series, color: str, across: Range, upwards: Range) -> str:
    points = [
        (_x(x, across), _y(min(max(y, upwards[0]), upwards[1]), upwards)) if math.isfinite(y) else None
        for x, y in zip(one.x, one.y, strict=True)
    ]
    parts = [_intervals(one, color, across, upwards)] if one.low is not None and one.high is not None else []
    if one.style == "dots":
        parts += [f"<circle cx='{p[0]:.1f}' cy='{p[1]:.1f}' r='3' fill='{color}'/>" for p in points if p]
    elif one.style == "steps":
        wide = (_x(one.x[1], across) - _x(one.x[0], across)) if len(one.x) > 1 else WIDTH / 4
        base = _y(max(0.0, upwards[0]), upwards)
        for p in filter(None, points):
            box = f"x='{p[0] - wide / 2 + 0.5:.1f}' y='{p[1]:.1f}' width='{max(wide - 1, 1):.1f}'"
            parts.append(f"<rect {box} height='{max(base - p[1], 0):.1f}' fill='{color}' opacity='.75'/>")
    else:
        dash = " stroke-dasharray='4 3'" if one.style == "dashed" else ""
        parts.append(f"<path d='{_path(points)}' stroke='{color}' stroke-width='1.6' fill='none'{dash}/>")
    return "".join(parts)


def _intervals(one: Series, color: str, across: Range, upwards: Range) -> str:
    parts = []
    for x, low, high in zip(one.x, one.low or (), one.high or (), strict=True):
        if math.isfinite(low) and math.isfinite(high):
            ends = f"M{_x(x, across):.1f} {_y(low, upwards):.1f}V{_y(high, upwards):.1f}"
            parts.append(f"<path d='{ends}' stroke='{color}' stroke-width='1.5' opacity='.6'/>")
    return "".join(parts)


def _path(points: Sequence[tuple[float, float] | None]) -> str:
    words, begun = [], False
    for point in points:
        if point is not None:
            words.append(f"{'L' if begun else 'M'}{point[0]:.1f} {point[1]:.1f}")
        begun = point is not None
    return "".join(words)


def _legend(entries: Sequence[tuple[str, str]]) -> tuple[str, int]:
    """Names and colors below the chart, and how much room they need; in one column if a name is long, else in two."""
    if not entries:
        return "", 0
    columns = 1 if any(len(name) > LONG for name, _ in entries) else 2
    parts = []
    for i, (name, color) in enumerate(entries):
        x, y = LEFT + i % columns * (WIDTH - LEFT) // columns, HEIGHT + 8 + i // columns * 16
        parts.append(f"<rect x='{x}' y='{y - 8}' width='10' height='10' fill='{color}'/>")
        parts.append(f"<text x='{x + 14}' y='{y + 1}'>{html.escape(name[: 2 * LONG])}</text>")
    return "".join(parts), 16 * math.ceil(len(entries) / columns) + 4


@dataclass(frozen=True)
class Bar:
    """One line of ``intervals``: a name, a value with its interval, and single values as ticks (of seeds)."""

    name: str
    value: float
    low: float
    high: float
    each: Sequence[float] = ()


def intervals(bars: Sequence[Bar], label: str, zero: bool = False) -> str:
    """Draw values with their intervals, one below the other.

    Args:
        bars: From top to bottom.
        label: Of the axis.
        zero: Mark 0, for differences.
    """
    row, names = 30, 8 + max((7 * min(len(bar.name), 34) for bar in bars), default=0)
    left, width, bottom = names, 520 + names, row * len(bars) + 8
    limits = _limits([v for bar in bars for v in (bar.low, bar.high, bar.value, *bar.each)] + [0.0] * zero)

    def place(value: float) -> float:
        return left + (value - limits[0]) / (limits[1] - limits[0]) * (width - left - 16)

    parts = []
    for value in ticks(limits):
        x = place(value)
        parts.append(f"<path d='M{x:.1f} 4V{bottom}' stroke='#e4e4e4'/>")
        parts.append(f"<text x='{x:.1f}' y='{bottom + 14}' text-anchor='middle'>{value:.4g}</text>")
    if zero:
        parts.append(f"<path d='M{place(0):.1f} 4V{bottom}' stroke='#777'/>")
    for number, bar in enumerate(bars):
        y = row * number + row / 2 + 4
        parts.append(f"<text x='{left - 6}' y='{y + 4}' text-anchor='end'>{html.escape(bar.name[:34])}</text>")
        if math.isfinite(bar.low) and math.isfinite(bar.high):
            ends = f"M{place(bar.low):.1f} {y}H{place(bar.high):.1f}"
            parts.append(f"<path d='{ends}' stroke='{COLORS[0]}' stroke-width='2'/>")
        for value in bar.each if len(bar.each) > 1 else ():
            parts.append(f"<path d='M{place(value):.1f} {y + 5}v6' stroke='#999'/>")
        if math.isfinite(bar.value):
            parts.append(f"<circle cx='{place(bar.value):.1f}' cy='{y}' r='4' fill='{COLORS[0]}'/>")
    parts.append(f"<text x='{(left + width) / 2}' y='{bottom + 30}' text-anchor='middle'>{html.escape(label)}</text>")
    size = f"width='{width}' height='{bottom + 36}'"
    return f"<p><svg {size} font-family='system-ui,sans-serif' font-size='12' fill='#444'>{''.join(parts)}</svg></p>"
