"""``verify``: whether an exported file is the same model as a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, cast

import torch

from datamodules.base import DataModule
from datamodules.common.errors import UserError
from pipelines import cli
from pipelines.command import Command
from pipelines.ensemble import Ensemble, members_of
from pipelines.export.verify import PICTURES
from pipelines.export.verify import verify as verify_file
from pipelines.exported.metadata import is_exported
from pipelines.preparation import prepare
from pipelines.run.directory import find_checkpoint
from pipelines.run.loading import load_weights as load_into
from pipelines.trainer import Trainer
from tasks.base import Task
from tasks.hooks import TaskHooks


def main(words: list[str]) -> int:
    """The command ``verify``.

    Args:
        words: Its flags; ``--model FILE`` is the exported file.

    Returns:
        The exit status, see ``cli.execute``; 1 where the file is refused.
    """
    # --model is elsewhere the task, and its keys --model.KEY; here it is a file.
    renamed = [word.replace("--model", "--exported", 1) if _names_file(word) else word for word in words]
    return cli.execute(Command("verify", verify), renamed)


def _names_file(word: str) -> bool:
    return word == "--model" or word.startswith("--model=")


def verify(
    trainer: Trainer,
    model: TaskHooks,
    datamodule: DataModule,
    exported: str,
    ckpt_path: str | list[str] | None = None,
    split: Literal["val", "test"] = "val",
    tolerance: float | None = None,
    pictures: int = PICTURES,
) -> dict[str, Any]:
    """Evaluate a checkpoint and an exported file on the run's own images, and name the first stage that differs.

    Args:
        trainer: Knows the run.
        model: The task.
        datamodule: The data.
        exported: The exported file; ``--model`` on the command line.
        ckpt_path: A file, ``best`` or ``last``; ``best`` of the newest run of this name by default. Several files of
            classifiers or segmentations are one model, as the exported file is.
        split: Whose images are compared.
        tolerance: By how much the metric may fall: 0.001 by default, 0.01 for 8 bits.
        pictures: How many are compared stage by stage.

    Returns:
        The outcome, see ``pipelines.export.verify``.

    Raises:
        UserError: If the file is refused.
    """
    if not Path(exported).is_file():
        raise UserError(f"--model {exported} does not exist: give the exported file.")
    checkpoints = checkpoints_of(trainer, model, ckpt_path)
    task = load_weights(trainer, model, datamodule, checkpoints, "validate" if split == "val" else "test")
    path = Path(exported)
    outcome = verify_file(task, datamodule, path, split=split, tolerance=tolerance, pictures=pictures)
    print_outcome(outcome, path)
    return outcome


def checkpoints_of(trainer: Trainer, model: TaskHooks, ckpt_path: str | list[str] | None) -> list[Path]:
    """The checkpoint, or those of an ensemble.

    Raises:
        UserError: If there is none, or one is an exported file.
    """
    if isinstance(model, Ensemble):
        checkpoints = model.checkpoints
    else:
        checkpoints = [find_checkpoint(trainer.runs_dir, trainer.run_name, cast("str | None", ckpt_path))]
    for path in checkpoints:
        if is_exported(path):
            raise UserError(f"--ckpt_path {path} is exported already: give the checkpoint that it comes from.")
    return checkpoints


def load_weights(
    trainer: Trainer,
    model: TaskHooks,
    datamodule: DataModule,
    checkpoints: Sequence[Path],
    stage: str,
    needs_data: bool = True,
) -> Task:
    """The task with the weights of its checkpoint, or of an ensemble's, in evaluation mode on the CPU.

    Raises:
        UserError: If a checkpoint does not fit.
    """
    for member in members_of(model):
        member.compile_network = False
    prepare(trainer, model, datamodule if needs_data else None, stage, weights_follow=True)
    if isinstance(model, Ensemble):
        model.configure_model()
    else:
        load_into(model, checkpoints[0])  # type: ignore[arg-type]
    # An ensemble has all that is used of a task here.
    task: Task = model.taught  # type: ignore[assignment]
    task.to(torch.device("cpu")).eval()
    return task


def print_outcome(outcome: dict[str, Any], path: Path) -> None:
    """Print both figures.

    Raises:
        UserError: If the file is refused.
    """
    print(
        f"{outcome['metric']} on {outcome['images']} images ({outcome['split']}): checkpoint"
        f" {outcome['checkpoint']:.4f}, export {outcome['export']:.4f}, difference {outcome['difference']:+.4f}",
        flush=True,
    )
    if not outcome["passed"]:
        raise UserError(f"The export {path} is not the same model and was renamed to *.refused*: {outcome['reason']}.")
