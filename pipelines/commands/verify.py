"""``verify``: whether an exported file is the same model as a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch

from datamodules.base import DataModule
from datamodules.common.errors import UserError
from pipelines import cli
from pipelines.command import Command
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
    ckpt_path: str | None = None,
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
        ckpt_path: A file, ``best`` or ``last``; ``best`` of the newest run of this name by default.
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
    checkpoint = find_checkpoint(trainer.runs_dir, trainer.run_name, ckpt_path)
    task = load_weights(trainer, model, datamodule, checkpoint, "validate" if split == "val" else "test")
    path = Path(exported)
    outcome = verify_file(task, datamodule, path, split=split, tolerance=tolerance, pictures=pictures)
    print_outcome(outcome, path)
    return outcome


def load_weights(
    trainer: Trainer, model: TaskHooks, datamodule: DataModule, checkpoint: Path, stage: str, needs_data: bool = True
) -> Task:
    """The task with a checkpoint's weights, in evaluation mode on the CPU.

    Raises:
        UserError: If the checkpoint does not fit, or is an exported file.
    """
    if is_exported(checkpoint):
        raise UserError(f"--ckpt_path {checkpoint} is exported already: give the checkpoint that it comes from.")
    model.taught.compile_network = False
    prepare(trainer, model, datamodule if needs_data else None, stage, weights_follow=True)
    load_into(model, checkpoint)  # type: ignore[arg-type]
    task: Task = model.taught
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
        raise UserError(f"{path} is not the same model and was renamed to *.refused*: {outcome['reason']}.")
