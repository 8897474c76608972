"""``folds``: cross-validation. Each fold is an ordinary ``fit`` and ``test``; finished folds are not done again."""

from __future__ import annotations

import copy
import csv
import functools
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from datamodules.common.errors import UserError
from datamodules.common.files import atomic_path, read_json, write_json
from datamodules.folds import fold_numbers, splits_of_fold
from pipelines import cli
from pipelines.callbacks.ending import command_line
from pipelines.command import Command
from pipelines.run.directory import runs_of
from pipelines.stages.fits import (
    best_of,
    config_of_one,
    ended_by_signals,
    grouped,
    outcome,
    train_and_test,
)
from pipelines.stages.manifest import Output, digest_of, only_one, run_stage, say
from pipelines.statistics import folds_interval
from pipelines.trainer import Trainer
from tasks.hooks import TaskHooks


def folds(
    trainer: Trainer,
    model: TaskHooks,
    datamodule: pl.LightningDataModule,
    folds: int = 5,
    launch: str | None = None,
) -> dict[str, Any]:
    """Cross-validate: train and test once for each fold, and report mean and interval of every metric.

    The folds are drawn from all images but those that the source itself keeps for its test, stratified by class, whole
    groups together where ``data.group`` is set. A fold's images are its test; ``data.val_fraction`` of the others
    choose its best epoch. The same command goes on where it was stopped.

    Args:
        trainer: Its settings are those of each fold's.
        model: The task.
        datamodule: The data.
        folds: Number of folds.
        launch: Words before each command, as 'srun' or 'torchrun --nproc-per-node 8'; without it all runs in this
            process, on one device.

    Returns:
        What ``runs/NAME-folds/folds.json`` holds.
    """
    if trainer.config is None:
        raise UserError("folds needs a config: use the command, or pipelines.train in a loop.")
    config = config_of_one(trainer.config, launch, "folds")
    root = (trainer.runs_dir / f"{trainer.run_name}-folds").resolve()
    with only_one(root, "folds"), ended_by_signals():
        splits = _write_splits(root, datamodule, folds)
        directories = []
        for fold, file in enumerate(splits):
            directory = root.parent / f"{trainer.run_name}-fold{fold}"
            _train(directory, config, file, launch, trainer.run_name)
            directories.append(directory)
        return _report(root, directories, splits, model.taught.monitor)


main = functools.partial(cli.execute, Command("folds", folds, starts_from_checkpoint=False))


def _write_splits(root: Path, datamodule: Any, folds: int) -> list[Path]:
    """``fold0.json``, ...: the splits of each fold, of all images."""
    for key in ("split_file", "test_fraction", "val_fraction", "split_seed"):
        if not hasattr(datamodule, key):
            raise UserError(f"folds needs data with data.{key}; {type(datamodule).__name__} has none.")
    if datamodule.split_file is not None:
        raise UserError("data.split_file is set, but folds draws its own splits: leave it out.")
    datamodule.test_fraction = 0.0  # a test split is the source's own now
    datamodule.setup("fit")
    records = [record for split in ("train", "val") for record in datamodule.records[split]]
    kept = [record["path"] for record in datamodule.records.get("test") or []]
    numbers = fold_numbers(records, folds, datamodule.split_seed)
    files = []
    for fold in range(folds):
        found = splits_of_fold(records, numbers, fold, datamodule.val_fraction, datamodule.split_seed)
        file = root / f"fold{fold}.json"
        write_json(file, {**found, "kept": kept})
        files.append(file)
    say(f"{len(records)} images in {folds} folds" + (f"; {len(kept)} test images are kept" if kept else ""), "folds")
    return files


def _train(directory: Path, config: dict[str, Any], splits: Path, launch: str | None, name: str) -> None:
    """One fold: its training and its test."""
    own = copy.deepcopy(config)
    own["data"]["init_args"] |= {"split_file": str(splits), "test_fraction": 0.0}
    own["trainer"] = grouped(own["trainer"], f"{name}-folds", "fold")

    def work(folder: Path) -> dict[str, str]:
        run = train_and_test(folder, own, launch)
        return {"test": f"{run.name}/test.json"}

    inputs = {"split": Output(splits, digest_of(splits))}
    run_stage(directory, outcome(own), inputs, work, "folds")


def _report(root: Path, directories: list[Path], splits: list[Path], monitor: str) -> dict[str, Any]:
    """Write ``folds.json`` and ``predictions.csv``, and print the table."""
    runs = [runs_of(directory.parent, directory.name)[-1] for directory in directories]
    results = [read_json(run / "test.json") for run in runs]
    sizes = [{name: len(paths) for name, paths in read_json(file).items()} for file in splits]
    share = sum(size["test"] for size in sizes) / sum(size["train"] for size in sizes)
    main_metric = f"test/{monitor.partition('/')[2]}"
    names = [name for name in results[0] if all(isinstance(result.get(name), int | float) for result in results)]
    names.sort(key=lambda name: (name != main_metric, name))
    report = {
        "folds": len(runs),
        "images": sizes,
        "metric": main_metric,
        "metrics": {name: folds_interval([result[name] for result in results], share) for name in names},
        "runs": [str(run) for run in runs],
    }
    write_json(root / "folds.json", report)
    _join_predictions(runs, root / "predictions.csv")
    width = max(map(len, names))
    lines = [f"{'':<{width}}      mean        sd   interval of 95 %  each fold"]
    for name in names:
        row = report["metrics"][name]  # type: ignore[index]
        each = " ".join(f"{value:.4f}" for value in row["each"])
        low_high = f"[{row['low']:.4f}, {row['high']:.4f}]"
        lines.append(f"{name:<{width}}  {row['mean']:>8.4f}  {row['sd']:>8.4f}  {low_high:>17}  {each}")
    checkpoints = ",".join(str(best_of(run)) for run in runs)
    use = command_line(["predict", "--ckpt_path", f"[{checkpoints}]", "--source", "PICTURES"])
    print("\n".join(["", *lines, "", f"written to {root}", f"all folds together: {use}"]), flush=True)
    return report


def _join_predictions(runs: list[Path], output: Path) -> None:
    """The predictions of all images, each by the model that has not seen it, with the fold's number."""
    rows: list[dict[str, str]] = []
    for fold, run in enumerate(runs):
        file = run / "predictions.csv"
        if not file.is_file():
            return
        with open(file, newline="", encoding="utf-8") as lines:
            rows += [{"fold": str(fold), **row} for row in csv.DictReader(lines)]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with atomic_path(output) as path, open(path, "w", newline="", encoding="utf-8") as written:
        writer = csv.DictWriter(written, columns)
        writer.writeheader()
        writer.writerows(rows)
