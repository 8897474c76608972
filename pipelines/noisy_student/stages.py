"""The stages of the loop: data, training, labels, selection. Each leaves files that can be read and used again."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

from datamodules.base import DataModule
from datamodules.cache import readable_images
from datamodules.common.errors import UserError
from datamodules.loaders import Record, available_cores
from datamodules.readers.digits import digit_scene
from datamodules.unlabeled import hide_labels, pool_records
from pipelines import cli
from pipelines.config.carried import packages_of
from pipelines.noisy_student.command import main as label_command
from pipelines.noisy_student.kinds.protocol import kind_of
from pipelines.noisy_student.labelling import judge, load_teacher, prepare_teacher
from pipelines.noisy_student.manifest import StageError, digest_of_values, read_json, say, write_json
from pipelines.noisy_student.selection import Selection, fixed_thresholds
from pipelines.noisy_student.settings import Settings, plain, trainer_of
from pipelines.outputs.sheets import save_png
from pipelines.run.directory import run_of_checkpoint, runs_of
from pipelines.run.student import export
from pipelines.run.tracking import Wandb
from pipelines.trainer import Trainer

Truth = Mapping[str, Any]

# Data.


def read_data(settings: Settings) -> DataModule:
    """The labelled data, set up."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(DataModule, "data")
    data: DataModule = parser.instantiate_classes(parser.parse_object({"data": settings.data})).data
    data.setup("fit")
    if not data.records["val"]:
        raise UserError("The labelled data has no validation split, which tells generations apart: set val_fraction.")
    kind_of(data).check_data(data)
    fixed_thresholds(data.class_names or [], settings.selection.threshold)  # names of classes, before hours of training
    return data


def data_settings(settings: Settings, data: DataModule, seed: int) -> dict[str, Any]:
    """What the data stage depends on, the lists of images included: their paths, labels and sizes on the disk."""
    kind = kind_of(data)
    listed = [(s, r["path"], kind.annotation(r), _size(r)) for s, rs in data.records.items() for r in rs]
    pool = [] if settings.pool is None else [(r["path"], _size(r)) for r in pool_records(settings.pool)]
    hidden: dict[str, Any] = {"labels_per_class": settings.labels_per_class}
    if settings.labeled_images is not None:
        hidden["labeled_images"] = settings.labeled_images
    return {
        "data": settings.data,
        **hidden,
        "overlap": settings.overlap,
        "seed": seed,
        "images": digest_of_values(listed),
        "pool": digest_of_values(pool),
    }


def make_data(directory: Path, settings: Settings, data: DataModule, seed: int) -> dict[str, str]:
    """Write ``split.json`` (which labels are seen), ``pool.parquet`` (unlabelled images) and ``truth.json``.

    Generated scenes of the pool are written as PNG files, so that all that follows sees ordinary files.

    Raises:
        UserError: If validation or test images are in the pool, or there are too few labels.
    """
    kind = kind_of(data)
    seen, hidden = _hide(data, settings, seed)
    outside = [] if settings.pool is None else _readable_pool(settings.pool, data)
    pool = [*hidden, *outside]
    if settings.overlap != "allow":
        pool = without_overlap(pool, [*data.records["val"], *data.records["test"]], data, settings.overlap)
    if not pool:
        raise UserError(
            "The pool holds no images: every label is seen. Lower labels_per_class or labeled_images, or give pool:."
        )
    split = {"train": seen, "val": data.records["val"], "test": data.records["test"], "pool": hidden}
    write_json(directory / "split.json", {name: [r["path"] for r in rs] for name, rs in split.items()})
    truth = {name: [kind.truth_of(r) for r in rs] for name, rs in {**split, "pool": pool}.items()}
    write_json(directory / "truth.json", {"class_names": data.class_names, **truth})
    _write_paths(directory / "pool.parquet", [_as_file(r, directory) for r in pool])
    say(f"{len(seen)} labelled images, {len(pool)} unlabelled, {len(data.records['val'])} for validation")
    return {"split": "split.json", "pool": "pool.parquet", "truth": "truth.json"}


def _readable_pool(source: str, data: DataModule) -> list[Record]:
    records, skipped = readable_images(pool_records(source), data.on_corrupt)
    if skipped:
        path, reason = skipped[0]
        say(f"{len(skipped)} images of the pool cannot be read and are left out; the first is {path}: {reason}")
    return records


def _as_file(record: Record, directory: Path) -> str:
    """The path of an image; a generated scene is written below the directory first, and named from there."""
    if "scene" not in record:
        on_disk = isinstance(record["image"], str)
        return os.path.abspath(record["path"]) if on_disk else str(record["path"])
    number, _, split, *_ = record["scene"]
    file = Path("pool") / f"{split}_{number:06d}.png"
    save_png(digit_scene(*record["scene"])["image"], directory / file)
    return str(file)


def _hide(data: DataModule, settings: Settings, seed: int) -> tuple[list[Record], list[Record]]:
    """Training images that keep their label, and those that lose it; drawn by seed."""
    records, per_class, images = data.records["train"], settings.labels_per_class, settings.labeled_images
    if per_class is None and images is None:
        return list(records), []
    try:
        return hide_labels(records, data.class_names or [], seed, per_class=per_class, images=images)
    except ValueError as error:
        raise UserError(str(error)) from None


def without_overlap(pool: list[Record], evaluated: list[Record], data: DataModule, overlap: str) -> list[Record]:
    """Refuse, or remove, images of the pool whose pixels are those of a validation or test image.

    Args:
        pool: The unlabelled images.
        evaluated: The images of the validation and test splits.
        data: How images are read.
        overlap: ``error`` or ``remove``.

    Raises:
        UserError: Naming the first of them.
    """
    known = dict(zip(pixel_digests(evaluated, data), (r["path"] for r in evaluated), strict=True))
    digests = pixel_digests(pool, data)
    bad = [(r["path"], known[d]) for r, d in zip(pool, digests, strict=True) if d in known]
    if bad and overlap == "error":
        raise UserError(
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

    with ThreadPoolExecutor(min(8, available_cores())) as pool:
        return list(pool.map(digest, records))


def _size(record: Record) -> int:
    return os.path.getsize(record["image"]) if isinstance(record["image"], str) else -1


def _write_paths(file: Path, paths: Sequence[str]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    pq.write_table(pa.table({"path": list(paths)}), temporary)
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
    """A teacher that is trained already, in place of ``train``.

    Raises:
        UserError: If its run trained on images that are for validation or test here.
    """
    run = run_of_checkpoint(checkpoint)
    split = None if run is None else read_json(run / "split.json")
    if split is None:
        say(f"{checkpoint} lies in no run: whether it was trained on validation or test images is not known")
    elif settings.overlap != "allow":
        trained = {os.path.abspath(path) for path in split.get("train", [])}
        known = [r["path"] for s in ("val", "test") for r in data.records[s] if os.path.abspath(r["path"]) in trained]
        if known:
            raise UserError(
                f"teacher.checkpoint {checkpoint} was trained on {len(known)} of the validation and test images, among"
                f" them {known[0]}: its scores would be worth nothing. Set data.split_file to {run}/split.json, or"
                " train it here (teacher.model); overlap: allow lets it pass."
            )
    export(checkpoint, directory / "teacher.ckpt")
    return {"teacher": "teacher.ckpt", **score(directory, settings, data, directory / "teacher.ckpt")}


def score(directory: Path, settings: Settings, data: DataModule, checkpoint: Path) -> dict[str, str]:
    """Write ``val`` and ``test``: what a model says of their images, and what scores are computed from.

    Raises:
        UserError: If the model knows other classes than the data.
    """
    teacher = load_teacher(checkpoint, trust=packages_of(plain(settings)))
    if teacher.data.class_names != data.class_names:
        raise UserError(
            f"teacher.checkpoint {checkpoint} knows the classes {teacher.data.class_names}, but the data has"
            f" {data.class_names}."
        )
    trainer = _plain_trainer(settings)
    prepare_teacher(trainer, teacher)
    files = {}
    for split in ("val", "test"):
        if records := data.records[split]:
            files[split] = f"{split}{kind_of(data).JUDGED}"
            judge(trainer, [teacher], records, data, directory / files[split])
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
        status = label_command(words[1:]) if words[0] == "pseudo-label" else cli.main(words)
    else:
        program = (
            ["-m", "pipelines"]
            if launch and Path(launch[0]).name == "torchrun"
            else [sys.executable, "-m", "pipelines"]
        )
        status = subprocess.run([*launch, *program, *words], check=False).returncode
    if status > 128:
        raise StageError(f"`{words[0]}` was ended by a signal; the same command goes on from there.", status)
    if status:
        raise StageError(
            f"`{words[0]}` ended with status {status}; mend what it says, then give the same command again."
        )


# Labels and selection.


def label(
    directory: Path, settings: Settings, data: DataModule, teacher: Path, pool: Path, *, soft: bool = False
) -> dict[str, str]:
    """``pseudo-label`` of the pool: ``labels.parquet``, or ``labels.json`` for boxes."""
    trainer = trainer_of(settings)
    flags = [f"--trainer.{k}={trainer[k]}" for k in ("accelerator", "devices", "num_nodes", "strategy") if k in trainer]
    flags += ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
    flags += ["--soft=true"] if soft else []
    flags += [f"--trust={package}" for package in packages_of(plain(settings))]
    words = ["pseudo-label", "--ckpt_path", str(teacher), "--source", str(pool)]
    file = f"labels{kind_of(data).LABELS}"
    run_command([*words, "--output", str(directory / file), *flags], settings.launch)
    return {"labels": file}


def choose(
    directory: Path,
    data: DataModule,
    selection: Selection,
    labels_file: Path,
    validation_file: Path,
    truth: Truth,
    seed: int,
) -> dict[str, str]:
    """``selected.parquet`` or ``.json`` (what the student is taught) and ``selection.json`` (what was done)."""
    kind = kind_of(data)
    account = kind.choose(directory, data, selection, labels_file, validation_file, truth, seed)
    say(
        f"{account['kept']} of {account['pool']} {kind.UNIT} kept ({account['coverage']:.0%}),"
        f" {account['images']} images taught"
    )
    if left_out := account.get("left_out"):
        say(f"classes left out for want of validation images or of precision: {', '.join(left_out)}")
    return {"selected": f"selected{kind.LABELS}", "account": "selection.json"}


def read_truth(file: Path) -> dict[str, Any]:
    """What ``make_data`` wrote: ``class_names``, and by split what ``Kind.truth_of`` says of each image."""
    truth: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return truth
