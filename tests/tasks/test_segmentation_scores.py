"""From scores to labels: the way back to original pixels, and large pictures by windows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from datamodules.transforms.geometry import evaluation_view
from datamodules.transforms.tiles import check_tile, tile_windows
from tasks.segmentation import postprocess as module
from tasks.segmentation.postprocess import labels_by_tiles, labels_in_original, labels_of


def fcn(classes: int = 5) -> nn.Module:
    """A fully convolutional net of stride 2, its field of view 15 pixels: smaller than the quarter of an overlap."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 1, 1), nn.ReLU(), nn.Conv2d(8, classes, 3, 1, 1)]
    return nn.Sequential(*layers, nn.ConvTranspose2d(classes, classes, 2, 2)).eval()


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5])
@pytest.mark.parametrize("size", [(96, 96), (97, 250), (500, 333), (64, 64), (40, 700)])
def test_windows_cover_and_overlap(size, overlap):
    windows = tile_windows(*size, (96, 128), overlap)
    count = np.zeros(size, int)
    for y1, x1, y2, x2 in windows:
        assert y1 % 32 == x1 % 32 == 0
        assert y2 - y1 <= 96
        assert x2 - x1 <= 128
        count[y1:y2, x1:x2] += 1
    assert count.min() == 1
    assert count.max() <= 4
    assert (windows[:, 2:] <= size).all()
    for axis, tile in ((0, 96), (1, 128)):
        starts, ends = np.unique(windows[:, axis]), np.unique(windows[:, axis + 2])
        assert (ends[:-1] - starts[1:] >= round(tile * overlap) // 32 * 32).all()


def test_refused_tiles():
    for tile in ((100, 128), (32, 32)):
        with pytest.raises(ValueError, match=r"data\.tile is"):
            check_tile(tile, 0.25)
    with pytest.raises(ValueError, match=r"data\.tile_overlap is 0\.7"):
        check_tile((128, 128), 0.7)


@pytest.mark.parametrize("size", [(192, 192), (200, 333), (515, 131), (90, 1500)])
def test_tiles_equal_the_whole_picture(size, monkeypatch):
    """Scores, blended, are those of one pass to 1e-4, also at the borders, in several bands, and so are the labels."""
    monkeypatch.setattr(module, "BAND", 3)
    net = fcn()
    image = torch.rand(3, *size)
    height, width = (-(-side // 32) * 32 for side in size)

    def scorer(images: torch.Tensor) -> torch.Tensor:
        h, w = images.shape[2:]
        padded = F.pad(images, (0, -w % 32, 0, -h % 32))
        return net(padded)[:, :, :h, :w].softmax(1)

    with torch.no_grad():
        whole = net(F.pad(image[None], (0, width - size[1], 0, height - size[0])))[0, :, : size[0], : size[1]].softmax(
            0
        )
        blended = torch.full_like(whole, torch.nan)
        monkeypatch.setattr(module, "labels_of", lambda scores, *_: scores)
        windows = torch.from_numpy(tile_windows(*size, (128, 160), 0.5))
        blended = labels_by_tiles(scorer, image, windows, multi_label=False)
    assert blended.shape == whole.shape
    assert (blended - whole).abs().max() < 1e-4


def test_weights_are_blended():
    """Windows that disagree (each gives its own number) meet in a linear ramp over the middle half of the overlap."""
    numbers = iter(range(100))

    def scorer(images: torch.Tensor) -> torch.Tensor:
        return torch.stack([torch.full((2, *images.shape[2:]), float(next(numbers))) for _ in images])

    windows = torch.from_numpy(tile_windows(64, 96, (64, 64), 0.5))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "labels_of", lambda scores, *_: scores)
        row = labels_by_tiles(scorer, torch.zeros(3, 64, 96), windows, multi_label=False)[0, 0]
    assert (row[:40] == 0).all()
    assert (row[56:] == 1).all()
    assert torch.allclose(row[40:56].diff(), torch.full((15,), 1 / 16))


@pytest.mark.parametrize("resize", ["letterbox", "stretch", "crop"])
@pytest.mark.parametrize("shape", [(50, 120), (230, 90), (64, 64)])
def test_back_to_original_pixels(resize, shape, monkeypatch):
    """A linear function of the original place, drawn on the canvas, is found again at each original pixel's centre."""
    canvas = (64, 96)
    view = evaluation_view(shape, canvas, resize, 1.0)
    geometry = view.geometry(shape)
    _, _, scale_x, scale_y, offset_x, offset_y = (float(v) for v in geometry)
    y = (torch.arange(canvas[0]) + 0.5 - offset_y) / scale_y
    x = (torch.arange(canvas[1]) + 0.5 - offset_x) / scale_x
    scores = torch.stack([y[:, None] + 0 * x, 0 * y[:, None] + x])
    monkeypatch.setattr(module, "STRIP", 3 * 2 * shape[1])  # strips of three rows
    monkeypatch.setattr(module, "labels_of", lambda scores, *_: scores)
    found = labels_in_original(scores.double(), torch.from_numpy(geometry), multi_label=True)
    assert found.shape == (2, *shape)  # of uint8: whole numbers
    for axis, (number, side, scale, offset, room) in enumerate(
        zip(found, shape, (scale_y, scale_x), (offset_y, offset_x), canvas, strict=True)
    ):
        centre = torch.arange(side) + 0.5
        place = centre * scale + offset
        shown = (place > 0.5) & (place < room - 0.5) & (centre * scale > 0.5) & ((side - centre) * scale > 0.5)
        wrong = (number.double() - centre.view((-1, 1) if axis == 0 else (1, -1))).abs()
        assert wrong.select(1 - axis, 30)[shown].max() <= 1
        assert shown.sum() > 20


@pytest.mark.parametrize("shape", [(160, 80), (80, 160), (130, 70)])
def test_the_border_does_not_mix_with_the_padding(shape):
    """One class all over the picture, another all over the padding: the picture is of the one class."""
    canvas = (32, 32)
    geometry = evaluation_view(shape, canvas, "letterbox", 1.0).geometry(shape)
    height, width, scale_x, scale_y, offset_x, offset_y = (float(v) for v in geometry)
    top, left = round(offset_y), round(offset_x)
    scores = torch.zeros(2, *canvas)
    scores[0] = 1.0
    inside = (slice(top, top + round(height * scale_y)), slice(left, left + round(width * scale_x)))
    scores[0][inside], scores[1][inside] = 0.0, 0.6
    labels = labels_in_original(scores, torch.from_numpy(geometry), multi_label=False)
    assert labels.shape == shape
    assert (labels == 1).all()


def test_labels_and_confidence_by_hand():
    """Probabilities in 255ths, rounded down; the next class without the first."""
    scores = torch.tensor([[0.1, 0.7], [0.6, 0.2], [0.3, 0.1]]).unsqueeze(1)
    assert labels_of(scores, multi_label=False).tolist() == [[1, 0]]
    assert labels_of(scores, multi_label=False, confidence=1).tolist() == [[[1, 0]], [[153, 178]]]
    assert labels_of(scores, multi_label=False, confidence=2)[2:].tolist() == [[[2, 1]], [[76, 51]]]
    one = torch.tensor([[[0.75, 0.25]]])
    assert labels_of(one, multi_label=False, confidence=2).tolist() == [[[1, 0]], [[191, 191]], [[0, 1]], [[63, 63]]]
    assert labels_of(scores, multi_label=True).tolist() == [[[0, 1]], [[1, 0]], [[0, 0]]]


def test_labels_equal_torchs_bilinear_enlargement():
    """Where nothing is cropped or padded, the labels are those of torch's own bilinear resize."""
    torch.manual_seed(0)
    scores = torch.rand(7, 40, 60)
    geometry = torch.tensor([130.0, 210.0, 60 / 210, 40 / 130, 0, 0])
    expected = F.interpolate(scores[None], (130, 210), mode="bilinear")[0].argmax(0)
    found = labels_in_original(scores, geometry, multi_label=False)
    assert (found == expected).float().mean() > 0.9999
    binary = labels_in_original(scores[:1], geometry, multi_label=False)
    assert (
        (F.interpolate(scores[None, :1], (130, 210), mode="bilinear")[0, 0] > 0.5) == binary
    ).float().mean() > 0.9999
