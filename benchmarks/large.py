"""Large photographs: images per second and core from ``cache: resized``, from our files and from timm's pipeline.

One thread, CPU seconds of the process, batches of 32 at 224 pixels as in ``benchmarks.input``. The first epoch with the
cache is the making of it and an epoch from it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import torch

from benchmarks.common import Row, alternate, per_round, row
from benchmarks.input import BATCH, SCALE, SIZE, Images, timed, timm_loader
from benchmarks.photos import write_photos
from datamodules import ClassificationData
from datamodules.transforms.augment import Augment

COUNT = 32
PIXELS = (2448, 3264)  # 8 megapixels


def run(repeats: int, count: int = COUNT, pixels: tuple[int, int] = PIXELS) -> tuple[dict[str, Any], list[Row]]:
    """Measure.

    Args:
        repeats: Rounds.
        count: Number of images, a multiple of the batch.
        pixels: Their height and width.
    """
    torch_threads, cv2_threads = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    try:
        with tempfile.TemporaryDirectory() as folder:
            kilobytes = write_photos(Path(folder) / "photos", count, *pixels)
            photos = str(Path(folder) / "photos")
            cached = loader(photos, "resized", f"{folder}/cache")
            variants: dict[str, Callable[[], float]] = {
                "timm": timed(timm_loader(photos), count),
                "ours, files": timed(loader(photos, "none"), count),
                "ours, second epoch": timed(cached, count),
            }
            number = iter(range(1000))
            first = {"ours, first epoch": lambda: first_epoch(photos, f"{folder}/cache{next(number)}", count)}
            for once in variants.values():
                once()
            seconds = alternate(variants | first, repeats)
    finally:
        torch.set_num_threads(torch_threads)
        cv2.setNumThreads(cv2_threads)
    rates = {name: [count / s for s in values] for name, values in seconds.items()}
    rows = [row(name, values, "images/s/core") for name, values in rates.items()]
    for name, goal in (("ours, second epoch", ">= 20"), ("ours, first epoch", "")):
        rows.append(row(f"{name}, over timm", per_round(lambda a, b: a / b, rates[name], rates["timm"]), "x", goal))
    settings = {"images": count, "pixels": f"{pixels[1]} x {pixels[0]}", "mean kB": round(kilobytes), "threads": 1}
    return settings | {"clock": "cpu"}, rows


def first_epoch(photos: str, cache: str, count: int) -> float:
    """CPU seconds of making the cache and of an epoch from it."""
    return timed(loader(photos, "resized", cache), count)()


def loader(photos: str, cache: Any, cache_dir: str | None = None) -> Images:
    """The training loader of our datamodule, which makes its cache when it is first read."""
    data = ClassificationData(
        photos,
        image_size=SIZE,
        val_fraction=0.0,
        augment=Augment(crop_scale=SCALE),
        batch_size=BATCH,
        num_workers=0,
        cache=cache,
        cache_dir=cache_dir,
    )
    data.setup("fit")
    return Images(Late(data))


class Late:
    """The batches of a datamodule whose loader is made when they are first asked for."""

    def __init__(self, data: ClassificationData) -> None:
        self.data = data
        self.made: Any = None

    def __iter__(self) -> Any:
        self.made = self.made or self.data.train_dataloader()
        return iter(self.made)
