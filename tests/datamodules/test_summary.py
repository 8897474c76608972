"""What a run says of its data."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from datamodules import ClassificationData, SegmentationData
from datamodules.summary import held, most_objects, objects_in
from tests.conftest import write_images


def test_images_of_each_class_and_split(folder):
    data = ClassificationData("pictures", batch_size=2)
    data.setup("fit")
    found = held(data)
    assert found is not None
    assert found.lines() == [
        "pictures: train 16, val 6, test 6 images, 2 classes, images of 48 x 40",
        "images    train      val     test",
        "ant           8        3        3",
        "bee           8        3        3",
    ]
    assert objects_in(data.records["val"]) is None


def test_many_classes_are_told_by_the_rarest_and_the_most_frequent(tmp_path):
    write_images(tmp_path / "many", {f"c{k:02d}": 2 + k for k in range(13)})
    data = ClassificationData("many", val_fraction=0.0, batch_size=2)
    data.setup("fit")
    found = held(data)
    assert found is not None
    assert found.lines()[1:] == ["train: from 2 (c00) to 14 (c12) images a class"]


def test_soft_labels_count_by_their_mass():
    image = np.zeros((4, 6, 3), np.uint8)
    records = [{"image": image, "label": label} for label in ([0.25, 0.75], [1.0, 0.0])]
    data = SimpleNamespace(class_names=["a", "b"], source="list.csv", records={"train": records})
    assert held(data).counts["train"].tolist() == [1.25, 0.75]  # type: ignore[union-attr]
    assert held(data).sizes == "6 x 4"  # type: ignore[union-attr]


def test_boxes_without_crowds():
    def record(labels, crowds):
        return {"image": None, "labels": np.array(labels, int), "iscrowd": np.array(crowds, np.uint8)}

    records = {"train": [record([0, 1, 1], [0, 0, 1]), record([], [])], "val": [record([1], [1])], "pool": [{}] * 3}
    data = SimpleNamespace(class_names=["a", "b"], source="x", records=records)
    found = held(SimpleNamespace(labeled=data))  # the labeled half of a semi-supervised set
    assert found is not None
    assert (found.unit, found.pool) == ("boxes", 3)
    assert {split: counts.tolist() for split, counts in found.counts.items()} == {"train": [1, 1], "val": [0, 0]}
    assert (most_objects(records["train"]), objects_in(records["val"])) == (2, 0)


def test_data_of_another_library_and_scenes_that_are_drawn_have_no_table():
    assert held(SimpleNamespace()) is None
    data = SegmentationData("digits", batch_size=2, num_scenes={"train": 4, "val": 2, "test": 0})
    data.setup("fit")
    found = held(data)
    assert found is not None
    assert found.lines() == ["digits: train 4, val 2 images, 11 classes"]
