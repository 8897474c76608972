"""Ordinary trainings and tests that are stages of a larger command: of folds, curves, ensembles and the loop."""

from __future__ import annotations

import copy
import os
import shlex
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from datamodules.common.errors import UserError
from pipelines import cli
from pipelines.config.allowed import trust_flags
from pipelines.config.carried import packages_of
from pipelines.config.values import merged
from pipelines.run.directory import best_or_last, runs_of
from pipelines.stages.launching import StageCommand, config_file, run_command
from pipelines.stages.manifest import StageError

FIT = StageCommand("fit", ("pipelines", "fit"), lambda words: cli.main(["fit", *words]))
TEST = StageCommand("test", ("pipelines", "test"), lambda words: cli.main(["test", *words]))
PARTS = ("seed_everything", "model", "data", "trainer")  # of a config that say what is trained
#: Settings of the trainer that ``test`` takes over.
OF_TEST = ("accelerator", "devices", "num_nodes", "strategy", "precision", "enable_progress_bar", "report")
#: Settings of the trainer that change nothing in what comes out: changing them repeats nothing.
COSMETIC = (
    *("wandb", "enable_progress_bar", "enable_model_summary", "log_every_n_steps", "logger", "profiler"),
    *("save_every_minutes", "save_every_n_steps", "num_sanity_val_steps", "default_root_dir", "report"),
)


def config_of_one(config: dict[str, Any], launch: str | None, command: str) -> dict[str, Any]:
    """The config of one training; without ``launch`` on one device.

    Raises:
        UserError: If there are several processes already, or several devices are asked for without ``launch``.
    """
    ranks = [name for name in ("RANK", "LOCAL_RANK") if name in os.environ]
    if ranks:
        raise UserError(
            f"{command} is one process, but {ranks[0]} is set: start it without a launcher, and give the launcher as"
            " --launch."
        )
    check_program(launch)
    kept = copy.deepcopy({key: config[key] for key in PARTS if key in config})
    if launch is None:
        if kept["trainer"].get("devices", "auto") == "auto":
            kept["trainer"]["devices"] = 1
        if num_devices(kept["trainer"]) != 1:
            raise UserError(
                f"trainer.devices is {kept['trainer']['devices']}: {command} runs in one process on one device. Give"
                " --launch 'torchrun --nproc-per-node N' for several, or set trainer.devices to 1."
            )
    return kept


def num_devices(trainer: Mapping[str, Any]) -> int | None:
    """How many devices a trainer's settings ask for, over all nodes; None where Lightning is to find out."""
    devices, nodes = trainer.get("devices", "auto"), int(trainer.get("num_nodes", 1))
    if isinstance(devices, list):
        return len(devices) * nodes
    return int(devices) * nodes if str(devices).isdigit() else None


def outcome(config: Mapping[str, Any]) -> dict[str, Any]:
    """What of a command's config its outcome depends on, without paths of files, whose digests are inputs."""
    kept: dict[str, Any] = copy.deepcopy(dict(config))
    arguments = kept["data"]["init_args"]
    for half in (kept["data"], arguments.get("labeled"), arguments.get("unlabeled")):
        if half is not None:
            for key in ("split_file", "weight_file"):
                half["init_args"].pop(key, None)
    if arguments.get("unlabeled") is not None:
        arguments["unlabeled"]["init_args"].pop("source")
    kept["trainer"] = {key: value for key, value in kept["trainer"].items() if key not in COSMETIC}
    return kept


def grouped(trainer: dict[str, Any], group: str, job_type: str) -> dict[str, Any]:
    """A trainer's settings with a group and a job type for W&B, unless the config names others."""
    chosen = trainer.get("wandb") or {}
    named = {"group": chosen.get("group") or group, "job_type": chosen.get("job_type") or job_type}
    return merged(trainer, {"wandb": named})


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """A training that a signal has ended ends the command with its status, without a message of its own."""
    try:
        yield
    except StageError as error:
        if error.status > 128:
            raise SystemExit(error.status) from error
        raise


def train_and_test(folder: Path, config: dict[str, Any], launch: str | None) -> Path:
    """``fit`` in runs of this folder, going on with one that was stopped, and ``test`` of its best checkpoint.

    Returns:
        The run directory.
    """
    run = fit_in(folder, config, launch)
    trust, words = trust_flags(packages_of(config)), words_of(launch)
    run_command(TEST, ["--ckpt_path", str(best_of(run)), *flags_of_test(config), *trust], words)
    return run


def fit_in(folder: Path, config: dict[str, Any], launch: str | None) -> Path:
    """``fit`` in runs of this folder, going on with one that was stopped.

    Returns:
        The run directory.
    """
    with config_file(folder / "config.yaml", config) as file:
        place = ["--name", folder.name, "--runs_dir", str(folder.parent)]
        trust = trust_flags(packages_of(config))
        run_command(FIT, ["--config", str(file), *place, "--resume", "auto", *trust], words_of(launch))
    return runs_of(folder.parent, folder.name)[-1]


def best_of(run: Path) -> Path:
    """The checkpoint of a run that counts: the best, or the last where there is no validation."""
    checkpoints = run / "checkpoints"
    return best_or_last(checkpoints) or checkpoints / "last.ckpt"


def check_program(launch: str | None) -> None:
    """Refuse words of ``--launch`` that start nothing, before anything is done.

    Raises:
        UserError: If they are none, a quote is open, or there is no such program.
    """
    if launch is None:
        return
    try:
        words = shlex.split(launch)
    except ValueError as error:
        raise UserError(f"--launch is {launch!r}: {error}.") from None
    if not words:
        raise UserError("--launch is empty; give a launcher, as 'torchrun --nproc-per-node 2', or leave it out.")
    if shutil.which(words[0]) is None:
        raise UserError(
            f"--launch is '{launch}', but there is no program {words[0]} here: give another, or leave it out."
        )


def words_of(launch: str | None) -> list[str] | None:
    """The words of ``--launch``."""
    return None if launch is None else shlex.split(launch)


def flags_of_test(config: dict[str, Any]) -> list[str]:
    """The settings of a config's trainer that an evaluation takes over, as flags."""
    given = {key: config["trainer"].get(key) for key in OF_TEST}
    return [f"--trainer.{key}={str(value).lower()}" for key, value in given.items() if _is_plain(value)]


def _is_plain(value: Any) -> bool:
    return value is not None and value != "auto" and isinstance(value, str | int | float)
