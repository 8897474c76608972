"""Keeps a run's files in step with it: config inside checkpoints, metrics as JSON, the table at the end."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import yaml
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from pytorch_lightning.utilities import rank_zero_only

from pipelines.run.directory import write_metrics


class RunFiles(Callback):
    """Writes what belongs to a run directory beside checkpoints and pictures.

    Args:
        directory: The run directory; only rank 0's counts, the other ranks are told it.
        config: What checkpoints carry as plain text, or None outside the command line.
    """

    def __init__(self, directory: Path | None, config: dict[str, Any] | None) -> None:
        super().__init__()
        self.directory, self.config = directory, config
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

    @rank_zero_only
    def summary(self, trainer: pl.Trainer) -> None:
        """Print what was reached and which file to use next."""
        if self.directory is None:
            return
        minutes = (time.monotonic() - self._started) / 60
        rows = [("trained", f"{trainer.current_epoch} epochs, {trainer.global_step} steps, {minutes:.1f} min")]
        rows += _best_and_last(trainer)
        checkpoints = self.directory / "checkpoints"
        files = [n for n in ("best", "last") if (checkpoints / f"{n}.ckpt").exists()]
        rows += [(f"{n} checkpoint", str(checkpoints / f"{n}.ckpt")) for n in files]
        rows.append(("run directory", str(self.directory)))
        if files:
            use = f"python -m pipelines predict --ckpt_path {checkpoints / files[0]}.ckpt --source IMAGES"
            rows.append(("use it", use))
        width = max(len(name) for name, _ in rows)
        print("\n" + "\n".join(f"  {name:<{width}}  {value}" for name, value in rows), flush=True)


def _best_and_last(trainer: pl.Trainer) -> list[tuple[str, str]]:
    """The best and the last value of the metric by which the best checkpoint is chosen."""
    best = next((c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint) and c.monitor), None)
    if best is None or best.best_model_score is None:
        return []
    rows = [(f"best {best.monitor}", f"{float(best.best_model_score):.4f}")]
    last = trainer.callback_metrics.get(str(best.monitor))
    return rows if last is None else [*rows, (f"last {best.monitor}", f"{float(last):.4f}")]
