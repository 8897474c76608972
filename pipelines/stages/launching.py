"""Runs a stage's command: in this process, or behind the words of ``launch`` in one of its own."""

from __future__ import annotations

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
from pipelines.run.masking import masked
from pipelines.stages.manifest import StageError


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
