"""What the Trainer knows of its run, beside what Lightning's knows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import Logger

from pipelines.run.checkpoints import NotSavedError
from pipelines.run.saves import Saves
from pipelines.run.tracking import Wandb


class RunTrainer(pl.Trainer):
    """Lightning's Trainer with a run; ``pipelines.trainer`` sets what it knows of it.

    Attributes:
        run_name: Of the run.
        runs_dir: Folder of all runs.
        run_dir: The run directory, once a command has chosen it; on rank 0 only.
        config: The parsed config, where the command line made this trainer.
        trust: Packages whose classes further checkpoints may name.
        adds_checkpoints: Whether ``best.ckpt`` and ``last.ckpt`` are written.
        handles_signals: Whether ``last.ckpt`` is written on SIGTERM and SIGUSR1.
        save_every_minutes: Of ``last.ckpt``.
        save_every_n_steps: Of ``last.ckpt``.
        rank_start_timeout: Seconds for which a rank may hang before its first batch.
        rank_timeout: Seconds for which a rank may hang later.
        saves: Which checkpoints could not be written.
        wandb: Weights & Biases.
        report: Whether a report is written.
        report_explanations: Of how many of the worst images it shows what the network looked at.
        wandb_mode: Of Weights & Biases, ``off`` without loggers.
        user_loggers: Those beside ours.
    """

    run_name: str
    runs_dir: Path
    run_dir: Path | None
    config: dict[str, Any] | None
    trust: list[str]
    adds_checkpoints: bool
    handles_signals: bool
    save_every_minutes: float
    save_every_n_steps: int | None
    rank_start_timeout: float
    rank_timeout: float
    saves: Saves
    wandb: Wandb
    report: bool
    report_explanations: int
    wandb_mode: Literal["auto", "online", "offline", "off"]
    user_loggers: list[Logger]

    def save_checkpoint(
        self, filepath: str | Path, weights_only: bool | None = None, storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint; one that finds no room is said, and the training goes on.

        Raises:
            UserError: On all ranks, if too many in a row could not be written.
        """
        problem = None
        try:
            super().save_checkpoint(filepath, weights_only, storage_options)
        except NotSavedError as error:  # on rank 0: the others stand at Lightning's barrier behind the save
            problem = str(error)
            self.strategy.barrier("Trainer.save_checkpoint")
        self.saves.note(filepath, self.strategy.broadcast(problem))

    @contextmanager
    def one_command(self) -> Iterator[None]:
        """What is done inside: the callbacks that a command adds do not outlive it, also where it raises."""
        before = list(self.callbacks)
        without_place = [c for c in before if isinstance(c, ModelCheckpoint) and c.dirpath is None]
        try:
            yield
        finally:
            self.callbacks[:] = before
            for checkpoint in without_place:  # the next run has another directory
                checkpoint.dirpath = None
