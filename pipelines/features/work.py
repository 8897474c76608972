"""All that is found out about a network's features, in the order of what it costs."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datamodules.common.batch import windows
from datamodules.common.errors import UserError
from datamodules.decoding.images import read_image
from pipelines.features.clock import Clock
from pipelines.features.embedding import Embedded, collect
from pipelines.features.exemplars import Found, find_exemplars
from pipelines.features.filters import first_filters
from pipelines.features.optimizing import OCTAVE, SHIFT, Grown, dream, grow, of_channels
from pipelines.features.scores import relevance, scores_of
from pipelines.features.settings import Settings
from pipelines.outputs.sheets import Picture
from tasks.base import Task
from tasks.flops import gray_image, predicting
from tasks.maps import Map, choose_maps, list_maps

LOOKED_AT = 32  # pictures by which the channels are chosen
MOST_CLASSES = 24  # pictures of classes
TOGETHER = 8  # pictures that are grown at once
SMALLEST = 32  # pixels of a side, for units that see little
DREAM_STEPS = 10  # at each size

Batches = Callable[[], Iterable[Mapping[str, Any]]]


@dataclass
class Findings:
    """What was found; what was not asked for, or has no time, is empty.

    Attributes:
        maps: The layers.
        channels: The chosen channels of each.
        relevance: Of them, a layer; empty where the user chose.
        filters: Name of the first convolution, and the sheet.
        exemplars: Of each layer.
        embedded: The set.
        grown: Pictures of each layer, by kind: ``channels`` and ``neurons``.
        classes: Pictures of classes, and which.
        dreams: Of each layer, float32 (C, H, W).
        seconds: That each part took.
        notes: What was left out, and why.
    """

    maps: list[Map] = field(default_factory=list)
    channels: list[list[int]] = field(default_factory=list)
    relevance: list[list[float]] = field(default_factory=list)
    filters: tuple[str, Picture] | None = None
    exemplars: list[Found] = field(default_factory=list)
    embedded: Embedded | None = None
    grown: dict[str, list[Grown]] = field(default_factory=dict)
    classes: tuple[list[int], list[Grown]] = field(default_factory=lambda: ([], []))
    dreams: list[Tensor] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def look_inside(task: Task, batches: Batches, class_names: list[str], asked: Settings, clock: Clock) -> Findings:
    """Find out what is asked for.

    Args:
        task: With its weights.
        batches: Of the pictures, from the beginning at each call.
        class_names: K.
        asked: The arguments.
        clock: Work stops where it says so.

    Raises:
        UserError: If there is no such layer or channel.
    """
    found = Findings(maps=choose_maps(task, list_maps(task), asked.layers))
    for parameter in task.parameters():
        parameter.requires_grad_(False)
    parts: list[tuple[str, Callable[[], None]]] = [
        ("choice", lambda: _choose_channels(task, batches, asked, found)),
        ("filters", lambda: setattr(found, "filters", first_filters(task))),
        ("exemplars", lambda: _exemplars(task, batches, class_names, asked, clock, found)),
        ("embedding", lambda: _embedding(task, batches, class_names, asked, clock, found)),
    ]
    growing = [part for part in ("classes", "channels", "neurons") if part in asked.parts]
    for part in growing:
        left = len(growing) - growing.index(part) + (asked.dream is not None)
        parts.append((part, lambda part=part, left=left: _grow(part, task, asked, clock.share(left), found)))  # type: ignore[misc]
    parts.append(("dream", lambda: _dream(task, asked, clock, found)))
    wanted = {*asked.parts, "choice", *(["dream"] if asked.dream else [])}
    for name, work in parts:
        if name not in wanted:
            continue
        before = clock.spent
        if clock.over and name != "choice":
            found.notes.append(f"{name}: left out, since the time was over")
            continue
        work()
        found.seconds[name] = clock.spent - before
    return found


def _choose_channels(task: Task, batches: Batches, asked: Settings, found: Findings) -> None:
    """The user's channels, or those that matter most for what is predicted."""
    if asked.channels is not None:
        for one in found.maps:
            if wrong := next((k for k in asked.channels if not 0 <= k < one.channels), None):
                last = one.channels - 1
                raise UserError(f"--channels names {wrong}, but {one.name} has channels 0 to {last}.")
        found.channels = [list(asked.channels) for _ in found.maps]
        return
    images = (window.to(task.mean.device) for batch in batches() for _, _, window in windows(batch))
    scores = relevance(task, found.maps, images, LOOKED_AT)
    for score in scores:
        order = score.argsort(descending=True, stable=True)[: asked.num_channels]
        found.channels.append(order.tolist())
        found.relevance.append((score[order] / score.sum().clamp_min(1e-20)).tolist())


def _exemplars(
    task: Task, batches: Batches, class_names: list[str], asked: Settings, clock: Clock, found: Findings
) -> None:
    # Those that are left share the time, so that pictures are made, too.
    mine = clock.share(2 if len(asked.parts) > 1 else 1)
    found.exemplars = find_exemplars(task, found.maps, found.channels, batches(), asked.exemplars, class_names, mine)
    if mine.over:
        found.notes.append(f"exemplars: the time was over after {found.exemplars[0].images} pictures")


def _embedding(
    task: Task, batches: Batches, class_names: list[str], asked: Settings, clock: Clock, found: Findings
) -> None:
    mine = clock.share(2)
    found.embedded = collect(task, batches(), class_names, mine)
    if mine.over:
        found.notes.append(f"embedding: the time was over after {len(found.embedded.paths)} pictures")


def picture_size(task: Task, maps: Sequence[Map], size: int) -> tuple[int, int]:
    """Height and width of grown pictures: that of the network where it takes no other, at most that otherwise.

    Args:
        task: Its network is built.
        maps: What they are grown for; units that see little need no large picture.
        size: Longest side.
    """
    height, width = gray_image(task).shape[2:]
    seen = [max(one.field.height.size, one.field.width.size) for one in maps if not one.sees_all]
    longest = min(size, max(SMALLEST, round(2 * max(seen)))) if len(seen) == len(maps) and seen else size
    factor = min(1.0, longest / max(height, width))
    smaller = max(1, round(height * factor)), max(1, round(width * factor))
    return smaller if takes(task, maps, smaller) else (height, width)


def takes(task: Task, maps: Sequence[Map], size: tuple[int, int]) -> bool:
    """Whether a network takes images of a size other than its own, and gives the maps for them.

    Args:
        task: Its network is built.
        maps: That are to come out; of tokens never, as their positions are of one size.
        size: Height and width.
    """
    image = gray_image(task, size)
    if size == tuple(gray_image(task).shape[2:]):
        return True
    if any(one.layout != "channels_first" for one in maps):
        return False
    try:
        with predicting(task):
            task.infer(image)
    except (RuntimeError, AssertionError, ValueError, IndexError):  # whatever a net says of a size
        return False
    return True


def _seed(asked: Settings, name: str) -> int:
    """A seed of its own for each picture, which does not depend on what else is asked for."""
    return zlib.crc32(f"{asked.seed}/{name}".encode())


def _grow(part: str, task: Task, asked: Settings, clock: Clock, found: Findings) -> None:
    if part == "classes":
        classes = list(range(min(int(task.num_classes or 0), MOST_CLASSES)))
        if len(classes) < int(task.num_classes or 0):
            found.notes.append(f"classes: the first {MOST_CLASSES} of {task.num_classes}")
        found.classes = (classes, _classes(task, classes, picture_size(task, [], asked.size), asked, clock))
        shortened = found.classes[1]
    else:
        shortened = []
        for i, (one, channels) in enumerate(zip(found.maps, found.channels, strict=True)):
            objective = of_channels(task, one, channels, neuron=part == "neurons")
            mine = clock.share(len(found.maps) - i)
            seed, size = _seed(asked, f"{part}/{one.name}"), picture_size(task, [one], asked.size)
            # A unit would see another place than its own.
            shift = SHIFT if part == "channels" else max(1, int(one.field.height.jump) // 4)
            shortened.append(grow(task, objective, len(channels), size, asked.steps, seed, mine, shift))
        found.grown[part] = shortened
    if least := [one.steps for one in shortened if one.steps < asked.steps]:
        found.notes.append(f"{part}: the time was over after {min(least)} of {asked.steps} steps")


def _classes(task: Task, classes: list[int], size: tuple[int, int], asked: Settings, clock: Clock) -> list[Grown]:
    groups = [classes[i : i + TOGETHER] for i in range(0, len(classes), TOGETHER)]
    grown = []
    for i, group in enumerate(groups):

        def objective(image: Tensor, group: list[int] = group) -> Tensor:
            return scores_of(task, image, group)

        mine = clock.share(len(groups) - i)
        grown.append(grow(task, objective, len(group), size, asked.steps, _seed(asked, f"class/{i}"), mine))
    return grown


def _dream(task: Task, asked: Settings, clock: Clock, found: Findings) -> None:
    assert asked.dream is not None, "a part only where it is asked for"
    pixels = read_image(asked.dream, int(task.in_chans or 3), "float32")
    picture = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
    height, width = gray_image(task).shape[2:]
    factor = max(height, width) / max(picture.shape[1:])
    size = (max(1, round(picture.shape[1] * factor)), max(1, round(picture.shape[2] * factor)))
    smallest = round(size[0] / OCTAVE ** (asked.octaves - 1)), round(size[1] / OCTAVE ** (asked.octaves - 1))
    is_fixed = not (takes(task, found.maps, size) and takes(task, found.maps, smallest))
    if is_fixed:
        size = (height, width)
    small = torch.nn.functional.interpolate(picture[None], size, mode="bilinear", antialias=True)[0].clamp(0, 1)
    found.dreams = [small]
    for i, one in enumerate(found.maps):
        mine = clock.share(len(found.maps) - i)
        octaves, seed = 1 if is_fixed else asked.octaves, _seed(asked, f"dream/{one.name}")
        found.dreams.append(dream(task, one, small, octaves, DREAM_STEPS, seed, mine))
        if mine.over:
            found.notes.append(f"dream: the time was over in {one.name}")
