"""Soft labels of pixels in a small file: the two most probable classes of each pixel with their probabilities.

A PNG of four 8-bit channels, in the file's order: the first class, its probability in parts of 255, the second class,
its probability. What is left of 1 is spread evenly over the other classes. An index mask stands beside it: where that
has another class than the file's first, somebody has corrected it, and the mask's class has all of the probability.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from datamodules.annotations.mask_files import Mask
from datamodules.annotations.mask_records import check_size
from datamodules.annotations.records import Record
from datamodules.decoding.headers import Header, ImageError, check_pixels, open_image

STEPS = 255  # a probability of 1
_FILE_ORDER = [2, 1, 0, 3]  # OpenCV's blue, green, red, alpha


def write_soft_mask(planes: Mask, file: Path) -> None:
    """Write uint8 (4, H, W): first class, its probability, second class, its probability."""
    file.parent.mkdir(parents=True, exist_ok=True)
    channels = np.ascontiguousarray(planes.transpose(1, 2, 0)[..., _FILE_ORDER])
    file.write_bytes(cv2.imencode(".png", channels)[1].tobytes())


def read_soft_mask(file: str | Path) -> Mask:
    """Read what ``write_soft_mask`` wrote: uint8 (4, H, W).

    Raises:
        ImageError: If the file is no such PNG, is damaged or too large.
        FileNotFoundError: If there is none.
    """
    data = Path(file).read_bytes()
    check_pixels(Header(*open_image(io.BytesIO(data), str(file), ("PNG",)).size), str(file))
    channels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if channels is None or channels.dtype != np.uint8 or channels.ndim != 3 or channels.shape[2] != 4:
        raise ImageError(f"{file}: a soft mask is a PNG of four 8-bit channels; label the images again.")
    return np.ascontiguousarray(channels[..., _FILE_ORDER].transpose(2, 0, 1))


def read_with_soft_mask(record: Record, read: Callable[[Record], Record]) -> Record:
    """A sample with the planes of its ``soft_mask`` as ``masks``: transforms move those as the mask is moved.

    Args:
        record: ``soft_mask`` is the file; records without one are read as they are.
        read: Reads image and mask.

    Raises:
        MaskError: If its size is not the image's.
        ImageError: As ``read_soft_mask``.
    """
    sample = read(record)
    if "soft_mask" not in record:
        return sample
    planes = read_soft_mask(record["soft_mask"])
    check_size({"path": record["path"], "mask": record["soft_mask"]}, planes[0], sample["image"].shape[:2])
    return {**{key: value for key, value in sample.items() if key != "soft_mask"}, "masks": planes}


def probabilities(mask: Mask, planes: Mask, num_classes: int) -> npt.NDArray[np.float16]:
    """Class probabilities of each pixel, float16 (K, H, W); of ignored pixels (255) they say nothing.

    Args:
        mask: uint8 (H, W).
        planes: uint8 (4, H, W).
        num_classes: K.
    """
    first, sure, second, less = planes.astype(np.int64)
    corrected = (mask != first) & (mask < num_classes)
    first, sure, less = np.where(corrected, mask, first), np.where(corrected, STEPS, sure), np.where(corrected, 0, less)
    rest = np.maximum(0, STEPS - sure - less) / max(1, num_classes - 2)
    out = np.broadcast_to(rest, (num_classes, *mask.shape)).copy()
    for classes, value in ((second, less), (first, sure)):
        np.put_along_axis(out, np.minimum(classes, num_classes - 1)[None], value[None].astype(out.dtype), axis=0)
    soft: npt.NDArray[np.float16] = (out / out.sum(0).clip(1)).astype(np.float16)
    return soft
