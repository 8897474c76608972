"""Unlabeled images for the online teachers: a folder, a list, or training images whose labels are hidden."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.annotations.records import Listing
from datamodules.arguments import Cache
from datamodules.base import DataModule
from datamodules.common.errors import UserError
from datamodules.decoding.shards import is_shards
from datamodules.fractions import first_labeled
from datamodules.loaders import Record, RecordDataset, TensorLoader, TrainLoader, read_record
from datamodules.readers.lists import read_paths
from datamodules.readers.pictures import find_pictures
from datamodules.segmentation import SegmentationData
from datamodules.transforms.augment import Augment
from datamodules.transforms.pipeline import Transform
from datamodules.transforms.views import TwoViews, check_still, collate_views, image_only, randomized, still


class UnlabeledImages(DataModule):
    """The unlabeled half of `SemiSupervised` for online teachers; its settings are the labeled datamodule's.

    A batch has ``image``, the strong view, and ``weak_image`` of the same type and shape; there are no labels in it.
    Where masks are learned, ``mask`` is 0 on the picture and 255 on the canvas around it.

    Whole images: each view is made from the original by keys of its own. Where masks or boxes are learned, labels found
    on the weak view must lie right on the strong one: that is the weak view with noise that moves no pixel.
    """

    def __init__(self, labeled: DataModule, source: str | None, strong: Augment | None, ratio: int) -> None:
        super().__init__()
        self.batch_size, self.eval_batch_size = None, None  # ratio times the labeled ones', once that is known
        self.num_workers, self.on_corrupt = labeled.num_workers, labeled.on_corrupt
        self.cache = labeled.cache if labeled.cache in ("decoded", "resized") else "none"
        self.cache_dir = labeled.cache_dir
        self.max_pixels, self.seed = labeled.max_pixels, None
        self.augment = labeled.augment  # that of the weak view
        self.labeled, self.source, self.ratio = labeled, source, ratio
        self._strong = strong
        self.hidden: list[Record] = []  # training images whose labels are not to be seen

    def list_records(self) -> Listing:
        """The images of the pool, all for training.

        Raises:
            UserError: If there is no pool, or an image of its list is missing.
            UserError: If it is smaller than a step's share.
        """
        records = [*self.hidden, *([] if self.source is None else pool_records(self.source))]
        world_size = self._rank()[1]
        if len(records) < self.train_batch * world_size:
            raise UserError(
                f"There are {len(records)} unlabeled images, but a step takes data.ratio x batch_size x devices ="
                f" {self.ratio} x {self.labeled.train_batch} x {world_size} of them. Lower data.ratio or"
                " data.labeled.batch_size."
            )
        return Listing([{**record, "split": "train"} for record in records], list(self.labeled.class_names or ()))

    def make_reader(self) -> Callable[[Record], Record]:
        """Decodes an image, and nothing else."""
        labeled: Any = self.labeled
        read = partial(read_record, channels=labeled.in_chans, dtype=labeled.dtype)
        return partial(image_only, read=read, draw=labeled.make_reader())

    def make_transform(self, *, train: bool) -> Transform:
        """That of the weak view."""
        return self.labeled.make_transform(train=train)

    def strong_transform(self) -> Transform:
        """That of the strong view, which follows the weak one's where masks or boxes are learned.

        Raises:
            UserError: If it moves pixels where it must not, or its settings do not go together.
        """
        weak, channels = self.make_transform(train=True), int(self.labeled.in_chans)  # type: ignore[attr-defined]
        augment = self._strong or (still(channels) if weak.dense else randomized(self.augment))
        if weak.dense:
            check_still(augment)
        else:
            augment.crop_for(self.canvas())
        transform = copy.copy(weak)
        transform.augment = augment
        return transform

    def make_dataset(self, split: str, read: Callable[[Record], Record], *, train: bool) -> RecordDataset:
        """Both views of each image."""
        return TwoViews(
            self.records[split],
            read,
            self.make_transform(train=True),
            self.strong_transform(),
            shows=isinstance(self.labeled, SegmentationData),
            seed=self.run_seed(),
            stream=split,
        )

    def setup(self, stage: str | None = None) -> None:
        """Find and check the images, and the settings of both views; a second call does nothing.

        Raises:
            UserError: If an image cannot be read, or a setting cannot work.
        """
        if getattr(self.augment, "canvas_sizes", None):
            raise UserError(
                f"data.labeled.augment.canvas_sizes is {self.augment.canvas_sizes}, but unlabeled images"  # type: ignore[attr-defined]
                " come on data.image_size alone, and both go through the network together: leave it out."
            )
        self.strong_transform()
        super().setup(stage)

    def train_dataloader(self) -> TrainLoader | TensorLoader:
        """Batches of both views, of this rank."""
        loader: TrainLoader | TensorLoader = super().train_dataloader()
        loader.collate_fn = collate_views  # type: ignore[union-attr]
        return loader

    def canvas(self) -> tuple[int, int]:
        """Height and width of a batch."""
        return self.labeled.canvas()

    def spec(self) -> dict[str, Any]:
        """The labeled datamodule's."""
        return self.labeled.spec()

    def _resolve_cache(self) -> Cache:
        return self.cache


def pool_records(source: str | Path) -> list[Record]:
    """The images of a pool: a folder with its sub-folders, an image, a video, tar shards, or a ``.csv`` list.

    Raises:
        UserError: If there is no such thing.
        UserError: If it holds no images.
    """
    path = Path(source)
    if not (path.exists() or is_shards(str(source))):
        raise UserError(
            f"The pool '{source}' does not exist (looked in {Path.cwd()}). Give a folder of images, or a .csv or"
            " .parquet list with a column 'path'."
        )
    if path.suffix in (".csv", ".parquet"):
        return read_paths(path)
    return [{"image": file, "path": file} for file in find_pictures(str(path))]


def hide_labels(
    records: list[Record],
    class_names: list[str],
    seed: int,
    *,
    per_class: int | None = None,
    images: int | None = None,
    fraction: float | None = None,
) -> tuple[list[Record], list[Record]]:
    """Training images that keep their labels, and the others; the draw of the loop (``pipelines.noisy_student``).

    Args:
        records: The training images.
        class_names: For messages.
        seed: The run's.
        per_class: Images of each class that keep their one label, or
        images: images that keep their annotations, whatever these are, or
        fraction: of them all, stratified by class; a larger one holds the smaller, see ``fractions.first_labeled``.

    Raises:
        UserError: If there are too few images, or they have no class.
    """
    order = np.random.default_rng([seed, 1]).permutation(len(records)).tolist()
    if fraction is not None:
        seen = first_labeled(records, fraction, seed)
    elif images is None:
        seen = _seen_by_class(records, class_names, order, int(per_class or 0))
    elif images < len(records):
        seen = set(order[:images])
    else:
        raise UserError(
            f"labeled_images is {images}, but there are {len(records)} training images: none would be without"
            " labels. Give fewer."
        )
    kept = [record for i, record in enumerate(records) if i in seen]
    return kept, [record for i, record in enumerate(records) if i not in seen]


def _seen_by_class(records: list[Record], class_names: list[str], order: list[int], per_class: int) -> set[int]:
    """Numbers of the first images of each class, in this order."""
    members: dict[int, list[int]] = defaultdict(list)
    for i in order:
        label = records[i].get("label")
        if not isinstance(label, int):
            raise UserError(
                f"labels_per_class is {per_class}, but the images have not one class each: give"
                " labeled_images, the number of images that keep their annotations."
            )
        members[label].append(i)
    for label, those in members.items():
        if len(those) < per_class:
            raise UserError(
                f"labels_per_class is {per_class}, but class '{class_names[label]}' has {len(those)} training images."
            )
    return {i for those in members.values() for i in those[:per_class]}
