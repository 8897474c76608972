"""Label maps as PNG files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from datamodules.common.files import atomic_path
from pipelines.outputs.palettes import Palette


def label_png(mask: NDArray[np.uint8], palette: Palette, path: str | Path) -> Path:
    """Write a label map (H, W) as an 8-bit PNG with a palette, whose indices are the classes.

    Raises:
        OSError: If it cannot be written.
    """
    image = Image.frombytes("P", (mask.shape[1], mask.shape[0]), np.ascontiguousarray(mask, np.uint8).tobytes())
    image.putpalette(palette.tobytes())
    return _write_png(image, path)


def label_pngs(mask: NDArray[np.uint8], class_names: Sequence[str], stem: str | Path) -> list[Path]:
    """Write masks (K, H, W) that may overlap as ``STEM_CLASS.png``, each an 8-bit gray PNG of 0 and 255.

    Raises:
        OSError: If one cannot be written.
    """
    names = [re.sub(r"[^\w .+-]", "_", name) for name in class_names]
    names = [name if names.count(name) == 1 else f"{name}_{k}" for k, name in enumerate(names)]
    planes = (mask != 0).astype(np.uint8) * np.uint8(255)
    return [_write_png(Image.fromarray(plane), f"{stem}_{name}.png") for plane, name in zip(planes, names, strict=True)]


def _write_png(image: Image.Image, path: str | Path) -> Path:
    with atomic_path(path) as temporary:
        image.save(temporary, format="PNG")
    return Path(path)
