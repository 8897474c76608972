"""``select``: which pictures of a pool to label next, with what the model thinks of them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodules.base import DataModule
from datamodules.common.errors import UserError
from pipelines import cli
from pipelines.command import Command
from pipelines.commands.verify import checkpoints_of, load_weights
from pipelines.ensemble import members_of
from pipelines.outputs.formats.labeling import LOCAL_FILES
from pipelines.run.directory import run_of_checkpoint
from pipelines.selecting.choosing import UNCERTAIN, Strategy, choose
from pipelines.selecting.pool import View, look_at, predict, stacked
from pipelines.selecting.writing import write_selection
from pipelines.trainer import Trainer
from tasks.hooks import TaskHooks
from tasks.segmentation.task import Segmentation

EMBEDDED = ("coreset", "mix")
DEFAULT_VIEWS: tuple[View, ...] = ("hflip", "darker")


def select(
    trainer: Trainer,
    model: TaskHooks,
    datamodule: DataModule,
    ckpt_path: str | list[str] | None = None,
    source: str | list[str] | None = None,
    count: int = 100,
    strategy: Strategy = "mix",
    views: list[View] | None = None,
    labeled: bool = True,
    shortlist: float = 2.0,
    seed: int = 0,
    copy: bool = False,
    image_url: str = LOCAL_FILES,
    output: str | None = None,
) -> Path:
    """Choose pictures to label next; write a list, and tasks for CVAT and Label Studio.

    Args:
        trainer: Knows the run and the device.
        model: The task.
        datamodule: The data.
        ckpt_path: A file, ``best`` or ``last``; ``best`` of the newest run of this name by default. Several files,
            ``[a.ckpt,b.ckpt]``, are a committee.
        source: The pool: a folder, a pattern, a list of files, or several of these.
        count: How many pictures.
        strategy: ``entropy``, ``margin``; ``disagreement`` of several checkpoints, or of ``views``; ``coreset``:
            pictures unlike those that are labeled; ``mix``: such pictures among the least sure; ``random``.
        views: How the pictures are seen besides as they are, for ``disagreement``: ``hflip``, ``vflip``, ``darker``,
            ``brighter``; by default the first and the third where there is one checkpoint.
        labeled: Whether ``coreset`` and ``mix`` keep away from the training pictures, which must then be there.
        shortlist: For ``mix``: so many times ``count`` pictures are the least sure.
        seed: Of ``random``, and of the order of what is equal.
        copy: Copy the chosen pictures beside the list.
        image_url: What Label Studio's addresses of pictures begin with; the names below the pool's folder follow.
        output: Folder; ``selection`` in the run's directory by default.

    Returns:
        The list, ``selected.csv``.

    Raises:
        UserError: If there is no pool, or a value makes no sense.
    """
    if source is None:
        raise UserError("--source is not set: give the pool, a folder of pictures or a list of them.")
    if count < 1 or shortlist < 1:
        key, value = ("count", count) if count < 1 else ("shortlist", shortlist)
        raise UserError(f"--{key} is {value}; it must be 1 or more.")
    if seed < 0:
        raise UserError(f"--seed is {seed}; it must be 0 or more.")
    if strategy != "mix" and shortlist != 2:
        raise UserError(f"--shortlist is {shortlist}, which only --strategy mix uses: leave it out.")
    if output is not None:
        _check_output(Path(output), [source] if isinstance(source, str) else source, copy=copy)
    checkpoints = checkpoints_of(trainer, model, ckpt_path)
    seen = _views(strategy, views, is_committee=len(checkpoints) > 1)
    task, centers = _loaded(trainer, model, datamodule, checkpoints, source, strategy in EMBEDDED and labeled)
    left_out = _leave_out_labeled(datamodule, source)
    records = datamodule.records["predict"]
    needs = {"values": strategy in (*UNCERTAIN, "mix"), "vectors": strategy in EMBEDDED}
    pool = look_at(task, datamodule.predict_dataloader(), seen, **needs)
    order, columns = choose(
        strategy,
        count,
        pool.columns,
        stacked(pool) if needs["vectors"] else None,
        centers=centers,
        shortlist=shortlist,
        uncertainty="disagreement" if len(checkpoints) > 1 else "margin",
        seed=seed,
        size=len(records),
    )
    datamodule.records["predict"] = [records[i] for i in order]
    names = list(datamodule.class_names or [])
    annotated = predict(task, datamodule.predict_dataloader(), names)
    run = run_of_checkpoint(checkpoints[0])
    path = write_selection(
        Path(output) if output else (run or Path()) / "selection",
        annotated,
        columns,
        names,
        kind=_kind(task),
        several=bool(getattr(task, "multi_label", False)),
        url=image_url,
        copy=copy,
        class_ids=getattr(datamodule, "class_ids", None),
    )
    of_pool = f"{len(order)} of {len(records)} pictures by {strategy}"
    print(f"{path}: {of_pool}{f', {left_out} labeled ones left out' if left_out else ''}", flush=True)
    return path


main = functools.partial(cli.execute, Command("select", select))


def _check_output(folder: Path, sources: Sequence[str], *, copy: bool) -> None:
    """Refuse a folder that cannot be, or in which copies would become part of the pool.

    Raises:
        UserError: Naming it.
    """
    if folder.is_file():
        raise UserError(f"--output {folder} is a file: give a folder.")
    pools = [Path(source).resolve() for source in sources if Path(source).is_dir()]
    if copy and any(folder.resolve().is_relative_to(pool) for pool in pools):
        raise UserError(f"--output {folder} lies in the pool, which --copy would add pictures to: give another folder.")


def _views(strategy: Strategy, views: list[View] | None, *, is_committee: bool) -> Sequence[View]:
    """The views for ``disagreement``.

    Raises:
        UserError: If they are given where they change nothing, or there is nothing to disagree.
    """
    if strategy != "disagreement":
        if views:
            raise UserError(f"--views is {views}, which only --strategy disagreement uses: leave it out.")
        return ()
    if views is None:
        return () if is_committee else DEFAULT_VIEWS
    if not views and not is_committee:
        raise UserError("--views is an empty list, and one checkpoint has nobody to disagree with: leave it out.")
    return views


def _loaded(
    trainer: Trainer,
    model: TaskHooks,
    datamodule: DataModule,
    checkpoints: Sequence[Path],
    source: str | list[str],
    reads_labeled: bool,
) -> tuple[Any, NDArray[np.float64] | None]:
    """The model on its device with the pool in the datamodule, and embeddings of the training pictures, if asked for.

    Raises:
        UserError: If the training pictures are not there.
    """
    if not reads_labeled:
        datamodule.predict_source = source
        task: Any = load_weights(trainer, model, datamodule, checkpoints, "predict")
        return task.to(trainer.strategy.root_device), None
    try:
        task = load_weights(trainer, model, datamodule, checkpoints, "probe")
    except UserError as error:
        raise UserError(f"{error} Or choose without the training pictures: --labeled false.") from error
    task.to(trainer.strategy.root_device)
    labeled = look_at(task, datamodule.train_features_dataloader(), (), values=False, vectors=True)
    datamodule.predict_source = source
    datamodule.setup("predict")
    return task, stacked(labeled)


def _leave_out_labeled(datamodule: DataModule, source: str | list[str]) -> int:
    """Take pictures out of the pool that the data, where they were read, has labels of; how many.

    Raises:
        UserError: If none is left.
    """
    known = {
        str(Path(r["path"]).resolve()) for split in ("train", "val", "test") for r in datamodule.records.get(split, ())
    }
    pool = datamodule.records["predict"]
    kept = [record for record in pool if str(Path(record["path"]).resolve()) not in known]
    if not kept:
        raise UserError(f"--source {source}: all {len(pool)} pictures are labeled already; give other pictures.")
    datamodule.records["predict"] = kept
    return len(pool) - len(kept)


def _kind(task: Any) -> str:
    """What people draw: ``tags``, ``boxes`` or ``masks``."""
    first = members_of(task)[0]
    if isinstance(first, Segmentation) or getattr(first, "has_masks", False):
        return "masks"
    return "boxes" if first.finds_boxes else "tags"
