"""The stages of the loop: data, training, labels, selection. Each leaves files that can be read and used again."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from datamodules.base import DataModule
from datamodules.loading import Record
from pipelines.errors import UsageError
from pipelines.noisy_student.labelling import (
    label_pool,
    load_teacher,
    pool_records,
    prepare_teacher,
    read_labels,
    taken,
    write_labels,
)
from pipelines.noisy_student.machine import StageError, digest_of_values, say, write_json
from pipelines.noisy_student.selection import Selection, Validation, select
from pipelines.noisy_student.settings import Settings
from pipelines.noisy_student.student import export
from pipelines.run import runs_of
from pipelines.trainer import Trainer
from pipelines.wandb_run import Wandb

Truth = Mapping[str, Sequence[int]]

# Data.


def read_data(settings: Settings) -> DataModule:
    """The labelled data, set up."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(DataModule, "data")
    data: DataModule = parser.instantiate_classes(parser.parse_object({"data": settings.data})).data
    data.setup("fit")
    if not data.records["val"]:
        raise UsageError("The labelled data has no validation split, which tells generations apart: set val_fraction.")
    if not all(isinstance(record.get("label"), int) for record in data.records["train"]):
        raise UsageError("noisy-student is for images with one label each so far; the data has another kind of label.")
    return data


def data_settings(settings: Settings, data: DataModule, seed: int) -> dict[str, Any]:
    """What the data stage depends on, the lists of images included: their paths, labels and sizes on the disk."""
    listed = [(s, r["path"], r["label"], _size(r)) for s, rs in data.records.items() for r in rs]
    pool = [] if settings.pool is None else [(r["path"], _size(r)) for r in pool_records(settings.pool)]
    return {
        "data": settings.data,
        "labels_per_class": settings.labels_per_class,
        "overlap": settings.overlap,
        "seed": seed,
        "images": digest_of_values(listed),
        "pool": digest_of_values(pool),
    }


def make_data(directory: Path, settings: Settings, data: DataModule, seed: int) -> dict[str, str]:
    """Write ``split.json`` (which labels are seen), ``pool.parquet`` (unlabelled images) and ``truth.json``.

    Raises:
        UsageError: If validation or test images are in the pool, or a class has too few labels.
    """
    seen, hidden = _hide(data, settings.labels_per_class, seed)
    outside = [] if settings.pool is None else pool_records(settings.pool)
    pool = [*hidden, *outside]
    if settings.overlap != "allow":
        pool = without_overlap(pool, [*data.records["val"], *data.records["test"]], data, settings.overlap)
    if not pool:
        raise UsageError("The pool holds no images: every label is seen. Lower labels_per_class, or give pool:.")
    split = {"train": seen, "val": data.records["val"], "test": data.records["test"], "pool": hidden}
    write_json(directory / "split.json", {name: [r["path"] for r in rs] for name, rs in split.items()})
    truth = {name: [int(r.get("label", -1)) for r in rs] for name, rs in {**split, "pool": pool}.items()}
    write_json(directory / "truth.json", {"class_names": data.class_names, **truth})
    _write_paths(directory / "pool.parquet", [r["path"] for r in pool])
    say(f"{len(seen)} labelled images, {len(pool)} unlabelled, {len(data.records['val'])} for validation")
    return {"split": "split.json", "pool": "pool.parquet", "truth": "truth.json"}


def _hide(data: DataModule, per_class: int | None, seed: int) -> tuple[list[Record], list[Record]]:
    """Training images that keep their label, and those that lose it; drawn by seed."""
    records = data.records["train"]
    if per_class is None:
        return list(records), []
    by_class: dict[int, list[int]] = defaultdict(list)
    for i in np.random.default_rng([seed, 1]).permutation(len(records)):
        by_class[records[i]["label"]].append(int(i))
    for k, members in by_class.items():
        if len(members) < per_class:
            name = (data.class_names or [])[k]
            raise UsageError(f"labels_per_class is {per_class}, but class '{name}' has {len(members)} training images.")
    seen = {i for members in by_class.values() for i in members[:per_class]}
    return [r for i, r in enumerate(records) if i in seen], [r for i, r in enumerate(records) if i not in seen]


def without_overlap(pool: list[Record], evaluated: list[Record], data: DataModule, overlap: str) -> list[Record]:
    """Refuse, or remove, images of the pool whose pixels are those of a validation or test image.

    Args:
        pool: The unlabelled images.
        evaluated: The images of the validation and test splits.
        data: How images are read.
        overlap: ``error`` or ``remove``.

    Raises:
        UsageError: Naming the first of them.
    """
    known = dict(zip(pixel_digests(evaluated, data), (r["path"] for r in evaluated), strict=True))
    digests = pixel_digests(pool, data)
    bad = [(r["path"], known[d]) for r, d in zip(pool, digests, strict=True) if d in known]
    if bad and overlap == "error":
        raise UsageError(
            f"{len(bad)} of {len(pool)} images of the pool are validation or test images, by their pixels: {bad[0][0]}"
            f" is {bad[0][1]}. Take them out, or set overlap: remove (or allow, which makes the account worthless)."
        )
    if bad:
        say(f"{len(bad)} images of the pool are validation or test images, by their pixels; they are left out")
    return [r for r, d in zip(pool, digests, strict=True) if d not in known]


def pixel_digests(records: Sequence[Record], data: DataModule) -> list[str]:
    """A digest of each image's pixels as they are read, whatever its name and file format."""
    read = data.make_reader()

    def digest(record: Record) -> str:
        image = read(record)["image"]
        return hashlib.sha256(f"{image.shape}{image.dtype}".encode() + image.tobytes()).hexdigest()

    with ThreadPoolExecutor(min(8, len(os.sched_getaffinity(0)))) as pool:
        return list(pool.map(digest, records))


def _size(record: Record) -> int:
    return os.path.getsize(record["image"]) if isinstance(record["image"], str) else -1


def _write_paths(file: Path, paths: Sequence[str]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    pq.write_table(pa.table({"path": [p if "#" in p else os.path.abspath(p) for p in paths]}), temporary)
    os.replace(temporary, file)


# Training.


def train(directory: Path, settings: Settings, data: DataModule, config: dict[str, Any], name: str) -> dict[str, str]:
    """One ``fit``, and the model's probabilities for the validation and test images.

    Args:
        directory: The stage's; a run that was killed is continued.
        settings: The loop's.
        data: The loop's labelled data.
        config: Of the command.
        name: Of the checkpoint that is left, ``teacher`` or ``student``.
    """
    file = directory / "config.yaml"
    file.write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True), encoding="utf-8")
    place = ["--name", directory.name, "--runs_dir", str(directory.parent)]  # its run directory is 0 in this one
    run_command(["fit", "--config", str(file), *place, "--resume", "auto"], settings.launch)
    run = runs_of(directory.parent, directory.name)[-1]
    export(run / "checkpoints" / f"{settings.checkpoint}.ckpt", directory / f"{name}.ckpt")
    return {name: f"{name}.ckpt", **score(directory, settings, data, directory / f"{name}.ckpt")}


def take_teacher(directory: Path, settings: Settings, data: DataModule, checkpoint: Path) -> dict[str, str]:
    """A teacher that is trained already, in place of ``train``."""
    export(checkpoint, directory / "teacher.ckpt")
    return {"teacher": "teacher.ckpt", **score(directory, settings, data, directory / "teacher.ckpt")}


def score(directory: Path, settings: Settings, data: DataModule, checkpoint: Path) -> dict[str, str]:
    """Write ``val.parquet`` and ``test.parquet``: a model's probabilities, like the labels of a pool.

    Raises:
        UsageError: If the model knows other classes than the data.
    """
    teacher = load_teacher(checkpoint)
    if teacher.data.class_names != data.class_names:
        raise UsageError(
            f"teacher.checkpoint {checkpoint} knows the classes {teacher.data.class_names}, but the data has"
            f" {data.class_names}."
        )
    trainer = _plain_trainer(settings)
    prepare_teacher(trainer, teacher)
    files = {}
    for split in ("val", "test"):
        if records := data.records[split]:
            label_pool(trainer, [teacher], records, directory / f"{split}.parquet")
            files[split] = f"{split}.parquet"
    return files


def _plain_trainer(settings: Settings) -> Trainer:
    chosen = {k: v for k, v in dict(settings.trainer).items() if k in ("accelerator", "precision")}  # type: ignore[call-overload]
    quiet: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    return Trainer(devices=1, enable_checkpointing=False, wandb=Wandb(mode="off"), **quiet, **chosen)


def run_command(words: list[str], launch: Sequence[str] | None) -> None:
    """Run a command of this program: in this process, or behind ``launch`` in one of its own.

    Raises:
        StageError: If it fails; what it said stands above.
    """
    if launch is None:
        from pipelines import cli

        status = cli.main(words)
    else:
        program = (
            ["-m", "pipelines"]
            if launch and Path(launch[0]).name == "torchrun"
            else [sys.executable, "-m", "pipelines"]
        )
        status = subprocess.run([*launch, *program, *words], check=False).returncode
    if status:
        raise StageError(
            f"`{words[0]}` ended with status {status}; mend what it says, then give the same command again."
        )


# Labels and selection.


def label(directory: Path, settings: Settings, teacher: Path, pool: Path) -> dict[str, str]:
    """``pseudo-label`` of the pool: ``labels.parquet``."""
    trainer = dict(settings.trainer)  # type: ignore[call-overload]
    flags = [f"--trainer.{k}={trainer[k]}" for k in ("accelerator", "devices", "num_nodes", "strategy") if k in trainer]
    flags += ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
    words = ["pseudo-label", "--ckpt_path", str(teacher), "--source", str(pool)]
    run_command([*words, "--output", str(directory / "labels.parquet"), *flags], settings.launch)
    return {"labels": "labels.parquet"}


def choose(
    directory: Path, selection: Selection, labels_file: Path, validation_file: Path, truth: Truth, seed: int
) -> dict[str, str]:
    """``selected.parquet`` (what the student is taught) and ``selection.json`` (what was done)."""
    labels = read_labels(labels_file)
    seen = read_labels(validation_file, labels.class_names)
    chosen = select(
        labels.probabilities,
        labels.class_names,
        selection,
        validation=Validation(seen.probabilities, np.array(truth["val"], np.int64)),
        seed=seed,
        truth=np.array(truth["pool"], np.int64),
    )
    write_labels(taken(labels, chosen.rows), directory / "selected.parquet")
    write_json(directory / "selection.json", chosen.account)
    say(
        f"{chosen.account['kept']} of {chosen.account['pool']} labels kept ({chosen.account['coverage']:.0%}),"
        f" {chosen.account['images']} images taught"
    )
    if left_out := chosen.account.get("left_out"):
        say(f"classes left out for want of validation images or of precision: {', '.join(left_out)}")
    return {"selected": "selected.parquet", "account": "selection.json"}


def accuracy(file: Path, truth: Sequence[int]) -> float:
    """Part of the images whose most likely class is the true one."""
    return float(right(file, truth).mean())


def right(file: Path, truth: Sequence[int]) -> NDArray[np.bool_]:
    """Whether each image is classified rightly, bool (N,)."""
    found: NDArray[np.bool_] = read_labels(file).probabilities.argmax(1) == np.array(truth, np.int64)
    return found


def read_truth(file: Path) -> dict[str, Any]:
    """What ``make_data`` wrote: ``class_names``, and true classes by split, -1 where unknown."""
    truth: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return truth
