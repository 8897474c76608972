"""Each kind of fault is found in a generated data set that has it, and nothing in those that have none."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from datamodules import ClassificationData, DetectionData, SegmentationData
from datamodules.checking.findings import KINDS
from datamodules.checking.labels import doubtful, label_findings
from datamodules.checking.whole import check

SIDE = 64
SPLITS = {"train": 7, "val": 2}


def picture(seed: int, height: int = SIDE, width: int = SIDE) -> np.ndarray:
    """Clouds of color, unlike those of another seed."""
    coarse = np.random.default_rng(seed).integers(20, 235, (8, 8, 3), dtype=np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def save(path: Path, pixels: np.ndarray, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


# Three data sets without a fault.


def folder(root: Path) -> None:
    for k, name in enumerate(("ant", "bee")):
        for split, number in SPLITS.items():
            for i in range(number):
                save(root / split / name / f"{i}.jpg", picture(1000 * k + 100 * len(split) + i), quality=95)


def boxes(root: Path) -> dict[str, Any]:
    """COCO's files, and what is in that of training."""
    for split, number in SPLITS.items():
        images, annotations = [], []
        for i in range(number):
            save(root / split / f"{i}.jpg", picture(100 * len(split) + i), quality=95)
            images.append({"id": i, "file_name": f"{split}/{i}.jpg", "height": SIDE, "width": SIDE})
            for k in range(2):
                for j in range(2):
                    bbox = [4 + 30 * k, 4 + 30 * j, 20 + i, 21 + j]
                    annotations.append(
                        {"id": len(annotations), "image_id": i, "category_id": k, "bbox": bbox, "area": 400}
                    )
        content = {"images": images, "annotations": annotations}
        content["categories"] = [{"id": k, "name": name} for k, name in enumerate(("ant", "bee"))]
        write(root, content, split)
    return read(root, "train")


def read(root: Path, split: str) -> dict[str, Any]:
    return json.loads((root / f"annotations/{split}.json").read_text())


def write(root: Path, content: dict[str, Any], split: str = "train") -> None:
    (root / "annotations").mkdir(exist_ok=True)
    (root / f"annotations/{split}.json").write_text(json.dumps(content))


def masks(root: Path) -> None:
    for split, number in SPLITS.items():
        for i in range(number):
            save(root / f"images/{split}/{i}.png", picture(100 * len(split) + i))
            mask = np.zeros((SIDE, SIDE), np.uint8)
            mask[10 : 30 + i, 10:30] = 1
            save(root / f"masks/{split}/{i}.png", mask)
    (root / "classes.txt").write_text("ground\nhouse")


# What is wrong with images: it is done to the file of a training image.


def rewritten(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    return lambda path: save(path, change(np.asarray(Image.open(path))), quality=95)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def rotate(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(path).save(path, exif=exif)


def deepen(path: Path) -> None:
    gray = np.asarray(Image.open(path).convert("L")).astype(np.uint16) * 257
    path.unlink()
    Image.fromarray(gray).save(path.with_suffix(".png"))


def see_through(path: Path) -> None:
    alpha = np.dstack([np.asarray(Image.open(path)), np.tri(SIDE, dtype=np.uint8) * 255])
    path.unlink()
    save(path.with_suffix(".png"), alpha)


def misname(path: Path) -> None:
    Image.open(path).save(path, format="PNG")


def of_first(name: str) -> Callable[[Path], None]:
    """The training image `0.jpg` of its class copied over another place."""
    return lambda path: shutil.copy(path, path.parents[2] / name)


def nearly(path: Path) -> None:
    save(path.parents[2] / "val/ant/1.jpg", cv2.resize(np.asarray(Image.open(path)), (50, 50)), quality=80)


IMAGES: list[tuple[str, Callable[[Path], Any]]] = [
    ("unreadable", truncate),
    ("unreadable", lambda path: path.write_text("no picture")),
    ("suffix", misname),
    ("rotated", rotate),
    ("depth", deepen),
    ("transparent", see_through),
    ("gray", lambda path: Image.open(path).convert("L").save(path)),
    ("small-image", rewritten(lambda pixels: pixels[:14])),
    ("long-image", rewritten(lambda pixels: np.tile(pixels, (1, 6, 1)))),
    ("dark", rewritten(lambda pixels: pixels // 32)),
    ("bright", rewritten(lambda pixels: 250 + pixels // 64)),
    ("uniform", rewritten(lambda pixels: np.full_like(pixels, 90))),
    ("duplicate-split", of_first("val/ant/1.jpg")),
    ("duplicate", of_first("train/ant/1.jpg")),
    ("contradiction", of_first("train/bee/1.jpg")),
    ("near-split", nearly),
    ("near", lambda path: Image.open(path).save(path.with_name("again.jpg"), quality=70)),
    ("refused", lambda path: shutil.rmtree(path.parents[1] / "bee")),
    ("class-unseen", lambda path: shutil.rmtree(path.parents[2] / "val/bee")),
    ("class-rare", lambda path: [own.unlink() for own in sorted(path.parent.iterdir())[:4]]),
]


@pytest.mark.parametrize(("kind", "spoil"), IMAGES, ids=[kind for kind, _ in IMAGES])
def test_faults_of_images_and_labels(tmp_path, kind, spoil):
    folder(tmp_path)
    spoil(tmp_path / "train/ant/0.jpg")
    found = check(ClassificationData(source=str(tmp_path), class_names=["ant", "bee"])).findings
    assert kind in {finding.kind for finding in found}
    allowed = {kind, "gray"} if kind in ("depth", "transparent") else {kind, "duplicate-split"}
    allowed |= {"duplicate"} if kind == "contradiction" else set()
    assert {finding.kind for finding in found} <= allowed


def box(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content["annotations"][0].update(values)


def scale(content: dict[str, Any]) -> None:
    for annotation in content["annotations"]:
        annotation["bbox"] = [value / SIDE for value in annotation["bbox"]]


def again(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content["annotations"].append({**content["annotations"][0], "id": 99, **values})


BOXES: list[tuple[str, Callable[[dict[str, Any]], Any], dict[str, Any]]] = [
    ("image-size", lambda content: content["images"][0].update(height=80), {}),
    ("fractions", scale, {}),
    ("box-not-finite", box(bbox=[4, 4, float("nan"), 9]), {}),
    ("box-inverted", box(bbox=[40, 4, -20, 20]), {}),
    ("box-empty", box(bbox=[40, 4, 0, 20]), {}),
    ("box-outside", box(bbox=[70, 4, 20, 20]), {}),
    ("box-beyond", box(bbox=[50, 4, 20, 20]), {}),
    ("box-tiny", box(bbox=[4, 4, 2, 2]), {}),
    ("box-vanishing", box(bbox=[4, 4, 5, 5]), {"image_size": 16}),
    ("box-huge", box(bbox=[0.5, 0.5, 63, 63]), {}),
    ("box-border", box(bbox=[0, 4, 20, 20]), {}),
    ("box-twice", again(), {}),
    ("box-two-classes", again(category_id=1), {}),
    ("box-shape", box(bbox=[1, 0.5, 62, 3]), {}),
    ("no-objects", lambda c: c.update(annotations=[a for a in c["annotations"] if a["image_id"]]), {}),
    ("object-mask", box(segmentation=[[4, 4, 9, 9]]), {"masks": True}),
    ("class-empty", lambda content: content["categories"].append({"id": 2, "name": "cat"}), {}),
    ("class-untrained", lambda content: [a.update(category_id=0) for a in content["annotations"]], {}),
    ("refused", box(bbox="left"), {}),
]


@pytest.mark.parametrize(("kind", "spoil", "arguments"), BOXES, ids=[kind for kind, _, _ in BOXES])
def test_faults_of_boxes(tmp_path, kind, spoil, arguments):
    content = boxes(tmp_path)
    if "masks" in arguments:
        for split in SPLITS:
            own = read(tmp_path, split)
            for a in own["annotations"]:
                x, y, w, h = a["bbox"]
                a["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
            write(tmp_path, own, split)
        content = read(tmp_path, "train")
    spoil(content)
    write(tmp_path, content)
    write(tmp_path, {**read(tmp_path, "val"), "categories": content["categories"]}, "val")
    found = check(DetectionData(source=str(tmp_path), **{"image_size": SIDE, **arguments})).findings
    assert {finding.kind for finding in found} == {kind}


def painted(change: Callable[[np.ndarray], Any]) -> Callable[[Path], None]:
    def spoil(root: Path) -> None:
        mask = np.asarray(Image.open(root / "masks/train/0.png")).copy()
        changed = change(mask)
        save(root / "masks/train/0.png", mask if changed is None else changed)

    return spoil


def place(value: int, rows: slice = slice(50, 52), columns: slice = slice(50, 52)) -> Callable[[np.ndarray], None]:
    return lambda mask: mask.__setitem__((rows, columns), value)


MASKS: list[tuple[str, Callable[[Path], Any]]] = [
    ("mask-values", painted(place(7, slice(0, 20)))),
    ("mask-unreadable", lambda root: truncate(root / "masks/train/0.png")),
    ("mask-size", painted(lambda mask: mask[:40])),
    ("mask-ignored", painted(lambda mask: np.full_like(mask, 255))),
    ("mask-one-class", painted(np.zeros_like)),
    ("mask-islands", painted(place(1))),
    ("refused", lambda root: (root / "masks/train/0.png").unlink()),
    ("class-empty", lambda root: (root / "classes.txt").write_text("ground\nhouse\ntree")),
]


@pytest.mark.parametrize(("kind", "spoil"), MASKS, ids=[kind for kind, _ in MASKS])
def test_faults_of_masks(tmp_path, kind, spoil):
    masks(tmp_path)
    spoil(tmp_path)
    found = check(SegmentationData(source=str(tmp_path))).findings
    assert {finding.kind for finding in found} == {kind}


def test_nothing_is_found_where_nothing_is_wrong(tmp_path):
    folder(tmp_path / "folder")
    boxes(tmp_path / "boxes")
    masks(tmp_path / "masks")
    for data in (
        ClassificationData(source=str(tmp_path / "folder")),
        DetectionData(source=str(tmp_path / "boxes"), image_size=SIDE),
        SegmentationData(source=str(tmp_path / "masks")),
    ):
        assert check(data).findings == []
        assert data.records == {}


def test_many_objects_and_the_pool(tmp_path):
    boxes(tmp_path)
    found = check(DetectionData(source=str(tmp_path), image_size=SIDE), max_detections=3).findings
    assert {finding.kind for finding in found} == {"many-objects"}
    shutil.copytree(tmp_path / "val", tmp_path / "pool")
    found = check(DetectionData(source=str(tmp_path), image_size=SIDE), pool=str(tmp_path / "pool")).findings
    assert [finding.kind for finding in found] == ["duplicate-pool"] * SPLITS["val"]


def test_labels_that_the_predictions_contradict():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, 300)
    probabilities = rng.dirichlet([1, 1, 1], 300) * 0.3 + 0.7 * np.eye(3)[truth]
    labels = truth.copy()
    labels[:12] = (truth[:12] + 1) % 3
    assert doubtful(probabilities, truth) == []
    found = label_findings(probabilities, labels, [str(i) for i in range(300)], "val", ["ant", "bee", "cat"])
    assert {int(finding.path) for finding in found} <= set(range(12))
    assert len(found) >= 6
    assert found[0].message.startswith(f"labeled {['ant', 'bee', 'cat'][labels[int(found[0].path)]]} (")


def test_groups_in_two_splits(tmp_path):
    folder(tmp_path)
    found = check(ClassificationData(source=str(tmp_path), group="{group}/*.jpg")).findings  # the classes' folders
    assert {finding.kind for finding in found} == {"group-split"}
    assert [finding.message.partition(" has")[0] for finding in found] == ["its group 'ant'", "its group 'bee'"]


def test_empty_tiles_are_no_leak(tmp_path):
    folder(tmp_path)
    for split in SPLITS:
        save(tmp_path / split / "ant/empty.png", np.full((SIDE, SIDE, 3), 40, np.uint8))
    found = check(ClassificationData(source=str(tmp_path))).findings
    assert {finding.kind for finding in found} == {"uniform"}


def test_every_kind_has_a_case():
    tested = {kind for kind, *_ in (*IMAGES, *BOXES, *MASKS)} | {
        "many-objects",
        "duplicate-pool",
        "group-split",
        "label",
    }
    assert set(KINDS) - tested == {"reader", "box-class", "label-overlooked", "label-place"}
