"""What a Trainer needs to know of the device that it runs on."""

from __future__ import annotations

from typing import Any, Literal

import torch
from pytorch_lightning.callbacks import WeightAveraging
from pytorch_lightning.plugins import TorchSyncBatchNorm
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from tasks.backbones import synchronized_norms

#: Without Lightning's "true" half and double precisions: they cast all of a batch, sizes and boxes in pixels, too.
Precision = Literal["auto", "32-true", "16-mixed", "bf16-mixed"]


def resolve_precision(precision: Precision, accelerator: Any) -> Literal["32-true", "16-mixed", "bf16-mixed"]:
    """``auto``: bf16 on a GPU with units for it (not one that emulates it, which is slower than 32 bits)."""
    if precision != "auto":
        return precision
    on_gpu = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    return "bf16-mixed" if on_gpu and torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"


class SyncBatchNorm(TorchSyncBatchNorm):
    """Batch norms over all ranks, as `tasks.backbones.synchronized_norms` makes them."""

    def apply(self, model: nn.Module) -> nn.Module:
        """Put the synchronised layers in; parameters and buffers stay the same ones."""
        return synchronized_norms(model)

    def revert(self, model: nn.Module) -> nn.Module:
        """Nothing: in evaluation the layers do what they were made from, on any device, with the same names."""
        return model


class AveragedWeights(WeightAveraging):
    """An exponential moving average of the weights: average <- decay * average + (1 - decay) * weights, each step.

    Lightning's own default asks the model where it is before that has been moved, so the average would be the CPU's,
    and all weights would travel there in each step (``setup`` in
    https://github.com/Lightning-AI/pytorch-lightning/blob/master/src/lightning/pytorch/callbacks/weight_averaging.py).

    Args:
        decay: Of the average, between 0 and 1.
        device: Where the average lies; that of the training.
    """

    def __init__(self, decay: float, device: torch.device) -> None:
        super().__init__(device=device, multi_avg_fn=get_ema_multi_avg_fn(decay))
