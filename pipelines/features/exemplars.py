"""The places of a data set's pictures that make a channel largest, cut out as wide as its units see."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datamodules.common.batch import windows
from datamodules.common.geometry import boxes_to_original
from pipelines.features.clock import Clock
from pipelines.outputs.sheets import Picture, rgb
from tasks.base import Task
from tasks.flops import predicting
from tasks.maps import Box, Map, run_to

FRAME = (255, 215, 0)  # color of the unit's own place
SIDE = 160  # pixels of a crop in reports; smaller ones are enlarged
NARROW = 3  # a crop that is less than so many units wide has no frame


@dataclass(frozen=True)
class Exemplar:
    """One picture's largest activation of a channel.

    Attributes:
        value: The activation.
        path: Of the picture.
        caption: The task's: of a classified image its true class.
        number: The picture's place in the data set.
        unit: Row and column in the map.
        box: What the unit sees, x1 y1 x2 y2 in pixels of the original picture.
        place: The unit's own share of the picture, the same.
        crop: Its pixels as the network saw them, uint8 (h, w, 3), the unit's place framed.
    """

    value: float
    path: str
    caption: str
    number: int
    unit: tuple[int, int]
    box: Box
    place: Box
    crop: Picture


@dataclass
class Found:
    """What was found of one map.

    Attributes:
        map: The map.
        channels: The chosen ones, N.
        exemplars: Of each channel, the largest first; one a picture.
        images: How many pictures were looked at.
        means: Mean over the pictures of the largest activation, of each channel.
    """

    map: Map
    channels: list[int]
    exemplars: list[list[Exemplar]]
    images: int = 0
    means: list[float] = field(default_factory=list)


def find_exemplars(
    task: Task,
    maps: Sequence[Map],
    channels: Sequence[Sequence[int]],
    batches: Iterable[Mapping[str, Any]],
    count: int,
    class_names: list[str],
    clock: Clock,
) -> list[Found]:
    """Look through batches for the largest activations.

    Args:
        task: Its network is built.
        maps: Of ``tasks.maps.list_maps``.
        channels: Of each map.
        batches: Of an evaluation loader, see ``datamodules.common.batch``.
        count: Exemplars a channel.
        class_names: K, for captions.
        clock: No further batch is begun once it is over.
    """
    pairs = zip(maps, channels, strict=True)
    finds = [Found(one, list(chosen), [[] for _ in chosen], means=[0.0] * len(chosen)) for one, chosen in pairs]
    images = 0
    for batch in batches:
        captions = task.captions(dict(batch), None, class_names)
        for places, corners, window in windows(batch):
            with predicting(task):
                outputs = run_to(task, maps, window.to(task.mean.device))
            for found, output in zip(finds, outputs, strict=True):
                each = zip(places, corners, window, strict=True)
                seen = [_Seen(batch, i, corner, image, captions[i]) for i, corner, image in each]
                _add(found, output[:, found.channels].float().cpu(), seen, count)
        images += len(batch["image"])
        if clock.over:
            break
    for found in finds:
        found.images, found.means = images, [total / max(1, images) for total in found.means]
    return finds


@dataclass(frozen=True)
class _Seen:
    """A picture, or a tile of one, as the network sees it: where it comes from, and its pixels (C, h, w)."""

    batch: Mapping[str, Any]
    place: int
    corner: tuple[int, int]
    pixels: Tensor
    caption: str


def _add(found: Found, output: Tensor, seen: Sequence[_Seen], count: int) -> None:
    """Take what is among the largest, from maps (n, N, h, w) of the chosen channels."""
    grid = (output.shape[2], output.shape[3])
    values, places = output.flatten(2).max(2)
    for picture, of_channels, units in zip(seen, values.tolist(), places.tolist(), strict=True):
        parts = len(picture.batch["tiles"][picture.place]) if "tiles" in picture.batch else 1
        for k, (value, unit) in enumerate(zip(of_channels, units, strict=True)):
            found.means[k] += value / parts
            entries = found.exemplars[k]
            if len(entries) < count or value > entries[-1].value:
                _keep(entries, _exemplar(found.map, divmod(unit, grid[1]), grid, value, picture), count)


def _keep(entries: list[Exemplar], new: Exemplar, count: int) -> None:
    """Add an exemplar, of several tiles of one picture the best; earlier pictures win at equal activations."""
    same = next((one for one in entries if one.number == new.number), None)
    if same is not None and same.value >= new.value:
        return
    kept = [one for one in entries if one is not same]
    entries[:] = sorted([*kept, new], key=lambda one: (-one.value, one.number))[:count]


def _exemplar(one: Map, unit: tuple[int, int], grid: tuple[int, int], value: float, seen: _Seen) -> Exemplar:
    shape = (seen.pixels.shape[1], seen.pixels.shape[2])
    box, place = one.seen_by(*unit, grid, shape), one.place_of(*unit, grid, shape)
    both = np.array([box, place], np.float32) + np.array([seen.corner[1], seen.corner[0]] * 2, np.float32)
    batch, i = seen.batch, seen.place
    original = boxes_to_original(both, batch["geometry"][i].cpu().numpy()).round(1).tolist()
    return Exemplar(
        value=value,
        path=str(batch["path"][i]),
        caption=seen.caption,
        number=int(batch["id"][i]),
        unit=unit,
        box=tuple(original[0]),
        place=tuple(original[1]),
        crop=_crop(seen.pixels, box, place),
    )


def _crop(window: Tensor, box: Box, place: Box) -> Picture:
    """The box's pixels, enlarged by a whole number, with a frame around the unit's place where that is small in it."""
    pixels = window if window.dtype == torch.uint8 else (window.float().clamp(0, 1) * 255).round().to(torch.uint8)
    left, top = int(box[0]), int(box[1])
    right, bottom = max(left + 1, int(np.ceil(box[2]))), max(top + 1, int(np.ceil(box[3])))
    crop = rgb(pixels[:, top:bottom, left:right].permute(1, 2, 0).cpu().numpy())
    factor = max(1, SIDE // max(crop.shape[:2]))
    large: NDArray[Any] = cv2.resize(crop, None, fx=factor, fy=factor, interpolation=cv2.INTER_NEAREST)
    if box[2] - box[0] >= NARROW * (place[2] - place[0]):
        start = (round((place[0] - left) * factor), round((place[1] - top) * factor))
        end = (round((place[2] - left) * factor) - 1, round((place[3] - top) * factor) - 1)
        cv2.rectangle(large, start, end, FRAME, 1 + max(large.shape) // 200)
    return np.asarray(large, np.uint8)
