"""The command line: LightningCLI with short class names, plain errors and a rule for checkpoints."""

from __future__ import annotations

import logging
import os
import re
import sys
import tempfile
import traceback
import warnings
from pathlib import Path
from typing import Any

import yaml
from pytorch_lightning.cli import ArgsType, LightningArgumentParser, LightningCLI
from pytorch_lightning.utilities.exceptions import (  # type: ignore[attr-defined]
    MisconfigurationException,
    SIGTERMException,
)

import datamodules.classification
import datamodules.detection
import datamodules.segmentation
import datamodules.semisupervised  # noqa: F401 - the parser knows the classes that were imported by their short names
import tasks  # noqa: F401
from datamodules.base import DataModule
from datamodules.common.errors import UserError
from pipelines.config.errors import (
    CHECKPOINT_MARK,
    constructor_message,
    load_config,
    names_key,
    unwrapped,
    with_place,
)
from pipelines.config.mistakes import explain
from pipelines.listing import PROGRAM, config_path
from pipelines.run.checkpoints import read_checkpoint_config
from pipelines.run.tracking import WandbRun
from pipelines.trainer import Trainer
from tasks.hooks import TaskHooks

#: Arguments of a Trainer method that are no flags.
NOT_FLAGS = {"model", "datamodule", "train_dataloaders", "val_dataloaders", "dataloaders"}
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
FROM_CHECKPOINT = ("validate", "test", "predict", "pseudo_label")
HOUSE = Path(__file__).parents[1]
OUR_PACKAGES = tuple(str(HOUSE / name) for name in ("pipelines", "tasks", "datamodules"))


class CLI(LightningCLI):
    """LightningCLI with this project's commands; the user's config is the only source of truth."""

    def __init__(self, command: str, **kwargs: Any) -> None:
        self.command = command
        super().__init__(TaskHooks, DataModule, **kwargs)

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """The command that is run, a method of the Trainer; parsers for all would take a tenth of a second."""
        return {self.command: NOT_FLAGS}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The run's name and place."""
        parser.add_argument("--name", type=str | None, default=None, help="Name of the run; the first config's stem.")
        parser.add_argument("--runs_dir", type=str, default="runs", help="Folder of all runs.")

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse the given words; Lightning's own warns of ``sys.argv``, which differs from them on purpose."""
        self.config = parser.parse_args(args)

    def _parse_ckpt_path(self) -> None:
        """Nothing: Lightning's own would let a checkpoint's hyper-parameters override the user's config, silently.

        https://github.com/Lightning-AI/pytorch-lightning/issues/20801
        """

    def before_instantiate_classes(self) -> None:
        """Keep the parsed config, which the run directory and the checkpoints will hold."""
        self._dump_config()

    def instantiate_classes(self) -> None:
        """Make the task, the datamodule and the trainer; what a constructor refuses is a mistake in the config."""
        try:
            super().instantiate_classes()
        except (ValueError, TypeError, OSError, MisconfigurationException) as error:
            reason = unwrapped(error)
            raise UserError(constructor_message(reason)) from reason

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The trainer, told its name, its place and the config."""
        trainer: Trainer = super().instantiate_trainer(**kwargs)  # type: ignore[assignment]
        self.config_dump["seed_everything"] = self._get(self.config, "seed_everything")
        trainer.config = self.config_dump
        trainer.run_name = self._get(self.config, "name") or "run"
        trainer.runs_dir = Path(self._get(self.config, "runs_dir"))
        return trainer

    def _run_subcommand(self, subcommand: str) -> None:
        """Run it, and close the W&B run behind it: nothing that was logged waits for the end of the process."""
        failed = True
        try:
            super()._run_subcommand(subcommand)
            failed = False
        finally:
            for logger in self.trainer.loggers:
                if isinstance(logger, WandbRun):
                    logger.finish(failed)


def main(args: list[str]) -> int:
    """Run one command of the command line.

    Args:
        args: The command and its flags.

    Returns:
        The exit status: 0 success, 1 a failure, 2 a mistake in the command or the config, 128 plus the number of the
        signal that ended a training.
    """
    quieten()
    try:
        args = complete(args)
        if args[0] == "fit" and is_loop(args):
            from pipelines.noisy_student.manifest import main as noisy_student

            return noisy_student(args[1:], one_generation=True)
        run(args)
    except SIGTERMException as stop:
        return int(stop.code or 0)
    except Exception as error:
        if os.environ.get("PIPELINES_TRACEBACK"):
            traceback.print_exc()
        message = explain(error, args)
        if message is not None:
            return _fail(message, 2)
        message = reason_of(error)
        if message is None:
            traceback.print_exc()
            return 1
        # What begins with a key or a flag speaks of the config, the rest of data and files.
        return _fail(with_place(message, args), 2 if names_key(message) else 1)
    return 0


def run(args: list[str]) -> CLI:
    """Parse and run; mistakes raise."""
    strict: dict[str, Any] = {"exit_on_error": False, "allow_abbrev": False}
    return CLI(
        args[0],
        subclass_mode_model=True,
        subclass_mode_data=True,
        trainer_class=Trainer,
        save_config_callback=None,
        seed_everything_default=0,
        auto_configure_optimizers=False,
        load_from_checkpoint_support=False,
        parser_kwargs={"prog": PROGRAM, **strict, args[0]: dict(strict)},
        args=args,
    )


def complete(args: list[str]) -> list[str]:
    """Fill in what may be left out: the path of a ready config, the config that a checkpoint carries, the run's name.

    Args:
        args: The command and its flags, as typed.

    Returns:
        The same with ``--config`` pointing to files and with a ``--name``.

    Raises:
        UserError: If a config or checkpoint does not exist, or nothing says what to run.
    """
    command, rest = args[0].replace("-", "_"), list(args[1:])  # the name of a method of the Trainer
    args = [command, *rest]
    if "--help" in rest or "-h" in rest or any(a.endswith(".help") for a in rest):
        return args
    configs: list[Path] = []
    for i, word in enumerate(rest):
        flag, _, value = word.partition("=")
        if flag not in ("--config", "-c"):
            continue
        if not value and i + 1 >= len(rest):
            raise UserError(f"{flag} needs a file, for example: {PROGRAM} {command} --config quickstart")
        path = _config_file(value or rest[i + 1])
        configs.append(path)
        if value:
            rest[i] = f"--config={path}"
        else:
            rest[i], rest[i + 1] = "--config", str(path)
    needs_none = command in FROM_CHECKPOINT or (command == "probe" and _value(rest, "--ckpt_path") is not None)
    if not configs and needs_none:
        checkpoint, name = _value(rest, "--ckpt_path"), _value(rest, "--name")
        if checkpoint in (None, "best", "last") and name is None:
            raise UserError(
                f"{command.replace('_', '-')} needs to know which model: give --ckpt_path FILE, or --config FILE"
                " (its newest run's best checkpoint is taken)."
            )
        from pipelines.run.directory import find_checkpoint

        found = find_checkpoint(_value(rest, "--runs_dir") or "runs", str(name), checkpoint)
        return [command, f"--config={_checkpoint_config(found)}", *rest]
    named = [config for config in configs if load_config(config).get("name")]
    if _value(rest, "--name") is None and configs and not named:
        rest = [*rest, "--name", configs[0].stem]
    return [command, *rest]


def is_loop(args: list[str]) -> bool:
    """Whether a config is that of ``noisy-student``, of which ``fit`` runs one generation."""
    configs = (args[i + 1] if word == "--config" else word[9:] for i, word in enumerate(args) if word[:8] == "--config")
    return any("students" in load_config(Path(config)) for config in configs)


def _value(words: list[str], flag: str) -> str | None:
    """The last value given to a flag, as ``--flag value`` or ``--flag=value``."""
    value = None
    for i, word in enumerate(words):
        if word == flag and i + 1 < len(words):
            value = words[i + 1]
        elif word.startswith(f"{flag}="):
            value = word.partition("=")[2]
    return value


def _config_file(name: str) -> Path:
    path = Path(name)
    if path.is_file():
        return path
    ready = config_path(name)
    if ready is None:
        raise UserError(
            f"--config {name}: there is no such file in {Path.cwd()}, and no ready config of that name."
            f" `{PROGRAM} list configs` shows the ready ones."
        )
    return ready


def _checkpoint_config(checkpoint: Path) -> Path:
    config = read_checkpoint_config(checkpoint)
    folder = Path(tempfile.mkdtemp(prefix="pipelines-"))
    path = folder / "config.yaml"
    text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
    path.write_text(f"{CHECKPOINT_MARK}{checkpoint}\n{text}", encoding="utf-8")
    return path


def quieten() -> None:
    """Leave out what libraries say that does not apply here."""
    for message in NOISE:
        warnings.filterwarnings("ignore", message=message)
    for name in ("pytorch_lightning", "lightning_fabric"):
        for handler in logging.getLogger(name).handlers:
            handler.addFilter(_worth_saying)


def _worth_saying(record: logging.LogRecord) -> bool:
    return not re.match(r"💡|`weights_only` was not|(\[rank: \d+\] )?Seed set to|TPU available", record.getMessage())


def reason_of(error: BaseException) -> str | None:
    """The message of an error that was raised for people; None for any other.

    Such are the errors of this project's code, also in a loader's worker process, and Lightning's about its settings.
    """
    text = str(error)
    # torch raises what happened in a worker again, with the worker's whole report as its message.
    files = re.findall(r'^  File "([^"]+)"', text, re.MULTILINE) if text.startswith("Caught ") else []
    if files and files[-1].startswith(OUR_PACKAGES):
        last = re.search(r"^[\w.]+: (.+)", text.rpartition("\n  File ")[2], re.MULTILINE | re.DOTALL)
        return last[1].strip() if last else None
    frames = traceback.extract_tb(error.__traceback__)
    ours = bool(frames) and frames[-1].filename.startswith(OUR_PACKAGES)
    return text if text and (ours or isinstance(error, MisconfigurationException)) else None


def _fail(message: str, status: int) -> int:
    # One rank speaks; the others end with the same status. The environment is torchrun's, Lightning's or srun's.
    ranks = [os.environ[name] for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID") if name in os.environ]
    if ranks[:1] in ([], ["0"]):
        print(f"error: {message}", file=sys.stderr, flush=True)
    return status
