"""Scale jitter with a random cut, cuts around a class, native evaluation, and how annotations become a batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from datamodules.collate import collate
from datamodules.loaders import RecordDataset
from datamodules.transforms.augment import Augment
from datamodules.transforms.geometry import random_window
from datamodules.transforms.pipeline import Transform
from tests.datamodules.test_transforms import extent, scene

JITTER = Augment(crop="jitter", hflip=0.0)


@pytest.mark.parametrize("resize", ["native", "letterbox", "stretch"])
@pytest.mark.parametrize("shape", [(120, 91), (40, 300)])
def test_jitter_moves_everything_with_the_pixels(shape: tuple[int, int], resize: Any) -> None:
    transform = Transform((64, 96), augment=JITTER, resize=resize, dense=True, fill=0)
    sample = scene(shape)
    seen = 0
    for seed in range(60):
        out = transform(sample, seed)
        assert out["image"].shape == (64, 96, 3)
        assert out["mask"].shape == (64, 96)
        assert len(out["boxes"]) == len(out["labels"]) == len(np.unique(out["masks"][out["masks"] > 0]))
        for number, (box, label) in enumerate(zip(out["boxes"], out["labels"], strict=True), start=1):
            channel = 0 if label == 5 else 1
            drawn = out["image"][..., channel] > 127
            np.testing.assert_allclose(extent(drawn), box, atol=1.01)
            np.testing.assert_array_equal(out["masks"][0] == number, out["mask"] == channel + 1)
            assert (drawn != (out["mask"] == channel + 1)).mean() < 0.05
            seen += 1
    assert seen > 60


def test_scale_jitter_draws_from_its_range() -> None:
    shape, canvas = (200, 200), (100, 100)
    image = np.zeros((*shape, 3), np.uint8)
    image[:, 100:] = 255
    image[100:] ^= 128
    sides = []
    for seed in range(200):
        augment = Augment(crop="jitter", hflip=0.0, scale_jitter=(0.25, 0.5))
        out = Transform(canvas, augment=augment, resize="native", dense=True, fill=7)({"image": image}, seed)
        sides.append((out["image"] != 7).any((1, 2)).sum())
    assert 50 <= min(sides) < 56
    assert 94 < max(sides) <= 100
    assert abs(np.log(np.array(sides) / 200).mean() - np.log(np.sqrt(0.125))) < 0.03  # uniform in the logarithm


def test_windows_stay_inside_and_hold_their_pixel() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        shape = tuple(int(v) for v in rng.integers(5, 200, 2))
        canvas = tuple(int(v) for v in rng.integers(8, 100, 2))
        around = tuple(int(rng.integers(0, side)) for side in shape)
        scale = float(rng.uniform(0.3, 3))
        for span, side, room, place in zip(
            random_window(shape, canvas, (scale, scale), rng, around), shape, canvas, around, strict=True
        ):
            assert 0 <= span.start <= place < span.start + span.part <= side
            assert span.offset >= 0
            assert span.offset + span.size <= room
            assert span.size == room or span.part == side


def test_class_crop_shows_rare_classes_as_often_as_others() -> None:
    mask = np.zeros((300, 300), np.uint8)
    mask[200:204, 50:54] = 3
    mask[:, 299] = 255
    sample = {"image": np.zeros((300, 300, 3), np.uint8), "mask": mask}
    shown = {}
    for probability in (0.0, 1.0):
        augment = Augment(crop="jitter", scale_jitter=(1, 1), class_crop=probability)
        transform = Transform((32, 32), augment=augment, resize="native", dense=True)
        shown[probability] = np.mean([(transform(sample, seed)["mask"] == 3).any() for seed in range(300)])
    assert shown[0.0] < 0.05
    assert 0.4 < shown[1.0] < 0.6  # one of two classes is chosen; ignored pixels are no class


def test_native_evaluation_keeps_the_size_and_gives_windows() -> None:
    sample = scene((130, 91))
    out = Transform((64, 64), augment=None, resize="native", tile=(64, 64), tile_overlap=0.5)(sample)
    np.testing.assert_array_equal(out["image"], sample["image"])
    assert out["geometry"].tolist() == [130, 91, 1, 1, 0, 0]
    assert out["tiles"].shape == (4 * 2, 4)
    train = Transform((64, 64), augment=Augment(preset="none"), resize="native", dense=True)(sample, 0)
    assert train["image"].shape == (64, 64, 3)


def test_annotations_become_a_batch() -> None:
    """Boxes are padded; evaluation keeps what the original picture had."""
    records = [{"path": "a", "n": 2}, {"path": "b", "n": 0}]

    def read(record: dict[str, Any]) -> dict[str, Any]:
        sample = scene((40, 50))
        n = record["n"]
        sample |= {"boxes": sample["boxes"][:n], "labels": sample["labels"][:n], "iscrowd": np.zeros(n, np.uint8)}
        return {**sample, "path": record["path"], "masks": sample["masks"] * (n > 0)}

    dataset = RecordDataset(records, read, Transform((20, 30), augment=None, resize="stretch"))
    batch = collate([dataset[0, -1, 0], dataset[1, -1, 1]])
    assert batch["boxes"].shape == (2, 2, 4)
    assert batch["boxes"].dtype == torch.float32
    assert batch["labels"].tolist() == [[5, 7], [-1, -1]]
    assert batch["iscrowd"].dtype == torch.uint8
    assert batch["masks"].shape == (2, 1, 20, 30)
    assert batch["mask"].shape == (2, 20, 30)
    assert batch["target"][0]["mask"].shape == (40, 50)
    assert torch.equal(batch["target"][0]["boxes"], torch.from_numpy(scene((40, 50))["boxes"]))
    assert batch["target"][1]["boxes"].shape == (0, 4)
    training = RecordDataset(records, read, Transform((20, 30), augment=JITTER, dense=True))
    assert "target" not in collate([training[0, 0, 0]])


def test_several_labels_a_pixel() -> None:
    rng = np.random.default_rng(0)
    mask = rng.integers(0, 2, (40, 50, 6)).astype(np.uint8)
    mask[3, 4] = 255
    sample = {"image": rng.integers(0, 256, (40, 50, 3), dtype=np.uint8), "mask": mask, "path": "a"}
    transform = Transform((40, 50), augment=Augment(crop="none", hflip=1.0), resize="native", dense=True)
    batch = collate([{**transform(sample, 0), "id": 0}])
    assert batch["mask"].shape == (1, 6, 40, 50)
    np.testing.assert_array_equal(batch["mask"][0].numpy(), mask[:, ::-1].transpose(2, 0, 1))
    dataset = RecordDataset([sample], lambda r: r, Transform((64, 64), augment=None, resize="letterbox"))
    batch = collate([dataset[0, -1, 0]])
    assert batch["mask"].shape == (1, 6, 64, 64)
    assert (batch["mask"][0, :, 0] == 255).all()  # filled: no class is known there
    np.testing.assert_array_equal(batch["target"][0]["mask"].numpy(), mask.transpose(2, 0, 1))


def test_jitter_at_scale_1_is_evaluations_view():
    """Also where the two axes have scales of their own: 40 x 40 pixels on a canvas of 20 x 60."""
    image = np.random.default_rng(0).integers(0, 256, (40, 40, 3)).astype(np.uint8)
    augment = Augment(scale_jitter=(1, 1), hflip=0)
    for resize in ("stretch", "letterbox"):
        step = Transform((20, 60), augment=augment, resize=resize, dense=True)
        shown = Transform((20, 60), augment=None, resize=resize, dense=True)({"image": image})["image"]
        moved = step.jitter({"image": image}, np.random.default_rng(0), (20, 60))["image"]
        if resize == "stretch":
            np.testing.assert_array_equal(moved, shown)
        else:  # at a random place of the canvas
            assert (moved == 114).all(-1).sum() == (shown == 114).all(-1).sum()


def test_flips_of_boxes_are_independent():
    """A box in a corner comes to each of the four corners."""
    sample = {
        "image": np.zeros((32, 32, 3), np.uint8),
        "boxes": np.array([[0, 0, 8, 8]], np.float32),
        "labels": np.array([0]),
    }
    step = Transform((32, 32), augment=Augment(scale_jitter=(1, 1), vflip=0.5), resize="stretch", dense=True)
    corners = [tuple(step(sample, seed)["boxes"][0, :2].tolist()) for seed in range(80)]
    assert set(corners) == {(0, 0), (24, 0), (0, 24), (24, 24)}
    only = Transform((32, 32), augment=Augment(scale_jitter=(1, 1), hflip=0, vflip=1), resize="stretch", dense=True)
    assert only(sample, 0)["boxes"].tolist() == [[0, 24, 8, 32]]
