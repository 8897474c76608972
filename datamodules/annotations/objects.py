"""Records of boxes become samples here; what is found out about a set's objects before training.

It runs in the loader's workers: nothing here imports Lightning.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from datamodules.annotations.boxes import PER_BOX
from datamodules.annotations.instance_masks import masks_of
from datamodules.common.errors import UserError
from datamodules.decoding.images import ImageError, read_image
from datamodules.readers import Listing, Record
from datamodules.readers.digits import digit_scene

_KEPT_SCENE = 160  # pixels a side up to which digit scenes are kept: 50 KB each, 82 KB with masks
_LISTED = 10


def read_objects(record: Record, *, channels: int, dtype: Literal["uint8", "float32"], masks: bool) -> Record:
    """A sample of a record, in original pixels.

    Args:
        record: See ``datamodules.readers.coco``; without ``boxes`` only the image is read. Or ``scene``, the arguments
            of ``digit_scene``.
        channels: As for ``read_image``.
        dtype: As for ``read_image``.
        masks: Whether the objects' masks are drawn.

    Returns:
        ``path``, ``image`` (H, W, C), ``boxes`` float32 (N, 4), ``labels`` int64 (N,), ``iscrowd`` uint8 (N,), ``area``
        float32 (N,) where the record has it, and ``masks`` int16 (L, H, W) where they are asked for.

    Raises:
        ImageError: If the file is damaged.
        UserError: If masks are damaged, or the image is not of the size that its annotations give.
    """
    sample: Record = {"path": record["path"]}
    if "scene" in record:
        scene = (_kept_scene if record["scene"][3] <= _KEPT_SCENE else _scene)(record["scene"], masks)
        return {**sample, **scene, "image": read_image(scene["image"], channels, dtype)}
    image = read_image(record["image"], channels, dtype)
    sample["image"] = image
    if "boxes" not in record:
        return sample
    height, width = image.shape[:2]
    if (record["height"], record["width"]) != (height, width):
        raise ImageError(
            f"{record['path']}: the image is {width} x {height}, its annotations were made for {record['width']} x"
            f" {record['height']} pixels. It has changed since training began: put the old one back, or start again."
        )
    sample |= {key: record[key] for key in ("boxes", "labels", "iscrowd", "area")}
    if masks:
        sample["masks"] = masks_of(record, height, width)
    return sample


@lru_cache(maxsize=2048)
def _kept_scene(arguments: tuple[Any, ...], masks: bool) -> Record:
    """A scene of 128 pixels takes 3 ms to draw; nothing in it is ever changed."""
    return _scene(arguments, masks)


def _scene(arguments: tuple[Any, ...], masks: bool) -> Record:
    scene = digit_scene(*arguments)
    kept = {key: scene[key] for key in ("image", "boxes", "labels", *(("masks",) if masks else ()))}
    return {**kept, "iscrowd": np.zeros(len(scene["boxes"]), np.uint8)}


def select_classes(listing: Listing, names: list[str]) -> Listing:
    """Only the objects of ``names``, numbered in that order; images without any stay, as images without objects.

    Raises:
        UserError: If the data have no such class.
    """
    if names == listing.class_names:
        return listing
    if unknown := [name for name in names if name not in listing.class_names]:
        raise UserError(
            f"data.class_names lists {unknown}, which the data do not have; they have {listing.class_names}."
        )
    old = [listing.class_names.index(name) for name in names]
    new = np.full(len(listing.class_names), -1, np.int64)
    new[old] = np.arange(len(old))
    records = []
    for record in listing.records:
        kept = np.flatnonzero(new[record["labels"]] >= 0)
        record = take_objects(record, kept) if len(kept) < len(record["labels"]) else dict(record)
        records.append({**record, "labels": new[record["labels"]]})
    ids = None if listing.class_ids is None else [listing.class_ids[i] for i in old]
    return Listing(records, list(names), ids)


def take_objects(record: Record, kept: npt.NDArray[np.int64]) -> Record:
    """The record with the objects of these numbers only."""
    out = dict(record)
    for key in PER_BOX:
        if out.get(key) is not None:
            out[key] = [out[key][i] for i in kept] if isinstance(out[key], list) else out[key][kept]
    return out


def require_masks(records: Sequence[Record]) -> None:
    """Refuse boxes without a mask.

    Raises:
        UserError: Naming the first ten.
    """
    bare = [
        f"{record['annotation_file']}, annotation {int(record['annotation_ids'][i])} ('{record['path']}')"
        for record in records
        for i in range(len(record["boxes"]))
        if record["segmentation"] is None or record["segmentation"][i] is None
    ]
    if bare:
        shown = "".join(f"\n  {line}" for line in bare[:_LISTED])
        raise UserError(
            f"data.masks is true, but {len(bare):,} objects have a box and no mask:{shown}\nDraw or remove them, or"
            " leave data.masks out to train on boxes."
        )


def repeat_factors(labels: Sequence[npt.NDArray[np.int64]], num_classes: int, threshold: float) -> list[float]:
    """How much more often than an image of frequent classes each image is to be seen.

    Gupta et al. 2019, LVIS, appendix B.2 (https://arxiv.org/abs/1908.03195): a class that is in a part f of the images
    has the factor max(1, sqrt(threshold / f)), an image the greatest of its classes' factors; without objects it is 1.

    Args:
        labels: The classes of each image's objects, int64 (N,).
        num_classes: K.
        threshold: Part of the images below which a class counts as rare; 0.001 for LVIS.
    """
    present = [np.unique(own) for own in labels]
    images = np.bincount(np.concatenate([np.zeros(0, np.int64), *present]), minlength=num_classes)
    factor = np.maximum(1.0, np.sqrt(threshold * len(labels) / np.maximum(images, 1)))
    return [float(factor[own].max(initial=1.0)) for own in present]
