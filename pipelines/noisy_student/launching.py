"""Runs a stage's command: in this process, or behind the words of ``launch`` in one of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from datamodules.common.files import write_text
from pipelines.config.allowed import trust_flags
from pipelines.config.carried import packages_of
from pipelines.config.errors import Mistake
from pipelines.noisy_student.manifest import StageError
from pipelines.noisy_student.settings import Settings, plain, trainer_of
from pipelines.run.masking import masked

#: Settings of the trainer for a command that trains nothing.
PLACEMENT = ("accelerator", "devices", "num_nodes", "strategy")
#: Launchers, and their flags, that a config may name: with others it could start any program.
LAUNCHERS = {
    "srun": "ntasks ntasks-per-node nodes cpus-per-task gres gpus-per-task gpus-per-node mem wait time partition"
    " account qos constraint exclusive kill-on-bad-exit",
    "torchrun": "nproc-per-node nnodes node-rank max-restarts rdzv-backend rdzv-id rdzv-endpoint standalone",
}
#: Of these, those that take a value only behind ``=``, or none.
SWITCHES = ("exclusive", "kill-on-bad-exit", "standalone")


def check_launch(words: Sequence[str]) -> None:
    """Refuse what a config, which may be a stranger's, would start in front of our commands.

    Raises:
        Mistake: Unless it is a known launcher with known flags.
    """
    if words and words[0] in LAUNCHERS and _are_known(words[1:], LAUNCHERS[words[0]].split()):
        return
    raise Mistake(
        ("launch",),
        f"launch is {list(words)}, but a config may only name srun or torchrun with flags of how many and where"
        f" (--{LAUNCHERS['torchrun'].split()[0]} and the like). What you know and trust, type:"
        f" --launch '{json.dumps(list(words))}'.",
    )


def _are_known(words: Sequence[str], known: Sequence[str]) -> bool:
    """Whether words are long flags of a launcher with their values, and nothing that could be a program."""
    rest = list(words)
    while rest:
        flag, has_value, _ = rest.pop(0).partition("=")
        name = flag.removeprefix("--").replace("_", "-")
        if not flag.startswith("--") or name not in known:
            return False
        if not has_value and name not in SWITCHES and (not rest or rest.pop(0).startswith("-")):
            return False
    return True


@dataclass(frozen=True)
class StageCommand:
    """A command that a stage runs.

    Attributes:
        name: For messages.
        module: What ``python -m`` runs, with the words before the flags.
        main: The same in this process: flags -> exit status.
    """

    name: str
    module: tuple[str, ...]
    main: Callable[[list[str]], int]


def run_command(command: StageCommand, words: list[str], launch: Sequence[str] | None) -> None:
    """Run a command of this program.

    Args:
        command: Which.
        words: Its flags.
        launch: Words before it; None runs it in this process.

    Raises:
        StageError: If it fails; its own message is above.
    """
    if launch is None:
        status = command.main(words)
    else:
        is_torchrun = bool(launch) and Path(launch[0]).name == "torchrun"  # which starts Python itself
        python = [] if is_torchrun else [sys.executable]
        status = subprocess.run([*launch, *python, "-m", *command.module, *words], check=False).returncode
    if status > 128:
        raise StageError(f"`{command.name}` was ended by a signal; give the same command again to continue.", status)
    if status:
        raise StageError(
            f"`{command.name}` ended with status {status}; fix what it names, then give the same command again."
        )


@contextmanager
def config_file(path: Path, config: Mapping[str, Any]) -> Iterator[Path]:
    """Write a command's config, and give the file that the command is to read.

    Secrets are ``***`` in what stays. Where there are some, the command reads a file beside it, which only the user can
    read, and which is gone behind the block.
    """
    shown = masked(config)
    write_text(path, yaml.safe_dump(shown, sort_keys=False, allow_unicode=True))
    secret = path.with_name(f".{path.name}")
    secret.unlink(missing_ok=True)  # of a process that was killed
    if shown == config:
        yield path
        return
    try:
        with open(os.open(secret, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w", encoding="utf-8") as file:
            yaml.safe_dump(dict(config), file, sort_keys=False, allow_unicode=True)
        yield secret
    finally:
        secret.unlink(missing_ok=True)


def trainer_flags(settings: Settings, *more: str) -> list[str]:
    """Flags of a command that trains nothing: where it runs, quietly, and whose classes a checkpoint may name.

    Args:
        settings: The loop's.
        more: Further keys of the trainer that count.
    """
    trainer: dict[str, Any] = trainer_of(settings)
    flags = [f"--trainer.{key}={trainer[key]}" for key in (*PLACEMENT, *more) if key in trainer]
    flags += ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
    return flags + trust_flags(packages_of(plain(settings)))
