"""The command line: LightningCLI with short class names, plain errors and a rule for checkpoints.

A command is a function whose first argument is the trainer; ``execute`` runs any of them, ``main`` those of the
Trainer. With a config the user's words are the only source of truth. Without one a command that starts from a
checkpoint takes task and data from there (``pipelines.run.loading``), and flags change them.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pytorch_lightning.cli import ArgsType, LightningArgumentParser, LightningCLI
from pytorch_lightning.utilities.exceptions import SIGTERMException  # type: ignore[attr-defined]

from datamodules.base import DataModule
from datamodules.common.errors import UserError
from pipelines.config.errors import (
    Mistake,
    Source,
    UsageError,
    constructor_message,
    flag_value,
    load_config,
    names_key,
    sources,
    unwrapped,
    with_place,
)
from pipelines.config.mistakes import explain, find_mistake
from pipelines.config.reasons import is_about_arguments, reason_of
from pipelines.config.signatures import arguments_of_function
from pipelines.config.words import CONFIG, asks_for_help, flags, value_of
from pipelines.listing import PROGRAM, config_path
from pipelines.run.directory import find_checkpoint
from pipelines.run.loading import Carried, Loaded, load, read_carried
from pipelines.run.tracking import WandbRun
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
#: Advice of libraries that does not apply here: what it warns of is meant so, or done in another way.
NOISE = (
    ".*overridden `(on_after_batch_transfer|transfer_batch_to_device)`.*",  # device augmentation is the model's
    ".*smaller than the logging interval.*",  # the sums are flushed at each epoch's end too
    ".*does not have many workers.*",
    ".*Checkpoint directory .* exists and is not empty.*",
    ".*callbacks used to create the checkpoint need to be provided.*",
    ".*WeightAveraging callback.*",
    ".*LeafSpec.*",  # torch's deprecation, in Lightning's code
    ".*module\\(s\\) in eval mode at the start of training.*",  # frozen parts stay so
    ".*Total length of .* across ranks is zero.*",
    ".*custom batch sampler .* for prediction.*",  # it gives every image once
    ".*was called before the ``update`` method.*",  # a rank may have no images; the states of all are summed
    ".*on epoch level in distributed setting.*",  # metrics are the same on all ranks already: their states were summed
)


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


COMMANDS = {
    command.name: command
    for command in (
        Command("fit", Trainer.fit, starts_from_checkpoint=False),
        Command("validate", Trainer.validate),
        Command("test", Trainer.test),
        Command("predict", Trainer.predict),
    )
}


class CLI(LightningCLI):
    """LightningCLI for one command; only its public hooks are used.

    Args:
        command: What will be run.
        args: Its flags.
        loaded: Task and data that came from a checkpoint; they are not parsed then.
    """

    def __init__(self, command: Command, args: list[str], loaded: Loaded | None = None) -> None:
        self.command, self.loaded, self.trust = command, loaded, trusted(args)
        super().__init__(
            TaskHooks,
            DataModule,
            trainer_class=Trainer,
            save_config_callback=None,
            seed_everything_default=0,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            parser_kwargs={
                "prog": f"{PROGRAM} {command.name}",
                "description": (command.function.__doc__ or "").partition("\n")[0],
                "exit_on_error": False,
                "allow_abbrev": False,
            },
            args=args,
            run=False,  # the command is called below: as a sub-command it would have to be a method of the Trainer
        )

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Trainer, task and data; what came from a checkpoint never passes the parser, which imports what it names."""
        if self.loaded is None:
            super().add_core_arguments_to_parser(parser)
        else:
            parser.add_lightning_class_args(Trainer, "trainer")

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The run's name and place, and the command's own flags."""
        parser.add_argument("--name", type=str | None, default=None, help="Name of the run; the first config's stem.")
        parser.add_argument("--runs_dir", type=str, default="runs", help="Folder of all runs.")
        if self.command.starts_from_checkpoint:
            parser.add_argument(
                "--trust",
                type=str | None,
                default=None,
                help="A package of your own whose classes a checkpoint may name; without it only this project's.",
            )
        self.flags = parser.add_function_arguments(self.command.function, skip=set(NOT_FLAGS))

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse the given words; Lightning's own warns of ``sys.argv``, which differs from them on purpose."""
        self.config = parser.parse_args(args)

    def instantiate_classes(self) -> None:
        """Make the task, the datamodule and the trainer; what a constructor refuses is a mistake in the config."""
        try:
            super().instantiate_classes()
        except Exception as error:
            reason = unwrapped(error)
            if not (isinstance(reason, UserError) or is_about_arguments(reason)):
                raise
            raise UsageError(constructor_message(reason)) from reason
        if self.loaded is not None:
            self.model, self.datamodule = self.loaded.task, self.loaded.data

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The trainer, told its name, its place and the config, which the run directory and checkpoints will hold."""
        runs_dir = self.config["runs_dir"]
        trainer: Trainer = super().instantiate_trainer(default_root_dir=runs_dir, **kwargs)  # type: ignore[assignment]
        parsed = yaml.safe_load(self.parser.dump(self.config, skip_none=False, skip_link_targets=False))
        of_run = {key: value for key, value in parsed.items() if key not in self.flags}
        trainer.config = {**of_run, **(self.loaded.config if self.loaded else {})}
        trainer.run_name = self.config["name"] or "run"
        trainer.runs_dir = Path(runs_dir)
        trainer.trust = self.trust
        return trainer

    def call(self) -> Any:
        """Run the command, and close the W&B run behind it: nothing that was logged waits for the process's end."""
        chosen = {flag: self.config_init[flag] for flag in self.flags}
        failed = True
        try:
            result = self.command.function(self.trainer, model=self.model, datamodule=self.datamodule, **chosen)
            failed = False
        finally:
            for logger in self.trainer.loggers:
                if isinstance(logger, WandbRun):
                    logger.finish(failed)
        return result


def main(args: list[str]) -> int:
    """Run a command of the Trainer.

    Args:
        args: The command and its flags.

    Returns:
        The exit status, see ``execute``.
    """
    return execute(COMMANDS[args[0]], args[1:])


def execute(command: Command, words: list[str]) -> int:
    """Run a command and tell what went wrong.

    Args:
        command: Any.
        words: Its flags.

    Returns:
        The exit status: 0 success, 1 a failure, 2 a mistake in the command or the config, 128 plus the number of the
        signal that ended a training.
    """
    quieten()
    try:
        run(command, words)
    except SIGTERMException as stop:
        return int(stop.code or 0)
    except Exception as error:
        return _report(error, command, words)
    return 0


def run(command: Command, words: list[str]) -> Any:
    """Run a command; mistakes raise.

    Returns:
        What the command's function returns.

    Raises:
        UserError: For everything that the user can put right.
        argparse.ArgumentError: For what the parser refuses; ``pipelines.config.mistakes`` explains it.
    """
    checkpoint = None if asks_for_help(words) else checkpoint_of(command, words)
    if checkpoint is None:
        return CLI(command, complete([command.name, *words])[1:]).call()
    loaded, rest = _load(command, checkpoint, words)
    if value_of(words, "--print_config") is not None or "--print_config" in words:
        print(yaml.safe_dump(loaded.config, sort_keys=False, allow_unicode=True))
        return None
    return CLI(command, rest, loaded).call()


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


def _load(command: Command, checkpoint: Path, words: Sequence[str]) -> tuple[Loaded, list[str]]:
    """Task and data of a checkpoint, changed by flags; and the words for the parser, which are all others."""
    carried = read_carried(checkpoint)
    parts = [flag for flag in flags(words) if flag.name.lstrip("-").partition(".")[0] in ("model", "data")]
    typed = [word for flag in parts for word in words[flag.position : flag.position + flag.size]]
    mistake = find_mistake(command.name, command.arguments, [carried.source, *sources(typed)])
    if mistake is not None:
        raise UsageError(mistake)
    loaded = load(
        checkpoint,
        trust=trusted(words),
        changes=[(flag.name.lstrip("-"), flag_value(flag.value or "")) for flag in parts],
        typed=[flag.value for flag in parts if flag.value],
    )
    taken = {flag.position + i for flag in parts for i in range(flag.size)}
    return loaded, [*_of_checkpoint(carried), *(word for i, word in enumerate(words) if i not in taken)]


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


def complete(args: list[str]) -> list[str]:
    """Fill in what may be left out: the path of a ready config, and the run's name.

    Args:
        args: The command and its flags, as typed.

    Returns:
        The same with ``--config`` pointing to files and with a ``--name``.

    Raises:
        UsageError: If a config does not exist.
    """
    command, rest = args[0], list(args[1:])
    configs: list[Path] = []
    for flag in flags(rest):
        if flag.name not in CONFIG:
            continue
        if flag.value is None:
            raise UsageError(f"{flag.name} needs a file, for example: {PROGRAM} {command} --config quickstart")
        path = _config_file(flag.value)
        configs.append(path)
        named = [f"--config={path}"] if flag.size == 1 else ["--config", str(path)]
        rest[flag.position : flag.position + flag.size] = named
    is_named = any(load_config(config).get("name") for config in configs)
    if value_of(rest, "--name") is None and configs and not is_named:
        rest += ["--name", configs[0].stem]
    return [command, *rest]


def _config_file(name: str) -> Path:
    path = Path(name)
    if path.is_file():
        return path
    ready = config_path(name)
    if ready is None:
        raise UsageError(
            f"--config {name}: there is no such file in {Path.cwd()}, and no ready config of that name."
            f" `{PROGRAM} list configs` shows the ready ones."
        )
    return ready


def quieten() -> None:
    """Leave out what libraries say that does not apply here."""
    for message in NOISE:
        warnings.filterwarnings("ignore", message=message)
    for name in ("pytorch_lightning", "lightning_fabric"):
        for handler in logging.getLogger(name).handlers:
            handler.addFilter(_worth_saying)


def _worth_saying(record: logging.LogRecord) -> bool:
    return not re.match(r"💡|`weights_only` was not|(\[rank: \d+\] )?Seed set to|TPU available", record.getMessage())


def _report(error: Exception, command: Command, words: list[str]) -> int:
    """Tell what went wrong: one message for what people can put right, a traceback for a fault of ours."""
    if os.environ.get("PIPELINES_TRACEBACK"):
        traceback.print_exc()
    try:
        given = _given(command, words)
    except (Mistake, UserError) as mistake:
        # The command line itself cannot be read, so that is what the error was about.
        return _fail(str(mistake), 2)
    message = explain(error, command.name, command.arguments, given)
    if message is not None:
        return _fail(message, 2)
    message = reason_of(error)
    if message is None:
        traceback.print_exception(error)
        return 1
    # What begins with a key or a flag speaks of the config, the rest of data and files.
    return _fail(with_place(message, given), 2 if names_key(message) else 1)


def _given(command: Command, words: list[str]) -> list[Source]:
    """What was written, for messages: configs, a checkpoint's config, and flags."""
    try:
        checkpoint = checkpoint_of(command, words)
        carried = [] if checkpoint is None else [read_carried(checkpoint).source]
    except UserError:
        carried = []
    return [*carried, *sources(words)]


def _fail(message: str, status: int) -> int:
    # One rank speaks; the others end with the same status. The environment is torchrun's, Lightning's or srun's.
    ranks = [os.environ[name] for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID") if name in os.environ]
    if ranks[:1] in ([], ["0"]):
        print(f"error: {message}", file=sys.stderr, flush=True)
    return status
