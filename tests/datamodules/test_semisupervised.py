"""Labeled and unlabeled images side by side: passes, exact position, keys of their own, ranks."""

from __future__ import annotations

from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from datamodules import (
    Augment,
    ClassificationData,
    DetectionAugment,
    DetectionData,
    SegmentationData,
    SemiSupervised,
)
from datamodules.common.errors import UserError
from datamodules.samplers import key_seed
from datamodules.transforms.views import TwoViews, check_still, randomized
from tests.conftest import write_images

LIGHT = Augment(hflip=0.5, crop="pad")


@pytest.fixture
def sources(tmp_path):
    """12 labeled images of two classes, and 10 with soft labels whose columns stand in another order."""
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
    assert len(loader) == 10 // 4  # one pass over the unlabeled images, incomplete batch dropped
    pairs = [pair for number in range(3) for pair in epoch(data, number, loader)]
    assert {len(p["labeled"]["path"]) for p in pairs} == {2}
    assert {len(p["unlabeled"]["path"]) for p in pairs} == {4}
    assert torch.allclose(pairs[0]["unlabeled"]["label"], torch.tensor([0.75, 0.25]))  # in the labeled order
    seen = [path for p in pairs for path in p["labeled"]["path"]]
    assert len(seen) == len(set(seen)) == 12  # 6 steps of 2 are one pass: nothing twice before all once
    passes = [{}, {}]  # path -> image; 2 steps of 4 images are a pass of 10
    for step, pair in enumerate(pairs[:4]):
        passes[step // 2] |= dict(zip(pair["unlabeled"]["path"], pair["unlabeled"]["image"], strict=True))
    assert list(passes[0]) != list(passes[1])  # another order
    again = passes[0].keys() & passes[1].keys()
    assert len(again) >= 6
    assert any(not torch.equal(passes[0][path], passes[1][path]) for path in again)  # and other noise


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


def test_the_seed_of_the_unlabeled_half_is_made_from_the_runs(sources, monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "5")
    assert made(sources).unlabeled.run_seed() == key_seed(5, "unlabeled")


@pytest.mark.parametrize("half", ["labeled", "unlabeled"])
def test_a_checkpoint_knows_the_splits_of_both_halves(sources, half):
    data = made(sources)
    state = data.state_dict()
    assert state[half]["split_digest"] == getattr(data, half).split_digest
    with pytest.warns(UserWarning, match="not those that the checkpoint was trained on"):
        made(sources).load_state_dict({**state, half: {"split_digest": "another"}})


def test_two_ranks_share_what_one_would_see(sources):
    """The same global batch: 4 labeled and 8 unlabeled images on one rank, half of each on two."""
    one = made(sources)
    one.labeled.batch_size, one.unlabeled.batch_size = 4, 8
    (alone,) = epoch(one, 0)
    parts = [epoch(made(sources, rank=rank, world_size=2), 0) for rank in range(2)]
    assert [len(part) for part in parts] == [1, 1]
    for half in ("labeled", "unlabeled"):
        both = [path for part in parts for path in part[0][half]["path"]]
        assert both == alone[half]["path"]
        assert len(set(both)) == len(both)


def test_without_unlabeled_images_the_labeled_stream_is_the_same(sources):
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


# Images without labels, as two views.


def views(labeled: ClassificationData, **arguments) -> SemiSupervised:
    data = SemiSupervised(labeled, **{"ratio": 2, **arguments})
    data.trainer = SimpleNamespace(global_rank=0, world_size=1, overfit_batches=0, num_devices=1)
    data.setup("fit")
    return data


def whole_images(source: str, **arguments) -> ClassificationData:
    return ClassificationData(
        source, **{"batch_size": 2, "image_size": 32, "num_workers": 0, "augment": LIGHT, **arguments}
    )


CANVASES = DetectionAugment(canvas_sizes=[32, 64])
STILL = Augment(transforms=[{"RandomBrightnessContrast": {"p": 1.0}}])


def test_two_views_of_one_image_of_a_folder_or_a_list(sources, tmp_path):
    """Without any noise both views are the image itself; with noise they differ, in order and keys of their own."""
    folder = tmp_path / "pool"
    clean = Augment(preset="none")
    plain = views(whole_images(sources[0], augment=clean), pool=str(folder), strong=clean)
    for pair in epoch(plain, 0):
        half = pair["unlabeled"]
        assert torch.equal(half["image"], half["weak_image"])
        assert half["image"].dtype == torch.uint8
        assert not {"label", "labels", "mask", "boxes"} & half.keys()
        one = next(p for p in sorted(folder.rglob("*.jpg")) if str(p) == half["path"][0])
        alone = views(whole_images(sources[0], augment=clean, batch_size=1), pool=str(one), ratio=1, strong=clean)
        assert torch.equal(epoch(alone, 0)[0]["unlabeled"]["image"][0], half["image"][0])

    paths = sorted(str(p) for p in folder.rglob("*.jpg"))
    (tmp_path / "pool.csv").write_text("path\n" + "\n".join(paths) + "\n")
    noisy = views(whole_images(sources[0]), pool=str(tmp_path / "pool.csv"))
    pairs = [pair["unlabeled"] for pair in epoch(noisy, 0)]
    assert [half["path"] for half in pairs] == [pair["unlabeled"]["path"] for pair in epoch(plain, 0)]
    assert all(not torch.equal(half["image"], half["weak_image"]) for half in pairs)
    # Weak is the labeled images' own: flips and shifts of the same pixels.
    again = views(whole_images(sources[0]), pool=str(folder), strong=Augment(preset="rand", rand_magnitude=27))
    weak = [pair["unlabeled"]["weak_image"] for pair in epoch(again, 0)]
    assert all(torch.equal(a["weak_image"], b) for a, b in zip(pairs, weak, strict=True))
    assert noisy.spec()["two_views"]


def test_a_pool_is_read_as_the_labeled_images_are(sources, tmp_path):
    clean = Augment(preset="none")
    labeled = whole_images(sources[0], augment=clean, in_chans=1, dtype="float32")
    half = epoch(views(labeled, pool=str(tmp_path / "pool"), strong=clean), 0)[0]["unlabeled"]
    for key in ("image", "weak_image"):
        assert (half[key].dtype, half[key].shape) == (torch.float32, (4, 1, 32, 32))


def test_each_view_has_a_key_of_its_own():
    """Of seed, stream, view, pass and position, whatever the image."""

    class Echo:
        dense = False

        def __call__(self, sample: dict, seed: int) -> dict:
            return {"image": seed}

    def keys(seed: int, stream: str, pass_: int, position: int, index: int = 0) -> tuple[int, int]:
        records = [{"path": "a"}, {"path": "b"}]
        data = TwoViews(records, lambda _: {"image": None}, Echo(), Echo(), shows=False, seed=seed, stream=stream)
        out = data[index, pass_, position]
        return out["weak_image"], out["image"]

    assert keys(1, "train", 2, 3) == (key_seed(1, "train/weak", 2, 3), key_seed(1, "train/strong", 2, 3))
    assert keys(1, "train", 2, 3, index=1) == keys(1, "train", 2, 3)
    others = [keys(0, "train", 2, 3), keys(1, "val", 2, 3), keys(1, "train", 0, 3), keys(1, "train", 2, 0)]
    assert len({key for pair in [keys(1, "train", 2, 3), *others] for key in pair}) == 10


def test_resumed_views_are_the_same(sources, tmp_path):
    whole = views(whole_images(sources[0]), pool=str(tmp_path / "pool"), steps_per_epoch=4)
    loader = whole.train_dataloader()
    expected = epoch(whole, 0, loader)
    part = views(whole_images(sources[0]), pool=str(tmp_path / "pool"), steps_per_epoch=4)
    iterator = iter(loader := part.train_dataloader())
    for _ in range(3):
        next(iterator)
    rest = views(whole_images(sources[0]), pool=str(tmp_path / "pool"), steps_per_epoch=4)
    rest.load_state_dict(part.state_dict())
    (last,) = epoch(rest, 0)
    for key in ("image", "weak_image"):
        assert torch.equal(last["unlabeled"][key], expected[3]["unlabeled"][key])


def test_hidden_labels_are_drawn_by_class_and_change_nothing(tmp_path):
    """The true labels of the pool have no influence: with others in their place every batch is the same."""
    root = write_images(tmp_path / "all", {"train/ant": 9, "train/bee": 9, "val/ant": 2, "val/bee": 2}, (32, 32))
    paths = sorted(root.rglob("*.jpg"))
    rows = [(str(p), p.parent.name, p.parent.parent.name) for p in paths]

    def batches(rows: list[tuple[str, str, str]], **hide: int) -> tuple[SemiSupervised, list[dict]]:
        (tmp_path / "list.csv").write_text("path,label,split\n" + "".join(f"{','.join(row)}\n" for row in rows))
        data = views(whole_images(str(tmp_path / "list.csv")), **(hide or {"labels_per_class": 3}))
        return data, epoch(data, 0)

    data, first = batches(rows)
    train, pool = (data.records[name] for name in ("train", "pool"))
    assert sorted(r["label"] for r in train) == [0] * 3 + [1] * 3
    assert len(pool) == 12
    assert not {r["path"] for r in train} & {r["path"] for r in pool}
    assert {p for pair in first for p in pair["unlabeled"]["path"]} <= {r["path"] for r in pool}
    data, _ = batches(rows)
    data.unlabeled.records["train"] = [{**r, "label": 1 - r["label"]} for r in data.unlabeled.records["train"]]
    for ours, theirs in zip(epoch(data, 0), first, strict=True):
        for half in ("labeled", "unlabeled"):
            assert all(torch.equal(v, ours[half][k]) for k, v in theirs[half].items() if isinstance(v, torch.Tensor))
    data, _ = batches(rows, labeled_images=5)
    assert (len(data.records["train"]), len(data.records["pool"])) == (5, 13)


def scenes_of(cls: type, **settings) -> DetectionData | SegmentationData:
    sizes = {"image_size": 32, "batch_size": 2, "num_workers": 0, "num_scenes": {"train": 12, "val": 2}}
    return cls("digits", **sizes, **settings)


def test_the_balanced_sampler_counts_only_the_classes_that_keep_their_labels(tmp_path):
    """9 ants and 3 bees of which 3 each keep their labels: each is drawn as often as another."""
    root = write_images(tmp_path / "all", {"train/ant": 9, "train/bee": 3, "val/ant": 2, "val/bee": 2}, (32, 32))
    data = views(whole_images(str(root), balance="sampler"), labels_per_class=3, ratio=1)
    assert list(data.labeled.class_counts) == [3, 3]
    assert data.labeled.sample_weights() == pytest.approx([1 / 3] * 6)


@pytest.mark.parametrize("cls", [DetectionData, SegmentationData])
def test_the_balanced_sampler_draws_boxes_and_masks_that_are_not_hidden(cls):
    balanced = {"balance": "sampler", **({"repeat_threshold": 1.0} if cls is DetectionData else {})}
    data = views(scenes_of(cls, **balanced), labeled_images=5)
    alone = scenes_of(cls, **balanced)
    alone.records, alone.class_names = {"train": data.records["train"]}, data.class_names
    assert len(data.records["train"]) == 5
    assert data.labeled.sample_weights() == pytest.approx(alone.sample_weights())
    seen = {path for pair in epoch(data, 0) for path in pair["labeled"]["path"]}
    assert seen <= {record["path"] for record in data.records["train"]}


def test_the_strong_view_of_masks_moves_no_pixel(tmp_path):
    """Both views lie alike on the canvas, whose rest is ignored."""
    settings = {"image_size": 32, "batch_size": 2, "num_workers": 0, "augment": Augment(scale_jitter=(0.5, 0.8))}
    scenes = SegmentationData("digits", num_scenes={"train": 12, "val": 2}, **settings)
    data = views(scenes, labeled_images=4, strong=Augment(transforms=[{"ColorJitter": {"p": 0.0}}]))
    pairs = [pair["unlabeled"] for pair in epoch(data, 0)]
    assert all(torch.equal(half["image"], half["weak_image"]) for half in pairs)
    masks = torch.cat([half["mask"] for half in pairs])
    assert set(masks.unique().tolist()) == {0, 255}  # no true mask is in it
    outside = torch.cat([half["image"] for half in pairs]).permute(0, 2, 3, 1)[masks == 255]
    assert (outside == 114).all()  # the fill
    default = views(SegmentationData("digits", num_scenes={"train": 12, "val": 2}, **settings), labeled_images=4)
    for half, other in zip(epoch(default, 0), pairs, strict=True):
        assert torch.equal(half["unlabeled"]["weak_image"], other["weak_image"])
        assert not torch.equal(half["unlabeled"]["image"], other["image"])


def test_pools_for_boxes_have_no_boxes():
    settings = {"image_size": 32, "batch_size": 2, "num_workers": 0}
    scenes = DetectionData("digits", num_scenes={"train": 12, "val": 2}, **settings)
    (half, *_) = (pair["unlabeled"] for pair in epoch(views(scenes, labeled_images=4), 0))
    assert half["weak_image"].shape == half["image"].shape == (4, 3, 32, 32)
    assert not {"boxes", "labels", "mask", "iscrowd"} & half.keys()
    sizes = DetectionData("digits", num_scenes={"train": 12, "val": 2}, augment=CANVASES, **settings)
    with pytest.raises(ValueError, match=r"data.labeled.augment.canvas_sizes is \[32, 64\]"):
        views(sizes, labeled_images=4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pool": "nowhere"}, r"The pool 'nowhere' does not exist"),
        ({"labels_per_class": 2, "labeled_images": 4}, r"both say which labels are seen"),
        ({"labels_per_class": 0}, r"data.labels_per_class is 0"),
        ({"labels_per_class": 7}, r"class 'ant' has 6 training images|class 'bee' has 6 training images"),
        ({"labeled_images": 12}, r"labeled_images is 12, but there are 12"),
        ({"labeled_images": 1}, r"data.batch_size is 2"),
        ({"labeled_images": 10}, r"There are 2 unlabeled images, but a step takes .* 2 x 2 x 1"),
        ({"strong": Augment(preset="rand")}, r"data.strong is set, but only images without labels"),
        ({"unlabeled": "labelled", "labeled_images": 4}, r"data.unlabeled and data.labeled_images are both set"),
    ],
)
def test_pools_that_cannot_be_are_refused(sources, arguments, message):
    if "unlabeled" in arguments:
        arguments = {**arguments, "unlabeled": whole_images(sources[1])}
    with pytest.raises(UserError, match=message):
        views(whole_images(sources[0]), **arguments)


@pytest.mark.parametrize(
    ("strong", "message"),
    [
        (Augment(preset="rand"), r"data.strong.preset is 'rand', which moves pixels"),
        (Augment(transforms=[{"HorizontalFlip": {"p": 0.5}}]), r"HorizontalFlip, which moves"),
        (Augment(transforms=[{"OneOf": {"transforms": [{"CoarseDropout": {}}]}}]), r"OneOf, which moves"),
        (STILL, None),
        (Augment(transforms=[{"OneOf": {"transforms": [{"GaussianBlur": {}}, {"ColorJitter": {}}]}}]), None),
    ],
)
def test_only_colours_change_where_masks_are_learnt(strong, message):
    if message is None:
        check_still(strong)
        return
    with pytest.raises(ValueError, match=message):
        check_still(strong)


def test_the_default_strong_view_follows_the_labeled_images():
    assert randomized(Augment(hflip=0.0, crop_padding=3)) == Augment(preset="rand", hflip=0.0, crop_padding=3)
    assert randomized(Augment(preset="none")) == Augment(preset="rand", hflip=0.0, crop="none")
    with pytest.raises(ValueError, match=r"data.strong is not set"):
        randomized(STILL)


def test_mosaic_ends_with_the_epochs_not_with_a_streams_passes():
    """6 labeled scenes are gone through twice an epoch, 24 unlabeled ones once."""

    def scenes(count):
        augment = DetectionAugment(mosaic=0.5, close_mosaic_epochs=2)
        sizes = {"train": count, "val": 1, "test": 0}
        return DetectionData(num_scenes=sizes, image_size=64, batch_size=2, num_workers=0, augment=augment, seed=0)

    data = SemiSupervised(scenes(6), scenes(24), ratio=2, steps_per_epoch=6)
    data.trainer = SimpleNamespace(
        global_rank=0, world_size=1, overfit_batches=0, num_devices=1, max_epochs=10, max_steps=-1
    )
    data.setup("fit")
    streams = data.train_dataloader().streams
    assert streams["labeled"].dataset.mixed_passes == 8 * 2
    assert streams["unlabeled"].dataset.mixed_passes == 8
