"""Measures each evaluated image for the report, and writes the report when a training or a test ends."""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch.distributed as dist
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.utilities import rank_zero_info, rank_zero_warn

from datamodules.base import DataModule
from datamodules.common.errors import UserError
from pipelines.callbacks.originals import class_names_of, records_of
from pipelines.explaining.mistakes import explain_mistakes
from pipelines.inference import Predictor
from pipelines.listing import PROGRAM
from pipelines.report import collect, kinds
from pipelines.report.document import explanations_of, write_report
from pipelines.report.measured import Collector, Measured, digest_of, file_of, read, write
from tasks.base import Task
from tasks.calibration import CalibratedTask


class Report(Callback):
    """Keeps what each image of a validation or a test gave, and writes it, ``report.html`` and ``README.md``.

    In training the best validation is kept, as ``best.ckpt`` is. See ``pipelines.report.measured`` for the file.

    Args:
        directory: The run's, on rank 0.
        page: Whether to write the report; else only what was measured.
        explanations: Of how many of the worst images of ``validate`` and ``test`` it shows what the network looked at.
    """

    def __init__(self, directory: Path | None, page: bool = True, explanations: int = 0) -> None:
        super().__init__()
        self.directory, self.page, self.explanations = directory, page, explanations
        self._collector = Collector()
        self._kind: str | None = None
        self._best: float | None = None
        self.seconds = 0.0  # that all of it took

    # Batches.

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start empty."""
        self._collector, self._kind = Collector(), None

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Measure the images of a batch."""
        if trainer.sanity_checking or not outputs or "geometry" not in batch:
            return
        began = time.monotonic()
        task = pl_module.taught
        self._kind = collect.kind_of(outputs, bool(getattr(task, "multi_label", False)))
        values = kinds.collect(self._kind, batch, outputs, int(task.num_classes or 0), divisor_of(task))
        if values is not None:
            ids = batch["id"].tolist()
            records = records_of(trainer, "test" if trainer.testing else "val")
            groups = [str(records[i].get("group", "")) if i < len(records) else "" for i in ids]
            self._collector.add(ids, {**collect.properties(batch, groups), **values})
        self.seconds += time.monotonic() - began

    on_test_start = on_validation_start
    on_test_batch_end = on_validation_batch_end

    # The end of an evaluation.

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the validation if it is the best one; ``validate`` writes the report."""
        if trainer.sanity_checking:
            return
        training = trainer.state.fn == "fit"
        if self._write(trainer, pl_module.taught, "val", only_best=training) and not training:
            self._explain(trainer, pl_module, "val")
            self._report(trainer)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the file and the report."""
        if self._write(trainer, pl_module.taught, "test", only_best=False):
            self._explain(trainer, pl_module, "test")
            self._report(trainer)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the report of the best validation."""
        if self.directory is not None and trainer.is_global_zero and file_of(self.directory, "val").is_file():
            self._report(trainer)

    def _write(self, trainer: pl.Trainer, task: Any, split: str, *, only_best: bool) -> bool:
        """Whether the file was written, by this rank."""
        began = time.monotonic()
        parts = gathered(self._collector)
        self._collector = Collector()
        if self.directory is None or not trainer.is_global_zero:
            return False
        value = trainer.callback_metrics.get(task.monitor) if only_best else None
        if only_best and not self._is_best(math.nan if value is None else float(value), task.mode):
            return False
        whole = Collector()
        for part in parts:
            whole.ids, whole.parts = whole.ids + part.ids, whole.parts + part.parts
        measured = whole.joined(self._facts(trainer, task, split, value))
        if measured is None:
            return False
        measured = kinds.finished(measured, task)
        paths = [str(path) for path in measured.arrays["path"]]
        truth = [int(number).to_bytes(8, "little") for number in measured.arrays["truth_hash"]]
        facts = {**measured.facts, "digest": digest_of(paths, truth)}
        write(Measured(facts, measured.arrays, measured.each, measured.counts), file_of(self.directory, split))
        self.seconds += time.monotonic() - began
        return True

    def _is_best(self, value: float, mode: str) -> bool:
        """Whether a value is at least as good as all before it; of equal ones the last counts, as for checkpoints."""
        if self._best is None and self.directory is not None and file_of(self.directory, "val").is_file():
            try:
                before = read(file_of(self.directory, "val")).facts.get("value")
            except UserError:
                before = None
            self._best = None if before is None else float(before)
        sign = 1 if mode == "max" else -1
        if self._best is not None and not sign * value >= sign * self._best:
            return False
        self._best = None if math.isnan(value) else value
        return True

    def _facts(self, trainer: pl.Trainer, task: Any, split: str, value: Any) -> Mapping[str, Any]:
        data = getattr(trainer, "datamodule", None)
        classes = int(task.num_classes or 0)
        return {
            "kind": self._kind,
            "split": split,
            "class_names": class_names_of(trainer) or [str(k) for k in range(classes)],
            "temperature": task.temperature if isinstance(task, CalibratedTask) else 1.0,
            "monitor": task.monitor,
            "mode": task.mode,
            "value": None if value is None or math.isnan(float(value)) else float(value),
            "epoch": trainer.current_epoch,
            "source": str(getattr(data, "source", type(data).__name__)),
        }

    def _explain(self, trainer: pl.Trainer, pl_module: pl.LightningModule, split: str) -> None:
        """Explain the worst images, by a network that is whole on this device."""
        assert self.directory is not None
        file = explanations_of(self.directory, split)
        file.unlink(missing_ok=True)
        data = getattr(trainer, "datamodule", None)
        if not (self.page and self.explanations and isinstance(pl_module, Task) and isinstance(data, DataModule)):
            return
        if trainer.world_size > 1 or pl_module.runtime is not None:
            return
        began = time.monotonic()
        try:
            measured = read(file_of(self.directory, split))
            worst = np.argsort(kinds.page_of(measured).image_scores(measured), kind="stable")[: self.explanations]
            of_path = {str(record["path"]): record for record in records_of(trainer, split)}
            records = [of_path[path] for path in measured.arrays["path"][worst].tolist() if path in of_path]
            predictor = Predictor(pl_module, data, trainer.strategy.root_device, "32-true")
            explain_mistakes(predictor, records, class_names_of(trainer), file)
        except Exception:
            rank_zero_warn(
                f"The worst images could not be explained:\n{traceback.format_exc()}"
                "trainer.report_explanations: 0 switches it off."
            )
        self.seconds += time.monotonic() - began

    def _report(self, trainer: pl.Trainer) -> None:
        """Write the page; a page is worth less than a training, so a failure is only told."""
        assert self.directory is not None
        if not self.page:
            return
        began = time.monotonic()
        try:
            path = write_report(self.directory)
        except Exception:
            rank_zero_warn(
                f"The report could not be written:\n{traceback.format_exc()}"
                f"Try again with `{PROGRAM} report {self.directory}`; trainer.report: false switches it off."
            )
            return
        self.seconds += time.monotonic() - began
        rank_zero_info(f"The report is {path} ({self.seconds:.1f} s for measuring and writing).")
        self.seconds = 0.0


def divisor_of(task: Any) -> float:
    """What a task divides its logits by."""
    return float(task.divisor) if isinstance(task, CalibratedTask) else 1.0


def gathered(own: Collector) -> list[Collector]:
    """What all ranks collected, on rank 0; elsewhere the own."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return [own]
    parts: list[Any] | None = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.gather_object(own, parts, dst=0)
    return [own] if parts is None else parts
