"""What a command does before Lightning starts: checks, the run directory, and what writes into it."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.utilities import rank_zero_info, rank_zero_only

from datamodules.common.errors import UserError, examples
from pipelines.advice import shared_memory_doubts
from pipelines.callbacks.checkpoints import KeepBest, SaveLast
from pipelines.callbacks.curves import Curves
from pipelines.callbacks.overview import decides_best, doubts
from pipelines.callbacks.pictures import Pictures
from pipelines.callbacks.ranks import Ranks
from pipelines.callbacks.report import Report
from pipelines.callbacks.run_files import RunFiles
from pipelines.callbacks.student import WriteStudent
from pipelines.config.values import differences
from pipelines.lightning_parts import refuse_batch_hooks
from pipelines.run.checkpoints import global_step_of
from pipelines.run.directory import (
    checkpoint_config,
    new_run,
    newest_config,
    run_config,
    wandb_id,
    write_config,
    write_data_files,
)
from pipelines.run.environment import write_environment
from pipelines.run.masking import masked
from pipelines.run.metrics_file import MetricsCSV
from pipelines.run.student import task_config
from pipelines.run.tracking import wandb_logger
from pipelines.run.wandb_media import log_data
from pipelines.run_trainer import RunTrainer
from tasks.checks import TrainingPlan
from tasks.hooks import TaskHooks
from tasks.noisy_student import NoisyStudent


def prepare(
    trainer: pl.Trainer,
    model: TaskHooks,
    datamodule: pl.LightningDataModule | None,
    stage: str,
    *,
    weights_follow: bool,
) -> None:
    """Read the data and build the model before anything is written or any rank started: mistakes end here.

    Args:
        trainer: Where it will run.
        model: The task.
        datamodule: The data.
        stage: As in ``LightningDataModule.setup``, or ``probe``.
        weights_follow: A checkpoint's weights will be loaded, so pretrained ones are not needed.

    Raises:
        UserError: If model and data do not fit together, or the data cannot be used.
    """
    if weights_follow:
        model.taught.load_pretrained = False
    if datamodule is not None:
        refuse_batch_hooks(datamodule)
        datamodule.trainer = trainer  # Lightning attaches it later; the number of ranks decides what a batch needs
        datamodule.setup(stage)
        if isinstance(getattr(datamodule, "class_names", None), list):
            source = str(getattr(datamodule, "source", type(datamodule).__name__))
            model.resolve(datamodule.spec(), source)  # type: ignore[attr-defined]
    model.configure_model()


def check_training(trainer: RunTrainer, model: TaskHooks, datamodule: pl.LightningDataModule | None) -> None:
    """Ask the task whether it can be trained with these settings.

    Raises:
        UserError: Naming the setting that does not fit.
    """
    if trainer.limit_train_batches == 0:
        raise UserError("trainer.limit_train_batches is 0: nothing would be trained. Set it to 1 or more.")
    monitors = [getattr(callback, "monitor", None) for callback in trainer.callbacks]
    plan = TrainingPlan(
        batch_size=getattr(datamodule, "train_batch", None),
        has_validation=_has_validation(datamodule),
        has_end=trainer.max_epochs != -1 or trainer.max_steps != -1,
        monitors=[monitor for monitor in monitors if isinstance(monitor, str)],
    )
    model.check_training(plan)
    said = [*doubts(model.taught, datamodule), *shared_memory_doubts(datamodule)]
    for doubt in said if rank_zero_only.rank == 0 else []:
        print(f"warning: {doubt}", file=sys.stderr, flush=True)


def start_run(
    trainer: RunTrainer,
    model: TaskHooks,
    datamodule: pl.LightningDataModule | None,
    run: Path | None,
    checkpoint: Path | None,
) -> RunFiles:
    """Choose the run directory and add what writes into it.

    Args:
        trainer: Gets callbacks and loggers.
        model: The task, prepared.
        datamodule: The data, set up.
        run: The run that is continued; None for a new one.
        checkpoint: What training starts from, if anything.
    """
    trainer.run_dir = directory = run or choose_run(trainer)
    config = _resolved_config(trainer, model, datamodule)
    carried = None if config is None else checkpoint_config(task_config(config, model, datamodule))
    files = RunFiles(directory, carried)
    files.is_resumed = run is not None
    trainer.callbacks[:0] = [watch_ranks(trainer), files]
    # Ranks above 0 learn the directory from rank 0 once the ranks are connected; until then nothing is written.
    if trainer.report:
        trainer.callbacks.append(Report(directory))
    _add_checkpoints(trainer, model, datamodule, (directory or Path(trainer.runs_dir)) / "checkpoints")
    if directory is None:
        return files
    if config is not None:
        if run is not None:
            _say_what_changed(directory, config)
        files.config_file = write_config(directory, config)
    write_environment(directory)
    write_data_files(directory, datamodule)
    resumes_at = None if checkpoint is None or run is None else global_step_of(checkpoint)
    _open_loggers(trainer, directory, config or dict(model.hparams), resumes_at)
    log_data(trainer.loggers, trainer.run_name, datamodule)
    trainer.callbacks += [draw_pictures(trainer, directory), Curves(directory)]
    return files


def _say_what_changed(directory: Path, config: dict[str, Any]) -> None:
    """One line where a run is continued with other settings; the config of now is the truth."""
    before = newest_config(directory)
    changed = [
        f"{key} {now!r} (before {then!r})"
        for part in ("model", "data", "trainer", "seed_everything")
        for key, now, then in differences(config.get(part), before.get(part), part)
    ]
    if changed:
        rank_zero_info(f"The run goes on with changed settings: {examples(changed, 12)}.")


def watch_ranks(trainer: RunTrainer) -> Ranks:
    """What names a rank that hangs."""
    return Ranks(trainer.rank_start_timeout, trainer.rank_timeout)


def choose_run(trainer: RunTrainer) -> Path | None:
    """A new run directory, on rank 0; the others are told later."""
    return new_run(trainer.runs_dir, trainer.run_name) if rank_zero_only.rank == 0 else None


def _resolved_config(trainer: RunTrainer, model: Any, datamodule: Any) -> dict[str, Any] | None:
    """The parsed config with the values that came from the data; None outside the command line."""
    if trainer.config is None:
        return None
    resolved = datamodule.resolved() if hasattr(datamodule, "resolved") else {}
    if getattr(datamodule, "tries_batch", False):
        resolved = {**resolved, "batch_size": datamodule.batch_size}
    return dict(masked(run_config(trainer.config, dict(model.hparams), resolved)))


def _add_checkpoints(
    trainer: RunTrainer, model: TaskHooks, datamodule: pl.LightningDataModule | None, folder: Path
) -> None:
    if trainer.adds_checkpoints:
        best = KeepBest(
            dirpath=folder,
            filename="best",
            monitor=model.taught.monitor if decides_best(datamodule) else None,
            mode=model.taught.mode,
            enable_version_counter=False,
        )
        last = SaveLast(
            folder,
            trainer.save_every_minutes,
            trainer.save_every_n_steps,
            handle_signals=trainer.handles_signals,
        )
        trainer.callbacks += [best, last]
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
            callback.dirpath = str(folder)
    if isinstance(model, NoisyStudent):
        trainer.callbacks.append(WriteStudent(folder))


def _open_loggers(trainer: RunTrainer, directory: Path, config: dict[str, Any], resumes_at: int | None) -> None:
    csv = MetricsCSV(directory)
    if resumes_at is not None:
        csv.resume(resumes_at - 1)
    tracker = wandb_logger(
        directory,
        replace(trainer.wandb, mode=trainer.wandb_mode),
        name=f"{trainer.run_name}/{directory.name}",
        run_id=wandb_id(directory),
        config=config,
    )
    trainer.loggers = [csv, *([tracker] if tracker else []), *trainer.user_loggers]


def draw_pictures(trainer: RunTrainer, run: Path) -> Pictures:
    """What draws an evaluation's pictures."""
    return Pictures(run / "pictures", trainer.wandb.table_rows, trainer.wandb.table_pictures)


def _has_validation(datamodule: pl.LightningDataModule | None) -> bool:
    records = getattr(datamodule, "records", None)
    return records is None or bool(records.get("val"))
