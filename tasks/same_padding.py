"""TensorFlow's padding in networks that are traced for images of any size."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import timm.layers.padding
import torch


def same_padding(x: Any, kernel_size: int, stride: int, dilation: int) -> Any:
    """What timm's ``get_same_padding`` gives for a side of ``x`` pixels, in whole numbers."""
    return torch.sym_max((-(-x // stride) - 1) * stride + (kernel_size - 1) * dilation + 1 - x, 0)


@contextmanager
def whole_numbers() -> Iterator[None]:
    """Let ``pad_type: same`` be traced with open sizes.

    timm rounds a side up by ``math.ceil``, which stays as it is in each layer behind: tracing then takes ten minutes,
    and torch.export cannot write the graph. Of whole numbers what divides is simplified, so that the padding of a side
    that is a multiple of the strides becomes a constant.
    https://github.com/huggingface/pytorch-image-models/blob/main/timm/layers/padding.py
    """
    before = timm.layers.padding.get_same_padding
    timm.layers.padding.get_same_padding = same_padding
    try:
        yield
    finally:
        timm.layers.padding.get_same_padding = before
