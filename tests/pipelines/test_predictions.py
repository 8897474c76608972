"""What `predict` and `test` write can be read back, is the same on any number of ranks, and needs little memory."""

from __future__ import annotations

import csv
import json
import os
import threading
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.common.errors import UserError
from datamodules.readers.digits import digit_scene
from pipelines.callbacks import overlays, predictions
from pipelines.callbacks.originals import Original
from pipelines.callbacks.overlays import ImageFiles
from pipelines.callbacks.predictions import PredictionWriter
from pipelines.outputs.drawing import overlay
from pipelines.outputs.names import output_names, safe_name
from pipelines.outputs.palettes import class_palette
from pipelines.outputs.prediction_files import check_folder, clear_folder
from pipelines.outputs.sheets import GAP

NAMES = ["background", *(str(k) for k in range(10))]


def read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["/x/a.jpg"], ["a"]),
        (["/x/IMG_1.JPG", "/x/Img_2.jpg"], ["IMG_1", "Img_2"]),
        (["/x/a/1.jpg", "/x/b/1.jpg", "/x/b/c.d/2.v1.PNG"], ["a/1", "b/1", "b/c.d/2.v1"]),
        (["/x/a.jpg", "/x/a.png", "/x/A.bmp", "/x/a.jpg.tif"], ["a.jpg", "a.png", "A.bmp", "a.jpg_3"]),
        (["./d/1.jpg", "d/../d/2.jpg"], ["1", "2"]),
        (["../p/1.jpg", "/q/1.jpg"], ["p/1", "q/1"]),
        (["digit_scenes#0/test/0", "digit_scenes#0/test/1"], ["0", "1"]),
        (["digits#5", "x.npz#12", "a:b?.png"], ["digits_5", "x.npz_12", "a_b_"]),
        (["/x/a.jpg", "/x/a.jpg"], ["a.jpg", "a.jpg_1"]),
        ([], []),
    ],
)
def test_output_names(paths: list[str], names: list[str]) -> None:
    assert output_names(paths) == names


class Stub:
    """A task that predicts given masks."""

    num_classes = 0

    def __init__(self, names: list[str]) -> None:
        self.names = names

    @property
    def taught(self) -> Any:
        return self

    def shown(self, predictions: dict[str, Any]) -> dict[str, Any]:
        return predictions

    def rows(self, batch: dict[str, Any], outputs: dict[str, Any], names: list[str]) -> list[dict[str, Any]]:
        areas = [{n: float((m == k).sum()) for k, n in enumerate(names)} for m in outputs["mask"]]
        return [
            {"path": p, **{f"area_{n}": a for n, a in r.items()}} for p, r in zip(batch["path"], areas, strict=True)
        ]

    def captions(self, batch: dict[str, Any], outputs: dict[str, Any] | None, names: list[str]) -> list[str]:
        return [f"no {i}" for i in batch["id"].tolist()]


class Finder(Stub):
    """A task that predicts boxes."""

    num_classes = 11
    captioned = 0

    def rows(self, batch: dict[str, Any], outputs: dict[str, Any], names: list[str]) -> list[dict[str, Any]]:
        return [{"path": path, f"number_{i % 3}": i} for i, path in enumerate(batch["path"])]

    def captions(self, batch: dict[str, Any], outputs: dict[str, Any] | None, names: list[str]) -> list[str]:
        self.captioned += len(batch["path"])
        return super().captions(batch, outputs, names)


def stub_trainer(paths: list[str], names: list[str], fn: str = "predict", rank: int = 0, ranks: int = 1) -> Any:
    records = {fn: [{"path": path} for path in paths]}
    return SimpleNamespace(
        is_global_zero=rank == 0,
        global_rank=rank,
        world_size=ranks,
        state=SimpleNamespace(fn=fn),
        datamodule=SimpleNamespace(class_names=names, class_colors=None, records=records),
        strategy=SimpleNamespace(broadcast=lambda x: x, barrier=lambda name: None),
    )


def batch_of(paths: list[str], ids: list[int], canvas: np.ndarray, sizes: list[tuple[int, int]]) -> dict[str, Any]:
    height, width = canvas.shape[1:3]
    geometry = [[h, w, width / w, height / h, 0, 0] for h, w in sizes]
    image = torch.from_numpy(canvas).permute(0, 3, 1, 2)
    return {"image": image, "path": paths, "id": torch.tensor(ids), "geometry": torch.tensor(geometry)}


def predict(directory: Path, trainer: Any, batches: list[dict[str, Any]], masks: list[list[np.ndarray]]) -> None:
    writer, task = PredictionWriter(directory), Stub(trainer.datamodule.class_names)
    if trainer.world_size == 1:  # ranks that run one after the other would clear each other's files
        writer.setup(trainer, task, trainer.state.fn)
    writer.on_predict_start(trainer, task)
    for i, (batch, some) in enumerate(zip(batches, masks, strict=True)):
        outputs = {"mask": [torch.from_numpy(mask) for mask in some]}
        writer.on_predict_batch_end(trainer, task, outputs, batch, i)
    writer.on_predict_end(trainer, task)


@pytest.fixture
def source(tmp_path: Path) -> tuple[list[str], list[np.ndarray]]:
    """Five files of different sizes, some of one name, one turned by EXIF, and a mask for each."""
    rng = np.random.default_rng(0)
    paths, masks = [], []
    for i, name in enumerate(("a/1.jpg", "a/1.png", "b/1.jpg", "b/deep/2.png", "b/turned.jpg")):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        exif = Image.Exif()
        exif[0x0112] = 6 if "turned" in name else 1
        Image.fromarray(rng.integers(0, 255, (30 + 10 * i, 41, 3), dtype=np.uint8)).save(path, exif=exif)
        size = (41, 30 + 10 * i) if "turned" in name else (30 + 10 * i, 41)
        paths.append(str(path))
        masks.append(rng.integers(0, 11, size, dtype=np.uint8))
    return paths, masks


def test_predict_writes_masks_overlays_and_table(tmp_path: Path, source: Any) -> None:
    paths, masks = source
    canvas = np.zeros((5, 16, 16, 3), np.uint8)
    sizes = [m.shape for m in masks]
    whole = [
        batch_of(paths[i : i + 2], list(range(i, min(i + 2, 5))), canvas[i : i + 2], sizes[i : i + 2])
        for i in (0, 2, 4)
    ]
    predict(tmp_path / "out", stub_trainer(paths, NAMES), whole, [masks[:2], masks[2:4], masks[4:]])
    names = ["a/1.jpg", "a/1.png", "b/1", "b/deep/2", "b/turned"]
    written = sorted(str(p.relative_to(tmp_path / "out/masks")) for p in (tmp_path / "out/masks").rglob("*.png"))
    assert written == sorted(f"{n}.png" for n in names)
    for name, mask in zip(names, masks, strict=True):
        assert np.array_equal(read(tmp_path / f"out/masks/{name}.png"), mask)
        assert read(tmp_path / f"out/overlays/{name}.jpg").shape == (*mask.shape, 3)
    with open(tmp_path / "out/predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == paths
    assert [row["mask"] for row in rows] == [f"masks/{n}.png" for n in names]
    assert float(rows[1]["area_3"]) == (masks[1] == 4).sum()
    assert not list((tmp_path / "out").glob(".predictions*"))
    assert read(tmp_path / "out/contact_sheet.png").ndim == 3

    # Two ranks, each with every other image, write the same.
    directory = tmp_path / "ranks"
    trainers = [stub_trainer(paths, NAMES, rank=rank, ranks=2) for rank in (1, 0)]
    for trainer in trainers:
        mine = range(trainer.global_rank, 5, 2)
        batches = [batch_of([paths[i]], [i], canvas[:1], [sizes[i]]) for i in mine]
        predict(directory, trainer, batches, [[masks[i]] for i in mine])
    files = [p.relative_to(directory) for p in directory.rglob("*") if p.is_file()]
    assert len(files) == 12
    assert all((directory / p).read_bytes() == (tmp_path / "out" / p).read_bytes() for p in files)


def test_only_the_first_images_are_on_the_contact_sheet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sheets: list[Any] = []
    monkeypatch.setattr(predictions, "contact_sheet", lambda *sheet, wrong: sheets.append((*sheet, any(wrong))))
    paths = []
    for i in range(predictions.SHEET_IMAGES + 2):
        paths.append(str(tmp_path / f"{i:02d}.png"))
        Image.fromarray(np.zeros((2, 2), np.uint8)).save(paths[-1])
    canvas, masks = np.zeros((len(paths), 2, 2, 3), np.uint8), [np.zeros((2, 2), np.uint8)] * len(paths)
    batch = batch_of(paths, list(range(len(paths))), canvas, [(2, 2)] * len(paths))
    predict(tmp_path / "out", stub_trainer(paths, NAMES, fn="test"), [batch], [masks])
    first = paths[: predictions.SHEET_IMAGES]
    assert sheets == [(first, [f"no {i}" for i in range(len(first))], tmp_path / "out/contact_sheet.png", False)]


def test_a_writer_starts_anew_with_each_prediction(tmp_path: Path) -> None:
    """Names of files, boxes and captions of the one before are forgotten."""
    writer = PredictionWriter(tmp_path / "out")
    for paths in (["x/a#0", "x/b#1"], ["y/c#0", "y/d#1"]):
        trainer, task = stub_trainer(paths, NAMES), Finder(NAMES)
        trainer.lightning_module = task
        writer.on_predict_start(trainer, task)
        batch = batch_of(paths, [0, 1], np.zeros((2, 8, 8, 3), np.uint8), [(8, 8)] * 2)
        outputs: dict[str, Any] = {"mask": [torch.zeros(8, 8, dtype=torch.uint8)] * 2}
        if paths[0].startswith("x"):
            outputs = {"boxes": [torch.zeros(0, 4)] * 2, "scores": [torch.zeros(0)] * 2, "labels": [torch.zeros(0)] * 2}
        writer.on_predict_batch_end(trainer, task, outputs, batch, 0)
        writer.on_predict_end(trainer, task)
        assert (tmp_path / "out" / "predictions.json").exists() is paths[0].startswith("x")
        (tmp_path / "out" / "predictions.json").unlink(missing_ok=True)
    assert sorted(path.name for path in (tmp_path / "out/masks").iterdir()) == ["c_0.png", "d_1.png"]


def test_test_writes_the_table_only(tmp_path: Path, source: Any) -> None:
    paths, masks = source
    batch = batch_of(paths, list(range(5)), np.zeros((5, 8, 8, 3), np.uint8), [m.shape for m in masks])
    predict(tmp_path / "out", stub_trainer(paths, NAMES, fn="test"), [batch], [masks])
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["contact_sheet.png", "predictions.csv"]
    assert "mask" not in (tmp_path / "out/predictions.csv").read_text().split("\n")[0]


def test_predict_of_a_set_in_memory(tmp_path: Path) -> None:
    scenes = [digit_scene(i, split="test", size=64) for i in range(2)]
    paths = [s["path"] for s in scenes]
    # The second scene is taken for one of 32 x 64 pixels, letterboxed: rows 16 to 48 of the canvas.
    batch = batch_of(paths, [0, 1], np.stack([s["image"] for s in scenes]), [(64, 64), (32, 64)])
    batch["geometry"][1] = torch.tensor([32, 64, 1, 1, 0, 16])
    masks = [scenes[0]["mask"], np.zeros((32, 64), np.uint8)]
    predict(tmp_path / "out", stub_trainer(paths, NAMES), [batch], [masks])
    assert np.array_equal(read(tmp_path / "out/masks/0.png"), masks[0])
    expected = overlay(scenes[0]["image"], masks[0], class_palette(NAMES))
    assert np.abs(read(tmp_path / "out/overlays/0.jpg").astype(int) - expected).mean() < 8  # JPEG
    plain = scenes[1]["image"][16:48].astype(int)
    assert np.abs(read(tmp_path / "out/overlays/1.jpg") - plain).mean() < 8
    assert read(tmp_path / "out/contact_sheet.png").shape[1] == GAP + 2 * (176 + GAP)
    assert Original(paths[0], np.zeros((4, 4, 3), np.uint8), np.zeros(6, np.float32)).pixels() is None


def test_names_of_images_that_the_data_does_not_list(tmp_path: Path) -> None:
    """Loaders of a user's own: the path itself is the name, made safe, so that nothing is written elsewhere."""
    paths = ["../up/a:b", "/abs/c?.png", ".."]
    batch = batch_of(paths, [0, 1, 2], np.zeros((3, 8, 8, 3), np.uint8), [(8, 8)] * 3)
    predict(tmp_path / "deep/out", stub_trainer([], NAMES), [batch], [[np.zeros((8, 8), np.uint8)] * 3])
    written = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.png"))
    names = ["_", "abs/c_.png", "up/a_b"]
    assert [name for name in written if "masks" in name] == [f"deep/out/masks/{name}.png" for name in names]
    assert all(name.startswith("deep/out/") for name in written)


@pytest.mark.parametrize(("path", "name"), [("", "_"), ("/", "_"), ("..", "_"), ("./..//.", "_"), ("/a/../b*", "a/b_")])
def test_a_safe_name_is_never_empty(path: str, name: str) -> None:
    assert safe_name(path) == name


def test_large_overlays_are_reduced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlays, "MAX_OVERLAY_SIDE", 40)
    monkeypatch.setattr(overlays, "JPEG_QUALITY", 100)
    original = Original("m#0", np.full((20, 80, 3), 100, np.uint8), np.array([20, 80, 1, 1, 0, 0], np.float32))
    files = ImageFiles(tmp_path, "a/b", original, class_palette(["x"]), ["x"])
    files.write_overlay({"boxes": np.array([[40.0, 0, 80, 20]]), "labels": np.array([0])})
    picture = read(tmp_path / "overlays/a/b.jpg").astype(int)
    assert picture.shape == (10, 40, 3)
    assert np.abs(picture[:, :16] - 100).max() < 20  # left of the box
    assert np.abs(picture[2:8, 39] - 100).max() > 40  # its right side


def test_predict_of_several_labels(tmp_path: Path) -> None:
    mask = np.random.default_rng(0).integers(0, 2, (2, 12, 10), dtype=np.uint8)
    batch = batch_of(["m#0"], [0], np.zeros((1, 12, 10, 3), np.uint8), [(12, 10)])
    predict(tmp_path / "out", stub_trainer(["m#0"], ["cell", "nucleus"]), [batch], [[mask]])
    for plane, name in zip(mask, ("cell", "nucleus"), strict=True):
        assert np.array_equal(read(tmp_path / f"out/masks/m_0_{name}.png"), plane * 255)
    assert "masks/m_0_*.png" in (tmp_path / "out/predictions.csv").read_text()


def test_what_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mask = np.zeros((8, 8), np.uint8)
    batch = batch_of(["m#0"], [0], np.zeros((1, 8, 8, 3), np.uint8), [(8, 8)])
    trainer = stub_trainer(["m#0"], NAMES)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"Cannot write .*/file/out: Not a directory\. Make room .*--output"):
        predict(tmp_path / "file" / "out", trainer, [batch], [[mask]])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "masks").write_text("")
    with pytest.raises(UserError, match=r"Cannot write .*/out/masks.*: "):
        predict(tmp_path / "out", trainer, [batch], [[mask]])

    def full(self: Image.Image, path: Path, **options: Any) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(UserError, match=r"Cannot write .*/full/masks/m_0\.png: No space left on device"):
        predict(tmp_path / "full", trainer, [batch], [[mask]])


def test_at_most_two_batches_wait_to_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, written = threading.Event(), []

    def slow(files: ImageFiles, mask: Any) -> None:
        gate.wait(10)
        written.append(files.name)

    monkeypatch.setattr(ImageFiles, "write_mask", slow)
    paths = [f"m#{i}" for i in range(6)]
    trainer, task = stub_trainer(paths, NAMES), Stub(NAMES)
    writer = PredictionWriter(tmp_path / "out")
    writer.on_predict_start(trainer, task)
    for i in range(6):
        batch = batch_of([paths[i]], [i], np.zeros((1, 8, 8, 3), np.uint8), [(8, 8)])
        writer.on_predict_batch_end(trainer, task, {"mask": [torch.zeros(8, 8, dtype=torch.uint8)]}, batch, i)
        assert written if i else not written  # the first batch did not wait
        assert set(written) >= {f"m_{k}" for k in range(i)}  # later ones wait for the batch before
        gate.set()
    writer.on_predict_end(trainer, task)
    assert sorted(written) == [f"m_{i}" for i in range(6)]
    assert os.listdir(tmp_path / "out") == ["predictions.csv"]


# Memory.


class Line(list[Any]):
    """A line of a rank's file, of which one can tell how many there are at a time."""


@pytest.mark.parametrize("ranks", [1, 2])
def test_no_more_than_a_line_a_rank_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ranks: int) -> None:
    alive: weakref.WeakSet[Line] = weakref.WeakSet()
    most_lines = longest_text = 0
    loads, dumps = json.loads, json.dumps

    def read_line(text: str) -> Any:
        nonlocal most_lines
        value = loads(text)
        if isinstance(value, list):
            value = Line(value)
            alive.add(value)
            most_lines = max(most_lines, len(alive))
        return value

    def write_text(value: Any, *args: Any, **kwargs: Any) -> str:
        nonlocal longest_text
        text = dumps(value, *args, **kwargs)
        longest_text = max(longest_text, len(text))
        return text

    Line.__hash__ = object.__hash__  # type: ignore[method-assign,assignment]
    monkeypatch.setattr(json, "loads", read_line)
    monkeypatch.setattr(json, "dumps", write_text)
    count = 200
    paths = [f"m#{i}" for i in range(count)]
    tasks = []
    for rank in reversed(range(ranks)):
        trainer, task = stub_trainer(paths, NAMES, rank=rank, ranks=ranks), Finder(NAMES)
        trainer.lightning_module = task
        writer = PredictionWriter(tmp_path / "out", ["coco", "yolo", "csv"])
        monkeypatch.setattr(writer, "_submit", lambda *args: None)  # no overlays
        writer.on_predict_start(trainer, task)
        for first in range(0, count, 10):
            ids = list(range(first + rank, first + 10, ranks))
            batch = batch_of([paths[i] for i in ids], ids, np.zeros((len(ids), 8, 8, 3), np.uint8), [(8, 8)] * len(ids))
            found = {"boxes": [torch.tensor([[0.0, 0, 4, 4]])] * len(ids), "scores": [torch.ones(1)] * len(ids)}
            outputs = {**found, "labels": [torch.zeros(1, dtype=torch.int64)] * len(ids)}
            writer.on_predict_batch_end(trainer, task, outputs, batch, first)
        writer.on_predict_end(trainer, task)
        tasks.append(task)
    assert most_lines <= 2 * ranks + 1  # what is read, and what is written
    assert longest_text < 1000
    assert all(task.captioned <= predictions.SHEET_IMAGES + 10 for task in tasks)  # only those that are shown
    with open(tmp_path / "out/predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == paths
    assert set(rows[0]) == {"path", "number_0", "number_1", "number_2"}
    data = loads((tmp_path / "out/annotations.json").read_text())
    assert [image["file_name"] for image in data["images"]] == paths


def test_frames_of_the_contact_sheet_are_read_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """48 frames of a video in 4K would be 1.2 GB."""
    sheets: list[list[Any]] = []
    monkeypatch.setattr(predictions, "contact_sheet", lambda images, captions, path, wrong: sheets.append(images))
    (tmp_path / "clip.mp4").touch()
    frames = [f"{tmp_path / 'clip.mp4'}#{i:06d}" for i in range(3)]
    batch = batch_of(frames, [0, 1, 2], np.zeros((3, 8, 8, 3), np.uint8), [(8, 8)] * 3)
    predict(tmp_path / "out", stub_trainer(frames, NAMES, fn="test"), [batch], [[np.zeros((8, 8), np.uint8)] * 3])
    assert sheets == [frames]


def test_what_an_earlier_call_wrote_is_removed_and_nothing_else(tmp_path: Path) -> None:
    written = ["predictions.csv", "boxes.csv", "classes.txt", "labels/a.txt", "masks/b/a.png", "overlays/a.jpg"]
    for name in (*written, ".predictions.0.jsonl", "notes.md"):
        (tmp_path / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / name).touch()
    with pytest.raises(UserError, match=r"--output .*out holds other files already: notes.md\. Give"):
        check_folder(tmp_path / "out")
    clear_folder(tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [".predictions.0.jsonl", "notes.md"]
    (tmp_path / "own" / "masks").mkdir(parents=True)  # a set's own masks
    with pytest.raises(UserError, match=r"own holds other files already: masks\."):
        check_folder(tmp_path / "own")
    (tmp_path / "own" / ".predictions.0.jsonl").touch()  # an interrupted call
    check_folder(tmp_path / "own")
    check_folder(tmp_path / "new")
