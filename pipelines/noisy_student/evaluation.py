"""Evaluates a model on the validation and test images, as a stage's command: ``python -m`` this module.

A module and no word of the command line, since only the loop gives it.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

from datamodules.base import DataModule
from datamodules.common.errors import UserError
from pipelines import cli
from pipelines.command import Command
from pipelines.noisy_student.data_stage import set_up
from pipelines.noisy_student.kinds.of_data import KINDS, kind_of
from pipelines.noisy_student.labeling import evaluate, load_teacher, prepare_teacher
from pipelines.run.loading import Loaded
from pipelines.trainer import Trainer
from tasks.base import Task

SPLITS = ("val", "test")


def evaluate_checkpoint(
    trainer: Trainer,
    model: Task,
    datamodule: DataModule,
    labeled: str,
    output: str,
    ckpt_path: str,
    teachers: list[str] = [],  # noqa: B006 - never changed
) -> None:
    """Evaluate a checkpoint on the loop's labeled data.

    Args:
        trainer: Where to run.
        model: The task of the checkpoint.
        datamodule: The data that it was trained with.
        labeled: A YAML file with the config of the labeled data.
        output: The folder to write to.
        ckpt_path: The checkpoint.
        teachers: Further ones, which label with it.
    """
    data = set_up(yaml.safe_load(Path(labeled).read_text(encoding="utf-8")))
    further = [load_teacher(path, trust=trainer.trust) for path in teachers]
    evaluate_splits(trainer, [Loaded(Path(ckpt_path), model, datamodule, {}), *further], data, Path(output))


main = functools.partial(cli.execute, Command("evaluation", evaluate_checkpoint))


def evaluate_splits(trainer: Trainer, each: Sequence[Loaded], data: DataModule, directory: Path) -> None:
    """Write ``val`` and ``test``: a model's labels of their images, and what scores are computed from.

    Args:
        trainer: Where to run.
        each: The model, or several that label together.
        data: The loop's labeled data.
        directory: Where to.

    Raises:
        UserError: If the model knows other classes than the data.
    """
    for loaded in each:
        if isinstance(loaded.data, tuple(KINDS)) and kind_of(loaded.data) is not kind_of(data):
            raise UserError(
                f"teacher.checkpoint {loaded.checkpoint} is a {type(loaded.task).__name__}, but the data is"
                f" {type(data).__name__}: give a teacher of the same task."
            )
        if loaded.data.class_names != data.class_names:
            raise UserError(
                f"teacher.checkpoint {loaded.checkpoint} knows the classes {loaded.data.class_names}, but the data has"
                f" {data.class_names}."
            )
        prepare_teacher(trainer, loaded)
    for split, file in files_of(data).items():
        evaluate(trainer, each, data.records[split], data, directory / file)


def files_of(data: DataModule) -> dict[str, str]:
    """What is written of each split that has images."""
    return {split: f"{split}{kind_of(data).EVALUATION}" for split in SPLITS if data.records[split]}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
