"""The keys that a YAML file gives a datamodule: flat, typed, documented, and those that users' files have."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import jsonargparse
import numpy as np
import pytest
from PIL import Image

from datamodules import ClassificationData, DetectionData, SegmentationData
from datamodules.base import DataModule
from datamodules.decoding.limits import MAX_PIXELS, max_pixels
from datamodules.semisupervised import SemiSupervised

SHARED = {
    *("source", "class_names", "batch_size", "eval_batch_size", "num_workers", "cache", "cache_dir", "on_corrupt"),
    "max_corrupt",
    "max_pixels",
    *(
        "seed",
        "val_fraction",
        "test_fraction",
        "split_seed",
        "split_file",
        "weight_file",
        "duplicates",
        "group",
        "image_size",
        "in_chans",
    ),
    *("dtype", "group"),
    *("resize", "interpolation", "augment", "balance"),
}
DENSE = {"num_scenes", "tile", "tile_overlap"}
KEYS = {
    ClassificationData: {"image_root", "columns", "crop_pct"},
    DetectionData: {
        *("format", "image_root", "class_ids", "voc_one_based", "voc_difficult", "masks", "check_boxes"),
        *("scene_digits", "repeat_threshold", *DENSE),
    },
    SegmentationData: {
        *("images", "masks", "image_root", "mask_format", "colors", "class_values", "ignore_values", "multi_label"),
        *("check_masks", *DENSE),
    },
}
DEFAULTS = {
    ClassificationData: {"batch_size": None, "resize": "crop", "interpolation": "bicubic"},
    DetectionData: {"batch_size": None, "resize": "letterbox", "interpolation": "bilinear"},
    SegmentationData: {"batch_size": None, "resize": "native", "interpolation": "bilinear"},
}


@pytest.mark.parametrize("cls", KEYS)
def test_keys_and_defaults_stay(cls):
    parameters = inspect.signature(cls).parameters
    assert set(parameters) == SHARED | KEYS[cls]
    assert {key: parameters[key].default for key in DEFAULTS[cls]} == DEFAULTS[cls]
    assert next(iter(parameters)) == "source"  # the one that may be given by position


@pytest.mark.parametrize("cls", KEYS)
def test_every_key_is_documented_once(cls):
    docs = [base.__doc__ or "" for base in cls.__mro__ if base.__module__.startswith("datamodules")]
    for key in inspect.signature(cls).parameters:
        assert sum(doc.count(f"\n        {key}: ") for doc in docs) == 1, key


@pytest.mark.parametrize("cls", KEYS)
@pytest.mark.parametrize(
    "wrong", [{"batchsize": 4}, {"eval_batch_size": "few"}, {"cache": "disk"}, {"augment": {"p": 1}}]
)
def test_wrong_keys_and_types_are_refused(cls, wrong):
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(DataModule, "data")
    path = f"datamodules.{cls.__name__}"
    assert (
        parser.parse_object({"data": {"class_path": path, "init_args": {"batch_size": 4}}}).data.init_args.batch_size
        == 4
    )
    with pytest.raises(jsonargparse.ArgumentError, match=next(iter(wrong))):
        parser.parse_object({"data": {"class_path": path, "init_args": wrong}})


# `max_pixels`.


def write_sources(root: Path) -> dict[type, str]:
    """Pictures of 30 x 40 pixels for each datamodule; the masks' alone are of 40 x 40."""
    for i in range(8):
        for place, size in (
            (f"cls/train/{'ab'[i % 2]}", 30),
            ("seg/images", 30),
            ("seg/masks", 40),
            ("det/images", 30),
        ):
            (root / place).mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((size, 40), i % 2, np.uint8)).save(root / place / f"{i}.png")
        label = root / "det" / "labels" / f"{i}.txt"
        label.parent.mkdir(exist_ok=True)
        label.write_text("0 0.5 0.5 0.2 0.2\n")
    return {ClassificationData: f"{root}/cls", SegmentationData: f"{root}/seg", DetectionData: f"{root}/det"}


@pytest.mark.parametrize("cls", KEYS)
def test_max_pixels_is_honored_by_headers_loader_processes_and_prediction(cls, tmp_path):
    source = write_sources(tmp_path)[cls]
    if cls is SegmentationData:  # of the size of their images here
        for file in (tmp_path / "seg" / "masks").iterdir():
            Image.open(file).crop((0, 0, 40, 30)).save(file)
    given = {"class_names": ["x"]} if cls is DetectionData else {}
    given |= {"image_size": 32, "batch_size": 4, "num_workers": 1, "duplicates": "warn", "val_fraction": 0.5}
    with pytest.raises(ValueError, match=r"40 x 30 = 1,200 pixels are more than max_pixels = 1,199.*data.max_pixels"):
        cls(source, max_pixels=1199, **given).setup("fit")
    data = cls(source, max_pixels=1200, **given)
    cls(source, max_pixels=100, **given)  # made in between: not read with
    data.setup("fit")
    assert max_pixels() == 1200
    assert len(next(iter(data.train_dataloader()))["path"]) == 4
    other = cls(source, max_pixels=1199, **given)
    other.predict_source = str(next(tmp_path.glob("*/**/1.png")))
    with pytest.raises(ValueError, match="more than max_pixels = 1,199"):
        other.setup("predict")


def test_max_pixels_is_honored_for_masks(tmp_path):
    source = write_sources(tmp_path)[SegmentationData]
    with pytest.raises(ValueError, match=r"8 of 8 masks .*:\n.*40 x 40 = 1,600 pixels are .* max_pixels = 1,500"):
        SegmentationData(source, max_pixels=1500).setup("fit")
    annotations = {"images": [{"id": 1, "file_name": "0.png", "height": 50, "width": 50}], "annotations": []}
    (tmp_path / "det" / "coco.json").write_text(json.dumps({**annotations, "categories": [{"id": 1, "name": "x"}]}))
    with pytest.raises(ValueError, match=r"image 1: 50 x 50 = 2,500 pixels are more than max_pixels = 2,499"):
        DetectionData(f"{tmp_path}/det/coco.json", max_pixels=2499).setup("fit")


@pytest.mark.parametrize("limit", [0, -1, 1 << 31])
def test_max_pixels_out_of_range(limit):
    with pytest.raises(ValueError, match=r"data\.max_pixels is .*at least 1, and at most 1,073,741,824"):
        ClassificationData(max_pixels=limit)


def test_two_halves_have_one_max_pixels():
    halves = ClassificationData(max_pixels=1000), ClassificationData()
    with pytest.raises(ValueError, match=rf"data.unlabeled.max_pixels is {MAX_PIXELS:,}, but .* is 1,000"):
        SemiSupervised(*halves)
    assert SemiSupervised(halves[0], pool="x").unlabeled.max_pixels == 1000
