"""A network's layers as a table, and what a unit sees as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.outputs.figures import new_figure, rendered
from pipelines.outputs.sheets import Picture
from tasks.layers import Layer

COLUMNS = ("layer", "kind", "output", "kernel", "parameters", "MACs", "sees", "jump", "center")


def layer_table(layers: Sequence[Layer]) -> list[str]:
    """One line a layer, with columns of one width and their names above."""
    rows = [COLUMNS, *(row_of(layer) for layer in layers)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def row_of(layer: Layer) -> tuple[str, ...]:
    """A layer as the cells of a table."""
    sees = jump = center = ""
    if layer.field is not None:
        sides = layer.field.height, layer.field.width
        sees, jump, center = (_pair(getattr(side, name) for side in sides) for name in ("size", "jump", "center"))
        sees = f"all ({sees})" if layer.field.sees_all else sees
    parameters = f"{layer.parameters:,} = {layer.formula}" if layer.parameters else "0"
    shape = " x ".join(map(str, layer.output[1:]))
    return (
        layer.name or "(network)",
        layer.kind,
        shape,
        kernel_of(layer),
        parameters,
        f"{layer.macs:,}",
        sees,
        jump,
        center,
    )


def kernel_of(layer: Layer) -> str:
    """Kernel, and what differs from stride 1, no padding, no dilation and one group: ``7 /2 p3``."""
    if not layer.settings:
        return ""
    words = [_pair(layer.settings["kernel_size"])]
    for key, sign, usual in (("stride", "/", "1"), ("padding", "p", "0"), ("dilation", "d", "1"), ("groups", "g", "1")):
        value = layer.settings.get(key, usual)
        text = _pair(value) if not isinstance(value, str) else value
        words += [f"{sign}{text}"] if text != usual else []
    return " ".join(words)


def _pair(value: Any) -> str:
    values = [value] if isinstance(value, int | float) else list(value)
    texts = [f"{item:g}" for item in values]
    return texts[0] if len(set(texts)) == 1 else "x".join(texts)


def field_figure(field: NDArray[np.float32], layer: Layer) -> Picture:
    """What the middle unit of a layer depends on, beside the frame of its theoretical field.

    Args:
        field: (H, W), 1 where it depends most.
        layer: A map of the network.
    """
    from matplotlib.patches import Rectangle

    figure = new_figure(6.0, 6.0)
    axes = figure.add_subplot()
    axes.imshow(field**0.5, cmap="viridis", vmin=0.0, vmax=1.0)  # the root: far pixels matter little, but they do
    if layer.field is not None:
        rows, columns = (
            axis.center + size // 2 * axis.jump - 0.5
            for axis, size in zip((layer.field.height, layer.field.width), layer.output[2:], strict=True)
        )
        high, wide = layer.field.height.size, layer.field.width.size
        frame = Rectangle(
            (columns - wide / 2, rows - high / 2), wide, high, fill=False, edgecolor="white", linestyle="--"
        )
        axes.add_patch(frame)
        axes.set_title(f"{layer.name}: gradient (root), and the frame of its field ({high:g} x {wide:g})")
    axes.set_xlim(-0.5, field.shape[1] - 0.5)
    axes.set_ylim(field.shape[0] - 0.5, -0.5)
    return rendered(figure)
