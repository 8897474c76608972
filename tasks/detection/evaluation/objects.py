"""Predicted and annotated objects as flat columns on the CPU, their masks as run lengths: what the metrics keep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from faster_coco_eval import mask as run_lengths
from numpy.typing import NDArray
from torch import Tensor

CHUNK_BYTES = 1 << 26  # of masks that are turned to run lengths at once


@dataclass(frozen=True)
class Objects:
    """N objects of any number of images; about 41 bytes each, and the run lengths.

    Attributes:
        image: int64 (N,), the image that each is in.
        boxes: float32 (N, 4), x1 y1 x2 y2 in pixels of the original picture.
        labels: int32 (N,), classes 0 to K - 1.
        scores: float32 (N,), confidences; zeros for annotations.
        crowd: bool (N,), groups of objects, which are neither to be found nor wrong to be found.
        area: float64 (N,), annotated areas in pixels; NaN where there is none.
        masks: object (N,), COCO's compressed run lengths (``size``, ``counts``); None without masks.
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
            ``masks`` bool or uint8 (n, H, W) or n run lengths as in COCO's files. A score that is NaN counts as 0.
        images: int64 (B,), the images' numbers.
        num_classes: K.
        masks: Whether masks are kept.

    Raises:
        ValueError: If a label is not in 0 to K - 1, or masks are missing or not boolean.
    """
    scores = _stack(predictions["scores"], torch.float32)
    image = np.repeat(images, [len(part) for part in predictions["scores"]])
    labels = _stack(predictions["labels"], torch.int32)
    _check_labels("The predictions", image, labels, num_classes)
    shapes: list[Any] | None = None
    if masks:
        if "masks" not in predictions:
            raise ValueError("Masks are to be evaluated, but the predictions hold none: take a detector with masks.")
        shapes = [rle for part in predictions["masks"] for rle in mask_run_lengths(part)]
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
        ValueError: If a label is not in 0 to K - 1, or masks are missing.
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
                raise ValueError(
                    f"Masks are to be evaluated, but image {number} has boxes without masks: give masks for all"
                    " objects, or train a detector without masks."
                )
            shapes += layer_run_lengths(target["masks"], count) if count else []
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
        ValueError: Naming the image and both sizes; the mask library would find no overlap, and say nothing.
    """
    sizes = {image: mask["size"] for image, mask in zip(true.image.tolist(), true.masks, strict=True)}
    for image, mask in zip(predicted.image.tolist(), predicted.masks, strict=True):
        size = sizes.get(image, mask["size"])
        if mask["size"] != size:
            raise ValueError(
                f"Image {image} has predicted masks of {mask['size'][0]} x {mask['size'][1]} pixels and annotated ones"
                f" of {size[0]} x {size[1]}: both must be in pixels of the original picture."
            )


def mask_run_lengths(masks: Tensor | Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Masks (n, H, W), bool or integers that are 0 outside, as COCO's compressed run lengths; such pass through.

    Raises:
        ValueError: If the masks are of floating point.
    """
    if not isinstance(masks, Tensor):
        return [_compressed(mask) for mask in masks]
    if masks.is_floating_point():
        raise ValueError(f"Predicted masks are {masks.dtype}; they must be bool or uint8: apply the threshold first.")
    result: list[dict[str, Any]] = []
    for part in masks.split(max(1, CHUNK_BYTES // max(1, masks[0].numel()))) if len(masks) else ():
        # Run lengths go down the columns; turned where the masks are, as that is much faster on a GPU.
        turned = (part != 0).to(torch.uint8).transpose(1, 2).contiguous().cpu().numpy()
        result += run_lengths.encode(turned.T)
    return result


def _compressed(rle: Mapping[str, Any]) -> dict[str, Any]:
    size, counts = [int(side) for side in rle["size"]], rle["counts"]
    if isinstance(counts, str):  # as in JSON
        counts = counts.encode()
    if not isinstance(counts, bytes):
        return dict(run_lengths.frPyObjects([{"size": size, "counts": list(counts)}], *size)[0])
    return {"size": size, "counts": counts}


def layer_run_lengths(layers: Tensor | NDArray[Any], count: int) -> list[dict[str, Any]]:
    """Compressed run lengths of the objects 1 to `count`, from their numbers (L, H, W) at each pixel of each layer.

    One pass over the pixels for all objects of a layer. An object that is nowhere gets an empty mask; one that is in
    several layers, their union.
    """
    layers = layers.cpu().numpy() if isinstance(layers, Tensor) else layers
    height, width = layers.shape[1:]
    total = height * width
    found: list[list[dict[str, Any]]] = [[] for _ in range(count)]
    for layer in layers:
        pixels = layer.T.ravel()
        starts = np.flatnonzero(np.append(True, pixels[1:] != pixels[:-1]))
        ends = np.append(starts[1:], total)
        order = np.argsort(pixels[starts], kind="stable")
        numbers, starts, ends = pixels[starts][order], starts[order], ends[order]
        bounds = np.searchsorted(numbers, np.arange(1, count + 2))
        for number in np.flatnonzero(np.diff(bounds)).tolist():
            part = slice(bounds[number], bounds[number + 1])
            edges = np.stack([starts[part], ends[part]], 1).ravel()
            counts = np.diff(edges, prepend=0, append=total)  # of zeros and ones in turn, zeros first
            found[number].append({"size": [height, width], "counts": counts[: -1 if edges[-1] == total else None]})
    result: list[dict[str, Any]] = []
    for parts in found:
        rles = [_compressed(part) for part in parts or [{"size": [height, width], "counts": [total]}]]
        result.append(rles[0] if len(rles) == 1 else run_lengths.merge(rles))
    return result


def _stack(tensors: Sequence[Tensor], dtype: torch.dtype, *shape: int) -> NDArray[Any]:
    """One column of a batch: joined before it leaves the device, which is waited for once."""
    column: NDArray[Any] = (
        torch.cat([tensor.detach().reshape(-1, *shape) for tensor in tensors]).to(dtype).cpu().numpy()
    )
    return column


def _check_labels(what: str, image: NDArray[np.int64], labels: NDArray[np.int32], num_classes: int) -> None:
    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if len(wrong):
        raise ValueError(
            f"{what} of image {image[wrong[0]]} hold the label {labels[wrong[0]]}, but the {num_classes} classes are"
            f" 0 to {num_classes - 1}. (A detector's own background class must not be counted here.)"
        )
