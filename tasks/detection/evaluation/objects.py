"""Predicted and annotated objects as flat columns on the CPU, with masks as RLE (run-length encodings)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datamodules.common import rle
from datamodules.common.errors import UserError


@dataclass(frozen=True)
class Objects:
    """N objects of any number of images; about 41 bytes each, and the RLE.

    Attributes:
        image: int64 (N,), the image that each is in.
        boxes: float32 (N, 4), x1 y1 x2 y2 in pixels of the original picture.
        labels: int32 (N,), classes 0 to K - 1.
        scores: float32 (N,), confidences; zeros for annotations.
        crowd: bool (N,), groups of objects, which are neither to be found nor wrong to be found.
        area: float64 (N,), annotated areas in pixels; NaN where there is none.
        masks: object (N,), COCO's compressed RLE (``size``, ``counts``); None without masks.
    """

    image: NDArray[np.int64]
    boxes: NDArray[np.float32]
    labels: NDArray[np.int32]
    scores: NDArray[np.float32]
    crowd: NDArray[np.bool_]
    area: NDArray[np.float64]
    masks: NDArray[np.object_]

    def __len__(self) -> int:
        return len(self.image)

    def take(self, index: NDArray[Any]) -> Objects:
        """The objects at `index` (numbers or a mask), in that order."""
        return Objects(*(getattr(self, field.name)[index] for field in fields(self)))

    @staticmethod
    def join(parts: Sequence[Objects]) -> Objects:
        """All objects of the parts, in order."""
        parts = [_NONE, *parts]
        return Objects(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(Objects)))


def _columns(
    image: NDArray[np.int64],
    boxes: NDArray[np.float32],
    labels: NDArray[np.int32],
    scores: NDArray[np.float32] | None = None,
    crowd: NDArray[np.bool_] | None = None,
    area: NDArray[np.float64] | None = None,
    masks: Sequence[Any] | None = None,
) -> Objects:
    size = len(image)
    column = np.full(size, None, dtype=object)
    if masks is not None:
        column[:] = masks
    return Objects(
        image,
        boxes,
        labels,
        np.zeros(size, np.float32) if scores is None else np.nan_to_num(scores),  # NaN has no place in an order
        np.zeros(size, np.bool_) if crowd is None else crowd,
        np.full(size, np.nan) if area is None else area,
        column,
    )


_NONE = _columns(np.zeros(0, np.int64), np.zeros((0, 4), np.float32), np.zeros(0, np.int32))


def predicted_objects(
    predictions: Mapping[str, Sequence[Any]], images: NDArray[np.int64], num_classes: int, *, masks: bool
) -> Objects:
    """The columns of a batch of predictions.

    Args:
        predictions: Lists of B: ``boxes`` float (n, 4), ``scores`` float (n,), ``labels`` int (n,), and, for masks,
            ``masks`` bool or uint8 (n, H, W) or n RLE as in COCO's files. A score that is NaN counts as 0.
        images: int64 (B,), the images' numbers.
        num_classes: K.
        masks: Whether masks are kept.

    Raises:
        UserError: If a label is not in 0 to K - 1, or masks are missing or not boolean.
    """
    scores = _stack(predictions["scores"], torch.float32)
    image = np.repeat(images, [len(part) for part in predictions["scores"]])
    labels = _stack(predictions["labels"], torch.int32)
    _check_labels("The predictions", image, labels, num_classes)
    shapes: list[Any] | None = None
    if masks:
        if "masks" not in predictions:
            raise UserError("Masks are to be evaluated, but the predictions hold none: take a detector with masks.")
        shapes = [shape for part in predictions["masks"] for shape in rle.of_masks(part)]
    return _columns(image, _stack(predictions["boxes"], torch.float32, 4), labels, scores, masks=shapes)


def true_objects(
    targets: Sequence[Mapping[str, Any]], images: NDArray[np.int64], num_classes: int, *, masks: bool
) -> Objects:
    """The columns of a batch of annotations.

    Args:
        targets: B dicts: ``boxes`` float (N, 4), ``labels`` int (N,); optional ``iscrowd`` (N,) and ``area`` (N,),
            which decides on the size class (without it that of the box, or of the mask for masks); for masks,
            ``masks`` int (L, H, W) of object numbers 1 to N, 0 none.
        images: int64 (B,), the images' numbers.
        num_classes: K.
        masks: Whether masks are kept.

    Raises:
        UserError: If a label is not in 0 to K - 1, or masks are missing.
    """
    counts = [len(target["labels"]) for target in targets]
    image = np.repeat(images, counts)
    labels = _stack([target["labels"] for target in targets], torch.int32)
    _check_labels("The annotations", image, labels, num_classes)
    crowd = [target.get("iscrowd", torch.zeros(count)) for target, count in zip(targets, counts, strict=True)]
    area = [target.get("area", torch.full((count,), np.nan)) for target, count in zip(targets, counts, strict=True)]
    shapes: list[Any] | None = None
    if masks:
        shapes = []
        for target, number, count in zip(targets, images.tolist(), counts, strict=True):
            if count and "masks" not in target:
                raise UserError(
                    f"Masks are to be evaluated, but image {number} has boxes without masks: give masks for all"
                    " objects, or train a detector without masks."
                )
            shapes += rle.of_layers(target["masks"], count) if count else []
    return _columns(
        image,
        _stack([target["boxes"] for target in targets], torch.float32, 4),
        labels,
        crowd=_stack(crowd, torch.bool),
        area=_stack(area, torch.float64),
        masks=shapes,
    )


def check_mask_sizes(predicted: Objects, true: Objects) -> None:
    """Refuse predicted masks of another size than the annotated ones of their image.

    Raises:
        UserError: Naming the image and both sizes; the mask library would find no overlap, and say nothing.
    """
    sizes = {image: mask["size"] for image, mask in zip(true.image.tolist(), true.masks, strict=True)}
    for image, mask in zip(predicted.image.tolist(), predicted.masks, strict=True):
        size = sizes.get(image, mask["size"])
        if mask["size"] != size:
            raise UserError(
                f"Image {image} has predicted masks of {mask['size'][0]} x {mask['size'][1]} pixels and annotated ones"
                f" of {size[0]} x {size[1]}: both must be in pixels of the original picture."
            )


def _stack(tensors: Sequence[Tensor], dtype: torch.dtype, *shape: int) -> NDArray[Any]:
    """One column of a batch: joined before it leaves the device, which is waited for once."""
    column: NDArray[Any] = (
        torch.cat([tensor.detach().reshape(-1, *shape) for tensor in tensors]).to(dtype).cpu().numpy()
    )
    return column


def _check_labels(what: str, image: NDArray[np.int64], labels: NDArray[np.int32], num_classes: int) -> None:
    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if len(wrong):
        raise UserError(
            f"{what} of image {image[wrong[0]]} hold the label {labels[wrong[0]]}, but the {num_classes} classes are"
            f" 0 to {num_classes - 1}. (A detector's own background class must not be counted here.)"
        )
