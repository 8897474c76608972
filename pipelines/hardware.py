"""What a Trainer needs to know of the device that it runs on."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path
from typing import Any, Literal

import torch
from pytorch_lightning.callbacks import WeightAveraging
from pytorch_lightning.plugins import TorchSyncBatchNorm
from torch import Tensor, nn

from tasks.backbones import synchronized_norms

#: A container's limit and use of memory, in both versions of Linux's control groups.
CGROUP = (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"))
#: Without Lightning's "true" half and double precisions: they cast all of a batch, sizes and boxes in pixels, too.
Precision = Literal["auto", "32-true", "16-mixed", "bf16-mixed"]


def resolve_precision(precision: Precision, accelerator: Any) -> Literal["32-true", "16-mixed", "bf16-mixed"]:
    """``auto``: bf16 on a GPU with units for it (not one that emulates it, which is slower than 32 bits)."""
    if precision != "auto":
        return precision
    on_gpu = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    return "bf16-mixed" if on_gpu and torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"


def memory() -> tuple[int, int]:
    """Bytes of memory that this process may use at most, and of these the free ones; a container's limit counts."""
    page = os.sysconf("SC_PAGE_SIZE")
    total, free = page * os.sysconf("SC_PHYS_PAGES"), page * os.sysconf("SC_AVPHYS_PAGES")
    available = number_in(Path("/proc/meminfo"), "MemAvailable:")
    free = free if available is None else available * 1024
    for name, used in CGROUP:
        limit, now = (number_in(Path("/sys/fs/cgroup") / file) for file in (name, used))
        if limit is not None and now is not None and limit < total:
            total, free = limit, min(free, limit - now)
    return total, free


def number_in(file: Path, key: str | None = None) -> int | None:
    """The number in a file, or behind a key in it; None where there is none."""
    try:
        words = file.read_text().split()
        return int(words[0 if key is None else words.index(key) + 1])
    except (OSError, ValueError, IndexError):
        return None


def resident() -> int:
    """The most bytes that this process has had in memory."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def most_used(device: torch.device) -> int:
    """The most bytes that were taken on a device: of a GPU those reserved since its counter was reset."""
    return torch.cuda.max_memory_reserved(device) if device.type == "cuda" else resident()


class SyncBatchNorm(TorchSyncBatchNorm):
    """Batch norms over all ranks, as `tasks.backbones.synchronized_norms` makes them."""

    def apply(self, model: nn.Module) -> nn.Module:
        """Put the synchronized layers in; parameters and buffers stay the same ones."""
        return synchronized_norms(model)

    def revert(self, model: nn.Module) -> nn.Module:
        """Nothing: in evaluation the layers do what they were made from, on any device, with the same names."""
        return model


class AveragedWeights(WeightAveraging):
    """An exponential moving average of the weights: average <- d * average + (1 - d) * weights, each step.

    In optimizer step t, d is min(decay, (1 + t) / (10 + t)): with a constant 0.999 the average of a run of 40 steps
    would be its first weights, which have learned nothing.

    Lightning's own default asks the model where it is before that has been moved, so the average would be the CPU's,
    and all weights would travel there in each step (``setup`` in
    https://github.com/Lightning-AI/pytorch-lightning/blob/master/src/lightning/pytorch/callbacks/weight_averaging.py).

    Args:
        decay: What d rises to, between 0 and 1.
        device: Where the average lies; that of the training.
    """

    def __init__(self, decay: float, device: torch.device) -> None:
        super().__init__(device=device, multi_avg_fn=self._average)
        self.decay = decay

    def ramped(self) -> float:
        """The decay of the next update; by a count that checkpoints keep and that lies not on the device."""
        step = int(self._latest_update_step)
        return min(self.decay, (1 + step) / (10 + step))

    @torch.no_grad()
    def _average(self, averages: Any, weights: Any, _: Tensor | int) -> None:
        if averages[0].is_floating_point():
            torch._foreach_lerp_(averages, weights, 1 - self.ramped())
        else:  # counts of batches
            torch._foreach_copy_(averages, weights)
