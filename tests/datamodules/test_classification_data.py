"""What the datamodule of whole images computes from its records, against values computed by hand."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from datamodules import ClassificationData
from datamodules.annotations.records import Listing
from datamodules.classification import _keep_classes
from datamodules.unlabeled import hide_labels
from tests.conftest import write_images


def with_records(labels: list, names: list[str], **settings: object) -> ClassificationData:
    """A datamodule that was set up with training images of these labels."""
    data = ClassificationData(**settings)
    data.class_names = names
    data.records = {
        "train": [
            {"image": np.zeros((8, 8, 3), np.uint8), "label": label, "path": str(i)} for i, label in enumerate(labels)
        ]
    }
    return data


MULTI = [[1, 0, 0], [1, 1, 0], [1, 0, 0], [0, 0, 0]]  # three images of the first class, one of the second


def test_counts_and_weights_of_several_labels_an_image():
    data = with_records(MULTI, ["a", "b", "c"], balance="sampler")
    assert data.class_counts.tolist() == [3, 1, 0]
    # Rarity 1/3, 1, 1 (a class that never occurs counts as one image): the mean over an image's labels, or over all.
    assert data.sample_weights() == pytest.approx([1 / 3, (1 / 3 + 1) / 2, 1 / 3, (1 / 3 + 1 + 1) / 3])
    soft = with_records([[0.75, 0.25], [0.5, 0.5]], ["a", "b"], balance="sampler")
    assert soft.class_counts.tolist() == [1.25, 0.75]
    rarity = [1 / 1.25, 1]
    assert soft.sample_weights() == pytest.approx([0.75 * rarity[0] + 0.25, 0.5 * rarity[0] + 0.5])


def test_weights_of_the_loss():
    one = with_records([0, 0, 0, 1], ["a", "b", "c"], balance="loss").spec()
    # Images over (classes x images of the class), a class without images counted as one: 5 / (3 n).
    assert one["class_weights"] == pytest.approx([5 / 9, 5 / 3, 5 / 3])
    assert one["multi_label"] is False
    several = with_records(MULTI, ["a", "b", "c"], balance="loss").spec()
    # Images without the class over images with it.
    assert several["class_weights"] == pytest.approx([1 / 3, 3, 3])
    assert several["multi_label"] is True
    assert with_records([[0.75, 0.25]], ["a", "b"]).spec()["multi_label"] is False  # soft labels sum to 1
    always = with_records([[1, 0], [1, 1]], ["a", "b"], balance="loss").spec()
    assert always["class_weights"] == pytest.approx([1e-3, 1])  # never 0: its positives would not count


def test_labels_follow_the_chosen_classes():
    records = [
        {"path": "x", "label": 2},
        {"path": "y", "label": 1},
        {"path": "soft", "label": [0.1, 0.2, 0.7]},
    ]
    kept = _keep_classes(Listing(records, ["a", "b", "c"]), ["c", "a"])
    assert kept.class_names == ["c", "a"]
    assert [record["label"] for record in kept.records] == [0, [0.7, 0.1]]


@pytest.mark.parametrize(
    ("settings", "fraction"),
    [
        ({"image_size": 32}, 1.0),
        ({"image_size": 64}, 1.0),
        ({"image_size": (65, 64)}, 1.0),
        ({"image_size": 65}, 0.875),
        ({}, 0.875),  # files: 224
        ({"image_size": 224, "crop_pct": 0.9}, 0.9),
        ({"image_size": 32, "crop_pct": 0.5}, 0.5),
    ],
)
def test_the_center_crop_keeps_all_of_small_images(settings, fraction):
    data = ClassificationData("pictures", **settings)
    assert data.make_transform(train=False).crop_pct == data.make_transform(train=True).crop_pct == fraction


def test_the_canvas_is_that_of_arrays_or_224_for_files():
    data = with_records([0], ["a"])
    data.records["train"][0]["image"] = np.zeros((9, 7, 3), np.uint8)
    assert data.canvas() == (9, 7)
    data.records["train"][0]["image"] = "file.jpg"
    assert data.canvas() == (224, 224)
    assert ClassificationData(image_size=32).canvas() == (32, 32)
    assert ClassificationData(image_size=(32, 48)).canvas() == (32, 48)


@pytest.mark.parametrize("cache", ["none", "tensor"])
def test_weights_of_a_list_reach_their_images_in_the_batch(cache):
    root = write_images(Path("pictures"), {"a": 3, "b": 3}, (32, 32))
    paths = sorted(root.rglob("*.jpg"))
    weight = {path.resolve(): 0.5 + number for number, path in enumerate(paths)}
    with open("list.csv", "w", newline="") as file:
        rows = [(path, path.parent.name, "train", weight[path]) for path in weight]
        csv.writer(file).writerows([("path", "label", "split", "weight"), *rows])
    data = ClassificationData("list.csv", image_size=32, batch_size=6, cache=cache, num_workers=0, val_fraction=0)
    data.setup("fit")
    (batch,) = data.train_dataloader()
    assert batch["weight"].dtype == torch.float32
    assert batch["weight"].tolist() == [weight[Path(path).resolve()] for path in batch["path"]]
    assert batch["id"].tolist() == [[r["path"] for r in data.records["train"]].index(path) for path in batch["path"]]


# Hidden labels.


def test_hidden_labels_are_a_function_of_the_seed():
    """In the order of numpy's generator of seed and 1; the first of each class, or the first of all, are seen."""
    records = [{"path": str(i), "label": i % 2} for i in range(20)]

    def seen(seed: int, **how: int) -> list[str]:
        kept, hidden = hide_labels(records, ["a", "b"], seed, **{"per_class": None, "images": None, **how})
        assert [record for record in records if record in kept or record in hidden] == records
        assert len(kept) + len(hidden) == len(records)
        return [record["path"] for record in kept]

    order = np.random.default_rng([7, 1]).permutation(20).tolist()
    assert seen(7, images=6) == [str(i) for i in sorted(order[:6])]
    by_class = [[i for i in order if i % 2 == label][:3] for label in (0, 1)]
    assert seen(7, per_class=3) == [str(i) for i in sorted([*by_class[0], *by_class[1]])]
    assert seen(8, images=6) != seen(7, images=6)
    assert seen(8, per_class=3) != seen(7, per_class=3)
