"""The constructor arguments that datamodules share, each written, documented and checked once.

A datamodule is a dataclass that takes these as bases, so they are keys of its own in a YAML file and in ``--help``.
A class that has another default repeats the field, and nothing else.
"""

# No `from __future__ import annotations`: jsonargparse looks types up from the modules of the subclasses.

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from datamodules.annotations.records import Record
from datamodules.common.errors import UserError
from datamodules.decoding.limits import MAX_PIXELS, MOST_PIXELS, limit_pixels
from datamodules.splits import hold_out, set_weights

Cache = Literal["auto", "none", "decoded", "resized", "tensor"]
Interpolation = Literal["bilinear", "bicubic", "area", "nearest"]


@dataclass(kw_only=True, eq=False, repr=False)
class Loading:
    """How batches are loaded.

    Args:
        batch_size: Images a device and step; by default 32 (classification) or 8 (detection, segmentation), halved
            (down to 4) while an epoch of the training images has fewer than 8 steps. ``auto`` tries on one device
            which one fits into the memory, up to 1,024 and 8 steps an epoch; the run's config holds the number.
        eval_batch_size: The same in validation, test and prediction; by default ``batch_size``, or 32 or 8, and for
            dense tasks 1 with tiles or where ``native`` pictures differ in size.
        num_workers: Loader processes a device; the cores shared among the devices, at most 8, by default.
        cache: ``decoded`` keeps decoded images on disk; ``resized`` those of training alone, reduced once to a shorter
            side of twice ``image_size``, for large photographs (whole images and boxes); ``tensor`` keeps a whole set
            of whole images in memory. ``auto`` takes ``tensor`` for small sets whose augmentation has a batched form,
            else ``none``.
        cache_dir: Folder of the decoded images; one of the user's own (``~/.cache/pipelines/decoded``) by default.
        on_corrupt: ``error`` refuses unreadable files, naming them; ``skip`` decodes all files first and leaves the
            bad ones out, counted and listed.
        max_corrupt: Share of the files that ``skip`` may leave out, beyond the first 10; more are refused.
        max_pixels: Height times width above which no image or mask is decoded; a small file can unfold to gigabytes.
        seed: Seed of order and augmentation; the run's ``seed_everything`` by default.
    """

    batch_size: int | Literal["auto"] | None = None
    eval_batch_size: int | None = None
    num_workers: int | None = None
    cache: Cache = "auto"
    cache_dir: str | None = None
    on_corrupt: Literal["error", "skip"] = "error"
    max_corrupt: float = 0.1
    max_pixels: int = MAX_PIXELS
    seed: int | None = None

    def _check_loading(self) -> None:
        if self.batch_size == "auto":
            self.batch_size, self.tries_batch = None, True
        for key in ("batch_size", "eval_batch_size"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise UserError(f"data.{key} is {value}; it must be at least 1.")
        if self.num_workers is not None and self.num_workers < 0:
            raise UserError(
                f"data.num_workers is {self.num_workers}; it must be 0 (load in the training process) or more."
            )
        if not 1 <= self.max_pixels <= MOST_PIXELS:
            raise UserError(
                f"data.max_pixels is {self.max_pixels:,}; it must be at least 1, and at most {MOST_PIXELS:,}, beyond"
                " which OpenCV decodes nothing: cut larger images into tiles."
            )
        limit_pixels(self.max_pixels)
        if self.cache_dir is not None and self.cache in ("none", "tensor"):
            raise UserError(
                f"data.cache_dir is set, but data.cache is '{self.cache}', which keeps nothing on the disk."
            )


@dataclass(kw_only=True, eq=False, repr=False)
class Splits:
    """Which images are held out where the source does not say.

    Args:
        val_fraction: Fraction of the training images held out for validation where the source has no validation split.
        test_fraction: The same for a test split.
        split_seed: Seed of the held-out images; of whole images they are stratified by class.
        split_file: ``split.json`` of an earlier run: its splits are used again.
        weight_file: JSON, by path what a training image's loss is multiplied by, in place of a weight of its own; as
            ``ensemble`` writes it. An image that is not named keeps its own, or 1.
        group: What keeps images of one patient, scene or video in one split: a column of a list, or the end of paths
            with ``{group}``, such as ``{group}/*.png`` or ``{group}_*.jpg``.
        duplicates: ``error`` refuses to train where a file, or the same bytes, are in two splits; ``warn`` says so.
    """

    val_fraction: float = 0.1
    test_fraction: float = 0.0
    split_seed: int = 0
    split_file: str | None = None
    weight_file: str | None = None
    group: str | None = None
    duplicates: Literal["error", "warn"] = "error"

    def _hold_out(self, records: list[Record]) -> None:
        """Give each record a split, see ``hold_out``."""
        hold_out(records, self.val_fraction, self.test_fraction, self.split_seed, self.split_file, self.group)
        self._weigh(records)

    def _weigh(self, records: list[Record]) -> None:
        """Give each training record the weight that ``weight_file`` has for it."""
        if self.weight_file is not None:
            set_weights([record for record in records if record["split"] == "train"], self.weight_file)

    def _check_splits(self) -> None:
        for key in ("val_fraction", "test_fraction"):
            value = getattr(self, key)
            if not 0 <= value < 1:
                raise UserError(f"data.{key} is {value}; it is a fraction of the images, at least 0 and below 1.")


@dataclass(kw_only=True, eq=False, repr=False)
class Pixels:
    """What the images of a batch are.

    Args:
        image_size: Height and width of the batch (one number for a square); by default that of arrays, and for files
            224 (classification), 512 (detection; the tile where there is one) or 256 (segmentation), for digit scenes
            128. With ``resize: native`` it is training's only.
        in_chans: Channels of the batch: 3 (RGB), 1 (gray), or as many as the files hold.
        dtype: ``float32`` keeps the full depth of 16-bit and float images.
        interpolation: How images are resized; masks are never interpolated.
    """

    image_size: int | tuple[int, int] | None = None
    in_chans: int = 3
    dtype: Literal["uint8", "float32"] = "uint8"
    interpolation: Interpolation = "bilinear"


def refuse_set(data: object, keys: Iterable[str], reason: str) -> None:
    """Refuse arguments that have no effect.

    Raises:
        UserError: Naming the first of ``keys`` that is set, and the reason.
    """
    for key in keys:
        if getattr(data, key) is not None:
            raise UserError(f"data.{key} is set, but {reason}")


def refuse_resized(data: Loading, reason: str) -> None:
    """Refuse ``cache: resized`` where something is read in the pictures' own size.

    Raises:
        UserError: With the reason.
    """
    if data.cache == "resized":
        raise UserError(
            f"data.cache is 'resized', but {reason}, in the pictures' own size: use data.cache: decoded or none."
        )
