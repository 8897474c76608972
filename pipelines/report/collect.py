"""From an evaluated batch to what ``measured`` keeps of each image, whatever the task."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datamodules.decoding.video import is_frame


def kind_of(outputs: Mapping[str, Any], multi_label: bool) -> str | None:
    """What a task predicts: ``images`` with one class, ``labels`` of images with several, ``pixels``, ``boxes``.

    None for what has no report: several labels a pixel.
    """
    kinds = {"boxes": "boxes", "mask": "pixels", "logits": "labels" if multi_label else "images"}
    kind = next((kind for key, kind in kinds.items() if key in outputs), None)
    return None if multi_label and kind == "pixels" else kind


def properties(batch: Mapping[str, Any], groups: Sequence[str]) -> dict[str, Any]:
    """Path, group, size, brightness, sharpness of each image of a batch, and its pixels where it has no file.

    Args:
        batch: As evaluated.
        groups: Of each image, empty where it has none.
    """
    brightness, sharpness = looks(batch["image"])
    return {
        "path": np.array(batch["path"]),
        "group": np.array(groups),
        "size": batch["geometry"][:, :2].cpu().numpy().round().astype(np.int32),
        "brightness": brightness,
        "sharpness": sharpness,
        "picture": [_picture(path, image) for path, image in zip(batch["path"], batch["image"], strict=True)],
    }


@torch.no_grad()
def looks(image: Tensor) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean, and deviation of the Laplacian, of each image of a batch (B, C, H, W), as fractions of white.

    A blurred image has a low one (Pech-Pacheco et al. 2000, "Diatom autofocusing in brightfield microscopy").
    """
    gray = image.float().mean(1) / (255 if image.dtype == torch.uint8 else 1)
    inside = gray[:, 1:-1, 1:-1]
    edges = gray[:, :-2, 1:-1] + gray[:, 2:, 1:-1] + gray[:, 1:-1, :-2] + gray[:, 1:-1, 2:] - 4 * inside
    both = torch.stack([gray.mean((1, 2)), edges.flatten(1).std(1).nan_to_num()])
    mean, deviation = both.cpu().numpy().astype(np.float32)
    return mean, deviation


def _picture(path: str, image: Tensor) -> NDArray[np.uint8]:
    """A PNG of an image that has no file; empty for one that has."""
    if is_frame(path) or Path(path).is_file():
        return np.zeros(0, np.uint8)
    pixels = image if image.dtype == torch.uint8 else (image.float().clamp(0, 1) * 255).round().to(torch.uint8)
    channels = 3 if len(pixels) >= 3 else 1
    return as_png(pixels[:channels].permute(1, 2, 0).cpu().numpy()[..., ::-1])


def as_png(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    """The bytes of a PNG, uint8 (E,), of uint8 (H, W) or (H, W, 3) in BGR."""
    return np.asarray(cv2.imencode(".png", np.ascontiguousarray(pixels))[1], np.uint8).reshape(-1)


def from_png(content: NDArray[np.uint8], *, color: bool = False) -> NDArray[np.uint8]:
    """The pixels of ``as_png``; RGB with ``color``."""
    return np.asarray(cv2.imdecode(content, cv2.IMREAD_COLOR_RGB if color else cv2.IMREAD_GRAYSCALE))


def hash_of(*values: NDArray[Any]) -> int:
    """A number that tells annotations apart, 63 bits."""
    content = hashlib.blake2b(digest_size=8)
    for value in values:
        content.update(np.ascontiguousarray(value).tobytes())
    return int.from_bytes(content.digest(), "little") >> 1
