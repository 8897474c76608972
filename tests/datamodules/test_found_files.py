"""Files as other programs write them: each is read right, or refused by a message that names it.

A case is a small set on the disk with one thing changed; what is said of one reader is tried in others, too.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from datamodules.classification import ClassificationData
from datamodules.common.errors import UserError
from datamodules.readers.box_sources import read_boxes
from datamodules.readers.folder import read_folder
from datamodules.readers.lists import read_list, read_paths
from datamodules.readers.mask_sources import read_mask_source
from datamodules.readers.pictures import find_pictures
from datamodules.unlabeled import pool_records

WIDTH, HEIGHT = 48, 40


def png(color: int = 100, width: int = WIDTH, height: int = HEIGHT) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((height, width, 3), color, np.uint8)).save(file, "PNG")
    return file.getvalue()


PNG = png()


def write(root: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return root


def yolo(root: Path, extra: dict[str, str | bytes] | None = None, line: str = "0 0.375 0.35 0.4166667 0.4") -> Path:
    files: dict[str, str | bytes] = {}
    for split in ("train", "val"):
        for i in range(2):
            files |= {f"images/{split}/{i}.png": PNG, f"labels/{split}/{i}.txt": line + "\n"}
    return write(root, files | (extra or {}))


YAML = "train: images/train\nval: images/val\nnames: [disc, square]\n"
XML = (
    "<annotation><object><name>{name}</name>{more}<bndbox><xmin>9</xmin><ymin>7</ymin><xmax>28</xmax><ymax>22</ymax>"
    "</bndbox></object></annotation>"
)


FILENAME = "<annotation><filename>named.png</filename>"


def xml(name: str = "disc", more: str = "") -> str:
    return XML.format(name=name, more=more)


def voc(root: Path, text: str | bytes = "", folders: str = "Annotations JPEGImages", suffix: str = ".xml") -> Path:
    xmls, images = folders.split()
    return write(root, {f"{xmls}/0{suffix}": text or xml(), f"{images}/0.png": PNG})


def coco(root: Path, change: Callable[[Any], Any] = lambda data: None, name: str = "train.json", at: str = "") -> Path:
    """Two images of a disc each, and the file, changed."""
    data: Any = {
        "images": [{"id": i, "file_name": f"{i}.png", "width": WIDTH, "height": HEIGHT} for i in (1, 2)],
        "categories": [{"id": 1, "name": "disc"}, {"id": 2, "name": "square"}],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 1, "bbox": [8, 6, 20, 16], "area": 320, "iscrowd": 0,
             "segmentation": [[8, 6, 28, 6, 28, 22, 8, 22]]}
            for i in (1, 2)
        ],
    }  # fmt: skip
    change(data)
    return write(root, {f"{at}1.png": PNG, f"{at}2.png": PNG, name: json.dumps(data)}) / name


def boxes(source: Path, **arguments: Any) -> list[list[float]]:
    return [box for r in read_boxes(source, **arguments).records for box in r["boxes"].round(1).tolist()]


def each(key: str, **values: Any) -> Callable[[Any], None]:
    """Sets keys of all annotations, images or categories; a function is called with the entry."""

    def change(data: Any) -> None:
        for entry in data[key]:
            entry.update({k: v(entry) if callable(v) else v for k, v in values.items()})

    return change


def both(*changes: Callable[[Any], None]) -> Callable[[Any], None]:
    def change(data: Any) -> None:
        for one in changes:
            one(data)

    return change


# Text.


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-8"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_lists_of_any_mark_and_line_end(tmp_path, encoding, end):
    def text(*lines: str) -> bytes:
        return end.join([*lines, ""]).encode(encoding)

    assert read_boxes(yolo(tmp_path / "a", {"classes.txt": text("Kreis", "Maß")})).class_names == ["Kreis", "Maß"]
    extra = {"data.yaml": text("train: l.txt", "names: [é]"), "l.txt": text("./images/train/0.png", "")}
    listing = read_boxes(yolo(tmp_path / "b", extra))
    assert (len(listing.records), listing.class_names) == (1, ["é"])
    root = write(voc(tmp_path / "c"), {"ImageSets/Main/train.txt": text("0"), "classes.txt": text("disc")})
    assert [r["split"] for r in read_boxes(root).records] == ["train"]
    write(tmp_path / "d", {"l.csv": text("path,label", "ä.png,ö"), "ä.png": PNG})
    assert read_list(tmp_path / "d" / "l.csv").class_names == ["ö"]
    masks = {"JPEGImages/0.png": PNG, "SegmentationClass/0.png": PNG, "ImageSets/Segmentation/train.txt": text("0")}
    source = str(write(tmp_path / "e", masks | {"classes.txt": text("ground", "tree")}))
    assert read_mask_source(source, None, None, None, multi_label=False).class_names == ["ground", "tree"]


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("classes.txt", "圆\n方\n".encode("gbk")),
        ("classes.txt", "disc\n".encode("utf-16-le")),  # without its mark
        ("labels/train/0.txt", b"\xff\xff\xff"),
        ("data.yaml", YAML.replace("disc", "grün").encode("latin-1")),
    ],
)
def test_undecodable_files_are_named(tmp_path, name, data):
    with pytest.raises(UserError, match=rf"{name}' (cannot be decoded|holds zero bytes).*UTF-8"):
        read_boxes(yolo(tmp_path, {name: data}))


def test_a_class_named_twice_and_an_empty_list_of_classes(tmp_path):
    with pytest.raises(UserError, match=r"classes.txt', line 2: class 'disc' is in line 1, too"):
        read_boxes(yolo(tmp_path / "a", {"classes.txt": "disc\ndisc\n"}))
    with pytest.raises(UserError, match=r"classes.txt' names no class"):
        read_boxes(write(voc(tmp_path / "b"), {"classes.txt": "\n"}))


@pytest.mark.parametrize(
    ("encoding", "declared"),
    [
        ("gbk", "GBK"),
        ("shift_jis", "Shift_JIS"),
        ("latin-1", "ISO-8859-1"),
        ("utf-16", "UTF-16"),
        ("utf-8", "utf-16"),  # as C# writes it
        ("utf-8-sig", "utf-8"),
        ("utf-8", None),
    ],
)
def test_xml_in_its_declared_encoding(tmp_path, encoding, declared):
    name = {"gbk": "圆", "shift_jis": "丸", "latin-1": "Maß"}.get(encoding, "Maß 圆")
    head = f'<?xml version="1.0" encoding="{declared}"?>\r\n' if declared else ""
    listing = read_boxes(voc(tmp_path, (head + xml(name)).encode(encoding)))
    assert (listing.class_names, boxes(tmp_path)) == ([name], [[8, 6, 28, 22]])


def test_xml_of_an_unknown_encoding_or_a_wrong_one(tmp_path):
    with pytest.raises(UserError, match=r"0.xml' names the encoding 'klingon', which is unknown"):
        read_boxes(voc(tmp_path / "a", '<?xml version="1.0" encoding="klingon"?>' + xml()))
    with pytest.raises(UserError, match=r"0.xml' cannot be decoded as UTF-8 \(byte 26"):
        read_boxes(voc(tmp_path / "b", xml("方形").encode("gbk")))


@pytest.mark.parametrize(
    ("word", "crowd"), [("1", 1), ("True", 1), ("yes", 1), ("", 0), ("false", 0), ("Unspecified", 0)]
)
def test_words_for_true_and_false(tmp_path, word, crowd):
    assert read_boxes(voc(tmp_path, xml(more=f"<difficult>{word}</difficult>"))).records[0]["iscrowd"] == [crowd]
    if word != "Unspecified":
        listing = read_boxes(coco(tmp_path / "c", each("annotations", iscrowd=word)))
        assert [r["iscrowd"].tolist() for r in listing.records] == [[crowd]] * 2


@pytest.mark.parametrize("value", [2, 0.5, -1, "maybe", [1]])
def test_other_words_for_true_are_refused_by_name(tmp_path, value):
    with pytest.raises(UserError, match=r"annotation 1: iscrowd is .*; it must be 0 or 1, or true or false"):
        read_boxes(coco(tmp_path, each("annotations", iscrowd=value)))
    with pytest.raises(UserError, match=r"0.xml, object 1: difficult is '.*'; it must be 0 or 1"):
        read_boxes(voc(tmp_path / "v", xml(more=f"<difficult>{value}</difficult>")))


def test_words_for_numbers_are_refused_by_name(tmp_path):
    text = xml().replace("<object>", "<size><width>wide</width><height>40</height></size><object>")
    with pytest.raises(UserError, match=r"0.xml': the image's width is 'wide'; it must be a number"):
        read_boxes(voc(tmp_path / "a", text))
    with pytest.raises(UserError, match=r"xmin is '1_0'; it must be a number"):
        read_boxes(voc(tmp_path / "b", xml().replace(">9<", ">1_0<")))
    with pytest.raises(UserError, match=r"0.txt, line 1: could not convert string to float"):
        read_boxes(yolo(tmp_path / "c", line="0 0.5 0.5 1_0 0.1"))
    with pytest.raises(UserError, match=r"image 1: its width is 'wide'; it must be a number"):
        read_boxes(coco(tmp_path / "d", each("images", width="wide")))


NAMES = ["no", "yes", "010", "1.10", "null", "~x", "1e3", "0x1f"]


@pytest.mark.parametrize("block", [False, True])
def test_names_in_yaml_stay_as_they_are_written(tmp_path, block):
    rows = "".join(f"\n  {i}: {name}" for i, name in enumerate(NAMES)) if block else f" [{', '.join(NAMES)}]"
    text = f"train: images/train\nval: images/val\ntest: null\nnc: {len(NAMES)}\nnames:{rows}\n"
    assert read_boxes(yolo(tmp_path, {"data.yaml": text})).class_names == NAMES


# YOLO.


def test_label_files_are_counted(tmp_path):
    root = yolo(tmp_path / "a", {"data.yaml": YAML})
    assert read_boxes(root).notes == ()
    (root / "labels/train/0.txt").rename(root / "labels/train/IMG0.txt")
    (note,) = read_boxes(root).notes
    assert "1 of 2 train images have no label file and count as images without objects" in note
    assert note.endswith(f"1 label file(s) there have no image, for example '{root / 'labels/train/IMG0.txt'}'.")
    (root / "labels/val").rename(root / "labels/valid")
    with pytest.raises(
        UserError, match=r"none of the 2 val images has a label file; the first was .*labels/val/0.txt'"
    ):
        read_boxes(root)
    flat = write(tmp_path / "b", {"images/0.png": PNG, "images/1.png": PNG, "Labels/0.txt": "0 0.5 0.5 0.1 0.1\n"})
    with pytest.raises(UserError, match=r"none of the 2 images has a label file; the first was .*labels/0.txt'"):
        read_boxes(flat, "yolo")
    test = {"images/test/9.png": PNG, "data.yaml": YAML + "test: images/test\n"}
    assert "1 of 1 test images have no label file" in read_boxes(yolo(tmp_path / "c", test)).notes[0]


@pytest.mark.parametrize(
    ("extra", "names"),
    [
        ({"shapes.yaml": YAML}, ["disc", "square"]),
        ({"names.yml": "names: {0: disc, 1: square}", "other.yaml": "lr: 1"}, ["disc", "square"]),
        ({"data.yaml": "train: images/train\nval: images/val\n", "classes.txt": "disc\n"}, ["disc"]),
        ({"labels/classes.txt": "disc\nsquare\n"}, ["disc", "square"]),
        ({"labels/train/classes.txt": "disc\n"}, ["disc"]),
        ({"obj.names": "disc\n"}, ["disc"]),
        ({"labels/train/_darknet.labels": "disc\n"}, ["disc"]),
    ],
)
def test_names_are_found(tmp_path, extra, names):
    listing = read_boxes(yolo(tmp_path, extra))
    assert (listing.class_names, listing.notes, len(listing.records)) == (names, (), 4)


def test_names_that_are_not_found_or_not_one(tmp_path):
    listing = read_boxes(yolo(tmp_path / "a"))
    assert listing.class_names == ["0"]
    assert "names no classes: they are called 0. Write their names into" in listing.notes[0]
    with pytest.raises(UserError, match=r"a.yaml' and '.*b.yaml' both name classes"):
        read_boxes(yolo(tmp_path / "b", {"a.yaml": YAML, "b.yaml": YAML}))
    with pytest.raises(UserError, match=r"classes.txt' and '.*labels/classes.txt' name different classes"):
        read_boxes(yolo(tmp_path / "c", {"classes.txt": "disc\n", "labels/classes.txt": "square\n"}))


@pytest.mark.parametrize(
    ("shape", "points"),
    [
        ("[4, 3]", "0.05 0.05 1 0.9 0.1 1 0.95 0.95 0 0.1 0.9 1"),
        ("[3, 2]", "0.05 0.05 0.9 0.1 0.95 0.95"),
        ("[1, 2]", "0 0"),
    ],
)
def test_key_points_are_no_polygons(tmp_path, shape, points):
    line = "0 0.375 0.35 0.4166667 0.4"
    extra = {"data.yaml": YAML + f"kpt_shape: {shape}\n", "labels/val/1.txt": line}
    root = yolo(tmp_path, extra, line=f"{line} {points}")
    assert boxes(root) == [[8, 6, 28, 22]] * 4
    assert all(r["segmentation"] is None for r in read_boxes(root).records)
    with pytest.raises(UserError, match=r"line 1: \d+ numbers; with the YAML's kpt_shape a line has"):
        read_boxes(yolo(tmp_path, {"labels/val/1.txt": line + " 0.1 0.1 0.1 0.1 0.1"}))


def test_key_points_without_kpt_shape_and_other_numbers(tmp_path):
    line = "0 0.375 0.35 0.4 0.4 0.3 0.3 2 0.4 0.4 2"
    with pytest.raises(UserError, match=r"line 1: this looks like a box with 2 key points.*kpt_shape: \[2, 3\]"):
        read_boxes(yolo(tmp_path / "a", {"data.yaml": YAML}, line=line))
    with pytest.raises(UserError, match=r"data.yaml': kpt_shape is 17; it must be \[number of key points, 2 or 3\]"):
        read_boxes(yolo(tmp_path / "b", {"data.yaml": YAML + "kpt_shape: 17\n"}))
    oriented = yolo(tmp_path / "c", {"data.yaml": YAML}, line="0 0.5 0.1 0.9 0.5 0.5 0.9 0.1 0.5")
    assert boxes(oriented)[0] == pytest.approx([4.8, 4, 43.2, 36], abs=0.01)
    bordering = yolo(
        tmp_path / "d", {"data.yaml": YAML}, line="0 0.5 0.5 0.5 1 0 1 0 0.5 0.2 0"
    )  # a polygon, at a corner
    assert boxes(bordering)[0] == [0, 0, 24, 40]


def darknet(root: Path, prefix: str = "data/") -> Path:
    return write(root, {
        "obj_train_data/0.png": PNG, "obj_train_data/0.txt": "0 0.375 0.35 0.4166667 0.4", "obj.names": "disc\n",
        "obj.data": f"classes = 1\ntrain = {prefix}train.txt\nnames = {prefix}obj.names\nbackup = backup/\n",
        "train.txt": f"{prefix}obj_train_data/0.png\n",
    })  # fmt: skip


@pytest.mark.parametrize("prefix", ["data/", ""])
def test_the_layout_of_cvat(tmp_path, prefix):
    root = darknet(tmp_path, prefix)
    for source, format in ((root, None), (root, "yolo"), (root / "obj.data", None)):
        assert boxes(source, format=format) == [[8, 6, 28, 22]]
    assert read_boxes(root).class_names == ["disc"]


def test_a_missing_test_folder_is_said(tmp_path):
    text = "train: ../images/train\nval: ../images/val\ntest: ../test/images\n\nnc: 1\nnames: ['x']\n"
    listing = read_boxes(yolo(tmp_path, {"data.yaml": text}))
    assert len(listing.records) == 4
    assert listing.notes[0].endswith(
        "data.yaml': test is '../test/images', which does not exist: there is no test split."
    )
    with pytest.raises(UserError, match=r"val is '\.\./valid'"):
        read_boxes(yolo(tmp_path, {"data.yaml": text.replace("../images/val", "../valid")}))


# COCO.


def name_as_id(data: Any) -> None:
    each("images", id=lambda e: e["file_name"])(data)
    each("annotations", image_id=lambda e: f"{e['id']}.png")(data)


def ids(kind: type) -> Callable[[Any], None]:
    """Ids of images and categories as text or floats, those of annotations as they were."""

    def change(data: Any) -> None:
        for key in ("images", "categories"):
            each(key, id=lambda e: kind(e["id"]))(data)

    return change


AS_WRITTEN = {
    "names as ids": name_as_id,
    "text": ids(str),
    "floats": ids(float),
    "text in annotations": each("annotations", category_id="1", image_id=lambda e: str(e["id"])),
    "annotation ids": each("annotations", id=lambda e: f"a-{e['id']}"),
    "no annotation ids": each("annotations", id=None),
    "large": each("annotations", id=lambda e: 2**64 + e["id"]),
    "VIA's sizes": each("images", width=-1, height=-1),
    "sizes as text": each("images", width="48", height=40.0),
    "flat polygon": each("annotations", segmentation=lambda e: e["segmentation"][0]),
    "pairs": each("annotations", segmentation=[[[8, 6], [28, 6], [28, 22], [8, 22]]]),
    "prefix": each("images", file_name=lambda e: f"data/{e['id']}.png"),
    "Windows": each("images", file_name=lambda e: f"C:\\x\\{e['id']}.png"),
    "another machine's": each("images", file_name=lambda e: f"/home/me/{e['id']}.png"),
    "box of the mask": each("annotations", bbox=None),
}


@pytest.mark.parametrize("change", AS_WRITTEN.values(), ids=AS_WRITTEN)
def test_coco_as_other_programs_write_it(tmp_path, change):
    listing = read_boxes(coco(tmp_path, change))
    assert [r["boxes"].tolist() for r in listing.records] == [[[8, 6, 28, 22]]] * 2
    assert [r["area"].tolist() for r in listing.records] == [[320]] * 2
    assert [len(r["segmentation"][0][0]) for r in listing.records] == [8, 8]
    assert (listing.class_names, listing.class_ids) == (["disc", "square"], [1, 2])


@pytest.mark.parametrize("mask", [[], [[]], [[4, 5, 24, 19]], None, [[], [1, 2]]])
def test_polygons_without_area_are_no_masks(tmp_path, mask):
    listing = read_boxes(coco(tmp_path, each("annotations", segmentation=mask)))
    assert [r["segmentation"] for r in listing.records] == [None, None]
    with pytest.raises(UserError, match="annotation 1: it has a box but no mask"):
        read_mask_source(str(tmp_path / "train.json"), None, None, None, multi_label=False)


def roboflow(*names: str) -> Callable[[Any], None]:
    rows = [{"id": i, "name": n, "supercategory": names[0] if i else "none"} for i, n in enumerate(names)]
    return lambda data: data.update(categories=rows)


@pytest.mark.parametrize("root", ["shapes", "disc"])
def test_the_root_of_roboflow_is_no_class(tmp_path, root):
    coco(tmp_path / "train", roboflow(root, "disc", "square"), "_annotations.coco.json")
    assert read_boxes(tmp_path).class_names == ["disc", "square"]
    used = coco(tmp_path / "used", both(roboflow("x", "disc"), each("annotations", category_id=0)))
    assert read_boxes(used).class_names == ["x", "disc"]
    with pytest.raises(UserError, match="two categories are named 'disc'"):
        read_boxes(coco(tmp_path / "twice", lambda data: data["categories"].append({"id": 5, "name": "disc"})))


@pytest.mark.parametrize("name", [None, 1.1, ["a"]])
def test_a_category_needs_a_name(tmp_path, name):
    with pytest.raises(UserError, match="must have an integer 'id' and a 'name'"):
        read_boxes(coco(tmp_path, each("categories", name=name)))


def test_the_layouts_of_fiftyone(tmp_path):
    coco(tmp_path / "a", name="labels.json", at="data/")
    assert len(boxes(tmp_path / "a")) == len(boxes(tmp_path / "a" / "labels.json")) == 2
    for split in ("train", "validation"):
        coco(tmp_path / "b" / split, name="labels.json", at="data/")
    assert [r["split"] for r in read_boxes(tmp_path / "b").records] == ["train", "train", "val", "val"]


# VOC.


@pytest.mark.parametrize(
    ("folders", "suffix"),
    [
        ("annotations images", ".xml"),
        ("ANNOTATIONS JPEGImages", ".XML"),
        ("xmls imgs", ".Xml"),
        ("labels images", ".xml"),
        ("Annotations/xmls images", ".xml"),
        ("train/annotations train/images", ".xml"),
    ],
)
def test_the_folders_of_voc_by_other_names(tmp_path, folders, suffix):
    assert boxes(voc(tmp_path, folders=folders, suffix=suffix)) == [[8, 6, 28, 22]]


def test_namespaces_and_lists_by_other_names(tmp_path):
    text = (
        xml()
        .replace("<annotation>", '<a:annotation xmlns:a="x" xmlns="http://y">')
        .replace("</annotation>", "</a:annotation>")
    )
    root = write(voc(tmp_path, text, "annotations images"), {"imagesets/main/val.txt": "0\r\n"})
    assert (boxes(root), read_boxes(root).records[0]["split"]) == ([[8, 6, 28, 22]], "val")


# Paths.


def test_backslashes_are_tried_as_slashes(tmp_path):
    coco(tmp_path / "a", each("images", file_name=lambda e: f"train\\{e['id']}.png"), at="train/")
    assert len(boxes(tmp_path / "a" / "train.json")) == 2
    text = "path: .\\\ntrain: images\\train\nval: l.txt\nnames: [disc]\n"
    assert len(boxes(yolo(tmp_path / "b", {"data.yaml": text, "l.txt": ".\\images\\val\\0.png\n"}))) == 3
    root = voc(
        tmp_path / "c", xml(more="<filename>x</filename>").replace("<object>", "<filename>d\\1.png</filename><object>")
    )
    write(root, {"JPEGImages/d/1.png": PNG})
    (root / "JPEGImages/0.png").unlink()
    assert read_boxes(root).records[0]["path"].endswith("d/1.png")


# Folders of classes.


def classes(root: Path, *folders: str, names: str = "cat dog") -> Path:
    return write(root, {f"{f}/{name}/{i}.png": PNG for f in folders for name in names.split() for i in range(2)})


@pytest.mark.parametrize(
    ("folders", "splits"),
    [
        (["Training", "Testing"], {"train", "test"}),
        (["seg_train/seg_train", "seg_test/seg_test"], {"train", "test"}),
        (["train_set", "val_set"], {"train", "val"}),
        (["TRAIN", "validation"], {"train", "val"}),
        (["train/images", "valid/images"], {"train", "val"}),
        (["dataset"], {None}),
        (["archive/dataset/train", "archive/dataset/val", "__MACOSX/archive"], {"train", "val"}),
    ],
)
def test_split_folders_are_no_classes(tmp_path, folders, splits):
    listing = read_folder(classes(tmp_path, *folders))
    assert (listing.class_names, {r["split"] for r in listing.records}) == (["cat", "dog"], splits)


def test_splits_in_the_wrong_place_and_others_beside_them(tmp_path):
    with pytest.raises(UserError, match=r"cat' has the splits train, val in it: put the splits above .*train/cat"):
        read_folder(classes(tmp_path / "a", "cat", "dog", names="train val"))
    with pytest.raises(UserError, match=r"has split folders \(seg_test, seg_train\) and others beside them: seg_pred"):
        read_folder(classes(tmp_path / "b", "seg_train", "seg_test", "seg_pred"))


JUNK = ("@eaDir/0.png", "$RECYCLE.BIN/x.png", "__MACOSX/cat/._0.png", "#recycle/0.png", "Thumbs.db", "._0.png")


@pytest.mark.parametrize("junk", JUNK)
def test_what_systems_leave_is_skipped_everywhere(tmp_path, junk):
    inside = {f"{folder}/{junk}": PNG for folder in (".", "cat")}
    listing = read_folder(write(classes(tmp_path / "a", "."), inside))
    assert (listing.class_names, len(listing.records), listing.notes) == (["cat", "dog"], 4, ())
    root = yolo(tmp_path / "b", {"data.yaml": YAML, f"images/train/{junk}": PNG, f"images/{junk}": PNG})
    assert len(read_boxes(root).records) == 4
    assert len(boxes(write(voc(tmp_path / "c"), {f"JPEGImages/{junk}": PNG, "Annotations/._0.xml": b"\0\5"}))) == 1
    assert len(boxes(write(voc(tmp_path / "d", folders="train train"), {f"train/{junk}": PNG, junk: PNG}))) == 1
    coco(tmp_path / "e", name="annotations/instances_train.json", at="images/")
    assert len(boxes(write(tmp_path / "e", {"annotations/._instances_train.json": b"\0\5"}))) == 2
    pairs = {f"{folder}/{name}": PNG for folder in ("images", "masks") for name in ("0.png", junk)}
    assert len(masks(write(tmp_path / "f", pairs)).records) == 1
    patterns = {"images": "images/{stem}.png", "masks": "masks/{stem}.png"}
    assert len(masks(tmp_path / "f", **patterns).records) == 1


def masks(source: Path | str, **arguments: Any) -> Any:
    arguments = {"images": None, "masks": None, "class_names": None, "multi_label": False, **arguments}
    return read_mask_source(str(source), **arguments)


def test_files_of_other_suffixes_are_counted(tmp_path):
    extra = {f"cat/{i}.heic": b"x" for i in range(3)} | {"cat/a": b"x", "dog/notes.txt": "x", "dog/b.TGA": b"x"}
    listing = read_folder(write(classes(tmp_path, "."), extra))
    assert len(listing.records) == 4
    assert "5 file(s) were left out because of their suffix (3 .heic, 1 without a suffix, 1 .tga)" in listing.notes[0]
    with pytest.raises(UserError, match=r"owl' holds no image files. .* 1 file\(s\) were left out .*1 .heic"):
        read_folder(write(tmp_path, {"owl/0.heic": b"x"}))
    with pytest.raises(UserError, match=r"holds no image files .* 1 file\(s\) were left out .*1 .heic"):
        read_boxes(write(tmp_path / "y", {"images/train/0.heic": b"x", "data.yaml": YAML}))


LABEL = "0 0.5 0.5 0.2 0.2\n"
SUFFIXES = r"^'.*/set.*': 2 file\(s\) were left out because of their suffix \(2 \.heic\)\. Pictures among them must"


@pytest.mark.parametrize(
    ("read", "files"),
    [
        (read_boxes, {"data.yaml": YAML, "images/train/0.png": PNG, "labels/train/0.txt": LABEL, "images/val/": ""}),
        (read_boxes, {"images/train/0.png": PNG, "labels/train/0.txt": LABEL, "images/train/b/": ""}),
        (partial(read_boxes, format="yolo"), {"0.png": PNG, "0.txt": LABEL, "classes.txt": "disc"}),
        (read_boxes, {"Annotations/0.xml": xml(), "JPEGImages/0.png": PNG, "JPEGImages/": ""}),
        (read_boxes, {"train/0.xml": xml(), "train/0.png": PNG, "train/": ""}),
        (lambda root: masks(root), {"images/0.png": PNG, "masks/0.png": PNG, "images/": ""}),
        (lambda root: masks(root), {"train/images/0.png": PNG, "train/masks/0.png": PNG, "train/masks/": ""}),
        (lambda root: masks(root), {"JPEGImages/0.png": PNG, "SegmentationClass/0.png": PNG, "JPEGImages/": ""}),
    ],
)
def test_files_of_other_suffixes_are_counted_everywhere(tmp_path, read, files):
    place = next((name for name in files if name.endswith("/")), "")
    root = write(tmp_path / "set", {name: content for name, content in files.items() if not name.endswith("/")})
    write(root, {f"{place}{i}.heic": "x" for i in (1, 2)} | {f"{place}notes.md": "x", f"{place}.1.heic": "x"})
    if "data.yaml" in files:
        write(root, {"images/val/1.png": PNG, "labels/val/1.txt": LABEL})
    (note,) = [note for note in read(root).notes if "left out because" in note]
    assert re.search(SUFFIXES, note)


def test_prediction_counts_files_of_other_suffixes(tmp_path):
    root = write(tmp_path / "set", {"0.png": PNG, "1.heic": "x", "b/2.heic": "x", "notes.txt": "x"})
    with pytest.warns(UserWarning, match=SUFFIXES):
        assert find_pictures(str(root)) == [str(root / "0.png")]
    with pytest.warns(UserWarning, match=SUFFIXES):
        assert [record["path"] for record in pool_records(root)] == [str(root / "0.png")]


def test_images_without_an_xml_file_are_counted(tmp_path):
    root = voc(tmp_path / "set")
    write(root, {"JPEGImages/1.png": PNG, "JPEGImages/named.png": PNG, "JPEGImages/2.jpg": PNG})
    write(root, {"Annotations/other.xml": xml(more="<filename/>").replace("<annotation>", FILENAME)})
    listing = read_boxes(root, "voc")
    assert [Path(record["path"]).name for record in listing.records] == ["0.png", "named.png"]
    assert listing.notes == (
        f"2 of 4 images in '{root}/JPEGImages' have no XML file and are left out, for example"
        f" '{root}/JPEGImages/1.png'. Write one without objects where nothing is on the image.",
    )
    assert read_boxes(voc(tmp_path / "whole"), "voc").notes == ()
    split = write(tmp_path / "s", {"train/xmls/0.xml": xml(), "train/images/0.png": PNG, "train/images/1.png": PNG})
    assert "1 of 2 images in" in read_boxes(split, "voc").notes[0]


def test_links_give_each_picture_once(tmp_path):
    root = classes(tmp_path, ".")
    (root / "cat/again.png").symlink_to(root / "cat/0.png")
    (root / "cat/back").symlink_to(root)
    (root / "dog/more").symlink_to(root / "dog")
    write(tmp_path.parent / f"{tmp_path.name}_else", {"9.png": PNG})
    for name in ("a.png", "b.png"):
        (root / "dog" / name).symlink_to(tmp_path.parent / f"{tmp_path.name}_else" / "9.png")
    names = [Path(r["path"]).name for r in read_folder(root).records if r["label"] == 1]
    assert sorted(names) == ["0.png", "1.png", "a.png"]


def test_one_folder_too_many_in_other_readers(tmp_path):
    yolo(tmp_path / "a" / "archive", {"data.yaml": YAML})
    voc(tmp_path / "b" / "x" / "y")
    coco(tmp_path / "c" / "set", name="annotations/instances_train.json", at="train/")
    assert [len(boxes(tmp_path / name)) for name in "abc"] == [4, 1, 2]
    write(tmp_path / "d", {f"set/{folder}/0.png": PNG for folder in ("images", "masks")})
    assert len(masks(tmp_path / "d").records) == 1


# Lists.

ROWS = {"dup": "a.png,x\na.png,x\n", "contra": "a.png,x\n./a.png,y\n", "splits": "a.png,x\nb.png,y\nb.png,y\n"}


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_an_image_stands_in_one_row(tmp_path, rows):
    write(tmp_path, {"a.png": PNG, "b.png": PNG, "l.csv": "path,label\n" + rows})
    with pytest.raises(UserError, match=r"1 row\(s\) name an image that .*:\n.*l.csv, line \d: '.*png' stands in"):
        read_list(tmp_path / "l.csv")
    write(tmp_path, {"m.csv": "path,mask\n" + rows.replace(",x", ",a.png").replace(",y", ",b.png")})
    with pytest.raises(UserError, match=r"another row has:\n.*m.csv, line"):
        masks(tmp_path / "m.csv")
    with pytest.raises(UserError, match="another row has"):
        read_paths(tmp_path / "l.csv")


def lists(root: Path, suffix: str = "csv", head: str = "path,label\n", line: str = "im/{0}.png,{1}\n") -> Path:
    files: dict[str, str | bytes] = {f"im/{i}.png": PNG for i in range(6)}
    for number, split in enumerate(("train", "val", "test")):
        rows = "".join(line.format(i, "ab"[i % 2]) for i in (2 * number, 2 * number + 1))
        files[f"{split}.{suffix}"] = head + rows
    return write(root, files)


@pytest.mark.parametrize("source", ["", "{split}.csv"])
def test_a_list_for_each_split(tmp_path, source):
    listing = read_list(f"{lists(tmp_path)}/{source}")
    assert [r["split"] for r in listing.records] == ["train"] * 2 + ["val"] * 2 + ["test"] * 2
    assert ([r["label"] for r in listing.records], listing.class_names) == ([0, 1] * 3, ["a", "b"])
    data = ClassificationData(source=f"{tmp_path}/{source}", image_size=32)
    assert len(data.list_records().records) == 6


@pytest.mark.parametrize("line", ["im/{0}.png {1}\n", "im/{0}\t{1}\n", "./im\\{0}.png,{1}\r\n", "set/im/{0} {1}\n"])
def test_text_files_of_names(tmp_path, line):
    listing = read_list(lists(tmp_path, "txt", "", line))
    assert ([r["label"] for r in listing.records], listing.class_names) == ([0, 1] * 3, ["a", "b"])
    assert listing.records[0]["path"].endswith("/im/0.png")


def test_text_files_without_classes_and_of_masks(tmp_path):
    files = {f"images/{c}/{i} x.png": PNG for c in ("apple pie", "soup") for i in range(2)}
    write(tmp_path, files | {"meta/train.txt": "apple pie/0 x.png\nsoup/1 x.png\n", "meta/test.txt": "soup/0 x.png\n"})
    listing = read_list(tmp_path / "meta")
    assert ([r["label"] for r in listing.records], listing.class_names) == ([0, 1, 1], ["apple pie", "soup"])
    rooted = read_list(write(tmp_path, {"l.txt": "soup/0 x.png"}) / "l.txt", image_root=tmp_path / "images")
    assert rooted.class_names == ["soup"]
    with pytest.raises(UserError, match=r"l.txt, line 1: '0 x.png' names no class"):
        read_list(write(tmp_path, {"l.txt": "0 x.png"}) / "l.txt", image_root=tmp_path / "images/soup")
    with pytest.raises(UserError, match=r"l.txt, line 2: 1 parts, where line 1 has 2"):
        read_list(write(tmp_path, {"l.txt": "a.png x\nb.png"}) / "l.txt")
    pair = write(tmp_path / "m", {"i/a b.png": PNG, "m/a b.png": PNG, "train.txt": "i/a b.png m/a b.png\n"})
    record = masks(pair).records[0]
    assert (record["path"], record["mask"]) == (f"{pair}/i/a b.png", f"{pair}/m/a b.png")
    assert record["split"] == "train"


def test_image_root_and_backslashes_in_lists(tmp_path):
    write(tmp_path, {"pix/a/0.png": PNG, "lists/l.csv": "path,label\na\\0.png,x\n"})
    write(tmp_path, {"lists/m.csv": "path,mask\na\\0.png,a/0.png\n"})
    (record,) = read_list(tmp_path / "lists/l.csv", image_root=tmp_path / "pix").records
    assert record["path"] == f"{tmp_path}/pix/a/0.png"
    (record,) = masks(tmp_path / "lists/m.csv", image_root=str(tmp_path / "pix")).records
    assert record["path"] == record["mask"] == f"{tmp_path}/pix/a/0.png"
    with pytest.raises(UserError, match=r"image_root is set, but data.source .* is neither a list nor COCO's"):
        masks(write(tmp_path / "f", {"images/0.png": PNG, "masks/0.png": PNG}), image_root="x")
    with pytest.raises(UserError, match=r"l.csv, line 2: image 'a\\0.png' does not exist"):
        read_list(tmp_path / "lists/l.csv")


def test_lists_that_do_not_go_together(tmp_path):
    lists(tmp_path)
    write(tmp_path, {"val.csv": "path,kind\nim/0.png,a\n"})
    with pytest.raises(UserError, match=r"train.csv' has the columns path, label, but '.*val.csv' has path, kind"):
        read_list(tmp_path)
    with pytest.raises(UserError, match=r"'.*/x_{split}.csv' matches no file"):
        read_list(f"{tmp_path}/x_{{split}}.csv")
    (tmp_path / "test.csv").unlink()
    write(tmp_path, {"val.csv": "path,label,split\nim/0.png,a,train\n", "train.csv": "path,label,split\nim/1.png,a,\n"})
    with pytest.raises(UserError, match=r"val.csv, line 2: split is 'train', but the list is that of val"):
        read_list(tmp_path)
    with pytest.raises(UserError, match=r"train.csv' and '.*train.txt' are both of the train split"):
        read_list(write(tmp_path, {"train.txt": "im/0.png a"}))


CELLS = {
    '["cat", "dog"]': [1, 1],
    "['dog']": [0, 1],
    "cat;dog": [1, 1],
    "cat|dog": [1, 1],
    "cat, dog": [1, 1],
    "[]": [0, 0],
    "dog": [0, 1],
}


@pytest.mark.parametrize(("cell", "label"), CELLS.items(), ids=CELLS)
def test_several_labels_in_a_cell(tmp_path, cell, label):
    quoted = '"' + cell.replace('"', '""') + '"'
    other = "cat;dog" if ";" in cell or "|" in cell else "cat,dog"
    write(tmp_path, {"a.png": PNG, "b.png": PNG, "l.csv": f'path,labels\na.png,{quoted}\nb.png,"{other}"\n'})
    listing = read_list(tmp_path / "l.csv")
    assert (listing.class_names, [r["label"] for r in listing.records]) == (["cat", "dog"], [label, [1, 1]])


@pytest.mark.parametrize(
    ("column", "cells", "message"),
    [
        ("label", ["cat;dog", "cat"], "line 2: the label is 'cat;dog', which holds several classes.*separated by ; or"),
        ("label", ["cat", "cat|dog"], "line 3: the label is 'cat|dog'"),
        ("label", ["cat,dog", "cat", "dog"], "line 2: the label is 'cat,dog'"),
        ("label", ["a,b", "b,c", "c,a"], "line 2: the label is 'a,b'"),
        ("label", ["['cat']", "dog"], "line 2: the label is .*'cat'.*, which holds several"),
        (
            "labels",
            ["haze primary", "primary", "haze"],
            "line 2: the labels are 'haze primary'; blanks do not",
        ),
        ("labels", ["['cat' 'dog']", "cat"], "line 2: the labels are .* which is no list; classes are separated by"),
        ("labels", ["[cat, dog]", "cat"], "line 2: the labels are '.cat, dog.', which is no list"),
        ("labels", ["{'cat': 1}", "cat"], "line 2: the labels are .* which is no list"),
    ],
)
def test_cells_that_are_not_clear_are_refused(tmp_path, column, cells, message):
    rows = "".join(f'{i}.png,"{cell}"\n' for i, cell in enumerate(cells))
    write(tmp_path, {f"{i}.png": PNG for i in range(3)} | {"l.csv": f"path,{column}\n{rows}"})
    with pytest.raises(UserError, match=message):
        read_list(tmp_path / "l.csv")


@pytest.mark.parametrize(
    ("column", "cells"),
    [
        ("label", ["great white shark, man-eater", "hammerhead, hammerhead shark"]),
        ("label", ["Brussels, Belgium", "Ghent, Belgium"]),
        ("label", ["red car", "red bus", "car"]),
        ("labels", ["traffic light", "bus"]),
    ],
)
def test_names_with_commas_and_blanks_stay_whole(tmp_path, column, cells):
    rows = "".join(f'{i}.png,"{cell}"\n' for i, cell in enumerate(cells))
    write(tmp_path, {f"{i}.png": PNG for i in range(3)} | {"l.csv": f"path,{column}\n{rows}"})
    assert read_list(tmp_path / "l.csv").class_names == sorted(cells)


def test_a_list_in_a_cell_of_one_label(tmp_path):
    write(tmp_path, {"a.png": PNG})
    pq.write_table(pa.table({"path": ["a.png"], "label": [["cat", "dog"]]}), tmp_path / "l.parquet")
    with pytest.raises(UserError, match=r"row 1: the label is \['cat', 'dog'\]; one class is needed"):
        read_list(tmp_path / "l.parquet")


def test_classes_without_a_training_image(tmp_path):
    rows = "".join(f"{i}.png,{'c' if i == 7 else 'ab'[i % 2]},{'val' if i > 5 else 'train'}\n" for i in range(8))
    write(tmp_path, {f"{i}.png": png(i) for i in range(8)} | {"l.csv": "path,label,split\n" + rows})
    with pytest.raises(UserError, match=r"No training image has the class\(es\) \['c'\].*7.png' \(val\)"):
        ClassificationData(source=str(tmp_path / "l.csv"), image_size=32).setup("fit")
    data = ClassificationData(source=str(tmp_path / "l.csv"), image_size=32)
    data.setup("validate")  # of a checkpoint, which may know the class
    assert len(data.records["val"]) == 2
    np.savez(
        tmp_path / "l.npz", images=np.zeros((3, 4, 4), np.uint8), labels=[0, 1, 2], split=["train", "train", "val"]
    )
    with pytest.raises(UserError, match=r"No training image has the class\(es\) \['2'\]"):
        ClassificationData(source=str(tmp_path / "l.npz")).setup("fit")
    several = "path,labels,split\n0.png,a,train\n1.png,a;b,val\n"
    data = ClassificationData(source=str(write(tmp_path, {"m.csv": several}) / "m.csv"), image_size=32, batch_size=1)
    with pytest.warns(UserWarning, match=r"The training images have no label of 1 of 2 classes: \['b'\]"):
        data.setup("fit")


# What benchmarks/fuzz_readers.py found.


@pytest.mark.parametrize("key", ["path", "train", "test"])
def test_names_too_long_for_the_system_are_not_there(tmp_path, key):
    name = "9" * 400
    places = {"path": ".", "train": "images/train", "val": "images/val", key: name}
    text = "".join(f"{place}: {value}\n" for place, value in places.items())
    root = yolo(tmp_path, {"data.yaml": text + "names: [disc]\n"})
    if key == "test":
        assert "there is no test split" in read_boxes(root).notes[0]
    else:
        with pytest.raises(UserError, match=rf"{key} is '{name}'"):
            read_boxes(root)
    darknet = write(tmp_path / "d", {"obj.data": f"train = l.txt\nnames = {name}\n"})
    with pytest.raises(UserError, match="there is no such file"):
        read_boxes(darknet)


def test_numbers_of_more_digits_than_python_reads(tmp_path):
    digits = "9" * 5000
    write(tmp_path, {"0.png": PNG, "a.json": digits, "l.csv": f"path,label\n0.png,{digits}\n"})
    with pytest.raises(UserError, match=r"a\.json' cannot be read as JSON"):
        read_boxes(tmp_path / "a.json", "via")
    assert read_list(tmp_path / "l.csv").class_names == [digits]
    shape = {"label": digits, "points": [[1, 2], [9, 8]], "shape_type": "rectangle"}
    text = json.dumps({"shapes": [shape], "imagePath": "0.png", "imageHeight": HEIGHT, "imageWidth": WIDTH})
    assert read_boxes(write(tmp_path / "b", {"b.json": text, "0.png": PNG})).class_names == [digits]
    with pytest.raises(UserError, match="names is"):
        read_boxes(
            yolo(tmp_path / "y", {"data.yaml": f"train: images/train\nval: images/val\nnames: {{{digits[:400]}: a}}\n"})
        )


@pytest.mark.parametrize(("text", "message"), [("{", "cannot be read as JSON"), ("[1]", "no split.json of a run")])
def test_a_damaged_split_file(tmp_path, text, message):
    write(classes(tmp_path / "set", "."), {"split.json": text})
    with pytest.raises(UserError, match=message):
        ClassificationData(f"{tmp_path}/set", split_file=f"{tmp_path}/set/split.json").list_records()
