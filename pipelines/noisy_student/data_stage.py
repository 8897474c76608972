"""The first stage of the loop: which labels are seen, which images are the pool, and what is true of them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from datamodules.annotations.records import Record
from datamodules.base import DataModule
from datamodules.cache import readable_images
from datamodules.common.errors import UserError
from datamodules.common.files import write_json
from datamodules.duplicates import equal_images
from datamodules.readers.digits import digit_scene
from datamodules.splits import left_out
from datamodules.unlabeled import hide_labels, pool_records
from pipelines.noisy_student.kinds.of_data import kind_of
from pipelines.noisy_student.kinds.tables import write_table
from pipelines.noisy_student.selection import fixed_thresholds
from pipelines.noisy_student.settings import Settings
from pipelines.outputs.sheets import save_png
from pipelines.stages.manifest import digest_of_values, say


def read_data(settings: Settings) -> DataModule:
    """The labeled data, set up.

    Raises:
        UserError: If the loop can do nothing with it.
    """
    data = set_up(settings.data)
    if not data.records["val"]:
        raise UserError("The labeled data has no validation split, which tells generations apart: set val_fraction.")
    kind_of(data).check_data(data)
    fixed_thresholds(data.class_names or [], settings.selection.threshold)  # names of classes, before hours of training
    return data


def set_up(config: Any) -> DataModule:
    """Make a datamodule of its config, and read its data."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(DataModule, "data")
    data: DataModule = parser.instantiate_classes(parser.parse_object({"data": config})).data
    data.setup("fit")
    return data


def data_settings(settings: Settings, data: DataModule, seed: int) -> dict[str, Any]:
    """What the data stage depends on, the lists of images included: their paths, labels and sizes on the disk."""
    kind = kind_of(data)
    listed = [(s, r["path"], kind.annotation(r), _size(r)) for s, rs in data.records.items() for r in rs]
    pool = [] if settings.pool is None else [(r["path"], _size(r)) for r in pool_records(settings.pool)]
    hidden: dict[str, Any] = {"labels_per_class": settings.labels_per_class}
    if settings.distil:
        hidden["distil"] = True
    for key in ("labeled_images", "labeled_fraction"):  # left out where not set, for older runs
        if getattr(settings, key) is not None:
            hidden[key] = getattr(settings, key)
    return {
        "data": settings.data,
        **hidden,
        "overlap": settings.overlap,
        "seed": seed,
        "images": digest_of_values(listed),
        "pool": digest_of_values(pool),
    }


def make_data(
    directory: Path, settings: Settings, data: DataModule, seed: int, memory: Path | None = None
) -> dict[str, str]:
    """Write ``split.json`` (which labels are seen), ``pool.parquet`` (unlabeled images) and ``truth.json``.

    Generated scenes of the pool are written as PNG files, so that all that follows sees ordinary files.

    Args:
        directory: The stage's.
        settings: The loop's.
        data: The loop's labeled data.
        seed: Of the draw of labels.
        memory: File that keeps digests of pixels, so that another seed decodes nothing again.

    Raises:
        UserError: If validation or test images are in the pool, or there are too few labels.
    """
    kind = kind_of(data)
    seen, hidden = _hide(data, settings, seed)
    outside = [] if settings.pool is None else _readable_pool(settings.pool, data)
    pool = [*(seen if settings.distil else []), *hidden, *outside]
    if settings.overlap != "allow":
        pool = without_overlap(pool, [*data.records["val"], *data.records["test"]], data, settings.overlap, memory)
    if not pool and settings.labeled_fraction != 1:  # with all labels `curve` trains the teacher alone
        raise UserError(
            "The pool holds no images: every label is seen. Lower labels_per_class or labeled_images, or give pool:."
        )
    split = {"train": seen, "val": data.records["val"], "test": data.records["test"], "pool": hidden}
    names = {name: [r["path"] for r in rs] for name, rs in split.items()}
    out = left_out(getattr(data, "split_file", None), names)
    write_json(directory / "split.json", {**names, **({"left_out": out} if out else {})})
    truth = {name: [kind.truth_of(r) for r in rs] for name, rs in {**split, "pool": pool}.items()}
    write_json(directory / "truth.json", {"class_names": data.class_names, **truth})
    write_table({"path": [_as_file(record, directory) for record in pool]}, directory / "pool.parquet")
    say(f"{len(seen)} labeled images, {len(pool)} unlabeled, {len(data.records['val'])} for validation")
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
    how = {
        "per_class": settings.labels_per_class,
        "images": settings.labeled_images,
        "fraction": settings.labeled_fraction,
    }
    records = data.records["train"]
    if all(value is None for value in how.values()):
        return list(records), []
    return hide_labels(records, data.class_names or [], seed, **how)  # type: ignore[arg-type]


def without_overlap(
    pool: list[Record], evaluated: list[Record], data: DataModule, overlap: str, memory: Path | None = None
) -> list[Record]:
    """Refuse, or remove, images of the pool whose pixels are those of a validation or test image.

    Args:
        pool: The unlabeled images.
        evaluated: The images of the validation and test splits.
        data: How images are read.
        overlap: ``error`` or ``remove``.
        memory: See `datamodules.duplicates.pixel_digests`.

    Raises:
        UserError: Naming the first of them.
    """
    equal = equal_images(pool, evaluated, data.make_reader(), memory)
    if equal and overlap == "error":
        first, known = next(iter(equal.items()))
        raise UserError(
            f"{len(equal)} of {len(pool)} images of the pool are validation or test images, by their pixels: {first}"
            f" is {known}. Take them out, or set overlap: remove (or allow, which makes the report worthless)."
        )
    if equal:
        say(f"{len(equal)} images of the pool are validation or test images, by their pixels; they are left out")
    return [record for record in pool if record["path"] not in equal]


def _size(record: Record) -> int:
    return os.path.getsize(record["image"]) if isinstance(record["image"], str) else -1


def read_truth(file: Path) -> dict[str, Any]:
    """What ``make_data`` wrote: ``class_names``, and by split what ``Kind.truth_of`` gives for each image."""
    truth: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return truth
