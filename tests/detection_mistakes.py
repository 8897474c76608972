"""The mistakes of detection, for test_mistakes: a config, what is replaced in it, and data with something wrong."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CONFIG = """\
model:
  class_path: Detection
  init_args:
    detector: fcos
    backbone: test_resnet
data:
  class_path: DetectionData
  init_args:
    source: data/boxes
    image_size: 64
    batch_size: 4
    num_workers: 0
trainer:
  max_epochs: 1
  accelerator: cpu
  enable_progress_bar: false
  enable_model_summary: false
  wandb: {mode: "off"}
"""
SOURCE, SIZE, NET = "data/boxes", "image_size: 64", "backbone: test_resnet"
#: Mistake, what is replaced, by what, exit status.
CASES: list[tuple[str, str, str, int]] = [
    # Data and settings.
    ("box outside the image", SOURCE, "data/box_outside", 1),
    ("box without area", SOURCE, "data/box_flat", 1),
    ("box of an unknown class", SOURCE, "data/box_class", 1),
    ("box of an unknown image", SOURCE, "data/box_image", 1),
    ("annotated image that is not there", SOURCE, "data/box_file", 1),
    ("image of another size than its boxes were made for", SOURCE, "data/box_size", 1),
    ("truncated annotations", SOURCE, "data/box_broken", 1),
    ("YOLO text in pixels", SOURCE, "data/yolo_pixels", 1),
    ("YOLO class that has no name", SOURCE, "data/yolo_class", 1),
    ("VOC file that is no XML", SOURCE, "data/voc_broken", 1),
    ("no annotations at all", SOURCE, "data/good", 1),
    ("class that the data do not have", SIZE, "class_names: [disc, sqare]", 2),
    ("masks asked of boxes alone", SIZE, "masks: true", 2),
    ("copy-paste without masks", SIZE, "augment: {copy_paste: 0.5}", 2),
    ("end of the mosaic without a mosaic", SIZE, "augment: {close_mosaic_epochs: 3}", 2),
    ("tiles on a canvas", SIZE, "tile: 64", 2),
    ("repeat threshold without the sampler", SIZE, "repeat_threshold: 0.3", 2),
    ("setting of another format", SIZE, "voc_difficult: keep", 2),
    # The model.
    ("unknown detector", "fcos", "fcoss", 2),
    ("detector that needs masks", "fcos", "mask_rcnn", 2),
    ("misspelt argument of the detector", NET, f"{NET}\n    detector_args: {{head_chanels: 64}}", 2),
    ("argument of another detector", NET, f"{NET}\n    detector_args: {{proposals: [100, 100]}}", 2),
    ("argument of the detector out of range", "fcos", "yolo\n    detector_args: {width: 33}", 2),
    ("strides that do not double", NET, f"{NET}\n    detector_args: {{strides: [8, 32]}}", 2),
    ("threshold below what is kept", NET, f"{NET}\n    score_threshold: 0.1\n    min_score: 0.2", 2),
    ("overlap out of range", NET, f"{NET}\n    nms_iou: 60", 2),
    ("range of sizes the wrong way round", NET, f"{NET}\n    size_ranges: {{tiny: [256, 0]}}", 2),
    ("class weights of another number than classes", NET, f"{NET}\n    class_weights: [1, 2, 3]", 2),
    ("class weights that have no place", "fcos", "rtdetr\n    class_weights: [1, 2]", 2),
]


def write_boxes(root: Path) -> None:
    """Folders of pictures and boxes of two classes, each with something wrong, but for the first."""
    rng = np.random.default_rng(0)
    annotations: dict[str, Any] = {
        "images": [{"id": i, "file_name": f"{i}.png", "height": 40, "width": 48} for i in range(4)],
        "categories": [{"id": 1, "name": "disc"}, {"id": 2, "name": "square"}],
        "annotations": [
            {"id": i + 1, "image_id": i, "category_id": 1 + i % 2, "bbox": [4, 5, 20, 10], "area": 200, "iscrowd": 0}
            for i in range(4)
        ],
    }
    changes: dict[str, Callable[[dict[str, Any]], object]] = {
        "boxes": lambda a: None,
        "box_outside": lambda a: a["annotations"][2].update(bbox=[40, 5, 30, 10]),
        "box_flat": lambda a: a["annotations"][1].update(bbox=[4, 5, 20, 0]),
        "box_class": lambda a: a["annotations"][0].update(category_id=9),
        "box_image": lambda a: a["annotations"][0].update(image_id=77),
        "box_file": lambda a: a["images"][1].update(file_name="nothere.png"),
        "box_size": lambda a: a["images"][3].update(height=48, width=40),
        "box_broken": lambda a: None,
    }
    for name, change in changes.items():
        for split in ("train", "val"):
            changed = copy.deepcopy(annotations)
            if split == "train":
                change(changed)
            (root / name / split).mkdir(parents=True)
            for i in range(4):
                image = Image.fromarray(rng.integers(0, 256, (40, 48, 3), dtype=np.uint8))
                image.save(root / name / split / f"{i}.png")
            text = json.dumps(changed)
            file = root / name / "annotations" / f"instances_{split}.json"
            file.parent.mkdir(exist_ok=True)
            file.write_text(text[:-40] if name == "box_broken" and split == "train" else text)
    for name, line in (("yolo_pixels", "0 14 10 20 10"), ("yolo_class", "5 0.5 0.5 0.2 0.2")):
        for split in ("train", "val"):
            for folder in ("images", "labels"):
                (root / name / folder / split).mkdir(parents=True)
            for i in range(2):
                image = Image.fromarray(rng.integers(0, 256, (40, 48, 3), dtype=np.uint8))
                image.save(root / name / "images" / split / f"{i}.png")
                bad = i == 1 and split == "train"
                text = f"0 0.5 0.5 0.4 0.4\n{line}\n" if bad else "1 0.5 0.5 0.4 0.4\n"
                (root / name / "labels" / split / f"{i}.txt").write_text(text)
        (root / name / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [disc, square]\n")
    for folder in ("Annotations", "JPEGImages"):
        (root / "voc_broken" / folder).mkdir(parents=True)
    Image.new("RGB", (48, 40)).save(root / "voc_broken" / "JPEGImages" / "a.jpg")
    (root / "voc_broken" / "Annotations" / "a.xml").write_text("<annotation><object></annotation>")
