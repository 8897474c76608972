"""What validate, test and predict do before Lightning starts, and what they print behind it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.utilities import rank_zero_info, rank_zero_only

from datamodules.common.errors import UserError
from datamodules.common.files import write_json
from pipelines.callbacks.report import Report
from pipelines.callbacks.run_files import RunFiles
from pipelines.ensemble import Ensemble
from pipelines.exported.runtime import use_exported
from pipelines.preparation import choose_run, draw_pictures, prepare, watch_ranks
from pipelines.run.compatibility import check_data, check_fits
from pipelines.run.directory import find_checkpoint, run_of_checkpoint, task_name
from pipelines.run.wandb_evaluation import evaluation_logger
from pipelines.run.writable import check_writable
from pipelines.run_trainer import RunTrainer
from tasks.hooks import TaskHooks

#: What to do where a command's results cannot be written beside its checkpoint.
_COPY = "make it writable, or copy the checkpoint elsewhere and give --ckpt_path COPY.ckpt with --runs_dir PLACE"
_ELSEWHERE = {"validate": _COPY, "test": _COPY, "predict": "give a writable folder with --output"}


def start_evaluation(
    trainer: RunTrainer,
    model: TaskHooks,
    datamodule: pl.LightningDataModule | None,
    ckpt_path: str | list[str] | None,
    command: str,
    output: str | None = None,
) -> str | None:
    """Find the checkpoint, see that it fits model and data, and add what writes the results.

    Returns:
        The checkpoint that Lightning is to load; None for an ensemble, which has its weights.

    Raises:
        UserError: If there is none, or it is of another model or other classes.
    """
    checkpoints = _checkpoints_of(trainer, model, ckpt_path)
    is_ensemble = isinstance(model, Ensemble)
    run = None if is_ensemble else run_of_checkpoint(checkpoints[0])
    _check_place(trainer, run, output, command)
    prepare(trainer, model, datamodule, command, weights_follow=True)
    exported = not is_ensemble and use_exported(model.taught, checkpoints[0])
    if not is_ensemble and not exported:
        check_fits(checkpoints[0], model.taught)
    for checkpoint in checkpoints:
        check_data(checkpoint, datamodule)
    trainer.run_dir = run or (Path(output) if output else choose_run(trainer))
    if is_ensemble and trainer.run_dir is not None and rank_zero_only.rank == 0:
        write_json(trainer.run_dir / "ensemble.json", {"checkpoints": [str(file) for file in checkpoints]})
    rank_zero_info(f"Using {', '.join(map(str, checkpoints))}.")
    _watch_evaluation(trainer, run, command)
    return None if is_ensemble or exported else str(checkpoints[0])


def _check_place(trainer: RunTrainer, run: Path | None, output: str | None, command: str) -> None:
    """Refuse to compute what could not be written."""
    if output is not None:
        check_writable(Path(output), "give a writable folder with --output")
    else:
        check_writable(run or trainer.runs_dir, _ELSEWHERE[command])


def _watch_evaluation(trainer: RunTrainer, run: Path | None, command: str) -> None:
    """Add what writes down an evaluation; `predict` has a writer of its own."""
    trainer.callbacks[:0] = [watch_ranks(trainer), RunFiles(trainer.run_dir, trainer.config)]
    if command == "predict":
        return
    _open_loggers_of_evaluation(trainer, run if command == "test" else None)
    if trainer.run_dir is not None:
        trainer.callbacks.append(draw_pictures(trainer, trainer.run_dir))
    if trainer.report:
        trainer.callbacks.append(Report(trainer.run_dir, explanations=trainer.report_explanations))


def _checkpoints_of(trainer: RunTrainer, model: TaskHooks, ckpt_path: str | list[str] | None) -> list[Path]:
    """The checkpoint to evaluate; of an ensemble all of them."""
    if isinstance(model, Ensemble):
        return model.checkpoints
    if isinstance(ckpt_path, list):
        raise UserError(f"ckpt_path is {ckpt_path}, but the model is one task: give one file, or an Ensemble.")
    return [find_checkpoint(trainer.runs_dir, trainer.run_name, ckpt_path, task_name(trainer.config))]


def _open_loggers_of_evaluation(trainer: RunTrainer, run: Path | None) -> None:
    """W&B goes on with the training's run; further loggers are those that this command was given."""
    if trainer.loggers or rank_zero_only.rank != 0:
        return  # they are open: the training was in this process
    tracker = evaluation_logger(run, replace(trainer.wandb, mode=trainer.wandb_mode))
    trainer.loggers = [*([tracker] if tracker else []), *trainer.user_loggers]


@rank_zero_only
def print_metrics(trainer: RunTrainer) -> None:
    """Print what an evaluation measured, and where it is written."""
    lines = [f"  {name:<20}  {float(value):.4f}" for name, value in sorted(trainer.callback_metrics.items())]
    print("\n".join([*lines, f"  {'written to':<20}  {trainer.run_dir}"]), flush=True)
