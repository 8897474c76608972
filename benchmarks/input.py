"""Images per second and core, from JPEG file to collated batch, against timm's transform and collate.

One thread, CPU seconds of the process. All read the same files through a DataLoader without workers, cut and resize
to 224 pixels with the same settings, flip, and give uint8 batches of 32.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import timm.data
import torch
from timm.data.loader import fast_collate
from torch.utils.data import DataLoader

from benchmarks.common import Row, alternate, per_round, row
from benchmarks.photos import write_photos
from datamodules import ClassificationData
from datamodules.decoding import images
from datamodules.transforms.augment import Augment

SIZE = 224
BATCH = 32
JITTER = 0.4
SCALE = (0.08, 1.0)
COUNT = 128


def run(repeats: int, count: int = COUNT) -> tuple[dict[str, Any], list[Row]]:
    """Measure.

    Args:
        repeats: Rounds.
        count: Number of images, a multiple of the batch.
    """
    torch_threads, cv2_threads = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    try:
        with tempfile.TemporaryDirectory() as folder:
            kilobytes = write_photos(Path(folder), count)
            # Ours, as the whole of it: keyed seeding, checks, geometry record.
            crop = {"RandomResizedCrop": {"size": [SIZE, SIZE], "scale": list(SCALE), "interpolation": cv2.INTER_CUBIC}}
            flip = {"HorizontalFlip": {"p": 0.5}}
            names = ("brightness", "contrast", "saturation", "hue")
            jitter = {"ColorJitter": dict(zip(names, (JITTER, JITTER, JITTER, 0.0), strict=True)) | {"p": 1.0}}
            same = our_loader(folder, Augment(transforms=[crop, flip, jitter]))
            light = our_loader(folder, Augment(crop_scale=SCALE))
            decoders = {decoder: timed(Pass(decoder, same), count) for decoder in available_decoders()}
            first = next(iter(decoders))
            variants = {
                "timm, jitter on the CPU": timed(timm_loader(folder), count),
                **{f"ours ({decoder}), jitter on the CPU": loop for decoder, loop in decoders.items()},
                f"ours ({first}), jitter on the device": timed(light, count),
                f"decoding alone ({first})": timed(DecodeOnly(folder), count),
            }
            for once in variants.values():
                once()
            seconds = alternate(variants, repeats)
    finally:
        torch.set_num_threads(torch_threads)
        cv2.setNumThreads(cv2_threads)
    rates = {name: [count / s for s in values] for name, values in seconds.items()}
    rows = [row(name, values, "images/s/core") for name, values in rates.items()]
    peer = rates["timm, jitter on the CPU"]
    for name in list(rates)[1:-1]:
        goal = ">= 2.5" if name.endswith("device") else ">= 1.8"
        rows.append(row(f"{name}, over timm", per_round(lambda a, b: a / b, rates[name], peer), "x", goal))
    ceiling = rates[f"decoding alone ({first})"]
    device = rates[f"ours ({first}), jitter on the device"]
    rows.append(row("jitter on the device, over decoding alone", per_round(lambda a, b: a / b, device, ceiling), "x"))
    settings = {"decoder": first, "images": count, "mean kB": round(kilobytes), "batch": BATCH, "threads": 1}
    return settings | {"clock": "cpu"}, rows


def available_decoders() -> list[str]:
    """The decoder in use first; ``cv2`` is what a machine without simplejpeg takes."""
    return ["simplejpeg", "cv2"] if images.simplejpeg is not None else ["cv2"]


def timed(loop: Iterable[Any], count: int) -> Callable[[], float]:
    """CPU seconds of one pass, which must give ``count`` images."""

    def once() -> float:
        started = time.process_time()
        seen = sum(len(batch) for batch in loop)
        seconds = time.process_time() - started
        assert seen == count, f"{seen} images of {count}"
        return seconds

    return once


class Images:
    """The image tensors of a loader's batches."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader

    def __iter__(self) -> Any:
        for batch in self.loader:
            yield batch["image"] if isinstance(batch, dict) else batch[0]


def timm_loader(folder: str) -> Images:
    """Dataset, training transform and collate of timm: what its loader runs in each worker."""
    transform = timm.data.create_transform(
        SIZE,
        is_training=True,
        use_prefetcher=True,  # uint8: it normalizes on the device, as we do
        scale=SCALE,
        hflip=0.5,
        color_jitter=JITTER,
        interpolation="bicubic",
    )
    dataset = timm.data.ImageDataset(folder, transform=transform)
    return Images(DataLoader(dataset, BATCH, shuffle=True, collate_fn=fast_collate, drop_last=True))


def our_loader(folder: str, augment: Augment) -> Images:
    """The training loader of our datamodule."""
    data = ClassificationData(
        folder, image_size=SIZE, val_fraction=0.0, augment=augment, batch_size=BATCH, num_workers=0, cache="none"
    )
    data.setup("fit")
    return Images(data.train_dataloader())


class Pass:
    """A pass over a loader with one of the decoders."""

    def __init__(self, decoder: str, loader: Images) -> None:
        self.decoder, self.loader = decoder, loader

    def __iter__(self) -> Any:
        library = images.simplejpeg
        if self.decoder == "cv2":
            images.simplejpeg = None
        try:
            yield from self.loader
        finally:
            images.simplejpeg = library


class DecodeOnly:
    """The limit: each file read and decoded by the decoder itself, the pixels dropped at once."""

    def __init__(self, folder: str) -> None:
        self.paths = sorted(Path(folder).rglob("*.jpg"))

    def __iter__(self) -> Any:
        for path in self.paths:
            yield self.decode(path.read_bytes())[None]

    @staticmethod
    def decode(data: bytes) -> Any:
        """RGB pixels."""
        if images.simplejpeg is not None:
            return images.simplejpeg.decode_jpeg(data, "RGB", fastdct=False, fastupsample=False)
        return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
