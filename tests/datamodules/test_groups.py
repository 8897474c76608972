"""All images of a group are in one split, whatever the reader."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules import ClassificationData, DetectionData, SegmentationData
from datamodules.common.errors import UserError
from datamodules.splits import split_records

PATIENTS, EACH = 12, 3


def pictures(root: Path, names: list[str]) -> None:
    root.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(names):
        pixels = np.random.default_rng(i).integers(0, 255, (16, 16, 3), dtype=np.uint8)
        (root / name).parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(root / name)


def names() -> list[str]:
    return [f"p{k}_{i}.png" for k in range(PATIENTS) for i in range(EACH)]


def classes(root: Path) -> ClassificationData:
    pictures(root, [f"{'ab'[int(name[1]) % 2]}/{name}" for name in names()])
    return ClassificationData(str(root), val_fraction=0.25, group="{group}_*.png")


def table(root: Path) -> ClassificationData:
    pictures(root, names())
    rows = [f"{name},{'ab'[i % 2]},{name.partition('_')[0]}" for i, name in enumerate(names())]
    (root / "list.csv").write_text("\n".join(["path,label,patient", *rows]))
    return ClassificationData(str(root / "list.csv"), val_fraction=0.25, group="patient")


def mask_table(root: Path) -> SegmentationData:
    pictures(root, names())
    for name in names():
        Image.fromarray(np.eye(16, dtype=np.uint8)).save(root / f"mask_{name}")
    rows = [f"{name},mask_{name},{name.partition('_')[0]}" for name in names()]
    (root / "list.csv").write_text("\n".join(["path,mask,patient", *rows]))
    return SegmentationData(str(root / "list.csv"), val_fraction=0.25, group="patient")


def coco(root: Path) -> DetectionData:
    pictures(root / "images", [name.replace("_", "/") for name in names()])
    images = [{"id": i, "file_name": n.replace("_", "/"), "height": 16, "width": 16} for i, n in enumerate(names())]
    boxes = [{"id": i, "image_id": i, "category_id": 0, "bbox": [2, 2, 8, 8]} for i in range(len(images))]
    content = {"images": images, "annotations": boxes, "categories": [{"id": 0, "name": "disc"}]}
    (root / "all.json").write_text(json.dumps(content))
    image_root = str(root / "images")
    return DetectionData(str(root / "all.json"), image_root=image_root, val_fraction=0.25, group="{group}/*.png")


@pytest.mark.parametrize("make", [classes, table, mask_table, coco])
def test_a_group_is_in_one_split(tmp_path, make):
    records = make(tmp_path).list_records().records
    splits = defaultdict(set)
    for record in records:
        splits[record["group"]].add(record["split"])
    assert len(splits) == PATIENTS
    assert all(len(own) == 1 for own in splits.values())
    assert sum(record["split"] == "val" for record in records) == PATIENTS * EACH // 4


def test_fractions_come_out_right_for_groups_of_any_size():
    sizes = np.random.default_rng(0).integers(1, 30, 200)
    records = [
        {"path": f"{g}/{i}", "split": None, "group": str(g)} for g, size in enumerate(sizes) for i in range(size)
    ]
    split_records(records, 0.2, 0.1, seed=3)
    for split, part in (("val", 0.2), ("test", 0.1)):
        assert abs(sum(record["split"] == split for record in records) / len(records) - part) < 0.02
    again = [{**record, "split": None} for record in reversed(records)]
    split_records(again, 0.2, 0.1, seed=3)
    assert list(reversed(again)) == records


def test_what_is_refused(tmp_path):
    data = classes(tmp_path / "classes")
    data.group = "{group}-*.png"
    with pytest.raises(UserError, match=r"data.group is '\{group\}-\*.png', which does not fit the path .*p0_0.png"):
        data.list_records()
    data.group = "patient"
    with pytest.raises(UserError, match=r"'patient', a column, but data.source is no list"):
        data.list_records()
    data = table(tmp_path / "table")
    data.group = "person"
    with pytest.raises(UserError, match="no column 'person'"):
        data.list_records()
    pictures(tmp_path / "given", ["train/p1_0.png", "train/p2_0.png", "val/p1_1.png"])
    for split in ("train", "val"):
        (tmp_path / "given" / split).rename(tmp_path / split)
        (tmp_path / "given" / split / "a").parent.mkdir()
        (tmp_path / split).rename(tmp_path / "given" / split / "a")
    data = ClassificationData(str(tmp_path / "given"), group="{group}_*.png", batch_size=1)
    with pytest.raises(UserError, match=r"1 group\(s\) .* in two splits:\n  p1: .*0.png \(train\), .*1.png \(val\)"):
        data.setup("fit")
    with pytest.raises(UserError, match=r"data.group is set, but data.source is 'digits'"):
        SegmentationData("digits", group="{group}")
