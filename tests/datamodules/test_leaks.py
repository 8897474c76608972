"""A file, or the same bytes, in two splits ends before training, whatever reader lists it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from datamodules import ClassificationData, DetectionData, SegmentationData
from datamodules.common.errors import UserError


def picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (12, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def folder(root: Path, val: int) -> Any:
    """One class with two training images, and a validation image made of the seed `val`."""
    for name, seed in (("train/a/0.png", 0), ("train/a/1.png", 1), ("val/a/x.png", val)):
        picture(root / name, seed)
    return ClassificationData(source=str(root), image_size=32, batch_size=1, num_workers=0)


def yolo(root: Path, val: int) -> Any:
    for name, seed in (("train/0", 0), ("train/1", 1), ("val/x", val)):
        picture(root / f"images/{name}.png", seed)
        label = root / f"labels/{name}.txt"
        label.parent.mkdir(parents=True, exist_ok=True)
        label.write_text("0 0.5 0.5 0.5 0.5")
    (root / "classes.txt").write_text("disc")
    return DetectionData(source=str(root), batch_size=1, num_workers=0)


def masks(root: Path, val: int) -> Any:
    for name, seed in (("train/0", 0), ("train/1", 1), ("val/x", val)):
        picture(root / f"images/{name}.png", seed)
        (root / f"masks/{name}.png").parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.eye(12, 16, dtype=np.uint8)).save(root / f"masks/{name}.png")
    return SegmentationData(source=str(root), batch_size=1, num_workers=0)


MESSAGE = r"1 image\(s\) are in two splits.*\n.*1.png \(train\) and .*x.png \(val\)"


@pytest.mark.parametrize("make", [folder, yolo, masks])
def test_equal_bytes_in_two_splits(tmp_path, make):
    with pytest.raises(UserError, match=MESSAGE + "\n.*data.duplicates: warn"):
        make(tmp_path / "a", 1).setup("fit")
    data = make(tmp_path / "a", 1)
    data.duplicates = "warn"
    with pytest.warns(UserWarning, match=MESSAGE):
        data.setup("fit")
    make(tmp_path / "a", 1).setup("validate")  # what is trained already may be measured
    make(tmp_path / "b", 2).setup("fit")


def test_one_file_by_two_names_and_equal_images_in_one_split(tmp_path):
    data = folder(tmp_path, 2)
    shutil.copy(tmp_path / "train/a/0.png", tmp_path / "train/a/again.png")
    data.setup("fit")
    (tmp_path / "val/a/x.png").unlink()
    (tmp_path / "val/a/x.png").symlink_to(tmp_path / "train/a/1.png")
    with pytest.raises(UserError, match=MESSAGE):
        folder_again(tmp_path).setup("fit")


def folder_again(root: Path) -> ClassificationData:
    return ClassificationData(source=str(root), image_size=32, batch_size=1, num_workers=0)


def test_empty_tiles_are_no_leak(tmp_path):
    for name in ("train/0.png", "train/1.png", "val/2.png"):
        path = tmp_path / name.replace("/", "/a/")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (7, 7, 7)).save(path)
    folder_again(tmp_path).setup("fit")
