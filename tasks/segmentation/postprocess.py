"""From scores on the canvas to labels in original pixels, and over large pictures by windows with blended borders."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from datamodules.common.geometry import original_size

#: Scores are enlarged in strips of about so many numbers, so that memory does not grow with the picture.
STRIP = 1 << 24
#: Windows in one forward pass.
WINDOWS = 4
#: Columns of windows that are blended together; the last ones of a band are run again for the next band.
BAND = 6

Spans = Sequence[tuple[int, int]]
Scorer = Callable[[Tensor], Tensor]
"""Image (B, C, H, W) to scores float32 (B, K, H, W)."""


def labels_of(scores: Tensor, multi_label: bool, confidence: int = 0) -> Tensor:
    """Class of the highest score, uint8 (..., H, W), or with ``multi_label`` 1 where a score is above a half.

    Args:
        scores: float (K, H, W), probabilities; K = 1 (binary) gives classes 0 and 1.
        multi_label: Whether a pixel may have several labels: (K, H, W) then.
        confidence: For one label a pixel: of how many classes the probability is given. 1: uint8 (2, H, W), the class
            and its probability in parts of 255, rounded down. 2: uint8 (4, H, W), the same of the next class, too.
    """
    if multi_label:
        return (scores > 0.5).to(torch.uint8)
    labels = (scores[0] > 0.5 if len(scores) == 1 else scores.argmax(0)).to(torch.uint8)
    if not confidence:
        return labels
    sure = torch.maximum(scores[0], 1 - scores[0]) if len(scores) == 1 else scores.amax(0)
    planes = [labels, _in_255(sure)]
    if confidence > 1:
        if len(scores) == 1:
            planes += [1 - labels, _in_255(1 - sure)]
        else:
            others = scores.scatter(0, labels.long().unsqueeze(0), -1.0)
            planes += [others.argmax(0).to(torch.uint8), _in_255(others.amax(0))]
    return torch.stack(planes)


def _in_255(probability: Tensor) -> Tensor:
    return (probability.clamp(0, 1) * 255).to(torch.uint8)


def labels_in_original(scores: Tensor, geometry: Tensor, multi_label: bool, confidence: int = 0) -> Tensor:
    """Bilinearly enlarge scores to the original picture, then decide: uint8 (H, W), or (K, H, W) with ``multi_label``.

    Deciding first and enlarging the labels would give ragged borders. Original pixels that the canvas does not show
    (cropped away) take the scores of the nearest pixel that it does.

    Args:
        scores: float (K, h, w) on the canvas.
        geometry: float (6,), see ``datamodules.common.geometry``; on any device.
        multi_label: See ``labels_of``.
        confidence: The same: (2, H, W) or (4, H, W) then.
    """
    size = original_size(geometry)
    scale_x, scale_y, offset_x, offset_y = geometry[2:].tolist()
    if (scale_x, scale_y, offset_x, offset_y) == (1, 1, 0, 0) and size == tuple(scores.shape[1:]):
        return labels_of(scores, multi_label, confidence)
    rows = _places(size[0], scale_y, offset_y, scores.shape[1], round(size[0] * scale_y), scores)
    columns = _places(size[1], scale_x, offset_x, scores.shape[2], round(size[1] * scale_x), scores)
    maps = (len(scores),) if multi_label else (2 * confidence,) if confidence else ()
    out = scores.new_empty((*maps, *size), dtype=torch.uint8)
    strip = max(1, STRIP // (len(scores) * size[1]))
    for first in range(0, size[0], strip):
        part = _between(scores, 1, *(p[first : first + strip] for p in rows))
        out[..., first : first + strip, :] = labels_of(_between(part, 2, *columns), multi_label, confidence)
    return out


def _places(
    size: int, scale: float, offset: float, limit: int, shown: int, like: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """For each original pixel the two canvas pixels around its center, and the second one's part."""
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


def labels_by_tiles(scorer: Scorer, image: Tensor, windows: Tensor, multi_label: bool, confidence: int = 0) -> Tensor:
    """Labels of a picture that is scored window by window; where windows overlap their scores are blended.

    The outer quarter of an overlap counts for nothing, since a net sees too little around it; between, the weight
    rises linearly. Labels are decided as soon as no other window adds to a pixel. Beyond the image and the labels,
    memory holds the scores of a few windows and of the overlaps that wait for their other half; it does not grow with
    the picture, since this is cut into bands ``BAND`` windows wide, which are worked off from top to bottom.

    Args:
        scorer: The net, with test-time augmentation where that is wanted.
        image: uint8 or float (C, H, W).
        windows: int64 (T, 4), y1 x1 y2 x2 pixel edges: a grid, in rows from the top left.
        multi_label: See ``labels_of``.
        confidence: The same.

    Returns:
        uint8 (H, W), (K, H, W) with ``multi_label``, or (2 or 4, H, W) with ``confidence``, on the image's device.
    """
    rows = sorted({(y1, y2) for y1, _, y2, _ in windows.tolist()})
    columns = sorted({(x1, x2) for _, x1, _, x2 in windows.tolist()})
    labels: Tensor | None = None
    for first in range(0, len(columns), BAND):
        for top, left, scores in _blended(scorer, image, rows, columns, first):
            decided = labels_of(scores, multi_label, confidence)
            if labels is None:
                labels = decided.new_empty((*decided.shape[:-2], *image.shape[1:]))
            labels[..., top : top + decided.shape[-2], left : left + decided.shape[-1]] = decided
    assert labels is not None, "a picture has at least one window"
    return labels


def _blended(
    scorer: Scorer, image: Tensor, rows: Spans, columns: Spans, first: int
) -> Iterator[tuple[int, int, Tensor]]:
    """Top, left and blended scores float32 (K, h, w) of the parts of the band that begins with column ``first``.

    What a window shares with the one to its right and with the row below is kept until those have added theirs.
    """
    left = columns[first][0]
    width = (columns[first + BAND][0] if first + BAND < len(columns) else columns[-1][1]) - left
    # The window to the left is run again, for its share in the band's first overlap.
    band = columns[max(0, first - 1) : first + BAND]
    across = [_ramps(columns, span, image.device) for span in band]
    overlap = rows[0][1] - rows[1][0] if len(rows) > 1 else 0
    below: Tensor | None = None  # (K, overlap, width): what the rows so far have of those beneath
    for number, (top, bottom) in enumerate(rows):
        down = _ramps(rows, (top, bottom), image.device)[:, None]
        end = rows[number + 1][0] if number + 1 < len(rows) else bottom  # no later row adds above it
        beside: Tensor | None = None  # (K, h, overlap): what the windows so far have of the next one's columns
        for (start, stop), weights, scores in _windows_of_row(scorer, image, (top, bottom), band, across):
            part = scores * (down * weights)
            del scores  # or it would keep those of all windows of its pass while the next pass runs
            if beside is not None:
                part[:, :, : beside.shape[2]] += beside
            done = min([x1 for x1, _ in columns if x1 > start], default=stop) - start
            beside = part[:, :, done:].clone()
            if start < left:
                continue
            part = part[:, :, :done]
            if below is None:
                below = part.new_zeros((len(part), overlap, width))
            shared = below[:, :, start - left : start - left + done]
            part[:, :overlap] += shared
            if end < bottom:
                shared.copy_(part[:, end - top :])
            yield top, start, part[:, : end - top]


def _windows_of_row(
    scorer: Scorer, image: Tensor, row: tuple[int, int], band: Spans, across: Sequence[Tensor]
) -> Iterator[tuple[tuple[int, int], Tensor, Tensor]]:
    """Place, weights along the row, and scores of each window of a row; several windows in one pass of the net."""
    for first in range(0, len(band), WINDOWS):
        group = list(zip(band[first : first + WINDOWS], across[first : first + WINDOWS], strict=True))
        widths = {right - left for (left, right), _ in group}
        for width in sorted(widths, reverse=True):  # the last window of a row may be narrower
            same = [(place, weights) for place, weights in group if place[1] - place[0] == width]
            images = torch.stack([image[:, row[0] : row[1], left:right] for (left, right), _ in same])
            yield from ((*one, scores) for one, scores in zip(same, scorer(images), strict=True))


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


def resized(image: Tensor, scale: float) -> Tensor:
    """A batch of images of the same dtype, its sides multiplied by ``scale``."""
    size = [max(1, round(side * scale)) for side in image.shape[2:]]
    enlarged = F.interpolate(image.float(), size, mode="bilinear", antialias=scale < 1)
    return enlarged.round().to(image.dtype) if image.dtype == torch.uint8 else enlarged


def log_probabilities(scores: Tensor) -> Tensor:
    """Logits up to a constant, (B, K, ...), of class probabilities; of one probability those of two classes."""
    both = torch.cat([1 - scores, scores], 1) if scores.shape[1] == 1 else scores
    return both.clamp_min(1e-12).log()
