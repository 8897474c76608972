"""The table of a model's parts that is printed before training."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelSummary as LightningSummary

from tasks.flops import count_flops


class ModelSummary(LightningSummary):
    """Lightning's, with the operations of one image. Lightning's own column is 0 without an example input."""

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count, then print."""
        self._flops = count_flops(pl_module.taught)
        super().on_fit_start(trainer, pl_module)

    def summarize(self, summary_data: list[tuple[str, list[str]]], *args: Any, **kwargs: Any) -> None:  # type: ignore[override]
        """Print the table; see Lightning's."""
        columns = [(name, values) for name, values in summary_data if name != "FLOPs"]
        super().summarize(columns, *args, **{**kwargs, "total_flops": self._flops})
