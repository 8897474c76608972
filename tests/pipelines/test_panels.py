"""Panels, overlays and label PNGs show what they should; what `predict` writes can be read back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.readers.digits import digit_scene
from pipelines.outputs import box_errors, drawing, label_maps, palettes, panels
from pipelines.outputs.sheets import FONT_SIZE, GAP

NAMES = ["background", *(str(k) for k in range(10))]
TOP = GAP + FONT_SIZE + 4  # of the first tile in a panel


def panel(image, truth, prediction, palette, names):
    return panels.panels([panels.Sample(image, truth, prediction)], palette, names)


def read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


# Colours.


@pytest.mark.parametrize("classes", [1, 2, 21, 255])
def test_colors_differ(classes: int) -> None:
    palette = palettes.default_palette(classes)
    assert palette.dtype == np.uint8
    assert palette.shape == (256, 3)
    assert palette[0].tolist() == [0, 0, 0]
    assert palette[255].tolist() == list(palettes.IGNORE_COLOR)
    used = palette[[*range(classes), 255]]
    assert len(np.unique(used, axis=0)) == min(classes, 255) + 1
    assert not palette[classes:255].any()
    if classes <= 21:
        lab = palettes._lab(used)
        apart = np.linalg.norm(lab[:, None] - lab[None], axis=2) + 1e3 * np.eye(len(used))
        assert apart.min() > 20  # in CIELAB 2 is just noticeable


def test_colors_can_be_seen_on_black_and_on_white() -> None:
    lab = palettes._lab(palettes.default_palette(255, background=False)[:255])
    lightness, chroma = lab[:, 0], np.hypot(lab[:, 1], lab[:, 2])
    assert lightness.min() > 44
    assert lightness.max() < 86
    assert chroma.min() > 30
    assert chroma.max() < 84


def test_colors_of_a_data_set() -> None:
    assert np.array_equal(palettes.class_palette(["Background", "a"]), palettes.default_palette(2))
    roads = palettes.class_palette(["road", "sky"])
    assert roads[:2].any(axis=1).all()
    assert np.array_equal(roads[0], palettes.class_palette(["background", "sky"])[1])
    own = palettes.class_palette(["road", "sky"], [[1, 2, 3], [4, 5, 6]])
    assert own[:2].tolist() == [[1, 2, 3], [4, 5, 6]]
    assert own[255].tolist() == list(palettes.IGNORE_COLOR)
    assert palettes.class_palette([])[1:255].any(axis=1).all()  # no names known: a colour for every number
    with pytest.raises(ValueError, match="at most 255 classes, got 256"):
        palettes.default_palette(256)


def test_detectors_may_have_more_classes_than_there_are_colors() -> None:
    names = [f"class {k}" for k in range(300)]
    palette = palettes.class_palette(names)
    assert np.array_equal(palettes.class_palette(names, [[k % 256, 1, 2] for k in range(300)])[254], [254, 1, 2])
    assert palettes.color_of(palette, 254).tolist() == palette[254].tolist()
    assert palettes.color_of(palette, 299).tolist() == palette[44].tolist()  # those of the first ones again
    found = {"boxes": np.array([[2.0, 2, 20, 20]]), "labels": np.array([299]), "masks": np.ones((1, 30, 30), bool)}
    picture = panel(np.zeros((30, 30, 3), np.uint8), None, found, palette, names)
    assert (picture == palette[44]).all(axis=2).sum() > 50


# Files.


def test_label_png_holds_the_classes(tmp_path: Path) -> None:
    mask = np.arange(256, dtype=np.uint8).reshape(8, 32).repeat(3, axis=1)
    path = label_maps.label_png(mask[:, ::-1], palettes.default_palette(11), tmp_path / "new" / "a.b.png")
    with Image.open(path) as image:
        assert image.mode == "P"
        assert image.size == (96, 8)
        assert np.array_equal(np.asarray(image), mask[:, ::-1])
        assert np.array_equal(np.asarray(image.convert("RGB")), palettes.default_palette(11)[mask[:, ::-1]])
    assert path.read_bytes()[24:26] == bytes([8, 3])  # bit depth, colour type: palette


def test_label_pngs_of_several_labels(tmp_path: Path) -> None:
    mask = np.random.default_rng(0).integers(0, 2, (3, 5, 7), dtype=np.uint8)
    files = label_maps.label_pngs(mask, ["cell", "a/b", "a:b"], tmp_path / "sub" / "x")
    assert [f.name for f in files] == ["x_cell.png", "x_a_b_1.png", "x_a_b_2.png"]
    for plane, path in zip(mask, files, strict=True):
        assert np.array_equal(read(path), plane * 255)


# Drawing.


def test_overlay() -> None:
    image = np.full((20, 30, 3), 100, np.uint8)
    mask = np.zeros((20, 30), np.uint8)
    mask[5:15, 5:15], mask[5:15, 15:25], mask[18:, :] = 1, 2, 255
    palette = palettes.default_palette(3)
    picture = drawing.overlay(image, mask, palette, alpha=0.6)
    assert np.array_equal(image, np.full_like(image, 100))
    assert picture[2, 2].tolist() == [100] * 3  # background has no colour
    for place, label in (((10, 8), 1), ((10, 20), 2)):
        assert np.abs(picture[place] - (0.4 * 100 + 0.6 * palette[label])).max() <= 1
    for place, label in (((5, 8), 1), ((10, 14), 1), ((10, 15), 2), ((18, 3), 255)):  # borders
        assert picture[place].tolist() == palette[label].tolist()
    assert picture[19, 29].tolist() != palette[255].tolist()  # the image's edge is no border
    with pytest.raises(ValueError, match=r"mask is \(20, 30\), the image \(20, 31\)"):
        drawing.overlay(np.zeros((20, 31), np.uint8), mask, palette)


def test_overlay_of_several_labels() -> None:
    mask = np.zeros((2, 20, 20), np.uint8)
    mask[0, :, :12], mask[1, :, 8:], mask[:, 18:] = 1, 1, 255
    palette = palettes.class_palette(["a", "b"])
    picture = drawing.overlay(np.zeros((20, 20, 1), np.uint8), mask, palette, alpha=0.5)
    first, second = palette[0] / 2, palette[1] / 2
    assert np.abs(picture[5, 2] - first).max() <= 1
    assert np.abs(picture[5, 16] - second).max() <= 1
    assert np.abs(picture[5, 10] - (first / 2 + second)).max() <= 1  # both
    assert picture[5, 11].tolist() != picture[5, 10].tolist()  # the border of the first


def test_boxes_and_objects() -> None:
    scene = digit_scene(3, split="val", size=256)
    boxes, labels, image = scene["boxes"], scene["labels"], scene["image"]
    palette = palettes.class_palette(NAMES[1:])
    picture = drawing.draw_boxes(image, boxes, labels, np.linspace(0.2, 0.9, len(boxes)), NAMES[1:], palette)
    for box, label in zip(boxes.astype(int), labels, strict=True):
        assert picture[(box[1] + box[3]) // 2, box[0]].tolist() == palette[label].tolist()
        assert picture[box[3] - 1, (box[0] + box[2]) // 2].tolist() == palette[label].tolist()
        above = picture[max(0, box[1] - FONT_SIZE - 3) : box[1], box[0] : box[2]]
        assert (above == palette[label]).all(axis=2).any()  # its caption
    assert np.array_equal(picture[-1, -1], image[-1, -1])
    padded = drawing.draw_boxes(image, np.zeros((2, 4)), np.array([-1, -1]))
    assert np.array_equal(padded, image)
    numbered = drawing.draw_boxes(image, boxes, labels, palette=palette, masks=scene["masks"])
    single = np.stack([scene["masks"][0] == i + 1 for i in range(len(boxes))])
    assert np.array_equal(numbered, drawing.draw_boxes(image, boxes, labels, palette=palette, masks=single))
    changed = (numbered != drawing.draw_boxes(image, boxes, labels, palette=palette)).any(axis=2)
    assert changed.sum() > 0.8 * (scene["masks"][0] > 0).sum()
    assert not (changed & (scene["masks"][0] == 0)).any()


def test_the_best_box_is_on_top() -> None:
    image, boxes = np.zeros((40, 40, 3), np.uint8), np.array([[5.0, 20, 25, 39], [15, 20, 35, 39]])
    palette = palettes.class_palette(["a", "b"])
    crossing = (38, 18)  # on the lower lines of both
    for scores, top in (([0.9, 0.8], 0), ([0.8, 0.9], 1), (None, 0)):
        given = None if scores is None else np.array(scores)
        picture = drawing.draw_boxes(image, boxes, np.array([0, 1]), given, ["a", "b"], palette)
        assert picture[crossing].tolist() == palette[top].tolist()


def test_names_are_left_out_where_they_would_hide_the_picture() -> None:
    image = np.zeros((60, 60, 3), np.uint8)
    for number, named in ((drawing.MAX_TAGS, True), (drawing.MAX_TAGS + 1, False)):
        boxes = np.tile([[10.0, 30, 50, 50]], (number, 1))
        assert drawing.draw_boxes(image, boxes)[:29].any() == named


def test_large_images_are_reduced_by_area_and_small_ones_keep_their_pixels() -> None:
    image = np.array([[0, 100], [100, 200]], np.uint8)
    assert drawing.resized(image, (1, 1)).tolist() == [[[100] * 3]]
    assert drawing.resized(image, (4, 4))[..., 0].tolist() == [[0, 0, 100, 100]] * 2 + [[100, 100, 200, 200]] * 2


# Panels.


def test_panel_shows_truth_prediction_and_error() -> None:
    image = np.full((100, 150, 3), 80, np.uint8)
    truth, prediction = np.zeros((2, 100, 150), np.uint8)
    truth[20:60, 20:60] = prediction[20:60, 40:80] = 4
    truth[90:] = 255
    palette = palettes.class_palette(NAMES)
    picture = panel(image, {"mask": truth}, {"mask": prediction}, palette, NAMES)
    assert picture.shape == (TOP + 100 + GAP + FONT_SIZE + 4 + GAP, GAP + 4 * (150 + GAP), 3)
    shown, true, predicted, error = (
        picture[TOP : TOP + 100, left : left + 150] for left in range(GAP, 4 * (150 + GAP), 150 + GAP)
    )
    assert np.array_equal(shown, image)
    assert np.array_equal(true, drawing.overlay(image, truth, palette))
    assert np.array_equal(predicted, drawing.overlay(image, prediction, palette))
    red, grey = ((error == color).all(axis=2) for color in (palettes.WRONG_COLOR, palettes.IGNORE_COLOR))
    assert np.array_equal(red, (truth != prediction) & (truth != 255))
    assert np.array_equal(grey, truth == 255)
    rest = error[~red & ~grey]
    assert (rest == rest[0]).all()
    assert rest[0].tolist() == [rest[0, 0]] * 3
    legend = picture[TOP + 100 + GAP :]
    for color in (palette[4], palettes.IGNORE_COLOR, palettes.WRONG_COLOR):
        assert (legend == color).all(axis=2).sum() > 50
    assert not (legend == palette[5]).all(axis=2).any()  # does not occur


def test_panels_without_truth_and_of_any_size() -> None:
    palette = palettes.class_palette(NAMES)
    masks = [np.zeros(size, np.uint8) for size in ((960, 1200), (40, 20), (1, 700))]
    samples = [panels.Sample(np.zeros((*m.shape, 1), np.uint8), None, {"mask": m}, "text") for m in masks]
    picture = panels.panels(samples, palette, NAMES)
    heights = [384, 200, 1]
    assert [panels.display_size(m.shape)[0] for m in masks] == heights
    assert picture.shape == (TOP + sum(heights) + 3 * (FONT_SIZE + 4 + GAP), GAP + 2 * (480 + GAP), 3)
    several = {"mask": np.ones((2, 30, 30), np.uint8)}
    assert panel(np.zeros((30, 30, 3), np.uint8), several, several, palette, ["a", "b"]).ndim == 3
    boxes = {"boxes": np.array([[2, 2, 9, 9.0]]), "labels": np.array([1])}
    with_boxes = panel(np.zeros((30, 30, 3), np.uint8), boxes, boxes, palette, ["a", "two\nlines\0"])
    assert with_boxes.shape[1] == GAP + 4 * (180 + GAP)


def test_boxes_are_right_wrong_or_missed() -> None:
    boxes = np.array([[0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 60, 20], [0, 0, 0, 0]], np.float32)
    truth = {"boxes": boxes, "labels": np.array([0, 1, 0, -1]), "iscrowd": np.array([0, 0, 1, 0], np.uint8)}
    guessed = np.array([[0, 0, 10, 5], [1, 0, 10, 10], [20, 0, 30, 10], [45, 5, 50, 10]], np.float32)
    prediction = {"boxes": guessed, "labels": np.array([0, 0, 0, 0]), "scores": np.array([0.5, 0.9, 0.8, 0.7])}
    found, right = box_errors.right_boxes(truth, prediction)
    assert found.tolist() == [True, False, False, False]
    assert right.tolist() == [False, True, False, False]  # the best one; the other is a second box, or of another class
    picture = box_errors.box_error_picture(np.zeros((24, 64, 3), np.uint8), truth, prediction)
    assert tuple(picture[4, 4]) == palettes.WRONG_COLOR
    assert tuple(picture[9, 4]) == box_errors.RIGHT_COLOR
    assert tuple(picture[0, 25]) == palettes.WRONG_COLOR  # over the missed object of the other class
    assert len(np.unique(picture[:, 38:])) == 1  # a crowd need not be found, and what is in it is not wrong
    nothing = {"boxes": np.zeros((0, 4), np.float32), "labels": np.zeros(0, np.int64)}
    missed = box_errors.box_error_picture(np.zeros((24, 64, 3), np.uint8), truth, nothing)
    assert tuple(missed[0, 25]) == box_errors.MISSED_COLOR
    assert [each.tolist() for each in box_errors.right_boxes(nothing, prediction)] == [[], [False] * 4]


def test_objects_of_wide_images_are_drawn_to_their_right_edge() -> None:
    mask = np.ones((1, 10, 60), bool)
    picture = drawing.draw_boxes(np.zeros((10, 60, 3), np.uint8), np.array([[0.0, 0, 60, 10]]), masks=mask)
    assert picture[5, 3:57].any(axis=1).all()


def test_a_tag_shows_the_score() -> None:
    image, boxes, labels = np.zeros((60, 90, 3), np.uint8), np.array([[5.0, 30, 80, 55]]), np.array([0])
    scores = (None, np.array([0.5]), np.array([0.25]))
    tags = [drawing.draw_boxes(image, boxes, labels, score, ["a"])[:29] for score in scores]
    widths = [np.flatnonzero(tag.any(axis=(0, 2))).max() for tag in tags]
    assert widths[0] < widths[1]
    assert not np.array_equal(tags[1], tags[2])


def test_a_legend_that_is_too_long_has_several_lines() -> None:
    legend = [((200, 0, 0), "a long name")] * 3
    one, two = (panels._legend_strip(legend, width) for width in (600, 200))
    assert one.shape == (panels.LINE + GAP, 600, 3)
    assert two.shape[0] > one.shape[0]
    assert ((two == (200, 0, 0)).all(2)).sum() == ((one == (200, 0, 0)).all(2)).sum()  # nothing is cut off


def test_the_legend_names_what_occurs() -> None:
    palette = palettes.class_palette(["a", "b", "c", "d"])
    mask = np.zeros((3, 2, 2), np.uint8)
    mask[1, 0], mask[2] = 1, 255  # only ignored pixels in the third
    boxes = {"boxes": np.zeros((2, 4)), "labels": np.array([3, -1])}
    image = np.zeros((2, 2, 3), np.uint8)
    samples = [panels.Sample(image, None, {"mask": mask}), panels.Sample(image, boxes, {})]
    names = [name for _, name in panels._legend(samples, palette, ["a", "b", "c", "d"])]
    assert names == ["b", "d", "ignored"]  # no "wrong": there is no true mask to be wrong about


def test_error_of_several_labels() -> None:
    truth = np.zeros((2, 1, 4), np.uint8)
    truth[:, 0, 3], truth[0, 0, 2] = 255, 255
    prediction = np.zeros_like(truth)
    prediction[1, 0, 1:] = 1
    error = drawing.error_picture(np.zeros((1, 4, 3), np.uint8), truth, prediction)[0]
    assert [tuple(c) == palettes.WRONG_COLOR for c in error.tolist()] == [False, True, True, False]
    assert tuple(error[3].tolist()) == palettes.IGNORE_COLOR


def test_rescaling_takes_the_nearest_pixel_and_moves_boxes() -> None:
    mask = torch.arange(24, dtype=torch.uint8).reshape(4, 6)
    values = {"mask": [mask], "boxes": torch.tensor([[[0.0, 1, 6, 4]]]), "labels": torch.tensor([[2]]), "id": [7]}
    small = drawing.rescaled(drawing.annotation_of(values, 0), (4, 6), (2, 2))
    assert small["mask"].tolist() == [[7, 10], [19, 22]]
    assert small["boxes"].tolist() == [[0, 0.5, 2, 2]]
    assert small["labels"].tolist() == [2]
    assert "id" not in small
    large = drawing.rescaled({"mask": mask.numpy()}, (4, 6), (8, 12))
    assert np.array_equal(large["mask"], mask.numpy().repeat(2, 0).repeat(2, 1))
