"""Images with equal pixels, whatever their names and formats; nothing is decoded twice."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from datamodules.duplicates import equal_images, pixel_digests
from datamodules.loaders import read_record

READ = partial(read_record, channels=3, dtype="uint8")


def save(path: Path, seed: int) -> dict[str, str]:
    cv2.imwrite(str(path), np.random.default_rng(seed).integers(0, 256, (5, 7, 3)).astype(np.uint8))
    return {"image": str(path), "path": str(path)}


class Counting:
    """A reader that says what it has read."""

    def __init__(self) -> None:
        self.read: list[str] = []

    def __call__(self, record: dict) -> dict:
        self.read.append(Path(record["path"]).name)
        return READ(record)

    def __repr__(self) -> str:
        return "counting"


def test_equal_pixels_are_found_in_other_formats(tmp_path):
    known = [save(tmp_path / "a.png", 1), save(tmp_path / "b.png", 2)]
    asked = [save(tmp_path / "c.bmp", 3), save(tmp_path / "d.bmp", 2)]
    assert equal_images(asked, known, READ) == {asked[1]["path"]: known[1]["path"]}


def test_shape_and_type_are_part_of_the_digest():
    pixels = np.zeros((2, 3, 1), np.uint8)
    images = [pixels, pixels.reshape(3, 2, 1), pixels.reshape(1, 6, 1), np.zeros((2, 3, 1), np.float32)]
    records = [{"image": image, "path": str(i)} for i, image in enumerate(images)]
    assert len(set(pixel_digests(records, lambda record: record))) == 4


def test_what_is_remembered_is_not_decoded_again(tmp_path):
    records, memory = [save(tmp_path / f"{i}.bmp", i) for i in range(3)], tmp_path / "pixels.json"
    first = pixel_digests(records, Counting(), memory)
    again = Counting()
    assert pixel_digests([*records[1:], save(tmp_path / "new.bmp", 7)], again, memory)[:2] == first[1:]
    assert again.read == ["new.bmp"]
    changed = os.stat(records[0]["path"])
    save(tmp_path / "0.bmp", 9)  # the same size
    os.utime(records[0]["path"], ns=(changed.st_atime_ns, changed.st_mtime_ns + 1))
    again = Counting()
    assert pixel_digests(records, again, memory)[0] != first[0]
    assert again.read == ["0.bmp"]


def test_another_reader_remembers_apart(tmp_path):
    records, memory = [save(tmp_path / "a.bmp", 1)], tmp_path / "pixels.json"
    grey = partial(read_record, channels=1, dtype="uint8")
    assert pixel_digests(records, READ, memory) != pixel_digests(records, grey, memory)
