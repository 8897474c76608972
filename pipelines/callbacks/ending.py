"""What is printed when a training ends: why it did, what was reached, and the next commands."""

from __future__ import annotations

import shlex
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pytorch_lightning.callbacks import EarlyStopping, Timer
from pytorch_lightning.utilities.exceptions import SIGTERMException  # type: ignore[attr-defined]

from pipelines.config.carried import packages_of
from pipelines.listing import PROGRAM
from pipelines.outputs.curves import Row, best_row, read_rows

MAX_METRICS = 20


def why_stopped(trainer: Any, exception: BaseException | None = None) -> str:
    """Why a training ended: its epochs or steps, a callback, its time, a signal."""
    if isinstance(exception, KeyboardInterrupt):
        return "stopped by Ctrl-C"
    if isinstance(exception, SIGTERMException):
        number = int(exception.args[0]) - 128
        return "stopped by Ctrl-C" if number == signal.SIGINT else f"stopped by {signal.Signals(number).name}"
    for callback in trainer.callbacks if trainer.should_stop else ():
        if isinstance(callback, EarlyStopping) and callback.stopping_reason_message:
            return f"early stopping: {callback.stopping_reason_message.partition('. ')[0].lower()}"
        remaining = callback.time_remaining() if isinstance(callback, Timer) else None
        if remaining is not None and remaining <= 0:
            return "trainer.max_time is over"
    if trainer.should_stop:
        return "a callback asked to stop"
    if 0 <= trainer.max_steps <= trainer.global_step:
        return f"trainer.max_steps ({trainer.max_steps}) is reached"
    return f"trainer.max_epochs ({trainer.max_epochs}) is reached"


def metric_lines(file: Path, monitor: str, mode: str) -> list[str]:
    """The validation metrics of the best and the last epoch, by name, from a run's ``metrics.csv``.

    Args:
        file: It may be missing.
        monitor: The metric that decides; of equal values the later one is the best, as for ``best.ckpt``.
        mode: ``max`` or ``min``.
    """
    rows = [row for row in read_rows(file) if any(key.startswith("val/") for key in row)]
    if not rows:
        return []
    best = best_row(rows, monitor, mode)
    shown = {"last": rows[-1]} if best is None else {"best": best, "last": rows[-1]}
    found = dict.fromkeys(key for row in shown.values() for key in row if key.startswith("val/"))
    names = sorted(found, key=lambda name: (name != monitor, name))
    width = max(map(len, names[:MAX_METRICS]))
    titles = [f"{what} (epoch {row['epoch'] + 1:.0f})" for what, row in shown.items()]
    head = " " * width + "".join(f"{title:>18}" for title in titles)
    lines = [f"{name:<{width}}" + "".join(f"{_text(row, name):>18}" for row in shown.values()) for name in names]
    more = [f"and {len(names) - MAX_METRICS} more in {file}"] if len(names) > MAX_METRICS else []
    return [head, *lines[:MAX_METRICS], *more]


def _text(row: Row, name: str) -> str:
    return f"{row[name]:.4f}" if name in row else "undefined"


def next_commands(trainer: Any, checkpoint: Path, config: Mapping[str, Any]) -> list[str]:
    """The commands that use a checkpoint: ``test`` where there is a test split, and ``predict``."""
    packages = packages_of(config)
    trust = [word for package in packages for word in ("--trust", package)]
    records = getattr(trainer.datamodule, "records", None) or {}
    source = ["--source", "PICTURES"]
    commands = [["test", *trust]] if records.get("test") else []
    commands.append(["predict", *source, *trust])
    return [command_line([name, "--ckpt_path", str(checkpoint), *rest]) for name, *rest in commands]


def resume_command(run: Path, config: Path) -> str:
    """The command that continues a run."""
    return command_line(["fit", "--config", str(config), "--resume", str(run)])


def command_line(words: Sequence[str]) -> str:
    """Words behind the program's name, as it was called, for a shell."""
    program = "pipelines" if Path(sys.argv[0]).name == "pipelines" else PROGRAM
    return f"{program} {shlex.join(words)}"
