"""Where a training starts: a run that is continued, a checkpoint, or nothing; and whether anything is left to do."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.utilities import rank_zero_info, rank_zero_only

from datamodules.common.errors import UserError
from pipelines.lightning_parts import keep_patience, stopped_early
from pipelines.run.checkpoints import open_checkpoint
from pipelines.run.compatibility import check_data
from pipelines.run.directory import find_checkpoint, find_resume, task_name
from pipelines.run.lock import only_writer
from pipelines.run.writable import check_writable
from pipelines.run_trainer import RunTrainer


def start_of(
    trainer: RunTrainer, ckpt_path: str | None, resume: str | None, locks: ExitStack
) -> tuple[Path | None, Path | None]:
    """The run that is continued, which no other process may write into meanwhile, and what training starts from.

    Raises:
        UserError: If there is no such run or checkpoint, another process trains it, or its place cannot be written.
    """
    task = task_name(trainer.config)
    run, checkpoint = find_resume(trainer.runs_dir, trainer.run_name, resume, task)
    if run is not None and rank_zero_only.rank == 0 and locks.enter_context(only_writer(run)):
        # Its last holder may have saved in the meantime.
        run, checkpoint = find_resume(trainer.runs_dir, trainer.run_name, resume, task)
    if ckpt_path is not None and ckpt_path.startswith("["):
        raise UserError(
            f"--ckpt_path is {ckpt_path}; a training starts from one file. Several are for validate, test, predict and"
            " export."
        )
    if ckpt_path is not None:
        checkpoint = find_checkpoint(trainer.runs_dir, trainer.run_name, ckpt_path, task)
    if run is not None:
        check_writable(run / "checkpoints", "make it writable, or start a new run from it with --ckpt_path")
    elif not trainer.fast_dev_run:
        check_writable(trainer.runs_dir / trainer.run_name, "make it writable, or set --runs_dir to a writable place")
    return run, checkpoint


def resumes_nothing(trainer: RunTrainer, checkpoint: Path, datamodule: pl.LightningDataModule | None) -> bool:
    """Whether a run that is to go on has stopped early, which is said.

    Raises:
        UserError: If its classes are not those of the data.
    """
    check_data(checkpoint, datamodule)
    why = stopped_early(open_checkpoint(checkpoint).get("callbacks", {}), trainer.callbacks)
    if why is not None:
        rank_zero_info(why)
    keep_patience(trainer.callbacks)
    return why is not None
