"""DetectionData: the same batches from every format, policies, repeat factors, keys and resume, and wrong inputs."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import warnings
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonargparse
import numpy as np
import pytest
import torch
from PIL import Image

from datamodules import DetectionAugment, DetectionData
from datamodules.annotations.objects import repeat_factors
from datamodules.common.errors import UserError
from datamodules.readers.digits import digit_scene
from datamodules.transforms.mixing import MixedDataset

HOUSE = Path(__file__).parents[2]
NAMES = ["ant", "bus", "cat"]
COUNTS = {"train": 9, "val": 3, "test": 2}
SIZE = (40, 60)


def objects(split: str, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (N, 4) and labels (N,) of an image; every third has none, and class 2 is on the fourth only."""
    rng = np.random.default_rng([len(split), index])
    count = 0 if index % 3 == 2 else 1 + index % 2
    corners = rng.integers(0, 15, (count, 2)) * 2
    boxes = np.concatenate([corners, corners + 2 * rng.integers(2, 5, (count, 2))], axis=1).astype(np.float32)
    return boxes, np.array([2, 0][:count] if index == 3 else [0, 1][:count], np.int64)


def save(path: Path, size: tuple[int, int] = SIZE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(list(path.stem.encode())).integers(0, 256, (*size, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path)


def write_coco(root: Path, *, masks: bool = True, **changes: Any) -> Path:
    """`changes` of the first annotation; categories have ids with gaps, in another order than their names."""
    for split, count in COUNTS.items():
        content: dict[str, Any] = {"images": [], "annotations": []}
        content["categories"] = [{"id": 10 * (k + 1), "name": name} for k, name in enumerate(NAMES)]
        for i in range(count):
            save(root / f"images/{split}{i}.png")
            content["images"].append({"id": i + 5, "file_name": f"{split}{i}.png", "height": 40, "width": 60})
            for (x1, y1, x2, y2), label in zip(*(a.tolist() for a in objects(split, i)), strict=True):
                box = {"bbox": [x1, y1, x2 - x1, y2 - y1], "category_id": 10 * (label + 1), "image_id": i + 5}
                if masks:
                    box["segmentation"] = [[x1, y1, x2, y1, x2, y2, x1, y2]]
                content["annotations"].append({**box, "id": len(content["annotations"]) + 1})
        if split == "train":
            content["annotations"][0] |= changes
        (root / "annotations").mkdir(exist_ok=True)
        (root / f"annotations/instances_{split}.json").write_text(json.dumps(content))
    return root


def write_voc(root: Path) -> Path:
    (root / "Annotations").mkdir(parents=True)
    (root / "ImageSets/Main").mkdir(parents=True)
    for split, count in COUNTS.items():
        for i in range(count):
            save(root / f"JPEGImages/{split}{i}.png")
            text = ""
            for (x1, y1, x2, y2), label in zip(*(a.tolist() for a in objects(split, i)), strict=True):
                corners = f"<xmin>{x1 + 1}</xmin><ymin>{y1 + 1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax>"
                text += f"<object><name>{NAMES[label]}</name><bndbox>{corners}</bndbox></object>"
            (root / f"Annotations/{split}{i}.xml").write_text(f"<annotation>{text}</annotation>")
        (root / f"ImageSets/Main/{split}.txt").write_text("\n".join(f"{split}{i}" for i in range(count)))
    return root


def write_yolo(root: Path) -> Path:
    for split, count in COUNTS.items():
        for i in range(count):
            save(root / f"images/{split}/{split}{i}.png")
            boxes, labels = objects(split, i)
            (root / f"labels/{split}").mkdir(parents=True, exist_ok=True)
            lines = [
                f"{4 * k + 3} {(a + c) / 120} {(b + d) / 80} {(c - a) / 60} {(d - b) / 40}"
                for (a, b, c, d), k in zip(boxes.tolist(), labels.tolist(), strict=True)
            ]
            (root / f"labels/{split}/{split}{i}.txt").write_text("\n".join(lines))
    names = {4 * k + 3: name for k, name in enumerate(NAMES)}
    splits = "".join(f"{split}: images/{split}\n" for split in COUNTS)
    (root / "data.yaml").write_text(f"{splits}names: {json.dumps(names)}\n".replace('"3"', "3").replace('"7"', "7")
                                    .replace('"11"', "11"))  # fmt: skip
    return root


def ready(stage: str = "fit", **settings: Any) -> DetectionData:
    data = DetectionData(**{"num_workers": 0, "batch_size": 3, "image_size": 64, **settings})
    data.setup(stage)
    return data


@pytest.fixture(scope="module")
def coco(tmp_path_factory) -> Path:
    return write_coco(tmp_path_factory.mktemp("coco"))


@pytest.fixture(scope="module")
def yolo(tmp_path_factory) -> Path:
    return write_yolo(tmp_path_factory.mktemp("yolo"))


# What a batch holds.


def test_every_format_gives_the_same_batches(coco, yolo, tmp_path):
    voc = write_voc(tmp_path)
    for source, settings in (
        (coco, {}),
        (coco, {"masks": True}),
        (voc, {"class_names": NAMES}),
        (voc, {}),
        (yolo, {}),
        (yolo / "data.yaml", {"format": "yolo", "resize": "stretch"}),
    ):
        data = ready(source=str(source), **settings)
        masks = settings.get("masks", False)
        assert data.class_names == NAMES
        assert data.class_ids == ([10, 20, 30] if source is coco else None)
        assert {split: len(records) for split, records in data.records.items()} == COUNTS
        assert data.spec() == {"num_classes": 3, "in_chans": 3, "image_size": [64, 64], "masks": masks}
        batch = next(iter(data.val_dataloader()))
        scale = np.array([64 / 60, 64 / 40 if data.resize == "stretch" else 43 / 40] * 2)
        offset = np.array([0, 0 if data.resize == "stretch" else 10] * 2)
        assert batch["image"].shape == (3, 3, 64, 64)
        assert batch["boxes"].shape == (3, 2, 4)
        assert batch["labels"].tolist() == [[0, -1], [0, 1], [-1, -1]]
        assert batch["iscrowd"].dtype == torch.uint8
        for i in range(3):
            boxes, labels = objects("val", i)
            np.testing.assert_allclose(batch["target"][i]["boxes"], boxes, atol=1e-4)
            np.testing.assert_allclose(batch["boxes"][i, : len(boxes)], boxes * scale + offset, atol=1e-3)
            np.testing.assert_array_equal(batch["target"][i]["labels"], labels)
            assert batch["target"][i]["area"].shape == batch["target"][i]["iscrowd"].shape == (len(boxes),)
            if masks:
                (layer,) = batch["target"][i]["masks"].numpy()
                for n, (x1, y1, x2, y2) in enumerate(boxes.astype(int), start=1):
                    hidden = sum((layer[y1:y2, x1:x2] == m).sum() for m in range(n + 1, 3))
                    assert (layer[y1:y2, x1:x2] == n).sum() + hidden == (y2 - y1) * (x2 - x1)
        assert ("masks" in batch) == ("masks" in batch["target"][0]) == masks
        batch = next(iter(data.train_dataloader()))
        assert batch["image"].shape == (3, 3, 64, 64)
        assert batch["boxes"].shape[::2] == (3, 4)
        assert "target" not in batch
        # A saved config reads the same classes again.
        again = ready(source=str(source), **{**settings, **data.resolved(), "image_size": 64})
        assert again.resolved() == data.resolved()
        assert all(
            np.array_equal(a["labels"], b["labels"])
            for a, b in zip(again.records["train"], data.records["train"], strict=True)
        )


def test_digit_scenes_are_those_of_the_generator():
    data = ready(masks=True, num_scenes={"train": 4, "val": 2, "test": 1}, batch_size=2)
    assert {split: len(records) for split, records in data.records.items()} == {"train": 4, "val": 2, "test": 1}
    batch = next(iter(data.val_dataloader()))
    for i in range(2):
        scene = digit_scene(i, 0, "val", 64)
        assert np.array_equal(batch["image"][i].permute(1, 2, 0), scene["image"])
        for key in ("boxes", "labels", "masks"):
            assert np.array_equal(batch["target"][i][key], scene[key])
        assert np.array_equal(batch["boxes"][i, : len(scene["boxes"])], scene["boxes"])
    assert "masks" not in next(iter(ready(num_scenes={"train": 4}).val_dataloader()))
    assert DetectionData().canvas() == (128, 128)
    assert DetectionData(**data.resolved()).class_names == data.class_names == [str(k) for k in range(10)]


def test_chosen_classes_and_held_out_parts(coco, tmp_path):
    only = ready(source=str(coco), class_names=["bus", "ant"])
    assert (only.class_names, only.class_ids) == (["bus", "ant"], [20, 10])
    assert [len(r["boxes"]) for r in only.records["train"]] == [1, 2, 0, 1, 1, 0, 1, 2, 0]  # negatives stay
    assert only.records["train"][1]["labels"].tolist() == [1, 0]
    single = str(coco / "annotations/instances_train.json")
    data = ready(source=single, val_fraction=0.3, test_fraction=0.2)
    assert {split: len(records) for split, records in data.records.items()} == {"train": 4, "val": 3, "test": 2}
    paths = [record["path"] for records in data.records.values() for record in records]
    assert len(set(paths)) == 9  # an image is in one split
    split = {name: [r["path"] for r in records] for name, records in data.records.items()}
    (tmp_path / "split.json").write_text(json.dumps(split))
    assert ready(source=single, split_file=str(tmp_path / "split.json")).split_digest == data.split_digest
    assert ready(source=single, split_seed=1, val_fraction=0.3, test_fraction=0.2).split_digest != data.split_digest


def test_the_cache_of_decoded_images_gives_the_same_samples(coco, tmp_path):
    settings = {"source": str(coco), "augment": DetectionAugment(mosaic=1.0)}
    plain = next(iter(ready(**settings).train_dataloader()))
    cached = next(iter(ready(**settings, cache="decoded", cache_dir=str(tmp_path)).train_dataloader()))
    assert list(tmp_path.glob("*.bin"))
    assert all(torch.equal(plain[key], cached[key]) for key in ("image", "boxes", "labels"))


# Crowds, policies, balance.


def test_crowds_are_marked_and_kept(tmp_path):
    data = ready(source=str(write_coco(tmp_path, iscrowd=1)), masks=True)
    batches = [batch for _ in range(6) for batch in data.train_dataloader()]
    crowds = sum(int(batch["iscrowd"].sum()) for batch in batches)
    assert 0 < crowds < 20
    assert all(((b["labels"] >= 0) | (b["iscrowd"] == 0)).all() for b in batches)


def test_what_becomes_of_wrong_boxes(tmp_path):
    source = str(write_coco(tmp_path, masks=False, bbox=[-9, 4, 30, 10]))
    with pytest.raises(
        ValueError, match=r"1 of \d+ boxes.*\n.*instances_train.json, annotation 1 .*train0.png.*extends beyond"
    ):
        ready(source=source)
    with pytest.warns(UserWarning, match=r"data.check_boxes: fix: .* 1 fixed and 0 dropped: it extends beyond .*\(1\)"):
        data = ready(source=source, check_boxes="fix")
    assert data.records["train"][0]["boxes"].tolist() == [[0, 4, 21, 14]]
    with pytest.warns(UserWarning, match="0 fixed and 1 dropped"):
        data = ready(source=source, check_boxes="drop")
    assert data.records["train"][0]["boxes"].shape == (0, 4)
    assert len(data.records["train"]) == 9


def test_repeat_factors_by_hand():
    labels = [np.array(k, np.int64) for k in ([0, 0, 1], [0], [0, 2], [], [0], [0], [0], [0], [0], [1])]
    # 10 images; class 0 is in 8 of them, class 1 in 2, class 2 in 1, class 3 in none.
    expected = [np.sqrt(0.4 / 0.2), 1, np.sqrt(0.4 / 0.1), 1, 1, 1, 1, 1, 1, np.sqrt(0.4 / 0.2)]
    np.testing.assert_allclose(repeat_factors(labels, 4, 0.4), expected)
    assert repeat_factors(labels, 4, 0.1) == [1.0] * 10


def test_rare_classes_are_drawn_more_often(coco):
    data = ready(source=str(coco), balance="sampler", repeat_threshold=0.5)
    weights = np.array(data.sample_weights())
    present = np.array([[k in objects("train", i)[1] for k in range(3)] for i in range(9)])
    factor = np.maximum(1, np.sqrt(0.5 / present.mean(0)))
    np.testing.assert_allclose(weights, [max([1, *factor[own]]) for own in present])
    assert weights[3] == weights.max() > 2
    assert ready(source=str(coco)).sample_weights() is None
    with pytest.warns(UserWarning, match=r"data.balance: sampler changes nothing: .* data.repeat_threshold = 0.1"):
        ready(source=str(coco), balance="sampler", repeat_threshold=0.1)


# Keys of randomness.


def test_a_class_that_is_there_in_crowds_alone_is_not_drawn_more_often(tmp_path):
    """The crowd is the first image's only object of class 0, and is no object to learn."""
    first = int(objects("train", 0)[1][0])
    data = ready(source=str(write_coco(tmp_path, masks=False, iscrowd=1)), balance="sampler", repeat_threshold=1.0)
    present = np.zeros((9, 3), bool)
    for i in range(9):
        labels = objects("train", i)[1][1:] if i == 0 else objects("train", i)[1]
        present[i, labels] = True
    factor = np.maximum(1, np.sqrt(1 / np.maximum(present.mean(0), 1 / 9)))
    assert present[:, first].sum() < sum(first in objects("train", i)[1] for i in range(9))
    np.testing.assert_allclose(data.sample_weights(), [max([1, *factor[own]]) for own in present])


def test_the_stream_resumes_with_any_number_of_workers(coco):
    augment = DetectionAugment(mosaic=0.5, mixup=0.3, copy_paste=0.3, canvas_sizes=[48, 64])
    settings = {"source": str(coco), "masks": True, "augment": augment, "batch_size": 2, "seed": 5}
    loader = ready(**settings).train_dataloader()
    loader.batch_sampler.set_epoch(1)
    batches = list(loader)
    assert len(batches) == 4
    resumed = ready(**settings, num_workers=2).train_dataloader()
    resumed.batch_sampler.set_epoch(1)
    resumed.load_state_dict({"epoch": 1, "batches": 1})
    for batch, again in zip(batches[1:], resumed, strict=True):
        assert all(torch.equal(batch[k], again[k]) for k in ("id", "image", "boxes", "labels", "masks", "geometry"))
    loader.batch_sampler.set_epoch(2)
    other = list(loader)
    assert [b["id"].tolist() for b in other] != [b["id"].tolist() for b in batches]
    assert {b["image"].shape[2:] for b in batches + other} == {(48, 48), (64, 64)}


def test_ranks_draw_the_samples_and_canvases_of_one_process():
    def epoch(rank: int, world_size: int) -> list[dict[str, Any]]:
        data = DetectionData(
            num_scenes={"train": 24, "val": 2},
            image_size=32,
            batch_size=4 // world_size,
            num_workers=0,
            augment=DetectionAugment(mosaic=0.5, canvas_sizes=[32, 48]),
        )
        ranks = {"global_rank": rank, "world_size": world_size, "num_devices": world_size, "overfit_batches": 0}
        data.trainer = SimpleNamespace(**ranks, max_epochs=1, max_steps=-1)
        data.setup("fit")
        return list(data.train_dataloader())

    whole = epoch(0, 1)
    assert {batch["image"].shape[2] for batch in whole} == {32, 48}
    for batch, *parts in zip(whole, epoch(0, 2), epoch(1, 2), strict=True):
        assert torch.equal(torch.cat([part["image"] for part in parts]), batch["image"])


@pytest.mark.parametrize(
    ("augment", "trainer", "passes"),
    [
        ({}, {"max_epochs": 30}, 27),
        ({}, {"max_epochs": 300}, 285),
        ({}, {"max_epochs": 5}, 5),
        ({"close_mosaic_epochs": 4}, {"max_epochs": 30}, 26),
        ({"close_mosaic_epochs": 2}, {"max_epochs": -1, "max_steps": 31}, 9),  # 3 steps an epoch, 11 epochs
        # 2 batches a step: 62 batches, 21 epochs
        ({"close_mosaic_epochs": 2}, {"max_epochs": -1, "max_steps": 31, "accumulate_grad_batches": 2}, 19),
        ({}, {"max_epochs": -1}, None),
        ({"close_mosaic_epochs": 0}, {"max_epochs": -1}, None),
    ],
)
def test_mosaic_ends_before_the_run(coco, augment, trainer, passes):
    data = ready(source=str(coco), augment=DetectionAugment(mosaic=0.5, **augment))
    defaults = {"max_steps": -1, "accumulate_grad_batches": 1, "world_size": 1, "global_rank": 0, "num_devices": 1}
    data.trainer = SimpleNamespace(**{**defaults, "overfit_batches": 0, **trainer})
    dataset = data.train_dataloader().dataset
    assert isinstance(dataset, MixedDataset)
    assert dataset.mixed_passes == passes
    data.augment = DetectionAugment(mosaic=0.5, close_mosaic_epochs=4)
    if trainer["max_epochs"] == -1 and "max_steps" not in trainer:
        with pytest.raises(ValueError, match="close_mosaic_epochs is 4, but the run has no last epoch"):
            data.train_dataloader()


# Evaluation and prediction.


def test_pictures_in_their_own_size_and_tiles(tmp_path):
    source = write_coco(tmp_path)
    data = ready(source=str(source), resize="native")
    batch = next(iter(data.val_dataloader()))
    assert batch["image"].shape == (3, 3, *SIZE)
    np.testing.assert_array_equal(batch["boxes"][0, :1], objects("val", 0)[0])
    data = ready(source=str(source), resize="native", tile=64, tile_overlap=0.5, image_size=None)
    batch = next(iter(data.val_dataloader()))
    assert data.canvas() == (64, 64)
    assert (len(batch["image"]), batch["tiles"][0].tolist()) == (1, [[0, 0, *SIZE]])
    assert next(iter(data.train_dataloader()))["image"].shape == (3, 3, 64, 64)
    large = tmp_path / "predict"
    save(large / "a.png", (100, 130))
    save(large / "b.png", SIZE)
    for settings, sizes in (({"resize": "native"}, [(1, 100, 130), (1, 40, 60)]), ({}, [(2, 64, 64)])):
        data = DetectionData(source="gone", num_workers=0, class_names=NAMES, image_size=64, masks=True, **settings)
        data.predict_source = str(large)
        data.setup("predict")
        batches = list(data.predict_dataloader())
        assert [(len(b["image"]), *b["image"].shape[2:]) for b in batches] == sizes
        assert all("boxes" not in b and "target" not in b for b in batches)
    path = source / "annotations/instances_val.json"
    save(source / "images/val1.png", (50, 60))
    path.write_text(path.read_text().replace('val1.png", "height": 40', 'val1.png", "height": 50'))
    with pytest.raises(ValueError, match=r"data.eval_batch_size is 2, but data.resize is 'native' and pictures differ"):
        ready(source=str(source), resize="native", eval_batch_size=2)


# Wrong inputs.


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"source": "nowhere"}, "data.source 'nowhere' does not exist .* in the layout of COCO, VOC or YOLO"),
        ({"format": "voc"}, "holds no VOC data"),
        ({"class_names": ["ant", "buss"]}, r"data.class_names lists \['buss'\], which the data do not have"),
        ({"class_names": ["ant", "ant"]}, "name each class once"),
        ({"class_ids": [1, 2, 3]}, r"data.class_ids is \[1, 2, 3\], but the categories .* \[10, 20, 30\]"),
        ({"class_ids": [1], "class_names": NAMES}, "data.class_ids has 1 numbers, data.class_names 3 names"),
        ({"voc_difficult": "keep"}, "data.voc_difficult is set, but .* is read as coco"),
        ({"num_scenes": {"train": 3}}, "data.num_scenes is set, but data.source is .* not 'digits'"),
        ({"tile": 64}, "data.tile is set, but data.resize is 'letterbox'"),
        ({"tile_overlap": 0.5}, "data.tile_overlap is 0.5, but data.tile is not set"),
        ({"tile": 50, "resize": "native"}, "data.tile is 50 x 50"),
        ({"tile": 64, "resize": "native", "eval_batch_size": 4}, "data.eval_batch_size is 4, but with data.tile"),
        ({"cache": "tensor"}, "data.cache is 'tensor'"),
        ({"val_fraction": 1.5}, "data.val_fraction is 1.5"),
        ({"image_size": (0, 32)}, "data.image_size is"),
        ({"repeat_threshold": 0.5}, "data.repeat_threshold is 0.5, but data.balance is 'none'"),
        ({"balance": "sampler", "repeat_threshold": 2.0}, "data.repeat_threshold is 2.0; it is a fraction"),
        ({"augment": DetectionAugment(copy_paste=0.5)}, "data.augment.copy_paste is 0.5, but data.masks is false"),
        ({"source": "digits", "class_names": NAMES}, "data.class_names is set, but the digit scenes' classes are"),
        ({"source": "digits", "format": "coco"}, "data.format is set, but data.source is 'digits'"),
        ({"source": "digits", "image_size": (64, 32)}, "digit scenes are square"),
        ({"source": "digits", "cache": "decoded"}, "data.cache is 'decoded', but the digit scenes are drawn"),
    ],
)
def test_wrong_settings_are_refused(coco, settings, message):
    with pytest.raises(UserError, match=message):
        ready(**{"source": str(coco), **settings})


def test_wrong_files_are_refused(tmp_path):
    source = write_coco(tmp_path / "a", masks=False)
    with pytest.raises(
        ValueError, match=r"data.masks is true, but \d+ objects have a box and no mask:\n.*annotation 1 \('.*train0.png"
    ):
        ready(source=str(source), masks=True)
    save(source / "images/train1.png", (60, 40))
    with pytest.raises(
        ValueError, match=r"1 image\(s\) have another size .*\n.*train1.png: 60 x 40 annotated.*, turned"
    ):
        ready(source=str(source))
    save(source / "images/train1.png")
    (source / "images/train2.png").write_bytes(b"<html>")
    with pytest.raises(ValueError, match=r"1 image file\(s\) cannot be read:\n.*train2.png"):
        ready(source=str(source))
    data = ready(source=str(source), on_corrupt="skip")
    assert ([Path(p).name for p, _ in data.skipped], len(data.records["train"])) == (["train2.png"], 8)
    read = data.make_reader()
    save(source / "images/train1.png", (50, 50))
    with pytest.raises(ValueError, match=r"train1.png: the image is 50 x 50, its annotations .* 60 x 40 pixels"):
        read(data.records["train"][1])
    (source / "images/train1.png").unlink()
    with pytest.raises(ValueError, match=r"train1.png"):
        ready(source=str(source))
    bare = write_coco(tmp_path / "b")
    for split in COUNTS:
        path = bare / f"annotations/instances_{split}.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "annotations": []}))
    with pytest.raises(ValueError, match=r"None of the 9 training images .* has an object to learn"):
        ready(source=str(bare))
    rest = json.loads((write_coco(tmp_path / "c") / "annotations/instances_train.json").read_text())
    rest["annotations"] = [a for a in rest["annotations"] if a["category_id"] != 30]
    (tmp_path / "c/annotations/instances_train.json").write_text(json.dumps(rest))
    with pytest.warns(UserWarning, match=r"no object of 1 of 3 classes: \['cat'\]"):
        ready(source=str(tmp_path / "c"))


def test_good_data_say_nothing(coco):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ready(source=str(coco), masks=True)


def test_workers_import_neither_lightning_nor_timm(coco):
    dataset = ready(source=str(coco), augment=DetectionAugment(mosaic=1.0)).train_dataloader().dataset
    code = "import pickle, sys; data = pickle.loads(sys.stdin.buffer.read()); print(data[0, 0, 0]['image'].shape);"
    code += "print([m for m in ('pytorch_lightning', 'timm') if m in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", code], input=pickle.dumps(dataset), capture_output=True, check=True, cwd=HOUSE
    )
    assert result.stdout.decode().split("\n")[:2] == ["(64, 64, 3)", "[]"]


def test_every_argument_can_be_set_from_a_config(coco):
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(DetectionData, "data")
    augment = {"mosaic": 0.5, "canvas_sizes": [64, [64, 96]], "close_mosaic_epochs": 3, "copy_paste": 0.2}
    settings = {"source": str(coco), "tile": [64, 96], "resize": "native", "masks": True, "num_workers": 0}
    config = parser.parse_object({"data": {**settings, "batch_size": 2, "augment": augment}})
    data = parser.instantiate_classes(config).data
    data.setup("fit")
    assert isinstance(data.augment, DetectionAugment)
    assert data.augment.canvases() == [(64, 64), (64, 96)]
    assert (data.canvas(), data.tile_size) == ((64, 96), (64, 96))
    shapes = {tuple(islice(data.train_dataloader(), 1).__next__()["image"].shape) for _ in range(2)}
    assert shapes <= {(2, 3, 64, 64), (2, 3, 64, 96)}


def test_scenes_of_one_digit():
    data = DetectionData(scene_digits=1, num_scenes={"train": 8, "val": 4, "test": 0}, image_size=64, batch_size=4)
    data.num_workers = 0
    data.setup("fit")
    for batch in data.train_dataloader():
        assert batch["labels"].shape == (4, 1)
    with pytest.raises(ValueError, match="scene_digits is 0; a scene has at least 1 digit"):
        DetectionData(scene_digits=0)
    with pytest.raises(ValueError, match=r"scene_digits is set, but data\.source is 'x', not 'digits'"):
        DetectionData("x", scene_digits=1)
