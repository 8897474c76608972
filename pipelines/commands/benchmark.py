"""``benchmark``: latency, throughput, memory and size of a checkpoint, and of what is exported from it."""

from __future__ import annotations

import functools
import os
from typing import Any, Literal, get_args

from datamodules.base import DataModule
from datamodules.common.errors import UserError
from datamodules.common.files import write_json
from pipelines import cli
from pipelines.command import Command
from pipelines.commands.export import target_of
from pipelines.commands.verify import load_weights
from pipelines.export.benchmark import as_table, as_values
from pipelines.export.benchmark import benchmark as measure
from pipelines.export.verify import verify
from pipelines.export.writing import Format, Precision, Settings, write_export
from pipelines.run.directory import find_checkpoint
from pipelines.trainer import Trainer
from tasks.hooks import TaskHooks


def benchmark(
    trainer: Trainer,
    model: TaskHooks,
    datamodule: DataModule,
    ckpt_path: str | None = None,
    format: str = "onnx",
    precision: Precision = "fp32",
    batch: str = "1,8",
    threads: str | None = None,
    seconds: float = 2.0,
    split: Literal["val", "test"] = "val",
    output: str | None = None,
) -> list[dict[str, Any]]:
    """Measure a checkpoint in PyTorch and in exported formats on the CPU: one table, and JSON.

    Args:
        trainer: Knows the run.
        model: The task.
        datamodule: The data.
        ckpt_path: A file, ``best`` or ``last``; ``best`` of the newest run of this name by default.
        format: One or several: ``onnx,openvino,torch_export``.
        precision: Of the exported files.
        batch: Pictures a call, one or several numbers: ``1,8``.
        threads: Of the runtime, one or several numbers; 1 and all cores by default.
        seconds: Of each measurement.
        split: Whose pictures.
        output: The JSON file; ``benchmark.json`` beside the exported files by default.

    Returns:
        The rows of the table, see ``pipelines.export.benchmark.Row``.
    """
    formats = format.split(",")
    unknown = [name for name in formats if name not in get_args(Format)]
    if unknown:
        raise UserError(f"--format is '{format}'; it takes {', '.join(get_args(Format))}, or several with commas.")
    sizes = _numbers("--batch", batch)
    counts = sorted({1, os.cpu_count() or 1}) if threads is None else _numbers("--threads", threads)
    checkpoint = find_checkpoint(trainer.runs_dir, trainer.run_name, ckpt_path)
    files = []
    for name in formats:
        settings = Settings(name, precision, ("batch",) if sizes != [1] else ())  # type: ignore[arg-type]
        settings.check(model.taught)
        task = load_weights(trainer, model, datamodule, [checkpoint], "validate" if split == "val" else "test")
        beside = target_of([checkpoint], None, name)
        target = beside.with_name(f"{beside.stem}_{name}_{precision}{beside.suffix}")
        write_export(task, datamodule, [checkpoint], target, settings)
        outcome = verify(task.float(), datamodule, target, split=split)
        if not outcome["passed"]:
            raise UserError(f"The export {target} is not the same model: {outcome['reason']}.")
        files.append(target)
    rows = measure(task, datamodule, files, split, batches=sizes, threads=counts, seconds=seconds)
    path = output or str(files[0].with_name("benchmark.json"))
    write_json(path, as_values(rows))
    print(f"{as_table(rows)}\nmilliseconds; written to {path}", flush=True)
    return as_values(rows)


main = functools.partial(cli.execute, Command("benchmark", benchmark))


def _numbers(flag: str, text: str) -> list[int]:
    """Numbers with commas between.

    Raises:
        UserError: If there are none.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdigit() and int(part) > 0 for part in parts):
        raise UserError(f"{flag} is '{text}'; it takes numbers of 1 or more, with commas between.")
    return [int(part) for part in parts]
