"""The config of the loop: what it may say."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal

from datamodules.base import DataModule
from pipelines.config.values import merged
from pipelines.noisy_student.selection import Selection
from pipelines.trainer import Trainer
from tasks.base import Task


@dataclass(frozen=True)
class TeacherSettings:
    """The first teacher.

    Attributes:
        model: The task, as in any config.
        data: Arguments of the data that differ from those of the loop, for example `augment`.
        trainer: Arguments of the trainer that differ.
        checkpoint: A trained teacher, in place of all of these; or several, `[a.ckpt, b.ckpt]`, which label together.
    """

    model: Task | None = None
    data: dict[str, Any] = field(default_factory=dict)
    trainer: Trainer = field(default_factory=dict)  # type: ignore[assignment]
    checkpoint: str | list[str] | None = None

    @property
    def checkpoints(self) -> list[Path]:
        """The trained teachers."""
        given = [self.checkpoint] if isinstance(self.checkpoint, str) else self.checkpoint or []
        return [Path(file) for file in given]


@dataclass(frozen=True)
class StudentSettings:
    """One generation.

    Attributes:
        model: The task, with its noise; as large as the teacher, or larger.
        data: Arguments of the data that differ from those of the loop: the noise on the input in `augment`.
        trainer: Arguments of the trainer that differ.
        ratio: Unlabeled images for each labeled one of a batch.
        steps_per_epoch: Optimizer batches an epoch; one pass over the selected images by default.
        loss: See `tasks.NoisyStudent`; so are the others.
        unlabeled_weight: The same.
        labels: The same; by default `soft` for images with one label each, `hard` for pixels, and boxes have no other.
        temperature: The same.
        smoothing: The same.
    """

    model: Task
    data: dict[str, Any] = field(default_factory=dict)
    trainer: Trainer = field(default_factory=dict)  # type: ignore[assignment]
    ratio: int = 1
    steps_per_epoch: int | None = None
    loss: Literal["paper", "code"] = "paper"
    unlabeled_weight: float = 1.0
    labels: Literal["soft", "hard"] | None = None
    temperature: float = 1.0
    smoothing: float = 0.0


@dataclass(frozen=True)
class Settings:
    """All of the loop.

    Attributes:
        data: The labeled images, as in any config.
        teacher: The first teacher.
        students: One generation each.
        pool: The unlabeled images: a folder, or a list with a column `path`.
        distil: The labeled training images themselves are a pool, alone or beside the others: distillation. The
            student learns from both, their labels and what the teacher says of them. See the command `distil`.
        labels_per_class: Only so many training images of each class keep their labels, the others join the pool; to
            see on a labeled set what unlabeled images would be worth. For images with one label each.
        labeled_images: In place of it, for all tasks: only so many training images keep their annotations, drawn by
            the seed.
        labeled_fraction: In place of both: only this fraction of the training images keeps its annotations, stratified
            by class.
        selection: Which pseudo-labels are taught.
        trainer: Arguments of the trainer for all trainings.
        checkpoint: Which checkpoint of a training is used: `last`, or `best` on the validation split.
        controls: Also train the last student on labels only, and without noise, for as many steps.
        seeds: The whole loop is run for each; the report has their mean and spread.
        overlap: What to do with validation and test images in the pool: `error`, `remove` or `allow`.
        min_gain: A generation that gains no more than this on validation (accuracy, mAP or mIoU) is the last.
        launch: Words before the command of a training, an evaluation or a labeling, which then runs in a process of its
            own, for example `[srun]` or `[torchrun, --nproc-per-node, '8']`.
        name: Name of the run directory; by default made of the config's, see `config.ready`.
        runs_dir: Folder of all runs.
    """

    data: DataModule
    teacher: TeacherSettings
    students: list[StudentSettings]
    pool: str | None = None
    distil: bool = False
    labels_per_class: int | None = None
    labeled_images: int | None = None
    labeled_fraction: float | None = None
    selection: Selection = field(default_factory=Selection)
    trainer: Trainer = field(default_factory=dict)  # type: ignore[assignment]
    checkpoint: Literal["last", "best"] = "last"
    controls: bool = False
    seeds: list[int] = field(default_factory=lambda: [0])
    overlap: Literal["error", "remove", "allow"] = "error"
    min_gain: float = 0.0
    launch: list[str] | None = None
    name: str | None = None
    runs_dir: str = "runs"


def first_generation(settings: Settings) -> Settings:
    """One student of one seed; its stages are those of the whole loop, which later takes them as they are."""
    return replace(settings, students=settings.students[:1], seeds=settings.seeds[:1], controls=False)


def plain(settings: Any) -> dict[str, Any]:
    """The settings as nested plain values, for manifests and the saved config."""
    if is_dataclass(settings) and not isinstance(settings, type):
        return {f.name: plain(getattr(settings, f.name)) for f in fields(settings)}
    if isinstance(settings, list):
        return [plain(value) for value in settings]  # type: ignore[return-value]
    return copy.deepcopy(settings)  # type: ignore[no-any-return]


def trainer_of(settings: Settings, part: TeacherSettings | StudentSettings | None = None) -> dict[str, Any]:
    """The trainer of one training, or of the labeling; without a launcher it has one device.

    All trainings of the loop are one group in W&B.
    """
    base: dict[str, Any] = {"wandb": {"group": settings.name}} | ({} if settings.launch else {"devices": 1})
    return merged(merged(base, settings.trainer), {} if part is None else part.trainer)  # type: ignore[arg-type]
