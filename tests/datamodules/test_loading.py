"""Keyed randomness, samplers, caches, splits: what the loaders promise."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from datamodules import Augment, ClassificationData
from datamodules.loaders import EvalSampler, TrainSampler, key_seed
from tests.conftest import write_images


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


def test_ranks_share_the_global_batch_of_one_process():
    one = list(TrainSampler(37, 8, seed=1))
    ranks = [list(TrainSampler(37, 4, seed=1, rank=r, world_size=2)) for r in (0, 1)]
    assert len(one) == 4
    for whole, first, second in zip(one, *ranks, strict=True):
        assert [*first, *second] == whole


def test_evaluation_gives_each_sample_once_over_all_ranks():
    batches = [batch for rank in range(3) for batch in EvalSampler(7, 2, rank, 3)]
    assert sorted(index for batch in batches for index, _, _ in batch) == list(range(7))
    assert list(EvalSampler(1, 2, 1, 2)) == []


def test_seeds_differ_by_every_part_of_the_key():
    keys = [(0, "train", 0, 0), (1, "train", 0, 0), (0, "unlabeled", 0, 0), (0, "train", 1, 0), (0, "train", 0, 1)]
    assert len({key_seed(*key) for key in keys}) == len(keys)


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


def test_a_stored_split_is_used_again(tmp_path):
    source = write_images(tmp_path / "p", {"a": 10, "b": 10})
    data = ClassificationData(str(source), image_size=32, val_fraction=0.3, split_seed=1, batch_size=4)
    data.setup("fit")
    stored = tmp_path / "split.json"
    stored.write_text(json.dumps({s: [r["path"] for r in rs] for s, rs in data.records.items()}))
    again = ClassificationData(str(source), image_size=32, split_file=str(stored), split_seed=2, batch_size=4)
    again.setup("fit")
    assert again.split_digest == data.split_digest


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
