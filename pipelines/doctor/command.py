"""``doctor``: one page on the installation, the machine and, with a config, its memory and time; for a bug report."""

from __future__ import annotations

import datetime
import sys
from pathlib import Path

import pytorch_lightning as pl

from datamodules.common.errors import UserError
from pipelines import cli
from pipelines.callbacks.overview import block
from pipelines.command import Command
from pipelines.config.words import CONFIG, asks_for_help, flags
from pipelines.doctor.machine import Row, rows_of_machine
from pipelines.doctor.trial import Trial, try_out
from pipelines.quiet import quieten
from pipelines.trainer import Trainer
from tasks.hooks import TaskHooks

#: What is measured is one device's.
ONE_DEVICE = ["--trainer.devices=1", "--trainer.num_nodes=1", "--trainer.strategy=auto"]
FULL = 0.9  # of the memory; what is beyond it may not fit in another epoch


def main(words: list[str]) -> int:
    """The command ``doctor``.

    Args:
        words: Nothing, or a config and flags as those of ``fit``.

    Returns:
        The exit status: 0 if all is well, 1 if something is not, 2 for a mistake in the config.
    """
    if asks_for_help(words) or any(flag.name in CONFIG or flag.name.startswith("--model") for flag in flags(words)):
        return cli.execute(Command("doctor", doctor, starts_from_checkpoint=False), [*words, *ONE_DEVICE])
    if words:
        print(f"error: doctor takes --config FILE and flags of fit, or nothing; not {' '.join(words)}", file=sys.stderr)
        return 2
    quieten()
    rows = rows_of_machine()
    _print(rows)
    return int(any(row.problem for row in rows))


def doctor(trainer: Trainer, model: TaskHooks, datamodule: pl.LightningDataModule) -> Trial:
    """Check installation and machine, and measure memory and time of a training by a few real steps.

    Args:
        trainer: One device of it is used.
        model: The task.
        datamodule: The data.

    Returns:
        What was measured.

    Raises:
        UserError: If something is wrong with the machine, or the training would be refused or does not fit.
    """
    rows = rows_of_machine()
    _print(rows)
    trial = try_out(trainer, model, datamodule)
    rows.append(Row("training", trial.lines(), _tight(trial)))
    print(_without_home(trial.overview))
    _print(rows[-1:])
    problems = sum(row.problem is not None for row in rows)
    if problems:
        raise UserError(f"{problems} problem(s), told above")
    return trial


def _tight(trial: Trial) -> str | None:
    if trial.peak <= FULL * trial.limit:
        return None
    return (
        f"The training fills {trial.peak / trial.limit:.0%} of the memory: lower data.batch_size"
        f" (now {trial.batch_size}) with trainer.accumulate_grad_batches in its place."
    )


def _print(rows: list[Row]) -> None:
    """Rows and what is wrong, without the name of the user's folder."""
    if rows[0].title == "version":
        print(f"doctor, {datetime.date.today().isoformat()}")
    problems = [f"problem: {row.problem}" for row in rows if row.problem]
    print(_without_home("\n".join([block([(row.title, row.lines) for row in rows]), *problems])), flush=True)


def _without_home(text: str) -> str:
    home = str(Path.home())
    return text if home == "/" else text.replace(home, "~")
