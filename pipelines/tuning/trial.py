"""One trial of ``tune``: an ordinary ``fit`` that tells the study its metric, and ends where that is not worth it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from pipelines import cli
from pipelines.command import Command
from pipelines.config.allowed import trust_flags
from pipelines.config.carried import packages_of
from pipelines.stages.fits import grouped
from pipelines.stages.launching import config_file
from pipelines.trainer import Trainer
from tasks.hooks import TaskHooks


class ReportMonitor(Callback):
    """Tells a trial the metric at each validation, and ends the training where the trial is not worth going on.

    Args:
        trial: optuna's.
        monitor: The metric.
        mode: ``max`` or ``min``.
    """

    def __init__(self, trial: Any, monitor: str, mode: str) -> None:
        super().__init__()
        self.trial, self.monitor, self.better = trial, monitor, max if mode == "max" else min
        self.best: float | None = None
        self.is_pruned = False
        self._validations = 0

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report."""
        if trainer.sanity_checking or self.monitor not in trainer.callback_metrics:
            return
        value = float(trainer.callback_metrics[self.monitor])
        if math.isnan(value):
            return
        self._validations += 1
        self.best = value if self.best is None else self.better(self.best, value)
        self.trial.report(value, self._validations)
        if self.trial.should_prune():
            self.is_pruned = trainer.should_stop = True


def of_trial(config: dict[str, Any], group: str) -> dict[str, Any]:
    """A trial leaves neither checkpoints nor a report: there are many, and their values are kept in the study."""
    trainer = grouped(config["trainer"], group, "trial") | {"report": False}
    if not trainer.get("callbacks"):
        trainer["enable_checkpointing"] = False
    return {**config, "trainer": trainer}


def fit_trial(root: Path, name: str, config: dict[str, Any], watch: Callback) -> None:
    """Train one trial in this process; its run directory is ``ROOT/NAME/0``."""

    def fit(trainer: Trainer, model: TaskHooks, datamodule: pl.LightningDataModule) -> Path | None:
        """Train a trial."""
        trainer.callbacks.insert(0, watch)
        return trainer.fit(model, datamodule=datamodule)

    (root / name).mkdir(parents=True, exist_ok=True)
    with config_file(root / name / "config.yaml", config) as file:
        words = ["--config", str(file), "--name", name, "--runs_dir", str(root), *trust_flags(packages_of(config))]
        cli.run(Command("fit", fit, starts_from_checkpoint=False), words)
