"""Photo-like JPEG files to measure with: no data set is needed, and every machine measures the same pictures."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray


def photo(rng: np.random.Generator, height: int, width: int) -> NDArray[np.uint8]:
    """One picture, uint8 (height, width, 3), BGR: soft shapes, some edges, fine texture, a little noise.

    Its JPEG of quality 92 has about 70 kB at 375 x 500 pixels, as photos of that size have.
    """
    image = np.zeros((height, width, 3), np.float32)
    for octave in range(1, 7):  # about 1/f, as natural pictures are
        cells = 2**octave
        coarse = rng.normal(0, 1, (cells * height // width + 1, cells + 1, 3)).astype(np.float32)
        coarse = 0.7 * coarse.mean(axis=2, keepdims=True) + 0.3 * coarse  # color varies less than brightness
        image += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC) * (45 / octave)
    image += rng.uniform(70, 180, 3).astype(np.float32)
    for _ in range(12):
        center = (int(rng.integers(width)), int(rng.integers(height)))
        axes = (int(rng.integers(10, 90)), int(rng.integers(10, 90)))
        shape = np.zeros((height, width), np.uint8)
        cv2.ellipse(shape, center, axes, float(rng.uniform(0, 180)), 0, 360, 255, -1)
        image[shape > 0] += rng.normal(0, 40, 3).astype(np.float32)
    image += rng.normal(0, 5.8, (height, width, 1)).astype(np.float32)
    return image.clip(0, 255).astype(np.uint8)


def write_photos(folder: Path, count: int, height: int = 375, width: int = 500, num_classes: int = 4) -> float:
    """Write ``count`` JPEG files of quality 92 into class folders; the same ones each time.

    Returns:
        Their mean size in kilobytes.
    """
    rng = np.random.default_rng(0)
    sizes = []
    for number in range(count):
        name = folder / f"class{number % num_classes}" / f"{number:04d}.jpg"
        name.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(name), photo(rng, height, width), [cv2.IMWRITE_JPEG_QUALITY, 92])
        sizes.append(name.stat().st_size)
    return sum(sizes) / len(sizes) / 1000
