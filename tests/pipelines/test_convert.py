"""`convert` goes from any format to any other and back, loses nothing that both can hold, and says what it loses."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from datamodules.common import rle
from datamodules.readers.box_sources import read_boxes
from pipelines.commands.convert import convert, main
from pipelines.outputs.formats import coco, voc, yolo

SIZES = [(40, 60), (123, 77), (300, 500), (64, 64)]
NAMES = {4: "zebra", 7: "ant", 20: "never seen", 31: "two words"}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """COCO with gaps in its ids, boxes between pixels, polygons, images without objects, a class without boxes."""
    rng = np.random.default_rng(0)
    root = tmp_path / "source"
    for split, first in (("train", 0), ("test", 9)):
        images, annotations = [], []
        (root / "images" / split).mkdir(parents=True)
        for k, (height, width) in enumerate(SIZES):
            name = f"{split} {k}.png"
            cv2.imwrite(str(root / "images" / split / name), np.full((height, width, 3), 9, np.uint8))
            images.append({"id": first + 10 * k, "file_name": name, "height": height, "width": width})
            for _ in range(0 if k == 3 else 6):
                corners = rng.uniform(0, 1, (5, 2)).round(2) * (width, height)
                low, size = corners.min(0), np.ptp(corners, axis=0)
                annotations.append({"id": 3 * len(annotations) + 5, "image_id": first + 10 * k, "iscrowd": 0}
                    | {"bbox": [*low.tolist(), *size.tolist()], "category_id": int(rng.choice([4, 7, 31]))}
                    | {"area": float(np.prod(size)) / 2, "segmentation": [corners.ravel().tolist()]})  # fmt: skip
        data = {"images": images, "annotations": annotations}
        data["categories"] = [{"id": i, "name": n} for i, n in NAMES.items()]
        (root / "annotations").mkdir(exist_ok=True)
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(data))
    return root


def alter(source: Path, split: str, number: int, **values) -> None:
    file = source / "annotations" / f"instances_{split}.json"
    data = json.loads(file.read_text())
    data["annotations"][number] |= values
    file.write_text(json.dumps(data))


def assert_equal(first: Path, second: Path, *, masks: bool, areas: bool) -> None:
    one, two = read_boxes(first), read_boxes(second)
    assert one.class_names == two.class_names
    assert len(one.records) == len(two.records)
    by_name = {Path(r["path"]).name: r for r in two.records}
    for a in one.records:
        b = by_name[Path(a["path"]).name]
        assert [a[k] for k in ("split", "height", "width")] == [b[k] for k in ("split", "height", "width")]
        np.testing.assert_allclose(a["boxes"], b["boxes"], atol=2e-3)
        np.testing.assert_array_equal(a["labels"], b["labels"])
        np.testing.assert_array_equal(a["iscrowd"], b["iscrowd"])
        if areas:
            np.testing.assert_allclose(a["area"], b["area"], atol=1e-2)
        if masks and a["segmentation"]:
            for p, q in zip(a["segmentation"], b["segmentation"], strict=True):
                np.testing.assert_allclose(p[0], q[0], atol=2e-3)
        assert Path(b["path"]).read_bytes() == Path(a["path"]).read_bytes()


def test_round_trips(source, tmp_path):
    steps = [("coco", "c"), ("voc", "v"), ("yolo", "y"), ("coco", "back")]
    at = source
    for to, name in steps:
        convert(at, to, tmp_path / name)
        at = tmp_path / name
        assert_equal(source, at, masks=to == "coco" and name == "c", areas=name == "c")
    assert read_boxes(at).class_names == ["zebra", "ant", "never seen", "two words"]
    assert sum(not len(r["boxes"]) for r in read_boxes(at).records) == 2

    convert(source, "yolo", tmp_path / "y2")
    convert(tmp_path / "y2", "coco", tmp_path / "c2")
    assert_equal(source, tmp_path / "y2", masks=True, areas=False)
    assert_equal(source, tmp_path / "c2", masks=True, areas=False)
    assert_equal(tmp_path / "y2", tmp_path / "c2", masks=True, areas=True)


def test_coco_to_coco_keeps_ids_and_selects_splits(source, tmp_path):
    lines = convert(source, "coco", tmp_path / "c", splits=["test"])
    assert lines == [f"{tmp_path / 'c'}: 4 images (test 4; 1 without objects), 18 boxes, 4 classes as coco"]
    old, new = (
        json.loads((root / "annotations" / "instances_test.json").read_text()) for root in (source, tmp_path / "c")
    )
    for key in ("image_id", "id", "iscrowd"):
        assert [a[key] for a in old["annotations"]] == [a[key] for a in new["annotations"]]
    assert [i["id"] for i in old["images"]] == [i["id"] for i in new["images"]]
    assert [a["segmentation"] for a in old["annotations"]] == [a["segmentation"] for a in new["annotations"]]
    from pycocotools.coco import COCO

    assert len(COCO(str(tmp_path / "c" / "annotations" / "instances_test.json")).getAnnIds()) == 18


def test_losses_are_said(source, tmp_path):
    from pycocotools import mask

    packed = mask.encode(np.asfortranarray(np.eye(40, 60, dtype=np.uint8)))
    packed["counts"] = packed["counts"].decode()
    alter(source, "train", 0, segmentation=packed, bbox=[0, 0, 40, 40])
    alter(source, "train", 1, segmentation=[[1, 1, 9, 1, 9, 9], [20, 20, 30, 20, 30, 30]], bbox=[1, 1, 29, 29])
    alter(source, "train", 2, iscrowd=1)
    alter(source, "train", 3, segmentation=[], bbox=[5, 6, 1, 1])
    (lost,) = convert(source, "voc", tmp_path / "v")[1:]
    assert lost == (
        "not kept as it was: 35 masks; 1 crowd regions became difficult objects; 1 boxes of one pixel, which will read"
        " as boxes without area; 8 images' and their annotations' and categories' ids"
    )
    assert read_boxes(tmp_path / "v").records[0]["iscrowd"].tolist() == [0, 0, 1, 0, 0, 0]
    (lost,) = convert(source, "yolo", tmp_path / "y")[1:]
    assert "1 crowd regions were left out; 2 masks of several parts or run lengths became one polygon each;" in lost
    record = read_boxes(tmp_path / "y").records[0]
    assert [mask is None for mask in record["segmentation"]] == [False, False, True, False, False]
    np.testing.assert_allclose(record["boxes"][:3], [[0, 0, 40, 40], [1, 1, 30, 30], [5, 6, 6, 7]], atol=1e-4)
    convert(source, "coco", tmp_path / "c")
    assert read_boxes(tmp_path / "c").records[0]["segmentation"][0] == packed


@pytest.mark.parametrize("one_based", [True, False])
def test_voc_holds_pixels_from_one_or_edges_from_zero(source, tmp_path, one_based):
    alter(source, "train", 0, bbox=[0, 0, 60, 40])
    convert(source, "voc", tmp_path / "v", voc_one_based=one_based)
    xml = (tmp_path / "v" / "Annotations" / "train 0.xml").read_text()
    assert f"<xmin>{int(one_based)}</xmin>" in xml
    assert "<xmax>60</xmax>" in xml
    record = read_boxes(tmp_path / "v", voc_one_based=one_based).records[0]
    assert record["boxes"][0].tolist() == [0, 0, 60, 40]


@pytest.mark.parametrize(
    ("flags", "first"), [([], 1), (["--voc-one-based", "false"], 0), (["--voc_one_based=false"], 0)]
)
def test_the_command_writes_voc_from_one_unless_told_otherwise(source, tmp_path, flags, first):
    alter(source, "train", 0, bbox=[0, 0, 60, 40])
    assert main(["--source", str(source), "--to", "voc", "--output", str(tmp_path / "v"), *flags]) == 0
    assert f"<xmin>{first}</xmin>" in (tmp_path / "v" / "Annotations" / "train 0.xml").read_text()


def test_images_are_linked_copied_or_left(source, tmp_path):
    convert(source, "yolo", tmp_path / "link")
    convert(source, "voc", tmp_path / "copy", images="copy")
    lines = convert(source, "coco", tmp_path / "none", images="none")
    assert (tmp_path / "link" / "images" / "train" / "train 0.png").is_symlink()
    copied = tmp_path / "copy" / "JPEGImages" / "train 0.png"
    assert copied.is_file()
    assert not copied.is_symlink()
    assert not (tmp_path / "none" / "images").exists()
    assert lines[1] == f"file names start at '{source / 'images'}': give it as image_root"
    assert len(read_boxes(tmp_path / "none", image_root=source / "images").records) == 8


def test_equal_names_get_their_folders(source, tmp_path):
    for split in ("train", "test"):
        folder = source / "images" / split
        (folder / f"{split} 0.png").rename(folder / "0.png")
        file = source / "annotations" / f"instances_{split}.json"
        file.write_text(file.read_text().replace(f"{split} 0.png", "0.png"))
    convert(source, "voc", tmp_path / "v")
    records = read_boxes(tmp_path / "v").records
    assert {"train_0.png", "test_0.png", "train_train 1.png"} <= {Path(r["path"]).name for r in records}
    assert len(records) == 8


def test_images_without_a_split(source, tmp_path):
    file = source / "annotations" / "instances_train.json"
    data = json.loads(file.read_text())
    (tmp_path / "flat.json").write_text(json.dumps(data))
    for to in ("voc", "yolo", "coco"):
        convert(tmp_path / "flat.json", to, tmp_path / to, image_root=source / "images" / "train")
        listing = read_boxes(tmp_path / to)
        assert {r["split"] for r in listing.records} == {None}
        assert listing.class_names == list(NAMES.values())
    convert(source, "voc", tmp_path / "v")
    lists = tmp_path / "v" / "ImageSets" / "Main"
    (lists / "train.txt").rename(lists / "trainval.txt")
    said = convert(tmp_path / "v", "yolo", tmp_path / "y")
    assert said[0].startswith(f"{tmp_path / 'y'}: 8 images (test 4, train 4; 2 without objects)")
    assert said[1] == "not kept as it was: 4 images without a split became train"
    assert [r["split"] for r in read_boxes(tmp_path / "y").records] == ["train"] * 4 + ["test"] * 4


def test_impossible_boxes(source, tmp_path, capsys):
    alter(source, "train", 0, bbox=[50, 1, 30, 5])
    command = ["--source", str(source), "--to", "yolo", "--output", str(tmp_path / "y")]
    assert main(command) == 1
    said = capsys.readouterr().err
    assert "error: 1 of 36 boxes cannot be right:" in said
    assert "instances_train.json, annotation 5 ('train 0.png', 60 x 40)" in said
    assert "set --check_boxes to fix" in said
    assert not (tmp_path / "y").exists()
    assert main([*command, "--check-boxes", "drop"]) == 0
    assert "wrong boxes: 36 boxes, 0 fixed and 1 dropped: it extends beyond the image (1)" in capsys.readouterr().out
    assert list(tmp_path.glob(".*")) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--source", "nowhere"], "'nowhere' does not exist"),
        (["--source", "."], "looks like none of coco, voc and yolo"),
        (["--output", "full"], "'full' is there already and is not overwritten"),
        (["--output", "full/file"], "'full/file' is there already"),
        (["--split", "val"], "has no split val; it has test, train"),
        (["--class-names", "a", "b"], "class_names is set, but"),
        (["--class_names", "a", "b"], "class_names is set, but"),
        (["--format", "voc"], "holds no VOC data"),
        (["--to", "pdf"], "invalid choice: 'pdf'"),
        (["--split", "all"], "invalid choice: 'all'"),
        (["--colour", "red"], "unrecognized arguments: --colour red"),
    ],
)
def test_mistakes(source, tmp_path, capsys, change, message):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    command = ["--source", str(source), "--to", "voc", "--output", "out", *change]
    assert main(command) in (1, 2)
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said
    assert not (tmp_path / "out").exists()


def test_a_broken_run_leaves_nothing(source, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pipelines.commands.convert._place", fail)
    with pytest.raises(OSError, match="No space left"):
        convert(source, "coco", tmp_path / "c")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["source"]
    monkeypatch.undo()
    (tmp_path / "c").mkdir()  # an empty folder is no reason to refuse
    assert main(["--source", str(source), "--to", "coco", "--output", str(tmp_path / "c")]) == 0


def test_it_needs_neither_torch_nor_lightning():
    code = (
        "import sys, pipelines.commands.convert; print([m for m in ('torch', 'pytorch_lightning') if m in sys.modules])"
    )
    home = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=home)
    assert done.stdout.strip() == "[]"


@pytest.mark.shared_data
def test_bccd_is_written_as_it_was(shared, tmp_path):
    said = convert(shared / "bccd", "voc", tmp_path / "v", policy="fix", images="none")
    assert said[0].endswith("364 images (train 205, val 87, test 72; 0 without objects), 4,886 boxes, 3 classes as voc")
    assert said[1] == "wrong boxes: 4,888 boxes, 0 fixed and 2 dropped: it has no area (2)"
    gone = []
    for new in sorted((tmp_path / "v" / "Annotations").iterdir()):
        old, now = (
            re.findall(r"<(name|xmin|ymin|xmax|ymax)>(.*?)<", file.read_text())
            for file in (shared / "bccd" / "Annotations" / new.name, new)
        )
        if old != now:
            gone.append((new.name, len(old) - len(now)))
    assert gone == [("BloodImage_00338.xml", 5), ("BloodImage_00343.xml", 5)]


def test_annotations_without_ids_are_counted(source, tmp_path):
    file = source / "annotations" / "instances_train.json"
    data = json.loads(file.read_text())
    del data["annotations"][3]["id"]
    file.write_text(json.dumps(data))
    convert(source, "coco", tmp_path / "c")
    new = json.loads((tmp_path / "c" / "annotations" / "instances_train.json").read_text())
    assert [a["id"] for a in new["annotations"]] == list(range(1, 19))


# The writers.


def test_coco_is_written_object_by_object(tmp_path):
    file = tmp_path / "new" / "a.json"
    run = rle.from_segmentation({"size": [4, 5], "counts": [2, 3, 15]}, 4, 5)
    with coco.write_coco(file, ["ant", "bee"], [7, 3], info={"a": 1}) as written:
        written.add_image(10, "a.png", (4, 5))
        written.add_object(10, 1, coco.to_xywh([1.0, 2.0, 4.5, 3.5]), score=0.25)
        written.add_object(10, 0, coco.to_xywh([0, 0, 1.23456, 2], coco.thousandth), is_crowd=True, mask=run)
        written.add_object(10, 0, [0, 0, 1, 1], annotation_id=99, area=0.5, mask=[])
        assert not file.exists()
    data = json.loads(file.read_text())
    assert data["images"] == [{"id": 10, "file_name": "a.png", "width": 5, "height": 4}]
    assert [(c["id"], c["name"]) for c in data["categories"]] == [(7, "ant"), (3, "bee")]
    assert data["info"] == {"a": 1}
    first, second, third = data["annotations"]
    assert first == {"id": 1, "image_id": 10, "category_id": 3, "bbox": [1, 2, 3.5, 1.5]} | {
        "area": 5.25, "iscrowd": 0, "score": 0.25}  # fmt: skip
    assert (second["id"], second["bbox"], second["area"], second["iscrowd"]) == (2, [0, 0, 1.235, 2], 3, 1)
    assert second["segmentation"] == {"size": [4, 5], "counts": run["counts"].decode()}
    assert (third["id"], third["area"], third["segmentation"]) == (99, 0.5, [])
    with pytest.raises(OSError, match="full"), coco.write_coco(file, ["ant"]):
        raise OSError("full")
    assert json.loads(file.read_text()) == data
    assert [path.name for path in file.parent.iterdir()] == ["a.json"]


def test_lines_of_yolo():
    assert yolo.object_line(3, [10, 20, 30, 60], (100, 200)) == "3 0.10000000 0.40000000 0.10000000 0.40000000"
    line = yolo.object_line(0, [0, 0, 1, 1], (100, 200), [20, 10, 40, 10, 40, 50])
    assert line == "0 0.10000000 0.10000000 0.20000000 0.10000000 0.20000000 0.50000000"


def test_corners_of_voc():
    assert voc.corner_texts([0, 0.5, 60, 40.1234], one_based=True) == ["1", "1.5", "60", "40.123"]
    assert voc.corner_texts([0, 0.5, 60, 40], one_based=False) == ["0", "0.5", "60", "40"]
