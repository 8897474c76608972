"""Soft labels of pixels: exact in their file, moved as the mask is, corrected by hand where the mask says so."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from datamodules import SegmentationData
from datamodules.annotations.soft_masks import probabilities, read_soft_mask, write_soft_mask
from datamodules.decoding.headers import ImageError
from datamodules.transforms.augment import Augment
from pipelines.outputs.sheets import save_png
from tasks.noisy_student import join_batches
from tasks.segmentation.postprocess import labels_of

NAMES = ["ant", "bee", "cat", "dog"]


def planes_of(scores: np.ndarray) -> np.ndarray:
    return labels_of(torch.from_numpy(scores), False, 2).numpy()


def some_scores(shape: tuple[int, int], seed: int = 0) -> np.ndarray:
    logits = np.random.default_rng(seed).normal(0, 3, (4, *shape)).astype(np.float32)
    return np.exp(logits) / np.exp(logits).sum(0)


def test_two_classes_and_their_probabilities_are_kept(tmp_path):
    scores = some_scores((9, 7))
    planes = planes_of(scores)
    write_soft_mask(planes, tmp_path / "soft" / "a.png")
    assert (read_soft_mask(tmp_path / "soft" / "a.png") == planes).all()
    soft = probabilities(planes[0], planes, 4).astype(np.float64)
    assert soft.sum(0) == pytest.approx(1, abs=2e-3)
    order = np.argsort(-scores, 0)
    for place in order[:2]:
        kept, true = (np.take_along_axis(x, place[None], 0) for x in (soft, scores))
        assert kept == pytest.approx(true, abs=5e-3)
    rest = [np.take_along_axis(soft, place[None], 0) for place in order[2:]]
    assert rest[0] == pytest.approx(rest[1])


def test_two_classes_of_one_score_are_each_others_rest():
    planes = labels_of(torch.tensor([[[0.7, 0.25]]]), False, 2).numpy()
    assert planes.tolist() == [[[1, 0]], [[178, 191]], [[0, 1]], [[76, 63]]]
    assert probabilities(planes[0], planes, 2)[1, 0].tolist() == pytest.approx([0.7, 0.25], abs=5e-3)


def test_a_class_corrected_by_hand_has_all_of_the_probability():
    planes = planes_of(some_scores((1, 3)))
    mask = planes[0].copy()
    mask[0, 1] = (mask[0, 1] + 1) % 4
    mask[0, 2] = 255
    soft = probabilities(mask, planes, 4)
    assert soft[:, 0, 1].tolist() == [float(k == mask[0, 1]) for k in range(4)]
    assert soft[:, 0, 0].max() == pytest.approx(planes[1, 0, 0] / 255, abs=2e-3)


@pytest.fixture
def pictures(tmp_path) -> Path:
    """A list of pictures whose red channel is the class times 60, with soft masks."""
    with open(tmp_path / "list.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "mask", "soft_mask", "split"])
        for i, split in enumerate(("train", "train", "val")):
            planes = planes_of(some_scores((20, 24), i))
            save_png(np.repeat(planes[0][..., None] * np.uint8(60), 3, 2), tmp_path / f"{i}.png")
            save_png(planes[0], tmp_path / f"m{i}.png")
            write_soft_mask(planes, tmp_path / f"s{i}.png")
            rows.writerow([f"{i}.png", f"m{i}.png", f"s{i}.png", split])
    return tmp_path / "list.csv"


def data_of(pictures: Path) -> SegmentationData:
    augment = Augment(preset="light", hflip=0.5, vflip=0.5, scale_jitter=(0.7, 1.6), class_crop=0.5)
    return SegmentationData(
        str(pictures),
        class_names=NAMES,
        mask_format="index",
        image_size=16,
        interpolation="nearest",
        augment=augment,
        batch_size=2,
        num_workers=0,
        seed=0,
    )


def test_soft_masks_move_with_the_picture(pictures):
    data = data_of(pictures)
    data.setup("fit")
    seen = 0
    for epoch in range(4):
        loader = data.train_dataloader()
        loader.batch_sampler.set_epoch(epoch)
        for batch in loader:
            soft, mask, red = batch["soft_mask"].float(), batch["mask"], batch["image"][:, 0]
            assert (batch["soft_mask"].dtype, soft.shape) == (torch.float16, (2, 4, 16, 16))
            known = mask != 255
            assert (soft.argmax(1) == mask)[known].all()
            assert (red == mask * 60)[known].all()
            seen += int(known.sum())
            assert "masks" not in batch
    assert seen > 1000
    (batch,) = data.val_dataloader()
    assert "soft_mask" not in batch["target"][0]
    assert "masks" not in batch["target"][0]


def test_a_wrong_soft_mask_is_named(pictures):
    data = data_of(pictures)
    data.setup("fit")
    read, record = data.make_reader(), data.records["train"][0]
    write_soft_mask(np.zeros((4, 24, 20), np.uint8), Path(record["soft_mask"]))
    with pytest.raises(ValueError, match=r"s\d.png: the mask is 20 x 24, its image .* 24 x 20 pixels"):
        read(record)
    save_png(np.zeros((20, 24), np.uint8), record["soft_mask"])
    with pytest.raises(ImageError, match=r"s\d.png: a soft mask is a PNG of four 8-bit channels"):
        read(record)


def test_a_labelled_half_with_hard_masks_is_joined_as_one_hot():
    hard = {"image": torch.zeros(1, 3, 1, 3), "mask": torch.tensor([[[1, 0, 255]]], dtype=torch.uint8)}
    soft = {**hard, "soft_mask": torch.full((1, 2, 1, 3), 0.5, dtype=torch.float16)}
    both = join_batches(hard, soft, 2)["soft_mask"]
    assert both.tolist() == [[[[0, 1, 0]], [[1, 0, 0]]], [[[0.5] * 3]] * 2]
    assert (join_batches(soft, hard, 2)["soft_mask"] == both.flip(0)).all()
