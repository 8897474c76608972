"""``distil``: one small net learns what a larger one, or an ensemble, says of its training images."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl

from datamodules.common.errors import UserError
from pipelines import cli
from pipelines.command import Command
from pipelines.noisy_student.kinds.of_data import kind_of
from pipelines.noisy_student.loop import run
from pipelines.noisy_student.reading import check_settings
from pipelines.noisy_student.selection import Selection
from pipelines.noisy_student.settings import Settings, StudentSettings, TeacherSettings
from pipelines.stages.fits import config_of_one, words_of
from pipelines.trainer import Trainer
from tasks.hooks import TaskHooks

LEAST_BOX = 0.5  # score of a teacher's box that is taught, by default


def distil(
    trainer: Trainer,
    model: TaskHooks,
    datamodule: pl.LightningDataModule,
    teacher: str | list[str],
    pool: str | None = None,
    teacher_weight: float = 1.0,
    temperature: float = 1.0,
    threshold: float | None = None,
    overlap: Literal["error", "remove", "allow"] = "error",
    seeds: list[int] | None = None,
    launch: str | None = None,
) -> Path:
    """Teach the config's net what a trained teacher says; report teacher, student, and the student alone.

    Hinton et al. 2015, https://arxiv.org/abs/1503.02531, on the machinery of ``noisy-student``: the teacher labels the
    training images themselves, with soft labels of images and pixels, and boxes. Each batch of the student has as many
    images with their own label as with the teacher's. The student alone is the same net, trained for as many steps on
    the labels. The same command goes on where it was stopped.

    Args:
        trainer: Its settings are those of the student's training.
        model: The student.
        datamodule: The labeled data.
        teacher: Its checkpoint, or several that label together: `[a.ckpt,b.ckpt]`.
        pool: Further images without labels, for the teacher to label: a folder, or a list with a column `path`.
        teacher_weight: What the loss of the teacher's labels is multiplied by.
        temperature: Of whole images: the teacher's probabilities are flattened (above 1) or sharpened (below 1).
        threshold: Least confidence of a label of the teacher's that is taught; 0 by default, 0.5 for boxes.
        overlap: What to do with training images whose pixels are those of a validation or test image: `error`, `remove`
            (the teacher does not label them) or `allow`.
        seeds: Student and student alone are trained with each; the config's `seed_everything` by default.
        launch: Words before each command, as 'srun' or 'torchrun --nproc-per-node 8'; without it all runs in this
            process, on one device.

    Returns:
        The folder of the report, ``runs/NAME-distil``.
    """
    if trainer.config is None:
        raise UserError("distil needs a config: use the command.")
    if temperature <= 0:
        raise UserError(f"--temperature is {temperature}; it must be above 0 (1 leaves the probabilities alone).")
    if threshold is not None and not 0 <= threshold <= 1:
        raise UserError(f"--threshold is {threshold}; it is a probability, 0 to 1.")
    config = config_of_one(trainer.config, launch, "distil")
    kind = kind_of(datamodule)  # type: ignore[arg-type]
    least = threshold if threshold is not None else LEAST_BOX if kind.UNIT == "boxes" else 0.0
    how: dict[str, Any] = {"temperature": temperature, "unlabeled_weight": teacher_weight}
    settings = Settings(
        data=config["data"],
        teacher=TeacherSettings(checkpoint=teacher),
        students=[StudentSettings(model=config["model"], labels="soft" if kind.SOFT_FILES else None, **how)],
        pool=pool,
        distil=True,
        selection=Selection(threshold=least),
        trainer=config["trainer"],
        checkpoint="best",
        controls=True,
        overlap=overlap,
        seeds=seeds or [int(config.get("seed_everything") or 0)],
        launch=words_of(launch),
        name=f"{trainer.run_name}-distil",
        runs_dir=str(trainer.runs_dir),
    )
    check_settings(settings)
    return run(settings)


main = functools.partial(cli.execute, Command("distil", distil, starts_from_checkpoint=False))
