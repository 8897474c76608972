"""Maps that a network computes, whatever their layout: convolutions', those with channels last, and tokens."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor, nn

from datamodules.common.errors import UserError
from tasks.flops import gray_image
from tasks.layers import follow_outputs
from tasks.receptive_field import Axis, Field

if TYPE_CHECKING:
    from tasks.base import Task

Box = tuple[float, float, float, float]
MIDDLE = 4  # blocks of a net of tokens that are shown


@dataclass(frozen=True)
class Map:
    """What a module of the network gives, as a map of units.

    Attributes:
        name: Of the module within the network.
        channels: C.
        height: Units along the height, for an image of ``image``.
        width: Units along the width.
        layout: ``channels_first`` (B, C, h, w), ``channels_last`` (B, h, w, C), ``tokens`` (B, T, C), ``vector``
            (B, C).
        prefix: Tokens in front of those of the map, such as the class token.
        field: What a unit sees.
        image: Height and width of the image that it was computed for.
    """

    name: str
    channels: int
    height: int
    width: int
    layout: Literal["channels_first", "channels_last", "tokens", "vector"]
    prefix: int
    field: Field
    image: tuple[int, int]

    def read(self, output: Tensor, size: tuple[int, int]) -> Tensor:
        """The module's output as (B, C, h, w).

        Args:
            output: As the module gave it.
            size: Height and width of the images.
        """
        if self.layout == "channels_first":
            return output
        if self.layout == "channels_last":
            return output.permute(0, 3, 1, 2)
        if self.layout == "vector":
            return output[:, :, None, None]
        height, width = (round(new * n / old) for new, n, old in zip(size, self.grid, self.image, strict=True))
        tokens: Tensor = output[:, self.prefix :].transpose(1, 2)
        return tokens.reshape(*tokens.shape[:2], height, width)

    @property
    def grid(self) -> tuple[int, int]:
        """``height`` and ``width``."""
        return self.height, self.width

    @property
    def sees_all(self) -> bool:
        """Whether a unit sees the whole image."""
        return self.field.sees_all or self.layout == "vector"

    def seen_by(self, row: int, column: int, grid: tuple[int, int], size: tuple[int, int]) -> Box:
        """What a unit sees: x1 y1 x2 y2 in pixels of the network's input, clipped to it.

        Args:
            row: The unit's.
            column: The unit's.
            grid: Height and width of the map.
            size: Height and width of the image.
        """
        if self.sees_all:
            return 0.0, 0.0, float(size[1]), float(size[0])
        return self._around(row, column, grid, size, (self.field.height.size, self.field.width.size))

    def place_of(self, row: int, column: int, grid: tuple[int, int], size: tuple[int, int]) -> Box:
        """The unit's own share of the image, as wide as the distance between units; otherwise as ``seen_by``."""
        jumps = (_step(self.field.height, grid[0], size[0])[0], _step(self.field.width, grid[1], size[1])[0])
        return self._around(row, column, grid, size, jumps)

    def _around(
        self, row: int, column: int, grid: tuple[int, int], size: tuple[int, int], sides: tuple[float, float]
    ) -> Box:
        ends = []
        axes = (self.field.height, self.field.width)
        for axis, place, units, length, side in zip(axes, (row, column), grid, size, sides, strict=True):
            jump, center = _step(axis, units, length)
            middle = center + place * jump
            ends.append((max(0.0, middle - side / 2), min(float(length), middle + side / 2)))
        return ends[1][0], ends[0][0], ends[1][1], ends[0][1]


def _step(axis: Axis, units: int, length: int) -> tuple[float, float]:
    """Distance of units and center of the first; in equal parts where the field does not say, as in Swin."""
    if abs(axis.jump * units - length) <= max(axis.jump, axis.size / 2):
        return axis.jump, axis.center
    return length / units, length / units / 2


def list_maps(task: Task, image_size: tuple[int, int] | None = None) -> list[Map]:
    """The maps of a task's network, in the order in which they are complete; vectors as maps of one unit.

    Args:
        task: Its network is built.
        image_size: As for ``tasks.layers.list_layers``.
    """
    height, width = gray_image(task, image_size).shape[2:]
    found = []
    for name, (shape, field) in follow_outputs(task, image_size).items():
        if field is not None and name and shape[:1] == (1,) and (one := _map_of(name, shape, field, (height, width))):
            found.append(one)
    return found


def _map_of(name: str, shape: tuple[int, ...], field: Field, image: tuple[int, int]) -> Map | None:
    if len(shape) == 2:
        return Map(name, shape[1], 1, 1, "vector", 0, field, image)
    if len(shape) == 3:
        height, width = (
            max(1, round(n / axis.jump)) for n, axis in zip(image, (field.height, field.width), strict=True)
        )
        if 0 <= shape[1] - height * width <= MIDDLE + 4:  # class, distillation and register tokens
            return Map(name, shape[2], height, width, "tokens", shape[1] - height * width, field, image)
        return None
    if len(shape) != 4:
        return None
    last = shape[3] == field.channels != shape[1] or (shape[1] != field.channels and _is_like(image, shape[1:3]))
    if last:
        return Map(name, shape[3], shape[1], shape[2], "channels_last", 0, field, image)
    return Map(name, shape[1], shape[2], shape[3], "channels_first", 0, field, image)


def _is_like(image: tuple[int, int], sides: Sequence[int]) -> bool:
    """Whether two sides are in the image's proportion, to a unit."""
    return abs(sides[0] * image[1] / image[0] - sides[1]) <= 1


def choose_maps(task: Task, maps: Sequence[Map], names: Sequence[str] | None = None) -> list[Map]:
    """The maps of these names; without names the ends of the backbone's stages, of a net of tokens some blocks.

    Args:
        task: Whose maps they are.
        maps: Of ``list_maps``.
        names: Modules of the network.

    Raises:
        UserError: If a name is none of a map.
    """
    known = {one.name: one for one in maps}
    if names is None:
        return _ends_of_stages([known[name] for name in _stages(task) if name in known], maps)
    if missing := next((name for name in names if name not in known), None):
        near = difflib.get_close_matches(missing, known, 3, 0.3) or list(known)[:5]
        raise UserError(
            f"--layers names '{missing}', which is no layer with a map; there are {', '.join(near)}, ..."
            " (`summary --ckpt_path FILE` shows all)."
        )
    return [known[name] for name in dict.fromkeys(names)]


def _stages(task: Task) -> list[str]:
    """Modules that timm says are ends of stages, by their names within the network."""
    found = []
    for name, module in task.network.named_modules():
        info = getattr(module, "feature_info", None)
        entries = getattr(info, "info", info)
        for entry in entries if isinstance(entries, list | tuple) else ():
            inside = entry.get("module") if isinstance(entry, dict) else None
            found += [f"{name}.{inside}".lstrip(".")] if inside else []
    return list(dict.fromkeys(found))


def _ends_of_stages(stages: Sequence[Map], maps: Sequence[Map]) -> list[Map]:
    """One map a resolution, from fine to coarse: of a stage, or else of the modules that are nested least, the last."""
    stages = [one for one in stages if one.height * one.width > 1]
    finest = max((one.height for one in stages), default=0)
    of_grid: dict[tuple[int, int], list[Map]] = {}
    for one in stages or maps:
        if one.layout != "vector" and one.height * one.width > 1:
            of_grid.setdefault(one.grid, []).append(one)
    chosen = []
    for _, group in sorted(of_grid.items(), reverse=True):
        least = min(one.name.count(".") for one in group)
        level = [one for one in group if one.name.count(".") == least]
        chosen += _spread(level) if finest and len(level) > MIDDLE else level[-1:]
    return chosen


def _spread(blocks: Sequence[Map]) -> list[Map]:
    """Some of the blocks at equal distances, the last one among them."""
    places = {round((i + 1) * len(blocks) / MIDDLE) - 1 for i in range(MIDDLE)}
    return [blocks[i] for i in sorted(places)]


class Reached(Exception):
    """Raised inside a network once all maps are there."""


@contextmanager
def tapped(task: Task, maps: Sequence[Map], stop: bool = False) -> Iterator[dict[str, Tensor]]:
    """Inside it, each call of the network fills a dict: the maps' first outputs by name, with their gradient's way.

    The network goes on with a copy, since the next layer may change what it gets in place.

    Args:
        task: Its network is built.
        maps: Of ``list_maps``.
        stop: End the network's call by ``Reached`` once all maps are there, which ``run_to`` catches.
    """
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(module: nn.Module, _: Any, output: Tensor) -> Tensor | None:
            if name in found:
                return None
            found[name] = output
            if stop and len(found) == len(maps):
                raise Reached
            return output.clone()

        return hook

    handles = [task.network.get_submodule(one.name).register_forward_hook(keep(one.name)) for one in maps]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def run_to(task: Task, maps: Sequence[Map], image: Tensor) -> list[Tensor]:
    """The maps of images, (B, C, h, w) each; the network runs no further than to the last of them.

    Args:
        task: Its network is built.
        maps: Of ``list_maps``.
        image: uint8 (B, C, H, W), or float in [0, 1].
    """
    size = (image.shape[2], image.shape[3])
    with tapped(task, maps, stop=True) as found, suppress(Reached):
        task.infer(image)
    return [one.read(found[one.name], size) for one in maps]
