"""Between a sample and albumentations: what belongs to the picture goes in, and comes out moved."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from datamodules.common.batch import Sample
from datamodules.transforms.samples import clip, keep_boxes, shift_mask, unshift_mask

if TYPE_CHECKING:
    import albumentations as A


def run(pipeline: A.Compose, sample: Sample) -> Sample:
    """A sample after an albumentations pipeline; the one given is not changed.

    Boxes that leave the picture go with all that is theirs, and the objects in masks are renumbered.
    """
    moved = pipeline(**_inputs(sample))
    out = dict(sample)
    out["image"] = np.ascontiguousarray(moved["image"])
    if "mask" in sample:
        out["mask"] = unshift_mask(moved["mask"], sample["mask"].dtype)
    if "masks" in moved:
        out["masks"] = np.ascontiguousarray(moved["masks"])
    if "boxes" in sample:
        boxes = np.asarray(moved["bboxes"], dtype=np.float32).reshape(-1, 5)
        kept = boxes[:, 4].astype(np.int64)
        keep_boxes(out, clip(boxes[:, :4], out["image"].shape[:2]), kept)
    return out


def _inputs(sample: Sample) -> dict[str, Any]:
    data: dict[str, Any] = {"image": sample["image"]}
    if "mask" in sample:
        data["mask"] = shift_mask(sample["mask"])
    if sample.get("masks") is not None and len(sample["masks"]):
        data["masks"] = sample["masks"]
    if "boxes" in sample:  # a fifth column carries each box's index through the filters
        index = np.arange(len(sample["boxes"]), dtype=np.float32)[:, None]
        data["bboxes"] = np.concatenate([clip(sample["boxes"], sample["image"].shape[:2]), index], axis=1)
    return data
