"""Training samples made of several pictures with boxes, and canvases of several sizes.

Which pictures are mixed, and how, is a function of (seed, stream, pass, position), as all of training's randomness.

- mosaic: four pictures meet at a random point of the canvas; each is cropped by jitter to its corner (Bochkovskiy et
  al. 2020, YOLOv4, https://arxiv.org/abs/2004.10934).
- copy_paste: about half of the objects of another picture are pasted, as they are masked, over a sample; what they
  cover is taken out of its masks, and its boxes shrink to what is left (Ghiasi et al. 2021,
  https://arxiv.org/abs/2012.07177, without blending, which they found not to matter).
- mixup: the mean of two pictures, with the objects of both at full weight (Zhang et al. 2019,
  https://arxiv.org/abs/1902.04103; half and half as in YOLOX, Ge et al. 2021, https://arxiv.org/abs/2107.08430).

Flips and colors come behind them. Nothing here imports Lightning: it runs in the loader's workers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from datamodules.common.batch import Sample
from datamodules.loaders import Record, RecordDataset
from datamodules.samplers import Key, key_seed
from datamodules.transforms.samples import check_sample, keep_boxes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from datamodules.transforms.augment import DetectionAugment
    from datamodules.transforms.pipeline import Transform


_PASTED = 0.5  # fraction of a picture's objects that is pasted


class MixedDataset(RecordDataset):
    """Training samples of one or several pictures each, on a canvas that changes from batch to batch.

    Args:
        records: Plain records, see ``datamodules.readers``.
        read: Record -> sample in original pixels, with ``boxes``, ``labels`` and ``iscrowd``.
        transforms: Training's transform for each size of the canvas; all samples of a batch take the same one.
        augment: What is mixed, and how often.
        weights: The sampler's weight of each record, by which the other pictures are drawn, too.
        global_batch: Samples of a batch over all ranks.
        mixed_passes: How many passes mix; None for all of them.
        seed: The run's seed.
        stream: Name of the stream, part of every key.
    """

    def __init__(
        self,
        records: Sequence[Record],
        read: Callable[[Record], Record],
        transforms: Sequence[Transform],
        augment: DetectionAugment,
        *,
        weights: Sequence[float] | None,
        global_batch: int,
        mixed_passes: int | None,
        seed: int,
        stream: str,
    ) -> None:
        super().__init__(records, read, transforms[0], seed=seed, stream=stream)
        self.transforms = transforms
        self.augment = augment
        self.global_batch = global_batch
        self.mixed_passes = mixed_passes
        self._drawn = None if weights is None else np.cumsum(weights) / np.sum(weights)

    def __getitem__(self, key: Key) -> Record:
        index, pass_, position = key
        seed = key_seed(self.seed, self.stream, pass_, position)
        batch = key_seed(self.seed, f"{self.stream}/canvas", pass_, position // self.global_batch)
        transform = self.transforms[batch % len(self.transforms)]
        original = self.read(self.records[index])
        if self.augment.mixes and (self.mixed_passes is None or pass_ < self.mixed_passes):
            sample = self._mix(original, transform, seed)
        else:
            sample = transform(original, seed)
        return {**sample, "path": self.records[index]["path"], "id": index}

    def _mix(self, original: Sample, transform: Transform, seed: int) -> Sample:
        check_sample(original)
        height, width = original["image"].shape[:2]
        canvas = transform.size or (height, width)
        rng = np.random.default_rng([seed, 2])
        if rng.random() < self.augment.mosaic:
            out = mosaic([original, *(self._another(rng) for _ in range(3))], transform, rng)
        else:
            out = transform.jitter(original, np.random.default_rng([seed, 1]), canvas)  # as without mixing
        if rng.random() < self.augment.copy_paste:
            other = transform.jitter(self._another(rng), rng, canvas)
            out = paste_objects(out, other, rng, self.augment.min_visibility)
        if rng.random() < self.augment.mixup:
            out = mixup(out, transform.jitter(self._another(rng), rng, canvas))
        out = transform.finish(out, seed)
        out["geometry"] = np.array([height, width, canvas[1] / width, canvas[0] / height, 0, 0], np.float32)
        return out

    def _another(self, rng: np.random.Generator) -> Sample:
        total = len(self.records)
        index = rng.integers(total) if self._drawn is None else np.searchsorted(self._drawn, rng.random(), "right")
        sample = self.read(self.records[min(int(index), total - 1)])
        check_sample(sample)
        return sample


def mosaic(samples: Sequence[Sample], transform: Transform, rng: np.random.Generator) -> Sample:
    """Four pictures around a random point of the canvas, which lies in its middle half.

    Args:
        samples: Four, in original pixels; which of them goes into which corner is random.
        transform: Training's; it holds the canvas and crops by jitter.
        rng: What is drawn from.

    Returns:
        A sample on the canvas: ``image``, ``boxes``, ``labels``, ``iscrowd`` and, where the first has them, ``masks``.
    """
    assert transform.size is not None
    height, width = transform.size
    middle, center = (max(1, int(rng.integers(side // 4, side - side // 4 + 1))) for side in (height, width))
    image = np.empty((height, width, *samples[0]["image"].shape[2:]), samples[0]["image"].dtype)
    parts = []
    for corner, sample in zip(rng.permutation(4).tolist(), samples, strict=True):
        top, bottom = (0, middle) if corner < 2 else (middle, height)
        left, right = (0, center) if corner % 2 == 0 else (center, width)
        if top == bottom or left == right:  # a canvas of a pixel
            continue
        part = transform.jitter(sample, rng, (height, width), (bottom - top, right - left))
        image[top:bottom, left:right] = part["image"]
        part["boxes"] = part["boxes"] + np.array([left, top, left, top], np.float32)
        if "masks" in part:
            masks = np.zeros((len(part["masks"]), height, width), part["masks"].dtype)
            masks[:, top:bottom, left:right] = part["masks"]
            part["masks"] = masks
        parts.append(part)
    out = _join(parts)
    if "masks" in out:
        out["masks"] = _side_by_side([len(part["masks"]) for part in parts], out["masks"])
    return {**out, "image": image}


def _side_by_side(layers: list[int], masks: NDArray[Any]) -> NDArray[Any]:
    """The layers of pictures that do not overlap, given one behind another: one layer holds all of their first ones."""
    joined = np.zeros((max(layers), *masks.shape[1:]), masks.dtype)
    start = 0
    for count in layers:
        joined[:count] += masks[start : start + count]
        start += count
    return joined


def mixup(sample: Sample, other: Sample) -> Sample:
    """The mean of two samples of one size, with the objects of both; masks keep their layers."""
    image = cv2.addWeighted(sample["image"], 0.5, other["image"], 0.5, 0).reshape(sample["image"].shape)
    return {**_join([sample, other]), "image": image}


def paste_objects(sample: Sample, other: Sample, rng: np.random.Generator, min_visibility: float) -> Sample:
    """Some objects of another sample over this one; both have masks.

    Args:
        sample: On the canvas; not changed.
        other: Of the same size. Its crowds and objects without a pixel are not pasted.
        rng: Which objects are pasted.
        min_visibility: An object of which less than this fraction of its pixels is left is dropped.

    Returns:
        The sample, with what is pasted behind its own objects.
    """
    count, more = len(sample["boxes"]), len(other["boxes"])
    pixels = np.bincount(other["masks"].ravel(), minlength=more + 1)[1:]
    pasted = np.flatnonzero((rng.random(more) < _PASTED) & (pixels > 0) & (other["iscrowd"] == 0))
    if not len(pasted):
        return sample
    number = np.zeros(more + 1, sample["masks"].dtype)
    number[pasted + 1] = np.arange(count + 1, count + len(pasted) + 1)
    layers = number[other["masks"]]
    covered = (layers > 0).any(0)
    masks = np.zeros((max(len(sample["masks"]), len(layers)), *covered.shape), layers.dtype)
    masks[: len(sample["masks"])] = sample["masks"]
    before = np.bincount(masks.ravel(), minlength=count + 1)[1:]
    masks[:, covered] = 0
    left = np.bincount(masks.ravel(), minlength=count + 1)[1:]
    boxes = sample["boxes"].copy()
    for i in np.flatnonzero((left < before) & (left > 0)).tolist():
        boxes[i] = _shrunk(boxes[i], masks, i + 1)
    masks[: len(layers)] += layers
    image = sample["image"].copy()
    image[covered] = other["image"][covered]
    out = {**sample, "image": image, "masks": masks, "boxes": np.concatenate([boxes, other["boxes"][pasted]])}
    for key in ("labels", "iscrowd"):
        out[key] = np.concatenate([sample[key], other[key][pasted]])
    out.pop("area", None)
    gone = (left < before) & ((left == 0) | (left < min_visibility * before))
    keep_boxes(out, out["boxes"], np.flatnonzero(np.append(~gone, np.ones(len(pasted), bool))))
    return out


def _shrunk(box: NDArray[np.float32], masks: NDArray[Any], number: int) -> NDArray[np.float32]:
    """The part of a box that spans the pixels of its object."""
    x1, y1, x2, y2 = (int(v) for v in (*np.floor(box[:2]), *np.ceil(box[2:])))
    own = (masks[:, y1:y2, x1:x2] == number).any(0)
    rows, columns = np.flatnonzero(own.any(1)), np.flatnonzero(own.any(0))
    if not len(rows):  # its pixels lie outside its box
        return box
    low = np.maximum(box[:2], [x1 + columns[0], y1 + rows[0]])
    high = np.minimum(box[2:], [x1 + columns[-1] + 1, y1 + rows[-1] + 1])
    return np.concatenate([low, high]).astype(np.float32)


def _join(parts: Sequence[Sample]) -> Sample:
    """The objects of several samples, in order, and their masks one layer behind another."""
    out: Sample = {key: np.concatenate([part[key] for part in parts]) for key in ("boxes", "labels", "iscrowd")}
    if "masks" in parts[0]:
        first = np.cumsum([0, *(len(part["boxes"]) for part in parts)]).tolist()
        numbered = [np.where(p["masks"] > 0, p["masks"] + n, 0) for p, n in zip(parts, first[:-1], strict=True)]
        out["masks"] = np.concatenate(numbered).astype(parts[0]["masks"].dtype)
    return out
