"""``export``: a checkpoint as a file that runs elsewhere, proved to be the same model."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from datamodules.base import DataModule
from datamodules.common.errors import UserError
from pipelines import cli
from pipelines.command import Command
from pipelines.commands.verify import checkpoints_of, load_weights, print_outcome
from pipelines.export.verify import check_tolerance
from pipelines.export.verify import verify as verify_file
from pipelines.export.writing import Format, Precision, Settings, file_size, write_export
from pipelines.exported.metadata import SUFFIXES
from pipelines.run.directory import run_of_checkpoint
from pipelines.trainer import Trainer
from tasks.hooks import TaskHooks


def export(
    trainer: Trainer,
    model: TaskHooks,
    datamodule: DataModule,
    ckpt_path: str | list[str] | None = None,
    format: Format = "onnx",
    precision: Precision = "fp32",
    dynamic: str = "",
    nms: Literal["inside", "outside"] = "inside",
    output: str | None = None,
    verify: bool = True,
    split: Literal["val", "test"] = "val",
    tolerance: float | None = None,
) -> dict[str, Any]:
    """Write a checkpoint as a file that needs none of this program, and compare both on the run's own images.

    Beside the file lie ``NAME.json``, which describes it, and ``NAME_runner.py``, which runs it.

    Args:
        trainer: Knows the run.
        model: The task.
        datamodule: The data.
        ckpt_path: A file, ``best`` or ``last``; ``best`` of the newest run of this name by default. Several files of
            classifiers or segmentations leave as one model, with the mean of their probabilities.
        format: ``onnx``, ``torch_export`` (.pt2) or ``openvino`` (.xml and .bin).
        precision: ``fp32``; ``fp16``, weights and activations in 16 bits; ``int8``, calibrated on training images.
        dynamic: What may differ from call to call: ``batch``, ``size`` or ``batch,size``.
        nms: Whether boxes are suppressed inside the graph or by the runner.
        output: The file; ``export/NAME`` in the run directory by default. Several checkpoints need it.
        verify: Compare checkpoint and file, and refuse a file that is not the same model.
        split: Whose images are compared.
        tolerance: By how much the metric may fall: 0.001 by default, 0.01 for 8 bits.

    Returns:
        The metadata, with the outcome in ``verified``.

    Raises:
        UserError: If the network cannot be exported, or the file is refused.
    """
    settings = Settings(format, precision, tuple(dynamic.split(",")) if dynamic else (), nms)  # type: ignore[arg-type]
    settings.check(model.taught)
    check_tolerance(tolerance)
    checkpoints = checkpoints_of(trainer, model, ckpt_path)
    target = target_of(checkpoints, output, format)
    needs_data = verify or precision == "int8"
    task = load_weights(trainer, model, datamodule, checkpoints, "validate" if split == "val" else "test", needs_data)
    about = write_export(task, datamodule, checkpoints, target, settings)
    size = file_size(about, target)
    print(f"{target} ({about['exporter']}, {size / 2**20:.1f} MiB), with its .json and _runner.py", flush=True)
    if verify:
        again = task if precision != "fp16" or format != "torch_export" else task.float()
        about["verified"] = outcome = verify_file(again, datamodule, target, split=split, tolerance=tolerance)
        print_outcome(outcome, target)
    return about


main = functools.partial(cli.execute, Command("export", export))


def target_of(checkpoints: Sequence[Path], output: str | None, format: str) -> Path:
    """Where an export goes.

    Raises:
        UserError: If the name that was given has another format's suffix, or several checkpoints have none.
    """
    suffix, checkpoint = SUFFIXES[format], checkpoints[0]
    if output is None and len(checkpoints) > 1:
        raise UserError(f"Several checkpoints have no run directory of their own: give --output FILE{suffix}.")
    if output is None:
        run = run_of_checkpoint(checkpoint)
        folder = run / "export" if run is not None else checkpoint.parent
        return folder / f"{checkpoint.stem}{suffix}"
    if Path(output).suffix != suffix:
        raise UserError(f"--output is {output}; the name of a file of --format {format} ends in {suffix}.")
    return Path(output)
