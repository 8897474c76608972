"""The datamodule that all tasks share: splits, checks, caches, keyed loaders.

The batch that it gives (a plain dict; B images, C channels, H x W pixels, K classes):

========== ================================= ====================================================================
key        dtype and shape                   meaning
========== ================================= ====================================================================
image      uint8 (B, C, H, W), channels_last not normalised; float32 in [0, 1] where ``dtype: float32`` is asked
label      int64 (B,) or float32 (B, K)      class, or multi-label / soft labels
mask       uint8 (B, H, W), 255 = ignore     class of each pixel; (B, K, H, W) of 0, 1, 255 for several labels a pixel
soft_mask  float16 (B, K, H, W), optional    class probabilities of each pixel, beside ``mask``
boxes      float32 (B, M, 4)                 x1 y1 x2 y2, pixel edges of the batch image; zeros behind an image's last
labels     int64 (B, M)                      class of each box, -1 where there is none
masks      int16 (B, L, H, W)                number of the object (its box's place, from 1) at each pixel, 0 for none
iscrowd    uint8 (B, M)                      boxes of groups, which evaluation forgives
weight     float32 (B,), optional            scales each image's loss, in every task
geometry   float32 (B, 6)                    original height, width, scale_x, scale_y, offset_x, offset_y
target     list of B dicts, evaluation only  the annotations above as they are in the original picture
tiles      list of B int64 (T, 4), optional  y1 x1 y2 x2 of the windows that a large picture is evaluated by
path, id   list of B str, int64 (B,)         where a sample came from
========== ================================= ====================================================================

Objects of one layer of ``masks`` do not overlap; most data sets need one layer.
"""

from __future__ import annotations

import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from pytorch_lightning import LightningDataModule
from pytorch_lightning.utilities import rank_zero_warn
from torch.utils.data import DataLoader

from datamodules.annotations.records import Listing
from datamodules.cache import DecodedCache, readable_images
from datamodules.common.errors import UserError
from datamodules.decoding.files import find_images
from datamodules.decoding.video import is_frame
from datamodules.loaders import (
    EvalSampler,
    Record,
    RecordDataset,
    TensorLoader,
    TrainLoader,
    TrainSampler,
    available_cores,
    collate,
    make_loader,
)
from datamodules.splits import common_folder
from datamodules.transforms.augment import Augment
from datamodules.transforms.pipeline import Transform, batch_transform

Cache = Literal["auto", "none", "decoded", "tensor"]
TENSOR_CACHE_BYTES = 1 << 30


class DataModule(LightningDataModule, ABC):
    """Base of the datamodules. A task's datamodule says how to list, read and transform; see ``ClassificationData``.

    The constructor does not touch the disk; ``setup`` reads the lists and checks every image file, before a run
    directory or a W&B run exists.
    """

    def __init__(
        self,
        *,
        batch_size: int,
        eval_batch_size: int | None,
        num_workers: int | None,
        cache: Cache,
        cache_dir: str | None,
        on_corrupt: Literal["error", "skip"],
        seed: int | None,
    ) -> None:
        super().__init__()
        for key, value in (("batch_size", batch_size), ("eval_batch_size", eval_batch_size)):
            if value is not None and value < 1:
                raise UserError(f"data.{key} is {value}; it must be at least 1.")
        if num_workers is not None and num_workers < 0:
            raise UserError(f"data.num_workers is {num_workers}; it must be 0 (load in the training process) or more.")
        if cache_dir is not None and cache in ("none", "tensor"):
            raise UserError(f"data.cache_dir is set, but data.cache is '{cache}', which keeps nothing on the disk.")
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size or batch_size
        self.num_workers = num_workers
        self.cache: Cache = cache
        self.cache_dir = cache_dir
        self.on_corrupt = on_corrupt
        self.seed = seed
        self.class_names: list[str] | None = None
        self.predict_source: str | None = None
        self.evaluates = False  # whether it was set up to evaluate or predict only
        self._listed: list[str] | None = None  # the files to predict
        self.passes_per_epoch = 1.0  # more or less where another datamodule draws an epoch's batches from this one
        self.skipped: list[tuple[str, str]] = []
        self.records: dict[str, list[Record]] = {}
        self._decoded: dict[str, DecodedCache] = {}
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

    @property
    @abstractmethod
    def augment(self) -> Augment:
        """The training augmentation's settings."""

    def check_annotations(self, records: list[Record]) -> list[Record]:
        """Judge the annotations of records whose images can be read; what it raises ends ``setup``."""
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
            UserError: If the data is not where the config says.
            UserError: If the data is not usable, naming the file or the setting.
        """
        self.evaluates = stage in ("validate", "test", "predict")
        if self.predict_source is not None:
            paths = find_images(self.predict_source)
            if paths == self._listed:
                return  # checked already
            found: list[Record] = [{"image": path, "path": path} for path in paths]
            self.records["predict"], self.skipped = readable_images(found, self.on_corrupt)
            if self.skipped:
                path, reason = self.skipped[0]
                rank_zero_warn(f"{len(self.skipped)} unreadable image(s) are left out; the first is {path}: {reason}")
            self._listed = paths
            return
        if self.records:
            return
        listing = self.list_records()
        records, self.skipped = readable_images(listing.records, self.on_corrupt)
        records = self.check_annotations(records)
        self.records = {s: [r for r in records if r["split"] == s] for s in ("train", "val", "test")}
        if not self.records["train"] and stage in ("fit", "probe"):
            raise UserError("The training split holds no images.")
        if stage == "fit":
            self._train_sampler()  # a set that is smaller than one global batch is refused here, not an hour later
            self._resolve_cache()  # and so are settings that do not go together
            self.make_transform(train=True)
        for split, command in (("val", "validate"), ("test", "test")):
            if stage == command:
                self._require(split)

    @cached_property
    def split_digest(self) -> str:
        """A digest of which image is in which split, wherever the folder lies; it tells whether it changed."""
        paths = [(split, r["path"]) for split, rs in self.records.items() for r in rs if split != "predict"]
        top = common_folder(path for _, path in paths)
        names = sorted((split, path.removeprefix(top)) for split, path in paths)
        return hashlib.sha256(json.dumps(names).encode()).hexdigest()[:16]

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
            batch = self._whole_split("train")
            loader = TensorLoader(batch, sampler, batch_transform(self.augment, self.canvas()), self.run_seed())
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
        self._require("test")
        return self._eval_loader("test")

    def train_features_dataloader(self) -> Any:
        """Every training image once, in order and without augmentation; for a probe on frozen features."""
        return self._eval_loader("train")

    def predict_dataloader(self) -> Any:
        """The images of ``predict_source``, or else of the test split (or the validation split without one)."""
        if self.predict_source is not None:
            return self._eval_loader("predict")
        return self._eval_loader("test" if self.records["test"] else "val")

    # The machinery.

    def _require(self, split: str) -> None:
        if not self.records[split]:
            have = ", ".join(f"{name} ({len(records)} images)" for name, records in self.records.items() if records)
            raise UserError(
                f"The data has no {split} split; it has {have}. Add one, or set data.{split}_fraction before training."
            )

    @abstractmethod
    def canvas(self) -> tuple[int, int]:
        """Height and width of the images of a batch."""

    def run_seed(self) -> int:
        """``data.seed``, or the run's ``seed_everything``, which Lightning keeps in the environment."""
        return self.seed if self.seed is not None else int(os.environ.get("PL_GLOBAL_SEED", "0"))

    def _rank(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)

    def _train_sampler(self) -> TrainSampler:
        rank, world_size = self._rank()
        return TrainSampler(
            len(self.records["train"]),
            self.batch_size,
            weights=self.sample_weights(),
            seed=self.run_seed(),
            rank=rank,
            world_size=world_size,
            same_pass=self.trainer is not None and self.trainer.overfit_batches > 0,
        )

    def _eval_loader(self, split: str) -> Any:
        if not self.records[split]:
            return []
        sampler = EvalSampler(len(self.records[split]), self.eval_batch_size, *self._rank())
        if not len(sampler):
            return self._empty_batch(split)
        if split != "predict" and self._resolve_cache() == "tensor":
            return TensorLoader(self._whole_split(split), sampler)
        return self._loader(split, sampler, train=False)

    def _empty_batch(self, split: str) -> Any:
        """One batch of no images, for a rank that gets none.

        Without a batch Lightning leaves the epoch out on that rank, and the others wait for it in ``compute`` for ever
        (``skip`` in https://github.com/Lightning-AI/pytorch-lightning/blob/master/src/lightning/pytorch/loops/evaluation_loop.py).
        """
        dataset = RecordDataset(self.records[split][:1], self.make_reader(), self.make_transform(train=False))
        batch = {key: value[:0] for key, value in collate([dataset[0, -1, 0]]).items()}
        return DataLoader([batch], batch_size=None)  # type: ignore[arg-type]

    def _loader(self, split: str, sampler: TrainSampler | EvalSampler, *, train: bool) -> Any:
        read = self.make_reader()
        if split != "predict" and self._resolve_cache() == "decoded":
            if split not in self._decoded:
                self._decoded[split] = DecodedCache.build(self.records[split], read, self.cache_dir)
            read = self._decoded[split].read
        dataset = self.make_dataset(split, read, train=train)
        return make_loader(
            dataset,
            sampler,
            num_workers=self._loader_workers(split),
            pin_memory=torch.cuda.is_available(),
        )

    def _loader_workers(self, split: str) -> int:
        records = self.records[split]
        workers = self._resolve_num_workers(len(records))
        # Each worker decodes a video from its start, so by default one does it.
        return min(workers, 1) if self.num_workers is None and is_frame(records[0]["image"]) else workers

    def _resolve_num_workers(self, num_images: int) -> int:
        if self.num_workers is not None:
            return self.num_workers
        local = self.trainer.num_devices if self.trainer is not None else 1
        return 0 if num_images <= self.batch_size else min(8, max(1, available_cores() // local))

    def _resolve_cache(self) -> Cache:
        """``auto``: ``tensor`` for few and small images whose augmentation has a batched form, else ``none``."""
        dense = any("mask" in r or "boxes" in r for r in self.records["train"][:1])
        if self.cache == "tensor" and dense:
            raise UserError("data.cache is 'tensor', which is for whole images only: use data.cache: decoded or none.")
        batched = batch_transform(self.augment, self.canvas()) is not None and not dense
        if self.cache == "tensor" and not batched:
            preset = "transforms" if self.augment.transforms is not None else f"preset: {self.augment.preset}"
            raise UserError(
                f"data.cache is 'tensor', but augment.{preset} (or its crop) has no form for whole batches. Use"
                " augment.preset: none, or light with augment.crop: pad; or data.cache: decoded."
            )
        if self.cache != "auto":
            return self.cache
        height, width = self.canvas()
        size = len(self.records["train"]) * height * width * 3
        arrays = all(not isinstance(r["image"], str | Path) for r in self.records["train"][:1])
        return "tensor" if batched and size <= TENSOR_CACHE_BYTES and (arrays or height * width <= 64 * 64) else "none"

    def _whole_split(self, split: str) -> dict[str, Any]:
        transform = self.make_transform(train=False)
        dataset = RecordDataset(self.records[split], self.make_reader(), transform)
        loader = make_loader(
            dataset, EvalSampler(len(dataset), 256), num_workers=self._decode_workers(split), pin_memory=False
        )
        parts = list(loader)
        whole: dict[str, Any] = {"path": [p for part in parts for p in part["path"]]}
        for key in parts[0]:
            if key != "path":
                whole[key] = torch.cat([part[key] for part in parts])
        return whole

    def _decode_workers(self, split: str) -> int:
        """Workers pay for themselves only where files are decoded, and many of them."""
        first = self.records[split][0]["image"]
        return self._resolve_num_workers(len(self.records[split])) if isinstance(first, str) else 0
