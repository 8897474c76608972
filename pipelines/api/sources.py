"""What ``Model.predict`` is given, as records: files, folders, patterns, and pictures that are in memory."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from datamodules.cache import readable_images
from datamodules.common.errors import UserError
from datamodules.loaders import Record
from datamodules.readers.pictures import find_pictures

One: TypeAlias = str | Path | Image.Image | NDArray[Any] | Tensor
#: What ``predict`` takes; see ``Model.predict``.
Source: TypeAlias = One | Iterable[One]


def is_stream(source: Source) -> bool:
    """Whether pictures come one after another, and nobody knows how many."""
    return isinstance(source, Iterator)


def records_of(source: Source, on_corrupt: str) -> Iterator[Record]:
    """Records of what ``predict`` is given; those of an iterator are made as they are taken.

    Args:
        source: See ``Model.predict``.
        on_corrupt: ``skip`` leaves unreadable files out, ``error`` refuses them.

    Raises:
        UserError: If there is no such file, or something that is no picture is given, naming it.
    """
    many = isinstance(source, Iterable) and not isinstance(source, str | np.ndarray | Tensor | Image.Image)
    given: Any = source if many else [source]
    numbers = itertools.count()
    each = (_records_of_one(one, numbers) for one in given)
    if is_stream(source):
        return (record for records in each for record in readable_images(records, on_corrupt)[0])
    return iter(readable_images(list(itertools.chain.from_iterable(each)), on_corrupt)[0])


def _records_of_one(one: Any, numbers: Iterator[int]) -> list[Record]:
    if isinstance(one, str | Path):
        try:
            paths = find_pictures(str(one))
        except UserError as error:
            raise UserError(str(error).removeprefix("--source ")) from None  # nobody typed a flag
        return [{"image": path, "path": path} for path in paths]
    return [{"image": image, "path": f"image{next(numbers)}"} for image in _pictures(one)]


def _pictures(one: Any) -> list[Any]:
    """The pictures of something in memory, as ``read_image`` takes them: arrays (H, W, C), or Pillow's."""
    if isinstance(one, Image.Image):
        return [one]
    if isinstance(one, Tensor):
        pixels = one.detach().cpu()
        pixels = pixels.float() if pixels.dtype in (torch.float16, torch.bfloat16) else pixels
        array = np.moveaxis(pixels.numpy(), -3, -1) if pixels.ndim >= 3 else pixels.numpy()
        return _split(array, "a tensor", "(C, H, W) or (B, C, H, W)")
    if isinstance(one, np.ndarray):
        return _split(one, "an array", "(H, W), (H, W, C) or (N, H, W, C)")
    raise UserError(
        f"predict was given a {type(one).__name__}; it takes a path, a folder, a pattern, a Pillow image, an array"
        " (H, W, C), a tensor (C, H, W), or a list or an iterator of these."
    )


def _split(array: NDArray[Any], what: str, shapes: str) -> list[Any]:
    if array.ndim == 4:
        return list(array)
    if array.ndim not in (2, 3):
        raise UserError(f"predict was given {what} with {array.ndim} axes, {array.shape}; it takes {shapes}.")
    return [array]
