"""Formulas of views, windows and tiles, against values computed by hand."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from datamodules.transforms.geometry import INTERPOLATIONS, View, evaluation_view, random_window, resize_array
from datamodules.transforms.samples import keep_boxes, middle_of_an_object, pixel_of_a_class, visible
from datamodules.transforms.tiles import tile_windows


@pytest.mark.parametrize("kernel", ["bilinear", "bicubic"])
def test_beyond_a_factor_of_2_pixels_are_means_of_their_area(kernel):
    image = np.random.default_rng(0).integers(0, 256, (12, 12, 3)).astype(np.uint8)
    means = image.reshape(4, 3, 4, 3, 3).mean((1, 3))
    assert np.abs(resize_array(image, (4, 4), INTERPOLATIONS[kernel]) - means).max() <= 0.5
    halved = cv2.resize(image, (6, 6), interpolation=INTERPOLATIONS[kernel])
    assert np.array_equal(resize_array(image, (6, 6), INTERPOLATIONS[kernel]), halved)
    narrow = resize_array(image, (12, 4), INTERPOLATIONS[kernel])  # one side is enough
    assert np.abs(narrow - image.reshape(12, 4, 3, 3).mean(2)).max() <= 0.5


def test_a_bicubic_kernel_does_not_leave_the_range_of_floats():
    edge = np.repeat(np.float32([[0, 0, 1, 1]]), 4, axis=0)
    raw = cv2.resize(edge, (8, 8), interpolation=cv2.INTER_CUBIC)
    assert (raw.min(), raw.max()) == pytest.approx((-0.105, 1.105), abs=0.01)
    np.testing.assert_array_equal(resize_array(edge, (8, 8), cv2.INTER_CUBIC), raw.clip(0, 1))


@pytest.mark.parametrize(
    ("resize", "shape", "canvas", "crop_pct", "view"),
    [
        # The shorter side to 10 / 0.8 = 12.5, the longer in proportion to 25.
        ("crop", (20, 40), (10, 10), 0.8, View(12, 25, -1, -8, (10, 10))),
        ("crop", (40, 20), (10, 10), 1.0, View(20, 10, -5, 0, (10, 10))),
        ("crop", (10, 10), (8, 12), 1.0, View(12, 12, -2, 0, (8, 12))),
        ("letterbox", (20, 40), (10, 10), 0.8, View(5, 10, 2, 0, (10, 10))),
        ("letterbox", (40, 20), (10, 10), 0.8, View(10, 5, 0, 2, (10, 10))),
        ("letterbox", (1, 1000), (10, 10), 0.8, View(1, 10, 4, 0, (10, 10))),
        ("stretch", (20, 40), (10, 12), 0.8, View(10, 12, 0, 0, (10, 12))),
        ("native", (20, 40), (10, 12), 0.8, View(20, 40, 0, 0, (20, 40))),
    ],
)
def test_evaluation_views(resize, shape, canvas, crop_pct, view):
    assert evaluation_view(shape, canvas, resize, crop_pct) == view


def test_the_geometry_of_a_view():
    """Original height and width, scale of x and y, offset of x and y."""
    view = View(height=10, width=30, top=-1, left=2, canvas=(8, 34))
    np.testing.assert_allclose(view.geometry((20, 40)), [20, 40, 0.75, 0.5, 2, -1])


def test_a_view_crops_and_fills():
    array = np.arange(1, 7).reshape(2, 3).astype(np.uint8)
    placed = View(2, 3, top=-1, left=1, canvas=(3, 5)).place(array, cv2.INTER_NEAREST_EXACT, 9)
    assert placed.tolist() == [[9, 4, 5, 6, 9], [9] * 5, [9] * 5]
    cropped = View(2, 3, top=0, left=-2, canvas=(2, 1)).place(array, cv2.INTER_NEAREST_EXACT, 9)
    assert cropped.tolist() == [[3], [6]]


def test_windows_at_their_scale():
    """A canvas of 10 x 20 at 2 canvas pixels a picture pixel along y and 4 along x shows 5 x 5 pixels."""
    rng = np.random.default_rng(0)
    drawn = [random_window((8, 5), (10, 20), (2, 4), rng) for _ in range(200)]
    assert {rows.part for rows, _ in drawn} == {5}
    assert {rows.start for rows, _ in drawn} == {0, 1, 2, 3}  # all places, the last too
    assert {(rows.offset, rows.size) for rows, _ in drawn} == {(0, 10)}
    assert {tuple(columns) for _, columns in drawn} == {(0, 5, 0, 20)}
    around = [random_window((8, 5), (10, 20), (2, 4), rng, around=(6, 0))[0].start for _ in range(200)]
    assert set(around) == {2, 3}  # of 5 rows that hold row 6
    small = [random_window((3, 5), (10, 20), (2, 4), rng)[0] for _ in range(200)]
    assert {(rows.start, rows.part, rows.size) for rows in small} == {(0, 3, 6)}
    assert {rows.offset for rows in small} == {0, 1, 2, 3, 4}


def test_tiles_by_hand():
    """A quarter of 128 is shared: a step of 96."""
    windows = tile_windows(200, 128, (128, 128), 0.25)
    assert windows.tolist() == [[0, 0, 128, 128], [96, 0, 200, 128]]
    assert tile_windows(100, 225, (128, 128), 0.25)[:, [1, 3]].tolist() == [[0, 128], [96, 224], [192, 225]]
    assert tile_windows(192, 64, (64, 64), 0)[:, [0, 2]].tolist() == [[0, 64], [64, 128], [128, 192]]
    # Steps of whole 32 pixels, never below half a tile: 96 - 24 = 72 becomes 64, 0.5 of 96 becomes 64.
    assert tile_windows(160, 96, (96, 96), 0.25)[:, 0].tolist() == [0, 64]
    assert tile_windows(161, 96, (96, 96), 0.5)[:, 0].tolist() == [0, 64, 128]


# Boxes and classes.


def test_boxes_of_which_too_little_is_left():
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 1.5, 100]], np.float32)
    left = np.array([[0, 0, 10, 2], [0, 0, 10, 1.9], [0, 0, 10, 0.9], [0, 0, 0.9, 100]], np.float32)
    assert visible(boxes, left, 0.2).tolist() == [0]
    assert visible(boxes, left, 0.19).tolist() == [0, 1]
    assert visible(boxes, left, 0.0).tolist() == [0, 1]  # less than a pixel of a side is nothing


def test_what_belongs_to_a_dropped_box_goes_with_it():
    out = {
        "boxes": np.zeros((3, 4), np.float32),
        "labels": np.array([5, 6, 7]),
        "iscrowd": np.array([0, 1, 0], np.uint8),
        "area": np.array([1.0, 2.0, 3.0]),
        "masks": np.array([[[0, 1], [2, 3]]], np.int16),
    }
    keep_boxes(out, np.arange(12, dtype=np.float32).reshape(3, 4), np.array([0, 2]))
    assert out["boxes"].tolist() == [[0, 1, 2, 3], [8, 9, 10, 11]]
    assert out["labels"].tolist() == [5, 7]
    assert out["iscrowd"].tolist() == [0, 0]
    assert out["area"].tolist() == [1, 3]
    assert out["masks"].tolist() == [[[0, 1], [0, 2]]]


def test_places_to_crop_around():
    mask = np.full((4, 6), 255, np.uint8)
    mask[1, 2], mask[3, :] = 7, 4
    places = [pixel_of_a_class(mask, np.random.default_rng(seed)) for seed in range(200)]
    assert {place for place in places if place != (1, 2)} == {(3, column) for column in range(6)}
    assert 70 < places.count((1, 2)) < 130  # one class as likely as the other
    assert pixel_of_a_class(np.full((4, 6), 255, np.uint8), np.random.default_rng(0)) is None
    layers = np.zeros((4, 6, 2), np.uint8)
    layers[2, 5, 1], layers[0, 0, 0] = 1, 255
    assert pixel_of_a_class(layers, np.random.default_rng(0)) == (2, 5)
    large = np.full((1000, 1000), 255, np.uint8)
    large[600:, 900:] = 0
    row, column = pixel_of_a_class(large, np.random.default_rng(0))
    assert row >= 600 <= column - 300

    sample = {"image": np.zeros((20, 30, 3), np.uint8), "labels": np.array([0]), "boxes": np.array([[4, 2, 8, 12]])}
    assert middle_of_an_object(sample, np.random.default_rng(0)) == (7, 6)
    outside = {**sample, "boxes": np.array([[28, 18, 40, 30]])}
    assert middle_of_an_object(outside, np.random.default_rng(0)) == (19, 29)
    assert middle_of_an_object({**sample, "iscrowd": np.array([1])}, np.random.default_rng(0)) is None
