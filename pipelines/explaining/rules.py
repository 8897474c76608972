"""The rules of relevance propagation: layers that compute what they always do, in a form whose gradient is the rule.

What comes back to a unit as its gradient is its relevance divided by its activation. See ``relevance``.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

TINY = 1e-12
#: How far from 0 units are kept: where a bias alone makes a unit, all that it sees may be 0, which could get nothing.
FLOOR = 1e-6


def off_zero(x: Tensor) -> Tensor:
    """At least ``FLOOR`` away from 0."""
    return torch.where(x.abs() < FLOOR, FLOOR, x)


def handed_on(x: Tensor, y: Tensor) -> Tensor:
    """``y``; each unit of ``x`` gets all of its unit's relevance."""
    return with_value(x * (y / safe(x)).detach(), y)


def safe(x: Tensor) -> Tensor:
    """What can be divided by: at least ``TINY`` away from 0."""
    return torch.where(x >= 0, x.clamp(min=TINY), x.clamp(max=-TINY))


def with_value(slope: Tensor, value: Tensor) -> Tensor:
    """``value``, with the gradient of ``slope``."""
    return value.detach() + (slope - slope.detach())


class Layer:
    """A convolution or linear layer, with changed weights and without its bias."""

    def __init__(self, module: nn.Module, scale: Tensor | None) -> None:
        self.plain = copy.copy(module)  # its `forward` stays what it is
        self.plain.__dict__.pop("forward", None)
        weight: Tensor = module.weight.detach()  # type: ignore[assignment, operator]
        if scale is not None:
            axis = 1 if isinstance(module, nn.ConvTranspose2d) else 0
            groups = int(getattr(module, "groups", 1)) if axis else 1
            shape = [1] * weight.ndim
            shape[axis] = -1
            weight = weight * scale.view(shape) if groups == 1 else weight
        self.weight = weight
        self.usual = module.forward

    def without_bias(self, x: Tensor, weight: Tensor) -> Tensor:
        """The layer with other weights."""
        values = {"weight": weight}
        if getattr(self.plain, "bias", None) is not None:
            values["bias"] = torch.zeros_like(self.plain.bias)  # type: ignore[arg-type]
        found: Tensor = torch.func.functional_call(self.plain, values, (x,))
        return found

    def shared(self, parts: Tensor, x: Tensor) -> Tensor:
        """The layer's output, with the relevance shared in proportion to ``parts``; where these are 0 it is lost."""
        value = off_zero(self.usual(x).detach())  # else a norm behind it could hand nothing on
        return with_value(parts * torch.where(parts.abs() > TINY, value / safe(parts), 0).detach(), value)

    def proportional(self, x: Tensor) -> Tensor:
        """LRP-0."""
        return self.shared(self.without_bias(x, self.weight), x)

    def positive(self, x: Tensor) -> Tensor:
        """Alpha 1, beta 0; where nothing adds, in proportion to what each input takes away."""
        up = self.without_bias(x.clamp(min=0), self.weight.clamp(min=0))
        up = up + self.without_bias(x.clamp(max=0), self.weight.clamp(max=0))
        return self.shared(torch.where(up > TINY, up, self.without_bias(x, self.weight)), x)

    def bounded(self, x: Tensor, low: Tensor, high: Tensor, seen: list[Tensor]) -> Tensor:
        """z^B, of pixels between two values; these get their share too, which counts as the pixels'."""
        leaves = [part.detach().expand_as(x).clone().requires_grad_() for part in (x, low, high)]
        seen += leaves
        middle, black, white = leaves
        parts = self.without_bias(middle, self.weight) - self.without_bias(black, self.weight.clamp(min=0))
        return self.shared(parts - self.without_bias(white, self.weight.clamp(max=0)), x)
