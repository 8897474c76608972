"""The detection task: its arguments, boxes on the way to original pixels, windows, thresholds."""

from __future__ import annotations

import pytest
import torch

from tasks import Detection
from tasks.detection.postprocess import boxes_in_original, found_by_tiles


def found(boxes, scores=None, labels=None):
    boxes = torch.tensor(boxes, dtype=torch.float32).view(-1, 4)
    return {
        "boxes": boxes,
        "scores": torch.tensor(scores or [0.9] * len(boxes)),
        "labels": torch.tensor(labels or [0] * len(boxes)),
    }


def test_boxes_go_back_to_original_pixels():
    """A picture of 100 x 200 (height, width) lies at half its size in the middle of a canvas of 100 x 100."""
    geometry = torch.tensor([100, 200, 0.5, 0.5, 0, 25])
    out = boxes_in_original(found([[10, 30, 50, 60], [0, 0, 90, 24], [50, 20, 100, 80]]), geometry)
    # The second box lies on the padding; the third is clipped to the picture.
    assert out["boxes"].tolist() == [[20, 10, 100, 70], [100, 0, 200, 100]]
    assert len(out["scores"]) == len(out["labels"]) == 2


def see_squares(squares):
    """A finder that reports the visible part of each known square: its place is read off the pixels."""

    def finder(images):
        results = []
        for image in images:
            boxes, labels = [], []
            for number in range(1, len(squares) + 1):
                rows, columns = (image[0] == number).nonzero(as_tuple=True)
                if len(rows):
                    boxes.append([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
                    labels.append(0)
            results.append(found(boxes, labels=labels))
        return results

    return finder


def draw(squares, height, width):
    image = torch.zeros(3, height, width)
    for number, (x1, y1, x2, y2) in enumerate(squares, 1):
        image[:, y1:y2, x1:x2] = number
    return image


def test_windows_find_each_object_once():
    """Objects up to the overlap are whole in one window; the parts that other windows see are dropped."""
    squares = [(5, 5, 25, 25), (50, 10, 78, 36), (60, 50, 90, 80), (100, 100, 126, 128), (0, 90, 20, 120)]
    image = draw(squares, 128, 128)
    windows = torch.tensor([(y, x, y + 64, x + 64) for y in (0, 32, 64) for x in (0, 32, 64)])
    out = found_by_tiles(see_squares(squares), image, windows, nms_iou=0.6, max_detections=100)
    assert sorted(out["boxes"].tolist()) == sorted([[float(v) for v in square] for square in squares])
    assert set(out) == {"boxes", "scores", "labels"}


def test_windows_of_other_sizes_and_empty_ones():
    squares = [(2, 2, 12, 12)]
    windows = torch.tensor([(0, 0, 64, 64), (0, 32, 64, 70)])
    out = found_by_tiles(see_squares(squares), draw(squares, 64, 70), windows, nms_iou=0.6, max_detections=1)
    assert out["boxes"].tolist() == [[2, 2, 12, 12]]
    empty = found_by_tiles(see_squares([]), draw([], 64, 70), windows, nms_iou=0.6, max_detections=1)
    assert len(empty["boxes"]) == 0


def test_the_larger_part_stays_of_an_object_that_fits_no_window():
    squares = [(10, 10, 120, 20)]
    windows = torch.tensor([(0, 0, 64, 64), (0, 32, 64, 96), (0, 64, 64, 128)])
    out = found_by_tiles(see_squares(squares), draw(squares, 64, 128), windows, nms_iou=0.6, max_detections=9)
    assert len(out["boxes"]) >= 1
    assert (out["boxes"][:, 2] - out["boxes"][:, 0]).max() == 64


def task(**arguments):
    made = Detection("fcos", "test_resnet", num_classes=2, in_chans=3, image_size=64, **arguments)
    made.configure_model()
    return made.eval()


PREDICTIONS = {
    "boxes": [torch.tensor([[0.0, 0, 9, 9], [0, 0, 5, 5], [1, 1, 4, 4]])],
    "scores": [torch.tensor([0.9, 0.5, 0.3])],
    "labels": [torch.tensor([0, 1, 1])],
}


def test_thresholds_by_class():
    made = task()
    assert made.thresholds().tolist() == [0.5, 0.5]
    assert made.shown(PREDICTIONS)["scores"][0].tolist() == pytest.approx([0.9, 0.5])
    made.best_thresholds = {"bbox": {"per_class": [0.95, 0.25], "overall": 0.4, "f1": [1, 1], "overall_f1": 1}}
    assert made.shown(PREDICTIONS)["scores"][0].tolist() == pytest.approx([0.5, 0.3])
    assert task(score_threshold=0.4).shown(PREDICTIONS)["labels"][0].tolist() == [0, 1]


def test_rows_and_captions_count_what_is_shown():
    made, batch = task(), {"path": ["a/b.png"], "target": [{"labels": torch.tensor([0, 0, 1])}]}
    (row,) = made.rows(batch, PREDICTIONS, ["cat", "dog"])
    assert row == {"path": "a/b.png", "objects": 2, "true_objects": 3, "number_cat": 1, "number_dog": 1}
    assert made.captions(batch, PREDICTIONS, ["cat", "dog"]) == ["b.png · 1 × dog · 1 × cat"]


def test_the_loss_scales_with_the_weight_of_each_image():
    made = task()
    torch.manual_seed(0)
    image = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    boxes = torch.tensor([[[4.0, 4, 40, 40]], [[10, 20, 60, 60]]])
    batch = {"image": image, "boxes": boxes, "labels": torch.tensor([[0], [1]])}
    single = [made.loss({k: v[i : i + 1] for k, v in batch.items()})["loss"] for i in range(2)]
    weighted = made.loss({**batch, "weight": torch.tensor([2.0, 0.5])})["loss"]
    assert torch.isclose(weighted, (2 * single[0] + 0.5 * single[1]) / 2, rtol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"detector_args": {"head_chanels": 64}}, r"detector_args.head_chanels .* did you mean head_channels\?"),
        ({"detector_args": {"width": 64}}, "detector_args.width is no argument of 'fcos'; it takes box_loss"),
        ({"detector_args": {"class_weights": [1, 2]}}, "detector_args.class_weights .* set model.class_weights"),
        ({"score_threshold": 1.5}, "model.score_threshold is 1.5; it must be between 0 and 1"),
        ({"score_threshold": 0.01, "min_score": 0.1}, "below model.min_score, 0.1"),
        ({"nms_iou": -1}, "model.nms_iou is -1"),
        ({"max_detections": 0}, "model.max_detections is 0"),
        ({"color_jitter": -0.1}, "model.color_jitter is -0.1"),
        ({"class_weights": [1.0]}, "model.class_weights has 1 numbers, but there are 2 classes"),
        ({"detector_args": {"head_depth": "deep"}}, "model.detector_args {'head_depth': 'deep'} do not fit 'fcos'"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments, said):
    with pytest.raises(ValueError, match=said):
        task(**arguments)


def test_masks_need_data_with_masks():
    made = Detection("mask_rcnn", "test_resnet")
    assert made.monitor == "val/mask_map"
    with pytest.raises(ValueError, match=r"learns masks, but data\.masks is false"):
        made.resolve({"num_classes": 2, "masks": False}, "DetectionData")
    made.resolve({"num_classes": 2, "masks": True}, "DetectionData")
    assert made.num_classes == 2
