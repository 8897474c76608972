"""A whole set in memory (``cache: tensor``): when it can be, and how it is read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from datamodules.arguments import Cache
from datamodules.common.errors import UserError
from datamodules.loaders import Record, RecordDataset, make_loader
from datamodules.samplers import EvalSampler
from datamodules.transforms.augment import Augment
from datamodules.transforms.batched import batch_transform

MAX_BYTES = 1 << 30
#: Files are decoded anew for each run, so their images must be smaller than arrays that are in memory already.
MAX_FILE_PIXELS = 64 * 64


def choose_cache(asked: Cache, augment: Augment, canvas: tuple[int, int], records: Sequence[Record]) -> Cache:
    """What is asked for, or for ``auto``: ``tensor`` for few and small images whose augmentation has a batched form.

    Args:
        asked: The argument ``cache``.
        augment: Training's augmentation.
        canvas: Height and width of a batch.
        records: The training images.

    Raises:
        UserError: If ``tensor`` is asked for and cannot be.
    """
    dense = bool(records) and ("mask" in records[0] or "boxes" in records[0])
    batched = batch_transform(augment, canvas) is not None
    if asked == "tensor" and dense:
        raise UserError("data.cache is 'tensor', which is for whole images only: use data.cache: decoded or none.")
    if asked == "tensor" and not batched:
        preset = "transforms" if augment.transforms is not None else f"preset: {augment.preset}"
        raise UserError(
            f"data.cache is 'tensor', but augment.{preset} (or its crop) has no form for whole batches. Use"
            " augment.preset: none, or light with augment.crop: pad; or data.cache: decoded."
        )
    if asked != "auto":
        return asked
    return "tensor" if batched and not dense and _is_small(canvas, records) else "none"


def _is_small(canvas: tuple[int, int], records: Sequence[Record]) -> bool:
    pixels = canvas[0] * canvas[1]
    arrays = not records or not isinstance(records[0]["image"], str | Path)
    return len(records) * pixels * 3 <= MAX_BYTES and (arrays or pixels <= MAX_FILE_PIXELS)


def read_whole(dataset: RecordDataset, num_workers: int) -> dict[str, Any]:
    """A whole set as one collated batch, as evaluation sees it."""
    sampler = EvalSampler(len(dataset), 256)
    parts = list(make_loader(dataset, sampler, num_workers=num_workers, pin_memory=False))
    whole: dict[str, Any] = {"path": [path for part in parts for path in part["path"]]}
    for key in parts[0].keys() - {"path"}:
        whole[key] = torch.cat([part[key] for part in parts])
    return whole
