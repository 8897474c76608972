"""What all benchmarks share: interleaved timing, the table, the JSON file."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from datamodules.common import files
from datamodules.loaders import available_cores

PACKAGES = (
    *("torch", "torchvision", "pytorch-lightning", "timm", "albumentations", "torchmetrics", "simplejpeg"),
    *("opencv-python-headless", "pillow", "pillow-simd", "numpy", "jsonargparse"),
)


class Unavailable(Exception):
    """This machine cannot run the benchmark; the message is one line for people."""


@dataclass(frozen=True)
class Row:
    """One figure.

    Attributes:
        name: What was measured.
        value: The median over the repeats.
        unit: Of the value.
        goal: ``<= 1.2`` or ``>= 0.97``; empty for a figure that is only told.
        runs: The value of each repeat.
    """

    name: str
    value: float
    unit: str
    goal: str = ""
    runs: tuple[float, ...] = ()

    @property
    def met(self) -> bool | None:
        """Whether the goal is met; None without one."""
        if not self.goal:
            return None
        sign, bound = self.goal.split()
        return self.value <= float(bound) if sign == "<=" else self.value >= float(bound)


def alternate(variants: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """Run all variants ``repeats`` times in turns, each round starting with another one.

    Neighbors on the machine come and go; in turns they disturb all variants alike.

    Args:
        variants: Name -> function that runs the variant once and returns its time.
        repeats: Number of rounds.

    Returns:
        Name -> the times, in the order of the rounds.
    """
    names = list(variants)
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(repeats):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            times[name].append(variants[name]())
    return times


def row(name: str, values: Sequence[float], unit: str, goal: str = "") -> Row:
    """The median of the repeats as a row."""
    return Row(name, statistics.median(values), unit, goal, tuple(values))


def per_round(
    function: Callable[[float, float], float], first: Sequence[float], second: Sequence[float]
) -> list[float]:
    """A difference or ratio of two variants, taken within each round, where both met the same neighbors."""
    return [function(a, b) for a, b in zip(first, second, strict=True)]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Send what a training prints, its progress bar included, nowhere; it is still formatted, as part of the cost."""
    logging.disable(logging.WARNING)  # Lightning's handler keeps the stderr of its import
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)


class Marks:
    """A loader that notes the clock when a batch is asked for: the same loader for every variant.

    Args:
        loader: An iterable of batches, of which ``warm_up + steps + 1`` are given.
        warm_up: Batches before the first mark.
        steps: Batches between the two marks.
        clock: Seconds; CPU seconds of the process by default, which neighbors on the machine do not change.
    """

    def __init__(self, loader: Any, warm_up: int, steps: int, clock: Callable[[], float] = time.process_time) -> None:
        self.loader, self.warm_up, self.steps, self.clock = loader, warm_up, steps, clock
        self.times: list[float] = []

    def __len__(self) -> int:
        return self.warm_up + self.steps + 1

    def __iter__(self) -> Iterator[Any]:
        self.times = []
        for number, batch in enumerate(self.loader):
            if number in (self.warm_up, self.warm_up + self.steps):
                self.times.append(self.clock())
            yield batch
            if number == self.warm_up + self.steps:
                return

    def seconds_per_step(self) -> float:
        """Seconds between the marks over the number of steps."""
        return (self.times[1] - self.times[0]) / self.steps


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    info: dict[str, Any] = {
        "cpu": _cpu_name(),
        "cores": available_cores(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "system": platform.platform(),
        "python": platform.python_version(),
    }
    torch = sys.modules.get("torch")  # not imported for it: `startup` needs no torch
    if torch is not None and torch.cuda.is_available():
        info["gpu"] = torch.cuda.get_device_name()
    return info


def _cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Versions of the packages that matter, those that are installed."""
    found: dict[str, str] = {}
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def table(rows: Sequence[Row]) -> str:
    """The rows as text for people."""
    width = max(len(r.name) for r in rows)
    lines = []
    for r in rows:
        spread = f"{min(r.runs):.3g} to {max(r.runs):.3g}" if len(r.runs) > 1 else ""
        verdict = "" if r.met is None else f"goal {r.goal}: {'met' if r.met else 'MISSED'}"
        lines.append(f"  {r.name:<{width}}  {r.value:>10.3f} {r.unit:<14}  {spread:<18}  {verdict}".rstrip())
    return "\n".join(lines)


def write_json(path: str | Path, benchmark: str, settings: Mapping[str, Any], rows: Sequence[Row]) -> None:
    """Write settings, machine, versions and all figures of a benchmark as one JSON object."""
    content = {
        "benchmark": benchmark,
        "settings": dict(settings),
        "machine": machine(),
        "versions": versions(),
        "results": [{**asdict(r), "met": r.met} for r in rows],
    }
    files.write_json(path, content)
