"""What a command is, and what it starts from: a config, or a checkpoint that flags change."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from pytorch_lightning.utilities import rank_zero_only

from datamodules.base import DataModule
from pipelines.config.allowed import trusted
from pipelines.config.carried import class_names_in
from pipelines.config.errors import Source, UsageError, flag_value, sources
from pipelines.config.mistakes import find_mistake
from pipelines.config.signatures import arguments_of_function
from pipelines.config.values import differences, merged
from pipelines.config.words import CONFIG, Flag, flags, value_of
from pipelines.ensemble import joined
from pipelines.run.checkpoints import open_checkpoint
from pipelines.run.directory import find_checkpoint, task_name
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
        return {**found, "trust": str | None}


def checkpoint_of(command: Command, words: Sequence[str]) -> Path | None:
    """The checkpoint that task and data come from; None where a config alone says what to run.

    A config names a run: what that was trained with is in its checkpoint, flags of ``fit`` included. Beside a
    checkpoint's file the config says what to run.

    Args:
        command: Any.
        words: Its flags, completed by ``config.ready.complete``.

    Raises:
        UserError: If there is no such checkpoint, or nothing says what to run, or the config is wrong.
    """
    has_config = any(flag.name in CONFIG for flag in flags(words))
    if files := members_of(command, words):
        return find_checkpoint("", "", files[0])
    which, name = value_of(words, "--ckpt_path"), value_of(words, "--name")
    if not command.starts_from_checkpoint or (command.optionally and (which is None or has_config)):
        return None
    if has_config:
        return _run_of_config(command, words) if which in (None, "best", "last") else None
    if which in (None, "best", "last") and name is None:
        raise UsageError(
            f"{command.name} needs to know which model: give --ckpt_path FILE, or --config FILE"
            " (its newest run's best checkpoint is taken)."
        )
    return find_checkpoint(value_of(words, "--runs_dir") or "runs", str(name), which)


def members_of(command: Command, words: Sequence[str]) -> list[str]:
    """The files of ``--ckpt_path [a.ckpt,b.ckpt]``, for a command that takes several; none where it is one.

    Raises:
        UserError: If it is an empty list, or a config is to name a run, too.
    """
    written = value_of(words, "--ckpt_path") or ""
    files = flag_value(written) if written.startswith("[") and not Path(written).is_file() else None
    if not isinstance(files, list) or list[str] not in get_args(command.arguments.get("ckpt_path")):
        return []
    if not files:
        raise UsageError("--ckpt_path is an empty list: give a file, or several as [a.ckpt,b.ckpt].")
    if any(flag.name in CONFIG for flag in flags(words)):
        raise UsageError("--ckpt_path names several checkpoints, which say themselves what to run: leave --config out.")
    return [str(file) for file in files]


def _run_of_config(command: Command, words: Sequence[str]) -> Path | None:
    """The checkpoint of the newest run that configs name; None where it does not carry what it was trained with."""
    given = sources(words)
    if mistake := find_mistake(command.name, command.arguments, given):
        raise UsageError(mistake)
    values = _written_in(given)
    name = value_of(words, "--name") or str(values.get("name"))
    runs_dir = value_of(words, "--runs_dir") or values.get("runs_dir") or "runs"
    checkpoint = find_checkpoint(runs_dir, name, value_of(words, "--ckpt_path"), task_name(values))
    return checkpoint if "config" in open_checkpoint(checkpoint) else None


def _written_in(given: Sequence[Source]) -> dict[str, Any]:
    """What configs say together, a later one before the one in front of it; flags are left out."""
    values: dict[str, Any] = {}
    for source in given:
        if not source.is_flag:
            values = merged(values, source.values)
    return values


def load_changed(command: Command, checkpoint: Path, words: Sequence[str]) -> tuple[Loaded, list[str]]:
    """Task and data of a checkpoint, changed by flags; and the words for the parser, which are all others.

    Raises:
        UserError: If a flag names what does not exist, or the checkpoint's config what it may not.
    """
    carried = read_carried(checkpoint)
    configs = _written_in(sources(words))
    changing = [flag for flag in flags(words) if _speaks_of_part(flag)]
    changes = [words[i] for i in _positions(changing)]
    mistake = find_mistake(command.name, command.arguments, [carried.source, *sources(changes)])
    if mistake is not None:
        raise UsageError(mistake)
    files = [checkpoint, *(find_checkpoint("", "", file) for file in members_of(command, words)[1:])]
    loaded = _load_files(files, changing, trusted(words))
    if len(files) > 1 and carried.name is not None:
        carried = replace(carried, name=f"{carried.name}-ensemble")  # no version of a run that was trained
    taken = _positions([*changing, *(flag for flag in flags(words) if flag.name in CONFIG)])
    rest = [word for i, word in enumerate(words) if i not in taken]
    if configs:
        _say_what_the_run_has(carried, configs, [flag.name.removeprefix("--") for flag in changing])
    return loaded, [*_of_checkpoint(carried), *_of_configs(configs), *rest]


def _load_files(files: Sequence[Path], changing: Sequence[Flag], trust: Sequence[str]) -> Loaded:
    """One checkpoint, or several as an ensemble, with what flags change."""
    values = _changes_of(changing)
    typed = [name for flag in changing for name in _classes_typed(flag)]
    return joined([load(file, trust=trust, changes=values, typed=typed) for file in files])


def _positions(given: Sequence[Flag]) -> list[int]:
    """Where the words of flags stand on the command line, in its order."""
    return sorted(flag.position + i for flag in given for i in range(flag.size))


def _changes_of(changing: Sequence[Flag]) -> list[tuple[str, Any]]:
    """What flags change of task and data; the size of the model's images follows the data's."""
    changes = [(flag.name.removeprefix("--"), flag_value(flag.value or "")) for flag in changing]
    keys = [key.replace(".init_args", "") for key, _ in changes]
    follows = "data.image_size" in keys and "model.image_size" not in keys
    return [*changes, ("model.image_size", None)] if follows else changes


def _of_configs(configs: Mapping[str, Any]) -> list[str]:
    """What configs say of the machine, as flags; name, seed, precision, task and data are the run's."""
    trainer = {key: value for key, value in (configs.get("trainer") or {}).items() if key != "precision"}
    # Text as it is: a key that takes text of any kind, as ``accelerator``, would keep the quotes.
    written = {key: value if isinstance(value, str) else json.dumps(value) for key, value in trainer.items()}
    return [f"--trainer.{key}={value}" for key, value in written.items()]


@rank_zero_only
def _say_what_the_run_has(carried: Carried, configs: Mapping[str, Any], typed: Sequence[str]) -> None:
    """One line where the run was trained with other values than its config has: those of the run are taken."""
    differ = [
        f"{key} {now!r}, not {written!r}"
        for part in ("model", "data")
        for key, written, now in differences(configs.get(part), carried.config[part], part)
        if key not in (*typed, "model.pretrained")
    ]
    if differ:
        more = "" if len(differ) <= 5 else f" and {len(differ) - 5} more"
        said = f"As in the run, and not as in the config: {'; '.join(differ[:5])}{more}. Flags change them."
        print(said, file=sys.stderr, flush=True)


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
