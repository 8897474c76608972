"""What it costs to ask for help: each command in a process of its own, wall and CPU seconds."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.common import Row, Unavailable, alternate, row

HOME = Path(__file__).resolve().parent.parent
GOAL = "<= 0.3"
COMMANDS = {
    "--help": ["-m", "pipelines", "--help"],
    "--version": ["-m", "pipelines", "--version"],
    "list": ["-m", "pipelines", "list"],
    "(python alone)": ["-c", "pass"],
}


def run(repeats: int, fit_help: bool = True) -> tuple[dict[str, Any], list[Row]]:
    """Measure.

    Args:
        repeats: Rounds.
        fit_help: Also ``fit --help``, once; it imports all of torch and Lightning, and has no goal.
    """
    cpu: dict[str, list[float]] = {name: [] for name in COMMANDS}

    def command(name: str) -> float:
        wall, used = time_process(COMMANDS[name])
        cpu[name].append(used)
        return wall

    command("--help")  # the first one reads files from disk
    cpu["--help"].clear()
    wall = alternate({name: partial(command, name) for name in COMMANDS}, repeats)
    rows: list[Row] = []
    for name in COMMANDS:
        goal = GOAL if not name.startswith("(") else ""
        rows += [row(f"{name}, wall", wall[name], "s", goal), row(f"{name}, cpu", cpu[name], "s", goal)]
    if fit_help:
        seconds, used = time_process(["-m", "pipelines", "fit", "--help"])
        rows += [row("fit --help, wall", [seconds], "s"), row("fit --help, cpu", [used], "s")]
    return {}, rows


def time_process(arguments: list[str]) -> tuple[float, float]:
    """Wall and CPU seconds of ``python arguments``, its own children included.

    Raises:
        Unavailable: If it fails.
    """
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=HOME,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    assert process.stderr is not None
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise Unavailable(f"python {' '.join(arguments)} failed: {errors.decode(errors='replace').strip()[-500:]}")
    return wall, usage.ru_utime + usage.ru_stime
