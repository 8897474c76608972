"""What a task computes for one image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
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
    height, width = task.image_size or default_image_size(task.backbone)
    image = torch.full((1, int(task.in_chans or 3), height, width), 0.5, device=task.mean.device)
    counter = FlopCounterMode(display=False, custom_mapping=FORMULAS)
    modes = {module: module.training for module in task.modules()}
    fast_path = torch.backends.mha.get_fastpath_enabled()
    task.eval()
    try:
        # What is hidden from the counter: the fused layers of nn.TransformerEncoder, and compiled code.
        torch.backends.mha.set_fastpath_enabled(False)
        with torch.no_grad(), torch.compiler.set_stance("force_eager"), counter:
            task.infer(image)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for module, training in modes.items():
            module.training = training
    return int(counter.get_total_flops())
