"""The detectors' own formulas, one by one, against values computed by hand; the families as a whole stand elsewhere."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.ops import complete_box_iou_loss

from tasks.detection.detectors import arguments, selection
from tasks.detection.detectors.anchors import (
    anchor_shapes,
    decode_distances,
    decode_offsets,
    encode_distances,
    encode_offsets,
    grid_anchors,
)
from tasks.detection.detectors.arguments import BackboneArguments
from tasks.detection.detectors.assign import centers_inside, pairwise_iou, task_aligned_assignment
from tasks.detection.detectors.box_regression import BoxRegression, BoxRegressionArguments, build_box_regression
from tasks.detection.detectors.faster_rcnn import FasterRCNNArguments, build_faster_rcnn
from tasks.detection.detectors.fcos import FCOSArguments, build_fcos, match_points
from tasks.detection.detectors.losses import expected_distances, focal_loss, iou_loss
from tasks.detection.detectors.protocol import Limits
from tasks.detection.detectors.regions import Samples, means_by_image, roi_pool
from tasks.detection.detectors.retinanet import RetinaNetArguments, build_retinanet
from tasks.detection.detectors.selection import best_boxes, dense_candidates
from tasks.detection.detectors.targets import in_crowd, read_targets
from tasks.detection.detectors.yolo import Dense, YOLOArguments, build_yolo

NET = BackboneArguments("test_resnet")
LIMITS = Limits(score_threshold=0.1, nms_iou=0.5, max_detections=10)


def box(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float32)


def test_all_arguments_of_the_backbone_reach_the_pyramid(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}
    monkeypatch.setattr(arguments, "create_pyramid", lambda name, **more: seen.update(more, name=name))
    BackboneArguments("net", 1, "file.safetensors", (32, 48), 0.2, {"depth": 3}, True).pyramid([8, 16])
    assert seen == {
        "name": "net",
        "in_chans": 1,
        "pretrained": "file.safetensors",
        "image_size": (32, 48),
        "strides": [8, 16],
        "drop_path_rate": 0.2,
        "backbone_args": {"depth": 3},
        "grad_checkpointing": True,
    }


def test_strides_are_those_from_the_finest_on_or_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(BackboneArguments, "pyramid", lambda self, strides: asked.append(strides))
    for available, finest in (([2, 4, 8, 16, 32, 64], 8), ([7, 14, 28], 8), ([1, 2], 8), ([2, 4, 8], 4)):
        monkeypatch.setattr(BackboneArguments, "strides", lambda self, available=available: available)
        NET.detection_pyramid(finest, None)
    NET.detection_pyramid(8, [32, 16])
    assert asked == [[8, 16, 32], [7, 14, 28], [2], [4, 8], [16, 32]]


# Targets, anchors, grids.


def test_a_truth_keeps_objects_and_crowds_apart() -> None:
    boxes = box([0, 0, 8, 8], [2, 2, 6, 4], [5, 5, 5, 9], [5, 5, 9, 5], [0, 0, 0, 0])
    targets = {
        "boxes": boxes.unsqueeze(0),
        "labels": torch.tensor([[1, 0, 2, 2, -1]]),
        "iscrowd": torch.tensor([[0, 1, 0, 0, 0]], dtype=torch.uint8),
    }
    truth = read_targets(targets)
    assert truth.learned.tolist() == [[True, False, False, False, False]]  # the third and fourth have no area
    assert truth.crowds[0].tolist() == [[0] * 4, [2, 2, 6, 4], [0] * 4, [0] * 4, [0] * 4]
    none = read_targets({"boxes": torch.zeros(2, 0, 4), "labels": torch.zeros(2, 0, dtype=torch.int64)})
    assert none.labels.tolist() == [[-1], [-1]]
    assert not none.learned.any()
    assert not none.crowds.any()


def test_points_in_crowds() -> None:
    points = torch.tensor([[2.0, 2.0], [6.0, 2.0], [5.9, 3.9], [4.0, 4.0], [7.0, 7.0]])
    crowds = box([2, 2, 6, 4], [0, 0, 0, 0], [6, 6, 8, 8])
    assert in_crowd(points, crowds).tolist() == [True, False, True, False, True]


def test_short_sides_count_as_long_as_a_cell_around_the_same_middle() -> None:
    points = torch.tensor([[1.0, 5.0], [9.0, 5.0], [5.0, 4.0], [5.0, 6.0]])
    thin = box([4, 4, 6, 6]).unsqueeze(0)
    assert centers_inside(points, thin)[0, 0].tolist() == [False, False, True, False]  # the bottom does not belong
    assert centers_inside(points, thin, 8.0)[0, 0].tolist() == [True, False, True, True]


def test_pairwise_iou_by_hand() -> None:
    first = box([0, 0, 4, 2], [0, 0, 0, 0]).unsqueeze(0)
    second = box([2, 0, 6, 2], [0, 1, 4, 3], [9, 9, 10, 10]).unsqueeze(0)
    assert pairwise_iou(first, second)[0].tolist() == [[pytest.approx(4 / 12), pytest.approx(4 / 12), 0], [0, 0, 0]]


def test_anchors_by_hand() -> None:
    """Scale 2 strides and twice as high as wide: sqrt(2) and 2 sqrt(2) strides; the first of all ratios comes first."""
    shapes = anchor_shapes([2.0, 4.0], [4.0, 1.0])
    assert shapes.tolist() == [[1, 4], [2, 8], [2, 2], [4, 4]]  # width, height
    (anchors,) = grid_anchors([(1, 2)], [8], shapes[:1])
    assert anchors.tolist() == [[0, -12, 8, 20], [8, -12, 16, 20]]  # centers (4, 4) and (12, 4)
    fine, coarse = grid_anchors([(2, 1), (1, 1)], [4, 8], torch.ones(1, 2))
    assert fine.tolist() == [[0, 0, 4, 4], [0, 4, 4, 8]]
    assert coarse.tolist() == [[0, 0, 8, 8]]


def test_offsets_and_distances_by_hand_and_back() -> None:
    anchors, boxes = box([0, 0, 8, 4], [10, 10, 20, 20]), box([4, 0, 20, 4], [5, 10, 10, 40])
    # The first is twice as wide as its anchor, its center 8 to the right, which is one width.
    expected = [[1, 0, math.log(2), 0], [-7.5 / 10, 10 / 10, math.log(0.5), math.log(3)]]
    offsets = encode_offsets(boxes, anchors)
    assert torch.allclose(offsets, torch.tensor(expected))
    assert torch.allclose(decode_offsets(offsets, anchors), boxes, atol=1e-5)
    far = decode_offsets(torch.tensor([[0.0, 0.0, 50.0, 0.0]]), anchors[:1])
    assert float(far[0, 2] - far[0, 0]) == pytest.approx(8 * 1000 / 16, rel=1e-5)  # and not infinite
    coder = RegionProposalNetwork(None, None, 0.7, 0.3, 1, 0.5, {}, {}, 0.7).box_coder  # torchvision's, weights of 1
    random = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(decode_offsets(random, anchors), coder.decode_single(random, anchors))
    assert torch.equal(offsets, coder.encode_single(boxes, anchors))
    points, strides = torch.tensor([[12.0, 2.0], [8.0, 20.0]]), torch.tensor([4.0, 2.0])
    distances = encode_distances(boxes, points, strides)
    assert distances.tolist() == [[2, 0.5, 2, 0.5], [1.5, 5, 1, 10]]  # left, top, right, bottom
    assert decode_distances(distances, points, strides).tolist() == boxes.tolist()


def test_regions_are_pooled_from_the_map_of_their_size() -> None:
    """Equation 1 of the FPN paper: 224 pixels at stride 16, which is the third map, and half as large one map finer."""
    pool = roi_pool([4, 8, 16, 32], 7)
    sides = [20.0, 111.0, 113.0, 223.0, 225.0, 447.0, 449.0, 2000.0]
    levels = pool.map_levels([torch.tensor([[0.0, 0.0, side, side] for side in sides])])
    assert levels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert pool.scales == [1 / 4, 1 / 8, 1 / 16, 1 / 32]


# Losses.


def test_focal_loss_by_hand() -> None:
    """Two anchors with an object of class 1, one with background, one that is ignored."""
    logits = torch.tensor([[[0.3, -0.4], [1.2, 0.1], [-0.7, 0.9], [3.0, 3.0]]])
    classes = torch.tensor([[1, 1, 0, 0]])
    foreground, ignored = torch.tensor([[True, True, False, False]]), torch.tensor([[False, False, False, True]])
    alpha, gamma, weights = 0.3, 1.5, torch.tensor([5.0, 3.0])

    def one(logit: float, positive: bool, weight: float = 1.0) -> float:
        p = 1 / (1 + math.exp(-logit))
        if positive:
            return weight * alpha * (1 - p) ** gamma * -math.log(p)
        return (1 - alpha) * p**gamma * -math.log(1 - p)

    expected = one(0.3, False) + one(-0.4, True, 3) + one(1.2, False) + one(0.1, True, 3) + one(-0.7, False)
    expected = (expected + one(0.9, False)) / 2  # two anchors of foreground
    loss = focal_loss(logits, classes, foreground, ignored, alpha=alpha, gamma=gamma, class_weights=weights)
    assert loss.tolist() == [pytest.approx(expected, rel=1e-5)]
    empty = torch.zeros_like(foreground)
    loss = focal_loss(logits, classes, empty, ignored, alpha=alpha, gamma=gamma, class_weights=None)
    expected = sum(one(x, False) for x in (0.3, -0.4, 1.2, 0.1, -0.7, 0.9))  # divided by 1
    assert loss.tolist() == [pytest.approx(expected, rel=1e-5)]


def test_iou_losses_by_hand() -> None:
    predicted, true = box([0, 0, 4, 2], [0, 0, 1, 1]), box([2, 0, 6, 2], [3, 0, 4, 1])
    assert iou_loss(predicted, true, "iou").tolist() == pytest.approx([1 - 4 / 12, 1], abs=1e-6)
    # The hull of the first pair is 6 x 2 and full; that of the second is 4 x 1 and half empty.
    assert iou_loss(predicted, true, "giou").tolist() == pytest.approx([1 - 4 / 12, 1 + 2 / 4], abs=1e-6)


def test_means_by_image_by_hand() -> None:
    of_images = [torch.zeros(2), torch.zeros(0), torch.zeros(1)]
    assert means_by_image(torch.tensor([1.0, 2.0, 5.0]), of_images).tolist() == [1.5, 0, 5]


def test_a_point_learns_the_smallest_of_the_boxes_that_suit_its_map() -> None:
    anchors = grid_anchors([(4, 4)], [8], torch.ones(1, 2))[0]  # centers at 4, 12, 20, 28
    boxes = box([0, 0, 24, 24], [4, 4, 20, 20], [0, 0, 32, 8])
    learned, ranges = torch.ones(3, dtype=torch.bool), torch.tensor([[0.0, 64.0]]).expand(16, 2)
    place = match_points(boxes, learned, anchors, ranges, 1.5).view(4, 4)
    # The third box's center (16, 4): within 12 pixels of the first row's middle points, and inside them.
    assert place.tolist() == [[0, 2, 2, -1], [0, 1, 0, -1], [0, 0, 0, -1], [-1, -1, -1, -1]]
    # Its farthest side is 20 away from (12, 4) and from (20, 4): not above 20, and at most 20.
    beyond = match_points(boxes, learned, anchors, torch.tensor([[20.0, 64.0]]).expand(16, 2), 1.5).view(4, 4)
    assert beyond[0].tolist() == [-1, -1, -1, -1]
    within = match_points(boxes, learned, anchors, torch.tensor([[0.0, 20.0]]).expand(16, 2), 1.5).view(4, 4)
    assert within[0].tolist() == [0, 2, 2, -1]
    assert (match_points(boxes, torch.zeros(3, dtype=torch.bool), anchors, ranges, 1.5) == -1).all()


# The two dense families.


@pytest.mark.parametrize("family", ["fcos", "retinanet"])
def test_an_object_in_the_middle_of_a_crowd_is_learned(family: str) -> None:
    """A crowd takes the background from the class loss; what an object takes remains its own."""
    args = {"head_channels": 8, "head_depth": 1, "strides": [8]}
    detector: Any = build_fcos(NET, 2, FCOSArguments(**args))
    if family == "retinanet":
        detector = build_retinanet(NET, 2, RetinaNetArguments(**args))
    image = torch.zeros(1, 3, 64, 64)
    boxes = box([16, 16, 48, 48], [-200, -200, 400, 400]).unsqueeze(0)
    crowded = {"boxes": boxes, "labels": torch.tensor([[1, 1]]), "iscrowd": torch.tensor([[0, 1]])}
    alone = {"boxes": boxes[:, :1], "labels": torch.tensor([[1]])}
    with torch.no_grad():
        beside, plain = detector.image_losses(image, crowded), detector.image_losses(image, alone)
    assert beside["box_loss"].item() == pytest.approx(plain["box_loss"].item())
    assert plain["box_loss"] > 0
    assert 0 < beside["class_loss"] < plain["class_loss"]


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.4, 2.0), (0.25, 3.0)])
def test_alpha_and_gamma_of_the_focal_loss_are_those_of_the_arguments(alpha: float, gamma: float) -> None:
    """Nothing but background at a probability of a half: (1 - alpha) 0.5^gamma ln 2 for each cell and class."""
    arguments = FCOSArguments(strides=[8], head_channels=8, head_depth=1, focal_alpha=alpha, focal_gamma=gamma)
    fcos = build_fcos(NET, 3, arguments)
    nn.init.zeros_(fcos.classification_head.cls_logits.weight)
    nn.init.zeros_(fcos.classification_head.cls_logits.bias)
    nothing = {"boxes": torch.zeros(1, 0, 4), "labels": torch.zeros(1, 0, dtype=torch.int64)}
    with torch.no_grad():
        loss = fcos.image_losses(torch.zeros(1, 3, 32, 32), nothing)["class_loss"]
    cells = 4 * 4 + 2 * 2 + 1
    assert loss.item() == pytest.approx((1 - alpha) * 0.5**gamma * math.log(2) * cells * 3)


@pytest.mark.parametrize(("radius", "learning"), [(0.6, 1), (1.5, 9), (2.5, 25)])
def test_the_radius_of_the_arguments_says_which_cells_learn(radius: float, learning: int) -> None:
    """A box around the center of the third cell of 8 pixels: cells up to 0, 1 or 2 strides away are nearer."""
    fcos = build_fcos(NET, 1, FCOSArguments(strides=[8], head_channels=8, head_depth=1, radius=radius))
    truth = read_targets({"boxes": box([0, 0, 40, 40]).unsqueeze(0), "labels": torch.tensor([[0]])})
    levels = grid_anchors([(8, 8), (4, 4), (2, 2)], fcos.fpn.strides, fcos.shapes)
    assert int((fcos.match(truth, levels) == 0).sum()) == learning


# What leaves a detector.


def test_best_boxes_by_hand() -> None:
    boxes = box([0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 8], [-5, 30, 4, 44], [50, 5, 60, 9], [20, 5, 20.005, 9])
    scores = torch.tensor([0.5, 0.9, 0.8, 0.7, 0.95, 0.99])
    labels = torch.tensor([1, 1, 0, 2, 2, 2])
    found = best_boxes(boxes, scores, labels, (40, 50), LIMITS)
    # The second takes the place of the first, which is of its class; the fourth is clipped to 40 x 50 (height x width);
    # the fifth lies beside it; the last is thinner than 0.01.
    assert found["scores"].tolist() == pytest.approx([0.9, 0.8, 0.7])
    assert found["labels"].tolist() == [1, 0, 2]
    assert found["boxes"].tolist() == [[0, 0, 10, 9], [0, 0, 10, 8], [0, 30, 4, 40]]
    assert best_boxes(boxes, scores, labels, (40, 50), Limits(0.8, 0.5, 10))["labels"].tolist() == [1]
    assert best_boxes(boxes, scores, labels, (40, 50), Limits(0.1, 0.95, 2))["labels"].tolist() == [1, 0]
    assert len(best_boxes(boxes, scores, labels, (40, 50), Limits(0.1, 0.95, 10))["labels"]) == 4


def test_of_each_map_the_best_candidates_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two maps of two anchors, two classes; boxes are moved by 0, 4, 8 and 12 pixels."""
    anchors = [box([0, 0, 4, 4], [10, 0, 14, 4]), box([0, 20, 8, 28], [20, 20, 28, 28])]
    scores = torch.tensor([[[0.9, 0.2], [0.8, 0.3], [0.7, 0.6], [0.4, 0.5]]])
    offsets = torch.arange(16.0).view(1, 4, 4)

    def found(iou: float, most: int) -> dict[str, Tensor]:
        size, limits = (100, 100), Limits(0.1, iou, most)
        candidates = dense_candidates(scores, offsets, anchors, lambda o, a: a + o[..., :1], limits)
        return best_boxes(candidates.boxes[0], candidates.scores[0], candidates.labels[0], size, limits)

    monkeypatch.setattr(selection, "LEVEL_CANDIDATES", 1)
    assert found(1.0, 1)["scores"].tolist() == pytest.approx([0.9])
    # Above 1 detection, as many candidates are taken from each map.
    two = found(1.0, 2)
    assert two["boxes"].tolist() == [[0, 0, 4, 4], [14, 4, 18, 8]]
    six = found(1.0, 6)
    assert six["scores"].tolist() == pytest.approx([0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
    assert six["labels"].tolist() == [0, 0, 0, 1, 1, 0]
    assert six["boxes"][2:5].tolist() == [[8, 28, 16, 36], [8, 28, 16, 36], [32, 32, 40, 40]]
    # What is not among a map's candidates does not come in for those that are suppressed.
    offsets[0, 1] = -10  # the second anchor gives the box of the first
    scores[0, :, 1] = 0.2
    monkeypatch.setattr(selection, "LEVEL_CANDIDATES", 2)
    assert found(0.5, 2)["scores"].tolist() == pytest.approx([0.9, 0.7])
    offsets[0, 3] = 4  # and the fourth that of the third, moved by 20 - 16
    anchors[1][1] = anchors[1][0] + 4
    assert len(found(0.5, 2)["scores"]) == 2
    monkeypatch.setattr(selection, "LEVEL_CANDIDATES", 3)
    assert found(0.5, 3)["labels"].tolist() == [0, 0, 1]


# One box an image.


def planted(net: BoxRegression, logits: Tensor, places: Tensor) -> Any:
    net.forward = lambda image: {"logits": logits, "places": places}  # type: ignore[method-assign, assignment]
    return net


def test_the_largest_object_is_the_one_to_be_found_on_any_canvas() -> None:
    """A canvas of 50 x 200 (height x width); the largest box is a crowd, the next one is of class 2."""
    net = build_box_regression(NET, 3, BoxRegressionArguments(head_channels=8, box_weight=2.0))
    logits = torch.tensor([[0.5, -1.0, 2.0]])
    places = torch.tensor([[0.5, 0.5, 0.2, 0.4]]).logit()  # center and size: the box is 0.4, 0.3, 0.6, 0.7
    targets = {
        "boxes": box([20, 10, 60, 20], [0, 0, 200, 50], [80, 15, 130, 40]).unsqueeze(0),
        "labels": torch.tensor([[0, 1, 2]]),
        "iscrowd": torch.tensor([[0, 1, 0]], dtype=torch.uint8),
    }
    losses = planted(net, logits, places).losses(torch.zeros(1, 3, 50, 200), targets)
    assert float(losses["class_loss"]) == pytest.approx(-float(logits.log_softmax(1)[0, 2]))
    # True: 80/200, 15/50, 130/200, 40/50. The smooth L1 loss turns linear at 0.05.
    errors = [0.0, 0.0, 0.05, 0.1]
    smooth = [e**2 / 2 / 0.05 if e < 0.05 else e - 0.05 / 2 for e in errors]
    assert float(losses["box_loss"]) == pytest.approx(2.0 * sum(smooth), abs=1e-6)
    only_crowd = {key: value[:, 1:2] for key, value in targets.items()}
    assert float(net.losses(torch.zeros(1, 3, 50, 200), only_crowd)["loss"]) == 0


def test_the_box_of_an_image_in_pixels_of_its_canvas() -> None:
    net = build_box_regression(NET, 3, BoxRegressionArguments(head_channels=8))
    logits = torch.tensor([[0.0, 3.0, 0.0], [0.0, 0.1, 0.0]])
    places = torch.tensor([[0.5, 0.25, 0.2, 0.3], [0.9, 0.5, 0.4, 0.2]]).logit()
    score = float(logits.softmax(1)[0, 1])
    image = torch.zeros(2, 3, 50, 200)
    found = planted(net, logits, places).detect(image, Limits(0.5, 0.5, 5))
    assert found[0]["boxes"].tolist() == [pytest.approx([80, 5, 120, 20], abs=1e-4)]
    assert found[0]["labels"].tolist() == [1]
    assert found[0]["scores"].tolist() == [pytest.approx(score)]
    assert len(found[1]["boxes"]) == 0
    at = net.detect(image, Limits(score, 0.5, 5))
    assert len(at[0]["boxes"]) == 0
    low = net.detect(image, Limits(0.0, 0.5, 5))
    assert low[1]["boxes"].tolist() == [pytest.approx([140, 20, 200, 30], abs=1e-4)]  # clipped at the right


def test_cells_know_where_they_are() -> None:
    """The last two channels of the mixed map are x and y from -1 to 1, at the cells' centers."""
    net = build_box_regression(NET, 3, BoxRegressionArguments(head_channels=2))
    with torch.no_grad():
        net.mix.weight.zero_()
        net.mix.bias.zero_()
        net.mix.weight[0, -2], net.mix.weight[1, -1] = 1, 1  # ReLU: the mean of the positive halves
        net.class_layer.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]))
        net.class_layer.bias.zero_()
        logits = net(torch.zeros(1, 3, 64, 128))["logits"]  # 2 x 4 cells of stride 32
    assert logits.tolist() == [pytest.approx([(0.25 + 0.75) / 4, 0.5 / 2, 0])]


# Two stages.


def test_settings_of_the_two_stages_are_where_torchvision_looks_for_them() -> None:
    settings = FasterRCNNArguments(
        head_channels=8, box_head_width=8, candidates=(7, 6), proposals=(5, 4), rpn_samples=20, box_samples=40
    )
    net = build_faster_rcnn(NET, 3, settings)
    rpn, heads = net.rpn, net.roi_heads
    assert (rpn.pre_nms_top_n(), rpn.post_nms_top_n()) == (7, 5)
    net.eval()
    assert (rpn.pre_nms_top_n(), rpn.post_nms_top_n()) == (6, 4)
    assert (rpn.fg_bg_sampler.batch_size_per_image, rpn.fg_bg_sampler.positive_fraction) == (20, 0.5)
    assert (heads.fg_bg_sampler.batch_size_per_image, heads.fg_bg_sampler.positive_fraction) == (40, 0.25)
    assert rpn.nms_thresh == 0.7


def test_class_weights_of_the_second_stage_leave_background_alone() -> None:
    """Two regions of an image, background and class 2, with known logits."""
    net = build_faster_rcnn(NET, 3, FasterRCNNArguments(head_channels=8, box_head_width=8), [2.0, 3.0, 4.0])
    logits, offsets = torch.tensor([[0.1, 0.2, 0.3, 0.4], [1.0, 0.0, -1.0, 0.5]]), torch.zeros(2, 4, 4)
    offsets[1, 3] = torch.tensor([0.5, 0.0, 0.0, -0.05])
    offsets[0] = 9.0  # background has no box
    net._predict = lambda pooled: (logits, offsets)  # type: ignore[method-assign]
    regions = box([0, 0, 8, 8], [0, 0, 20, 10])
    samples = Samples([regions], [torch.tensor([0, 0])], [torch.tensor([0, 3])], regions)
    losses = net._box_losses(torch.zeros(2, 1), samples)
    logs = logits.log_softmax(1)
    assert losses["class_loss"].tolist() == [pytest.approx(float(-logs[0, 0] - 4 * logs[1, 3]) / 2)]
    # The region is the true box: offsets of 0 are wanted. Smooth L1 turns linear at 1/9.
    expected = (0.5 - 1 / 18) + 0.05**2 * 9 / 2
    assert losses["box_loss"].tolist() == [pytest.approx(expected / 2, rel=1e-5)]


# YOLO.


def test_a_yolo_begins_with_its_prior_and_boxes_of_four_cells() -> None:
    net = build_yolo(NET, 3, YOLOArguments(width=8, prior=0.02))
    for head in net.heads:
        assert head.class_logits.bias.sigmoid().tolist() == pytest.approx([0.02] * 3)
        distances = expected_distances(head.box_logits.bias.view(4, 17))
        assert distances.tolist() == pytest.approx([2.0] * 4, abs=0.02)  # but for the limit, 16 cells


def test_a_yolos_points_are_the_cells_centers_in_pixels() -> None:
    net = build_yolo(NET, 3, YOLOArguments(width=8, strides=[16, 32])).eval()
    with torch.no_grad():
        dense = net(torch.zeros(1, 3, 32, 64))
    fine = [[8, 8], [24, 8], [40, 8], [56, 8], [8, 24], [24, 24], [40, 24], [56, 24]]
    assert dense.points.tolist() == [*fine, [16, 16], [48, 16]]
    assert dense.strides.tolist() == [16] * 8 + [32] * 2


def test_of_a_yolos_scores_as_many_go_on_as_detections_are_wanted() -> None:
    """Three cells far apart, two classes; a box each, 8 pixels wide."""
    logits = torch.tensor([[[3.0, -9.0], [2.0, -9.0], [1.0, -9.0]]])
    distances = torch.tensor([-20.0, 20.0, -20.0]).expand(1, 3, 4, 3)
    points = torch.tensor([[8.0, 8.0], [24.0, 8.0], [40.0, 8.0]])
    dense = Dense(logits, distances, points, torch.full((3,), 4.0))
    yolo = build_yolo(NET, 2, YOLOArguments(strides=[8], width=8, reg_max=2, pre_nms=2))
    yolo.forward = lambda image: dense  # type: ignore[method-assign, assignment]
    image = torch.zeros(1, 3, 16, 48)
    assert len(yolo.detect(image, Limits(0.1, 0.5, 1))[0]["scores"]) == 1
    (found,) = yolo.detect(image, Limits(0.1, 0.5, 3))
    assert found["scores"].tolist() == pytest.approx(logits[0, :, 0].sigmoid().tolist())
    assert found["boxes"][2].tolist() == pytest.approx([36, 4, 44, 12], abs=1e-3)


def test_a_yolos_losses_are_those_of_the_papers_object_by_object() -> None:
    """Sums in plain Python over the cells, with torchvision's CIoU in pixels; the assignment is tested elsewhere."""
    torch.manual_seed(0)
    weights = [2.0, 0.5, 3.0]
    net = build_yolo(NET, 3, YOLOArguments(width=8, reg_max=6, topk=3), weights).eval()
    points = torch.tensor([[x * 8 + 4.0, y * 8 + 4.0] for y in range(4) for x in range(6)])
    count = len(points)
    dense = Dense(torch.randn(1, count, 3), torch.randn(1, count, 4, 7), points, torch.full((count,), 8.0))
    boxes = box([2, 2, 30, 26], [24, 8, 46, 30], [0, 0, 24, 24]).unsqueeze(0)
    labels, crowd = torch.tensor([[0, 2, 1]]), torch.tensor([[0, 0, 1]], dtype=torch.uint8)
    net.forward = lambda image: dense  # type: ignore[method-assign, assignment]
    losses = net.losses(torch.zeros(1, 3, 32, 48), {"boxes": boxes, "labels": labels, "iscrowd": crowd})

    bins = torch.arange(7.0)
    sides = (dense.distances.softmax(-1) * bins).sum(-1)[0] * 8
    predicted = torch.cat([points - sides[:, :2], points + sides[:, 2:]], 1)
    place, score = task_aligned_assignment(
        dense.logits,
        predicted.unsqueeze(0),
        points,
        boxes,
        torch.tensor([[0, 2, -1]]),
        topk=3,
        alpha=1.0,
        beta=6.0,
        least_side=8.0,
    )
    total = max(1.0, float(score.sum()))
    class_loss = box_loss = dfl_loss = 0.0
    for a in range(count):
        truth, target = int(place[0, a]), float(score[0, a])
        x, y = points[a].tolist()
        if truth < 0 and x < 24 and y < 24:
            continue  # in the crowd: neither an object nor background
        for k in range(3):
            wanted = target if truth >= 0 and int(labels[0, truth]) == k else 0.0
            one = F.binary_cross_entropy_with_logits(dense.logits[0, a, k], torch.tensor(wanted))
            class_loss += float(one) * (weights[k] if wanted else 1.0)
        if truth < 0:
            continue
        box_loss += target * float(complete_box_iou_loss(predicted[a : a + 1], boxes[0, truth : truth + 1]))
        x1, y1, x2, y2 = boxes[0, truth].tolist()
        for side, distance in enumerate([x - x1, y - y1, x2 - x, y2 - y]):
            cells = min(max(distance / 8, 0.0), 6.0)
            left = min(int(cells), 5)
            logs = dense.distances[0, a, side].log_softmax(0)
            dfl_loss -= target / 4 * float((left + 1 - cells) * logs[left] + (cells - left) * logs[left + 1])
    assert (place >= 0).sum() >= 4
    assert (place[0, (points < 24).all(1)] >= 0).any()  # an object's cell inside the crowd learns the object
    assert float(losses["class_loss"]) == pytest.approx(class_loss / total, rel=1e-4)
    assert float(losses["box_loss"]) == pytest.approx(2.0 * box_loss / total, rel=1e-3)
    assert float(losses["dfl_loss"]) == pytest.approx(0.25 * dfl_loss / total, rel=1e-4)
