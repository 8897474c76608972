"""``ensemble``: train members, combine them, and report what they are worth together."""

from __future__ import annotations

import functools
from typing import Any

import pytorch_lightning as pl

from datamodules.common.errors import UserError
from pipelines import cli
from pipelines.combining.joining import combine as combine_members
from pipelines.combining.report import write_report
from pipelines.combining.settings import ONE_BY_ONE, Combination, Members, check_members, combinations_of
from pipelines.combining.training import PROGRAM, Work, train_members
from pipelines.command import Command
from pipelines.config.errors import UsageError
from pipelines.stages.fits import config_of_one, ended_by_signals
from pipelines.stages.manifest import only_one, say
from pipelines.trainer import Trainer
from tasks.hooks import TaskHooks


def ensemble(
    trainer: Trainer,
    model: TaskHooks,
    datamodule: pl.LightningDataModule,
    members: Members = Members(),  # noqa: B008 - frozen
    combine: list[Combination] | None = None,
    launch: str | None = None,
    at_once: int | None = None,
) -> dict[str, Any]:
    """Train several members, combine them, and report what they gain over the best of them.

    Each member is an ordinary ``fit``, whose best checkpoint counts. The best member and the greedy soup are chosen on
    the validation images, which stacking is trained on; all scores are of the test images. The same command goes on
    where it was stopped.

    Args:
        trainer: Its settings are those of each member's training.
        model: The task.
        datamodule: The data; it needs validation and test images.
        members: What tells the members apart, and how many there are.
        combine: How they are combined: `vote`, `mean`, `stacking`, `soup`; by default all that there are for the task
            and the members.
        launch: Words before each command, as 'srun' or 'torchrun --nproc-per-node 8'; without it all runs in this
            process, on one device.
        at_once: Members that are trained side by side, with ``launch``; all of them by default, where none needs
            another.

    Returns:
        What ``runs/NAME-ensemble/ensemble.json`` holds.
    """
    if trainer.config is None:
        raise UserError("ensemble needs a config: use the command, or pipelines.train in a loop.")
    config = config_of_one(trainer.config, launch, PROGRAM)
    check_members(members, config, model.taught)
    combinations_of(combine, members, model.taught)  # what is wrong with the config is told before data is read
    number = _side_by_side(members, launch, at_once)
    data: Any = datamodule
    _check_data(data, members)
    names = combinations_of(combine, members, model.taught, len(data.class_names or ()))
    root = (trainer.runs_dir / f"{trainer.run_name}-ensemble").resolve()
    with only_one(root, PROGRAM), ended_by_signals():
        counts = ", ".join(f"{len(data.records[split])} {split}" for split in ("train", "val", "test"))
        say(f"{members.size} members by {members.by}; {counts} images", PROGRAM)
        work = Work(root, config, data, members, launch, number)
        trained = train_members(work)
        return write_report(root, members, trained, combine_members(work, trained, names))


main = functools.partial(cli.execute, Command(PROGRAM, ensemble, starts_from_checkpoint=False))


def _side_by_side(members: Members, launch: str | None, at_once: int | None) -> int:
    """How many members are trained at once.

    Raises:
        UsageError: If several are asked for that cannot be.
    """
    if at_once is not None and at_once < 1:
        raise UsageError(f"at_once is {at_once}; it must be at least 1.")
    if at_once in (None, 1):
        return members.size if launch and at_once is None and members.by not in ONE_BY_ONE else 1
    if launch is None:
        raise UsageError(
            f"at_once is {at_once}, but without launch all members are trained in this process, one after the other:"
            " give --launch srun, or leave at_once out."
        )
    if members.by in ONE_BY_ONE:
        raise UsageError(
            f"at_once is {at_once}, but members.by is '{members.by}', whose members need those before them: leave it"
            " out."
        )
    return int(at_once or 1)


def _check_data(data: Any, members: Members) -> None:
    """Read the data, and refuse what members cannot be trained, chosen and scored on.

    Raises:
        UserError: Naming the key.
    """
    if members.by in ("fold", "bagging", "boosting"):
        for key in ("split_file", "weight_file"):
            if not hasattr(data, key):
                raise UserError(
                    f"members.by is '{members.by}', which needs data with data.{key}; {type(data).__name__} has none."
                )
    data.setup("fit")
    for split in ("val", "test"):
        if not data.records[split]:
            raise UserError(
                f"The data has no {split} images: members are chosen on validation and scored on test images. Set"
                f" data.{split}_fraction."
            )
