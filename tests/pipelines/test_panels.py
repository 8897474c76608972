"""Panels, overlays and label PNGs show what they should; what `predict` writes can be read back."""

from __future__ import annotations

import csv
import os
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.readers.digits import digit_scene
from pipelines.callbacks import predictions
from pipelines.callbacks.pictures import original_image
from pipelines.callbacks.predictions import PredictionWriter, output_names
from pipelines.outputs import panels
from pipelines.outputs.figures import FONT_SIZE, GAP

NAMES = ["background", *(str(k) for k in range(10))]
TOP = GAP + FONT_SIZE + 4  # of the first tile in a panel


def read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


# Colours.


@pytest.mark.parametrize("classes", [1, 2, 21, 255])
def test_colors_differ(classes: int) -> None:
    palette = panels.default_palette(classes)
    assert palette.dtype == np.uint8
    assert palette.shape == (256, 3)
    assert palette[0].tolist() == [0, 0, 0]
    assert palette[255].tolist() == list(panels.IGNORE_COLOR)
    used = palette[[*range(classes), 255]]
    assert len(np.unique(used, axis=0)) == min(classes, 255) + 1
    assert not palette[classes:255].any()
    if classes <= 21:
        apart = np.linalg.norm(panels._lab(used)[:, None] - panels._lab(used)[None], axis=2) + 1e3 * np.eye(len(used))
        assert apart.min() > 20  # in CIELAB 2 is just noticeable


def test_colors_of_a_data_set() -> None:
    assert np.array_equal(panels.class_palette(["Background", "a"]), panels.default_palette(2))
    roads = panels.class_palette(["road", "sky"])
    assert roads[:2].any(axis=1).all()
    assert np.array_equal(roads[0], panels.class_palette(["background", "sky"])[1])
    own = panels.class_palette(["road", "sky"], [[1, 2, 3], [4, 5, 6]])
    assert own[:2].tolist() == [[1, 2, 3], [4, 5, 6]]
    assert own[255].tolist() == list(panels.IGNORE_COLOR)
    assert panels.class_palette([])[1:255].any(axis=1).all()  # no names known: a colour for every number
    with pytest.raises(ValueError, match="at most 255 classes, got 256"):
        panels.default_palette(256)


# Files.


def test_label_png_holds_the_classes(tmp_path: Path) -> None:
    mask = np.arange(256, dtype=np.uint8).reshape(8, 32).repeat(3, axis=1)
    path = panels.label_png(mask[:, ::-1], panels.default_palette(11), tmp_path / "new" / "a.b.png")
    with Image.open(path) as image:
        assert image.mode == "P"
        assert image.size == (96, 8)
        assert np.array_equal(np.asarray(image), mask[:, ::-1])
        assert np.array_equal(np.asarray(image.convert("RGB")), panels.default_palette(11)[mask[:, ::-1]])
    assert path.read_bytes()[24:26] == bytes([8, 3])  # bit depth, colour type: palette


def test_label_pngs_of_several_labels(tmp_path: Path) -> None:
    mask = np.random.default_rng(0).integers(0, 2, (3, 5, 7), dtype=np.uint8)
    files = panels.label_pngs(mask, ["cell", "a/b", "a:b"], tmp_path / "sub" / "x")
    assert [f.name for f in files] == ["x_cell.png", "x_a_b_1.png", "x_a_b_2.png"]
    for plane, path in zip(mask, files, strict=True):
        assert np.array_equal(read(path), plane * 255)


# Drawing.


def test_overlay() -> None:
    image = np.full((20, 30, 3), 100, np.uint8)
    mask = np.zeros((20, 30), np.uint8)
    mask[5:15, 5:15], mask[5:15, 15:25], mask[18:, :] = 1, 2, 255
    palette = panels.default_palette(3)
    picture = panels.overlay(image, mask, palette, alpha=0.6)
    assert np.array_equal(image, np.full_like(image, 100))
    assert picture[2, 2].tolist() == [100] * 3  # background has no colour
    for place, label in (((10, 8), 1), ((10, 20), 2)):
        assert np.abs(picture[place] - (0.4 * 100 + 0.6 * palette[label])).max() <= 1
    for place, label in (((5, 8), 1), ((10, 14), 1), ((10, 15), 2), ((18, 3), 255)):  # borders
        assert picture[place].tolist() == palette[label].tolist()
    assert picture[19, 29].tolist() != palette[255].tolist()  # the image's edge is no border
    with pytest.raises(ValueError, match=r"mask is \(20, 30\), the image \(20, 31\)"):
        panels.overlay(np.zeros((20, 31), np.uint8), mask, palette)


def test_overlay_of_several_labels() -> None:
    mask = np.zeros((2, 20, 20), np.uint8)
    mask[0, :, :12], mask[1, :, 8:], mask[:, 18:] = 1, 1, 255
    palette = panels.class_palette(["a", "b"])
    picture = panels.overlay(np.zeros((20, 20, 1), np.uint8), mask, palette, alpha=0.5)
    first, second = palette[0] / 2, palette[1] / 2
    assert np.abs(picture[5, 2] - first).max() <= 1
    assert np.abs(picture[5, 16] - second).max() <= 1
    assert np.abs(picture[5, 10] - (first / 2 + second)).max() <= 1  # both
    assert picture[5, 11].tolist() != picture[5, 10].tolist()  # the border of the first


def test_boxes_and_objects() -> None:
    scene = digit_scene(3, split="val", size=256)
    boxes, labels, image = scene["boxes"], scene["labels"], scene["image"]
    palette = panels.class_palette(NAMES[1:])
    picture = panels.draw_boxes(image, boxes, labels, np.linspace(0.2, 0.9, len(boxes)), NAMES[1:], palette)
    for box, label in zip(boxes.astype(int), labels, strict=True):
        assert picture[(box[1] + box[3]) // 2, box[0]].tolist() == palette[label].tolist()
        assert picture[box[3] - 1, (box[0] + box[2]) // 2].tolist() == palette[label].tolist()
        above = picture[max(0, box[1] - FONT_SIZE - 3) : box[1], box[0] : box[2]]
        assert (above == palette[label]).all(axis=2).any()  # its caption
    assert np.array_equal(picture[-1, -1], image[-1, -1])
    padded = panels.draw_boxes(image, np.zeros((2, 4)), np.array([-1, -1]))
    assert np.array_equal(padded, image)
    numbered = panels.draw_boxes(image, boxes, labels, palette=palette, masks=scene["masks"])
    single = np.stack([scene["masks"][0] == i + 1 for i in range(len(boxes))])
    assert np.array_equal(numbered, panels.draw_boxes(image, boxes, labels, palette=palette, masks=single))
    changed = (numbered != panels.draw_boxes(image, boxes, labels, palette=palette)).any(axis=2)
    assert changed.sum() > 0.8 * (scene["masks"][0] > 0).sum()
    assert not (changed & (scene["masks"][0] == 0)).any()


# Panels.


def test_panel_shows_truth_prediction_and_error() -> None:
    image = np.full((100, 150, 3), 80, np.uint8)
    truth, prediction = np.zeros((2, 100, 150), np.uint8)
    truth[20:60, 20:60] = prediction[20:60, 40:80] = 4
    truth[90:] = 255
    palette = panels.class_palette(NAMES)
    picture = panels.panel(image, {"mask": truth}, {"mask": prediction}, palette, NAMES)
    assert picture.shape == (TOP + 100 + GAP + FONT_SIZE + 4 + GAP, GAP + 4 * (150 + GAP), 3)
    shown, true, predicted, error = (
        picture[TOP : TOP + 100, left : left + 150] for left in range(GAP, 4 * (150 + GAP), 150 + GAP)
    )
    assert np.array_equal(shown, image)
    assert np.array_equal(true, panels.overlay(image, truth, palette))
    assert np.array_equal(predicted, panels.overlay(image, prediction, palette))
    red, grey = ((error == color).all(axis=2) for color in (panels.WRONG_COLOR, panels.IGNORE_COLOR))
    assert np.array_equal(red, (truth != prediction) & (truth != 255))
    assert np.array_equal(grey, truth == 255)
    rest = error[~red & ~grey]
    assert (rest == rest[0]).all()
    assert rest[0].tolist() == [rest[0, 0]] * 3
    legend = picture[TOP + 100 + GAP :]
    for color in (palette[4], panels.IGNORE_COLOR, panels.WRONG_COLOR):
        assert (legend == color).all(axis=2).sum() > 50
    assert not (legend == palette[5]).all(axis=2).any()  # does not occur


def test_panels_without_truth_and_of_any_size() -> None:
    palette = panels.class_palette(NAMES)
    masks = [np.zeros(size, np.uint8) for size in ((960, 1200), (40, 20), (1, 700))]
    samples = [panels.Sample(np.zeros((*m.shape, 1), np.uint8), None, {"mask": m}, "text") for m in masks]
    picture = panels.panels(samples, palette, NAMES)
    heights = [384, 200, 1]
    assert [panels.display_size(m.shape)[0] for m in masks] == heights
    assert picture.shape == (TOP + sum(heights) + 3 * (FONT_SIZE + 4 + GAP), GAP + 2 * (480 + GAP), 3)
    several = {"mask": np.ones((2, 30, 30), np.uint8)}
    assert panels.panel(np.zeros((30, 30, 3), np.uint8), several, several, palette, ["a", "b"]).ndim == 3
    boxes = {"boxes": np.array([[2, 2, 9, 9.0]]), "labels": np.array([1])}
    with_boxes = panels.panel(np.zeros((30, 30, 3), np.uint8), boxes, boxes, palette, ["a", "two\nlines\0"])
    assert with_boxes.shape[1] == GAP + 3 * (180 + GAP)  # boxes have no error picture


def test_error_of_several_labels() -> None:
    truth = np.zeros((2, 1, 4), np.uint8)
    truth[:, 0, 3], truth[0, 0, 2] = 255, 255
    prediction = np.zeros_like(truth)
    prediction[1, 0, 1:] = 1
    error = panels.error_picture(np.zeros((1, 4, 3), np.uint8), truth, prediction)[0]
    assert [tuple(c) == panels.WRONG_COLOR for c in error.tolist()] == [False, True, True, False]
    assert tuple(error[3].tolist()) == panels.IGNORE_COLOR


def test_rescaling_takes_the_nearest_pixel_and_moves_boxes() -> None:
    mask = torch.arange(24, dtype=torch.uint8).reshape(4, 6)
    values = {"mask": [mask], "boxes": torch.tensor([[[0.0, 1, 6, 4]]]), "labels": torch.tensor([[2]]), "id": [7]}
    small = panels.rescaled(panels.annotation_of(values, 0), (4, 6), (2, 2))
    assert small["mask"].tolist() == [[7, 10], [19, 22]]
    assert small["boxes"].tolist() == [[0, 0.5, 2, 2]]
    assert small["labels"].tolist() == [2]
    assert "id" not in small
    large = panels.rescaled({"mask": mask.numpy()}, (4, 6), (8, 12))
    assert np.array_equal(large["mask"], mask.numpy().repeat(2, 0).repeat(2, 1))


# What `predict` writes.


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["/x/a.jpg"], ["a"]),
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

    def __init__(self, names: list[str]) -> None:
        self.names = names

    def rows(self, batch: dict[str, Any], outputs: dict[str, Any], names: list[str]) -> list[dict[str, Any]]:
        areas = [{n: float((m == k).sum()) for k, n in enumerate(names)} for m in outputs["mask"]]
        return [
            {"path": p, **{f"area_{n}": a for n, a in r.items()}} for p, r in zip(batch["path"], areas, strict=True)
        ]

    def captions(self, batch: dict[str, Any], outputs: dict[str, Any] | None, names: list[str]) -> list[str]:
        return [f"no {i}" for i in batch["id"].tolist()]


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
    expected = panels.overlay(scenes[0]["image"], masks[0], panels.class_palette(NAMES))
    assert np.abs(read(tmp_path / "out/overlays/0.jpg").astype(int) - expected).mean() < 8  # JPEG
    plain = scenes[1]["image"][16:48].astype(int)
    assert np.abs(read(tmp_path / "out/overlays/1.jpg") - plain).mean() < 8
    assert read(tmp_path / "out/contact_sheet.png").shape[1] == GAP + 2 * (176 + GAP)
    assert original_image(paths[0], np.zeros((4, 4, 3), np.uint8), np.zeros(6, np.float32)) is None


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
    with pytest.raises(OSError, match=r"Cannot write .*/file/out: Not a directory\. Make room .*--output"):
        predict(tmp_path / "file" / "out", trainer, [batch], [[mask]])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "masks").write_text("")
    with pytest.raises(OSError, match=r"Cannot write .*/out/masks.*: "):
        predict(tmp_path / "out", trainer, [batch], [[mask]])

    def full(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match=r"Cannot write .*/full/masks/m_0\.png: No space left on device"):
        predict(tmp_path / "full", trainer, [batch], [[mask]])


def test_at_most_two_batches_wait_to_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, written = threading.Event(), []

    def slow(directory: Path, name: str, *rest: Any) -> None:
        gate.wait(10)
        written.append(name)

    monkeypatch.setattr(predictions, "_write_mask", slow)
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
