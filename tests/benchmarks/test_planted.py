"""Pictures whose class is given away by a patch: our datamodules read them, and the evidence is where it says."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest

from benchmarks.planted import NAMES, main, mass_on, pattern, read_evidence, write_planted
from datamodules import ClassificationData, DetectionData, SegmentationData
from datamodules.decoding.images import read_image

DATA = {"classes": ClassificationData, "boxes": DetectionData, "masks": SegmentationData}


@pytest.mark.parametrize("task", DATA)
def test_the_evidence_is_where_it_says(task, tmp_path):
    source = write_planted(tmp_path / task, task, {"train": 12, "val": 6}, side=64)
    names = {"class_names": ["background", *NAMES]} if task == "masks" else {}
    data = DATA[task](str(source), image_size=64, cache="none", num_workers=0, **names)
    data.setup("fit")
    assert [len(data.records[split]) for split in ("train", "val")] == [12, 6]
    evidence = read_evidence(source)
    for record in data.records["train"]:
        image = read_image(record["image"])
        for place, (x1, y1, x2, y2) in enumerate(evidence[record["path"].rpartition("/")[2]].tolist()):
            label = record["labels"][place] if task == "boxes" else record.get("label")
            if task == "masks":
                label = int(cv2.imread(record["mask"], cv2.IMREAD_UNCHANGED)[y1, x1]) - 1
            np.testing.assert_array_equal(image[y1:y2, x1:x2], pattern(int(label), y2 - y1))
            if task == "boxes":
                box = record["boxes"][place]
                assert box[0] <= x1
                assert box[1] <= y1
                assert box[2] >= x2
                assert box[3] >= y2


def test_the_command_writes_the_same_pictures_for_a_seed(tmp_path):
    for name in ("a", "b"):
        assert main(["masks", str(tmp_path / name), "--train", "2", "--val", "1", "--side", "48"]) == 0
    files = [sorted(path for path in (tmp_path / name).rglob("*.png")) for name in ("a", "b")]
    assert len(files[0]) == 6
    assert [path.read_bytes() for path in files[0]] == [path.read_bytes() for path in files[1]]


def test_mass_on_a_patch():
    heat = np.full((8, 8), -1.0)
    heat[2:4, 2:4] = 3.0
    heat[0, 0] = 4.0
    assert mass_on(heat, [[2, 2, 4, 4]]) == pytest.approx(12 / 16)
    assert math.isnan(mass_on(np.zeros((8, 8)), [[2, 2, 4, 4]]))
