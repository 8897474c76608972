"""What a command is, and what it starts from: a config, or a checkpoint that flags change."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datamodules.base import DataModule
from pipelines.config.carried import class_names_in
from pipelines.config.errors import UsageError, flag_value, sources
from pipelines.config.mistakes import find_mistake
from pipelines.config.signatures import arguments_of_function
from pipelines.config.words import CONFIG, Flag, flags, value_of
from pipelines.run.directory import find_checkpoint
from pipelines.run.loading import Carried, Loaded, load, read_carried
from pipelines.trainer import Trainer
from tasks.hooks import TaskHooks

#: Arguments of a command that are no flags.
NOT_FLAGS = {"self", "trainer", "model", "datamodule", "train_dataloaders", "val_dataloaders", "dataloaders"}
#: Arguments that every command has, with their types.
COMMON = {
    "model": TaskHooks,
    "data": DataModule,
    "trainer": Trainer,
    "name": str | None,
    "runs_dir": str,
    "seed_everything": bool | int,
}


@dataclass(frozen=True)
class Command:
    """A command that runs a model on data.

    Attributes:
        name: As typed.
        function: Called with a Trainer, ``model=``, ``datamodule=`` and its flags, which are its further arguments; its
            docstring is the help. What it returns is returned by ``run``.
        starts_from_checkpoint: Without ``--config`` task and data come from the checkpoint; ``optionally``: only if
            there is a ``--ckpt_path``.
    """

    name: str
    function: Callable[..., Any]
    starts_from_checkpoint: bool = True
    optionally: bool = False

    @property
    def arguments(self) -> dict[str, Any]:
        """All arguments with their types, those of the function first."""
        parts = {key: COMMON[key] for key in ("model", "data", "trainer")}
        found = {**parts, **arguments_of_function(self.function, NOT_FLAGS), **COMMON}
        return {**found, "trust": str | None} if self.starts_from_checkpoint else found


def checkpoint_of(command: Command, words: Sequence[str]) -> Path | None:
    """The checkpoint that task and data come from; None where a config says what to run.

    Raises:
        UserError: If there is no such checkpoint, or nothing says what to run.
    """
    has_config = any(flag.name in CONFIG for flag in flags(words))
    which = value_of(words, "--ckpt_path")
    if has_config or not command.starts_from_checkpoint or (command.optionally and which is None):
        return None
    name = value_of(words, "--name")
    if which in (None, "best", "last") and name is None:
        raise UsageError(
            f"{command.name} needs to know which model: give --ckpt_path FILE, or --config FILE"
            " (its newest run's best checkpoint is taken)."
        )
    return find_checkpoint(value_of(words, "--runs_dir") or "runs", str(name), which)


def load_changed(command: Command, checkpoint: Path, words: Sequence[str]) -> tuple[Loaded, list[str]]:
    """Task and data of a checkpoint, changed by flags; and the words for the parser, which are all others.

    Raises:
        UserError: If a flag names what does not exist, or the checkpoint's config what it may not.
    """
    carried = read_carried(checkpoint)
    changing = [flag for flag in flags(words) if _speaks_of_part(flag)]
    taken = [flag.position + i for flag in changing for i in range(flag.size)]
    mistake = find_mistake(command.name, command.arguments, [carried.source, *sources([words[i] for i in taken])])
    if mistake is not None:
        raise UsageError(mistake)
    loaded = load(
        checkpoint,
        trust=trusted(words),
        changes=[(flag.name.removeprefix("--"), flag_value(flag.value or "")) for flag in changing],
        typed=[name for flag in changing for name in _classes_typed(flag)],
    )
    rest = [word for i, word in enumerate(words) if i not in set(taken)]
    return loaded, [*_of_checkpoint(carried), *rest]


def _speaks_of_part(flag: Flag) -> bool:
    return flag.name.startswith("--") and flag.name[2:].partition(".")[0] in ("model", "data")


def _classes_typed(flag: Flag) -> list[str]:
    """The classes that a flag names: ``--data mine.Data``, ``--data '{class_path: mine.Data}'``."""
    value = flag_value(flag.value or "")
    is_whole_part = flag.name in ("--model", "--data")
    return [value] if is_whole_part and isinstance(value, str) else class_names_in(value)


def _of_checkpoint(carried: Carried) -> list[str]:
    """What a checkpoint says beside task and data, as flags; the user's stand behind these, and win."""
    given = {
        "--name": carried.name,
        "--seed_everything": carried.seed,
        "--trainer.precision": carried.precision,
    }
    return [f"{name}={value}" for name, value in given.items() if value is not None]


def trusted(words: Sequence[str]) -> list[str]:
    """What ``--trust`` allows, given once or several times."""
    return [flag.value for flag in flags(words) if flag.name == "--trust" and flag.value]
