"""Images with boxes, and with a mask for each object where they are asked for."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Literal

from pytorch_lightning.utilities import rank_zero_warn

from datamodules.annotations.boxes import check_boxes, check_sizes, fractions_note
from datamodules.annotations.instance_masks import check_masks
from datamodules.annotations.objects import absent_classes, repeat_factors, require_masks, select_classes
from datamodules.annotations.records import Listing, Record
from datamodules.arguments import refuse_resized, refuse_set
from datamodules.base import DataModule
from datamodules.common.errors import UserError, bullets
from datamodules.dense import DenseData
from datamodules.loaders import RecordDataset
from datamodules.readers.box_sources import WITHOUT_ROOT, Format, find_format, read_boxes
from datamodules.readers.digits import MAX_DIGITS
from datamodules.readers.samples import read_objects
from datamodules.transforms.augment import DetectionAugment
from datamodules.transforms.mixing import MixedDataset
from datamodules.transforms.pipeline import Transform

DIGIT_CLASSES = [str(k) for k in range(10)]


@dataclass(kw_only=True, eq=False, repr=False)
class DetectionData(DenseData):
    """Images and boxes from COCO's, VOC's or YOLO's files, or the digit scenes.

    Images without boxes are kept: they hold nothing to be found. Boxes with ``iscrowd`` (groups of objects, VOC's
    difficult ones) are in the batch with that mark; they are not learned, and ignored in evaluation.

    Args:
        source: ``digits`` (embedded scenes), a COCO ``.json`` file or a folder with ``annotations/*.json``, a folder of
            Pascal VOC's XML files, YOLO's ``data.yaml`` or a folder with ``labels/``, a ``.csv`` list of boxes, or what
            LabelMe, CreateML, VIA, Label Studio and CVAT write; or WebDataset's tar shards; see docs/data.md.
        format: Which of them; by default what the files look like.
        image_root: Where file names start; by default where the images are found. VOC and YOLO have none.
        class_names: The classes in their order. COCO's are chosen by it, and boxes of the others left out; for other
            formats it names all that occur. By default those of the source.
        class_ids: The classes' numbers in the source, which predictions are written with: COCO's category ids. By
            default those of the source, or 0 to K - 1.
        voc_one_based: Whether VOC's coordinates count pixels from 1, as its own files do, or from 0.
        voc_difficult: What VOC's difficult objects become: ``ignore`` (as a crowd), ``keep`` or ``drop``.
        masks: Whether each object has a mask, for instance segmentation. Boxes alone are faster to load.
        check_boxes: What is done with boxes that cannot be right (outside the image, without area, inverted, NaN):
            ``error`` refuses them, naming file and box, ``fix`` clips and swaps, and drops what cannot be fixed,
            ``drop`` drops them all.
        scene_digits: Most digits of a scene, which has at least one; 6 by default.
        augment: Augmentation of the training images on the CPU.
        balance: ``sampler`` draws images of rare classes more often, by LVIS's repeat factors; see
            ``repeat_threshold``.
        repeat_threshold: Fraction of the training images below which a class is rare, for ``balance: sampler``; LVIS,
            with a thousand classes, takes 0.001. A class in a fraction f of the images is drawn sqrt(threshold / f)
            times as often.
    """

    format: Format | None = None
    image_root: str | None = None
    class_ids: list[int] | None = None
    voc_one_based: bool = True
    voc_difficult: Literal["ignore", "keep", "drop"] = "ignore"
    masks: bool = False
    check_boxes: Literal["error", "fix", "drop"] = "error"
    scene_digits: int | None = None
    augment: DetectionAugment = DetectionAugment()  # noqa: RUF009 - frozen
    balance: Literal["none", "sampler"] = "none"
    repeat_threshold: float = 0.1

    _side = 512

    def __post_init__(self) -> None:
        """Refuse values out of range, and values that would have no effect."""
        DataModule.__init__(self)
        self._check_classes()
        self._check_balance()
        if self.augment.copy_paste and not self.masks:
            raise UserError(
                f"data.augment.copy_paste is {self.augment.copy_paste}, but data.masks is false: objects are cropped by"
                " their masks. Set data.masks: true, or leave it out."
            )
        if self.masks or self.resize == "native":
            refuse_resized(self, "data.masks is true" if self.masks else "data.resize is 'native'")
        self._check_shared()

    def _check_classes(self) -> None:
        names, ids = self.class_names, self.class_ids
        if names is not None and len(set(names)) < max(1, len(names)):
            raise UserError(f"data.class_names is {names}; name each class once, and at least one.")
        if ids is not None and len(ids) != len(names or ids):
            raise UserError(
                f"data.class_ids has {len(ids)} numbers, data.class_names {len(names or ())} names; each class has one"
                " number."
            )
        if self.source != "digits":
            refuse_set(self, ["scene_digits"], f"data.source is '{self.source}', not 'digits'.")
            return
        refuse_set(self, ("format", "image_root", "class_ids"), "data.source is 'digits', which needs none.")
        if names not in (None, DIGIT_CLASSES):
            raise UserError(f"data.class_names is set, but the digit scenes' classes are {DIGIT_CLASSES}.")
        if self.scene_digits is not None and self.scene_digits < 1:
            raise UserError(f"data.scene_digits is {self.scene_digits}; a scene has at least 1 digit.")

    def _check_balance(self) -> None:
        if not 0 < self.repeat_threshold <= 1:
            raise UserError(
                f"data.repeat_threshold is {self.repeat_threshold}; it is a fraction of the images, 0 to 1."
            )
        if self.repeat_threshold != 0.1 and self.balance != "sampler":
            raise UserError(
                f"data.repeat_threshold is {self.repeat_threshold}, but data.balance is '{self.balance}': set"
                " data.balance: sampler, or leave it out."
            )

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
        format: Format = self.format or find_format(self.source)
        self._check_format(format)
        listing = read_boxes(
            self.source,
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
        self._hold_out(listing.records)
        return listing

    def _check_format(self, format: Format) -> None:
        """Refuse arguments of another format."""
        changed = {"voc_one_based": not self.voc_one_based, "voc_difficult": self.voc_difficult != "ignore"}
        for key, is_set in changed.items():
            if is_set and format != "voc":
                reason = f"data.source '{self.source}' is read as {format}; leave it out."
                raise UserError(f"data.{key} is set, but {reason}")
        if format in WITHOUT_ROOT:
            refuse_set(self, ["image_root"], f"data.source '{self.source}' is read as {format}, which needs none.")

    def check_annotations(self, records: list[Record]) -> list[Record]:
        """Compare the images' sizes with the annotations', and check each box, see ``check_boxes``."""
        if self.source == "digits":
            return records
        records = check_sizes(records)
        if note := fractions_note(records):
            rank_zero_warn(note)
        records, report = check_boxes(records, self.check_boxes, len(self.class_names or ()))
        if report.counts:
            shown = "".join(f"\n  {example}" for example in report.examples)
            rank_zero_warn(f"data.check_boxes: {self.check_boxes}: {report}.{shown}")
        if self.masks:
            require_masks(records)
            records, wrong = check_masks(records, self.check_boxes, "data.check_boxes")
            if wrong:
                rank_zero_warn(f"data.check_boxes: {self.check_boxes}: {len(wrong):,} masks dropped:{bullets(wrong)}")
        single = [r["labels"][r["iscrowd"] == 0] for r in records if r["split"] == "train"]
        absent = absent_classes(single, self.class_names or [], self.source)
        if absent:
            count = f"{len(absent)} of {len(self.class_names or ())} classes"
            rank_zero_warn(f"The training images hold no object of {count}: {absent[:20]}.")
        return records

    # What the loaders take.

    def make_reader(self) -> Callable[[Record], Record]:
        """Decodes an image; draws its objects' masks where they are asked for."""
        return partial(read_objects, channels=self.in_chans, dtype=self.dtype, masks=self.masks)

    def make_transform(self, *, train: bool, canvas: tuple[int, int] | None = None) -> Transform:
        """The training or the evaluation transform; ``canvas`` in place of the data's own."""
        return Transform(
            canvas or self.canvas(),
            augment=self.augment if train else None,
            resize=self.resize,
            interpolation=self.interpolation,
            dense=True,
            tile=self.tile_size,
            tile_overlap=self.tile_overlap,
            min_visibility=self.augment.min_visibility,
        )

    def make_dataset(self, split: str, read: Callable[[Record], Record], *, train: bool) -> RecordDataset:
        """A split's samples; in training mixed from several images, on canvases of several sizes, where asked for."""
        augment = self.augment
        if not train or not (augment.mixes or augment.canvas_sizes):
            return super().make_dataset(split, read, train=train)
        world_size = self.trainer.world_size if self.trainer is not None else 1
        return MixedDataset(
            self.records[split],
            read,
            [self.make_transform(train=True, canvas=canvas) for canvas in augment.canvases() or [self.canvas()]],
            augment,
            weights=self.sample_weights(),
            global_batch=self.train_batch * world_size,
            mixed_passes=self._mixed_passes(),
            seed=self.run_seed(),
            stream=split,
        )

    def _mixed_passes(self) -> int | None:
        """How many passes mix pictures; None for all of them."""
        close, epochs = self.augment.close_mosaic_epochs, self._num_epochs()
        if epochs is None:
            if close and self.trainer is not None:
                raise UserError(
                    f"data.augment.close_mosaic_epochs is {close}, but the run has no last epoch: set"
                    " trainer.max_epochs, or data.augment.close_mosaic_epochs: 0."
                )
            return None
        if close and close >= epochs:
            rank_zero_warn(
                f"data.augment.close_mosaic_epochs is {close} and the run has {epochs} epochs: no pictures are mixed."
            )
        if close is None:
            close = min(15, epochs // 10)
        return round(max(0, epochs - close) * self.passes_per_epoch)

    def _num_epochs(self) -> int | None:
        """Epochs of the run, the last one counted where steps end it; None where it has no end."""
        trainer = self.trainer
        epochs: int | None = None
        if trainer is not None and trainer.max_epochs is not None and trainer.max_epochs > 0:
            epochs = trainer.max_epochs
        elif trainer is not None and trainer.max_steps > 0:
            batches = trainer.max_steps * trainer.accumulate_grad_batches
            epochs = math.ceil(batches / (len(self._train_sampler()) * self.passes_per_epoch))
        return epochs

    def canvas(self) -> tuple[int, int]:
        """Height and width of a batch; of a training batch alone where ``resize`` is ``native``."""
        return self.tile_size if self.image_size is None and self.tile_size is not None else super().canvas()

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
