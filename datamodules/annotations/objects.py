"""Objects of a set before training: which classes are kept, whether all have masks, and how rare their classes are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from datamodules.annotations.records import Listing, Record, take_objects
from datamodules.common.errors import UserError, bullets


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
    return listing._replace(records=records, class_names=list(names), class_ids=ids)


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
        raise UserError(
            f"data.masks is true, but {len(bare):,} objects have a box and no mask:{bullets(bare)}\nDraw or remove"
            " them, or leave data.masks out to train on boxes."
        )


def absent_classes(labels: Sequence[npt.NDArray[np.int64]], names: Sequence[str], source: str) -> list[str]:
    """Classes that no training image holds; none where there are no training images.

    Args:
        labels: The classes of each training image's objects, int64 (N,).
        names: The K classes.
        source: ``data.source``, for the message.

    Raises:
        UserError: If no image holds any object: there is nothing to learn.
    """
    if not labels:
        return []
    present = np.unique(np.concatenate(labels))
    absent = [name for i, name in enumerate(names) if i not in present]
    if len(absent) == len(names):
        raise UserError(f"None of the {len(labels)} training images of '{source}' has an object to learn.")
    return absent


def repeat_factors(labels: Sequence[npt.NDArray[np.int64]], num_classes: int, threshold: float) -> list[float]:
    """How much more often than an image of frequent classes each image is to be seen.

    Gupta et al. 2019, LVIS, appendix B.2 (https://arxiv.org/abs/1908.03195): a class that is in a fraction f of the
    images has the factor max(1, sqrt(threshold / f)), an image the greatest of its classes' factors; without objects
    it is 1.

    Args:
        labels: The classes of each image's objects, int64 (N,).
        num_classes: K.
        threshold: Fraction of the images below which a class counts as rare; 0.001 for LVIS.
    """
    present = [np.unique(own) for own in labels]
    images = np.bincount(np.concatenate([np.zeros(0, np.int64), *present]), minlength=num_classes)
    factor = np.maximum(1.0, np.sqrt(threshold * len(labels) / np.maximum(images, 1)))
    return [float(factor[own].max(initial=1.0)) for own in present]
