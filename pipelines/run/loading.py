"""From a checkpoint to its task and its data: the one way for every command that starts from a checkpoint."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

import datamodules.classification
import datamodules.detection
import datamodules.segmentation
import datamodules.semisupervised  # noqa: F401 - a checkpoint may name the classes that are imported here
import tasks  # noqa: F401
from datamodules.base import DataModule
from datamodules.common.errors import UserError
from pipelines.config.carried import Names, changed, classes_in, make, plain
from pipelines.config.errors import Mistake, Source, checked_anchors, place_of
from pipelines.exported.runtime import use_exported
from pipelines.run.checkpoints import carried_text, open_checkpoint
from pipelines.run.compatibility import check_fits
from tasks.base import Task

PRECISIONS = ("auto", "32-true", "16-mixed", "bf16-mixed")


@dataclass(frozen=True)
class Carried:
    """The config that a checkpoint carries, as plain values; of all keys those that are used.

    Attributes:
        checkpoint: The file.
        model: The task, ``{class_path: ..., init_args: ...}``.
        data: The datamodule, the same.
        name: Of the run, None where it has none.
        seed: For ``seed_everything``.
        precision: Of the training.
        text: The YAML, in which lines are looked up.
    """

    checkpoint: Path
    model: dict[str, Any]
    data: dict[str, Any]
    name: str | None = None
    seed: bool | int | None = None
    precision: str | None = None
    text: str = ""

    @property
    def config(self) -> dict[str, Any]:
        """Task and datamodule, by key."""
        return {"model": self.model, "data": self.data}

    @property
    def source(self) -> Source:
        """What messages about a key look its line up in."""
        classes = classes_in(self.config, (Task, DataModule))
        return Source(f"The config in {self.checkpoint}", self.config, self.text, classes)


@dataclass(frozen=True)
class Loaded:
    """What a checkpoint was trained with; no network is built and no weights are loaded yet.

    Attributes:
        checkpoint: The file.
        task: The task; of several checkpoints a ``pipelines.ensemble.Ensemble``, which evaluates as a task does.
        data: The datamodule.
        config: ``model`` and ``data`` as plain values, the changes included.
    """

    checkpoint: Path
    task: Task
    data: DataModule
    config: dict[str, Any]


def load(
    checkpoint: str | Path,
    *,
    trust: Sequence[str] = (),
    changes: Sequence[tuple[str, Any]] = (),
    typed: Sequence[str] = (),
) -> Loaded:
    """Make the task and the datamodule that a checkpoint's config names.

    Nothing in the checkpoint is ever executed: it may name this project's tasks and datamodules and nothing else, see
    ``pipelines.config.carried``.

    Args:
        checkpoint: The file.
        trust: Packages of the user's own whose classes it may name, too.
        changes: Arguments that differ from the checkpoint's: ``("data.batch_size", 8)``.
        typed: Full names of classes among the changes, which the user typed.

    Raises:
        UserError: If there is no such file, it is damaged, carries no config, or its config names what it may not.
    """
    carried = read_carried(checkpoint)
    config = carried.config
    for key, value in changes:
        config = changed(config, key.split("."), value)
    names = Names(tuple(trust), tuple(typed))
    try:
        task = make(config["model"], Task, ("model",), names)
        data = make(config["data"], DataModule, ("data",), names)
    except Mistake as mistake:
        raise UserError(f"{place_of(carried.source, mistake.keys) or f'{checkpoint}: '}{mistake}") from mistake
    return Loaded(carried.checkpoint, task, data, config)


def load_weights(task: Task, checkpoint: Path) -> None:
    """Build a task's network and load a checkpoint's weights into it, with what the task keeps beside them.

    Args:
        task: That knows its classes (``resolve``).
        checkpoint: The file; an exported one runs in place of the network.

    Raises:
        UserError: If weights and task do not fit.
    """
    task.load_pretrained = False  # the checkpoint's weights follow
    task.configure_model()
    if use_exported(task, checkpoint):
        return
    check_fits(checkpoint, task)
    saved = open_checkpoint(checkpoint)
    task.load_state_dict(saved["state_dict"])
    task.on_load_checkpoint(saved)


def read_carried(checkpoint: str | Path) -> Carried:
    """The config that a checkpoint carries.

    Raises:
        UserError: If there is no such file, it is damaged, or carries none or one that is none.
    """
    path = Path(checkpoint)
    text = carried_text(path)
    if text is None:
        raise UserError(f"{path} carries no config: it was not written by this command line. Give --config FILE too.")
    try:
        config = plain(yaml.safe_load(text)) if isinstance(text, str) and checked_anchors(text) else None
    except (yaml.YAMLError, Mistake) as error:
        raise UserError(f"{path} carries a config that cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise UserError(f"{path} carries a config without keys: it was not written by this command line.")
    for key in ("model", "data"):
        if not isinstance(config.get(key), dict):
            raise UserError(f"{path} carries a config without '{key}:'. Give --config FILE too.")
    trainer = config.get("trainer")
    return Carried(
        path,
        config["model"],
        config["data"],
        name=_name(config.get("name"), path),
        seed=_seed(config.get("seed_everything")),
        precision=_precision(trainer.get("precision") if isinstance(trainer, dict) else None),
        text=text,
    )


def _name(value: Any, path: Path) -> str | None:
    """The run's name, which becomes a folder: one below the folder of all runs."""
    if value is None:
        return None
    parts = re.split(r"[/\\]", value) if isinstance(value, str) else []
    if not parts or any(part in ("", ".", "..") for part in parts) or value.startswith("-"):
        raise UserError(f"{path} names its run {value!r}, which is no name of a folder: give --name.")
    return str(value)


def _seed(value: Any) -> bool | int | None:
    return value if isinstance(value, bool | int) else None


def _precision(value: Any) -> str | None:
    return value if value in PRECISIONS else None
