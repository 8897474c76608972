"""Tar shards: the same records, samples and batches as from files, and messages for archives that cannot be read."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import tarfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from datamodules import ClassificationData, DetectionData, SegmentationData
from datamodules.cache import DecodedCache
from datamodules.checking.whole import check
from datamodules.common.errors import UserError
from datamodules.decoding import archive_index
from datamodules.decoding.archive_index import ArchiveError
from datamodules.decoding.archives import is_member, list_members, read_member
from datamodules.decoding.contents import exists, open_bytes, state_of
from datamodules.decoding.images import read_image
from datamodules.decoding.shards import find_shards, is_shards
from datamodules.decoding.sizes import image_size
from datamodules.readers.pictures import find_pictures
from pipelines.__main__ import main
from tests.conftest import in_child


def write_tar(path: Path, files: dict[str, bytes | str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            data = content.encode() if isinstance(content, str) else content
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def picture(seed: int = 0, size: tuple[int, int] = (20, 24), suffix: str = ".jpg") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3)).astype(np.uint8)
    return cv2.imencode(suffix, pixels)[1].tobytes()


def of_folder(folder: Path, shards: Path, per_shard: int = 5) -> list[str]:
    """The pictures of SPLIT/CLASS folders as shards, with the classes' numbers; the paths in the shards' order."""
    paths = []
    for split in ("train", "val", "test"):
        own = sorted((folder / split).glob("*/*.jpg"))
        for start in range(0, len(own), per_shard):
            files: dict[str, bytes | str] = {}
            for path in own[start : start + per_shard]:
                key = f"{path.parent.name}_{path.stem}"
                files[f"{key}.jpg"] = path.read_bytes()
                files[f"{key}.cls"] = str(["ant", "bee"].index(path.parent.name))
                paths.append(str(path))
            write_tar(shards / f"{split}-{start // per_shard:03d}.tar", files)
    (shards / "classes.txt").write_text("ant\nbee\n")
    return paths


def loaded(source: str, **arguments):
    data = ClassificationData(source, image_size=16, batch_size=4, num_workers=0, seed=3, **arguments)
    data.setup("fit")
    return data


@pytest.mark.parametrize("source", ["shards", "shards/*.tar", "shards/{train,val,test}-*.tar"])
def test_a_run_sees_what_it_sees_of_files(folder, source):
    of_folder(folder, Path("shards"))
    files, shards = loaded(str(folder)), loaded(source)
    assert shards.class_names == ["ant", "bee"]
    assert {split: len(own) for split, own in shards.records.items()} == {"train": 16, "val": 6, "test": 6}
    for ours, theirs in zip(shards.train_dataloader(), files.train_dataloader(), strict=True):
        assert np.array_equal(ours["image"], theirs["image"])  # order and augmentation too
        assert ours["label"].tolist() == theirs["label"].tolist()
        assert all(is_member(path) for path in ours["path"])


def test_workers_read_what_the_process_reads(folder):
    """Forked workers must not share a place in a file."""
    of_folder(folder, Path("shards"))
    alone, workers = loaded("shards"), loaded("shards")
    workers.num_workers = 2
    next(iter(workers.val_dataloader()))  # opened in this process, too
    for ours, theirs in zip(workers.train_dataloader(), alone.train_dataloader(), strict=True):
        assert np.array_equal(ours["image"], theirs["image"])


def test_a_file_in_an_archive_stands_where_a_file_may_stand():
    data = picture(1)
    write_tar(Path("a.tar"), {"./cats/1.jpg": data, "cats/1.cls": "2", "ä b.jpg": picture(2)})
    name = "a.tar#cats/1.jpg"
    assert list_members("a.tar") == [name, "a.tar#cats/1.cls", "a.tar#ä b.jpg"]
    assert (read_member(name), read_member(name, 3, 4)) == (data, data[3:7])
    assert np.array_equal(read_image(name), read_image(data))
    assert (image_size(name), state_of(name).size) == ((20, 24), len(data))
    assert exists("a.tar#ä b.jpg")
    assert not exists("a.tar#cats/1.jp")
    assert not exists("b.tar#cats/1.jpg")
    assert not is_member("digits#12")
    assert not is_member("a.tar")
    with open_bytes(name) as file:
        assert (file.read(3), file.seek(-2, os.SEEK_END), file.read(9)) == (data[:3], len(data) - 2, data[-2:])
    for missing in ("a.tar#cats/2.jpg", "a.tar#" + "x" * 300, "b.tar#1.jpg"):
        with pytest.raises(FileNotFoundError):
            read_image(missing)


def test_the_index_is_made_once_and_follows_its_archive(monkeypatch):
    made = []
    make = archive_index._make_index
    monkeypatch.setattr(archive_index, "_make_index", lambda path, state: (made.append(path), make(path, state))[1])
    write_tar(Path("a.tar"), {"1.jpg": b"one"})
    assert read_member("a.tar#1.jpg") == b"one"
    assert Path("a.tar.index.npz").is_file()
    with ProcessPoolExecutor(1) as pool:
        assert pool.submit(read_member, "a.tar#1.jpg").result() == b"one"
    archive_index.load_index("a.tar", np.array(list(state_of("a.tar")), np.int64))
    assert made == ["a.tar"]
    write_tar(Path("a.tar"), {"0.jpg": b"zero", "1.jpg": b"changed"})
    assert read_member("a.tar#1.jpg") == b"changed"
    Path("a.tar.index.npz").write_bytes(b"damaged")
    os.utime("a.tar", ns=(1, 1))
    assert read_member("a.tar#1.jpg") == b"changed"
    assert len(made) == 3


def test_an_index_that_cannot_lie_beside_its_archive_is_kept_elsewhere(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    write_tar(Path("a.tar"), {"1.jpg": b"one"})
    Path("a.tar.index.npz").mkdir()  # a folder is no file to be replaced, also for root
    assert read_member("a.tar#1.jpg") == b"one"
    assert len(list((tmp_path / "home/pipelines/archives").glob("*.index.npz"))) == 1


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def damage(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at : at + 200] = b"\xff" * 200
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: cut(path, 700), r"a\.tar: the archive is truncated or damaged"),
        (lambda path: cut(path, 1024), r"a\.tar: the archive is truncated: .* at byte 1,024, behind 1 readable"),
        (lambda path: cut(path, 100), r"a\.tar: the archive is truncated or damaged"),
        (lambda path: cut(path, 0), r"a\.tar: the archive is truncated or damaged"),
        (lambda path: damage(path, 1024), r"a\.tar: the archive is damaged at byte 1,024, behind 1 readable"),
        (lambda path: path.write_bytes(path.read_bytes() * 2), r"a\.tar: there is more behind the archive's end"),
        (lambda path: path.write_bytes(b"\x1f\x8b" + bytes(100)), r"a\.tar: the archive is compressed \(gzip\)"),
        (lambda path: path.write_bytes(picture()), r"a\.tar: the archive is truncated or damaged"),
        (lambda path: path.unlink(), r"'a\.tar' cannot be read|'a\.tar' do not exist"),
    ],
)
def test_archives_that_cannot_be_read_are_named(spoil, message):
    path = write_tar(Path("a.tar"), {"1.jpg": b"one", "2.jpg": b"two"})
    spoil(path)
    for read in (list_members, lambda path: find_pictures(str(path))):
        with pytest.raises(UserError, match=message):
            read(path)


def test_names_that_come_twice_and_links_are_refused():
    with tarfile.open("a.tar", "w") as archive:
        for _ in range(2):
            archive.addfile(tarfile.TarInfo("1.jpg"))
    with pytest.raises(ArchiveError, match=r"'1\.jpg' is twice in the archive"):
        list_members("a.tar")
    link = tarfile.TarInfo("2.jpg")
    link.type, link.linkname = tarfile.SYMTYPE, "1.jpg"
    with tarfile.open("b.tar", "w") as archive:
        archive.addfile(link)
    with pytest.raises(ArchiveError, match=r"'2\.jpg' is a link.*--dereference"):
        list_members("b.tar")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("train-000.tar.gz", r"train-000\.tar\.gz: the archive is compressed.*order, resume and ranks"),
        ("packed", r"the archive is compressed"),
        ("http://host/train-{000..009}.tar", "is a stream, which can only be read from the start"),
        ("pipe:cat train.tar", "is a stream"),
        ("train-{000..003}.tar", r"3 of 4 archives of .* do not exist, for example train-001\.tar"),
        ("none-*.tar", "matches no archive"),
    ],
)
def test_sources_that_are_no_archives_are_refused(source, message):
    write_tar(Path("train-000.tar"), {"1.jpg": picture(), "1.cls": "0"})
    Path("packed").mkdir()
    shutil.copy("train-000.tar", "packed/train.tgz")
    for read in (lambda: ClassificationData(source).setup("fit"), lambda: find_pictures(source)):
        with pytest.raises(UserError, match=message):
            read()


def test_which_folders_are_shards(folder):
    for name in ("shards/a.tar", "splits/train/a.tar", "splits/val/a.tar"):
        write_tar(Path(name), {"1.jpg": picture()})
    write_tar(folder / "download.tar", {"1.jpg": b""})
    assert is_shards("shards")
    assert is_shards("splits")
    assert not is_shards(str(folder))  # an archive that was unpacked beside its pictures
    assert [str(path) for path in find_shards("splits")] == ["splits/train/a.tar", "splits/val/a.tar"]
    Path("empty").mkdir()
    assert not is_shards("empty")


# Classes.


def labels_of(files: dict[str, bytes | str], classes: str | None = None, **arguments):
    write_tar(Path("set/train.tar"), files)
    if classes is not None:
        Path("set/classes.txt").write_text(classes)
    data = ClassificationData("set/train.tar", **arguments)
    listing = data.list_records()
    return [record["label"] for record in listing.records], listing.class_names


def test_kinds_of_labels():
    one, two = picture(1), picture(2)
    keep = {"val_fraction": 0.0}
    assert labels_of({"1.jpg": one, "1.cls": "dog", "2.png": two, "2.cls": "cat\n"}, **keep) == ([1, 0], ["cat", "dog"])
    assert labels_of({"1.jpg": one, "1.cls": "7", "2.jpg": two, "2.cls": "5"}, **keep) == ([1, 0], ["5", "7"])
    assert labels_of({"1.jpg": one, "1.json": '{"label": 3, "x": 1}'}, **keep) == ([0], ["3"])
    several = {"1.jpg": one, "1.json": '{"labels": ["a", "b"]}', "2.jpg": two, "2.json": '{"labels": ["b"]}'}
    assert labels_of(several, **keep) == ([[1.0, 1.0], [0.0, 1.0]], ["a", "b"])
    assert labels_of({"1.jpg": one, "1.json": '{"probabilities": [0.2, 0.8]}'}, **keep) == ([[0.2, 0.8]], ["0", "1"])
    numbers = {"1.jpg": one, "1.cls": "2", "._2.jpg": b"x", "2.jpg": two, "2.cls": "a", "__MACOSX/3.jpg": b""}
    assert labels_of(numbers, "a\nb\nc\n", **keep) == ([2, 0], ["a", "b", "c"])


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"1.jpg": b"x", "2.jpg": b"x", "2.cls": "0"}, r"1 of 2 pictures of .* have no \.cls or \.json file.*#1\.jpg"),
        ({"1.jpg": b"x", "1.json": '{"class": 1}'}, r"train\.tar#1\.json: there must be one of the keys label"),
        ({"1.jpg": b"x", "1.json": "{"}, r"train\.tar#1\.json: it is no JSON"),
        ({"1.jpg": b"x", "1.cls": ""}, r"train\.tar#1: the class is ''"),
        ({"1.jpg": b"x", "1.cls": b"\xff\xfe"}, r"train\.tar#1\.cls: it holds no text"),
        ({"1.jpg": b"x", "1.cls": "9"}, r"train\.tar#1: the class is '9'.*nor a number below 2"),
        ({"1.left.jpg": b"x", "1.right.jpg": b"x", "1.cls": "9"}, r"#1 has several pictures: left\.jpg, right\.jpg"),
        ({"1.cls": "0"}, "holds no picture"),
    ],
)
def test_labels_that_cannot_be_read_are_named(files, message):
    with pytest.raises(UserError, match=message):
        labels_of(files, "a\nb\n")


# Boxes.

BOXES = {
    "1.jpg": picture(1),
    "1.json": json.dumps({"boxes": [[1, 2, 11, 12], [3, 3, 9, 9.5]], "labels": ["cat", "dog"], "iscrowd": [0, 1]}),
    "2.jpg": picture(2),
    "2.json": json.dumps(
        {"width": 24, "height": 20, "annotations": [{"bbox": [1, 2, 10, 10], "category": "dog", "iscrowd": 0}]}
    ),
    "3.jpg": picture(3),
    "3.json": '{"boxes": [], "labels": []}',
}


def test_boxes_in_both_layouts():
    write_tar(Path("train.tar"), BOXES)
    data = DetectionData("train.tar", val_fraction=0.0, image_size=32, num_workers=0, batch_size=3)
    data.setup("fit")
    first, second, third = data.records["train"]
    assert data.class_names == ["cat", "dog"]
    assert first["boxes"].tolist() == [[1, 2, 11, 12], [3, 3, 9, 9.5]]
    assert (first["labels"].tolist(), first["iscrowd"].tolist()) == ([0, 1], [0, 1])
    assert (second["boxes"].tolist(), second["labels"].tolist(), len(third["boxes"])) == ([[1, 2, 11, 12]], [1], 0)
    assert [(r["height"], r["width"]) for r in data.records["train"]] == [(20, 24)] * 3
    assert next(iter(data.train_dataloader()))["boxes"].shape[0] == 3


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"objects": []}, r"train\.tar#1\.json: neither 'boxes' nor 'annotations'"),
        ({"boxes": [[1, 2, 3, 4]], "labels": []}, "lists of one length"),
        ({"boxes": [[1, 2, 3]], "labels": ["a"]}, "four numbers are needed"),
        ({"boxes": [[1, 2, 3, "4"]], "labels": ["a"]}, "four numbers are needed"),
        ({"boxes": [[1, 2, 3, 1e400]], "labels": ["a"]}, "four numbers are needed"),
        ({"boxes": [[1, 2, 3, 4]], "labels": [None]}, "the class of an object is None"),
        ({"boxes": [[1, 2, 3, 4]], "labels": ["a"], "iscrowd": [2]}, "iscrowd is 2; it is 0 or 1"),
        ({"boxes": [[1, 2, 3, 4]], "labels": [5]}, "is 5, but there are 2 classes"),
        ({"annotations": [{"category": "cat"}]}, "four numbers are needed"),
        ({"annotations": {"bbox": 1}}, "'annotations' must be a list"),
        ({"annotations": [], "width": "24"}, "width is '24'"),
        ([1], "neither 'boxes'"),
    ],
)
def test_boxes_that_cannot_be_read_are_named(values, message):
    write_tar(Path("train.tar"), {"1.jpg": picture(), "1.json": json.dumps(values)})
    Path("classes.txt").write_text("cat\ndog\n")
    with pytest.raises(UserError, match=message):
        DetectionData("train.tar", val_fraction=0.0).setup("fit")


# Masks.


def mask(value: int, size: tuple[int, int] = (20, 24)) -> bytes:
    pixels = np.zeros(size, np.uint8)
    pixels[5:, 5:] = value
    return cv2.imencode(".png", pixels)[1].tobytes()


def test_masks():
    files = {"1.jpg": picture(1), "1.png": mask(1), "2.png": picture(2, suffix=".png"), "2.seg.png": mask(2)}
    write_tar(Path("set/train-0.tar"), files)
    Path("set/classes.txt").write_text("ground\ntree\nhouse\n")
    data = SegmentationData("set", val_fraction=0.0, image_size=16, num_workers=0, batch_size=2)
    data.setup("fit")
    assert data.class_names == ["ground", "tree", "house"]
    assert [record["mask"] for record in data.records["train"]] == [
        "set/train-0.tar#1.png",
        "set/train-0.tar#2.seg.png",
    ]
    assert [np.unique(data.make_reader()(record)["mask"]).tolist() for record in data.records["train"]] == [
        [0, 1],
        [0, 2],
    ]
    write_tar(Path("set/train-0.tar"), {"1.jpg": picture(1), "2.jpg": picture(2), "2.png": mask(1)})
    with pytest.raises(UserError, match=r"train-0\.tar#1 has no mask, only jpg"):
        SegmentationData("set").setup("fit")
    write_tar(Path("set/train-0.tar"), {"1.jpg": picture(1), "1.png": mask(1, (9, 9))})
    with pytest.raises(UserError, match=r"train-0\.tar#1\.png: the mask is 9 x 9, its image .*#1\.jpg 24 x 20"):
        SegmentationData("set", val_fraction=0.0).setup("fit")


# What works as for files.


def test_check_finds_copies_and_damage_in_shards():
    same = picture(7)
    files = {"1.jpg": same, "2.jpg": picture(2), "3.jpg": picture(3)[:-200]}
    write_tar(Path("set/train.tar"), files | {f"{i}.cls": "0" for i in (1, 2, 3)})
    write_tar(Path("set/val.tar"), {"9.jpg": same, "9.cls": "0"})
    found = {(finding.kind, finding.path) for finding in check(ClassificationData("set")).findings}
    assert ("unreadable", "set/train.tar#3.jpg") in found
    assert ("duplicate-split", "set/val.tar#9.jpg") in found
    write_tar(Path("set/train.tar"), {"1.jpg": same, "1.cls": "0"})
    with pytest.raises(UserError, match=r"set/train\.tar#1\.jpg \(train\) and set/val\.tar#9\.jpg \(val\)"):
        ClassificationData("set", batch_size=1).setup("fit")


def test_the_cache_of_decoded_images(folder, tmp_path):
    of_folder(folder, Path("shards"))
    cached = loaded("shards", cache="decoded", cache_dir=str(tmp_path / "cache"))
    for ours, theirs in zip(cached.train_dataloader(), loaded("shards", cache="none").train_dataloader(), strict=True):
        assert np.array_equal(ours["image"], theirs["image"])
    first = cached._decoded["train"].path
    os.utime("shards/train-000.tar", ns=(1, 1))
    assert DecodedCache.build(cached.records["train"], cached.make_reader(), str(tmp_path / "cache")).path != first


def test_groups_are_the_names_in_the_archive():
    names = [f"{who}_{i}" for who in "abcdef" for i in range(4)]
    pictures = {f"{name}.jpg": picture(i) for i, name in enumerate(names)}
    write_tar(Path("people/all.tar"), pictures | {f"{name}.cls": "0" for name in names})
    listing = ClassificationData("people", group="{group}_*.jpg", val_fraction=0.3).list_records()
    assert sorted({(record["group"], record["split"]) for record in listing.records})[0][0] == "a"
    assert len({(record["group"], record["split"]) for record in listing.records}) == 6


def test_a_list_names_files_in_archives():
    """As lists of pseudo-labels do."""
    write_tar(Path("shards/pool.tar"), {"1.jpg": picture(1), "2.jpg": picture(2)})
    Path("labels").mkdir()
    Path("labels/list.csv").write_text("path,label\n../shards/pool.tar#1.jpg,a\n../shards/pool.tar#2.jpg,b\n")
    listing = ClassificationData("labels/list.csv", val_fraction=0.0).list_records()
    assert [read_image(record["image"]).shape for record in listing.records] == [(20, 24, 3)] * 2
    Path("labels/list.csv").write_text("path,label\n../shards/pool.tar#3.jpg,a\n")
    with pytest.raises(UserError, match=r"image '\.\./shards/pool\.tar#3\.jpg' does not exist"):
        ClassificationData("labels/list.csv").list_records()


CONFIG = """\
model: {class_path: Classification, init_args: {backbone: test_resnet, pretrained: false}}
data:
  class_path: ClassificationData
  init_args: {source: shards, image_size: 16, batch_size: 4, num_workers: 0}
trainer:
  accelerator: cpu
  max_epochs: 1
  num_sanity_val_steps: 0
  enable_progress_bar: false
  enable_model_summary: false
  wandb: {mode: "off"}
"""


@pytest.mark.slow
def test_fit_and_predict_from_archives(folder):
    """Weights after a run are those of a run from files; `predict` writes paths that can be read again."""
    of_folder(folder, Path("shards"))
    Path("run.yaml").write_text(CONFIG)

    def work() -> int:
        fit = ["fit", "--config", "run.yaml", "--seed_everything", "1", "--name"]
        predict = ["predict", "--ckpt_path", "runs/tar/0/checkpoints/last.ckpt", "--source", "shards/val-*.tar"]
        files = [*fit, "files", "--data.source", str(folder)]
        return main([*fit, "tar"]) or main(files) or main([*predict, "--output", "out"])

    assert in_child(work) == 0
    tar, files = (
        torch.load(f"runs/{name}/0/checkpoints/last.ckpt", weights_only=True)["state_dict"] for name in ("tar", "files")
    )
    assert all(torch.equal(tar[key], files[key]) for key in files)
    with open("out/predictions.csv", newline="") as file:
        paths = [row["path"] for row in csv.DictReader(file)]
    assert sorted(paths) == sorted(find_pictures("shards/val-*.tar"))
    assert all(map(exists, paths))
    assert Path("out/contact_sheet.png").is_file()


def test_convert_refuses_shards(capsys):
    write_tar(Path("train.tar"), BOXES)
    assert main(["convert", "--source", "train.tar", "--to", "coco", "--output", "out"]) != 0
    assert "unpack them" in capsys.readouterr().err
