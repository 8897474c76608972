"""Keeps a run's files in step with it: config inside checkpoints, metrics as JSON, the table at the end."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import yaml
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.utilities import rank_zero_info, rank_zero_only
from pytorch_lightning.utilities.exceptions import SIGTERMException  # type: ignore[attr-defined]

from pipelines.callbacks.ending import metric_lines, next_commands, resume_command, why_stopped
from pipelines.callbacks.overview import block
from pipelines.callbacks.progress import duration
from pipelines.run.directory import is_stage
from pipelines.run.metrics_file import MetricsCSV
from pipelines.run.results import set_results_aside, write_metrics


class RunFiles(Callback):
    """Writes what belongs to a run directory beside checkpoints and pictures.

    Args:
        directory: The run directory; only rank 0's counts, the other ranks are told it.
        config: What checkpoints carry as plain text, or None outside the command line.
        config_file: The run's config as it was written.
    """

    def __init__(self, directory: Path | None, config: dict[str, Any] | None, config_file: Path | None = None) -> None:
        super().__init__()
        self.directory, self.config, self.config_file = directory, config, config_file
        self.is_resumed = False  # whether a run goes on; its results are those of older weights then
        self._started = time.monotonic()

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Tell all ranks rank 0's directory."""
        directory = trainer.strategy.broadcast(None if self.directory is None else str(self.directory))
        self.directory = None if directory is None else Path(directory)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the resolved config as plain text."""
        if self.config is not None:
            checkpoint["config"] = yaml.safe_dump(self.config, sort_keys=False, allow_unicode=True)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write ``validate.json`` for the ``validate`` command."""
        if trainer.state.fn == "validate":
            self._write(trainer, "validate.json")

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write ``test.json``."""
        self._write(trainer, "test.json")

    def _write(self, trainer: pl.Trainer, name: str) -> None:
        if self.directory is None or not trainer.is_global_zero:
            return
        metrics = {key: float(value) for key, value in sorted(trainer.callback_metrics.items())}
        for logger in trainer.loggers:
            if not isinstance(logger, MetricsCSV):  # which has the training's history
                logger.log_metrics(metrics, max(0, trainer.global_step - 1))
        pl_module = trainer.lightning_module
        per_class = getattr(pl_module.taught.eval_metrics, "per_class", None)
        class_names = getattr(getattr(trainer, "datamodule", None), "class_names", None)
        written: dict[str, Any] = dict(metrics)
        if per_class is not None and class_names:
            written["per_class"] = {"class": class_names, **per_class()}
        write_metrics(self.directory / name, written)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._started = time.monotonic()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Set the results of the weights aside that a continued run had so far; a finished one gets no batch."""
        if self.is_resumed and self.directory is not None and trainer.is_global_zero:
            folder = set_results_aside(self.directory)
            if folder is not None:
                rank_zero_info(f"Results of the weights before this training are now in {folder}.")
        self.is_resumed = False

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Say how to go on with a training that was stopped from outside."""
        if trainer.state.fn == "fit" and isinstance(exception, KeyboardInterrupt | SIGTERMException):
            self.summary(trainer, exception=exception)

    @rank_zero_only
    def summary(self, trainer: pl.Trainer, did: str | None = None, exception: BaseException | None = None) -> None:
        """Print why it ended, what was reached, and the next commands.

        Args:
            trainer: That has ended.
            did: What was done in place of a training by steps.
            exception: What ended it before its time.
        """
        if self.directory is None:
            return
        task = trainer.lightning_module.taught
        epochs = f"{trainer.current_epoch} epoch{'s' if trainer.current_epoch != 1 else ''}"
        steps = f"{epochs}, {trainer.global_step} steps"
        trained = f"{steps}, {duration(time.monotonic() - self._started)}; {why_stopped(trainer, exception)}"
        checkpoints = self.directory / "checkpoints"
        files = [path for name in ("best", "last") if (path := checkpoints / f"{name}.ckpt").exists()]
        rows = [
            ("trained", [did or trained]),
            ("reached", metric_lines(self.directory / "metrics.csv", task.monitor, task.mode)),
            ("checkpoints", [str(path) for path in files]),
            ("run", [str(self.directory)]),
        ]
        goes_on = files or getattr(trainer, "adds_checkpoints", True)  # without checkpoints nothing can
        if self.config is not None and not is_stage(self.directory) and goes_on:
            rows += self._next(trainer, files, resumes=exception is not None)
        print(f"\n{block(rows)}", flush=True)

    def _next(self, trainer: pl.Trainer, files: list[Path], *, resumes: bool) -> list[tuple[str, list[str]]]:
        """The commands that go on from here."""
        assert self.directory is not None
        if not files:
            return [("next", ["nothing was saved yet: give the same command again"])]
        config = self.config_file or self.directory / "config.yaml"
        go_on = [resume_command(self.directory, config)] if resumes else []
        return [("go on", go_on), ("next", next_commands(trainer, files[0], self.config or {}))]
