"""Images with one label, multi-label or soft labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pytorch_lightning.utilities import rank_zero_warn

from datamodules.annotations.records import Listing
from datamodules.arguments import Interpolation, Loading, Pixels, Splits, refuse_set
from datamodules.base import DataModule
from datamodules.common.errors import UserError
from datamodules.decoding.shards import is_shards
from datamodules.groups import is_pattern
from datamodules.loaders import Record, read_record
from datamodules.readers.arrays import read_arrays
from datamodules.readers.digits import read_digits
from datamodules.readers.folder import has_class_folders, read_folder
from datamodules.readers.lists import read_list
from datamodules.readers.shards import read_labels
from datamodules.readers.tables import LIST_SUFFIXES, SPLIT_FIELD, lists_of_splits
from datamodules.readers.torchvision_sets import read_torchvision
from datamodules.transforms.augment import Augment
from datamodules.transforms.pipeline import Transform


@dataclass(kw_only=True, eq=False, repr=False)
class ClassificationData(Pixels, Splits, Loading, DataModule):
    """Image classification from a folder, a list, tar shards, a .npz file, a torchvision set, or the digits.

    Args:
        source: ``digits`` (embedded), a folder of class folders (below ``train``/``val``/``test`` or not), a ``.csv``,
            ``.parquet`` or ``.txt`` list, a list a split (``lists/{split}.csv``, or the folder of ``train.csv`` and
            ``val.csv``), WebDataset's tar shards (``train-{000..009}.tar``, a folder of them), a ``.npz`` file, or
            ``torchvision:NAME``.
        image_root: Folder that relative paths of a list start from; the list's own folder by default. For
            ``torchvision:NAME`` the folder that holds the set.
        columns: Names of a list's columns where they are not ``path``, ``label`` and ``split``.
        class_names: Only these classes, in this order; all classes, sorted, by default.
        resize: ``crop`` (shorter side to ``image_size / crop_pct``, then the center), ``letterbox`` or ``stretch``.
        crop_pct: Fraction of the resized shorter side that the center crop keeps; 0.875 by default, and all of it (1)
            for images of at most 64 pixels.
        augment: Augmentation of the training images on the CPU; mixup, cutmix, erasing and jitter are the model's.
        balance: ``sampler`` draws every class equally often; ``loss`` weights each class's loss by its rarity.
    """

    source: str = field(default="digits", kw_only=False)
    image_root: str | None = None
    columns: dict[str, str] | None = None
    class_names: list[str] | None = None
    resize: Literal["crop", "letterbox", "stretch"] = "crop"
    crop_pct: float | None = None
    interpolation: Interpolation = "bicubic"
    augment: Augment = Augment()  # noqa: RUF009 - frozen
    balance: Literal["none", "sampler", "loss"] = "none"

    def __post_init__(self) -> None:
        """Refuse values out of range, and values that would have no effect."""
        DataModule.__init__(self)
        self._check_loading()
        self._check_splits()
        if self.crop_pct is not None and not 0 < self.crop_pct <= 1:
            raise UserError(f"data.crop_pct is {self.crop_pct}; it must be above 0 and at most 1.")
        if self.crop_pct is not None and self.resize != "crop":
            raise UserError(
                f"data.crop_pct is {self.crop_pct}, but data.resize is '{self.resize}': only crop has it; leave it out."
            )
        self._refuse_list_keys(self.source == "digits" or self.source.endswith(".npz"))

    def _refuse_list_keys(self, refuse: bool) -> None:
        """Refuse what only lists have; ``torchvision:`` has an ``image_root`` too."""
        is_torchvision = self.source.startswith("torchvision:")
        if refuse or is_torchvision:
            refuse_set(self, ["columns"], f"data.source is '{self.source}', not a .csv or .parquet list.")
        if refuse and not is_torchvision:
            refuse_set(self, ["image_root"], f"data.source is '{self.source}', which needs none.")

    def list_records(self) -> Listing:
        """Read the source, keep the asked classes, hold out what the source does not split off."""
        listing = self._read_source()
        if self.class_names is not None:
            listing = _keep_classes(listing, self.class_names)
        self._hold_out(listing.records)
        self.class_names = listing.class_names
        return listing

    def check_annotations(self, records: list[Record]) -> list[Record]:
        """Refuse classes that no training image has, and say which no training image shows among several."""
        train = [record["label"] for record in records if record["split"] == "train"]
        if train and not self.evaluates:
            self._check_present(train, records)
        return records

    def _check_present(self, train: list[Any], records: list[Record]) -> None:
        names = self.class_names or []
        if not isinstance(train[0], int):
            absent = np.flatnonzero(np.sum(train, axis=0) == 0).tolist()
            if absent:
                rank_zero_warn(
                    f"The training images have no label of {len(absent)} of {len(names)} classes:"
                    f" {[names[k] for k in absent[:20]]}."
                )
            return
        present = set(train)
        lost = [record for record in records if record["label"] not in present]
        if lost:
            record = lost[0]
            classes = sorted({names[r["label"]] for r in lost})
            raise UserError(
                f"No training image has the class(es) {classes[:20]}, but others have, for example '{record['path']}'"
                f" ({record['split']}). Add training images of them, or leave the classes out of data.class_names."
            )

    def _read_source(self) -> Listing:
        source = self.source
        if source == "digits":
            return read_digits()
        if source.startswith("torchvision:"):
            return read_torchvision(source.removeprefix("torchvision:"), self.image_root or "data")
        if is_shards(source):
            self._refuse_list_keys(refuse=True)
            return read_labels(source)
        path = Path(source)
        if SPLIT_FIELD not in source and not path.exists():
            raise UserError(
                f"data.source '{source}' does not exist (looked in {Path.cwd()}). Put or link the images there, or set"
                " --data.source to a folder of class folders, a .csv or .parquet list, or a .npz file."
            )
        if self._is_list(path):
            column = {} if self.group is None or is_pattern(self.group) else {"group": self.group}
            return read_list(source, self.image_root, {**(self.columns or {}), **column})
        self._refuse_list_keys(refuse=True)
        if path.is_dir():
            return read_folder(path)
        if path.suffix == ".npz":
            return read_arrays(path)
        raise UserError(f"data.source '{source}' is neither a folder nor a .csv, .parquet, .txt or .npz file.")

    def _is_list(self, path: Path) -> bool:
        """Whether the source is a list of files, one for each split, or a folder of such lists."""
        if SPLIT_FIELD in self.source or path.suffix.lower() in LIST_SUFFIXES:
            return True
        return path.is_dir() and bool(lists_of_splits(path)) and not has_class_folders(path)

    def make_reader(self) -> Callable[[Record], Record]:
        """Decodes one image; label and weight go along."""
        return partial(read_record, channels=self.in_chans, dtype=self.dtype)

    def make_transform(self, *, train: bool) -> Transform:
        """The training or the evaluation transform."""
        return Transform(
            self.canvas(),
            augment=self.augment if train else None,
            resize=self.resize,
            crop_pct=self.crop_pct or (1.0 if min(self.canvas()) <= 64 else 0.875),
            interpolation=self.interpolation,
        )

    def canvas(self) -> tuple[int, int]:
        """Height and width of a batch."""
        if self.image_size is not None:
            size = self.image_size
            return (size, size) if isinstance(size, int) else (size[0], size[1])
        first = self.records["train"][0]["image"] if self.records.get("train") else None
        return (224, 224) if first is None or isinstance(first, str) else (first.shape[0], first.shape[1])

    @cached_property
    def class_counts(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Training images of each class (their label mass, where labels are soft): float64 (K,)."""
        counts = np.zeros(len(self.class_names or ()))
        for record in self.records["train"]:
            if isinstance(record["label"], int):
                counts[record["label"]] += 1
            else:
                counts += np.asarray(record["label"])
        return counts

    def sample_weights(self) -> Sequence[float] | None:
        """One over the frequency of an image's class; the mean over its labels where there are several."""
        if self.balance != "sampler":
            return None
        rarity = 1.0 / np.maximum(self.class_counts, 1)
        labels = [r["label"] for r in self.records["train"]]
        if isinstance(labels[0], int):
            return [float(rarity[label]) for label in labels]
        masses = [np.asarray(label) for label in labels]
        return [float((m * rarity).sum() / m.sum()) if m.sum() > 0 else float(rarity.mean()) for m in masses]

    def spec(self) -> dict[str, Any]:
        """Number of classes, channels, image size, kind of label and, for ``balance: loss``, the class weights.

        No weights to evaluate a checkpoint, which may have been trained on other images.
        """
        spec: dict[str, Any] = {
            "num_classes": len(self.class_names or ()),
            "in_chans": self.in_chans,
            "image_size": list(self.canvas()),
        }
        if not self.records.get("train"):
            return spec
        spec["multi_label"] = self._is_multi_label()
        if self.balance == "loss" and not self.evaluates:
            spec["class_weights"] = self._class_weights(spec["multi_label"])
        return spec

    def _is_multi_label(self) -> bool:
        """Whether labels are lists that do not all sum to 1, as soft labels do."""
        labels = [record["label"] for record in self.records["train"]]
        return not isinstance(labels[0], int) and not np.allclose([np.sum(own) for own in labels], 1.0, atol=1e-3)

    def _class_weights(self, multi_label: bool) -> list[float]:
        counts = np.maximum(self.class_counts, 1)
        if multi_label:  # as many negatives as positives count
            weights = (len(self.records["train"]) - counts) / counts
        else:  # the mean over the images is 1
            weights = counts.sum() / (len(counts) * counts)
        return [float(weight) for weight in np.maximum(weights, 1e-3)]

    def resolved(self) -> dict[str, Any]:
        """Class names and image size as they turned out."""
        return {"class_names": self.class_names, "image_size": list(self.canvas())}


def _keep_classes(listing: Listing, names: list[str]) -> Listing:
    unknown = [n for n in names if n not in listing.class_names]
    if unknown:
        raise UserError(
            f"data.class_names lists {unknown}, which the data does not have; it has {listing.class_names}."
        )
    if names == listing.class_names:
        return listing
    order = [listing.class_names.index(name) for name in names]
    kept: list[Record] = []
    for record in listing.records:
        label = record["label"]
        if not isinstance(label, int):
            kept.append({**record, "label": [label[old] for old in order]})
        elif label in order:
            kept.append({**record, "label": order.index(label)})
    return listing._replace(records=kept, class_names=list(names))
