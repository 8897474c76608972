"""``fit``, ``test`` and ``validate`` as functions: what the commands do, in the caller's process."""

from __future__ import annotations

import functools
import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from pytorch_lightning.utilities.seed import isolate_rng

from datamodules.common.errors import UserError
from pipelines import cli
from pipelines.command import Command
from pipelines.config.allowed import allowing
from pipelines.config.errors import sources
from pipelines.config.ready import complete
from pipelines.quiet import quieted_handlers, quieten
from pipelines.run.directory import best_or_last
from pipelines.trainer import Trainer

Config: TypeAlias = str | Path | Mapping[str, Any]


@dataclass(frozen=True)
class Run:
    """What a training or an evaluation has left.

    Attributes:
        directory: The run directory; None on ranks other than 0.
        metrics: Those of the end by name: of a training those of its last epoch (``train/loss``, ``val/accuracy``),
            of an evaluation its own (``test/accuracy``). A metric that is not defined is NaN.
    """

    directory: Path | None
    metrics: dict[str, float]

    @property
    def checkpoint(self) -> Path:
        """``best.ckpt`` of the run, or ``last.ckpt`` where there is no best.

        Raises:
            UserError: If the run has no checkpoint.
        """
        folder = (self.directory or Path()) / "checkpoints"
        found = best_or_last(folder)
        if found is None:
            raise UserError(f"There is no checkpoint in {folder}.")
        return found


def train(config: Config | Sequence[Config], **overrides: Any) -> Run:
    """Train a model: the command ``fit``.

        run = pipelines.train("classification/folder", data={"source": "my/birds"}, trainer={"max_epochs": 20})
        model = pipelines.load(run.checkpoint)

    Args:
        config: The name of a ready config, a YAML file, or its content as a dict; of several the later ones win.
        overrides: Keys of the config and flags of ``fit``, nested or with dots: ``name="birds"``, ``resume="auto"``,
            ``model={"backbone": "resnet50"}``, ``**{"model.optim.lr": 1e-3}``.

    Returns:
        The run and the metrics of its last epoch.

    Raises:
        UserError: For everything that can be put right, with the message of the command.
    """
    configs = [config] if isinstance(config, str | Path | Mapping) else list(config)
    return _run(Command("fit", _giving_run(Trainer.fit), starts_from_checkpoint=False), _words(*configs, overrides))


def evaluate(
    checkpoint: str | Path | Sequence[str | Path], split: Literal["test", "val"] = "test", **overrides: Any
) -> Run:
    """Measure a checkpoint: the command ``test``, or ``validate`` for ``split="val"``.

    Args:
        checkpoint: The file; several are fused, as by ``load``.
        split: ``test`` or ``val``.
        overrides: As for ``train``: ``data={"source": "other/birds"}`` measures it on other data.

    Returns:
        The run that the files were written to, and the metrics.

    Raises:
        UserError: As ``train``.
    """
    if split not in ("test", "val"):
        raise UserError(f"split is '{split}'; it is 'test' or 'val'.")
    name, method = ("test", Trainer.test) if split == "test" else ("validate", Trainer.validate)
    files = [checkpoint] if isinstance(checkpoint, str | Path) else list(checkpoint)
    ckpt_path = str(files[0]) if len(files) == 1 else [str(file) for file in files]
    return _run(Command(name, _giving_run(method)), _words({"ckpt_path": ckpt_path}, overrides))


def _giving_run(method: Callable[..., Any]) -> Callable[..., Run]:
    """A command of the Trainer that returns its run, with the same flags."""

    @functools.wraps(method)
    def command(trainer: Trainer, *args: Any, **kwargs: Any) -> Run:
        method(trainer, *args, **kwargs)
        return Run(trainer.run_dir, {name: float(value) for name, value in sorted(trainer.callback_metrics.items())})

    return command


def _run(command: Command, words: list[str]) -> Run:
    with _leaving_no_trace(), allowing(words):
        try:
            if command.name == "fit":
                _refuse_students(words)
            result: Run = cli.run(command, words)
        except SystemExit as end:
            if end.code == 130 or isinstance(end.__context__, KeyboardInterrupt):
                raise KeyboardInterrupt from end  # as any other Python call that is interrupted
            raise
        except Exception as error:
            message = cli.message_of(error, command, words)
            if message is None or (isinstance(error, UserError) and str(error) == message[0]):
                raise
            raise UserError(message[0]) from error
    return result


def _refuse_students(words: list[str]) -> None:
    """The command line hands a config with students on to the noisy student, which is many trainings."""
    if any("students" in source.values for source in sources(complete(["fit", *words])[1:])):
        raise UserError("train is one training; a config with students is for `python -m pipelines noisy-student`.")


def _words(*given: Config) -> list[str]:
    """The flags that say the same as configs and keys; a later one wins."""
    words: list[str] = []
    for one in given:
        words += [f"--config={one}"] if isinstance(one, str | Path) else _flags(one)
    return words


def _flags(values: Mapping[str, Any], key: str = "") -> list[str]:
    """``{"model": {"optim": {"lr": 1}}}`` as ``--model.optim.lr=1``."""
    words: list[str] = []
    values = dict(values)
    if "class_path" in values:
        words.append(f"--{key.removesuffix('.')}={values.pop('class_path')}")
        values |= values.pop("init_args", None) or {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            words += _flags(value, f"{key}{name}.")
        else:
            # Text as it is: a key that takes any text would keep the quotes.
            text = str(value) if isinstance(value, str | Path) else json.dumps(value, default=str)
            words.append(f"--{key}{name}={text}")
    return words


@contextmanager
def _leaving_no_trace() -> Iterator[None]:
    """Leave the caller's process as it was: random states, environment, warnings, logging and torch's switches.

    Lightning puts signal handlers back by itself.
    """
    environment = dict(os.environ)
    cudnn = torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic
    deterministic, warn_only = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    with isolate_rng(), warnings.catch_warnings(), quieted_handlers():
        quieten()
        try:
            yield
        finally:
            torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = cudnn
            torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
            os.environ.clear()
            os.environ.update(environment)
