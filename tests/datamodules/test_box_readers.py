"""COCO, VOC and YOLO become the same records of boxes, and every mistake in one a message that names it."""

from __future__ import annotations

import copy
import json
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from datamodules.annotations.boxes import check_sizes
from datamodules.common.errors import UserError
from datamodules.decoding.sizes import image_size
from datamodules.readers import coco_values as coco_module
from datamodules.readers.box_sources import find_format, read_boxes
from datamodules.readers.coco import read_coco, read_coco_folder
from datamodules.readers.voc_boxes import read_voc_boxes
from datamodules.readers.yolo_text import label_file, read_yolo

SQUARE = [10.0, 10.0, 30.0, 10.0, 30.0, 25.0, 10.0, 25.0]


def touch(root: Path, *names: str) -> Path:
    """Files that look like images to a reader that does not open them."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def picture(path: Path, height: int = 40, width: int = 60) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((height, width, 3), 100, np.uint8))
    return path


def coco_data() -> dict:
    """Ids with gaps, categories out of order, a crowd as a list of run lengths, an image without objects."""
    return {
        "images": [
            {"id": 30, "file_name": "b.jpg", "height": 40, "width": 60},
            {"id": 7, "file_name": "a.jpg", "height": 40, "width": 60},
            {"id": 8, "file_name": "empty.jpg", "height": 40, "width": 60},
        ],
        "annotations": [
            {"id": 5, "image_id": 7, "category_id": 90, "bbox": [1, 2, 3.5, 4], "area": 9, "iscrowd": 0},
            {"id": 2, "image_id": 30, "category_id": 3, "bbox": [10, 10, 20, 15], "segmentation": [SQUARE]},
            {"id": 9, "image_id": 7, "category_id": 3, "bbox": [0, 0, 2, 40], "iscrowd": 1,
             "segmentation": {"size": [40, 60], "counts": [0, 80, 2320]}},
        ],
        "categories": [{"id": 90, "name": "bus"}, {"id": 3, "name": "ant"}],
    }  # fmt: skip


def write_coco(root: Path, data: dict, name: str = "instances.json") -> Path:
    touch(root, "a.jpg", "b.jpg", "empty.jpg", "c.jpg")
    (root / name).write_text(json.dumps(data))
    return root / name


# COCO.


def test_coco_records(tmp_path):
    records, names = read_coco(write_coco(tmp_path, coco_data()), split="val")[:2]
    assert names == ["ant", "bus"]  # in the order of the ids 3 and 90
    b, a, empty = records
    assert [Path(r["path"]).name for r in records] == ["b.jpg", "a.jpg", "empty.jpg"]
    assert [r["image_id"] for r in records] == [30, 7, 8]
    assert {r["split"] for r in records} == {"val"}
    np.testing.assert_array_equal(a["boxes"], np.array([[1, 2, 4.5, 6], [0, 0, 2, 40]], np.float32))
    assert a["labels"].tolist() == [1, 0]
    assert a["iscrowd"].tolist() == [0, 1]
    assert a["annotation_ids"].tolist() == [5, 9]
    assert a["area"].tolist() == [9, 80]  # the file's, and that of the mask
    assert a["segmentation"][0] is None
    assert b["segmentation"] == [[SQUARE]]
    assert b["area"].tolist() == [300]  # of the polygon
    assert (empty["boxes"].shape, empty["labels"].shape, empty["segmentation"]) == ((0, 4), (0,), None)
    kinds = {k: v.dtype.name for k, v in empty.items() if isinstance(v, np.ndarray)}
    assert kinds == {"boxes": "float32", "labels": "int64", "iscrowd": "uint8", "area": "float32"} | {
        "annotation_ids": "int64"
    }
    assert (a["height"], a["width"]) == (40, 60)


def test_coco_boxes_from_masks_and_areas_from_boxes(tmp_path):
    data = coco_data()
    for annotation in data["annotations"]:
        annotation.pop("area", None)
        if "segmentation" in annotation:
            del annotation["bbox"]
    for image in data["images"]:
        del image["height"], image["width"]
    file = write_coco(tmp_path, data)
    picture(tmp_path / "b.jpg")
    picture(tmp_path / "a.jpg")
    b, a, _ = read_coco(file).records
    assert (a["height"], a["width"]) == (0, 0)
    assert a["boxes"].tolist() == [[1, 2, 4.5, 6], [0, 0, 2, 40]]
    assert b["boxes"].tolist() == [[10, 10, 30, 25]]
    assert a["area"].tolist() == [14, 80]


def test_a_coco_box_spans_all_polygons_of_its_object(tmp_path):
    data = coco_data()
    del data["annotations"][1]["bbox"]
    data["annotations"][1]["segmentation"] = [[4, 9, 8, 9, 8, 12], [20, 3, 30.5, 3, 30.5, 5], [6, 6, 7, 6, 7, 7]]
    assert read_coco(write_coco(tmp_path, data)).records[0]["boxes"].tolist() == [[4, 3, 30.5, 12]]


def test_coco_equals_pycocotools(tmp_path):
    from pycocotools.coco import COCO

    rng = np.random.default_rng(0)
    images = [{"id": int(i), "file_name": f"{i}.jpg", "height": 99, "width": 99} for i in rng.permutation(50)]
    annotations = [
        {"id": k, "image_id": int(rng.integers(40)), "category_id": int(rng.integers(1, 9)) * 3, "iscrowd": k % 2}
        | {"bbox": rng.uniform(0, 50, 4).tolist(), "area": float(rng.uniform(1, 99))}
        for k in range(500)
    ]
    data = {"images": images, "annotations": annotations}
    data["categories"] = [{"id": i * 3, "name": f"c{i}"} for i in (8, 2, 5, 1, 4, 3, 7, 6)]
    touch(tmp_path, *(i["file_name"] for i in images))
    file = tmp_path / "x.json"
    file.write_text(json.dumps(data))
    reference = COCO(str(file))
    ids = sorted(reference.getCatIds())
    for record in read_coco(file).records:
        expected = reference.loadAnns(reference.getAnnIds(record["image_id"]))
        assert record["annotation_ids"].tolist() == [a["id"] for a in expected]
        assert [ids[k] for k in record["labels"]] == [a["category_id"] for a in expected]
        boxes = np.array([a["bbox"] for a in expected]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        np.testing.assert_allclose(record["boxes"], boxes, rtol=1e-6)
        np.testing.assert_allclose(record["area"], [a["area"] for a in expected], rtol=1e-6)


@pytest.mark.parametrize("where", ["images", "images/{}", "images/{}2017", "{}2017", "."])
def test_coco_folder(tmp_path, where):
    for k, split in enumerate(("train", "val")):
        data = coco_data()
        for image in data["images"]:
            image["file_name"] = f"{split}{k}_{image['file_name']}"
        touch(tmp_path / where.format(split), *(i["file_name"] for i in data["images"]))
        (tmp_path / "annotations").mkdir(exist_ok=True)
        (tmp_path / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(data))
    (tmp_path / "annotations" / "captions_train2017.json").write_text("{}")
    listing = read_boxes(tmp_path)
    assert Counter(r["split"] for r in listing.records) == {"train": 3, "val": 3}
    assert listing.class_names == ["ant", "bus"]
    assert all(Path(r["path"]).is_file() for r in listing.records)


def test_coco_of_roboflow_and_a_single_file_of_any_name(tmp_path):
    for split in ("train", "valid"):
        write_coco(tmp_path / "r" / split, coco_data(), "_annotations.coco.json")
    assert Counter(r["split"] for r in read_boxes(tmp_path / "r").records) == {"train": 3, "val": 3}
    touch(tmp_path / "c" / "images", "a.jpg", "b.jpg", "empty.jpg")
    (tmp_path / "c" / "annotations").mkdir()
    (tmp_path / "c" / "annotations" / "instances_default.json").write_text(json.dumps(coco_data()))
    assert {r["split"] for r in read_boxes(tmp_path / "c").records} == {None}


def change(*path: str | int, **values):
    """A mistake: keys of the object at `path` replaced, or removed with None."""

    def apply(data):
        at = data
        for key in path:
            at = at[key]
        for key, value in values.items():
            if value is None:
                del at[key]
            else:
                at[key] = value

    return apply


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (change(images=None), "no list 'images' .it has: annotations, categories"),
        (change(images=[]), "has no images"),
        (change(categories=[]), "has no categories"),
        (change("images", 1, id=30), r"image id 30 occurs twice \('b.jpg' and 'a.jpg'\)"),
        (change("images", 1, file_name="b.jpg"), r"file 'b.jpg' is there twice \(image ids 30 and 7\)"),
        (change("images", 1, file_name="c/d.jpg"), r"image 'c/d.jpg' \(id 7\) does not exist .* 1 of 3 .*image_root"),
        (change("images", 1, file_name=None), "image number 2 must have an 'id' and a 'file_name'"),
        (change("images", 0, height="tall"), "image 30: its height is 'tall'; it must be a number"),
        (change("annotations", 1, image_id=4), "annotation 2: image_id 4 is none of 'images'"),
        (change("annotations", 1, category_id=4), r"annotation 2: category_id 4 is none of 'categories' \(3, 90\)"),
        (change("annotations", 1, category_id=None), "annotation 2 has no 'category_id'"),
        (change("annotations", 0, bbox=[1, 2, 3]), r"annotation 5: bbox is \[1, 2, 3\]; it must be four numbers"),
        (change("annotations", 0, bbox=None), "annotation 5: bbox is None; it must be four numbers"),
        (change("annotations", 0, bbox=[1, 2, 3, "x"]), "annotation 5: bbox"),
        (change("annotations", 0, area="big"), "annotation 5: area is 'big'"),
        (
            change("annotations", 1, segmentation=[[1, 2, 3, 4, 5, float("nan")]]),
            "annotation 2: a polygon has a corner",
        ),
        (change("categories", 1, id=90), r"category id 90 occurs twice \('bus' and 'ant'\)"),
        (change("categories", 1, name="bus"), "two categories are named 'bus'"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_mistakes_in_coco(tmp_path, mistake, message):
    data = copy.deepcopy(coco_data())
    mistake(data)
    file = write_coco(tmp_path, data)
    with pytest.raises(UserError, match=message) as error:
        read_coco(file)
    assert str(file) in str(error.value)


def test_mistakes_in_coco_files(tmp_path):
    file = write_coco(tmp_path, coco_data())
    file.write_text(file.read_text()[:-30])
    with pytest.raises(ValueError, match=r"cannot be read as JSON .*line 1 column"):
        read_coco(file)
    file.write_text("[]")
    with pytest.raises(ValueError, match="looks like a file of results"):
        read_coco(file)
    with pytest.raises(ValueError, match=r"nothing.json' does not exist"):
        read_coco(tmp_path / "nothing.json")
    with pytest.raises(ValueError, match=r"has no annotations/instances_train.json"):
        read_coco_folder(tmp_path)
    (tmp_path / "annotations").mkdir()
    for name in ("train", "val"):
        (tmp_path / "annotations" / f"instances_{name}.json").write_text(json.dumps(coco_data()))
    with pytest.raises(ValueError, match=r"b.jpg' is in '.*train.json' and in '.*val.json'"):
        read_coco_folder(tmp_path)
    data = coco_data()
    data["categories"][0]["name"] = "car"
    (tmp_path / "annotations" / "instances_val.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match="different categories: 3: ant, 90: bus and 3: ant, 90: car"):
        read_coco_folder(tmp_path)


def test_a_faster_json_gives_the_same(tmp_path, monkeypatch):
    class Orjson:
        calls = 0

        def loads(self, text):
            self.calls += 1
            if b"NaN" in text:
                raise ValueError("NaN")
            return json.loads(text)

    fake = Orjson()
    monkeypatch.setattr(coco_module, "orjson", fake)
    data = coco_data()
    assert len(read_coco(write_coco(tmp_path, data)).records) == 3
    data["annotations"][0]["bbox"][0] = float("nan")
    assert np.isnan(read_coco(write_coco(tmp_path, data)).records[1]["boxes"][0, 0])
    assert fake.calls == 2


# VOC.

OBJECT = (
    "<object><name>{}</name><difficult>{}</difficult><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax>"
    "<ymax>{}</ymax></bndbox></object>"
)


def voc_xml(*objects: tuple, size: str = "<size><width>60</width><height>40</height></size>") -> str:
    inner = "".join(OBJECT.format(*o) for o in objects)
    return f"<annotation><filename>stale.jpg</filename><path>/home/pi/stale.jpg</path>{size}{inner}</annotation>"


def write_voc(root: Path) -> Path:
    touch(root, *(f"JPEGImages/{n}.jpg" for n in "abcd"))
    (root / "Annotations").mkdir()
    (root / "ImageSets" / "Main").mkdir(parents=True)
    texts = {"a": voc_xml(("dog", 0, 1, 1, 60, 40), ("cat", 1, 5, 6, 7.5, 8)), "b": voc_xml()}
    texts |= {"c": voc_xml(("dog", 0, 3, 3, 3, 3)), "d": voc_xml(("ant", 0, 2, 2, 3, 3))}
    for name, text in texts.items():
        (root / "Annotations" / f"{name}.xml").write_text(text)
    for name, stems in {"train": "a b", "test": "c", "trainval": "a b d"}.items():
        (root / "ImageSets" / "Main" / f"{name}.txt").write_text(stems.replace(" ", "\n") + "\n")
    return root


def test_voc_records(tmp_path):
    listing = read_boxes(write_voc(tmp_path))
    assert listing.class_names == ["ant", "cat", "dog"]
    a, b, c, d = listing.records
    assert [Path(r["path"]).name for r in (a, b, c, d)] == ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]
    assert [r["split"] for r in (a, b, c, d)] == ["train", "train", "test", None]
    assert a["boxes"].tolist() == [[0, 0, 60, 40], [4, 5, 7.5, 8]]  # the whole image, counted from 1
    assert (a["height"], a["width"]) == (40, 60)
    assert a["labels"].tolist() == [2, 1]
    assert a["iscrowd"].tolist() == [0, 1]
    assert a["area"].tolist() == [2400, 10.5]
    assert c["boxes"].tolist() == [[3, 3, 3, 3]]  # a click
    assert (b["boxes"].shape, b["segmentation"]) == ((0, 4), None)

    kept = read_voc_boxes(tmp_path, ["dog", "cat", "ant"], one_based=False, difficult="keep")
    assert kept.class_names == ["dog", "cat", "ant"]
    assert kept.records[0]["boxes"].tolist() == [[1, 1, 60, 40], [5, 6, 7.5, 8]]
    assert kept.records[0]["iscrowd"].tolist() == [0, 0]
    dropped = read_voc_boxes(tmp_path, difficult="drop")
    assert dropped.records[0]["labels"].tolist() == [1]
    assert dropped.class_names == ["ant", "dog"]
    (tmp_path / "classes.txt").write_text("dog\ncat\nant\nunseen\n")
    assert read_voc_boxes(tmp_path).class_names == ["dog", "cat", "ant", "unseen"]


def test_voc_beside_the_images_and_without_sizes(tmp_path):
    for split in ("train", "valid"):
        picture(tmp_path / split / "x.png")
        (tmp_path / split / "x.xml").write_text(voc_xml(("dog", 0, 1, 1, 9, 9), size=""))
    records = check_sizes(read_boxes(tmp_path).records)
    assert [(r["split"], r["height"], r["width"]) for r in records] == [("train", 40, 60), ("val", 40, 60)]
    picture(tmp_path / "train" / "alone.png")
    with pytest.raises(ValueError, match=r"1 image\(s\) in .*train' have no XML file, for example 'alone.png'"):
        read_boxes(tmp_path)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("Annotations/a.xml", "<annotation><object>", r"a.xml' cannot be read as XML \(no element found"),
        ("Annotations/a.xml", voc_xml(("", 0, 1, 1, 2, 2)), "a.xml, object 1: it has no name"),
        ("Annotations/a.xml", voc_xml(("dog", 0, 1, 1, "", 2)), r"object 1 \('dog'\): xmax is ''; it must be a number"),
        ("Annotations/a.xml", "<a><object><name>dog</name></object></a>", r"object 1 \('dog'\): it has no 'bndbox'"),
        ("ImageSets/Main/test.txt", "c\na\n", "test.txt, line 2: 'a' is in train.txt, too"),
        ("ImageSets/Main/test.txt", "c\nzz\n", r"test.txt, line 2: there is no '.*zz.xml'"),
        ("JPEGImages/a.png", "", "a.xml' could belong to a.jpg or a.png"),
        (
            "classes.txt",
            "dog\ncat\nants\n",
            "d.xml, object 1: class 'ant' is none of dog, cat, ants. Did you mean 'ants'",
        ),
    ],
)
def test_mistakes_in_voc(tmp_path, file, text, message):
    (write_voc(tmp_path) / file).write_text(text)
    with pytest.raises(UserError, match=message):
        read_voc_boxes(tmp_path)


def test_missing_parts_of_voc(tmp_path):
    (write_voc(tmp_path) / "JPEGImages" / "a.jpg").unlink()
    with pytest.raises(ValueError, match=r"a.xml': there is no image 'a' \(.jpg, .png, ...\) in '.*JPEGImages'"):
        read_voc_boxes(tmp_path)
    with pytest.raises(ValueError, match="holds no VOC data"):
        read_voc_boxes(tmp_path / "ImageSets")
    with pytest.raises(ValueError, match=r"VOC folder '.*nowhere' does not exist"):
        read_voc_boxes(tmp_path / "nowhere")


# YOLO.


def write_yolo(root: Path) -> Path:
    for name in ("images/train/a.jpg", "images/train/deep/b.png", "images/val/c.png", "images/val/d.png"):
        picture(root / name)
    labels = {
        "train/a": "0 0.5 0.5 1 1\n\n5 0.25 0.25 0.1 0.2\n",
        "train/deep/b": "",
        "val/c": "5 0 0 .5 0 .5 .5 0 .5\n",
    }
    for name, text in labels.items():
        file = root / "labels" / f"{name}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    (root / "data.yaml").write_text("train: images/train\nval: [images/val]\nnames: {0: ant, 5: bus}\n")
    return root


def test_yolo_records(tmp_path):
    write_yolo(tmp_path)
    listing = read_boxes(tmp_path / "data.yaml")
    assert listing.class_names == ["ant", "bus"]
    a, b, c, d = listing.records
    assert [(Path(r["path"]).name, r["split"]) for r in (a, c)] == [("a.jpg", "train"), ("c.png", "val")]
    np.testing.assert_allclose(a["boxes"], [[0, 0, 60, 40], [12, 6, 18, 14]], atol=1e-5)
    assert a["labels"].tolist() == [0, 1]
    assert a["annotation_ids"].tolist() == [1, 3]  # lines
    np.testing.assert_allclose(a["area"], [2400, 48], rtol=1e-6)
    assert a["segmentation"] is None
    assert len(b["boxes"]) == len(d["boxes"]) == 0  # an empty file, and none
    assert c["segmentation"] == [[[0, 0, 30, 0, 30, 20, 0, 20]]]
    assert (c["boxes"].tolist(), c["area"].tolist()) == ([[0, 0, 30, 20]], [600])
    assert [r["path"] for r in read_boxes(tmp_path).records] == [r["path"] for r in listing.records]


def test_yolo_layouts(tmp_path):
    write_yolo(tmp_path)
    (tmp_path / "data.yaml").unlink()
    listing = read_yolo(tmp_path)
    assert [r["split"] for r in listing.records] == ["train", "train", "val", "val"]
    assert listing.class_names == list("012345")  # nothing names them
    (tmp_path / "classes.txt").write_text("a\nb\nc\nd\ne\nf\n")
    assert read_yolo(tmp_path).class_names == list("abcdef")
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "t.txt").write_text("./images/train/a.jpg\n\nimages/val/c.png\n")
    (tmp_path / "lists" / "set.yaml").write_text("path: ..\ntest: lists/t.txt\nnc: 6\n")
    listing = read_boxes(tmp_path / "lists" / "set.yaml")
    assert [(Path(r["path"]).name, len(r["boxes"]), r["split"]) for r in listing.records] == [
        ("a.jpg", 2, "test"),
        ("c.png", 1, "test"),
    ]
    other = tmp_path / "roboflow"
    for split in ("train", "valid"):
        picture(other / split / "images" / f"{split}.png")
        (other / split / "labels").mkdir()
        (other / split / "labels" / f"{split}.txt").write_text("0 .5 .5 .1 .1")
    assert [(r["split"], len(r["boxes"])) for r in read_boxes(other).records] == [("train", 1), ("val", 1)]
    (other / "data.yaml").write_text("train: ../train/images\nval: ../valid/images\nnc: 1\nnames: ['x']\n")
    assert read_boxes(other).class_names == ["x"]
    assert label_file("images/images/a.b.jpg") == "images/labels/a.b.txt"


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("labels/train/a.txt", "0 .5 .5 1 1\n0 .5 .5 1", r"a.txt, line 2: 4 numbers; a box has 5"),
        ("labels/train/a.txt", "0 .5 .5 1 1 .9", "line 1: 6 numbers.*Is the last one a confidence"),
        ("labels/train/a.txt", "ant .5 .5 1 1", "line 1: could not convert string to float: 'ant'"),
        ("labels/train/a.txt", "1.5 .5 .5 1 1", "line 1: the class is 1.5; it must be an integer"),
        (
            "labels/train/a.txt",
            "0 30 20 10 10",
            "line 1: 30 is no fraction of the image's size. Are",
        ),
        ("labels/train/a.txt", "0 0 0 1 0 nan 1", "line 1: a corner of the polygon is NaN"),
        (
            "labels/train/a.txt",
            "0 .5 .5 1 1\n3 .5 .5 1 1",
            r"a.txt, line 2: class 3 is none of the names of '.*data.yaml'",
        ),
        ("data.yaml", "train: images/train\nnames: [a, a]", "names has 'a' twice"),
        ("data.yaml", "train: images/train\nnames: [a]\nnc: 2", "nc is 2, but names has 1"),
        ("data.yaml", "train: images/train\nnames: 3", "names is '3'; it must be a list of names"),
        ("data.yaml", "nc: 1", r"describes no data set: it needs train, val or test, and names \(it has: nc\)"),
        ("data.yaml", "train: pictures\nnames: [a]", r"train is 'pictures', and '.*pictures' is no folder and no .txt"),
        ("data.yaml", "path: gone\ntrain: images\nnames: [a]", r"path is 'gone', and '.*gone' is no folder"),
        ("data.yaml", "train: images/val\nval: images/val\nnames: [a]", "is in train and in val"),
        ("data.yaml", "train: [", "cannot be read as YAML"),
        ("images/val/c.png", "no picture", "c.png: no known image format"),
    ],
)
def test_mistakes_in_yolo(tmp_path, file, text, message):
    (write_yolo(tmp_path) / file).write_text(text)
    with pytest.raises(UserError, match=message):
        read_yolo(tmp_path)


# All of them.


def test_formats_are_told_apart(tmp_path):
    write_yolo(tmp_path / "y")
    write_voc(tmp_path / "v")
    assert (find_format(tmp_path / "y"), find_format(tmp_path / "v")) == ("yolo", "voc")
    (tmp_path / "v" / "data.yaml").touch()
    with pytest.raises(ValueError, match="looks like voc and yolo at once"):
        find_format(tmp_path / "v")
    assert read_boxes(tmp_path / "v", "voc").class_names == ["ant", "cat", "dog"]
    with pytest.raises(ValueError, match="looks like none of coco, voc and yolo"):
        find_format(tmp_path)
    with pytest.raises(ValueError, match=r"a.jpg' is neither a folder, nor a COCO file"):
        find_format(tmp_path / "v" / "JPEGImages" / "a.jpg")
    with pytest.raises(ValueError, match=r"image_root is set, but .* is read as yolo"):
        read_boxes(tmp_path / "y", image_root=tmp_path)
    with pytest.raises(ValueError, match=r"class_names is set, but .* is read as coco"):
        read_boxes(tmp_path / "y", "coco", class_names=["a"])


def test_sizes_of_files(tmp_path):
    pixels = np.zeros((20, 30, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    turned, plain = {}, {}
    for suffix in ("jpg", "png", "webp", "tif"):
        Image.fromarray(pixels).save(tmp_path / f"turned.{suffix}", exif=exif)
        Image.fromarray(pixels).save(tmp_path / f"plain.{suffix}")
        turned[suffix], plain[suffix] = (image_size(tmp_path / f"{n}.{suffix}") for n in ("turned", "plain"))
    np.save(tmp_path / "a.npy", pixels)
    assert set(plain.values()) == {(20, 30)}
    assert set(turned.values()) == {(30, 20)}
    assert image_size(tmp_path / "a.npy") == (20, 30)

    def record(name, height, width):
        return {"image": str(tmp_path / name), "path": str(tmp_path / name), "height": height, "width": width}

    records = [record("plain.png", 20, 30), record("turned.jpg", 0, 0)]
    assert [(r["height"], r["width"]) for r in check_sizes(records)] == [(20, 30), (30, 20)]
    assert records[1]["height"] == 0
    with pytest.raises(ValueError, match=r"turned.jpg: 30 x 20 annotated, the file is 20 x 30, turned[\s\S]*EXIF"):
        check_sizes([*records, record("turned.jpg", 20, 30)])
    with pytest.raises(
        ValueError, match=r"1 image\(s\) have another size[\s\S]*plain.png: 60 x 40 annotated, the file is"
    ):
        check_sizes([record("plain.png", 40, 60)])


# The real sets; the numbers are those of their READMEs.


@pytest.mark.shared_data
def test_bccd(shared):
    listing = read_boxes(shared / "bccd")
    assert Counter(r["split"] for r in listing.records) == {"train": 205, "val": 87, "test": 72}
    counts = np.bincount(np.concatenate([r["labels"] for r in listing.records]))
    assert dict(zip(listing.class_names, counts.tolist(), strict=True)) == {"Platelets": 361, "RBC": 4155, "WBC": 372}
    assert check_sizes(listing.records) == listing.records


@pytest.mark.shared_data
def test_nuclei(shared):
    listing = read_boxes(shared / "nuclei")
    boxes = Counter()
    for record in listing.records:
        boxes[record["split"]] += len(record["boxes"])
    assert Counter(r["split"] for r in listing.records) == {"train": 465, "val": 66, "test": 133}
    assert boxes == {"train": 20085, "val": 3235, "test": 5666}
    assert listing.class_names == ["nucleus"]
