"""What a task computes for one image."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from tasks.backbones import default_image_size

if TYPE_CHECKING:
    from tasks.base import Task


def attention_flops(query: Any, key: Any, value: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    """Operations of the two products of attention, from the shapes (B, heads, tokens, channels)."""
    batch, heads, queries, channels = query
    return int(2 * batch * heads * queries * key[2] * (channels + value[3]))


#: Fused attention on CPUs, which the counter does not know; that of GPUs it does.
FORMULAS = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention_flops}


def count_flops(task: Task) -> int:
    """Floating-point operations to predict one image, without test-time augmentation.

    Convolutions and matrix products count, attention's too: a multiplication and an addition are two, so the result is
    twice the multiply-accumulates (MACs) that papers and timm publish. What a two-stage detector computes for its
    proposals is counted for those of a gray image.

    Args:
        task: Its network is built. The image has its ``image_size``, or where that is open the backbone's own.
    """
    counter = FlopCounterMode(display=False, custom_mapping=FORMULAS)
    with predicting(task), counter:
        task.infer(gray_image(task))
    return int(counter.get_total_flops())


def gray_image(task: Task, image_size: tuple[int, int] | None = None) -> Tensor:
    """One gray image, float32 (1, C, H, W); of the task's own size, or where that is open the backbone's."""
    height, width = image_size or task.image_height_width or default_image_size(task.backbone)
    return torch.full((1, int(task.in_chans or 3), height, width), 0.5, device=task.mean.device)


@contextmanager
def predicting(task: Task) -> Iterator[None]:
    """In evaluation mode, without gradients and what would hide operations: fused and compiled layers."""
    modes = {module: module.training for module in task.modules()}
    fast_path = torch.backends.mha.get_fastpath_enabled()
    task.eval()
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for module, training in modes.items():
            module.training = training
