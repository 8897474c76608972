"""From scores on the canvas to labels in original pixels, and over large pictures by windows with blended borders."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

#: Scores are enlarged in strips of about so many numbers, so that memory does not grow with the picture.
STRIP = 1 << 24
#: Windows in one forward pass.
WINDOWS = 4
#: Columns of windows that are blended together; the windows at a band's border are run twice.
BAND = 8

Spans = Sequence[tuple[int, int]]
Scorer = Callable[[Tensor], Tensor]
"""Image (B, C, H, W) to scores float32 (B, K, H, W)."""


def labels_of(scores: Tensor, several: bool) -> Tensor:
    """Class of the highest score, uint8 (..., H, W), or with ``several`` 1 where a score is above a half.

    Args:
        scores: float (K, H, W), probabilities; K = 1 (binary) gives classes 0 and 1.
        several: Whether a pixel may have several labels: (K, H, W) then.
    """
    if several:
        return (scores > 0.5).to(torch.uint8)
    if len(scores) == 1:
        return (scores[0] > 0.5).to(torch.uint8)
    return scores.argmax(0).to(torch.uint8)


def labels_in_original(scores: Tensor, geometry: Tensor, several: bool) -> Tensor:
    """Bilinearly enlarge scores to the original picture, then decide: uint8 (H, W), or (K, H, W) with ``several``.

    Deciding first and enlarging the labels would give ragged borders. Original pixels that the canvas does not show
    (cropped away) take the scores of the nearest pixel that it does.

    Args:
        scores: float (K, h, w) on the canvas.
        geometry: float (6,), see ``datamodules.geometry``; on any device.
        several: See ``labels_of``.
    """
    height, width, scale_x, scale_y, offset_x, offset_y = (float(v) for v in geometry.tolist())
    size = round(height), round(width)
    if (scale_x, scale_y, offset_x, offset_y) == (1, 1, 0, 0) and size == tuple(scores.shape[1:]):
        return labels_of(scores, several)
    rows = _places(size[0], scale_y, offset_y, scores.shape[1], round(size[0] * scale_y), scores)
    columns = _places(size[1], scale_x, offset_x, scores.shape[2], round(size[1] * scale_x), scores)
    out = scores.new_empty((len(scores), *size) if several else size, dtype=torch.uint8)
    strip = max(1, STRIP // (len(scores) * size[1]))
    for first in range(0, size[0], strip):
        part = _between(scores, 1, *(p[first : first + strip] for p in rows))
        out[..., first : first + strip, :] = labels_of(_between(part, 2, *columns), several)
    return out


def _places(
    size: int, scale: float, offset: float, limit: int, shown: int, like: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """For each original pixel the two canvas pixels around its centre, and the second one's part."""
    place = (torch.arange(size, device=like.device, dtype=torch.float64) + 0.5) * scale + offset - 0.5
    low, high = max(0.0, offset), min(limit, offset + shown) - 1.0  # within the picture: no mixing with the filled rest
    place = place.clamp(low, max(low, high))
    before = place.floor().long()
    return before, (before + 1).clamp(max=limit - 1), (place - before).to(like.dtype)


def _between(scores: Tensor, axis: int, before: Tensor, after: Tensor, part: Tensor) -> Tensor:
    """Linear interpolation along an axis of (K, H, W)."""
    shape = [1, 1, 1]
    shape[axis] = -1
    return torch.lerp(scores.index_select(axis, before), scores.index_select(axis, after), part.view(shape))


def labels_by_tiles(scorer: Scorer, image: Tensor, windows: Tensor, several: bool) -> Tensor:
    """Labels of a picture that is scored window by window; where windows overlap their scores are blended.

    The outer quarter of an overlap counts for nothing, since a net sees too little around it; between, the weight
    rises linearly. Beyond the image and the labels, memory holds the scores of one band of windows and does not grow
    with the picture: bands are ``BAND`` windows wide and are worked off from top to bottom.

    Args:
        scorer: The net, with test-time augmentation where that is wanted.
        image: uint8 or float (C, H, W).
        windows: int64 (T, 4), y1 x1 y2 x2 pixel edges: a grid, in rows from the top left.
        several: See ``labels_of``.

    Returns:
        uint8 (H, W), or (K, H, W) with ``several``, on the image's device.
    """
    rows = sorted({(y1, y2) for y1, _, y2, _ in windows.tolist()})
    columns = sorted({(x1, x2) for _, x1, _, x2 in windows.tolist()})
    labels: Tensor | None = None
    for first in range(0, len(columns), BAND):
        # The windows beside the band are run too: they blend with its first and last.
        beside = columns[max(0, first - 1) : first + BAND + 1]
        left = columns[first][0]
        right = columns[first + BAND][0] if first + BAND < len(columns) else columns[-1][1]
        for top, scores in _rows_of_band(scorer, image, rows, columns, beside, left, right):
            decided = labels_of(scores, several)
            if labels is None:
                labels = decided.new_empty((*decided.shape[:-2], *image.shape[1:]))
            labels[..., top : top + decided.shape[-2], left:right] = decided
    assert labels is not None, "a picture has at least one window"
    return labels


def _rows_of_band(
    scorer: Scorer, image: Tensor, rows: Spans, columns: Spans, beside: Spans, left: int, right: int
) -> Iterator[tuple[int, Tensor]]:
    """First row and blended scores float32 (K, h, right - left) of the parts of a band, from top to bottom."""
    across = [_ramps(columns, span, image.device)[max(0, left - span[0]) : right - span[0]] for span in beside]
    kept: Tensor | None = None  # scores of rows that the windows below will add to
    for number, span in enumerate(rows):
        down = _ramps(rows, span, image.device)[:, None]
        band: Tensor | None = None
        for place, weights, scores in _windows_of_row(scorer, image, span, beside, across):
            if band is None:
                band = scores.new_zeros((len(scores), span[1] - span[0], right - left))
            start = max(left, place[0])
            part = scores[:, :, start - place[0] : min(right, place[1]) - place[0]]
            band[:, :, start - left : start - left + part.shape[2]] += part * (down * weights)
        assert band is not None, "a row has at least one window"
        if kept is not None:
            band[:, : kept.shape[1]] += kept
        end = rows[number + 1][0] if number + 1 < len(rows) else span[1]
        yield span[0], band[:, : end - span[0]]
        kept = band[:, end - span[0] :].clone()


def _windows_of_row(
    scorer: Scorer, image: Tensor, row: tuple[int, int], beside: Spans, across: Sequence[Tensor]
) -> Iterator[tuple[tuple[int, int], Tensor, Tensor]]:
    """Place, weights along the row, and scores of each window of a row; several windows in one pass of the net."""
    for first in range(0, len(beside), WINDOWS):
        group = list(zip(beside[first : first + WINDOWS], across[first : first + WINDOWS], strict=True))
        widths = {right - left for (left, right), _ in group}
        for width in sorted(widths, reverse=True):  # the last window of a row may be narrower
            same = [(place, weights) for place, weights in group if place[1] - place[0] == width]
            images = torch.stack([image[:, row[0] : row[1], left:right] for (left, right), _ in same])
            for (place, weights), scores in zip(same, scorer(images), strict=True):
                yield place, weights, scores


def _ramps(spans: Spans, span: tuple[int, int], device: torch.device) -> Tensor:
    """Weights of the pixels of one of a row of overlapping windows; those of all windows add up to 1 at each pixel."""
    weights = torch.ones(span[1] - span[0], device=device)
    number = spans.index(span)
    if number > 0:
        rising = _ramp(spans[number - 1][1] - span[0], device)
        weights[: len(rising)] = rising
    if number + 1 < len(spans):
        falling = 1 - _ramp(span[1] - spans[number + 1][0], device)
        weights[len(weights) - len(falling) :] = falling
    return weights


def _ramp(overlap: int, device: torch.device) -> Tensor:
    """From 0, in the first quarter of an overlap, linearly to 1, in its last quarter."""
    place = (torch.arange(overlap, device=device) + 0.5) / max(1, overlap)
    return ((place - 0.25) * 2).clamp(0, 1)
