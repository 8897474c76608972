"""Overlapping windows over pictures that are too large for one pass; see ``tiles`` in ``datamodules.common.batch``."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from datamodules.common.errors import UserError

#: Windows start at multiples of this, so that a net of that stride sees each of them as it sees the whole picture.
GRID = 32


def check_tile(tile: tuple[int, int], overlap: float) -> None:
    """Refuse sizes that cannot tile.

    Raises:
        UserError: Naming the setting.
    """
    if min(tile) < 2 * GRID or any(side % GRID for side in tile):
        raise UserError(f"data.tile is {tile[0]} x {tile[1]}; both sides must be multiples of {GRID}, at least 64.")
    if not 0 <= overlap <= 0.5:
        raise UserError(f"data.tile_overlap is {overlap}; it is a fraction of a tile, 0 to 0.5.")


def tile_windows(height: int, width: int, tile: tuple[int, int], overlap: float = 0.25) -> NDArray[np.int64]:
    """Windows of ``tile`` (height, width) pixels, in rows from the top left, that cover a picture.

    Neighbors share ``overlap`` of a tile, in whole steps of the grid of 32 pixels. Windows of the last row and
    column keep their grid position and are clipped at the picture's border.

    Returns:
        int64 (T, 4): y1 x1 y2 x2, pixel edges.
    """
    rows, columns = (_spans(side, t, overlap) for side, t in zip((height, width), tile, strict=True))
    return np.array([(y1, x1, y2, x2) for y1, y2 in rows for x1, x2 in columns], np.int64)


def _spans(side: int, tile: int, overlap: float) -> list[tuple[int, int]]:
    """Start and end of the windows along one axis."""
    # Never below half a tile: at most two windows meet at a pixel, and their weights add up to 1.
    step = max(-(-tile // (2 * GRID)), (tile - round(tile * overlap)) // GRID) * GRID
    count = 1 + max(0, -(-(side - tile) // step))
    return [(i * step, min(i * step + tile, side)) for i in range(count)]
