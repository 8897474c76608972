"""Images with boxes, and with a mask for each object where they are asked for."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pytorch_lightning.utilities import rank_zero_warn

from datamodules.annotations.boxes import Policy, check_boxes, check_sizes
from datamodules.annotations.objects import repeat_factors, require_masks, select_classes
from datamodules.annotations.records import Listing, Record
from datamodules.base import Cache
from datamodules.common.errors import UserError
from datamodules.dense import DenseData
from datamodules.loaders import RecordDataset
from datamodules.readers.box_sources import Format, find_format, read_boxes
from datamodules.readers.digits import MAX_DIGITS
from datamodules.readers.samples import read_objects
from datamodules.readers.voc_boxes import Difficult
from datamodules.splits import hold_out
from datamodules.transforms.augment import DetectionAugment
from datamodules.transforms.mixing import MixedDataset
from datamodules.transforms.pipeline import Transform

DIGIT_CLASSES = [str(k) for k in range(10)]


class DetectionData(DenseData):
    """Images and boxes from COCO's, VOC's or YOLO's files, or the digit scenes.

    Images without boxes are kept: nothing in them is to be found. Boxes with ``iscrowd`` (groups of objects, VOC's
    difficult ones) are in the batch with that mark; they are not learnt, and forgiven in evaluation.

    Args:
        source: ``digits`` (embedded scenes), a COCO ``.json`` file or a folder with ``annotations/*.json``, a folder of
            Pascal VOC's XML files, or YOLO's ``data.yaml`` or a folder with ``labels/``.
        format: ``coco``, ``voc`` or ``yolo``; by default what the files look like.
        image_root: Where file names of a COCO file start; by default where the images are found.
        class_names: The classes in their order. COCO's are chosen by it, and boxes of the others left out; for VOC and
            YOLO it names all that occur. By default those of the source.
        class_ids: The classes' numbers in the source, which predictions are written with: COCO's category ids. By
            default those of the source, or 0 to K - 1.
        voc_one_based: Whether VOC's coordinates count pixels from 1, as its own files do, or from 0.
        voc_difficult: What VOC's difficult objects become: ``ignore`` (as a crowd), ``keep`` or ``drop``.
        masks: Whether each object has a mask, for instance segmentation. Boxes alone are faster to load.
        check_boxes: What is done with boxes that cannot be right (outside the image, without area, inverted, NaN):
            ``error`` refuses them, naming file and box, ``fix`` clips and swaps, and drops what cannot be fixed,
            ``drop`` drops them all.
        num_scenes: Digit scenes of each split; 1,000, 200 and 200 by default.
        scene_digits: Most digits of a scene, which has at least one; 6 by default.
        val_fraction: Part of the training images held out for validation where the source has no validation split.
        test_fraction: The same for a test split.
        split_seed: Seed of the held-out parts.
        split_file: ``split.json`` of an earlier run: its splits are used again.
        image_size: Height and width of the batch's canvas (one number for a square); 128 for the digits, the tile where
            there is one, 512 for files by default. With ``resize: native`` it is training's only.
        in_chans: Channels of the batch: 3 (RGB), 1 (grey), or as many as the files hold.
        dtype: ``float32`` keeps the full depth of 16-bit and float images.
        resize: How a picture comes onto the canvas: ``letterbox`` (all of it, its proportions kept, the rest filled),
            ``stretch``, or ``native``: training cuts the canvas out of the picture as it is, evaluation sees each
            picture in its own size.
        tile: Evaluate by overlapping tiles of this height and width, for pictures too large for one pass; needs
            ``resize: native``.
        tile_overlap: Part of a tile that neighbours share; objects should fit into it.
        interpolation: How images are resized; masks are never interpolated.
        augment: Augmentation of the training images on the CPU.
        balance: ``sampler`` draws images of rare classes more often, by LVIS's repeat factors; see
            ``repeat_threshold``.
        repeat_threshold: Part of the training images below which a class is rare, for ``balance: sampler``; LVIS, with
            a thousand classes, takes 0.001. A class in a part f of the images is drawn sqrt(threshold / f) times as
            often.
        batch_size: Images a device and step.
        eval_batch_size: The same in validation, test and prediction; ``batch_size`` by default, 1 with tiles or where
            ``native`` pictures differ in size.
        num_workers: Loader processes a device; the cores shared among the devices, at most 8, by default.
        cache: ``decoded`` keeps decoded images on disk; ``auto`` is ``none``, and ``tensor`` has no form for boxes.
        cache_dir: Folder of the decoded images.
        on_corrupt: ``error`` refuses unreadable files, naming them; ``skip`` decodes all files first and leaves the
            bad ones out, counted and listed.
        seed: Seed of order and augmentation; the run's ``seed_everything`` by default.
    """

    _side = 512

    def __init__(
        self,
        source: str = "digits",
        format: Literal["coco", "voc", "yolo"] | None = None,
        image_root: str | None = None,
        class_names: list[str] | None = None,
        class_ids: list[int] | None = None,
        voc_one_based: bool = True,
        voc_difficult: Literal["ignore", "keep", "drop"] = "ignore",
        masks: bool = False,
        check_boxes: Literal["error", "fix", "drop"] = "error",
        num_scenes: dict[str, int] | None = None,
        scene_digits: int | None = None,
        val_fraction: float = 0.1,
        test_fraction: float = 0.0,
        split_seed: int = 0,
        split_file: str | None = None,
        image_size: int | tuple[int, int] | None = None,
        in_chans: int = 3,
        dtype: Literal["uint8", "float32"] = "uint8",
        resize: Literal["letterbox", "stretch", "native"] = "letterbox",
        tile: int | tuple[int, int] | None = None,
        tile_overlap: float = 0.25,
        interpolation: Literal["bilinear", "bicubic", "area", "nearest"] = "bilinear",
        augment: DetectionAugment = DetectionAugment(),  # noqa: B008 - frozen
        balance: Literal["none", "sampler"] = "none",
        repeat_threshold: float = 0.1,
        batch_size: int = 16,
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
        self.source, self.format, self.image_root = source, format, image_root
        self.class_names, self.class_ids = class_names, class_ids
        self.voc_one_based = voc_one_based
        self.voc_difficult: Difficult = voc_difficult
        self.masks = masks
        self.check_boxes: Policy = check_boxes
        self.num_scenes, self.scene_digits = num_scenes, scene_digits
        self.val_fraction, self.test_fraction, self.split_seed = val_fraction, test_fraction, split_seed
        self.split_file = split_file
        self.image_size = image_size
        self.in_chans = in_chans
        self.dtype: Literal["uint8", "float32"] = dtype
        self.resize: Literal["letterbox", "stretch", "native"] = resize
        self.tile = (tile, tile) if isinstance(tile, int) else tile
        self.tile_overlap = tile_overlap
        self.interpolation: Literal["bilinear", "bicubic", "area", "nearest"] = interpolation
        self._augment = augment
        self.balance = balance
        self.repeat_threshold = repeat_threshold
        self._asked_eval_batch = eval_batch_size
        self._check_arguments()

    def _check_arguments(self) -> None:
        if self.class_names is not None and len(set(self.class_names)) < max(1, len(self.class_names)):
            raise UserError(f"data.class_names is {self.class_names}; name each class once, and at least one.")
        if self.class_ids is not None and len(self.class_ids) != len(self.class_names or self.class_ids):
            raise UserError(
                f"data.class_ids has {len(self.class_ids)} numbers, data.class_names {len(self.class_names or ())}"
                " names; each class has one number."
            )
        if self.source == "digits":
            for key in ("format", "image_root", "class_ids"):
                if getattr(self, key) is not None:
                    raise UserError(f"data.{key} is set, but data.source is 'digits', which needs none.")
            if self.class_names not in (None, DIGIT_CLASSES):
                raise UserError(f"data.class_names is set, but the digit scenes' classes are {DIGIT_CLASSES}.")
        elif self.scene_digits is not None:
            raise UserError(f"data.scene_digits is set, but data.source is '{self.source}', not 'digits'.")
        if self.scene_digits is not None and self.scene_digits < 1:
            raise UserError(f"data.scene_digits is {self.scene_digits}; a scene has at least 1 digit.")
        if not 0 < self.repeat_threshold <= 1:
            raise UserError(f"data.repeat_threshold is {self.repeat_threshold}; it is a part of the images, 0 to 1.")
        if self.repeat_threshold != 0.1 and self.balance != "sampler":
            raise UserError(
                f"data.repeat_threshold is {self.repeat_threshold}, but data.balance is '{self.balance}': set"
                " data.balance: sampler, or leave it out."
            )
        if self._augment.copy_paste and not self.masks:
            raise UserError(
                f"data.augment.copy_paste is {self._augment.copy_paste}, but data.masks is false: objects are cut out"
                " by their masks. Set data.masks: true, or leave it out."
            )
        self._check_common()

    @property
    def augment(self) -> DetectionAugment:
        """The training augmentation's settings."""
        return self._augment

    # Listing and checking.

    def list_records(self) -> Listing:
        """Read the source, keep the asked classes, hold out what the source does not split off.

        Raises:
            UserError: If the source, or a file that it names, does not exist.
            UserError: If its files are not as their format has them, or have other classes than the config says.
        """
        if self.source == "digits":
            self.class_names = list(DIGIT_CLASSES)
            records = self._split_scenes(self._scene_records(self.scene_digits or MAX_DIGITS))
            return Listing(records, self.class_names)
        path = Path(self.source)
        if not path.exists():
            raise UserError(
                f"data.source '{self.source}' does not exist (looked in {Path.cwd()}). Put or link the images there, or"
                " set --data.source to a folder in the layout of COCO, VOC or YOLO, a COCO .json or a YOLO .yaml file."
            )
        format: Format = self.format or find_format(path)
        if format != "voc" and (not self.voc_one_based or self.voc_difficult != "ignore"):
            key = "voc_one_based" if not self.voc_one_based else "voc_difficult"
            raise UserError(f"data.{key} is set, but data.source '{self.source}' is read as {format}; leave it out.")
        if format != "coco" and self.image_root is not None:
            raise UserError(f"data.image_root is set, but data.source '{self.source}' is read as {format}, not coco.")
        listing = read_boxes(
            path,
            format,
            image_root=self.image_root,
            class_names=None if format == "coco" else self.class_names,
            voc_one_based=self.voc_one_based,
            voc_difficult=self.voc_difficult,
        )
        if self.class_names is not None:
            listing = select_classes(listing, self.class_names)
        if self.class_ids is not None and listing.class_ids not in (None, self.class_ids):
            raise UserError(
                f"data.class_ids is {self.class_ids}, but the categories of '{self.source}' have the ids"
                f" {listing.class_ids}, in the order of data.class_names. Leave it out."
            )
        self.class_names, self.class_ids = listing.class_names, self.class_ids or listing.class_ids
        hold_out(listing.records, self.val_fraction, self.test_fraction, self.split_seed, self.split_file)
        return listing

    def check_annotations(self, records: list[Record]) -> list[Record]:
        """Compare the images' sizes with the annotations', and judge each box by ``check_boxes``."""
        if self.source == "digits":
            return records
        records, report = check_boxes(check_sizes(records), self.check_boxes, len(self.class_names or ()))
        if report.counts:
            shown = "".join(f"\n  {example}" for example in report.examples)
            rank_zero_warn(f"data.check_boxes: {self.check_boxes}: {report}.{shown}")
        if self.masks:
            require_masks(records)
        single = [r["labels"][r["iscrowd"] == 0] for r in records if r["split"] == "train"]
        present = np.unique(np.concatenate([np.zeros(0, np.int64), *single]))
        absent = [name for i, name in enumerate(self.class_names or ()) if i not in present]
        if single and len(absent) == len(self.class_names or ()):
            raise UserError(f"None of the {len(single)} training images of '{self.source}' has an object to learn.")
        if single and absent:
            rank_zero_warn(
                f"The training images hold no object of {len(absent)} of {len(self.class_names or ())} classes:"
                f" {absent[:20]}."
            )
        return records

    # What the loaders take.

    def make_reader(self) -> Callable[[Record], Record]:
        """Decodes an image; draws its objects' masks where they are asked for."""
        return partial(read_objects, channels=self.in_chans, dtype=self.dtype, masks=self.masks)

    def make_transform(self, *, train: bool, canvas: tuple[int, int] | None = None) -> Transform:
        """The training or the evaluation transform; ``canvas`` in place of the data's own."""
        return Transform(
            canvas or self.canvas(),
            augment=self._augment if train else None,
            resize=self.resize,
            interpolation=self.interpolation,
            dense=True,
            tile=self.tile,
            tile_overlap=self.tile_overlap,
            min_visibility=self._augment.min_visibility,
        )

    def make_dataset(self, split: str, read: Callable[[Record], Record], *, train: bool) -> RecordDataset:
        """A split's samples; in training mixed from several images, on canvases of several sizes, where asked for."""
        augment = self._augment
        if not train or not (augment.mixes or augment.canvas_sizes):
            return super().make_dataset(split, read, train=train)
        world_size = self.trainer.world_size if self.trainer is not None else 1
        return MixedDataset(
            self.records[split],
            read,
            [self.make_transform(train=True, canvas=canvas) for canvas in augment.canvases() or [self.canvas()]],
            augment,
            weights=self.sample_weights(),
            global_batch=self.batch_size * world_size,
            mixed_passes=self._mixed_passes(),
            seed=self.run_seed(),
            stream=split,
        )

    def _mixed_passes(self) -> int | None:
        """How many passes mix pictures; None for all of them."""
        close, trainer = self._augment.close_mosaic_epochs, self.trainer
        epochs: int | None = None
        if trainer is not None and trainer.max_epochs is not None and trainer.max_epochs > 0:
            epochs = trainer.max_epochs
        elif trainer is not None and trainer.max_steps > 0:
            steps = len(self._train_sampler()) * self.passes_per_epoch
            epochs = math.ceil(trainer.max_steps * trainer.accumulate_grad_batches / steps)
        if epochs is None:
            if close and trainer is not None:
                raise UserError(
                    f"data.augment.close_mosaic_epochs is {close}, but the run has no last epoch: set"
                    " trainer.max_epochs, or data.augment.close_mosaic_epochs: 0."
                )
            return None
        if close and close >= epochs:
            rank_zero_warn(
                f"data.augment.close_mosaic_epochs is {close} and the run has {epochs} epochs: no pictures are mixed."
            )
        mixed = max(0, epochs - (min(15, epochs // 10) if close is None else close))
        return round(mixed * self.passes_per_epoch)

    def canvas(self) -> tuple[int, int]:
        """Height and width of a batch; of a training batch alone where ``resize`` is ``native``."""
        return self.tile if self.image_size is None and self.tile is not None else super().canvas()

    # Frequencies.

    def sample_weights(self) -> Sequence[float] | None:
        """``repeat_factors`` of the training images; crowds do not count.

        LVIS repeats an image so often in each pass; here a pass has as many draws as images, by these odds.
        """
        return self._factors if self.balance == "sampler" else None

    @cached_property
    def _factors(self) -> list[float]:
        read = self.make_reader() if self.source == "digits" else lambda record: record
        samples = [read(record) for record in self.records["train"]]
        labels = [s["labels"][s["iscrowd"] == 0] for s in samples]
        factors = repeat_factors(labels, len(self.class_names or ()), self.repeat_threshold)
        if max(factors) == 1.0:
            rank_zero_warn(
                "data.balance: sampler changes nothing: each class is in at least data.repeat_threshold ="
                f" {self.repeat_threshold:g} of the training images."
            )
        return factors

    def spec(self) -> dict[str, Any]:
        """Number of classes, channels, canvas, and whether objects have masks."""
        return {
            "num_classes": len(self.class_names or ()),
            "in_chans": self.in_chans,
            "image_size": list(self.canvas()),
            "masks": self.masks,
        }

    def resolved(self) -> dict[str, Any]:
        """Classes with their numbers in the source, and the canvas."""
        return {"class_names": self.class_names, "class_ids": self.class_ids, "image_size": list(self.canvas())}
