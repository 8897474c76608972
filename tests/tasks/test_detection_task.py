"""The detection task: its arguments, boxes on the way to original pixels, windows, thresholds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from pytorch_lightning import Trainer
from torch.utils.data import DataLoader

from tasks import Detection
from tasks.detection.detectors.arguments import BackboneArguments
from tasks.detection.detectors.protocol import Family, Limits
from tasks.detection.detectors.yolo import YOLOArguments
from tasks.detection.evaluation.metrics import COCO_SIZES
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


def test_the_two_axes_have_scales_and_offsets_of_their_own():
    """A picture of 100 x 200 (height, width) at a quarter and a half of its size, 7 from the left, 3 from the top."""
    geometry = torch.tensor([100, 200, 0.25, 0.5, 7, 3])
    out = boxes_in_original(found([[8, 5, 17, 33], [7, 3, 7.002, 33], [0, 0, 99, 99]]), geometry)
    assert out["boxes"].tolist() == [[4, 4, 40, 60], [0, 0, 200, 100]]  # the second is thinner than 0.01 pixels
    assert out["boxes"].dtype == torch.float32


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


def from_two_windows(first, second, labels=(0, 0), nms_iou=0.99, max_detections=9):
    """Boxes of what one object gives in two windows of 64 x 64, 32 pixels apart, on a picture of 64 x 96."""
    windows = torch.tensor([(0, 0, 64, 64), (0, 32, 64, 96)])

    def finder(images):
        assert images.shape == (2, 3, 64, 64)
        return [found(boxes, labels=[label] * len(boxes)) for boxes, label in zip((first, second), labels, strict=True)]

    image = torch.zeros(3, 64, 96)
    out = found_by_tiles(finder, image, windows, nms_iou=nms_iou, max_detections=max_detections)
    return sorted(out["boxes"].tolist())


CUT, WHOLE = [40, 10, 64, 20], [40, 10, 80, 20]  # an object as the first window sees it, and on the picture


def test_a_box_that_a_border_cuts_gives_way_to_one_that_covers_half_of_it():
    assert from_two_windows([CUT], [[8, 10, 48, 20]]) == [WHOLE]
    assert from_two_windows([CUT], [[20, 10, 48, 20]]) == [[52, 10, 80, 20]]  # covers 12 of 24 columns
    assert from_two_windows([CUT], [[21, 10, 48, 20]]) == [CUT, [53, 10, 80, 20]]
    # Cut is what ends less than 2 pixels from a border that is not the picture's own.
    near = [40, 10, 62.5, 20]
    assert from_two_windows([near], [[8, 10, 48, 20]]) == [WHOLE]
    whole = [40, 10, 62, 20]
    assert from_two_windows([whole], [[8, 10, 48, 20]]) == [whole, WHOLE]
    top = [40, 0, 60, 20]
    assert from_two_windows([top], [[8, 0, 48, 40]]) == [top, [40, 0, 80, 40]]
    # The left border of the second window is not the picture's; the box of the first is whole.
    assert from_two_windows([[10, 10, 50, 20]], [[0, 10, 18, 20]]) == [[10, 10, 50, 20]]


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("end", [0, 1])
def test_the_pictures_own_borders_cut_nothing(axis, end):
    """Two windows 2 pixels apart; a box that ends with the picture, and a higher one that covers most of it."""
    size = [64, 64]
    size[axis] = 66
    windows = torch.tensor([(0, 0, 64, 64), (2, 0, 66, 64) if axis == 0 else (0, 2, 64, 66)])
    at_border, inside = ([40, 10, 66, 20], [38, 5, 60, 30]) if end else ([0, 10, 26, 20], [5, 5, 60, 30])
    if axis == 0:
        at_border, inside = ([y1, x1, y2, x2] for x1, y1, x2, y2 in (at_border, inside))
    shift = torch.tensor([2.0, 0, 2, 0]).roll(1 - axis)
    of_windows = [torch.tensor([inside if end else at_border]), torch.tensor([at_border if end else inside]) - shift]

    def finder(images):
        return [found(boxes.tolist()) for boxes in of_windows]

    out = found_by_tiles(finder, torch.zeros(3, *size), windows, nms_iou=0.99, max_detections=9)
    assert sorted(out["boxes"].tolist()) == sorted([at_border, inside])


def test_a_cut_box_gives_way_to_another_windows_box_of_its_class_only():
    assert from_two_windows([CUT], [[8, 10, 48, 20]], labels=(0, 1)) == sorted([CUT, WHOLE])
    inner = [20, 10, 62, 20]
    assert from_two_windows([inner, CUT], []) == sorted([inner, CUT])
    # Of two cut ones, the larger stays: 40 x 10 and 24 x 10 pixels.
    assert from_two_windows([CUT], [[0, 10, 32, 20]]) == [[32, 10, 64, 20]]
    # One suppression over all windows.
    assert from_two_windows([whole := [34, 10, 60, 20]], [[2, 10, 29, 20]], nms_iou=0.5) == [whole]
    assert len(from_two_windows([[0, 0, 9, 9], [0, 20, 9, 29]], [[9, 0, 19, 9]], max_detections=2)) == 2


def task(**arguments):
    made = Detection("fcos", "test_resnet", num_classes=2, in_chans=3, image_size=64, **arguments)
    made.configure_model()
    return made.eval()


def test_all_that_the_task_is_told_reaches_the_detector(monkeypatch):
    made = Detection(
        "yolo",
        "net",
        num_classes=3,
        pretrained="file.safetensors",
        backbone_args={"depth": 3},
        detector_args={"width": 16},
        drop_path_rate=0.2,
        grad_checkpointing=True,
        class_weights=[1.0, 2.0, 3.0],
        in_chans=1,
        image_size=[32, 48],
    )
    monkeypatch.setattr("tasks.detection.task.family_of", lambda name: Family(YOLOArguments, lambda *given: given))
    backbone = BackboneArguments("net", 1, "file.safetensors", (32, 48), 0.2, {"depth": 3}, True)
    assert made.build_network() == (backbone, 3, YOLOArguments(width=16), [1.0, 2.0, 3.0])
    made.load_pretrained = False  # the weights of a checkpoint follow
    assert made.build_network()[0] == replace(backbone, pretrained=False)


def test_limits_and_sizes_reach_the_detector_and_the_metrics():
    made = task(min_score=0.05, nms_iou=0.3, max_detections=7, size_ranges={"tiny": [0, 9]})
    made.network.detect = lambda image, limits: limits
    assert made.find(torch.zeros(1, 3, 64, 64)) == Limits(0.05, 0.3, 7)
    assert made.eval_metrics.max_detections == 7
    assert made.eval_metrics.size_ranges == {"tiny": (0, 9)}
    assert task().eval_metrics.size_ranges == COCO_SIZES


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


def outcome_of_a_test(made, masks=None):
    """What a test of one image logs, on which an object of class 0 is found with a confidence of 0.9."""
    box = torch.tensor([[10.0, 10, 40, 40]])
    made.find = lambda image: [found([[10, 10, 40, 40]]) | ({} if masks is None else {"masks": masks})]
    target = {"boxes": box, "labels": torch.tensor([0])}
    if masks is not None:
        target["masks"] = torch.zeros(1, 64, 64, dtype=torch.int16)
        target["masks"][0, 10:40, 10:40] = 1
    batch = {
        "image": torch.zeros(1, 3, 64, 64, dtype=torch.uint8),
        "geometry": torch.tensor([[64.0, 64, 1, 1, 0, 0]]),
        "target": [target],
        "id": torch.tensor([0]),
        "path": ["a.png"],
    }
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.test(made, DataLoader([batch], batch_size=None), verbose=False)
    return trainer.callback_metrics


def best(*per_class):
    return {"per_class": list(per_class), "overall": 0.5, "f1": [1.0, 1.0], "overall_f1": 1.0}


def test_the_checkpoints_thresholds_decide_the_tests_f1():
    """The best ones of the test's own images would give 1."""
    made = task()
    assert outcome_of_a_test(made)["test/f1"] == 1  # there are none before a validation
    made.best_thresholds = {"bbox": best(0.95, 0.1)}
    values = outcome_of_a_test(made)
    assert (values["test/f1"], values["test/ap_dsb"], values["test/map"]) == (0, 0, 1)
    made.best_thresholds = {"bbox": best(float(np.float32(0.9)), 0.95)}  # what has just this confidence counts
    assert outcome_of_a_test(made)["test/f1"] == 1


def test_masks_have_thresholds_of_their_own():
    args = {"head_channels": 16, "box_head_width": 16, "mask_head_width": 16, "mask_head_depth": 1}
    made = Detection("mask_rcnn", "test_resnet", 2, in_chans=3, image_size=64, detector_args=args)
    made.configure_model()
    assert made.thresholds().tolist() == [0.5, 0.5]
    made.best_thresholds = {"bbox": best(0.1, 0.2), "segm": best(0.95, 0.4)}
    assert made.thresholds().tolist() == pytest.approx([0.95, 0.4])
    values = outcome_of_a_test(made.eval(), masks=torch.ones(1, 28, 28))
    assert (values["test/f1"], values["test/mask_f1"], values["test/mask_map"]) == (1, 0, 1)
    made.best_thresholds = {"bbox": best(0.95, 0.2), "segm": best(0.1, 0.4)}
    values = outcome_of_a_test(made, masks=torch.ones(1, 28, 28))
    assert (values["test/f1"], values["test/mask_f1"]) == (0, 1)


def test_masks_are_run_lengths_of_the_original_picture():
    """A picture of 20 x 60 (height, width) lies at twice its size, 12 from the top, on a canvas of 64 x 120."""
    made = Detection("mask_rcnn", "test_resnet", 2, in_chans=3, image_size=[64, 120])
    made.find = lambda image: [found([[20, 16, 60, 28]]) | {"masks": torch.ones(1, 28, 28)}]
    geometry = torch.tensor([[20.0, 60, 2, 2, 0, 12]])
    out = made.predict({"image": torch.zeros(1, 3, 64, 120), "geometry": geometry})
    assert out["boxes"][0].tolist() == [[10, 2, 30, 8]]
    (mask,) = out["masks"][0]
    assert mask["size"] == [20, 60]
    pixels = torch.from_numpy(coco_mask.decode(mask)).bool()
    expected = torch.zeros(20, 60, dtype=torch.bool)
    expected[2:8, 10:30] = True
    assert torch.equal(pixels, expected)


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
        (
            {"detector_args": {"head_depth": "deep"}},
            "head_depth is 'deep'; it must be a whole number",
        ),
        ({"detector_args": {"strides": 8}}, "strides is 8; it must be a list of whole numbers or null"),
        ({"detector_args": {"focal_gamma": True}}, "focal_gamma is True; it must be a number"),
        ({"detector_args": {"box_loss": "l1"}}, "box_loss is 'l1'; it must be giou or iou"),
        ({"detector_args": {"image_size": 64}}, "detector_args.image_size .* set model.image_size"),
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
