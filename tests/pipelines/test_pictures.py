"""Pictures have the promised shapes, show what they should, and take any text."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.callbacks import kept as keeping
from pipelines.callbacks import pictures as callback
from pipelines.callbacks.originals import Original, palette_of
from pipelines.outputs import figures, fonts, sheets
from pipelines.outputs.drawing import overlay
from pipelines.outputs.palettes import WRONG_COLOR, class_palette

CAPTIONS = ["plain", "日本語 𝔘 🐜 é", "two\nlines", "a_very_long_name_without_any_space_" * 6, "", "$x_", "tab\tnul\0"]


@pytest.mark.parametrize("shape", [(8, 8, 1), (8, 8), (28, 28, 3), (40, 24, 4), (300, 500, 3), (1, 1, 3), (5, 700, 3)])
def test_grid_takes_any_size_and_caption(shape: tuple[int, ...]) -> None:
    images = np.zeros((len(CAPTIONS), *shape), dtype=np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        grid = sheets.image_grid(images, CAPTIONS)
    assert grid.dtype == np.uint8
    assert grid.ndim == 3
    assert grid.shape[2] == 3


def test_grid_enlarges_by_a_whole_number_and_keeps_pixels() -> None:
    image = np.arange(64, dtype=np.uint8).reshape(1, 8, 8, 1) * 3
    grid = sheets.image_grid(image)
    gap = sheets.GAP
    tile = grid[gap:-gap, gap:-gap]
    factor = tile.shape[0] // 8
    assert factor >= 10
    assert tile.shape == (8 * factor, 8 * factor, 3)
    assert np.array_equal(tile[factor // 2 :: factor, factor // 2 :: factor, 1], image[0, ..., 0])


def test_grid_layout_and_limit() -> None:
    images = np.zeros((10, 144, 144, 3), dtype=np.uint8)
    step = 144 + sheets.GAP
    assert sheets.image_grid(images, columns=5).shape == (2 * step + sheets.GAP, 5 * step + sheets.GAP, 3)
    assert sheets.image_grid(images, max_images=2).shape[:2] == (step + sheets.GAP, 2 * step + sheets.GAP)
    with_text = sheets.image_grid(images, ["dog 0.98"] * 10, columns=5)
    assert with_text.shape[0] > 2 * step + sheets.GAP
    below = with_text[step : step + fonts.SIZE + 4]
    assert (below < 100).any()  # ink


@pytest.mark.parametrize(
    ("images", "captions", "said"),
    [
        (np.zeros((2, 8, 8, 3), np.float32), None, "uint8"),
        (np.zeros((0, 8, 8, 3), np.uint8), None, "N > 0"),
        (np.zeros((2, 8, 8, 3), np.uint8), ["a"], "captions"),
    ],
)
def test_grid_refuses(images: np.ndarray, captions: list[str] | None, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        sheets.image_grid(images, captions)


@pytest.mark.parametrize("size", [1, 2, 10, 26, 60, 100])
def test_confusion_matrix(size: int) -> None:
    rng = np.random.default_rng(0)
    matrix = rng.integers(0, 50, (size, size)) + 500 * np.eye(size, dtype=int)
    names = [*CAPTIONS, *(f"class {i}" for i in range(size))][:size]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        picture = figures.confusion_matrix_figure(matrix, names)
    assert picture.dtype == np.uint8
    assert picture.shape[2] == 3
    assert 150 < min(picture.shape[:2]) <= max(picture.shape[:2]) < 2000
    blue = (picture[..., 2] > 90) & (picture[..., 0] < 30)  # dark blue: the diagonal
    assert blue.sum() > picture.shape[0]


def test_confusion_matrix_with_empty_classes_and_wrong_shapes() -> None:
    assert figures.confusion_matrix_figure(np.zeros((3, 3), int), ["a", "b", "c"]).size
    with pytest.raises(ValueError, match=r"\(2, 2\) expected for 2 class names, got \(3, 3\)"):
        figures.confusion_matrix_figure(np.zeros((3, 3), int), ["a", "b"])


def test_reliability_diagram() -> None:
    bins = np.linspace(0.05, 0.95, 10)
    assert figures.reliability_diagram(bins, bins, np.zeros(10)).shape[2] == 3
    assert figures.reliability_diagram(np.full(10, np.nan), bins, np.eye(1, 10, 5)[0]).shape[2] == 3
    with pytest.raises(ValueError, match="three equal lengths expected"):
        figures.reliability_diagram(bins, bins[:5], bins)


def test_contact_sheet_of_files_and_arrays(tmp_path: Path) -> None:
    red = np.zeros((60, 30, 3), np.uint8)
    red[..., 0] = 255
    Image.fromarray(red).save(tmp_path / "röt 1.png")
    deep = np.full((20, 20), 40000, np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff not a picture")
    files = [tmp_path / "röt 1.png", tmp_path / "deep.png", tmp_path / "broken.jpg", tmp_path / "none.png"]
    path = sheets.contact_sheet(
        [*files, np.zeros((8, 8), np.uint8)], [*map(str, files), "array"], tmp_path / "new" / "sheet.png", columns=5
    )
    sheet = np.asarray(Image.open(path))
    assert sheet.shape[1] == 5 * (176 + sheets.GAP) + sheets.GAP
    gap, middle = sheets.GAP, sheets.GAP + 88
    assert sheet[middle, middle].tolist() == [255, 0, 0]
    assert sheet[middle, gap + 5].tolist() == [238, 238, 238]  # keeps its proportions
    with pytest.raises(ValueError, match="0 images"):
        sheets.contact_sheet([], None, tmp_path / "x.png")


def test_importing_needs_no_matplotlib() -> None:
    code = "import sys, pipelines.outputs.figures; sys.exit('matplotlib' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(figures.__file__).parents[2]).returncode == 0


def test_figures_leave_pyplot_alone() -> None:
    code = (
        "import sys, numpy as np; from pipelines.outputs import figures\n"
        "figures.confusion_matrix_figure(np.eye(2, dtype=int), ['a', 'b'])\n"
        "sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(figures.__file__).parents[2]).returncode == 0


def test_confusion_matrix_of_pixels_shows_shares() -> None:
    matrix = np.array([[9_000_000, 1_000_000], [0, 500]])
    large, larger, small = (
        figures.confusion_matrix_figure(counts, ["a", "b"], "title") for counts in (matrix, 10 * matrix, matrix // 500)
    )
    assert np.array_equal(large, larger)
    assert not np.array_equal(large, small)  # counts


@pytest.mark.parametrize("size", [1, 2, 7, 60, 260])
def test_iou_bars(size: int) -> None:
    values = np.linspace(0.9, 0.1, size)
    values[size // 2 + 1 :: 3] = np.nan
    names = [*CAPTIONS, *(f"class {i}" for i in range(size))][:size]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        picture = figures.iou_bars(values, names)
    assert picture.dtype == np.uint8
    assert picture.shape[2] == 3
    assert 90 < min(picture.shape[:2]) <= max(picture.shape[:2]) < 4000


def test_iou_bars_are_sorted() -> None:
    names, values = ["a", "b", "c", "d"], [0.5, np.nan, 0.3, 0.9]
    picture = figures.iou_bars(values, names)
    assert np.array_equal(picture, figures.iou_bars(values[::-1], names[::-1]))
    bars = (picture == (0x4C, 0x78, 0xA8)).all(axis=2).sum(axis=1)
    starts = np.flatnonzero((bars > 20) & (np.roll(bars, 1) <= 20))
    lengths = bars[starts + 1]
    assert np.abs(lengths / lengths[0] - np.array([0.9, 0.5, 0.3]) / 0.9).max() < 0.02
    grey = (picture == 0xEE).all(axis=2).sum(axis=1)
    assert np.flatnonzero(grey > 300).min() > starts[-1]  # what does not occur, below


def test_iou_bars_without_any_class_and_wrong_numbers() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert figures.iou_bars([np.nan, np.nan], ["a", "b"]).size
    with pytest.raises(ValueError, match=r"\(2,\) expected for 2 class names, got \(3,\)"):
        figures.iou_bars([0.1, 0.2, 0.3], ["a", "b"])


def test_what_the_figures_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "rendered", lambda figure, tight=False: figure)
    matrix: Any = figures.confusion_matrix_figure([[6, 2], [1, 1]], ["a", "b"])
    assert matrix.axes[0].get_title() == "70.0% of 10 correct"
    assert matrix.axes[0].images[0].get_array().tolist() == [[0.75, 0.25], [0.5, 0.5]]  # of each true class
    assert [text.get_text() for text in matrix.axes[0].texts] == ["6", "2", "1", "1"]
    assert [label.get_text() for label in matrix.axes[0].get_yticklabels()] == ["a", "b"]
    # Bins of 30 and 10 samples, off by 0.1 and 0.2; the empty one counts for nothing.
    diagram: Any = figures.reliability_diagram([0.3, 0.9, np.nan], [0.4, 0.7, 0.0], [30, 10, 0])
    assert diagram.axes[0].get_title() == "calibration error 0.125 (40 samples)"
    assert [bar.get_height() for bar in diagram.axes[1].patches] == [0.75, 0.25, 0]
    bars: Any = figures.iou_bars([0.5, np.nan, 0.75], ["a", "b", "c"])
    assert bars.axes[0].get_title() == "mean IoU 0.625 of 2 classes"
    assert [text.get_text() for text in bars.axes[0].texts] == ["0.750", "0.500", "does not occur"]


def test_the_numbers_of_a_confusion_matrix_stand_in_their_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows from above are the true classes; a matplotlib position is x, then y."""
    monkeypatch.setattr(figures, "rendered", lambda figure, tight=False: figure)
    matrix: Any = figures.confusion_matrix_figure([[6, 2, 0], [0, 5, 0], [3, 0, 4]], ["a", "b", "c"])
    numbers = {text.get_position(): text.get_text() for text in matrix.axes[0].texts}
    assert numbers == {(0, 0): "6", (1, 0): "2", (1, 1): "5", (0, 2): "3", (2, 2): "4"}
    shares: Any = figures.confusion_matrix_figure([[900_000, 300_000], [0, 7]], ["a", "b"])
    assert {t.get_position(): t.get_text() for t in shares.axes[0].texts} == {
        (0, 0): "0.75",
        (1, 0): "0.25",
        (1, 1): "1.00",
    }


def test_captions_have_three_lines_at_most() -> None:
    lines = sheets._wrapped("one two three four five", fonts.font_for(""), 40)
    assert len(lines) == sheets.CAPTION_LINES
    assert lines[:2] == ["one", "two"]
    assert lines[2].endswith("...")


# Pixels.


@pytest.mark.parametrize(
    ("size", "tile"), [((8, 8), (144, 144)), ((40, 24), (160, 96)), ((150, 200), (150, 200)), ((320, 640), (160, 320))]
)
def test_tiles_are_enlarged_by_a_whole_number_or_reduced(size: tuple[int, int], tile: tuple[int, int]) -> None:
    """By the longer side: 40 pixels are nearest to a tile of 144 four times."""
    scaled = sheets.scaled(np.zeros((*size, 3), np.uint8))
    assert (scaled.height, scaled.width) == tile


def test_batches_as_pictures() -> None:
    values = torch.tensor([0.0, 0.5, 0.999, 2.0, -1.0])
    picture = callback.as_pictures(values.reshape(1, 1, 1, 5).repeat(1, 3, 1, 1))
    assert picture.shape == (1, 1, 5, 3)
    assert picture[0, 0, :, 0].tolist() == [0, 128, 255, 255, 0]
    several = torch.arange(4, dtype=torch.uint8).reshape(1, 4, 1, 1)
    assert callback.as_pictures(several).tolist() == [[[[0]]]]  # not RGB: the first channel


def test_original_pixels_come_from_a_file_of_the_right_size_or_from_the_canvas(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    Image.fromarray(np.full((4, 6, 3), 50, np.uint8)).save(path)
    canvas = np.full((4, 4, 3), 90, np.uint8)
    own = Original(str(path), canvas, np.array([4, 6, 1, 1, 0, 0], np.float32))
    assert own.size == (4, 6)
    assert np.array_equal(own.pixels(), np.full((4, 6, 3), 50, np.uint8))  # type: ignore[arg-type]
    other = Original(str(path), canvas, np.array([4, 8, 1, 1, 0, 0], np.float32)).pixels()
    assert other is not None
    assert other[..., 0].tolist() == [[90] * 4 + [238] * 4] * 4  # the right half was cropped away
    assert Original(str(path), None, np.array([4, 8, 1, 1, 0, 0], np.float32)).pixels() is None


# The callback.

NAMES = ["background", "square"]


class Scores:
    """What the callback asks of a task's metrics."""

    confusion = torch.tensor([[300_000, 1], [20, 4000]])

    def per_class(self) -> dict[str, list[Any]]:
        return {"iou": [0.99, None]}


class SquareTask:
    """Predicts masks in original pixels, wrong in one corner."""

    eval_metrics = Scores()
    finds_boxes = False

    @property
    def taught(self) -> Any:
        return self

    def captions(self, batch: dict[str, Any], outputs: dict[str, Any] | None, names: list[str]) -> list[str]:
        assert outputs is None or len(outputs["mask"]) == len(batch["image"]) == len(batch["target"])
        return [f"no {path}" for path in batch["path"]]

    def rows(self, batch: dict[str, Any], outputs: dict[str, Any], names: list[str]) -> list[dict[str, Any]]:
        return [{"path": path} for path in batch["path"]]


def squares(first: int, count: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """A batch of letterboxed 64 x 64 canvases of pictures of 1200 x 300 pixels, and predictions."""
    mask = torch.zeros(1200, 300, dtype=torch.uint8)
    mask[300:600, 100:200] = 1
    wrong = mask.clone()
    wrong[:300, :150] = 1
    geometry = torch.tensor([1200, 300, 16 / 300, 64 / 1200, 24, 0.0]).repeat(count, 1)
    batch = {
        "image": torch.full((count, 3, 64, 64), 90, dtype=torch.uint8),
        "mask": torch.ones(count, 64, 64, dtype=torch.uint8),
        "target": [{"mask": mask}] * count,
        "geometry": geometry,
        "path": [f"squares#{first + i}" for i in range(count)],
        "id": torch.arange(first, first + count),
    }
    return batch, {"mask": [wrong] * count}


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, tuple[int, ...]]]:
    calls: list[tuple[str, int, tuple[int, ...]]] = []
    record = lambda loggers, key, image, step: calls.append((key, step, image.shape))  # noqa: E731
    monkeypatch.setattr(callback, "log_image", record)
    return calls


def stub_trainer(fn: str = "fit", names: list[str] = NAMES) -> Any:
    return SimpleNamespace(
        is_global_zero=True,
        sanity_checking=False,
        testing=fn == "test",
        current_epoch=0,
        global_step=1,
        loggers=[],
        state=SimpleNamespace(fn=fn),
        datamodule=SimpleNamespace(class_names=names),
    )


def validate(watcher: callback.Pictures, trainer: Any, task: Any, sizes: tuple[int, ...] = (3, 3, 3)) -> None:
    watcher.on_validation_start(trainer, task)
    for i, size in enumerate(sizes):
        batch, outputs = squares(sum(sizes[:i]), size)
        watcher.on_validation_batch_end(trainer, task, outputs, batch, i)
    watcher.on_validation_end(trainer, task)


def test_panels_over_the_epochs(tmp_path: Path, logged: list[tuple[str, int, tuple[int, ...]]]) -> None:
    watcher, trainer, task = callback.Pictures(tmp_path, 0), stub_trainer(), SquareTask()
    trainer.sanity_checking = True
    validate(watcher, trainer, task)
    assert not logged
    trainer.sanity_checking = False
    for epoch in range(6):
        trainer.current_epoch, trainer.global_step = epoch, 10 * (epoch + 1)
        validate(watcher, trainer, task)
        assert len(watcher._kept) in (0, callback.NUM_PANELS)
        for kept in watcher._kept:
            assert kept.prediction["mask"].shape == (480, 120)  # small, on the CPU
    trainer.current_epoch = 6
    watcher.on_train_end(trainer, task)
    drawn = sorted(p.name for p in (tmp_path / "val_panels").iterdir())
    assert drawn == [f"epoch_{e:04d}.png" for e in (0, 1, 3, 5)]
    assert [step for key, step, _ in logged if key == "val_panels"] == [9, 19, 39, 59]
    assert [key for key, *_ in logged[-3:]] == ["val_panels", "val_confusion_matrix", "val_class_iou"]
    latest = np.asarray(Image.open(tmp_path / "val_panels.png"))
    assert np.array_equal(latest, np.asarray(Image.open(tmp_path / "val_panels/epoch_0005.png")))
    assert latest.shape[1] == sheets.GAP + 4 * (120 + sheets.GAP)
    assert 8 * 480 < latest.shape[0] < 8 * (480 + 40)
    top, left = sheets.GAP + fonts.SIZE + 4, sheets.GAP
    first = latest[top : top + 480, left : left + 120]
    assert (first == 90).all()  # the picture, without the letterbox
    error = latest[top : top + 480, left + 3 * (120 + sheets.GAP) :][:, :120]
    assert (error == WRONG_COLOR).all(axis=2).nonzero()[0].max() == 119
    assert (error[:120, :60] == WRONG_COLOR).all()
    assert not (tmp_path / "val_predictions.png").exists()


def test_a_validation_that_was_drawn_is_not_drawn_again(tmp_path: Path, logged: list[Any]) -> None:
    watcher, trainer, task = callback.Pictures(tmp_path, 0), stub_trainer(), SquareTask()
    validate(watcher, trainer, task, (2,))
    watcher.on_train_end(trainer, task)
    assert [key for key, *_ in logged] == ["val_panels", "val_confusion_matrix", "val_class_iou"]


@pytest.mark.parametrize(("fn", "stage"), [("validate", "val"), ("test", "test")])
def test_panels_of_validate_and_test(tmp_path: Path, logged: list[Any], fn: str, stage: str) -> None:
    watcher, trainer, task = callback.Pictures(tmp_path, 0), stub_trainer(fn), SquareTask()
    if fn == "validate":
        validate(watcher, trainer, task, (1, 1))
    else:
        watcher.on_test_start(trainer, task)
        batch, outputs = squares(0, 2)
        watcher.on_test_batch_end(trainer, task, outputs, batch, 0)
        watcher.on_test_end(trainer, task)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        f"{stage}_{name}.png" for name in ("class_iou", "confusion_matrix", "panels")
    ]
    assert [key for key, *_ in logged] == [f"{stage}_{n}" for n in ("panels", "confusion_matrix", "class_iou")]


def test_panels_show_files_in_their_own_pixels(tmp_path: Path, logged: list[Any]) -> None:
    image = np.full((1200, 300, 3), 40, np.uint8)
    image[:, 150:] = 200
    Image.fromarray(image).save(tmp_path / "x.png")
    watcher, trainer, task = callback.Pictures(tmp_path, 0), stub_trainer("validate"), SquareTask()
    batch, outputs = squares(0, 1)
    batch["path"] = [str(tmp_path / "x.png")]
    watcher.on_validation_start(trainer, task)
    watcher.on_validation_batch_end(trainer, task, outputs, batch, 0)
    assert watcher._kept[0].original.canvas is None
    watcher.on_validation_end(trainer, task)
    top, left = sheets.GAP + fonts.SIZE + 4, sheets.GAP
    tile = np.asarray(Image.open(tmp_path / "val_panels.png"))[top : top + 480, left : left + 120]
    assert (tile[:, :60] == 40).all()
    assert (tile[:, 60:] == 200).all()


def test_training_images_beside_their_masks(tmp_path: Path, logged: list[Any]) -> None:
    watcher, trainer = callback.Pictures(tmp_path, 0), stub_trainer()
    batch, _ = squares(0, 5)
    for index in range(2):
        watcher.on_train_batch_start(trainer, SquareTask(), batch, index)  # type: ignore[arg-type]
    assert len(logged) == 1
    sheet = np.asarray(Image.open(tmp_path / "train_batch.png"))
    assert sheet.shape[1] == sheets.GAP + 3 * (2 * 128 + 2 + sheets.GAP)
    gap = sheets.GAP
    assert (sheet[gap : gap + 128, gap : gap + 128] == 90).all()
    pair = sheet[gap : gap + 128, gap + 130 : gap + 258]
    assert np.array_equal(
        pair, overlay(np.full((128, 128, 3), 90, np.uint8), np.ones((128, 128), np.uint8), class_palette(NAMES))
    )


def test_classification_has_its_grid(tmp_path: Path, logged: list[Any]) -> None:
    names = ["a", "b"]
    task = SimpleNamespace(
        eval_metrics=SimpleNamespace(confusion=torch.eye(2, dtype=torch.int64), per_class=lambda: {"f1": [1.0, 1.0]}),
        captions=lambda batch, outputs, names: [f"{x:.1f}" for x in outputs["probabilities"][:, 0].tolist()],
        rows=lambda batch, outputs, names: [{"truth": names[i % 2], "label": "a"} for i, _ in enumerate(batch["id"])],
    )
    task.taught = task
    watcher, trainer = callback.Pictures(tmp_path, 0), stub_trainer(names=names)
    images = torch.randint(0, 255, (40, 3, 8, 8), dtype=torch.uint8)
    batch = {"image": images, "label": torch.zeros(40, dtype=torch.int64), "path": ["x"] * 40}
    batch["id"] = torch.arange(40)
    outputs = {"logits": torch.zeros(40, 2), "probabilities": torch.full((40, 2), 0.5)}
    watcher.on_validation_start(trainer, task)
    watcher.on_validation_batch_end(trainer, task, outputs, batch, 0)
    watcher.on_validation_end(trainer, task)
    assert not logged  # only at the end
    watcher.on_train_end(trainer, task)
    assert [key for key, *_ in logged] == ["val_predictions", "val_confusion_matrix"]
    expected = sheets.image_grid(callback.as_pictures(images[:32]), ["0.5"] * 32, wrong=[False, True] * 16)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "val_predictions.png")), expected)
    red = (expected == sheets.WRONG).all(-1)
    assert not red[:, : expected.shape[1] // 7].any(), "the first column is right"  # six columns
    assert red[:, expected.shape[1] // 5 : expected.shape[1] // 3].any()


def test_the_table_has_the_first_rows_only(tmp_path: Path, logged: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    tables: list[Any] = []
    monkeypatch.setattr(
        keeping, "log_table", lambda loggers, key, columns, rows, *_: tables.append((key, columns, rows))
    )
    watcher, trainer = callback.Pictures(tmp_path, 4), stub_trainer("validate")
    validate(watcher, trainer, SquareTask())
    rows = [[f"squares#{i}"] for i in range(4)]
    assert tables == [("val_predictions_table", ["path"], rows)]


def test_classifiers_may_have_more_classes_than_there_are_colors(tmp_path: Path, logged: list[Any]) -> None:
    names = [str(k) for k in range(300)]
    task: Any = SimpleNamespace(eval_metrics=SimpleNamespace(confusion=torch.eye(300, dtype=torch.int64)))
    task.taught = task
    callback.Pictures(tmp_path, 0).on_test_end(stub_trainer("test", names), task)
    assert [key for key, *_ in logged] == ["test_confusion_matrix"]


def test_other_ranks_draw_nothing(tmp_path: Path, logged: list[Any]) -> None:
    watcher, trainer, task = callback.Pictures(tmp_path / "new", 0), stub_trainer(), SquareTask()
    trainer.is_global_zero = False
    validate(watcher, trainer, task)
    watcher.on_train_end(trainer, task)
    assert not logged
    assert not (tmp_path / "new").exists()


def test_colors_of_the_data_are_those_of_its_pictures() -> None:
    data = SimpleNamespace(class_names=["road", "sky"], class_colors=[[1, 2, 3], [4, 5, 6]])
    assert palette_of(SimpleNamespace(datamodule=data))[:2].tolist() == [[1, 2, 3], [4, 5, 6]]  # type: ignore[arg-type]
    data.class_colors = None
    assert np.array_equal(palette_of(SimpleNamespace(datamodule=data)), class_palette(["road", "sky"]))  # type: ignore


def test_panels_come_from_all_over_the_split() -> None:
    records = {"val": [{}] * 80, "test": [{}] * 5}
    trainer: Any = SimpleNamespace(testing=False, world_size=2, datamodule=SimpleNamespace(records=records))
    batch = {"id": torch.arange(80)}
    assert callback._places(trainer, batch, 8, 0) == list(range(0, 80, 10))
    assert callback._places(trainer, batch, 8, 7) == [0]  # seven are there already
    trainer.testing = True
    assert callback._places(trainer, batch, 8, 0) == [0, 2, 4]  # all that rank 0 has
    trainer.datamodule.records = {}
    assert callback._places(trainer, batch, 8, 0) == list(range(8))


# Fonts.


@pytest.fixture
def cat_font(tmp_path: Path) -> Path:
    """A font that has one character, the Chinese one for a cat, as a full square."""
    from fontTools.fontBuilder import FontBuilder
    from fontTools.pens.ttGlyphPen import TTGlyphPen

    pen = TTGlyphPen(None)
    for point in ((0, 0), (0, 700), (700, 700), (700, 0)):
        (pen.moveTo if point == (0, 0) else pen.lineTo)(point)
    pen.closePath()
    square = pen.glyph()
    font = FontBuilder(1000, isTTF=True)
    font.setupGlyphOrder([".notdef", "cat"])
    font.setupCharacterMap({ord("猫"): "cat"})
    font.setupGlyf({".notdef": square, "cat": square})
    font.setupHorizontalMetrics({".notdef": (800, 0), "cat": (800, 0)})
    font.setupHorizontalHeader(ascent=800, descent=-200)
    font.setupNameTable({"familyName": "Cat", "styleName": "Regular"})
    font.setupOS2()
    font.setupPost()
    font.save(tmp_path / "cat.ttf")
    return tmp_path / "cat.ttf"


def test_names_in_other_scripts_are_written_with_the_machines_fonts(
    cat_font: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fonts._path_for.cache_clear()
    monkeypatch.setattr(fonts, "_missing", set())
    monkeypatch.setattr(fonts, "system_fonts", lambda: [str(cat_font)])
    assert fonts.font_for("cats, café, κάτα").getname()[0] == "DejaVu Sans"
    assert fonts.font_for("猫").getname()[0] == "Cat"
    assert fonts.families_for("plain") == []
    assert fonts.families_for("猫") == ["DejaVu Sans", "Cat"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with_cat = figures.confusion_matrix_figure([[1, 0], [0, 1]], ["猫", "dog"])
    assert capsys.readouterr().err == ""
    assert fonts.font_for("犬 and 猫").getname()[0] == "Cat"  # most of it
    assert "warning: no font of this machine has 犬: " in capsys.readouterr().err
    assert figures.confusion_matrix_figure([[1, 0], [0, 1]], ["猫", "犬"]).shape
    assert capsys.readouterr().err == ""  # said once
    assert (with_cat < 100).all(-1).sum() > 100
    fonts._path_for.cache_clear()
