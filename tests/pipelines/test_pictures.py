"""Pictures have the promised shapes, show what they should, and take any text."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines import pictures

CAPTIONS = ["plain", "日本語 𝔘 🐜 é", "two\nlines", "a_very_long_name_without_any_space_" * 6, "", "$x_", "tab\tnul\0"]


@pytest.mark.parametrize("shape", [(8, 8, 1), (8, 8), (28, 28, 3), (40, 24, 4), (300, 500, 3), (1, 1, 3), (5, 700, 3)])
def test_grid_takes_any_size_and_caption(shape: tuple[int, ...]) -> None:
    images = np.zeros((len(CAPTIONS), *shape), dtype=np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        grid = pictures.image_grid(images, CAPTIONS)
    assert grid.dtype == np.uint8
    assert grid.ndim == 3
    assert grid.shape[2] == 3


def test_grid_enlarges_by_a_whole_number_and_keeps_pixels() -> None:
    image = np.arange(64, dtype=np.uint8).reshape(1, 8, 8, 1) * 3
    grid = pictures.image_grid(image)
    gap = pictures.GAP
    tile = grid[gap:-gap, gap:-gap]
    factor = tile.shape[0] // 8
    assert factor >= 10
    assert tile.shape == (8 * factor, 8 * factor, 3)
    assert np.array_equal(tile[factor // 2 :: factor, factor // 2 :: factor, 1], image[0, ..., 0])


def test_grid_layout_and_limit() -> None:
    images = np.zeros((10, 144, 144, 3), dtype=np.uint8)
    step = 144 + pictures.GAP
    assert pictures.image_grid(images, columns=5).shape == (2 * step + pictures.GAP, 5 * step + pictures.GAP, 3)
    assert pictures.image_grid(images, max_images=2).shape[:2] == (step + pictures.GAP, 2 * step + pictures.GAP)
    with_text = pictures.image_grid(images, ["dog 0.98"] * 10, columns=5)
    assert with_text.shape[0] > 2 * step + pictures.GAP
    below = with_text[step : step + pictures.FONT_SIZE + 4]
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
        pictures.image_grid(images, captions)


@pytest.mark.parametrize("size", [1, 2, 10, 26, 60, 100])
def test_confusion_matrix(size: int) -> None:
    rng = np.random.default_rng(0)
    matrix = rng.integers(0, 50, (size, size)) + 500 * np.eye(size, dtype=int)
    names = [*CAPTIONS, *(f"class {i}" for i in range(size))][:size]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        picture = pictures.confusion_matrix_figure(matrix, names)
    assert picture.dtype == np.uint8
    assert picture.shape[2] == 3
    assert 150 < min(picture.shape[:2]) <= max(picture.shape[:2]) < 2000
    blue = (picture[..., 2] > 90) & (picture[..., 0] < 30)  # dark blue: the diagonal
    assert blue.sum() > picture.shape[0]


def test_confusion_matrix_with_empty_classes_and_wrong_shapes() -> None:
    assert pictures.confusion_matrix_figure(np.zeros((3, 3), int), ["a", "b", "c"]).size
    with pytest.raises(ValueError, match=r"\(2, 2\) wanted for 2 class names, got \(3, 3\)"):
        pictures.confusion_matrix_figure(np.zeros((3, 3), int), ["a", "b"])


def test_reliability_diagram() -> None:
    bins = np.linspace(0.05, 0.95, 10)
    assert pictures.reliability_diagram(bins, bins, np.zeros(10)).shape[2] == 3
    assert pictures.reliability_diagram(np.full(10, np.nan), bins, np.eye(1, 10, 5)[0]).shape[2] == 3
    with pytest.raises(ValueError, match="three equal lengths"):
        pictures.reliability_diagram(bins, bins[:5], bins)


def test_contact_sheet_of_files_and_arrays(tmp_path: Path) -> None:
    red = np.zeros((60, 30, 3), np.uint8)
    red[..., 0] = 255
    Image.fromarray(red).save(tmp_path / "röt 1.png")
    deep = np.full((20, 20), 40000, np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff not a picture")
    files = [tmp_path / "röt 1.png", tmp_path / "deep.png", tmp_path / "broken.jpg", tmp_path / "none.png"]
    path = pictures.contact_sheet(
        [*files, np.zeros((8, 8), np.uint8)], [*map(str, files), "array"], tmp_path / "new" / "sheet.png", columns=5
    )
    sheet = np.asarray(Image.open(path))
    assert sheet.shape[1] == 5 * (176 + pictures.GAP) + pictures.GAP
    gap, middle = pictures.GAP, pictures.GAP + 88
    assert sheet[middle, middle].tolist() == [255, 0, 0]
    assert sheet[middle, gap + 5].tolist() == [238, 238, 238]  # keeps its proportions
    with pytest.raises(ValueError, match="0 images"):
        pictures.contact_sheet([], None, tmp_path / "x.png")


def test_importing_needs_no_matplotlib() -> None:
    code = "import sys, pipelines.pictures; sys.exit('matplotlib' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(pictures.__file__).parents[1]).returncode == 0


def test_figures_leave_pyplot_alone() -> None:
    code = (
        "import sys, numpy as np; from pipelines import pictures\n"
        "pictures.confusion_matrix_figure(np.eye(2, dtype=int), ['a', 'b'])\n"
        "sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(pictures.__file__).parents[1]).returncode == 0
