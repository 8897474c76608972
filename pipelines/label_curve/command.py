"""``curve``: the metric against the number of labels. Each training is an ordinary ``fit`` and ``test``."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
from numpy.typing import NDArray

from datamodules.common.errors import UserError
from datamodules.common.files import write_json
from datamodules.unlabeled import hide_labels
from pipelines import cli
from pipelines.command import Command
from pipelines.label_curve.budget import (
    FRACTIONS,
    MORE,
    Budget,
    check_counts,
    longer,
    read_fractions,
    steps,
    with_longer_model,
)
from pipelines.label_curve.fitting import REPLICATES, Point
from pipelines.label_curve.writing import Curve, Measuring, write_curves
from pipelines.report import kinds
from pipelines.report.comparing import Run, aligned
from pipelines.report.measured import read
from pipelines.stages.fits import config_of_one, ended_by_signals, grouped, num_devices, outcome, train_and_test
from pipelines.stages.manifest import Output, digest_of, only_one, run_stage, say
from pipelines.statistics import sampled
from pipelines.trainer import Trainer
from tasks.hooks import TaskHooks


def curve(
    trainer: Trainer,
    model: TaskHooks,
    datamodule: pl.LightningDataModule,
    fractions: str = FRACTIONS,
    seeds: int = 3,
    more: int = MORE,
    budget: Budget = "steps",
    launch: str | None = None,
) -> dict[str, Any]:
    """Train with fractions of the labels; say what more labels would be worth.

    The images of a fraction are drawn by the seed, stratified by class, whole groups together where ``data.group`` is
    set; a larger fraction holds the smaller. Validation and test images are the same for all. The same command goes on
    where it was stopped. With a config that has ``students:`` noisy student is on the page, too.

    Args:
        trainer: Its settings are those of each training.
        model: The task.
        datamodule: The data.
        fractions: Of the training images, with commas between them.
        seeds: Trainings with each, with images of their own.
        more: Labels whose worth is estimated.
        budget: 'steps': with fewer images there are more epochs, so that each training has about as many steps as that
            of all images; 'epochs': the epochs of the config.
        launch: Words before each command, as 'srun' or 'torchrun --nproc-per-node 8'; without it all runs in this
            process, on one device.

    Returns:
        What ``runs/NAME-curve/curve.json`` holds.
    """
    parts = read_fractions(fractions)
    check_counts(seeds, more)
    if trainer.config is None:
        raise UserError("curve needs a config: use the command.")
    config = config_of_one(trainer.config, launch, "curve")
    if config["trainer"].get("report") is False:
        raise UserError("trainer.report is false, but the curve is made from what reports measure: leave it out.")
    data = _read_data(datamodule)
    _check_batch(config, data, parts[0])
    root = (trainer.runs_dir / f"{trainer.run_name}-curve").resolve()
    first = int(config.get("seed_everything") or 0)
    with only_one(root, "curve"), ended_by_signals():
        found = {
            fraction: [
                _train(root, config, data, fraction, seed, budget, launch) for seed in range(first, first + seeds)
            ]
            for fraction in parts
        }
        measured = _measuring(data, found, list(range(first, first + seeds)), budget, more)
        return write_curves(root, measured)


main = functools.partial(cli.execute, Command("curve", curve, starts_from_checkpoint=False))


def _read_data(datamodule: Any) -> Any:
    """The data, set up.

    Raises:
        UserError: If labels cannot be hidden, or there are no test images.
    """
    if not hasattr(datamodule, "split_file"):
        raise UserError(f"curve needs data with data.split_file; {type(datamodule).__name__} has none.")
    datamodule.setup("fit")
    if not datamodule.records.get("test"):
        raise UserError("curve needs test images, which say how good each training is: set data.test_fraction.")
    return datamodule


def _check_batch(config: dict[str, Any], data: Any, fraction: float) -> None:
    """Refuse a fraction of fewer images than a batch, before anything is trained.

    Raises:
        UserError: Naming both.
    """
    batch = config["data"].get("init_args", {}).get("batch_size")
    kept, _ = hide_labels(data.records["train"], data.class_names or [], 0, fraction=fraction)
    if isinstance(batch, int) and batch * (num_devices(config["trainer"]) or 1) > len(kept):
        raise UserError(
            f"--fractions begins with {fraction:g}, which is {len(kept)} of {len(data.records['train'])} training"
            f" images, but data.batch_size is {batch}: set a smaller batch, or begin with a larger fraction."
        )


def _train(
    root: Path, config: dict[str, Any], data: Any, fraction: float, seed: int, budget: Budget, launch: str | None
) -> tuple[int, Path]:
    """One training and its test: the number of its labeled images, and its run directory."""
    records = data.records["train"]
    kept, hidden = hide_labels(records, data.class_names or [], seed, fraction=fraction)
    named = f"fraction{fraction:g}-seed{seed}"
    split = {"train": kept, "val": data.records["val"], "test": data.records["test"], "unlabeled": hidden}
    file = root / f"{named}.json"
    write_json(file, {name: [record["path"] for record in own] for name, own in split.items()})
    own = copy.deepcopy(config)
    own["seed_everything"] = seed
    own["data"]["init_args"]["split_file"] = str(file)
    own["trainer"] = grouped(own["trainer"], root.name, "curve")
    if budget == "steps":
        world, batch = num_devices(own["trainer"]), own["data"]["init_args"].get("batch_size")
        if world is None:
            raise UserError("trainer.devices is auto: give the number of devices, which the length of an epoch needs.")
        factor = steps(len(records), data, batch, world) / steps(len(kept), data, batch, world)
        own["trainer"], own["model"] = longer(own["trainer"], factor), with_longer_model(own["model"], factor)

    def work(folder: Path) -> dict[str, str]:
        run = train_and_test(folder, own, launch)
        return {"test": f"{run.name}/test.json", "images": f"{run.name}/test_images.npz"}

    outputs = run_stage(root / named, outcome(own), {"split": Output(file, digest_of(file))}, work, "curve")
    say(f"{len(kept)} labeled images, seed {seed}", "curve")
    return len(kept), outputs["images"].path.parent


def _measuring(
    data: Any, found: dict[float, list[tuple[int, Path]]], seeds: list[int], budget: Budget, more: int
) -> Measuring:
    """The scores of all trainings, on the same resamples of the test images."""
    runs = [
        Run(f"{run.parent.name}/{run.name}", {}, read(run / "test_images.npz"))
        for trained in found.values()
        for _, run in trained
    ]
    measured = [run.measured for run in aligned(runs)]
    metric, images, groups = kinds.main(measured[0]), len(measured[0]), measured[0].groups
    scorers = [kinds.scorer(one) for one in measured]

    def score_of(number: int) -> Any:
        own = scorers[number * len(seeds) : (number + 1) * len(seeds)]

        def score(counts: NDArray[Any]) -> dict[str, NDArray[np.float64]]:
            return {metric: np.stack([scorer(counts)[metric] for scorer in own], 1)}

        return score

    points = [
        Point(
            fraction,
            float(np.mean([labels for labels, _ in trained])),
            sampled(score_of(number), images, REPLICATES, groups=groups)[metric],
        )
        for number, (fraction, trained) in enumerate(found.items())
    ]
    curves = [Curve("labels", "the config, trained on the labeled images", points)]
    return Measuring(metric, images, len(data.records["train"]), seeds, budget, more, curves)
