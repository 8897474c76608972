"""Measures checkpoints on splits, as a stage's command: ``python -m`` this module.

A module and no word of the command line, since only ``ensemble`` gives it.
"""

from __future__ import annotations

import functools
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from datamodules.base import DataModule
from pipelines import cli
from pipelines.callbacks.report import Report
from pipelines.command import Command
from pipelines.evaluation import start_evaluation
from pipelines.report.measured import file_of, read, write
from pipelines.stages.launching import StageCommand
from pipelines.trainer import Trainer
from tasks.hooks import TaskHooks


def measure(
    trainer: Trainer,
    model: TaskHooks,
    datamodule: DataModule,
    output: str,
    splits: list[str],
    ckpt_path: str | list[str] | None = None,
) -> None:
    """Write ``SPLIT_images.npz`` of each split: what was measured on each image, see ``pipelines.report.measured``.

    Args:
        trainer: Where to run.
        model: The task of the checkpoint; of several an ensemble.
        datamodule: The data that it was trained with.
        output: The folder to write to.
        splits: ``train``, ``val``, ``test``.
        ckpt_path: The checkpoint, or several.
    """
    checkpoint = start_evaluation(trainer, model, datamodule, ckpt_path, "predict", output)
    trainer.callbacks.append(Report(Path(output), page=False))  # type: ignore[attr-defined]
    own, data = dict(datamodule.records), datamodule
    loaders = {"train": data.train_features_dataloader, "val": data.val_dataloader, "test": data.test_dataloader}
    for split in sorted(splits, key="val".__eq__):  # the validation itself last: all are written to its file first
        data.records = {**own, "val": own[split]}
        data.val_dataloader = loaders[split]  # type: ignore[method-assign]
        with trainer.one_command():
            pl.Trainer.validate(trainer, model, None, checkpoint, False, data)
        if trainer.is_global_zero:
            written = file_of(Path(output), "val")
            measured = read(written)
            written.unlink()
            write(replace(measured, facts={**measured.facts, "split": split}), file_of(Path(output), split))


main = functools.partial(cli.execute, Command("measure", measure))


MEASURE = StageCommand("measure", ("pipelines.combining.measuring",), main)


def flags_of_measure(checkpoints: list[Path], output: Path, splits: list[str]) -> list[str]:
    """The words of the command, for one checkpoint or several."""
    files: Any = str(checkpoints[0]) if len(checkpoints) == 1 else f"[{','.join(map(str, checkpoints))}]"
    return ["--ckpt_path", files, "--output", str(output), f"--splits=[{','.join(splits)}]"]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
