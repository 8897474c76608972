"""SegmentationData: what a batch holds for every kind of source, class balance, evaluation sizes, and wrong inputs."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path

import jsonargparse
import numpy as np
import pytest
import torch
from PIL import Image

from datamodules import Augment, SegmentationData
from datamodules.annotations.mask_checks import MaskCheck
from datamodules.common.errors import UserError
from datamodules.readers.digits import digit_scene

HOUSE = Path(__file__).parents[2]
NAMES = ["sky", "road", "car"]
COLORS = {"sky": [10, 20, 30], "road": [128, 64, 128], "car": [[0, 0, 142], [0, 0, 70]]}
COUNTS = {"train": 6, "val": 3, "test": 2}
SIZE = (40, 56)


def truth(seed: int, size: tuple[int, int] = SIZE, classes: int = 3) -> np.ndarray:
    """A mask in which class 2 is in every third image only; a corner is ignored."""
    mask = np.random.default_rng(seed).integers(0, classes - (seed % 3 > 0), size).astype(np.uint8)
    mask[:5, :5] = 255
    return mask


def save(path: Path, pixels: np.ndarray, **options: object) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return str(path)


def write_set(root: Path, kind: str = "index", size: tuple[int, int] = SIZE) -> Path:
    """`root/images/SPLIT/i.png` and `root/masks/SPLIT/i.png`, with masks of a kind."""
    for split, count in COUNTS.items():
        for i in range(count):
            mask = truth(i, size)
            image = np.random.default_rng([100 + i, len(split)]).integers(0, 256, (*size, 3)).astype(np.uint8)
            save(root / f"images/{split}/{i}.png", image)
            if kind == "rgb":
                table = np.zeros((256, 3), np.uint8)
                table[[0, 1, 2]], table[255] = [[10, 20, 30], [128, 64, 128], [0, 0, 70]], [1, 2, 3]
                mask = table[mask]
            elif kind == "binary":
                mask = (mask == 1) * np.uint8(255)
            save(root / f"masks/{split}/{i}.png", mask)
    return root


def ready(stage: str = "fit", **settings: object) -> SegmentationData:
    data = SegmentationData(**{"num_workers": 0, "batch_size": 2, "image_size": 32, **settings})
    data.setup(stage)
    return data


@pytest.fixture(scope="module")
def index_set(tmp_path_factory) -> Path:
    return write_set(tmp_path_factory.mktemp("index"))


# What a batch holds.


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("index", {"class_names": NAMES}),
        ("index", {}),
        ("index", {"class_values": {"car": 2, "road": [1], "sky": 0}, "class_names": NAMES}),
        ("index", {"images": "images/{split}/{stem}.png", "masks": "masks/{split}/{stem}.png"}),
        ("rgb", {"colors": COLORS, "ignore_values": [[1, 2, 3]]}),
    ],
)
def test_every_kind_of_mask_gives_the_same_batches(tmp_path, kind, settings):
    data = ready(source=str(write_set(tmp_path, kind)), **settings)
    assert data.class_names == (NAMES if "class_names" in settings or kind == "rgb" else ["0", "1", "2"])
    assert {split: len(records) for split, records in data.records.items()} == COUNTS
    assert data.spec() == {"num_classes": 3, "in_chans": 3, "image_size": [32, 32], "multi_label": False}
    reader = pickle.loads(pickle.dumps(data.make_reader()))
    for i, record in enumerate(data.records["train"]):
        assert np.array_equal(reader(record)["mask"], truth(i))
    batch = next(iter(data.val_dataloader()))
    assert batch["image"].shape == (2, 3, *SIZE)
    assert batch["geometry"][0].tolist() == [*SIZE, 1, 1, 0, 0]
    assert batch["mask"].dtype == torch.uint8
    assert np.array_equal(batch["mask"], np.stack([truth(0), truth(1)]))
    assert np.array_equal(batch["target"][1]["mask"], truth(1))
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape == (2, 3, 32, 32)
    assert batch["mask"].shape == (2, 32, 32)
    assert set(batch["mask"].unique().tolist()) <= {0, 1, 2, 255}
    assert data.class_counts.tolist() == [sum(int((truth(i) == k).sum()) for i in range(6)) for k in range(3)]
    assert data.class_colors == ([[10, 20, 30], [128, 64, 128], [0, 0, 142]] if kind == "rgb" else None)


def test_binary_masks_have_two_classes_or_one_channel(tmp_path):
    source = str(write_set(tmp_path, "binary"))
    data = ready(source=source)
    assert (data.class_names, data.mask_format) == (["background", "foreground"], "binary")
    batch = next(iter(data.val_dataloader()))
    assert np.array_equal(batch["mask"][0], truth(0) == 1)
    data = ready(source=source, class_names=["road"], multi_label=True)
    batch = next(iter(data.val_dataloader()))
    assert batch["mask"].shape == (2, 1, *SIZE)
    assert np.array_equal(batch["mask"][0, 0], truth(0) == 1)
    assert (data.spec()["num_classes"], data.spec()["multi_label"]) == (1, True)


def test_one_file_a_class_gives_channels(tmp_path):
    for split, count in COUNTS.items():
        for i in range(count):
            save(tmp_path / f"{split}/{i}.jpg", np.zeros((*SIZE, 3), np.uint8))
            for k, name in enumerate(NAMES):
                if i != 1 or k:
                    save(tmp_path / f"{split}_{name}/{i}.png", (truth(i) == k) * np.uint8(255))
    data = ready(source=str(tmp_path), images="{split}/{stem}.jpg", masks="{split}_{class}/{stem}.png",
                 balance="loss")  # fmt: skip
    assert data.class_names == ["car", "road", "sky"]
    assert data.multi_label
    batch = next(iter(data.val_dataloader()))
    assert batch["mask"].shape == (2, 3, *SIZE)
    for i in range(2):
        expected = np.stack([truth(i) == 2, truth(i) == 1, (truth(i) == 0) & (i != 1)])
        assert np.array_equal(batch["mask"][i], expected)
        assert np.array_equal(batch["target"][i]["mask"], expected)
    assert next(iter(data.train_dataloader()))["mask"].shape == (2, 3, 32, 32)
    # Negatives over positives, as for labels of whole images.
    sky = sum(int((truth(i) == 0).sum()) for i in range(6) if i != 1)
    total = 6 * SIZE[0] * SIZE[1]
    np.testing.assert_allclose(data.spec()["class_weights"][2], (total - sky) / sky)


def test_digit_scenes_are_those_of_the_generator():
    data = ready(image_size=64, num_scenes={"train": 4, "test": 1}, batch_size=4)
    assert {split: len(records) for split, records in data.records.items()} == {"train": 4, "val": 200, "test": 1}
    reader = data.make_reader()
    for split in ("train", "val", "test"):
        scene = digit_scene(0, 0, split, 64)
        sample = reader(data.records[split][0])
        assert np.array_equal(sample["image"], scene["image"])
        assert np.array_equal(sample["mask"], scene["mask"])
    assert next(iter(data.train_dataloader()))["mask"].shape == (4, 64, 64)
    expected = sum(np.bincount(digit_scene(i, 0, "train", 64)["mask"].ravel(), minlength=11) for i in range(4))
    assert data.class_counts.tolist() == expected.tolist()
    assert SegmentationData().canvas() == (128, 128)
    assert len(data.class_names) == 11
    assert SegmentationData(**data.resolved()).class_names == data.class_names


def test_coco_is_rendered(tmp_path):
    write_coco(tmp_path)
    data = ready(source=str(tmp_path))
    assert data.class_names == ["background", "cup"]
    batch = next(iter(data.val_dataloader()))
    expected = np.zeros((30, 30), np.uint8)
    expected[5:15, 5:15] = 1
    assert np.array_equal(batch["mask"][0], expected)
    assert next(iter(data.train_dataloader()))["mask"].shape == (2, 32, 32)
    data = ready(source=str(tmp_path), multi_label=True)
    assert (data.class_names, data.spec()["multi_label"]) == (["cup"], True)
    assert np.array_equal(next(iter(data.val_dataloader()))["mask"][0, 0], expected)


def write_coco(root: Path, height: int = 30) -> None:
    for split in ("train", "val"):
        images = [{"id": i, "file_name": f"{split}{i}.png", "height": height, "width": 30} for i in range(2)]
        for image in images:
            save(root / "images" / image["file_name"], np.zeros((30, 30, 3), np.uint8))
        square = [[5, 5, 15, 5, 15, 15, 5, 15]]
        annotations = [
            {"id": i, "image_id": i, "category_id": 4, "bbox": [5, 5, 10, 10], "segmentation": square} for i in range(2)
        ]
        (root / "annotations").mkdir(exist_ok=True)
        content = {"images": images, "annotations": annotations, "categories": [{"id": 4, "name": "cup"}]}
        (root / f"annotations/instances_{split}.json").write_text(json.dumps(content))


def test_held_out_parts_do_not_depend_on_masks_or_order(tmp_path):
    for i in range(20):
        save(tmp_path / f"images/{i}.png", np.zeros((*SIZE, 3), np.uint8))
        save(tmp_path / f"masks/{i}.png", truth(i))
    data = ready(source=str(tmp_path), val_fraction=0.2, test_fraction=0.1)
    assert {split: len(records) for split, records in data.records.items()} == {"train": 14, "val": 4, "test": 2}
    again = ready(source=str(tmp_path), val_fraction=0.2, test_fraction=0.1)
    assert again.split_digest == data.split_digest
    assert ready(source=str(tmp_path), split_seed=1, val_fraction=0.2).split_digest != data.split_digest
    split = {name: [r["path"] for r in records] for name, records in data.records.items()}
    (tmp_path / "split.json").write_text(json.dumps(split))
    other = ready(source=str(tmp_path), split_file=str(tmp_path / "split.json"))
    assert other.split_digest == data.split_digest


def test_the_cache_of_decoded_images_gives_the_same_samples(index_set, tmp_path):
    plain, cached = (
        next(iter(ready(source=str(index_set), cache=cache, cache_dir=folder).train_dataloader()))
        for cache, folder in (("none", None), ("decoded", str(tmp_path)))
    )
    assert list(tmp_path.glob("*.bin"))
    assert torch.equal(plain["image"], cached["image"])
    assert torch.equal(plain["mask"], cached["mask"])


# Balance.


def test_rare_classes_are_drawn_more_often(index_set):
    data = ready(source=str(index_set), balance="sampler")
    weights = np.array(data.sample_weights())
    # Classes 0 and 1 are in all 6 images, class 2 in images 0 and 3.
    np.testing.assert_allclose(weights, [2 / 6 + 1 / 2 * (i % 3 == 0) for i in range(6)])
    part = weights / weights.sum()
    np.testing.assert_allclose(part[[0, 3]].sum(), 1 / 3 + 2 / 3 * 2 / 6)  # one draw in three asks for class 2
    assert ready(source=str(index_set)).sample_weights() is None


@pytest.mark.parametrize("check", [True, False])
def test_loss_weights_are_median_frequencies(index_set, check):
    data = ready(source=str(index_set), balance="loss", class_names=NAMES, check_masks=check)
    masks = [truth(i) for i in range(6)]
    frequency = []
    for k in range(3):
        holding = [m for m in masks if (m == k).any()]
        frequency.append(sum((m == k).sum() for m in holding) / sum((m != 255).sum() for m in holding))
    np.testing.assert_allclose(data.spec()["class_weights"], np.median(frequency) / np.array(frequency))
    assert "class_weights" not in ready(source=str(index_set)).spec()


# Evaluation.


def test_pictures_of_several_sizes_are_evaluated_one_by_one(tmp_path):
    source = write_set(tmp_path)
    assert ready(source=str(source)).eval_batch == 2
    assert ready(source=str(source), eval_batch_size=3).eval_batch == 3
    save(source / "images/val/1.png", np.zeros((20, 30, 3), np.uint8))
    save(source / "masks/val/1.png", truth(1, (20, 30)))
    data = ready(source=str(source))
    assert data.eval_batch == 1
    assert [tuple(b["mask"].shape) for b in data.val_dataloader()] == [(1, *SIZE), (1, 20, 30), (1, *SIZE)]
    with pytest.raises(
        ValueError, match=r"data.eval_batch_size is 2, .* size: .*val/0.png is 56 x 40 and .*val/1.png is 30 x"
    ):
        ready(source=str(source), eval_batch_size=2)
    data = ready(source=str(source), eval_batch_size=2, resize="letterbox")
    assert [tuple(b["mask"].shape) for b in data.val_dataloader()] == [(2, 32, 32), (1, 32, 32)]
    assert data.eval_batch == 2


def test_tiles_come_with_whole_pictures(index_set):
    data = ready(source=str(index_set), tile=64, tile_overlap=0.5)
    batch = next(iter(data.val_dataloader()))
    assert batch["image"].shape == (1, 3, *SIZE)
    assert batch["tiles"][0].shape == (1, 4)
    assert "tiles" not in next(iter(data.train_dataloader()))
    assert data.tile_size == (64, 64)


def test_a_saved_config_predicts_without_the_data(tmp_path):
    source = write_set(tmp_path / "data")
    for path in (source / "masks").rglob("*.png"):
        image = Image.open(path)
        image.putpalette([9, 8, 7, 6, 5, 4, 3, 2, 1, *range(240), *range(240), *range(240)][:768])
        image.save(path)
    trained = ready(source=str(source))
    resolved = trained.resolved()
    assert resolved["colors"] == {"0": [9, 8, 7], "1": [6, 5, 4], "2": [3, 2, 1]}
    assert trained.class_colors == list(resolved["colors"].values())
    again = ready(source=str(source), **{k: v for k, v in resolved.items() if k != "image_size"})
    assert again.class_colors == trained.class_colors
    assert again.resolved() | {"colors": resolved["colors"]} == resolved
    data = SegmentationData(source="gone", num_workers=0, **resolved)
    data.predict_source = str(source / "images/val")
    data.setup("predict")
    batches = list(data.predict_dataloader())
    assert [tuple(b["image"].shape) for b in batches] == [(3, 3, *SIZE)]
    assert "mask" not in batches[0]
    assert data.class_colors == trained.class_colors
    save(source / "images/val/9.png", np.zeros((8, 8, 3), np.uint8))
    data.setup("predict")
    assert [len(b["image"]) for b in data.predict_dataloader()] == [1] * 4


# Wrong inputs.


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"source": "nowhere"}, "data.source 'nowhere' does not exist .* a folder of images and masks"),
        ({"class_names": NAMES[:2]},
         r"4 of 11 masks cannot be used:\n.*train/0.png: value\(s\) 2 .* outside the classes \(0..1; ignored: 255\)"),
        ({"class_names": NAMES, "ignore_values": []}, r"11 of 11 masks .*value\(s\) 255 .*data.ignore_values"),
        ({"mask_format": "binary"}, "a binary mask holds 0 and one of .*, but this one holds 0, 1, 2, 255"),
        ({"mask_format": "rgb"}, "data.colors is missing: .*0.png is coded by colors"),
        ({"colors": {"a": [1, 2, 3]}, "mask_format": "rgb"}, r"3 color\(s\) not in data.colors: \[0, 0, 0\]|4 color"),
        ({"colors": {"0": [1, 2, 3]}}, r"masks cannot be used.*outside the classes \(0; ignored"),
        ({"class_values": {"a": 0, "b": [1, 2]}, "ignore_values": [0]}, "gives 0 to 'a', and data.ignore_values"),
        ({"masks": "masks/{split}/{stem}.png"}, "data.images and data.masks go together"),
        ({"images": "images/{split}/{stem}.png", "masks": "masks/{split}/{stem}_L.png"}, "matches no file below"),
        ({"num_scenes": {"train": 3}}, "data.num_scenes is set, but data.source is .* not 'digits'"),
        ({"tile_overlap": 0.5}, "data.tile_overlap is 0.5, but data.tile is not set"),
        ({"tile": 64, "resize": "letterbox"}, "data.tile is set, but data.resize is 'letterbox'"),
        ({"tile": 64, "eval_batch_size": 4}, "data.eval_batch_size is 4, but with data.tile one picture"),
        ({"tile": 50}, "data.tile is 50 x 50"),
        ({"image_size": 0}, "data.image_size is 0"),
        ({"val_fraction": 1.5}, "data.val_fraction is 1.5"),
        ({"cache": "tensor"}, "data.cache is 'tensor', which is for whole images only"),
        ({"batch_size": 7}, "data.batch_size is 7, but the training set has only 6 images"),
        ({"source": "digits", "class_names": NAMES}, "data.class_names is set, but the digit scenes' classes are"),
        ({"source": "digits", "masks": "{stem}.png"}, "data.masks is set, but data.source is 'digits'"),
        ({"source": "digits", "multi_label": True}, "leave them out for the digits"),
        ({"source": "digits", "num_scenes": {"train": 0}}, "data.num_scenes has 'train: 0'"),
        ({"source": "digits", "num_scenes": {"training": 9}}, "data.num_scenes has 'training: 9'; it takes train"),
        ({"source": "digits", "image_size": (64, 32)}, r"digit scenes are square: give one number"),
        ({"source": "digits", "cache": "decoded"}, "the digit scenes are drawn, not decoded"),
    ],
)  # fmt: skip
def test_wrong_settings_are_refused(index_set, settings, message):
    with pytest.raises(UserError, match=r"(?s)" + message):
        ready(**{"source": str(index_set), **settings})


def test_wrong_files_are_refused(tmp_path):
    source = write_set(tmp_path)
    mask = source / "masks/train/0.png"
    save(mask, truth(0, (50, 60)))
    with pytest.raises(ValueError, match=r"(?s)1 of 11 masks.*0.png: the mask is 60 x 50, its image .* 56 x 40 pixels"):
        ready(source=str(source))
    save(mask, np.ascontiguousarray(truth(0).T))
    with pytest.raises(ValueError, match=r"turned by 90 degrees.*EXIF"):
        ready(source=str(source))
    unchecked = ready(source=str(source), class_names=NAMES, check_masks=False).train_features_dataloader()
    with pytest.raises(ValueError, match=r"turned by 90 degrees.*EXIF"):  # it is found when it is read
        next(iter(unchecked))
    mask.write_bytes(b"<html>")
    with pytest.raises(ValueError, match=r"(?s)1 of 11 masks.*0.png: it holds HTML.*Repair or remove"):
        ready(source=str(source))
    data = ready(source=str(source), on_corrupt="skip")
    assert (len(data.records["train"]), [Path(p).name for p, _ in data.skipped]) == (5, ["0.png"])
    mask.unlink()
    with pytest.raises(ValueError, match=r"1 image\(s\) without a mask: .*images/train/0.png"):
        ready(source=str(source))
    (source / "images/train/0.png").unlink()
    assert len(ready(source=str(source)).records["train"]) == 5
    (source / "images/val/0.png").unlink()
    with pytest.raises(ValueError, match=r"1 mask\(s\) without an image: .*masks/val/0.png"):
        ready(source=str(source))
    black = tmp_path / "black"
    for i in range(3):
        save(black / f"images/{i}.png", np.zeros((9, 9, 3), np.uint8))
        save(black / f"masks/{i}.png", np.zeros((9, 9), np.uint8))
    with pytest.raises(ValueError, match=r"hold no class but 'background' .read as data.mask_format: binary"):
        ready(source=str(black), mask_format="binary", val_fraction=0)


def test_wrong_coco_is_refused(tmp_path):
    write_coco(tmp_path / "a", height=40)
    with pytest.raises(ValueError, match=r"4 of 4 masks .*\n.*annotations of .*train0.png: the mask is 30 x 40"):
        ready(source=str(tmp_path / "a"))
    for settings in ({"class_values": {"cup": 1}}, {"mask_format": "rgb"}, {"ignore_values": [0]}):
        with pytest.raises(
            ValueError, match=f"data.{next(iter(settings))} is set, but data.source '.*' is COCO's: it has"
        ):
            ready(source=str(tmp_path / "a"), **settings)


def test_workers_import_neither_lightning_nor_albumentations_for_masks(index_set):
    reader = ready(source=str(index_set)).make_reader()
    code = "import pickle, sys; pickle.loads(sys.stdin.buffer.read());"
    code += "print([m for m in ('pytorch_lightning', 'timm', 'albumentations') if m in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", code], input=pickle.dumps(reader), capture_output=True, check=True, cwd=HOUSE
    )
    assert result.stdout.decode().strip() == "[]"


def test_every_argument_can_be_set_from_a_config(index_set):
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(SegmentationData, "data")
    config = parser.parse_object(
        {
            "data": {
                "source": str(index_set),
                "colors": {"sky": [1, 2, 3], "road": [4, 5, 6], "car": [[7, 8, 9], [0, 0, 1]]},
                "class_values": {"sky": 0, "road": 1, "car": [2, 3]},
                "ignore_values": [255, 11],
                "tile": [64, 96],
                "image_size": [32, 48],
                "num_workers": 0,
                "batch_size": 2,
                "augment": {"preset": "light", "class_crop": 0.5},
            }
        }
    )
    data = parser.instantiate_classes(config).data
    data.setup("fit")
    assert isinstance(data.augment, Augment)
    assert (data.canvas(), data.tile_size, data.class_names) == ((32, 48), (64, 96), NAMES)
    assert data.class_colors == [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    config = parser.parse_object({"data": {"colors": {"a": [1, 2, 3]}, "ignore_values": [[1, 2, 3]], "source": "x"}})
    assert parser.instantiate_classes(config).data.ignore_values == [[1, 2, 3]]


def test_weights_of_multi_label_masks_count_as_many_negatives_as_positives():
    """Of 100 pixels of the first class's channel 20 are positive, of 50 of the second's none, counted as one."""
    data = SegmentationData("files", balance="loss", multi_label=True, class_names=["a", "b"])
    data.records = {"train": [{"path": "x"}, {"path": "y"}]}
    data._checks = {
        "x": MaskCheck(np.array([15, 0]), np.array([60, 20])),
        "y": MaskCheck(np.array([5, 0]), np.array([40, 30])),
    }
    assert data.spec()["class_weights"] == pytest.approx([80 / 20, 49 / 1])
    data.evaluates = True
    assert "class_weights" not in data.spec()
