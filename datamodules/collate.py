"""From samples to a batch (see ``datamodules.common.batch``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from datamodules.common.batch import PADDED, Padding, Sample
from datamodules.common.errors import UserError


def collate(samples: Sequence[Sample]) -> dict[str, Any]:
    """Stack samples into a batch; images become a (B, C, H, W) view of B x H x W x C memory.

    Args:
        samples: What ``RecordDataset`` returns; ``image`` (H, W, C) of one size, ``geometry`` float32 (6,),
            ``label`` int or a list of K floats, ``weight`` float, ``mask`` (H, W) or, for multi-label masks,
            (H, W, K), ``soft_mask`` (K, H, W), ``boxes`` (N, 4), ``labels`` (N,), ``iscrowd`` (N,), ``masks``
            (L, H, W), and in evaluation ``target`` (a dict of arrays) and ``tiles`` (T, 4).

    Raises:
        UserError: If the images differ in size, naming two of the files.
    """
    _check_sizes(samples)
    batch: dict[str, Any] = {
        "path": _column(samples, "path"),
        "id": torch.tensor(_column(samples, "id")),
        "image": _stack(samples, "image").permute(0, 3, 1, 2),
        "geometry": _stack(samples, "geometry"),
    }
    first = samples[0]
    if "label" in first:
        batch["label"] = _labels(_column(samples, "label"))
    if any("weight" in sample for sample in samples):
        batch["weight"] = _weights(samples)
    if "mask" in first:
        mask = _stack(samples, "mask")
        batch["mask"] = mask if mask.ndim == 3 else mask.permute(0, 3, 1, 2)
    if "soft_mask" in first:
        batch["soft_mask"] = _stack(samples, "soft_mask").to(torch.float16)
    for key, padding in PADDED.items():
        if key in first:
            batch[key] = _padded(_column(samples, key), padding)
    if "target" in first:
        batch["target"] = list(map(_target, _column(samples, "target")))
    if "tiles" in first:
        batch["tiles"] = list(map(torch.from_numpy, _column(samples, "tiles")))
    return batch


def _check_sizes(samples: Sequence[Sample]) -> None:
    first = samples[0]
    for sample in samples:
        if sample["image"].shape != first["image"].shape:
            raise UserError(
                f"Images of different size in one batch: {first['path']} is {first['image'].shape}, {sample['path']} is"
                f" {sample['image'].shape} (height, width, channels). Set data.image_size."
            )


def _column(samples: Sequence[Sample], key: str) -> list[Any]:
    return [sample[key] for sample in samples]


def _stack(samples: Sequence[Sample], key: str) -> torch.Tensor:
    return torch.from_numpy(np.stack(_column(samples, key)))


def _labels(labels: list[Any]) -> torch.Tensor:
    """int64 (B,), or float32 (B, K) for multi-label and soft labels."""
    soft = isinstance(labels[0], list | tuple | np.ndarray)
    return torch.from_numpy(np.asarray(labels)).to(torch.float32 if soft else torch.int64)


def _weights(samples: Sequence[Sample]) -> torch.Tensor:
    """float32 (B,); an image without a weight counts once."""
    return torch.tensor([float(sample.get("weight", 1.0)) for sample in samples])


def _padded(arrays: list[NDArray[Any]], padding: Padding) -> torch.Tensor:
    """(B, M, ...): each image's own first, then the padding's value."""
    most = max(len(array) for array in arrays)
    out = np.full((len(arrays), most, *np.shape(arrays[0])[1:]), padding.value, padding.dtype)
    for row, array in zip(out, arrays, strict=True):
        row[: len(array)] = array
    return torch.from_numpy(out)


def _target(annotations: dict[str, NDArray[Any]]) -> dict[str, torch.Tensor]:
    """Annotations of the original picture as tensors; a multi-label mask (H, W, K) as (K, H, W), like in a batch."""
    target = {}
    for key, array in annotations.items():
        layers_first = key == "mask" and array.ndim == 3
        target[key] = torch.from_numpy(np.ascontiguousarray(np.moveaxis(array, 2, 0) if layers_first else array))
    return target
