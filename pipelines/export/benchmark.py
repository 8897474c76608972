"""How fast the network, an exported file and the runner around it are, on this machine and this run's pictures."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from datamodules.annotations.records import Record
from datamodules.base import DataModule
from pipelines.export.side import Array, Export
from pipelines.exported.metadata import metadata_path
from pipelines.exported.runner import Model
from pipelines.exported.runtime import open_exported
from tasks.base import Task

LEAST_CALLS, WARM_UP = 10, 3


@dataclass(frozen=True)
class Row:
    """One measurement; times in milliseconds.

    Attributes:
        format: ``pytorch``, or of the file with its precision.
        batch: Pictures in one call.
        threads: Of the runtime.
        p50: Median of a call of the network.
        p95: 95th percentile.
        throughput: Pictures a second, of the network alone.
        bare: Median of a call of the runtime itself, without our runner's function; None for PyTorch.
        prepare: Median of reading a picture and bringing it onto the canvas, one at a time.
        finish: Median of what follows the network, a picture.
        memory: MiB by which the process grew from before the file was opened.
        size: MiB of the file.
        metric: The task's own, where ``verify`` measured it.
    """

    format: str
    batch: int
    threads: int
    p50: float
    p95: float
    throughput: float
    bare: float | None
    prepare: float
    finish: float
    memory: float
    size: float
    metric: float | None


def timed(call: Callable[[], Any], seconds: float) -> list[float]:
    """Milliseconds of each of many calls, after some to warm up."""
    for _ in range(WARM_UP):
        call()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < LEAST_CALLS or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        times.append((time.perf_counter() - start) * 1000)
    return times


def memory() -> float:
    """MiB of this process; 0 where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


class Pictures:
    """Some pictures of a split, decoded and on the canvas as the runner does it."""

    def __init__(self, export: Export, records: Sequence[Record]) -> None:
        self.export, self.records = export, list(records)
        self.prepared = [export.model.prepare(export.decoded(record)) for record in self.records]

    def batch(self, size: int) -> Array:
        """As many of them as are asked for, again and again."""
        chosen = [self.prepared[i % len(self.prepared)][0] for i in range(size)]
        return self.export.model.batch(chosen)

    def prepare_times(self, seconds: float) -> list[float]:
        """Of reading and placing one picture."""
        turn = iter(range(10**9))

        def one() -> None:
            record = self.records[next(turn) % len(self.records)]
            self.export.model.prepare(self.export.decoded(record))

        return timed(one, seconds)


@torch.inference_mode()
def benchmark(
    task: Task,
    data: DataModule,
    files: Sequence[Path],
    split: str,
    *,
    batches: Sequence[int],
    threads: Sequence[int],
    seconds: float,
) -> list[Row]:
    """Measure PyTorch and each file.

    Args:
        task: With weights, in evaluation mode, on the CPU.
        data: Set up.
        files: Exported files, each with its metadata.
        split: Whose pictures.
        batches: Pictures a call; a file of one batch size is measured with that alone.
        threads: Of each runtime.
        seconds: Of each measurement.
    """
    first = Export(files[0], task, data.class_names or [], data.make_reader())
    pictures = Pictures(first, data.records[split][:16])
    prepare = float(np.median(pictures.prepare_times(seconds)))
    rows, before = [], torch.get_num_threads()
    weights = sum(value.numel() * value.element_size() for value in task.state_dict().values()) / 2**20
    for count in threads:
        torch.set_num_threads(count)
        for size in batches:
            image = torch.from_numpy(pictures.batch(size))
            start = memory()
            times = timed(lambda image=image: task.outputs(image), seconds)  # type: ignore[misc]
            rows.append(_row("pytorch", size, count, times, None, prepare, 0.0, memory() - start, weights, None))
    torch.set_num_threads(before)
    for path in files:
        for count in threads:
            rows += _of_file(path, pictures, batches, count, seconds, prepare)
    return rows


def _of_file(
    path: Path, pictures: Pictures, batches: Sequence[int], threads: int, seconds: float, prepare: float
) -> list[Row]:
    start = memory()
    model = Model(metadata_path(path), threads)
    about, rows = model.about, []
    verified = about.get("verified")
    of_file = path.stat().st_size + (path.with_suffix(".bin").stat().st_size if path.suffix == ".xml" else 0)
    for size in batches if about["input"]["batch"] is None else [about["input"]["batch"]]:
        batch = pictures.batch(size)
        times = timed(lambda batch=batch: model.run(batch), seconds)  # type: ignore[misc]
        bare = timed(bare_call(path, about, threads, batch), seconds)
        outputs = {name: value[0] for name, value in model.run(batch).items()}
        geometry = pictures.prepared[0][1]
        finish = timed(lambda o=outputs, g=geometry: model.finish(o, g), min(seconds, 0.5))  # type: ignore[misc]
        name = f"{about['format']} {about['precision']}"
        metric = verified["export"] if verified else None
        row = _row(name, size, threads, times, bare, prepare, finish, memory() - start, of_file / 2**20, metric)
        rows.append(row)
    return rows


def bare_call(path: Path, about: dict[str, Any], threads: int, batch: Array) -> Callable[[], Any]:
    """A call of the runtime as its own documentation has it."""
    if about["format"] != "onnx":
        run = open_exported(path, about["format"], threads)
        return lambda: run(batch)
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"image": batch})


def _row(
    name: str,
    size: int,
    threads: int,
    times: list[float],
    bare: list[float] | None,
    prepare: float,
    finish: list[float] | float,
    grown: float,
    of_file: float,
    metric: float | None,
) -> Row:
    p50, p95 = (float(value) for value in np.percentile(times, [50, 95]))
    return Row(
        name,
        size,
        threads,
        p50,
        p95,
        1000 * size / p50,
        None if bare is None else float(np.median(bare)),
        prepare,
        float(np.median(finish)),
        grown,
        of_file,
        metric,
    )


def as_table(rows: Sequence[Row]) -> str:
    """The rows in columns."""
    heads = (
        "format",
        "batch",
        "threads",
        "p50",
        "p95",
        "pictures/s",
        "bare p50",
        "prepare",
        "finish",
        "MiB",
        "file MiB",
    )
    lines = [[*heads, "metric"]]
    for row in rows:
        values = [row.p50, row.p95, row.throughput, row.bare, row.prepare, row.finish, row.memory, row.size, row.metric]
        plain = ["-" if value is None else f"{value:.4g}" for value in values]
        lines.append([row.format, str(row.batch), str(row.threads), *plain])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    aligned = ["  ".join(word.rjust(width) for word, width in zip(line, widths, strict=True)) for line in lines]
    return "\n".join(aligned)


def as_values(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The rows as plain values, for JSON."""
    return [asdict(row) for row in rows]
