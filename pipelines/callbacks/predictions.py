"""Writes predictions of ``test`` and ``predict`` as a table, whatever the number of ranks."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from pipelines.pictures import contact_sheet

SHEET_IMAGES = 48


class PredictionWriter(Callback):
    """Asks the task for plain rows, batch by batch, and writes ``predictions.csv`` and a contact sheet.

    Each rank appends to a file of its own; rank 0 merges them in the order of the data set, so that memory does not
    grow with the number of images and the result does not depend on the number of ranks.

    Args:
        directory: Where to write; only rank 0's counts, the other ranks are told it.
    """

    def __init__(self, directory: Path | None) -> None:
        super().__init__()
        self.directory = directory or Path()

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Tell all ranks rank 0's directory."""
        self.directory = Path(trainer.strategy.broadcast(str(self.directory)))

    def _part(self, rank: int) -> Path:
        return self.directory / f".predictions.{rank}.jsonl"

    def _start(self, trainer: pl.Trainer) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        self._part(trainer.global_rank).write_text("")

    def _add(self, trainer: pl.Trainer, task: Any, outputs: Any, batch: dict[str, Any]) -> None:
        if not len(batch["image"]):
            return  # this rank has no images
        names = list(getattr(getattr(trainer, "datamodule", None), "class_names", None) or [])
        rows = task.rows(batch, outputs, names)
        captions = task.captions(batch, outputs, names)
        with open(self._part(trainer.global_rank), "a", encoding="utf-8") as file:
            for number, row, caption in zip(batch["id"].tolist(), rows, captions, strict=True):
                file.write(json.dumps([number, row, caption]) + "\n")

    def _finish(self, trainer: pl.Trainer) -> None:
        trainer.strategy.barrier("predictions")
        if not trainer.is_global_zero:
            return
        entries = []
        for rank in range(trainer.world_size):
            part = self._part(rank)
            entries += [json.loads(line) for line in part.read_text(encoding="utf-8").splitlines()]
            part.unlink()
        entries.sort(key=lambda entry: entry[0])
        columns = list(dict.fromkeys(key for _, row, _ in entries for key in row))
        with open(self.directory / "predictions.csv", "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(row for _, row, _ in entries)
        self._sheet(trainer, entries)

    def _sheet(self, trainer: pl.Trainer, entries: list[Any]) -> None:
        """Files are drawn from disk again; sets that live in memory have no files, and no sheet."""
        shown = [(row["path"], caption) for _, row, caption in entries[:SHEET_IMAGES] if Path(row["path"]).is_file()]
        if shown:
            contact_sheet([p for p, _ in shown], [c for _, c in shown], self.directory / "contact_sheet.png")

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start empty."""
        self._start(trainer)

    def on_predict_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Write one batch."""
        self._add(trainer, pl_module, outputs, batch)

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Merge."""
        self._finish(trainer)

    # `test` writes the same table, with the truth beside the predictions.
    on_test_start = on_predict_start
    on_test_batch_end = on_predict_batch_end
    on_test_end = on_predict_end
