"""Arguments of detectors as frozen dataclasses: the backbone's, which all families share, and the base of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import partial
from itertools import pairwise
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import torch

from datamodules.common.errors import UserError
from tasks.pyramid import Pyramid, create_pyramid

COARSEST = 32  # stride of the deepest map that is taken from a net


@dataclass(frozen=True)
class BackboneArguments:
    """What the task tells of the net below a detector.

    Attributes:
        name: timm's name, or one of ours.
        in_chans: number of input channels.
        pretrained: True for the hub, or a local file of the backbone's weights.
        image_size: height and width of the images, for nets of fixed size.
        drop_path_rate: stochastic depth.
        backbone_args: more arguments of timm's constructor.
        grad_checkpointing: recompute the backbone's activations in the backward pass.
    """

    name: str
    in_chans: int = 3
    pretrained: bool | str = False
    image_size: tuple[int, int] | None = None
    drop_path_rate: float = 0.0
    backbone_args: dict[str, Any] | None = None
    grad_checkpointing: bool = False

    def strides(self) -> list[int]:
        """Strides of the maps that the net has, finest first; without its weights and, where possible, without memory.

        Raises:
            UserError: as `tasks.pyramid.create_pyramid`.
        """
        build = partial(create_pyramid, self.name, in_chans=self.in_chans, backbone_args=self.backbone_args)
        try:
            with torch.device("meta"):
                return build().strides
        except (ValueError, RuntimeError):  # cannot be built there, or is a mistake, which the next line explains
            return build(image_size=self.image_size).strides

    def pyramid(self, strides: Sequence[int]) -> Pyramid:
        """The net's maps of these strides.

        Raises:
            UserError: as `tasks.pyramid.create_pyramid`.
        """
        return create_pyramid(
            self.name,
            in_chans=self.in_chans,
            pretrained=self.pretrained,
            image_size=self.image_size,
            strides=strides,
            drop_path_rate=self.drop_path_rate,
            backbone_args=self.backbone_args,
            grad_checkpointing=self.grad_checkpointing,
        )

    def detection_pyramid(self, finest: int, strides: Sequence[int] | None) -> Pyramid:
        """The net's maps from about stride `finest` to stride 32, or those of `strides`.

        A net that has none of these (CIFAR's) gives its coarsest map. A net of other strides (7, 14, 28) gives those
        that are nearest.

        Raises:
            UserError: as `tasks.pyramid.create_pyramid`; strides that do not double.
        """
        if strides is None:
            available = self.strides()
            strides = [stride for stride in available if finest / 2 < stride <= COARSEST] or [max(available)]
        strides = sorted(strides)
        if any(coarse != 2 * fine for fine, coarse in pairwise(strides)):
            raise UserError(f"model.detector_args.strides is {list(strides)}; each must be twice the one before.")
        return self.pyramid(strides)


@dataclass(frozen=True, kw_only=True)
class DetectorArguments:
    """The base of a family's own arguments, ``model.detector_args``: a subclass lists them with types and defaults.

    Raises:
        UserError: a value of another type than its annotation, naming the key.
    """

    def __post_init__(self) -> None:
        """Compare each value with its annotation."""
        hints = get_type_hints(type(self))
        for field in fields(self):
            value, hint = getattr(self, field.name), hints[field.name]
            if not _fits(value, hint):
                self.refuse(field.name, _described(hint))

    def refuse(self, key: str, expected: str) -> None:
        """Raise the error for a value that makes no sense; `expected` ends "it must be"."""
        value = getattr(self, key)
        shown = list(value) if isinstance(value, tuple) else value
        raise UserError(f"model.detector_args.{key} is {shown!r}; it must be {expected}.")

    def at_least(self, least: int, *keys: str) -> None:
        """Refuse smaller values of these arguments."""
        for key in keys:
            if getattr(self, key) < least:
                self.refuse(key, f"at least {least}")


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of an annotated type; whole numbers are floats too, truth values are no numbers."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return value in inner
    if origin in (Union, UnionType):
        return any(_fits(value, one) for one in inner)
    if origin is Sequence:
        return isinstance(value, list | tuple) and all(_fits(item, inner[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def _described(hint: Any) -> str:
    """A type for a message."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return " or ".join(inner)
    if origin in (Union, UnionType):
        return " or ".join(_described(one) for one in inner)
    if origin is Sequence:
        return "a list of numbers" if inner[0] is float else "a list of whole numbers"
    if origin is dict:
        return "keys with values"
    return {int: "a whole number", float: "a number", bool: "true or false", NoneType: "null"}[hint]
