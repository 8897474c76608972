"""Keyed randomness, samplers, caches, splits: what the loaders promise."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from datamodules import Augment, ClassificationData
from datamodules.collate import collate
from datamodules.loaders import RecordDataset
from datamodules.memory import choose_cache
from datamodules.samplers import EvalSampler, TrainSampler, choose_batch, key_seed
from datamodules.splits import split_digest
from datamodules.transforms.batched import BatchTransform
from tests.conftest import write_images

HOUSE = Path(__file__).parents[2]


def images(loader) -> dict[tuple[str, int], torch.Tensor]:
    """(path, how many times it was drawn before) -> image, over one epoch."""
    seen: dict[tuple[str, int], torch.Tensor] = {}
    for batch in loader:
        for path, image in zip(batch["path"], batch["image"], strict=True):
            number = sum(1 for p, _ in seen if p == path)
            seen[path, number] = image
    return seen


def test_an_image_drawn_twice_in_one_epoch_is_augmented_differently(tmp_path):
    source = write_images(tmp_path / "p", {"train/rare": 1, "train/common": 15, "val/common": 1})
    augment = Augment(crop="random_resized")
    common = {"image_size": 32, "batch_size": 4, "num_workers": 0}
    data = ClassificationData(str(source), balance="sampler", augment=augment, **common)
    data.setup("fit")
    seen = images(data.train_dataloader())
    rare = [image for (path, _), image in seen.items() if "rare" in path]
    assert len(rare) >= 3  # half of 16 draws on average
    assert all(not torch.equal(a, b) for i, a in enumerate(rare) for b in rare[:i])


def test_order_and_augmentation_are_functions_of_the_key(folder):
    def epoch(number: int, workers: int) -> list[torch.Tensor]:
        data = ClassificationData(str(folder), image_size=32, batch_size=4, num_workers=workers, cache="none", seed=7)
        data.setup("fit")
        loader = data.train_dataloader()
        loader.batch_sampler.set_epoch(number)
        return [batch["image"] for batch in loader]

    first, again, workers, next_epoch = epoch(0, 0), epoch(0, 0), epoch(0, 2), epoch(1, 0)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(first, workers, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, next_epoch, strict=True))


def test_the_order_is_a_function_of_seed_stream_and_pass():
    def order(pass_: int = 2, **key: object) -> list[int]:
        return TrainSampler(50, 5, **{"seed": 1, "stream": "train", **key}).order(pass_).tolist()

    assert order() == order() == np.random.default_rng(key_seed(1, "train", 2)).permutation(50).tolist()
    assert sorted(order()) == list(range(50))
    assert len({tuple(o) for o in (order(), order(seed=0), order(stream="other"), order(1))}) == 4


def test_a_pass_has_keys_of_its_own_and_can_be_repeated():
    sampler = TrainSampler(7, 3, seed=1)
    sampler.set_epoch(4)
    order = sampler.order(4).tolist()
    expected = [[(order[p], 4, p) for p in range(first, first + 3)] for first in (0, 3)]  # the 7th is left out
    assert list(sampler) == expected
    sampler.start = 1
    assert list(sampler) == expected[1:]
    assert list(sampler) == expected  # a start counts once
    same = TrainSampler(7, 3, seed=1, same_pass=True)
    same.set_epoch(4)
    assert list(same) == list(TrainSampler(7, 3, seed=1))


def test_weights_are_odds_of_a_draw_with_replacement():
    sampler = TrainSampler(3, 1, weights=[0, 1, 3])
    drawn = np.concatenate([sampler.order(pass_) for pass_ in range(400)])
    assert np.bincount(drawn, minlength=3)[0] == 0
    assert np.mean(drawn == 2) == pytest.approx(0.75, abs=0.05)


def test_one_sample_becomes_a_batch():
    """Every key of a batch, with values that padding, stacking and types could confuse."""
    image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    common = {"image": image, "geometry": np.arange(6, dtype=np.float32), "label": 3}
    first = {**common, "path": "a", "id": 4, "weight": 2.5, "boxes": np.ones((1, 4), np.float32)}
    second = {**common, "path": "b", "id": 2, "boxes": np.full((2, 4), 2, np.float32), "label": 1}
    first |= {"labels": np.array([7]), "iscrowd": np.array([1], np.uint8), "masks": np.ones((1, 2, 2), np.int16)}
    second |= {"labels": np.array([8, 9]), "iscrowd": np.array([1, 1], np.uint8), "masks": np.ones((2, 2, 2), np.int16)}
    batch = collate([first, second])
    assert batch["path"] == ["a", "b"]
    assert batch["id"].tolist() == [4, 2]
    assert batch["label"].tolist() == [3, 1]
    assert batch["label"].dtype == torch.int64
    assert batch["weight"].tolist() == [2.5, 1.0]  # without a weight an image counts once
    assert torch.equal(batch["image"][1].permute(1, 2, 0), torch.from_numpy(image))
    assert batch["image"].is_contiguous(memory_format=torch.channels_last)
    assert batch["geometry"].tolist() == [[0, 1, 2, 3, 4, 5]] * 2
    assert batch["boxes"].tolist() == [[[1] * 4, [0] * 4], [[2] * 4] * 2]
    assert batch["labels"].tolist() == [[7, -1], [8, 9]]
    assert batch["iscrowd"].tolist() == [[1, 0], [1, 1]]
    assert batch["masks"].amax((2, 3)).tolist() == [[1, 0], [1, 1]]
    soft = collate([{**common, "path": "a", "id": 0, "label": [0.25, 0.75]}])
    assert soft["label"].dtype == torch.float32
    assert soft["label"].tolist() == [[0.25, 0.75]]
    assert "weight" not in soft


def test_ranks_share_the_global_batch_of_one_process():
    one = list(TrainSampler(37, 8, seed=1))
    ranks = [list(TrainSampler(37, 4, seed=1, rank=r, world_size=2)) for r in (0, 1)]
    assert len(one) == 4
    for whole, first, second in zip(one, *ranks, strict=True):
        assert [*first, *second] == whole


def on_rank(rank: int, world_size: int) -> SimpleNamespace:
    """What a datamodule asks of its trainer."""
    return SimpleNamespace(global_rank=rank, world_size=world_size, overfit_batches=0, num_devices=world_size)


@pytest.mark.parametrize("cache", ["none", "tensor"])
def test_ranks_augment_as_one_process_would(folder, cache):
    def epoch(rank: int, world_size: int) -> list[dict]:
        data = ClassificationData(
            str(folder),
            image_size=32,
            batch_size=8 // world_size,
            num_workers=0,
            cache=cache,
            augment=Augment(vflip=0.5, crop="pad"),
        )
        data.trainer = on_rank(rank, world_size)
        data.setup("fit")
        return list(data.train_dataloader())

    for whole, *parts in zip(epoch(0, 1), epoch(0, 2), epoch(1, 2), strict=True):
        assert [path for part in parts for path in part["path"]] == whole["path"]
        assert torch.equal(torch.cat([part["image"] for part in parts]), whole["image"])


def test_a_batch_in_memory_is_augmented_by_seed_pass_and_position(folder):
    augment = Augment(vflip=0.5, crop="pad")
    settings = {"image_size": 32, "batch_size": 8, "cache": "tensor", "seed": 5}
    plain = ClassificationData(str(folder), augment=Augment(preset="none"), **settings)
    noisy = ClassificationData(str(folder), augment=augment, **settings)
    loaders = []
    for data in (plain, noisy):
        data.setup("fit")
        loaders.append(data.train_dataloader())
        loaders[-1].batch_sampler.set_epoch(3)
    transform = BatchTransform(hflip=0.5, vflip=0.5, padding=4)
    for number, (before, after) in enumerate(zip(*loaders, strict=True)):
        seed = key_seed(5, "batch", 3, 8 * number)  # pass 3, first position of the batch
        expected = transform(before["image"].permute(0, 2, 3, 1), seed).permute(0, 3, 1, 2)
        assert torch.equal(after["image"], expected)


def test_a_sample_is_augmented_by_seed_stream_pass_and_position():
    """Not by the index: an image that is drawn twice differs, in a pass and between passes."""

    def drawn(seed: int, stream: str, index: int, pass_: int, position: int) -> int:
        records = [{"path": "a"}, {"path": "b"}]
        data = RecordDataset(records, lambda record: record, lambda _, key: {"key": key}, seed=seed, stream=stream)
        return data[index, pass_, position]["key"]

    assert drawn(1, "train", 0, 2, 3) == drawn(1, "train", 1, 2, 3) == key_seed(1, "train", 2, 3)
    others = [(0, "train", 0, 2, 3), (1, "val", 0, 2, 3), (1, "train", 0, 1, 3), (1, "train", 0, 2, 2)]
    assert len({drawn(*key) for key in [(1, "train", 0, 2, 3), *others]}) == 5
    assert drawn(1, "train", 0, -1, 0) is None  # evaluation


def test_evaluation_gives_each_sample_once_over_all_ranks():
    batches = [batch for rank in range(3) for batch in EvalSampler(7, 2, rank, 3)]
    assert sorted(index for batch in batches for index, _, _ in batch) == list(range(7))
    assert list(EvalSampler(7, 1, 1, 3)) == [[(1, -1, 1)], [(4, -1, 4)]]  # without a pass nothing is random
    assert list(EvalSampler(1, 2, 1, 2)) == []


def test_seeds_differ_by_every_part_of_the_key():
    keys = [(0, "train", 0, 0), (1, "train", 0, 0), (1 << 16, "train", 0, 0), (1 << 31, "train", 0, 0)]
    keys += [(0, "unlabeled", 0, 0), (0, "train", 1, 0), (0, "train", 0, 1)]
    assert len({key_seed(*key) for key in keys}) == len(keys)


@pytest.mark.parametrize("cache", ["none", "tensor"])
@pytest.mark.parametrize(("epoch", "left"), [(1, 1), (2, 4)])
def test_a_position_holds_in_its_own_epoch_alone(folder, cache, epoch, left):
    """3 of the 4 batches of epoch 1 were taken: in epoch 2 none is."""
    none = Augment(preset="none")
    data = ClassificationData(str(folder), image_size=32, batch_size=4, num_workers=0, cache=cache, augment=none)
    data.setup("fit")
    loader = data.train_dataloader()
    loader.load_state_dict({"epoch": 1, "batches": 3})
    loader.batch_sampler.set_epoch(epoch)
    assert len(list(loader)) == left
    assert loader.state_dict() == {"epoch": epoch, "batches": 4}


def test_a_set_below_one_batch_is_refused(folder):
    data = ClassificationData(str(folder), image_size=32, batch_size=64)
    with pytest.raises(ValueError, match=r"data\.batch_size is 64.*only 16 images.*at most 16"):
        data.setup("fit")


@pytest.mark.parametrize("cache", ["decoded", "tensor"])
def test_caches_give_the_pixels_of_the_files(folder, tmp_path, cache):
    def batches(kind: str, train: bool) -> list[dict]:
        data = ClassificationData(
            str(folder),
            image_size=32,
            batch_size=4,
            num_workers=0,
            cache=kind,
            cache_dir=str(tmp_path / "cache") if kind == "decoded" else None,
            augment=Augment(preset="none") if cache == "tensor" else Augment(),
        )
        data.setup("fit")
        return list(data.train_dataloader() if train else data.val_dataloader())

    for train in (True, False):
        for plain, cached in zip(batches("none", train), batches(cache, train), strict=True):
            assert plain["path"] == cached["path"]
            assert torch.equal(plain["image"], cached["image"])
            assert torch.equal(plain["label"], cached["label"])
            assert cached["image"].is_contiguous(memory_format=torch.channels_last)


def test_corrupt_files_are_named_or_left_out(folder):
    bad = folder / "train" / "ant" / "000.jpg"
    bad.write_bytes(bad.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"000\.jpg"):
        ClassificationData(str(folder), on_corrupt="error", image_size=32, batch_size=4).setup("fit")
    data = ClassificationData(str(folder), on_corrupt="skip", image_size=32, batch_size=4, num_workers=0)
    data.setup("fit")
    assert len(data.records["train"]) == 15
    assert [path for path, _ in data.skipped] == [str(bad)]


def test_what_is_missing_is_held_out_of_training(tmp_path):
    source = write_images(tmp_path / "p", {"train/a": 20, "train/b": 20, "test/a": 3, "test/b": 3})
    data = ClassificationData(str(source), image_size=32, val_fraction=0.25, batch_size=4)
    data.setup("fit")
    assert {s: len(r) for s, r in data.records.items()} == {"train": 30, "val": 10, "test": 6}
    again = ClassificationData(str(source), image_size=32, val_fraction=0.25, batch_size=4)
    again.setup("fit")
    assert again.split_digest == data.split_digest


def test_prediction_takes_the_test_images_or_else_those_for_validation(folder):
    data = ClassificationData(str(folder), image_size=32, batch_size=4, num_workers=0)
    data.setup("predict")
    for split in ("test", "val"):
        seen = [path for batch in data.predict_dataloader() for path in batch["path"]]
        assert seen == [record["path"] for record in data.records[split]]
        assert len(seen) == 6
        data.records["test"] = []


def test_a_stored_split_is_used_again(tmp_path):
    source = write_images(tmp_path / "p", {"a": 10, "b": 10})
    data = ClassificationData(str(source), image_size=32, val_fraction=0.3, split_seed=1, batch_size=4)
    data.setup("fit")
    stored = tmp_path / "split.json"
    stored.write_text(json.dumps({s: [r["path"] for r in rs] for s, rs in data.records.items()}))
    again = ClassificationData(str(source), image_size=32, split_file=str(stored), split_seed=2, batch_size=4)
    again.setup("fit")
    assert again.split_digest == data.split_digest


def test_the_digest_of_the_splits():
    """It sees an image that changes sides, and neither the folder nor the order."""

    def digest(folder: str, **names: str) -> str:
        return split_digest({split: [{"path": f"{folder}/{name}"} for name in own] for split, own in names.items()})

    first = digest("/data", train="abc", val="d")
    assert digest("/elsewhere/data", val="d", train="cab") == first
    assert digest("/data", train="abc", val="d", predict="e") == first
    assert len({first, digest("/data", train="ab", val="cd"), digest("/data", train="abc", test="d")}) == 3


def test_class_weights_and_balanced_sampler_come_from_one_switch(tmp_path):
    source = write_images(tmp_path / "p", {"train/a": 30, "train/b": 10, "val/a": 1, "val/b": 1})
    loss = ClassificationData(str(source), image_size=32, balance="loss", batch_size=4)
    loss.setup("fit")
    assert loss.spec()["class_weights"] == pytest.approx([40 / 60, 2.0])
    sampler = ClassificationData(str(source), image_size=32, balance="sampler", batch_size=4)
    sampler.setup("fit")
    assert "class_weights" not in sampler.spec()
    labels = [sampler.records["train"][i]["label"] for e in range(20) for i in sampler._train_sampler().order(e)]
    assert np.mean(labels) == pytest.approx(0.5, abs=0.06)


def test_some_classes_in_a_chosen_order(tmp_path):
    source = write_images(tmp_path / "p", {f"train/{n}": 4 for n in "abc"} | {f"val/{n}": 1 for n in "abc"})
    data = ClassificationData(str(source), image_size=32, class_names=["c", "a"], batch_size=4)
    data.setup("fit")
    assert {r["path"].split("/")[-2]: r["label"] for r in data.records["train"]} == {"c": 0, "a": 1}


PADDED_CROP = Augment(crop="pad")
ARRAY = {"image": np.zeros((1, 1, 3), np.uint8)}


@pytest.mark.parametrize(
    ("record", "count", "canvas", "augment", "cache"),
    [
        (ARRAY, 341, (1024, 1024), PADDED_CROP, "tensor"),  # 3 MiB each: 341 of them are below 1 GiB
        (ARRAY, 342, (1024, 1024), PADDED_CROP, "none"),
        ({"image": "a.jpg"}, 1, (64, 64), PADDED_CROP, "tensor"),
        ({"image": "a.jpg"}, 1, (64, 65), PADDED_CROP, "none"),
        (ARRAY, 1, (32, 32), Augment(crop="random_resized"), "none"),
        (ARRAY, 1, (32, 32), Augment(preset="medium"), "none"),
        ({**ARRAY, "mask": "m.png"}, 1, (32, 32), PADDED_CROP, "none"),
        ({**ARRAY, "boxes": None}, 1, (32, 32), PADDED_CROP, "none"),
    ],
)
def test_auto_keeps_small_sets_of_whole_images_in_memory(record, count, canvas, augment, cache):
    assert choose_cache("auto", augment, canvas, [record] * count) == cache
    assert choose_cache("decoded", augment, canvas, [record] * count) == "decoded"


@pytest.mark.parametrize(
    ("most", "images", "batch"),
    [(32, 1000, 32), (32, 256, 32), (32, 255, 16), (32, 40, 4), (8, 16, 4), (8, 3, 3), (8, 0, 1), (2, 5, 2)],
)
def test_a_batch_size_that_is_left_out_gives_an_epoch_eight_steps(most: int, images: int, batch: int) -> None:
    assert choose_batch(most, images) == batch


def test_a_small_set_is_trained_in_small_batches_and_says_so(folder: Path) -> None:
    data = ClassificationData(str(folder), num_workers=0)
    data.setup("fit")
    assert (data.train_batch, data.eval_batch) == (4, 32)
    assert data.chosen["data.batch_size"] == "4, since there are 16 training images"
    assert [len(batch["image"]) for batch in data.train_dataloader()] == [4] * 4
    asked = ClassificationData(str(folder), num_workers=0, batch_size=8)
    asked.setup("fit")
    assert (asked.train_batch, asked.eval_batch, asked.chosen) == (8, 8, {})


@pytest.mark.slow
def test_a_process_ends_though_a_loader_is_still_in_use(tmp_path):
    """Python's exit sends workers one SIGTERM and waits; they ignore the first, which may be the whole job's."""
    code = """
from datamodules import ClassificationData
data = ClassificationData("digits", image_size=32, num_workers=1, cache="none", batch_size=16, seed=0)
data.setup("fit")
batches = iter(data.train_dataloader())
print(len(next(batches)["image"]))
kept = [batches]
kept.append(kept)
"""
    environment = os.environ | {"PYTHONPATH": str(HOUSE)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, timeout=180, check=True)
    assert done.stdout == "16\n"
