"""What keeps a run exact: keyed seeds for each step, and one state on all ranks for evaluation."""

from __future__ import annotations

import os
import random

import numpy as np
import torch
from pytorch_lightning import LightningModule
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel


def same_buffers_on_all_ranks(module: LightningModule, *, start: bool) -> None:
    """Give all ranks rank 0's buffers once, and keep DDP from doing so in each forward of the evaluation.

    Ranks may have different numbers of evaluation batches (nothing is padded), so a collective call in ``forward``
    would hang: https://github.com/pytorch/pytorch/blob/main/torch/nn/parallel/distributed.py (_sync_buffers).

    Args:
        module: The module that is trained; nothing happens without DDP.
        start: True before the evaluation, False after it.
    """
    wrapper = module.trainer.strategy.model
    if not isinstance(wrapper, DistributedDataParallel):
        return
    # No public switch: `DDPStrategy(broadcast_buffers=False)` would also stop it in training, where the trainer's
    # strategy is the user's. tests/tasks/test_reproducibility.py fails when torch's attribute changes.
    wrapper.require_forward_param_sync = not start
    if start:
        broadcast_buffers(list(module.buffers()))


def broadcast_buffers(buffers: list[Tensor]) -> None:
    """Give all ranks rank 0's values, one message for each dtype; nothing happens on one process."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return
    for dtype in sorted({buffer.dtype for buffer in buffers}, key=str):
        same = [buffer for buffer in buffers if buffer.dtype == dtype]
        flat = torch.cat([buffer.flatten() for buffer in same])
        torch.distributed.broadcast(flat, 0)
        sizes = [buffer.numel() for buffer in same]
        for buffer, values in zip(same, flat.split(sizes), strict=True):
            buffer.copy_(values.view_as(buffer))


def seed_step(rank: int, batches_seen: int) -> None:
    """Seed torch, numpy and random from (run seed, rank, batches seen): timm's mixup and erasing use all three."""
    words = np.random.SeedSequence([int(os.environ.get("PL_GLOBAL_SEED", "0")), rank, batches_seen])
    seed = int(words.generate_state(1)[0])
    torch.default_generator.manual_seed(seed)  # torch.manual_seed takes a hundred times as long
    if torch.cuda.is_initialized():
        torch.cuda.default_generators[torch.cuda.current_device()].manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def own_sums(sums: Tensor, rank: int, world_size: int) -> Tensor:
    """This rank's part of the sums (R, S) of R ranks, or (S,) of all: its own, or all on rank 0 if R has changed."""
    of_ranks = sums.reshape(-1, sums.shape[-1])
    if len(of_ranks) == world_size:
        return of_ranks[rank].clone()
    return of_ranks.sum(0) * (rank == 0)
