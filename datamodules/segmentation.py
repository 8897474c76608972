"""Images with a class for each pixel, or several."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pytorch_lightning.utilities import rank_zero_warn

from datamodules.annotations.mask_checks import MaskCheck, check_all_masks, check_records, median_frequency, report
from datamodules.annotations.mask_files import Mask
from datamodules.annotations.mask_formats import MaskSettings, Settled, class_palette, settle_format
from datamodules.annotations.mask_records import decode_mask
from datamodules.annotations.masks import MaskFormat
from datamodules.annotations.palettes import check_palettes
from datamodules.annotations.records import Listing, Record
from datamodules.annotations.soft_masks import read_with_soft_mask
from datamodules.arguments import refuse_resized, refuse_set
from datamodules.base import DataModule
from datamodules.common.errors import UserError
from datamodules.dense import DenseData
from datamodules.readers.mask_sources import is_coco_source, read_mask_source
from datamodules.readers.samples import read_pixels
from datamodules.transforms.augment import Augment
from datamodules.transforms.pipeline import Transform
from datamodules.transforms.soft_masks import SoftMaskTransform

DIGIT_CLASSES = ["background", *(str(k) for k in range(10))]


@dataclass(kw_only=True, eq=False, repr=False)
class SegmentationData(DenseData):
    """Images and masks from folders, path patterns, VOC's or COCO's files, or the digit scenes.

    Args:
        source: ``digits`` (embedded scenes), a folder of images and masks (``images/`` and ``masks/``, ``train/`` and
            ``trainannot/``, ...; see ``datamodules.readers.pairs``), a folder in the layout of VOC or COCO, a COCO
            ``.json`` file, or a ``.csv`` or ``.parquet`` list with the columns ``path`` and ``mask``, and where labels
            are soft ``soft_mask`` (see ``datamodules.annotations.soft_masks``), or a ``.txt`` file with both on a line;
            also a list a split, ``lists/{split}.csv`` or the folder of ``train.csv`` and ``val.csv``; or WebDataset's
            tar shards, ``train-{000..009}.tar`` or a folder of them.
        images: Pattern of the image files below ``source``, for example ``{split}/{stem}.jpg``; with ``masks``.
        masks: Pattern of the mask files: ``{split}annot/{stem}.png``. ``{class}`` in it stands for one binary mask a
            class, as in ``masks/{class}/{stem}.png``; an image without a class's file has none of that class.
        image_root: Where relative paths of a list, or file names of a COCO file, start; by default the list's own
            folder, or where the images are found.
        class_names: The classes in their order. By default those of the source, the keys of ``class_values`` or
            ``colors``, the lines of a ``classes.txt`` in ``source``, or numbers.
        mask_format: What mask files hold: ``index`` (one number a pixel), ``rgb`` (one of ``colors``) or ``binary``
            (0, and 1 or 255). ``auto`` looks at the files: color pictures are ``rgb``, nothing but 0 and 255 is
            ``binary``, the rest is ``index``.
        colors: The color of each class, [r, g, b]; several colors as a list of them. With index masks they only
            color what is written.
        class_values: What index masks hold for each class where that is not its place in ``class_names``: a number or
            a list of them, ``{road: 7, car: [26, 27]}``.
        ignore_values: Values (for ``rgb``: colors) of pixels that count neither in the loss nor in any score; [255]
            for index masks by default, none for the others. With [0] class 0 is stored as 1, and so on.
        multi_label: Several classes a pixel, one channel each: COCO's overlapping objects, or one binary mask a class,
            where ``{class}`` in ``masks`` sets it anyway. A single binary mask becomes one channel.
        augment: Augmentation of the training images on the CPU.
        balance: ``sampler`` draws a class at random and then one of the images that hold it, so that images with rare
            classes come more often; ``loss`` weights each class's loss by its rarity, see ``spec``.
        check_masks: Read every mask before training, so that values, sizes and damaged files are known at once.

    Attributes:
        class_colors: [r, g, b] of each class where the source has colors: ``colors``, or the palette of the first
            palette mask; else None. Known after ``setup``, and from a saved config.
    """

    images: str | None = None
    masks: str | None = None
    image_root: str | None = None
    mask_format: Literal["auto", "index", "rgb", "binary"] = "auto"
    colors: dict[str, list[int] | list[list[int]]] | None = None
    class_values: dict[str, int | list[int]] | None = None
    ignore_values: list[int] | list[list[int]] | None = None
    multi_label: bool = False
    resize: Literal["letterbox", "stretch", "native"] = "native"
    augment: Augment = Augment()  # noqa: RUF009 - frozen
    balance: Literal["none", "sampler", "loss"] = "none"
    check_masks: bool = True

    def __post_init__(self) -> None:
        """Refuse values out of range, and values that would have no effect."""
        DataModule.__init__(self)
        self._format: MaskFormat | None = None
        self._checks: dict[str, MaskCheck] = {}
        self._bad_masks: list[tuple[str, str]] = []
        colors, values = self.colors, self.class_values
        self._settings = MaskSettings(
            self.mask_format,
            self.class_names,
            None if colors is None else {name: _nested(color, list) for name, color in colors.items()},
            None if values is None else {name: _nested(value, int) for name, value in values.items()},
            self.ignore_values,
            self.multi_label,
        )
        self.class_colors = class_palette(Settled(MaskFormat("rgb"), self._settings.names(), None), self._settings, 0)
        self._check_arguments()

    def _check_arguments(self) -> None:
        if self.source == "digits":
            keys = ("images", "masks", "image_root", "colors", "class_values", "ignore_values")
            refuse_set(self, keys, "data.source is 'digits', which needs none.")
            if self.class_names not in (None, DIGIT_CLASSES):
                raise UserError(f"data.class_names is set, but the digit scenes' classes are {DIGIT_CLASSES}.")
            if self.multi_label or self.mask_format != "auto":
                raise UserError("data.multi_label and data.mask_format are for files; leave them out for the digits.")
        refuse_resized(self, "masks are read from their files")
        self._check_shared()

    # Listing and checking.

    def setup(self, stage: str | None = None) -> None:
        """Read and check images and masks; a second call does nothing. See ``DataModule.setup`` for what it raises."""
        fresh = not self.records
        super().setup(stage)
        if self.predict_source is None and fresh:
            self.skipped = self.skipped + self._bad_masks

    def list_records(self) -> Listing:
        """Read the source, find out what its masks hold, check them, and hold out what the source does not split off.

        Raises:
            UserError: If the source, or a file that it names, does not exist.
            UserError: If masks are missing or do not fit the classes or their images, naming up to 10 of them.
        """
        if self.source == "digits":
            self.class_names = list(DIGIT_CLASSES)
            return Listing(self._split_scenes(self._scene_records()), self.class_names)
        if is_coco_source(self.source, by_pattern=self.images is not None or self.masks is not None):
            for key in ("images", "masks", "class_values", "ignore_values", "mask_format"):
                if getattr(self, key) not in (None, "auto"):
                    raise UserError(f"data.{key} is set, but data.source '{self.source}' is COCO's: it has no masks.")
        given = self.source, self.images, self.masks, self.class_names
        listing = read_mask_source(*given, multi_label=self.multi_label, image_root=self.image_root, group=self.group)
        self._hold_out(listing.records)
        for record in listing.records:
            if record["split"] != "train":
                record.pop("soft_mask", None)  # scores compare classes
        checked = check_records(
            listing.records,
            self._settle(listing),
            self.multi_label,
            every=self.check_masks,
            skip=self.on_corrupt == "skip",
        )
        self._checks, self._bad_masks, self._format = checked.checks, checked.unreadable, checked.settled.fmt
        self.class_names = checked.settled.class_names or []
        if checked.absent:
            rank_zero_warn(
                f"The training masks hold no pixel of {len(checked.absent)} of {len(self.class_names)} classes:"
                f" {checked.absent[:20]}."
            )
        self.class_colors = class_palette(checked.settled, self._settings, len(self.class_names))
        return listing._replace(records=checked.records, class_names=self.class_names)

    def _settle(self, listing: Listing) -> Settled:
        """Find out what the masks hold, from the training images first; COCO's are drawn as class numbers."""
        first = listing.records[0]["mask"]
        if isinstance(first, dict):
            return Settled(MaskFormat("index"), listing.class_names, None)
        by_class = isinstance(first, list)
        self.multi_label = self.multi_label or by_class
        paths: list[str] = []
        for record in sorted(listing.records, key=lambda r: bool(r["split"] != "train")):
            own = record["mask"] if by_class else [record["mask"]]
            paths += [path for path in own if path is not None]
        settled = settle_format(self._settings, paths, listing.class_names, by_class=by_class)
        if self.check_masks and (self.mask_format, settled.fmt.kind, self.class_values) == ("auto", "index", None):
            check_palettes(paths)
        self.mask_format = settled.fmt.kind
        return settled

    # What the loaders take.

    def make_reader(self) -> Callable[[Record], Record]:
        """Decodes an image and its mask."""
        read = partial(
            read_pixels,
            fmt=self._format,
            channels=self.in_chans,
            dtype=self.dtype,
            num_classes=len(self.class_names or ()),
            multi_label=self.multi_label,
        )
        return partial(read_with_soft_mask, read=read) if self._has_soft_masks() else read

    def make_mask_reader(self) -> Callable[[Record], Mask]:
        """Decodes a mask alone: uint8 (H, W), or (H, W, K) for several classes a pixel."""
        if self.source == "digits":
            read = self.make_reader()
            return lambda record: read(record)["mask"]
        classes = len(self.class_names or ())
        return partial(decode_mask, fmt=self._format, num_classes=classes, multi_label=self.multi_label)

    def make_transform(self, *, train: bool) -> Transform:
        """The training or the evaluation transform."""
        soft = partial(SoftMaskTransform, num_classes=len(self.class_names or ()))
        return (soft if self._has_soft_masks() else Transform)(
            self.canvas(),
            augment=self.augment if train else None,
            resize=self.resize,
            interpolation=self.interpolation,
            dense=True,
            tile=self.tile_size,
            tile_overlap=self.tile_overlap,
        )

    def _has_soft_masks(self) -> bool:
        records = self.records.get("train", [])
        return bool(records) and "soft_mask" in records[0]  # the list has the column, or it has not

    # Frequencies.

    @cached_property
    def _train_checks(self) -> list[MaskCheck]:
        """Pixel counts of each training mask; read now where ``check_masks`` did not."""
        records = self.records["train"]
        if all(r["path"] in self._checks for r in records):
            return [self._checks[r["path"]] for r in records]
        checks = check_all_masks(records, self.make_mask_reader(), len(self.class_names or ()))
        report([c.error for c in checks if c.error is not None], len(records))
        return checks

    @cached_property
    def class_counts(self) -> npt.NDArray[np.float64]:
        """Pixels of each class in the training masks: float64 (K,)."""
        total: npt.NDArray[np.float64] = np.sum([c.counts for c in self._train_checks], axis=0).astype(np.float64)
        return total

    def pixels_of(self, split: str) -> npt.NDArray[np.float64] | None:
        """Pixels of each class in a split's masks, float64 (K,); None where they were not read."""
        checks = [self._checks.get(record["path"]) for record in self.records[split]]
        counts = [check.counts for check in checks if check is not None]
        return np.sum(counts, axis=0).astype(np.float64) if counts and len(counts) == len(checks) else None

    def sample_weights(self) -> Sequence[float] | None:
        """For each image, the sum of 1 over the number of images with the class, over its classes.

        Drawing by it is drawing one of the classes, each as likely as another, and then one of the images that hold it;
        Hoyer et al. 2022 (https://arxiv.org/abs/2111.14887) sample rare classes so, with other odds for the classes.
        Images without any class (all ignored) are not drawn.
        """
        if self.balance != "sampler":
            return None
        present = np.stack([c.counts > 0 for c in self._train_checks])
        images = np.maximum(present.sum(0), 1)
        return [float(w) for w in (present / images).sum(1)]

    def spec(self) -> dict[str, Any]:
        """Number of classes, channels, canvas, whether masks are multi-label, and class weights.

        The weights, for ``balance: loss``: one class a pixel, ``median_frequency``; multi-label, pixels without the
        class over pixels with it, so that as many negatives as positives count.
        None to evaluate a checkpoint, which may have been trained on other images.
        """
        spec: dict[str, Any] = {
            "num_classes": len(self.class_names or ()),
            "in_chans": self.in_chans,
            "image_size": list(self.canvas()),
            "multi_label": self.multi_label,
        }
        if self.balance == "loss" and self.records.get("train") and not self.evaluates:
            if self.multi_label:
                positives = np.maximum(self.class_counts, 1)
                pixels = np.sum([c.pixels for c in self._train_checks], axis=0)
                weights = np.maximum(pixels - positives, 1) / positives
            else:
                weights = median_frequency(self._train_checks)
            spec["class_weights"] = [float(w) for w in weights]
        return spec

    def resolved(self) -> dict[str, Any]:
        """What was found out: classes and their colors, canvas, format of the masks, number of labels."""
        resolved: dict[str, Any] = {
            "class_names": self.class_names,
            "image_size": list(self.canvas()),
            "multi_label": self.multi_label,
            "mask_format": self.mask_format,
        }
        if self.colors is None and self.class_colors is not None and self.class_names is not None:
            resolved["colors"] = dict(zip(self.class_names, self.class_colors, strict=True))
        return resolved


def _nested(value: Any, kind: type) -> list[Any]:
    """One entry or a list of them -> a list of them; an entry is a whole number, or a list."""
    if kind is int:
        return [value] if isinstance(value, int) else list(value)
    return [list(v) for v in value] if value and isinstance(value[0], list | tuple) else [list(value)]
