"""``features``: what the units of a trained network look for, as pictures."""

from __future__ import annotations

import functools
import random
from pathlib import Path
from typing import Literal

from datamodules.base import DataModule
from datamodules.common.errors import UserError
from pipelines import cli
from pipelines.command import Command
from pipelines.commands.verify import checkpoints_of, load_weights
from pipelines.features.clock import Clock
from pipelines.features.pages import write_all
from pipelines.features.settings import Part, Settings
from pipelines.features.work import Batches, look_inside
from pipelines.run.directory import run_of_checkpoint
from pipelines.trainer import Trainer
from tasks.hooks import TaskHooks

STAGES = {"train": "probe", "val": "validate", "test": "test"}


def features(
    trainer: Trainer,
    model: TaskHooks,
    datamodule: DataModule,
    ckpt_path: str | None = None,
    source: str | list[str] | None = None,
    split: Literal["train", "val", "test"] = "val",
    parts: list[Part] = ["filters", "exemplars", "embedding", "channels", "classes"],  # noqa: B006 - never changed
    layers: list[str] | None = None,
    channels: list[int] | None = None,
    num_channels: int = 6,
    exemplars: int = 6,
    images: int = 500,
    steps: int = 128,
    size: int = 128,
    dream: str | None = None,
    octaves: int = 4,
    seed: int = 0,
    time_limit: float | None = 600.0,
    output: str | None = None,
) -> Path:
    """Show what the units of a network look for: exemplars, grown pictures, filters, a map of the set.

    Args:
        trainer: Knows the run and the device.
        model: The task.
        datamodule: The data.
        ckpt_path: A file, ``best`` or ``last``; ``best`` of the newest run of this name by default.
        source: Pictures without labels in place of the data's, as for ``predict``.
        split: Of the data, without ``source``.
        parts: ``filters`` of the first convolution; ``exemplars``: what makes a channel largest in the pictures;
            ``embedding``: a map of the set by PCA and t-SNE; ``channels``, ``neurons`` (a channel's unit in the middle)
            and ``classes``: pictures that are grown for one.
        layers: Modules of the network, as ``summary`` names them; the ends of the backbone's stages by default.
        channels: Of each layer; by default those that the predicted classes' scores owe most to.
        num_channels: How many, without ``channels``.
        exemplars: Of each channel.
        images: Pictures that are looked at, at most.
        steps: Of growing.
        size: Longest side in pixels of what is grown; a net of one size has its own.
        dream: A picture file, for DeepDream.
        octaves: Sizes of DeepDream.
        seed: The same pictures come out for the same seed, as long as the time is not over.
        time_limit: Seconds for all together; what there is no time for is named. Null for no limit.
        output: Folder; ``features`` in the run's directory by default.

    Returns:
        The page of the network; beside it lie one of each layer, the sheets as PNG files, and ``features.json``.
    """
    asked = Settings(
        parts=tuple(parts),
        layers=None if layers is None else tuple(layers),
        channels=None if channels is None else tuple(channels),
        num_channels=num_channels,
        exemplars=exemplars,
        images=images,
        steps=steps,
        size=size,
        dream=dream,
        octaves=octaves,
        seed=seed,
        time_limit=time_limit,
    )
    asked.check()
    if dream is not None and not Path(dream).is_file():
        raise UserError(f"--dream {dream} does not exist: give a picture file.")
    if source is not None and split != "val":
        raise UserError(f"--split is {split}, but --source is given, which has no splits: leave one of them out.")
    if output is not None and Path(output).is_file():
        raise UserError(f"--output {output} is a file: give a folder.")
    checkpoints = checkpoints_of(trainer, model, ckpt_path)
    datamodule.predict_source = source
    task = load_weights(trainer, model, datamodule, checkpoints, "predict" if source else STAGES[split])
    task.to(trainer.strategy.root_device)
    names = list(datamodule.class_names or [])
    clock = Clock(time_limit)
    found = look_inside(task, _loader(datamodule, "predict" if source else split, asked), names, asked, clock)
    facts = {
        "network": f"{task.backbone} ({type(task).__name__})",
        "checkpoint": str(checkpoints[0]),
        "pictures": str(source or f"{split} of {getattr(datamodule, 'source', type(datamodule).__name__)}"),
        "seed": str(seed),
    }
    run = run_of_checkpoint(checkpoints[0])
    folder = Path(output) if output else (run or Path()) / "features"
    page = write_all(found, folder, facts, names, seed, clock)
    for note in found.notes:
        print(f"warning: {note}", flush=True)
    print(f"{page}: {len(found.maps)} layers, {clock.spent:.0f} s", flush=True)
    return page


main = functools.partial(cli.execute, Command("features", features))


def _loader(datamodule: DataModule, split: str, asked: Settings) -> Batches:
    """What gives a split's pictures without augmentation, in an order that mixes the classes and depends on the seed.

    Raises:
        UserError: If there are none.
    """
    records = datamodule.records[split]
    if not records:
        raise UserError(f"--split is {split}, but the data has no such images: give another split, or --source.")
    datamodule.records[split] = random.Random(asked.seed).sample(records, min(asked.images, len(records)))
    loaders: dict[str, Batches] = {
        "train": datamodule.train_features_dataloader,
        "val": datamodule.val_dataloader,
        "test": datamodule.test_dataloader,
        "predict": datamodule.predict_dataloader,
    }
    return loaders[split]
