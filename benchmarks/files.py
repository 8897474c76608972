"""Many small JPEG files: ``check`` against decoding alone, and tar shards against the files that they hold.

``check`` is all that it does for images of one class (decoding, copies, near copies, classes), by threads; decoding
alone is simplejpeg's, or OpenCV's, by a process a core. Both are in CPU seconds of all threads and processes, which
neighbors on the machine disturb less. Shards and files are an epoch of batches of 32 at 224 pixels, first pass, by one
thread, as in ``benchmarks.large``.
"""

from __future__ import annotations

import io
import os
import tarfile
import tempfile
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.common import Row, alternate, per_round, row
from benchmarks.input import timed
from benchmarks.large import loader
from benchmarks.photos import write_photos
from datamodules import ClassificationData
from datamodules.checking.whole import check
from datamodules.decoding.images import decode
from datamodules.loaders import available_cores

COUNT = 2048
PIXELS = (240, 320)
_PER_SHARD = 512


def run(repeats: int, count: int = COUNT) -> tuple[dict[str, Any], list[Row]]:
    """Measure.

    Args:
        repeats: Rounds.
        count: Number of images, a multiple of 32.
    """
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder) / "files"
        kilobytes = write_photos(files, count, *PIXELS)
        paths = sorted(map(str, files.rglob("*.jpg")))
        shards = write_shards(Path(folder) / "shards", paths)
        variants: dict[str, Callable[[], float]] = {
            "decoding": lambda: cpu_seconds(lambda: _decode_all(paths)),
            "check": lambda: cpu_seconds(lambda: check(ClassificationData(str(files)))),
            "files": lambda: timed(loader(str(files), "none"), count)(),
            "shards": lambda: timed(loader(str(shards), "none"), count)(),
        }
        seconds = alternate(variants, repeats)
    rates = {name: [count / s for s in values] for name, values in seconds.items()}
    rows = [row(name, values, "images/s/core") for name, values in rates.items()]
    for name, other, goal in (("check", "decoding", ">= 0.8"), ("shards", "files", ">= 0.95")):
        rows.append(row(f"{name}, over {other}", per_round(lambda a, b: a / b, rates[name], rates[other]), "x", goal))
    settings = {"images": count, "pixels": f"{PIXELS[1]} x {PIXELS[0]}", "mean kB": round(kilobytes)}
    return settings | {"cores": available_cores(), "clock": "cpu"}, rows


def write_shards(folder: Path, paths: list[str]) -> Path:
    """The files as tar archives, each with its class's number beside it."""
    folder.mkdir()
    for start in range(0, len(paths), _PER_SHARD):
        with tarfile.open(folder / f"train-{start // _PER_SHARD:03d}.tar", "w") as archive:
            for path in paths[start : start + _PER_SHARD]:
                archive.add(path, Path(path).name)
                label = Path(path).parent.name.removeprefix("class").encode()
                member = tarfile.TarInfo(Path(path).with_suffix(".cls").name)
                member.size = len(label)
                archive.addfile(member, io.BytesIO(label))
    return folder


def cpu_seconds(work: Callable[[], object]) -> float:
    """Of this process and of the children that ended meanwhile."""
    before = os.times()
    work()
    after = os.times()
    return sum(after[:4]) - sum(before[:4])


def _decode_all(paths: list[str]) -> None:
    with get_context("fork").Pool(available_cores()) as pool:
        pool.map(_decode, paths, chunksize=32)
        pool.close()
        pool.join()


def _decode(path: str) -> None:
    decode(Path(path).read_bytes(), path)
