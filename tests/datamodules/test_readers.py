"""Every on-disk format becomes the same plain records, and every mistake in one a message that names it."""

from __future__ import annotations

import json
import struct
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules.annotations.records import FIELDS, sort_classes, split_name, take_objects
from datamodules.common.errors import UserError
from datamodules.readers.arrays import read_arrays
from datamodules.readers.coco import read_coco
from datamodules.readers.digits import read_digits
from datamodules.readers.folder import read_folder
from datamodules.readers.lists import read_list
from datamodules.readers.pictures import find_pictures
from datamodules.readers.torchvision_sets import read_torchvision
from datamodules.readers.voc_boxes import read_voc_boxes
from datamodules.readers.yolo_text import read_yolo
from datamodules.splits import split_records


def touch(root: Path, *names: str) -> Path:
    """Files that look like images to a reader, which never opens them."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


# Folders.


def test_folder_of_classes(tmp_path):
    touch(tmp_path, "dog/b.jpg", "dog/deep/a.PNG", "cat/1.tif", "cat/readme.txt", ".git/x.jpg")
    records, class_names = read_folder(tmp_path)[:2]
    assert class_names == ["cat", "dog"]
    assert [(Path(r["path"]).name, r["label"], r["split"]) for r in records] == [
        ("1.tif", 0, None),
        ("b.jpg", 1, None),
        ("a.PNG", 1, None),
    ]
    assert all(r["image"] == r["path"] and Path(r["path"]).is_file() for r in records)


@pytest.mark.parametrize("val", ["val", "valid", "Validation"])
def test_folder_with_splits(tmp_path, val):
    touch(tmp_path, "train/cat/1.jpg", "train/dog/2.jpg", f"{val}/dog/3.jpg", "test/cat/4.jpg", "unlabeled/5.jpg")
    records, class_names = read_folder(tmp_path)[:2]
    assert class_names == ["cat", "dog"]
    assert [(r["label"], r["split"]) for r in records] == [(0, "train"), (1, "train"), (1, "val"), (0, "test")]


@pytest.mark.parametrize(
    ("files", "folders", "message"),
    [
        ((), (), "holds no images"),
        (("a.jpg",), (), r"1 image\(s\) outside class folders, for example 'a.jpg'"),
        (("cat/1.jpg", "a.jpg"), (), "outside class folders"),
        (("cat/1.jpg",), ("dog",), "dog' holds no image files"),
        (("train/cat/1.jpg",), ("val/cat",), "val/cat' holds no image files"),
        (("train/cat/1.jpg", "val/cats/2.jpg"), (), "'cats' is in .*val' but not in .*train'.* mean 'cat'"),
        (("train/cat/1.jpg", "val/cat/2.jpg", "valid/cat/3.jpg"), (), "both the val split"),
        (("train/cat/1.jpg", "extra/cat/2.jpg"), (), "others beside them: extra"),
        (("train/1.jpg",), (), "outside class folders"),
    ],
)
def test_bad_folders(tmp_path, files, folders, message):
    touch(tmp_path, *files)
    for folder in folders:
        (tmp_path / folder).mkdir(parents=True)
    with pytest.raises(ValueError, match=message):
        read_folder(tmp_path)


def test_missing_folder(tmp_path):
    with pytest.raises(ValueError, match="'data/nothing' does not exist"):
        read_folder("data/nothing")


# Lists.


def write(file: Path, text: str) -> Path:
    """A list, with the images a.jpg, b.jpg and c.jpg beside it."""
    touch(file.parent, "a.jpg", "b.jpg", "c.jpg")
    if file.suffix == ".csv":
        file.write_text(text, encoding="utf-8")
    return file


def parquet(file: Path, columns: dict[str, list]) -> Path:
    import pyarrow
    import pyarrow.parquet

    write(file, "")
    pyarrow.parquet.write_table(pyarrow.table(columns), file)
    return file


def test_csv_with_names(tmp_path):
    text = '\ufeffpath,label,split,weight\na.jpg,wasp,train,2\nb.jpg,NA,valid,1\n\nc.jpg,"ant, red",TEST,0.5\n'
    records, class_names = read_list(write(tmp_path / "x.csv", text))[:2]
    assert class_names == ["NA", "ant, red", "wasp"]
    assert records[0] == {
        "image": str(tmp_path / "a.jpg"),
        "path": str(tmp_path / "a.jpg"),
        "label": 2,
        "split": "train",
        "weight": 2.0,
    }
    assert [(r["label"], r["split"]) for r in records] == [(2, "train"), (0, "val"), (1, "test")]


def test_integer_labels_are_sorted_as_numbers(tmp_path):
    for file in (
        write(tmp_path / "x.csv", "path,label\na.jpg,10\nb.jpg,9\nc.jpg,100\n"),
        parquet(tmp_path / "x.parquet", {"path": ["a.jpg", "b.jpg", "c.jpg"], "label": [10, 9, 100]}),
        parquet(tmp_path / "y.parquet", {"path": ["a.jpg", "b.jpg", "c.jpg"], "label": [10.0, 9.0, 100.0]}),
    ):
        records, class_names = read_list(file)[:2]
        assert class_names == ["9", "10", "100"]
        assert [r["label"] for r in records] == [1, 0, 2]
        assert [r["split"] for r in records] == [None] * 3


def test_blanks_around_names_are_no_part_of_them(tmp_path):
    """Neither in a CSV file nor in parquet, whose cells come as they are."""
    paths = ["a.jpg", "b.jpg", "c.jpg"]
    for file in (
        write(tmp_path / "x.csv", "path,label\na.jpg, cat\nb.jpg,cat \nc.jpg,dog\n"),
        parquet(tmp_path / "x.parquet", {"path": paths, "label": [" cat", "cat ", "dog"]}),
    ):
        records, class_names = read_list(file)[:2]
        assert class_names == ["cat", "dog"]
        assert [record["label"] for record in records] == [0, 0, 1]
    several = parquet(tmp_path / "y.parquet", {"path": paths, "labels": [[" cat"], ["cat ", "dog"], []]})
    assert read_list(several).class_names == ["cat", "dog"]


def test_columns_and_image_root(tmp_path):
    images = touch(tmp_path / "pictures", "sub/a.jpg", "b.jpg")
    (tmp_path / "x.csv").write_text(f"filename,species,label\nsub/a.jpg,cat,7\n{images / 'b.jpg'},dog,8\n")
    listing = read_list(tmp_path / "x.csv", images, {"path": "filename", "label": "species"})
    assert listing.class_names == ["cat", "dog"]
    assert [r["path"] for r in listing.records] == [str(images / "sub" / "a.jpg"), str(images / "b.jpg")]


def test_several_labels(tmp_path):
    for file in (
        write(tmp_path / "x.csv", "path,labels\na.jpg,dog;cat\nb.jpg, bird | dog \nc.jpg,\n"),
        parquet(
            tmp_path / "x.parquet",
            {"path": ["a.jpg", "b.jpg", "c.jpg"], "labels": [["dog", "cat"], ["bird", "dog"], []]},
        ),
    ):
        records, class_names = read_list(file)[:2]
        assert class_names == ["bird", "cat", "dog"]
        assert [r["label"] for r in records] == [[0.0, 1.0, 1.0], [1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]


def test_soft_labels(tmp_path):
    for file, names in (
        (write(tmp_path / "x.csv", "path,probabilities\na.jpg,0.25;0.75\nb.jpg,1;0\n"), ["0", "1"]),
        (
            parquet(tmp_path / "x.parquet", {"path": ["a.jpg", "b.jpg"], "probabilities": [[0.25, 0.75], [1, 0]]}),
            ["0", "1"],
        ),
        (write(tmp_path / "y.csv", "path,p_dog,p_cat\na.jpg,0.75,0.25\nb.jpg,0,1\n"), ["cat", "dog"]),
    ):
        records, class_names = read_list(file)[:2]
        assert class_names == names
        assert [r["label"] for r in records] == [[0.25, 0.75], [1.0, 0.0]]


def test_the_kind_of_label_can_be_chosen(tmp_path):
    file = write(tmp_path / "x.csv", "path,label,probabilities\na.jpg,cat,0.5;0.5\n")
    with pytest.raises(ValueError, match="several kinds of labels: label, probabilities"):
        read_list(file)
    assert read_list(file, columns={"probabilities": "probabilities"}).records[0]["label"] == [0.5, 0.5]
    assert read_list(file, columns={"label": "label"}).records[0]["label"] == 0


@pytest.mark.parametrize(
    ("text", "columns", "message"),
    [
        ("", None, "is empty"),
        ("path,label\n", None, "has no rows"),
        ("path,label,label\na.jpg,1,2\n", None, "column 'label' 2 times"),
        ("path;label\na.jpg;1\n", None, "not separated by commas"),
        ("file,label\na.jpg,1\n", None, r"no column 'path' \(it has: file, label\)"),
        ("path,class\na.jpg,1\n", None, r"no labels.*it has: path, class"),
        ("path,label\na.jpg,1\n", {"label": "lable"}, "no column 'lable'.*Did you mean 'label'"),
        ("path,label\na.jpg,1\n", {"lable": "label"}, "'lable' is no column of a list.*Did you mean 'label'"),
        ("path,label\na.jpg,1\nb.jpg\n", None, "x.csv, line 3: 1 cells"),
        ("path,label\na.jpg,1\nb.jpg,\n", None, "x.csv, line 3: the label is empty"),
        ("path,label\n,1\n", None, "x.csv, line 2: the path is empty"),
        ("path,label,split\na.jpg,1,train\nb.jpg,2,trian\n", None, "x.csv, line 3: split is 'trian'"),
        ("path,label,weight\na.jpg,1,heavy\n", None, "line 2: weight is 'heavy'"),
        ("path,label,weight\na.jpg,1,-1\n", None, "line 2: weight is -1; it must be at least 0"),
        ("path,labels\na.jpg,\n", None, "name no labels"),
        ("path,probabilities\na.jpg,0.5;0.5\nb.jpg,1\n", None, "line 3: 1 probabilities where .* has 2"),
        ("path,probabilities\na.jpg,0.5;1.5\n", None, "line 2: probabilities is 1.5; a probability lies in"),
        ("path,p_a,p_b\na.jpg,0.5,nan\n", None, "line 2: p_b is 'nan'"),
    ],
)
def test_bad_lists(tmp_path, text, columns, message):
    with pytest.raises(ValueError, match=message):
        read_list(write(tmp_path / "x.csv", text), columns=columns)


def test_missing_images_are_named_with_their_row(tmp_path):
    file = write(tmp_path / "x.csv", "path,label\na.jpg,1\nzz.jpg,1\nyy.jpg,2\n")
    with pytest.raises(ValueError, match=r"x\.csv, line 3: image 'zz\.jpg' does not exist.*2 of 3"):
        read_list(file)
    with pytest.raises(ValueError, match=r"x\.parquet, row 1: image 'zz\.jpg'"):
        read_list(parquet(tmp_path / "x.parquet", {"path": ["zz.jpg"], "label": ["a"]}))
    with pytest.raises(ValueError, match=r"'no\.csv' does not exist"):
        read_list("no.csv")


def test_bad_list_files(tmp_path):
    (tmp_path / "x.parquet").write_bytes(b"not parquet at all")
    with pytest.raises(ValueError, match="cannot be read as parquet"):
        read_list(tmp_path / "x.parquet")
    (tmp_path / "x.csv").write_bytes("path,label\ngr\xf6\xdfe.jpg,1\n".encode("latin-1"))
    with pytest.raises(ValueError, match="cannot be decoded as UTF-8"):
        read_list(tmp_path / "x.csv")
    with pytest.raises(ValueError, match=r"neither a \.csv nor a \.parquet"):
        read_list(touch(tmp_path, "x.xlsx") / "x.xlsx")
    with pytest.raises(ValueError, match="row 2: the label is empty"):
        read_list(parquet(tmp_path / "y.parquet", {"path": ["a.jpg", "b.jpg"], "label": ["x", None]}))


# Arrays.


@pytest.mark.parametrize("shape", [(6, 4, 5), (6, 4, 5, 1), (6, 4, 5, 3)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_arrays_with_split(tmp_path, shape, dtype):
    images = (np.arange(np.prod(shape)).reshape(shape) % 200).astype(dtype) / (1 if dtype == np.uint8 else dtype(255))
    images = images.astype(dtype)
    split = np.array(["train", "train", "val", "valid", "test", ""])
    file = tmp_path / "set.npz"
    np.savez(file, images=images, labels=np.array([7, 3, 7, 10, 3, 3]), split=split)
    records, class_names = read_arrays(file)[:2]
    assert class_names == ["3", "7", "10"]
    assert [r["label"] for r in records] == [1, 0, 1, 2, 0, 0]
    assert [r["split"] for r in records] == ["train", "train", "val", "val", "test", None]
    assert records[5]["path"] == f"{file}#5"
    assert records[0]["image"].ndim == 3
    assert records[0]["image"].dtype == dtype
    np.testing.assert_array_equal(records[4]["image"].ravel(), images[4].ravel())


@pytest.mark.parametrize(("x", "y"), [("x_{}", "y_{}"), ("{}_images", "{}_labels")])
def test_arrays_by_split(tmp_path, x, y):
    arrays = {}
    for i, split in enumerate(("train", "val", "test")):
        arrays[x.format(split)] = np.full((i + 2, 3, 3), i, np.uint8)
        arrays[y.format(split)] = np.full((i + 2, 1), i, np.uint8)
    np.savez(tmp_path / "set.npz", **arrays, class_names=np.array(["red", "green", "blue", "unused"]))
    records, class_names = read_arrays(tmp_path / "set.npz")[:2]
    assert class_names == ["red", "green", "blue", "unused"]
    assert Counter((r["split"], r["label"]) for r in records) == {("train", 0): 2, ("val", 1): 3, ("test", 2): 4}
    assert len({r["path"] for r in records}) == 9
    assert records[2]["path"].endswith(f"set.npz#{x.format('val')}/0")


def test_arrays_with_names_several_and_soft_labels(tmp_path):
    images = np.zeros((3, 2, 2), np.uint8)
    np.savez(tmp_path / "a.npz", images=images, labels=np.array(["dog", "cat", "dog"]))
    assert read_arrays(tmp_path / "a.npz").class_names == ["cat", "dog"]
    assert [r["label"] for r in read_arrays(tmp_path / "a.npz").records] == [1, 0, 1]
    np.savez(tmp_path / "b.npz", images=images, labels=np.eye(3, dtype=np.uint8)[:, :2])
    assert [r["label"] for r in read_arrays(tmp_path / "b.npz").records] == [[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]
    np.savez(tmp_path / "c.npz", images=images, labels=np.full((3, 2), 0.5), class_names=np.array(["x", "y"]))
    listing = read_arrays(tmp_path / "c.npz")
    assert listing.class_names == ["x", "y"]
    assert listing.records[1]["label"] == [0.5, 0.5]


IMAGES = np.zeros((3, 4, 4), np.uint8)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"pictures": IMAGES}, "no images under a known key.*It has: pictures"),
        ({"images": IMAGES}, "'images' but no 'labels'"),
        ({"images": IMAGES, "labels": np.zeros(2, int)}, "3 images in 'images' and 2 in 'labels'"),
        ({"images": IMAGES.astype(np.int64), "labels": np.zeros(3, int)}, "type int64"),
        ({"images": IMAGES + 2.5, "labels": np.zeros(3, int)}, r"float values in \[2.5, 2.5\]"),
        ({"images": np.zeros((3, 3, 8, 8), np.uint8), "labels": np.zeros(3, int)}, "channels first"),
        ({"images": IMAGES[0], "labels": np.zeros(3, int)}, r"shape \(4, 4\)"),
        ({"images": IMAGES, "labels": np.zeros(3, int), "split": np.array(["train", "dev", "val"])}, "entry 1: 'dev'"),
        ({"images": IMAGES, "labels": np.array([0, 1, 2]), "class_names": np.array(["a", "b"])}, "has the label 2"),
        ({"images": IMAGES, "labels": np.array([0, 1, None], object)}, "Python objects"),
        ({"images": IMAGES, "labels": np.full((3, 2), 3)}, r"values in \[3, 3\]"),
    ],
)
def test_bad_arrays(tmp_path, arrays, message):
    np.savez(tmp_path / "set.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        read_arrays(tmp_path / "set.npz")


def test_files_that_are_no_arrays(tmp_path):
    (tmp_path / "set.npz").write_bytes(b"PK\x03\x04 damaged")
    with pytest.raises(ValueError, match=r"cannot be read as \.npz"):
        read_arrays(tmp_path / "set.npz")
    np.save(tmp_path / "one.npy", IMAGES)
    (tmp_path / "one.npy").rename(tmp_path / "one.npz")
    with pytest.raises(ValueError, match=r"cannot be read as \.npz"):
        read_arrays(tmp_path / "one.npz")
    with pytest.raises(ValueError, match="does not exist"):
        read_arrays(tmp_path / "none.npz")


# torchvision.


def test_torchvision_arrays(tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    images = {"train": np.arange(4 * 6, dtype=np.uint8).reshape(4, 2, 3), "t10k": np.full((2, 2, 3), 9, np.uint8)}
    for part, pixels in images.items():
        (raw / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 2051, *pixels.shape) + pixels.tobytes())
        labels = np.arange(len(pixels), dtype=np.uint8)
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, len(pixels)) + labels.tobytes())
    records, class_names = read_torchvision("MNIST", tmp_path)[:2]
    assert class_names[7] == "7 - seven"
    assert [(r["split"], r["label"]) for r in records[3:]] == [("train", 3), ("test", 0), ("test", 1)]
    np.testing.assert_array_equal(records[2]["image"], images["train"][2][..., None])
    assert records[2]["path"] == "MNIST#train/2"


def test_torchvision_files(tmp_path):
    root = tmp_path / "food-101"
    for name in ("apple_pie/1", "waffles/2", "waffles/3"):
        file = root / "images" / f"{name}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(file)
    (root / "meta").mkdir()
    (root / "meta" / "train.json").write_text(json.dumps({"apple_pie": ["apple_pie/1"], "waffles": ["waffles/2"]}))
    (root / "meta" / "test.json").write_text(json.dumps({"apple_pie": [], "waffles": ["waffles/3"]}))
    records, class_names = read_torchvision("Food101", tmp_path)[:2]
    assert class_names == ["apple_pie", "waffles"]
    assert [(r["label"], r["split"]) for r in records] == [(0, "train"), (1, "train"), (1, "test")]
    assert records[2]["image"] == str(root / "images" / "waffles" / "3.jpg")


def test_torchvision_missing_and_unknown(tmp_path):
    with pytest.raises(ValueError, match=r"CIFAR10 \(train\) is not complete under .*download=True"):
        read_torchvision("CIFAR10", tmp_path)
    with pytest.raises(ValueError, match=r"'cifar-10' is not known here\. Did you mean 'CIFAR10'"):
        read_torchvision("cifar-10", tmp_path)


def test_every_torchvision_set_of_ours_exists(tmp_path):
    import torchvision.datasets

    from datamodules.readers.torchvision_sets import _SETS

    for name in _SETS:
        assert hasattr(torchvision.datasets, name), name
        with pytest.raises(UserError, match=f"torchvision's {name}"):  # the arguments are right, the files missing
            read_torchvision(name, tmp_path)


# Splits.


def make_records(counts: list[int], top: str = "root") -> list[dict]:
    return [
        {"path": f"{top}/{label}/{i}.jpg", "label": label, "split": None}
        for label, count in enumerate(counts)
        for i in range(count)
    ]


def by_path(records: list[dict]) -> dict[str, str]:
    return {"/".join(Path(r["path"]).parts[-2:]): r["split"] for r in records}


def test_split_is_stratified_and_exact():
    records = make_records([100, 50, 20])
    split_records(records, val=0.1, test=0.2, seed=0)
    counts = Counter((r["label"], r["split"]) for r in records)
    assert [counts[label, "val"] for label in range(3)] == [10, 5, 2]
    assert [counts[label, "test"] for label in range(3)] == [20, 10, 4]


def test_split_depends_on_seed_and_relative_paths_only():
    first, again, moved, other = (make_records([30, 30], top) for top in ("a", "a", "/mnt/b/c", "a"))
    again.reverse()
    for records, seed in ((first, 1), (again, 1), (moved, 1), (other, 2)):
        split_records(records, val=0.2, test=0.2, seed=seed)
    assert by_path(first) == by_path(again) == by_path(moved)
    assert by_path(first) != by_path(other)


def test_split_of_small_classes():
    records = make_records([1, 2, 3, 2, 1, 2, 40] + [1] * 30)
    split_records(records, val=0.4, test=0.4, seed=0)
    counts = Counter((r["label"], r["split"]) for r in records)
    assert all(counts[label, "train"] >= 1 for label in range(37))
    assert counts[6, "train"] >= 6  # single images do not push their share onto a large class
    many = make_records([4] * 100)
    split_records(many, val=0.1, test=0.0, seed=0)
    assert Counter(r["split"] for r in many) == {"train": 360, "val": 40}


def test_split_keeps_what_is_given_and_takes_several_labels():
    records = [{"path": f"{i}", "label": [0.0, 1.0], "split": "test" if i < 5 else None} for i in range(25)]
    split_records(records, val=0.25, test=0.0, seed=3)
    assert Counter(r["split"] for r in records) == {"test": 5, "val": 5, "train": 15}
    assert all(r["split"] == "test" for r in records[:5])


def test_bad_splits():
    with pytest.raises(ValueError, match="sum to below 1"):
        split_records(make_records([5]), val=0.5, test=0.5, seed=0)
    with pytest.raises(ValueError, match=r"val fraction of 0\.1 of 2 images holds no image"):
        split_records(make_records([1, 1]), val=0.1, test=0.0, seed=0)


def test_a_fraction_of_few_images_is_one_of_them():
    for counts, splits in (
        ([3], {"train": 2, "val": 1}),
        ([2, 2], {"train": 3, "val": 1}),
        ([1, 2], {"train": 2, "val": 1}),
    ):
        records = make_records(counts)
        split_records(records, val=0.1, test=0.0, seed=0)
        assert Counter(r["split"] for r in records) == splits
        assert {r["label"] for r in records if r["split"] == "train"} == set(range(len(counts)))
    records = make_records([5])
    split_records(records, val=0.1, test=0.05, seed=0)
    assert Counter(r["split"] for r in records) == {"train": 3, "val": 1, "test": 1}


def test_a_weight_may_be_zero(tmp_path):
    records = read_list(write(tmp_path / "x.csv", "path,label,weight\na.jpg,1,0\nb.jpg,2,1.5\n")).records
    assert [record["weight"] for record in records] == [0.0, 1.5]


def test_probabilities_may_be_zero_and_one(tmp_path):
    records = read_list(write(tmp_path / "x.csv", "path,p_b,p_a\na.jpg,0,1\n")).records
    assert records[0]["label"] == [1.0, 0.0]  # in the order of the names: a, b


def test_records_are_of_the_documented_fields(tmp_path):
    """Every key that a reader writes is in FIELDS, with its type, and with one entry an object where it says so."""
    touch(tmp_path, "folder/cat/1.jpg", "lists/a.jpg")
    (tmp_path / "lists" / "x.csv").write_text("path,label,split,weight\na.jpg,1,train,2\n")
    np.savez(tmp_path / "x.npz", images=np.zeros((2, 4, 4), np.uint8), labels=np.array([[0.5, 0.5], [1, 0]]))
    Image.new("L", (30, 20)).save(tmp_path / "b.png")
    (tmp_path / "b.txt").write_text("0 .5 .5 1 1\n0 0 0 .5 0 .5 .5\n")
    (tmp_path / "b.xml").write_text(
        "<annotation><object><name>a</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
        "</object></annotation>"
    )
    annotations = [{"id": 3, "image_id": 7, "category_id": 1, "bbox": [1, 2, 3, 4], "area": 9}]
    coco = {"images": [{"id": 7, "file_name": "b.png"}], "categories": [{"id": 1, "name": "a"}]}
    (tmp_path / "b.json").write_text(json.dumps({**coco, "annotations": annotations}))
    listings = [
        read_folder(tmp_path / "folder"),
        read_list(tmp_path / "lists" / "x.csv"),
        read_arrays(tmp_path / "x.npz"),
        read_digits(),
        read_coco(tmp_path / "b.json"),
        read_yolo(tmp_path),
        read_voc_boxes(tmp_path),
    ]
    for listing in listings:
        for record in listing.records:
            assert_documented(record)


def assert_documented(record: dict) -> None:
    for key, value in record.items():
        field = FIELDS[key]
        assert isinstance(value, field.types), key
        if field.dtype:
            assert value.dtype == field.dtype, key
            assert value.ndim == len(field.shape), key
            assert all(want in (None, have) for want, have in zip(field.shape, value.shape, strict=True)), key
        if field.per_object and value is not None:
            assert len(value) == len(record["boxes"]), key


def test_objects_are_taken_with_all_that_belongs_to_them():
    record = {"path": "a", "boxes": np.arange(12.0).reshape(3, 4), "segmentation": ["x", None, "z"]}
    record |= {key: np.arange(3) for key in ("labels", "iscrowd", "area", "annotation_ids")}
    taken = take_objects(record, np.array([2, 0]))
    assert taken["boxes"].tolist() == [[8, 9, 10, 11], [0, 1, 2, 3]]
    assert taken["segmentation"] == ["z", "x"]
    assert [taken[key].tolist() for key in ("labels", "iscrowd", "area", "annotation_ids")] == [[2, 0]] * 4
    assert taken["path"] == "a"
    assert record["labels"].tolist() == [0, 1, 2]
    assert take_objects({**record, "segmentation": None}, np.array([1]))["segmentation"] is None


@pytest.mark.parametrize(
    ("word", "split"),
    [("train", "train"), (" VALID ", "val"), ("validation", "val"), ("val", "val"), ("Test", "test"), ("dev", None)],
)
def test_names_of_splits(word, split):
    assert split_name(word) == split


def test_classes_are_sorted_as_numbers_only_where_all_are_numbers():
    assert sort_classes(["10", "9", "-1", "9"]) == ["-1", "9", "10"]
    assert sort_classes(["10", "9", "a"]) == ["10", "9", "a"]
    assert sort_classes(["10", "9", "007"]) == ["007", "10", "9"]


def test_pictures_to_predict(tmp_path):
    for name in ("a/1.png", "a/2.png", "b/3.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    (tmp_path / "list.txt").write_text("b/3.jpg\n\na/1.png\n")
    (tmp_path / "list.csv").write_text("path,label\na/2.png,x\n")
    (tmp_path / "1.png").write_bytes((tmp_path / "a/1.png").read_bytes())  # a number with a suffix is a file
    assert find_pictures("a/*.png") == ["a/1.png", "a/2.png"]
    assert find_pictures("**/[12].png") == ["1.png", "a/1.png", "a/2.png"]
    assert find_pictures("list.txt") == ["b/3.jpg", "a/1.png"]
    assert find_pictures(str(tmp_path / "list.csv")) == [str(tmp_path / "a/2.png")]
    assert find_pictures(["a/2.png", "a", "b"]) == ["a/2.png", "a/1.png", "b/3.jpg"]
    for source, said in (("https://x.org/a.jpg", "web address"), ("0", "camera"), ("a/*.gif", "matches no file")):
        with pytest.raises(UserError, match=said):
            find_pictures(source)
    (tmp_path / "list.txt").write_text("b/4.jpg\n")
    with pytest.raises(UserError, match=r"list\.txt: there is no file b/4\.jpg"):
        find_pictures("list.txt")
