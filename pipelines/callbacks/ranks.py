"""The ranks of one command: they watch each other, and see the same files."""

from __future__ import annotations

import os
import socket
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from datamodules.common.errors import UserError
from pipelines.run.meeting import Place
from pipelines.run.watch import join, watch


class Ranks(Callback):
    """Starts the watch, counts its batches, and compares the ranks' data before the first one.

    Args:
        start_timeout: Seconds for which a rank may stand at one place while another waits, before its first batch.
        timeout: The same later.
    """

    def __init__(self, start_timeout: float, timeout: float) -> None:
        super().__init__()
        self.start_timeout, self.timeout = start_timeout, timeout

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Join the watch, and compare the data.

        Raises:
            UserError: If not all ranks see the same images in the same splits.
        """
        if trainer.world_size == 1:
            return
        if "MASTER_ADDR" in os.environ:
            host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
            join(Place(host, port, trainer.global_rank, trainer.world_size))
        if (found := watch()) is not None:
            found.limits(self.start_timeout, self.timeout)
            found.batches = 0
        self._compare(trainer)

    @staticmethod
    def _compare(trainer: pl.Trainer) -> None:
        data = getattr(trainer, "datamodule", None)
        records = getattr(data, "records", None) or {}
        counts = ", ".join(f"{split} {len(rows)}" for split, rows in records.items() if rows)
        mine = (getattr(data, "split_digest", None), f"{socket.gethostname()}: {counts}")
        told: list[Any] = [None] * trainer.world_size
        torch.distributed.all_gather_object(told, mine)
        if len({digest for digest, _ in told}) > 1:
            lines = "".join(f"\n  rank {rank} on {text}" for rank, (_, text) in enumerate(told))
            raise UserError(f"The ranks see different images:{lines}\nGive all machines the same files and splits.")

    def _count(self, *args: Any, **kwargs: Any) -> None:
        if (found := watch()) is not None:
            found.batches += 1

    on_train_batch_end = on_validation_batch_end = on_test_batch_end = on_predict_batch_end = _count  # type: ignore[assignment]
