"""Labelled and unlabelled images side by side: passes, exact position, keys of their own, ranks."""

from __future__ import annotations

from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from datamodules import Augment, ClassificationData, SemiSupervised
from tests.conftest import write_images

LIGHT = Augment(hflip=0.5, crop="pad")


@pytest.fixture
def sources(tmp_path):
    """12 labelled images of two classes, and 10 with soft labels whose columns stand in another order."""
    labeled = write_images(tmp_path / "labeled", {"train/ant": 6, "train/bee": 6, "val/ant": 2, "val/bee": 2}, (32, 32))
    pool = write_images(tmp_path / "pool", {"x": 10}, (32, 32), seed=1)
    paths = sorted(str(p) for p in pool.rglob("*.jpg"))
    table = {"path": paths, "split": ["train"] * 10, "p_bee": [0.25] * 10, "p_ant": [0.75] * 10}
    pq.write_table(pa.table(table), tmp_path / "selected.parquet")
    return str(labeled), str(tmp_path / "selected.parquet")


def made(sources, ratio=2, steps_per_epoch=None, rank=0, world_size=1, **unlabeled) -> SemiSupervised:
    common = {"image_size": 32, "num_workers": 0, "cache": "none", "augment": LIGHT, "seed": None}
    first = ClassificationData(sources[0], batch_size=2, **common)
    second = ClassificationData(sources[1], val_fraction=0.0, **{**common, **unlabeled})
    data = SemiSupervised(first, second, ratio, steps_per_epoch)
    data.trainer = SimpleNamespace(
        global_rank=rank, world_size=world_size, overfit_batches=0, num_devices=1
    )  # what a datamodule asks of it
    data.setup("fit")
    return data


def epoch(data: SemiSupervised, number: int, loader=None) -> list[dict]:
    loader = loader or data.train_dataloader()
    loader.sampler.set_epoch(number)
    return list(loader)


def test_pairs_keep_the_ratio_and_streams_go_through_their_passes(sources):
    data = made(sources)
    assert data.class_names == data.unlabeled.class_names == ["ant", "bee"]
    loader = data.train_dataloader()
    assert len(loader) == 10 // 4  # one pass over the unlabelled images, incomplete batch dropped
    pairs = [pair for number in range(3) for pair in epoch(data, number, loader)]
    assert {len(p["labeled"]["path"]) for p in pairs} == {2}
    assert {len(p["unlabeled"]["path"]) for p in pairs} == {4}
    assert torch.allclose(pairs[0]["unlabeled"]["label"], torch.tensor([0.75, 0.25]))  # in the labelled order
    seen = [path for p in pairs for path in p["labeled"]["path"]]
    assert len(seen) == len(set(seen)) == 12  # 6 steps of 2 are one pass: nothing twice before all once
    images = [p["unlabeled"]["image"] for p in pairs]
    assert not torch.equal(images[0], images[2])  # the next pass has another order and other noise


def test_a_resumed_loader_gives_the_same_pairs(sources):
    whole = made(sources, steps_per_epoch=5)
    loader = whole.train_dataloader()
    expected = [pair for number in range(2) for pair in epoch(whole, number, loader)]
    for stop in (3, 5, 7):  # inside an epoch, and inside passes of both streams
        first = made(sources, steps_per_epoch=5)
        loader, taken = first.train_dataloader(), 0
        for number in range(2):
            loader.sampler.set_epoch(number)
            for _ in loader:
                taken += 1
                if taken == stop:
                    break
            if taken == stop:
                break
        state = first.state_dict()
        again = made(sources, steps_per_epoch=5)
        again.load_state_dict(state)
        loader = again.train_dataloader()
        rest = [pair for n in range(number, 2) for pair in epoch(again, n, loader)]
        assert len(rest) == 10 - stop
        for ours, theirs in zip(rest, expected[stop:], strict=True):
            for half in ("labeled", "unlabeled"):
                assert ours[half]["path"] == theirs[half]["path"]
                assert torch.equal(ours[half]["image"], theirs[half]["image"])


def test_the_streams_do_not_disturb_each_other(sources):
    light, none = made(sources), made(sources, augment=Augment(preset="none"))
    a, b = epoch(light, 0), epoch(none, 0)
    for one, other in zip(a, b, strict=True):
        assert torch.equal(one["labeled"]["image"], other["labeled"]["image"])
        assert one["unlabeled"]["path"] == other["unlabeled"]["path"]
    assert not torch.equal(a[0]["unlabeled"]["image"], b[0]["unlabeled"]["image"])
    assert light.unlabeled.run_seed() != light.labeled.run_seed()  # or both would flip the same places of a batch


def test_two_ranks_share_what_one_would_see(sources):
    """The same global batch: 4 labelled and 8 unlabelled images on one rank, half of each on two."""
    one = made(sources)
    one.labeled.batch_size, one.unlabeled.batch_size = 4, 8
    (alone,) = epoch(one, 0)
    parts = [epoch(made(sources, rank=rank, world_size=2), 0) for rank in range(2)]
    assert [len(part) for part in parts] == [1, 1]
    for half in ("labeled", "unlabeled"):
        both = [path for part in parts for path in part[0][half]["path"]]
        assert both == alone[half]["path"]
        assert len(set(both)) == len(both)


def test_without_unlabelled_images_the_labelled_stream_is_the_same(sources):
    pairs = epoch(made(sources, steps_per_epoch=8), 0)
    first = ClassificationData(sources[0], batch_size=2, image_size=32, num_workers=0, cache="none", augment=LIGHT)
    control = SemiSupervised(first, None, 2, 8)
    control.setup("fit")
    for pair, alone in zip(pairs, epoch(control, 0), strict=True):
        assert alone.keys() == {"labeled"}
        assert torch.equal(pair["labeled"]["image"], alone["labeled"]["image"])


def test_what_does_not_fit_is_refused(sources):
    with pytest.raises(ValueError, match=r"data.ratio is 0"):
        SemiSupervised(ClassificationData(), ClassificationData(), 0)
    with pytest.raises(ValueError, match=r"data.unlabeled has image_size \[16, 16\], but data.labeled has \[32, 32\]"):
        made(sources, image_size=16)
    with pytest.raises(ValueError, match="'wasp'"):
        made(sources, class_names=["ant", "wasp"])
