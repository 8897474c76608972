"""The keys that a YAML file gives a datamodule: flat, typed, documented, and those that users' files have."""

from __future__ import annotations

import inspect

import jsonargparse
import pytest

from datamodules import ClassificationData, DetectionData, SegmentationData
from datamodules.base import DataModule

SHARED = {
    *("source", "class_names", "batch_size", "eval_batch_size", "num_workers", "cache", "cache_dir", "on_corrupt"),
    *(
        "seed",
        "val_fraction",
        "test_fraction",
        "split_seed",
        "split_file",
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
