"""The embedded digits and their scenes."""

from __future__ import annotations

import hashlib
import pickle
import sys
from collections import Counter

import numpy as np
import pytest

from datamodules.readers.digits import digit_scene, digit_scenes, read_digits


def test_digits_are_the_known_ones_with_the_fixed_split():
    records, class_names = read_digits()[:2]
    assert class_names == list("0123456789")
    assert Counter(r["split"] for r in records) == {"train": 1258, "val": 180, "test": 359}
    assert records[12]["path"] == "digits#12"
    assert all(r["image"].shape == (8, 8, 1) and r["image"].dtype == np.uint8 for r in records)
    assert max(int(r["image"].max()) for r in records) == 255
    per_class = Counter((r["label"], r["split"]) for r in records)
    assert all(per_class[k, "val"] == 18 and 34 <= per_class[k, "test"] <= 37 for k in range(10))
    pixels = hashlib.sha256(b"".join(r["image"].tobytes() for r in records)).hexdigest()
    split = hashlib.sha256(repr([(r["label"], r["split"]) for r in records]).encode()).hexdigest()
    assert (pixels[:16], split[:16]) == ("b41ca9fd335466ee", "e164d5b288283e9c")


def test_scikit_learn_is_not_imported_for_them(monkeypatch):
    """In a worker its import costs seconds, and with W&B running the import hook fails in forked processes."""
    import datamodules.readers.digits as module

    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)  # an import of it would fail
    images, labels, splits = module._digits.__wrapped__()
    assert images.shape == (1797, 8, 8, 1)
    assert len(labels) == len(splits) == 1797


@pytest.fixture(scope="module")
def scenes() -> list[dict]:
    return digit_scenes(60, seed=1)[:]


def test_scene_contract(scenes):
    for scene in scenes:
        n = len(scene["labels"])
        assert 1 <= n <= 6
        assert (scene["image"].dtype, scene["image"].shape) == (np.uint8, (128, 128, 3))
        assert (scene["boxes"].dtype, scene["boxes"].shape) == (np.float32, (n, 4))
        assert (scene["labels"].dtype, scene["masks"].dtype, scene["mask"].dtype) == (np.int64, np.int16, np.uint8)
        assert scene["masks"].shape == (1, 128, 128)
        assert scene["image"].flags.c_contiguous


def test_boxes_masks_and_classes_agree(scenes):
    for scene in scenes:
        owner = scene["masks"][0]
        assert sorted(set(np.unique(owner)) - {0}) == list(range(1, len(scene["labels"]) + 1))
        for n, (box, label) in enumerate(zip(scene["boxes"], scene["labels"], strict=True), 1):
            rows, columns = np.nonzero(owner == n)
            assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert (scene["mask"][owner == n] == label + 1).all()
        assert (scene["mask"][owner == 0] == 0).all()
        areas = np.bincount(owner.ravel())[1:]
        assert scene["label"] == scene["labels"][np.argmax(areas)]


def test_digits_stand_out_from_the_background(scenes):
    for scene in scenes:
        grey = scene["image"] @ np.array([0.299, 0.587, 0.114])
        for n, (x1, y1, x2, y2) in enumerate(scene["boxes"].astype(int), 1):
            owner = scene["masks"][0, y1:y2, x1:x2]
            around = grey[y1:y2, x1:x2][owner == 0]
            if around.size > 30:
                assert abs(grey[y1:y2, x1:x2][owner == n].mean() - np.median(around)) > 15


def test_scenes_are_functions_of_their_key(scenes):
    again = digit_scene(7, seed=1)
    assert all(np.array_equal(again[k], scenes[7][k]) for k in again)
    assert not np.array_equal(digit_scene(7, seed=2)["image"], again["image"])
    assert not np.array_equal(digit_scene(7, seed=1, split="val")["image"], again["image"])
    lazy = pickle.loads(pickle.dumps(digit_scenes(10**9, size=64, seed=5, split="test")))
    assert len(lazy) == 10**9
    assert lazy[-1]["image"].shape == (64, 64, 3)
    assert lazy[3]["path"] == "digit_scenes#5/test/3"
    with pytest.raises(IndexError):
        lazy[10**9]


def test_scenes_stay_those_that_the_published_figures_are_of():
    scenes = [digit_scene(i, size=32) for i in range(20)]
    found = repr([(s["labels"].tolist(), s["boxes"].astype(int).tolist()) for s in scenes])
    expected = "12863c076ca9ef947c5841fe57dace7acdf2f16cedf1ed558763ea4fb11d8216"
    assert hashlib.sha256(found.encode()).hexdigest() == expected


def test_all_counts_and_classes_occur(scenes):
    assert {len(s["labels"]) for s in scenes} == {1, 2, 3, 4, 5, 6}
    assert set(np.concatenate([s["labels"] for s in scenes])) == set(range(10))


def test_only_digits_of_the_split_are_used(monkeypatch):
    import datamodules.readers.digits as module

    images, labels, splits = module._digits()
    marked = [k if s == "val" else -1 for k, s in zip(labels, splits, strict=True)]  # a wrong pick shows as -1
    monkeypatch.setattr(module, "_digits", lambda: (images, marked, splits))
    assert all((s["labels"] >= 0).all() for s in digit_scenes(20, split="val"))


def test_bad_arguments():
    with pytest.raises(ValueError, match="at least 32"):
        digit_scene(0, size=16)
    with pytest.raises(ValueError, match="split of digit scenes is 'dev'"):
        digit_scenes(3, split="dev")
    with pytest.raises(ValueError, match="at least 1"):
        digit_scenes(0)
