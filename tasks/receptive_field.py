"""The theoretical receptive field of every map that a network computes.

The arithmetic is that of Araujo, Norris and Sim, "Computing Receptive Fields of Convolutional Neural Networks", Distill
2019, https://distill.pub/2019/computing-receptive-fields/. It is followed through the operations as they run, so that a
network needs no description of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode


@dataclass(frozen=True)
class Axis:
    """The field along one side of the image, in pixels of the network's input.

    Attributes:
        size: Pixels that a unit sees.
        jump: Pixels between two neighboring units.
        center: Center of what the first unit sees; that of the first pixel is 0.5.
    """

    size: float = 1.0
    jump: float = 1.0
    center: float = 0.5

    def after(self, kernel: int, stride: int, padding: float, dilation: int = 1) -> Axis:
        """Behind a convolution or a pooling."""
        reach = dilation * (kernel - 1)
        center = self.center + (reach / 2 - padding) * self.jump
        return Axis(self.size + reach * self.jump, self.jump * stride, center)

    def upsampled(self, factor: float, taps: int) -> Axis:
        """Behind an enlargement in which each new unit is made of ``taps`` old ones."""
        jump = self.jump / factor
        return Axis(self.size + (taps - 1) * self.jump, jump, self.center - (self.jump - jump) / 2)

    def joined(self, other: Axis) -> Axis:
        """What both see together, where maps are added or stacked."""
        first = min(self.center - self.size / 2, other.center - other.size / 2)
        last = max(self.center + self.size / 2, other.center + other.size / 2)
        return Axis(last - first, min(self.jump, other.jump), (first + last) / 2)


@dataclass(frozen=True)
class Field:
    """The field of a map.

    Attributes:
        height: Along the height.
        width: Along the width.
        sees_all: Whether attention, pooling over the map or a layer over positions lets each unit see the whole image;
            ``height`` and ``width`` are then what convolutions and poolings see without it.
        channels: Of the last convolution or linear layer.
    """

    height: Axis = Axis()
    width: Axis = Axis()
    sees_all: bool = False
    channels: int = 0

    def joined(self, other: Field) -> Field:
        """What both see together."""
        height, width = self.height.joined(other.height), self.width.joined(other.width)
        return Field(height, width, self.sees_all or other.sees_all, max(self.channels, other.channels))

    def along(self, change: Callable[[Axis, int], Axis]) -> Field:
        """Changed along both sides, by a function of the axis and its number."""
        return replace(self, height=change(self.height, 0), width=change(self.width, 1))


def field_of(value: Any) -> Field | None:
    """The field of a tensor that was computed inside ``FollowFields``, or what several see together; None of others."""
    found: Field | None = None
    for tensor in _tensors(value):
        field = getattr(tensor, "receptive_field", None)
        if field is not None:
            found = field if found is None else found.joined(field)
    return found


class FollowFields(TorchFunctionMode):
    """Inside it, what is computed from an image knows its field; ``field_of`` reads it.

    Args:
        image: The network's input, (B, C, H, W).
    """

    def __init__(self, image: Tensor) -> None:
        super().__init__()
        image.receptive_field = Field()  # type: ignore[attr-defined]

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation, and give its result the field of what went in."""
        given = kwargs or {}
        before = field_of((*args, *given.values()))
        result = func(*args, **given)
        if before is not None:
            after = _field_behind(getattr(func, "__name__", ""), before, args, given, result)
            for tensor in _tensors(result):
                tensor.receptive_field = after  # type: ignore[attr-defined]
        return result


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


#: Operations in which each position meets all others.
ATTENTION = {"scaled_dot_product_attention", "multi_head_attention_forward", "_native_multi_head_attention"}
PRODUCTS = {"matmul", "__matmul__", "bmm", "baddbmm", "einsum"}
REDUCTIONS = {"mean", "sum", "amax", "max", "std", "var"}


def _field_behind(name: str, before: Field, args: Sequence[Any], given: dict[str, Any], result: Any) -> Field:
    if name in ("conv1d", "conv2d"):
        return _convolved(before, args, given)
    if name == "conv_transpose2d":
        return _transposed(before, args, given)
    if "unpool" in name:
        return _enlarged(before, args, {"mode": "nearest"}, result)
    if "pool" in name:
        return _pooled(name, before, args, given, result)
    if name == "pad":
        return _padded(before, *_filled(args, given, ("pad",))[:2])
    if name in ("interpolate", "upsample"):
        return _enlarged(before, args, given, result)
    if name in ATTENTION or (name in PRODUCTS and _mixes_positions(args)):
        return replace(before, sees_all=True)
    if name in REDUCTIONS and _drops_positions(args, result):
        return replace(before, sees_all=True)
    if name == "linear":
        sees_all = before.sees_all or not _is_over_channels(args[0], before.channels)
        return replace(before, sees_all=sees_all, channels=result.shape[-1])
    return before


def _convolved(before: Field, args: Sequence[Any], given: dict[str, Any]) -> Field:
    _, weight, _, stride, padding, dilation, *_ = _filled(args, given, ("bias", "stride", "padding", "dilation"))
    kernel = _pair(tuple(weight.shape[2:]))
    strides, dilations = _pair(stride or 1), _pair(dilation or 1)
    paddings = _paddings(padding or 0, kernel, dilations)
    after = before.along(lambda axis, i: axis.after(kernel[i], strides[i], paddings[i], dilations[i]))
    return replace(after, channels=weight.shape[0])


def _transposed(before: Field, args: Sequence[Any], given: dict[str, Any]) -> Field:
    _, weight, _, stride, *_ = _filled(args, given, ("bias", "stride"))
    strides, kernel = _pair(stride or 1), _pair(tuple(weight.shape[2:]))
    after = before.along(lambda axis, i: axis.upsampled(strides[i], math.ceil(kernel[i] / strides[i])))
    return replace(after, channels=weight.shape[1])


def _pooled(name: str, before: Field, args: Sequence[Any], given: dict[str, Any], result: Any) -> Field:
    if "adaptive" in name:
        (height, width), (new_height, new_width) = args[0].shape[-2:], next(_tensors(result)).shape[-2:]
        if (new_height, new_width) == (height, width):
            return before
        if height % new_height or width % new_width or (new_height, new_width) == (1, 1):
            return replace(before, sees_all=True)
        kernel = strides = (height // new_height, width // new_width)
        paddings = (0.0, 0.0)
    else:
        _, size, stride, padding, *_ = _filled(args, given, ("kernel_size", "stride", "padding"))
        kernel = _pair(size)
        strides, paddings = _pair(stride or size), _pair(padding or 0)
    return before.along(lambda axis, i: axis.after(kernel[i], strides[i], paddings[i]))


def _padded(before: Field, value: Any, pad: Sequence[int]) -> Field:
    """Behind a padding of its own, as timm's for TensorFlow's nets; ``pad``: left, right, top, bottom."""
    if value.dim() != 4 or len(pad) != 4:
        return before  # not that of a map (B, C, H, W)
    return before.along(lambda axis, i: replace(axis, center=axis.center - (pad[2], pad[0])[i] * axis.jump))


def _enlarged(before: Field, args: Sequence[Any], given: dict[str, Any], result: Any) -> Field:
    (height, width), (new_height, new_width) = args[0].shape[-2:], result.shape[-2:]
    mode = given.get("mode", args[3] if len(args) > 3 else "nearest")
    taps = {"bilinear": 2, "bicubic": 4}.get(mode, 1)
    factors = (new_height / height, new_width / width)
    return before.along(lambda axis, i: axis.upsampled(factors[i], 1 if factors[i] == 1 else taps))


def _mixes_positions(args: Sequence[Any]) -> bool:
    """Whether both sides of a product come from the image, as in attention."""
    return sum(field_of(arg) is not None for arg in args) > 1


def _drops_positions(args: Sequence[Any], result: Any) -> bool:
    """Whether a reduction leaves one value where there was a map."""
    value, reduced = args[0], next(_tensors(result), None)
    if not isinstance(value, Tensor) or reduced is None or value.dim() < 3:
        return False
    return reduced.numel() * max(value.shape[1:-1]) <= value.numel() and reduced.dim() <= value.dim()


def _is_over_channels(value: Tensor, channels: int) -> bool:
    """Whether the last dimension holds channels, not positions swapped with them or a flattened map."""
    return value.shape[-1] == channels or (value.dim() > 2 and value.stride(-1) == 1)


def _filled(args: Sequence[Any], given: dict[str, Any], names: Sequence[str]) -> list[Any]:
    """Positional and keyword arguments in one list; ``names`` are those behind the first, or the first two."""
    lead = 2 if names[0] == "bias" else 1
    values = list(args[: lead + len(names)])
    if lead == 2 and len(values) == 1:
        values.append(given["weight"])
    return values + [given.get(name) for name in names[len(values) - lead :]]


def _pair(value: Any) -> tuple[int, int]:
    """One number for both sides, or one a side; a convolution along one dimension has the same for both."""
    if isinstance(value, int):
        return value, value
    return (value[0], value[0]) if len(value) == 1 else (value[0], value[1])


def _paddings(padding: Any, kernel: tuple[int, int], dilation: tuple[int, int]) -> tuple[float, float]:
    if padding == "same":
        return dilation[0] * (kernel[0] - 1) / 2, dilation[1] * (kernel[1] - 1) / 2
    return (0.0, 0.0) if padding == "valid" else _pair(padding)
