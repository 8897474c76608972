"""The datamodule that all tasks share: splits, checks, caches, keyed loaders."""

# No `from __future__ import annotations`: jsonargparse looks types up from the modules of the subclasses.

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, ClassVar, Literal

import torch
from pytorch_lightning import LightningDataModule
from pytorch_lightning.utilities import rank_zero_warn

from datamodules.annotations.records import Listing, Record
from datamodules.arguments import Cache
from datamodules.cache import DecodedCache, readable_images, reduced_side, said_of_cache
from datamodules.common.errors import UserError
from datamodules.decoding.limits import MAX_PIXELS, limit_pixels
from datamodules.decoding.video import is_frame
from datamodules.leaks import check_splits
from datamodules.loaders import (
    RecordDataset,
    TensorLoader,
    TrainLoader,
    available_cores,
    empty_batch,
    make_loader,
)
from datamodules.memory import choose_cache, read_whole
from datamodules.readers.pictures import find_pictures
from datamodules.samplers import EvalSampler, TrainSampler, choose_batch
from datamodules.splits import require_split, split_digest
from datamodules.transforms.augment import Augment
from datamodules.transforms.batched import batch_transform
from datamodules.transforms.pipeline import Transform


class DataModule(LightningDataModule, ABC):
    """Base of the datamodules. A task's datamodule says how to list, read and transform; see ``ClassificationData``.

    The constructor does not touch the disk; ``setup`` reads the lists and checks every image file, before a run
    directory or a W&B run exists.
    """

    # What the machinery asks of every datamodule; those that read files take these as arguments (`arguments.Loading`).
    batch_size: int | Literal["auto"] | None
    eval_batch_size: int | None
    num_workers: int | None
    cache: Cache
    cache_dir: str | None
    on_corrupt: Literal["error", "skip"]
    max_corrupt: float = 0.1
    duplicates: Literal["error", "warn"] = "error"
    max_pixels: int = MAX_PIXELS
    seed: int | None
    class_names: list[str] | None = None
    tries_batch: bool = False  # whether the batch size is found by trying; until then it is None
    #: The batch size by default, where there are images enough.
    most_images: ClassVar[int] = 32
    augment: Augment  # that of training

    def __init__(self) -> None:
        super().__init__()
        self.predict_source: str | list[str] | None = None
        self.chosen: dict[str, str] = {}  # what was chosen for the user, by key, and why; a run prints it
        self.evaluates = False  # whether it was set up to evaluate or predict only
        self._listed: list[str] | None = None  # the files to predict
        # Set by `SemiSupervised`: from all training images to those that keep their labels, and the others.
        self.hide_labels: Callable[[list[Record]], tuple[list[Record], list[Record]]] | None = None
        self.passes_per_epoch = 1.0  # more or less where another datamodule draws an epoch's batches from this one
        self.skipped: list[tuple[str, str]] = []
        self.records: dict[str, list[Record]] = {}
        self._decoded: dict[str, DecodedCache] = {}
        self._settled_batch: int | None = None
        self._train_loader: TrainLoader | TensorLoader | None = None
        self._restored: dict[str, int] | None = None

    # What a task's datamodule supplies.

    @abstractmethod
    def list_records(self) -> Listing:
        """All records with their split, and the class names."""

    @abstractmethod
    def make_reader(self) -> Callable[[Record], Record]:
        """What decodes one record into a sample in original pixels; it travels to workers, so it is no bound method."""

    @abstractmethod
    def make_transform(self, *, train: bool) -> Transform:
        """The training or the evaluation transform."""

    def check_annotations(self, records: list[Record]) -> list[Record]:
        """Check the annotations of records whose images can be read; what it raises ends ``setup``."""
        return records

    def make_dataset(self, split: str, read: Callable[[Record], Record], *, train: bool) -> RecordDataset:
        """A split's samples, transformed; ``train`` for training's augmentation."""
        return RecordDataset(
            self.records[split], read, self.make_transform(train=train), seed=self.run_seed(), stream=split
        )

    def sample_weights(self) -> Sequence[float] | None:
        """Weights for drawing training samples with replacement; None for once each."""
        return None

    def spec(self) -> dict[str, Any]:
        """What the model takes from the data where its own arguments are left out (``num_classes``, ...)."""
        return {}

    def resolved(self) -> dict[str, Any]:
        """Constructor arguments as they turned out, for the saved config; with them no data is needed to predict."""
        return {}

    # Lightning's hooks.

    def setup(self, stage: str | None = None) -> None:
        """Read and check the data; a second call does nothing.

        Raises:
            UserError: If the data is not where the config says, or not usable; file or setting is named.
        """
        limit_pixels(self.max_pixels)  # again: another datamodule may have been made since
        self.evaluates = stage in ("validate", "test", "predict")
        if self.predict_source is not None:
            self._setup_predict(self.predict_source)
        elif not self.records:
            self._setup_splits(stage)

    def _setup_predict(self, source: str | list[str]) -> None:
        paths = find_pictures(source)
        if paths == self._listed:
            return  # checked already
        found = [{"image": path, "path": path} for path in paths]
        self.records["predict"], self.skipped = readable_images(found, self.on_corrupt)
        if self.skipped:
            rank_zero_warn(f"{len(self.skipped)} unreadable images are left out; first {': '.join(self.skipped[0])}")
        self._listed = paths

    def _setup_splits(self, stage: str | None) -> None:
        listing = self.list_records()
        for note in listing.notes:
            rank_zero_warn(note)
        records, self.skipped = readable_images(listing.records, self.on_corrupt, self.max_corrupt)
        records = self.check_annotations(records)
        self.records = {s: [r for r in records if r["split"] == s] for s in ("train", "val", "test")}
        if self.hide_labels is not None:  # before any class is counted: hidden labels must not count
            self.records["train"], self.records["pool"] = self.hide_labels(self.records["train"])
        self._settle_batch()
        if not self.records["train"] and stage in ("fit", "probe"):
            raise UserError("The training split holds no images.")
        if stage == "fit":
            check_splits(self.records, self.duplicates)
            self._train_sampler()  # a set that is smaller than one global batch is refused here, not an hour later
            self.chosen |= said_of_cache(self._resolve_cache(), self.canvas())  # refuses what does not go together
            self.make_transform(train=True)
        if split := {"validate": "val", "test": "test"}.get(stage or ""):
            require_split(self.records, split)

    @cached_property
    def split_digest(self) -> str:
        """A digest of which image is in which split."""
        return split_digest(self.records)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of the data: the digest of the splits, and how far the training stream has come.

        Lightning restores a loader's own state too late where the number of steps was asked for before (it then takes
        the loader that exists already), so the position travels with the datamodule.
        """
        loader = self._train_loader
        return {"split_digest": self.split_digest, "train": None if loader is None else loader.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the position of the training stream; say so if the images or their splits are not those of training."""
        self._restored = state_dict.get("train")
        digest = state_dict.get("split_digest")
        if self.records.get("train") and digest not in (None, self.split_digest):
            rank_zero_warn(
                "The images or their splits are not those that the checkpoint was trained on: test images may have been"
                " trained on. Set data.split_file to the split.json of the run directory to use its splits."
            )

    def train_dataloader(self) -> Any:
        """Shuffled, augmented, resumable batches of this rank."""
        sampler = self._train_sampler()
        loader: TrainLoader | TensorLoader
        if self._resolve_cache() == "tensor":
            transform = batch_transform(self.augment, self.canvas())
            loader = TensorLoader(self._whole_split("train"), sampler, transform, self.run_seed())
        else:
            loader = self._loader("train", sampler, train=True)
        if self._restored is not None:
            loader.load_state_dict(self._restored)
        self._train_loader = loader
        return loader

    def val_dataloader(self) -> Any:
        """Every validation image once, over all ranks; an empty list where there is no validation split."""
        return self._eval_loader("val")

    def test_dataloader(self) -> Any:
        """Every test image once, over all ranks.

        Raises:
            UserError: If there is no test split.
        """
        require_split(self.records, "test")
        return self._eval_loader("test")

    def train_features_dataloader(self) -> Any:
        """Every training image once, in order and without augmentation; for a probe on frozen features."""
        return self._eval_loader("train")

    def predict_dataloader(self) -> Any:
        """The images of ``predict_source``, or else of the test split (or the validation split without one)."""
        own = "test" if self.predict_source is None and self.records["test"] else "val"
        return self._eval_loader(own if self.predict_source is None else "predict")

    @abstractmethod
    def canvas(self) -> tuple[int, int]:
        """Height and width of the images of a batch."""

    @property
    def train_batch(self) -> int:
        """Images a device and step in training; where it is chosen from the data, known after ``setup``."""
        return int(self.batch_size or self._settled_batch or self.most_images)

    @property
    def eval_batch(self) -> int:
        """Images a device and step in validation, test and prediction."""
        return int(self.eval_batch_size or self.batch_size or self.most_images)

    def _settle_batch(self) -> None:
        """Choose the batch size that was left out: few images in large batches would be few steps."""
        images = len(self.records["train"])
        self._settled_batch = choose_batch(self.most_images, images // self._rank()[1])
        if self.batch_size is None and self._settled_batch < self.most_images:
            self.chosen["data.batch_size"] = f"{self._settled_batch}, since there are {images} training images"

    def run_seed(self) -> int:
        """``data.seed``, or the run's ``seed_everything``, which Lightning keeps in the environment."""
        return self.seed if self.seed is not None else int(os.environ.get("PL_GLOBAL_SEED", "0"))

    def _rank(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)

    def _train_sampler(self) -> TrainSampler:
        rank, world_size = self._rank()
        return TrainSampler(
            len(self.records["train"]),
            self.train_batch,
            weights=self.sample_weights(),
            seed=self.run_seed(),
            rank=rank,
            world_size=world_size,
            same_pass=self.trainer is not None and self.trainer.overfit_batches > 0,
        )

    def _eval_loader(self, split: str) -> Any:
        if not self.records[split]:
            return []
        sampler = EvalSampler(len(self.records[split]), self.eval_batch, *self._rank())
        if not len(sampler):
            first = self.records[split][:1]
            return empty_batch(RecordDataset(first, self.make_reader(), self.make_transform(train=False)))
        if split != "predict" and self._resolve_cache() == "tensor":
            return TensorLoader(self._whole_split(split), sampler)
        return self._loader(split, sampler, train=False)

    def _loader(self, split: str, sampler: TrainSampler | EvalSampler, *, train: bool) -> Any:
        read = self.make_reader()
        cache = "none" if split == "predict" else self._resolve_cache()
        if cache == "decoded" or (train and cache == "resized"):
            side = reduced_side(cache, self.canvas())
            if split not in self._decoded:
                self._decoded[split] = DecodedCache.build(self.records[split], read, self.cache_dir, side)
            read = self._decoded[split].read
        dataset = self.make_dataset(split, read, train=train)
        pin = torch.cuda.is_available()
        return make_loader(dataset, sampler, num_workers=self._workers(self.records[split]), pin_memory=pin)

    def _workers(self, records: Sequence[Record]) -> int:
        if self.num_workers is not None:
            return self.num_workers
        if len(records) <= self.train_batch:
            return 0
        local = self.trainer.num_devices if self.trainer is not None else 1
        most = 1 if is_frame(records[0]["image"]) else 8  # each worker decodes a video from its start
        return min(most, max(1, available_cores() // local))

    def _resolve_cache(self) -> Cache:
        """The cache in use; see ``choose_cache``."""
        return choose_cache(self.cache, self.augment, self.canvas(), self.records["train"])

    def _whole_split(self, split: str) -> dict[str, Any]:
        dataset = RecordDataset(self.records[split], self.make_reader(), self.make_transform(train=False))
        # Workers pay for themselves only where files are decoded, and many of them.
        is_file = isinstance(self.records[split][0]["image"], str)
        return read_whole(dataset, self._workers(self.records[split]) if is_file else 0)
