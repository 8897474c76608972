"""Images with one label, several labels, or soft labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from datamodules.annotations.records import Listing
from datamodules.base import Cache, DataModule
from datamodules.common.errors import UserError
from datamodules.loaders import Record, read_record
from datamodules.readers.arrays import read_arrays
from datamodules.readers.digits import read_digits
from datamodules.readers.folder import read_folder
from datamodules.readers.lists import read_list
from datamodules.readers.torchvision_sets import read_torchvision
from datamodules.splits import hold_out
from datamodules.transforms.augment import Augment
from datamodules.transforms.pipeline import Transform


class ClassificationData(DataModule):
    """Image classification from a folder, a CSV or parquet list, a .npz file, a torchvision set, or the digits.

    Args:
        source: ``digits`` (embedded), a folder of class folders (below ``train``/``val``/``test`` or not), a ``.csv``
            or ``.parquet`` list, a ``.npz`` file, or ``torchvision:NAME``.
        image_root: Folder that relative paths of a list start from; the list's own folder by default. For
            ``torchvision:NAME`` the folder that holds the set.
        columns: Names of a list's columns where they are not ``path``, ``label`` and ``split``.
        class_names: Only these classes, in this order; all classes, sorted, by default.
        val_fraction: Part of the training images held out for validation where the source has no validation split.
        test_fraction: The same for a test split.
        split_seed: Seed of the held-out parts, which are stratified by class.
        split_file: ``split.json`` of an earlier run: its splits are used again.
        image_size: Height and width of the batch (one number for a square); the arrays' own size, or 224 for files.
        in_chans: Channels of the batch: 3 (RGB), 1 (grey), or as many as the files hold.
        dtype: ``float32`` keeps the full depth of 16-bit and float images.
        resize: ``crop`` (shorter side to ``image_size / crop_pct``, then the centre), ``letterbox`` or ``stretch``.
        crop_pct: Part of the resized shorter side that the centre crop keeps; 0.875 by default, and all of it (1) for
            images of at most 64 pixels.
        interpolation: How images are resized.
        augment: Augmentation of the training images on the CPU; mixup, cutmix, erasing and jitter are the model's.
        balance: ``sampler`` draws every class equally often; ``loss`` weights each class's loss by its rarity.
        batch_size: Images a device and step.
        eval_batch_size: The same in validation, test and prediction; ``batch_size`` by default.
        num_workers: Loader processes a device; the cores shared among the devices, at most 8, by default.
        cache: ``decoded`` keeps decoded images on disk, ``tensor`` the whole set in memory; ``auto`` takes ``tensor``
            for small sets whose augmentation has a batched form.
        cache_dir: Folder of the decoded images.
        on_corrupt: ``error`` refuses unreadable files, naming them; ``skip`` decodes all files first and leaves the
            bad ones out, counted and listed.
        seed: Seed of order and augmentation; the run's ``seed_everything`` by default.
    """

    def __init__(
        self,
        source: str = "digits",
        image_root: str | None = None,
        columns: dict[str, str] | None = None,
        class_names: list[str] | None = None,
        val_fraction: float = 0.1,
        test_fraction: float = 0.0,
        split_seed: int = 0,
        split_file: str | None = None,
        image_size: int | tuple[int, int] | None = None,
        in_chans: int = 3,
        dtype: Literal["uint8", "float32"] = "uint8",
        resize: Literal["crop", "letterbox", "stretch"] = "crop",
        crop_pct: float | None = None,
        interpolation: Literal["bilinear", "bicubic", "area", "nearest"] = "bicubic",
        augment: Augment = Augment(),  # noqa: B008 - frozen
        balance: Literal["none", "sampler", "loss"] = "none",
        batch_size: int = 32,
        eval_batch_size: int | None = None,
        num_workers: int | None = None,
        cache: Cache = "auto",
        cache_dir: str | None = None,
        on_corrupt: Literal["error", "skip"] = "error",
        seed: int | None = None,
    ) -> None:
        super().__init__(
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            cache=cache,
            cache_dir=cache_dir,
            on_corrupt=on_corrupt,
            seed=seed,
        )
        for key, part in (("val_fraction", val_fraction), ("test_fraction", test_fraction)):
            if not 0 <= part < 1:
                raise UserError(f"data.{key} is {part}; it is a part of the images, at least 0 and below 1.")
        if crop_pct is not None and not 0 < crop_pct <= 1:
            raise UserError(f"data.crop_pct is {crop_pct}; it must be above 0 and at most 1.")
        if crop_pct is not None and resize != "crop":
            raise UserError(
                f"data.crop_pct is {crop_pct}, but data.resize is '{resize}': only crop has it; leave it out."
            )
        is_list = source.endswith((".csv", ".parquet"))
        if columns is not None and not is_list:
            raise UserError(f"data.columns is set, but data.source is '{source}', not a .csv or .parquet list.")
        if image_root is not None and not is_list and not source.startswith("torchvision:"):
            raise UserError(f"data.image_root is set, but data.source is '{source}', which needs none.")
        self.source = source
        self.image_root = image_root
        self.columns = columns
        self.class_names = class_names
        self.val_fraction, self.test_fraction, self.split_seed = val_fraction, test_fraction, split_seed
        self.split_file = split_file
        self.image_size = image_size
        self.in_chans = in_chans
        self.dtype: Literal["uint8", "float32"] = dtype
        self.resize: Literal["crop", "letterbox", "stretch"] = resize
        self.crop_pct = crop_pct
        self.interpolation: Literal["bilinear", "bicubic", "area", "nearest"] = interpolation
        self._augment = augment
        self.balance = balance

    @property
    def augment(self) -> Augment:
        """The training augmentation's settings."""
        return self._augment

    def list_records(self) -> Listing:
        """Read the source, keep the asked classes, hold out what the source does not split off."""
        listing = self._read_source()
        if self.class_names is not None:
            listing = _keep_classes(listing, self.class_names)
        hold_out(listing.records, self.val_fraction, self.test_fraction, self.split_seed, self.split_file)
        self.class_names = listing.class_names
        return listing

    def _read_source(self) -> Listing:
        source = self.source
        if source == "digits":
            return read_digits()
        if source.startswith("torchvision:"):
            return read_torchvision(source.removeprefix("torchvision:"), self.image_root or "data")
        path = Path(source)
        if not path.exists():
            raise UserError(
                f"data.source '{source}' does not exist (looked in {Path.cwd()}). Put or link the images there, or set"
                " --data.source to a folder of class folders, a .csv or .parquet list, or a .npz file."
            )
        if path.is_dir():
            return read_folder(path)
        if path.suffix in (".csv", ".parquet"):
            return read_list(path, self.image_root, self.columns)
        if path.suffix == ".npz":
            return read_arrays(path)
        raise UserError(f"data.source '{source}' is neither a folder nor a .csv, .parquet or .npz file.")

    def make_reader(self) -> Callable[[Record], Record]:
        """Decodes one image; label and weight go along."""
        return partial(read_record, channels=self.in_chans, dtype=self.dtype)

    def make_transform(self, *, train: bool) -> Transform:
        """The training or the evaluation transform."""
        return Transform(
            self.canvas(),
            augment=self._augment if train else None,
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
        label = self.records["train"][0]["label"] if self.records.get("train") else 0
        spec: dict[str, Any] = {
            "num_classes": len(self.class_names or ()),
            "in_chans": self.in_chans,
            "image_size": list(self.canvas()),
        }
        if self.records.get("train"):
            sums = () if isinstance(label, int) else [float(np.sum(r["label"])) for r in self.records["train"]]
            spec["multi_label"] = bool(len(sums)) and not np.allclose(sums, 1.0, atol=1e-3)
        if self.balance == "loss" and self.records.get("train") and not self.evaluates:
            counts = np.maximum(self.class_counts, 1)
            total = len(self.records["train"])
            # One label: the mean over the images is 1. Several: as many negatives as positives count.
            weights = (total - counts) / counts if spec["multi_label"] else counts.sum() / (len(counts) * counts)
            spec["class_weights"] = [float(w) for w in np.maximum(weights, 1e-3)]
        return spec

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
    order = [listing.class_names.index(n) for n in names]
    new_id = {old: new for new, old in enumerate(order)}
    kept: list[Record] = []
    for record in listing.records:
        label = record["label"]
        if isinstance(label, int):
            if label in new_id:
                kept.append({**record, "label": new_id[label]})
        else:
            kept.append({**record, "label": [label[old] for old in order]})
    return Listing(kept, list(names))
