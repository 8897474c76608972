"""The command line: LightningCLI with short class names, plain errors and a rule for checkpoints.

A command is a function whose first argument is the trainer; ``execute`` runs any of them, ``main`` those of the
Trainer. For ``fit`` the user's words are the only source of truth. A command that starts from a checkpoint takes task
and data from there (``pipelines.run.loading``), also where a config names the run, and flags change them.
"""

from __future__ import annotations

import os
import re
import sys
import traceback
from pathlib import Path
from typing import Any

import yaml
from pytorch_lightning.cli import ArgsType, LightningArgumentParser, LightningCLI
from pytorch_lightning.utilities.exceptions import SIGTERMException  # type: ignore[attr-defined]

from datamodules.base import DataModule
from datamodules.common.errors import UserError
from pipelines.command import NOT_FLAGS, Command, checkpoint_of, load_changed
from pipelines.config.allowed import allowing, check_names, trusted
from pipelines.config.errors import (
    Mistake,
    Source,
    UsageError,
    constructor_message,
    names_key,
    sources,
    unwrapped,
    with_place,
)
from pipelines.config.mistakes import explain
from pipelines.config.nulls import check_nulls
from pipelines.config.ready import complete
from pipelines.config.reasons import is_about_arguments, reason_of
from pipelines.config.words import asks_for_help, flags
from pipelines.listing import PROGRAM
from pipelines.orphans import end_with_the_launcher, meet_anew
from pipelines.quiet import quieten
from pipelines.run.loading import Loaded, read_carried
from pipelines.run.tracking import WandbRun
from pipelines.run.watch import REACH_SECONDS, watch, watched
from pipelines.trainer import Trainer
from tasks.hooks import TaskHooks

COMMANDS = {
    "fit": Command("fit", Trainer.fit, starts_from_checkpoint=False),
    "validate": Command("validate", Trainer.validate),
    "test": Command("test", Trainer.test),
    "predict": Command("predict", Trainer.predict),
}

LARGEST_SEED = 2**32 - 1  # numpy's


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
        parser.add_argument(
            "--name", type=str | None, default=None, help="Name of the run; by default made of the first config's."
        )
        parser.add_argument("--runs_dir", type=str, default="runs", help="Folder of all runs.")
        parser.add_argument(
            "--trust",
            type=str | None,
            default=None,
            help="A package of your own whose classes configs and checkpoints may name; without it, only ours.",
        )
        self.flags = parser.add_function_arguments(self.command.function, skip=set(NOT_FLAGS))

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse the given words; Lightning's own warns of ``sys.argv``, which differs from them on purpose."""
        self.config = parser.parse_args(args)
        seed = self.config["seed_everything"]
        if not isinstance(seed, bool) and not 0 <= seed <= LARGEST_SEED:
            raise UsageError(f"seed_everything is {seed}; it must lie between 0 and {LARGEST_SEED}.")

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
    end_with_the_launcher()
    meet_anew()
    with watched():
        try:
            with allowing(words):
                return _run_and_report(command, words)
        except UserError as error:  # of --trust itself
            return _fail(str(error), 2)


def _run_and_report(command: Command, words: list[str]) -> int:
    try:
        run(command, words)
    except SIGTERMException as stop:
        return int(stop.code or 0)
    except SystemExit as end:
        # Lightning ends so, with 1, where it is interrupted outside of a training's steps.
        if isinstance(end.__context__, KeyboardInterrupt):
            return 130
        raise
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
    with allowing(words):
        return _run(command, complete([command.name, *words])[1:])


def _run(command: Command, words: list[str]) -> Any:
    check_names(sources(words))
    checkpoint = None if asks_for_help(words) else checkpoint_of(command, words)
    if checkpoint is None:
        if not asks_for_help(words):
            check_nulls(command.name, command.arguments, sources(words))
        return CLI(command, words).call()
    loaded, rest = load_changed(command, checkpoint, words)
    if any(flag.name == "--print_config" for flag in flags(words)):
        print(yaml.safe_dump(loaded.config, sort_keys=False, allow_unicode=True))
        return None
    return CLI(command, rest, loaded).call()


def _report(error: Exception, command: Command, words: list[str]) -> int:
    """Tell what went wrong: one message for what people can put right, a traceback for a fault of ours."""
    if os.environ.get("PIPELINES_TRACEBACK"):
        traceback.print_exc()
    if (status := _status_of_the_first(error)) is not None:
        return status
    told = message_of(error, command, words)
    if told is None:
        traceback.print_exception(error)
        return 1
    return _fail(*told)


def message_of(error: Exception, command: Command, words: list[str]) -> tuple[str, int] | None:
    """What went wrong, for people, and the exit status; None for a fault of ours.

    Args:
        error: What a command raised.
        command: The command.
        words: Its flags.
    """
    try:
        given = _given(command, complete([command.name, *words])[1:])
    except (Mistake, UserError) as mistake:
        # The command line itself cannot be read, so that is what the error was about.
        return str(mistake), 2
    message = explain(error, command.name, command.arguments, given)
    if message is not None:
        return message, 2
    message = reason_of(error)
    if message is None:
        return None
    # What begins with a key or a flag speaks of the config, the rest of data and files.
    return with_place(message, given), 2 if names_key(message) else 1


def _given(command: Command, words: list[str]) -> list[Source]:
    """What was written, for messages: configs, a checkpoint's config, and flags."""
    try:
        checkpoint = checkpoint_of(command, words)
        carried = [] if checkpoint is None else [read_carried(checkpoint).source]
    except UserError:
        carried = []
    return [*carried, *sources(words)]


def _fail(message: str, status: int) -> int:
    """Tell what went wrong, on the first of several ranks that fail; the others end with its status."""
    found = watch()
    first = None if found is None else found.fail(status)
    if found is None or first is None:
        print(f"error: {message}", file=sys.stderr, flush=True)
        return status
    if first.rank == found.place.rank:
        of_rank = f"rank {first.rank}: " if first.rank else ""
        print(f"error: {of_rank}{message}", file=sys.stderr, flush=True)
    return first.status


def _status_of_the_first(error: Exception) -> int | None:
    """The status of a rank whose end this error comes from; None where it is this rank's own error."""
    found = watch()
    if found is None or isinstance(error, UserError):
        return None
    is_of_connection = re.search(r"peer|gloo|NCCL|timed? ?out|broken pipe|connection", str(error), re.IGNORECASE)
    first = found.ending(REACH_SECONDS if is_of_connection else 0.2)
    return None if first is None else first.status
