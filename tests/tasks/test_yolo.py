"""The YOLO: its assignment against a slow reference, its losses against formulas, and what a detector must keep."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.ops import complete_box_iou_loss, generalized_box_iou_loss

from tasks.detection.detectors.anchors import decode_distances, encode_distances
from tasks.detection.detectors.arguments import BackboneArguments
from tasks.detection.detectors.assign import centers_inside, task_aligned_assignment
from tasks.detection.detectors.losses import (
    complete_iou_loss,
    distribution_focal_loss,
    expected_distances,
    iou_loss,
)
from tasks.detection.detectors.protocol import Limits
from tasks.detection.detectors.yolo import YOLO, Dense, YOLOArguments, build_yolo

K = 3
LIMITS: dict[str, Any] = {"score_threshold": 0.001, "nms_iou": 0.6, "max_detections": 100}


def build(name: str = "test_resnet", num_classes: int = K, **args: Any) -> YOLO:
    """A detector; arguments that are the backbone's, or class weights, go there."""
    weights = args.pop("class_weights", None)
    of_backbone = {key: args.pop(key) for key in ("image_size", "in_chans") if key in args}
    return build_yolo(BackboneArguments(name, **of_backbone), num_classes, YOLOArguments(**args), weights)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def net() -> YOLO:
    return build(width=16).eval()


@pytest.fixture
def planted() -> Iterator[Any]:
    """A function: class probabilities (A, K) and boxes (A, 4) to a net that predicts them on one image of 64 x 48."""
    patch = pytest.MonkeyPatch()

    def plant(net: YOLO, probability: Tensor, boxes: Tensor) -> YOLO:
        points, strides = torch.full((len(boxes), 2), 32.0), torch.full((len(boxes),), 8.0)
        cells = encode_distances(boxes, points, strides)
        bins = torch.arange(net.bins)
        logits = -1e4 * (cells.unsqueeze(-1) - bins).abs()  # all of a distribution in one bin
        dense = Dense(probability.logit().unsqueeze(0), logits.unsqueeze(0), points, strides)
        patch.setattr(net, "forward", lambda image: dense)
        return net

    yield plant
    patch.undo()


def grid(height: int, width: int, strides: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Centers (A, 2) and strides (A,) of the cells, rows first."""
    cells = [
        ((x + 0.5) * s, (y + 0.5) * s, float(s))
        for s in strides
        for y in range(-(-height // s))
        for x in range(-(-width // s))
    ]
    return torch.tensor(cells)[:, :2], torch.tensor(cells)[:, 2]


# The assignment.


def iou(a: Any, b: Any) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return max(1e-9, width * height / union) if union > 0 else 1e-9


def reference(
    scores: Any,
    boxes: Any,
    points: Any,
    true_boxes: Any,
    labels: Any,
    topk: int,
    alpha: float,
    beta: float,
    cell: float,
) -> tuple[Any, Any]:
    """One image's assignment, object by object and cell by cell, in float64."""
    takers: dict[int, list[int]] = {}
    alignment: dict[tuple[int, int], float] = {}
    for m, (box, label) in enumerate(zip(true_boxes, labels, strict=True)):
        if label < 0:
            continue
        candidates = []
        for a, (x, y) in enumerate(points):
            half_x, half_y = max(box[2] - box[0], cell) / 2, max(box[3] - box[1], cell) / 2
            middle_x, middle_y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
            if -half_x <= x - middle_x < half_x and -half_y <= y - middle_y < half_y:
                alignment[a, m] = scores[a, label] ** alpha * iou(boxes[a], box) ** beta
                candidates.append(a)
        for a in sorted(candidates, key=lambda a: (-alignment[a, m], a))[:topk]:
            takers.setdefault(a, []).append(m)
    index, target = np.full(len(points), -1), np.zeros(len(points))
    for a, objects in takers.items():
        index[a] = max(objects, key=lambda m: (iou(boxes[a], true_boxes[m]), -m))
    for m in set(index.tolist()) - {-1}:
        mine = np.nonzero(index == m)[0]
        largest = max(alignment[a, m] for a in mine)
        overlap = max(iou(boxes[a], true_boxes[m]) for a in mine)
        for a in mine:
            target[a] = alignment[a, m] / largest * overlap
    return index, target


def random_case(rng: np.random.Generator, kind: str) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Logits, boxes, points, true boxes, labels of two images of 64 x 48 pixels."""
    points, strides = grid(48, 64, (8, 16))
    count, objects = len(points), 5
    logits = torch.from_numpy(rng.normal(-2, 2, (2, count, K))).float()
    cells = torch.from_numpy(rng.uniform(0.2, 3, (2, count, 4))).float()
    corner = rng.uniform(0, [40, 30], (2, objects, 2))
    side = rng.uniform(2, 24, (2, objects, 2))
    labels = rng.integers(0, K, (2, objects))
    if kind == "ties":  # few values, whole numbers
        logits, cells, corner, side = logits.sign(), cells.round(), corner.round(-1), side.round(-1) + 8
        corner[:, 1], side[:, 1] = corner[:, 0], side[:, 0]  # two objects of one box, of one class or of two
    if kind == "none":
        labels[0] = -1
    if kind == "thin":  # most hold no center of a cell
        side = rng.uniform(0.2, 4, (2, objects, 2))
    if kind == "overlapping":
        corner[:, 1:] = corner[:, :1] + rng.uniform(-3, 3, (2, objects - 1, 2))
    labels[1, rng.integers(1, objects) :] = -1  # padding
    true_boxes = np.concatenate([corner, corner + side], 2) * (labels >= 0)[..., None]
    return (
        logits,
        decode_distances(cells, points, strides),
        points,
        torch.from_numpy(true_boxes).float(),
        torch.from_numpy(labels),
    )


@pytest.mark.parametrize("kind", ["plain", "ties", "none", "thin", "overlapping"])
def test_the_assignment_is_the_slow_references(kind: str) -> None:
    rng = np.random.default_rng(5)
    shared = 0
    for case in range(12):
        logits, boxes, points, true_boxes, labels = random_case(rng, kind)
        topk, alpha, beta = [(10, 1.0, 6.0), (3, 0.5, 2.0), (1, 1.0, 1.0), (100, 1.0, 4.0)][case % 4]
        index, score = task_aligned_assignment(
            logits, boxes, points, true_boxes, labels, topk=topk, alpha=alpha, beta=beta, least_side=8.0
        )
        probability = logits.double().sigmoid().numpy()
        for i in range(2):
            expected, target = reference(
                probability[i],
                boxes[i].double().numpy(),
                points.double().numpy(),
                true_boxes[i].double().numpy(),
                labels[i].tolist(),
                topk,
                alpha,
                beta,
                8.0,
            )
            np.testing.assert_array_equal(index[i].numpy(), expected)
            np.testing.assert_allclose(score[i].numpy(), target, rtol=1e-4, atol=1e-7)
            assert (labels[i] >= 0).any() or (index[i] == -1).all()
            shared += int(centers_inside(points, true_boxes[i : i + 1], 8.0)[0, labels[i] >= 0].sum(0).gt(1).sum())
    if kind in ("ties", "overlapping"):
        assert shared > 50  # cells that lie in several objects


def test_an_object_has_a_cell_even_where_no_center_is_inside_it() -> None:
    points, strides = grid(48, 64, (8, 16))
    true_boxes = torch.tensor([[[0.5, 0.5, 1.5, 2.0], [30.0, 9.0, 33.0, 10.0], [63.0, 47.0, 64.0, 48.0]]])
    labels = torch.tensor([[0, 1, 2]])
    boxes = decode_distances(torch.ones(1, len(points), 4), points, strides)
    assert not centers_inside(points, true_boxes).any()
    settings: dict[str, Any] = {"topk": 10, "alpha": 1.0, "beta": 6.0, "least_side": 8.0}
    index, score = task_aligned_assignment(
        torch.zeros(1, len(points), K), boxes, points, true_boxes, labels, **settings
    )
    assert set(index.unique().tolist()) == {-1, 0, 1, 2}
    assert ((index >= 0) == (score > 0)).all()


def test_tiny_scores_and_overlaps_do_not_underflow() -> None:
    """The product itself, sigmoid(-95) * (64 / 128**2) ** 6, is 2e-56."""
    points, strides = grid(64, 64, (8,))
    true_boxes, labels = torch.tensor([[[20.0, 20.0, 28.0, 28.0]]]), torch.tensor([[0]])
    boxes = decode_distances(torch.full((1, 64, 4), 8.0), points, strides)
    index, score = task_aligned_assignment(
        torch.full((1, 64, K), -95.0),
        boxes,
        points,
        true_boxes,
        labels,
        topk=10,
        alpha=1.0,
        beta=6.0,
        least_side=8.0,
    )
    assert (index >= 0).sum() == 1
    assert score.max() == pytest.approx(64 / 128**2)


# Boxes and losses.


def test_decode_is_the_inverse_of_encode() -> None:
    points, strides = grid(75, 101, (8, 16, 32))
    corner = torch.rand(2, len(points), 2) * 60
    boxes = torch.cat([corner, corner + torch.rand(2, len(points), 2) * 40], 2)
    torch.testing.assert_close(
        decode_distances(encode_distances(boxes, points, strides), points, strides), boxes, rtol=0, atol=1e-4
    )
    one = encode_distances(torch.tensor([[4.0, 12.0, 28.0, 20.0]]), torch.tensor([[12.0, 12.0]]), torch.tensor([8.0]))
    assert one.tolist() == [[1.0, 0.0, 2.0, 1.0]]


def test_distribution_focal_loss_is_equation_6() -> None:
    logits = torch.randn(50, 17)
    target = torch.cat([torch.rand(46) * 16, torch.tensor([0.0, 5.0, 16.0, 15.5])])
    log = logits.double().log_softmax(1).numpy()
    for value, y, row in zip(distribution_focal_loss(logits, target), target.double().tolist(), log, strict=True):
        i = min(int(y), 15)
        assert value.item() == pytest.approx(-((i + 1 - y) * row[i] + (y - i) * row[i + 1]), abs=1e-5)
    beyond = torch.tensor([-3.0, 40.0])
    torch.testing.assert_close(
        distribution_focal_loss(logits[:2], beyond), distribution_focal_loss(logits[:2], beyond.clamp(0, 16))
    )


def test_distribution_focal_loss_is_least_where_the_mean_is_the_target() -> None:
    logits = torch.zeros(4, 17, requires_grad=True)
    target = torch.tensor([0.0, 3.25, 11.5, 16.0])
    optimizer = torch.optim.Adam([logits], lr=0.3)
    for _ in range(200):
        optimizer.zero_grad()
        distribution_focal_loss(logits, target).sum().backward()
        optimizer.step()
    torch.testing.assert_close(expected_distances(logits.detach()), target, rtol=0, atol=0.02)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(complete_iou_loss, complete_box_iou_loss), (lambda a, b: iou_loss(a, b, "giou"), generalized_box_iou_loss)],
    ids=["ciou", "giou"],
)
def test_box_losses_and_their_gradients_are_torchvisions(ours: Any, theirs: Any) -> None:
    corner = torch.randn(2, 200, 2) * 5
    predicted, true = torch.cat([corner, corner + torch.rand(2, 200, 2) * 9 + 0.02], 2)
    predicted[:5] = true[:5]
    a, b = predicted.clone().requires_grad_(), predicted.clone().requires_grad_()
    torch.testing.assert_close(ours(a, true), theirs(b, true), rtol=1e-4, atol=1e-5)
    ours(a, true).sum().backward()
    theirs(b, true).sum().backward()
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-4)


def batch(size: tuple[int, int] = (64, 96)) -> tuple[Tensor, dict[str, Tensor]]:
    """Three images: two objects, none, one."""
    boxes = torch.zeros(3, 2, 4)
    boxes[0] = torch.tensor([[4.0, 6.0, 40.0, 50.0], [50.0, 20.0, 62.0, 30.0]])
    boxes[2, 0] = torch.tensor([10.0, 30.0, 60.0, 60.0])
    return torch.randn(3, 3, *size), {"boxes": boxes, "labels": torch.tensor([[0, 2], [-1, -1], [1, -1]])}


def of(targets: dict[str, Tensor], i: int) -> dict[str, Tensor]:
    return {key: value[i : i + 1] for key, value in targets.items()}


def test_an_images_loss_depends_on_nothing_but_the_image(net: YOLO) -> None:
    image, targets = batch()
    together = net.losses(image, targets)
    alone = [net.losses(image[i : i + 1], of(targets, i)) for i in range(3)]
    assert set(together) == {"loss", "class_loss", "box_loss", "dfl_loss"}
    for key, value in together.items():
        torch.testing.assert_close(value, torch.stack([part[key] for part in alone]).mean(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(together["loss"], sum(together[key] for key in together if key != "loss"))
    weight = torch.tensor([0.5, 2.0, 0.0])
    weighted = net.losses(image, targets, weight)
    for key, value in weighted.items():
        expected = (torch.stack([part[key] for part in alone]) * weight).mean()
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)
    # Padding is nothing, wherever it is, and neither is a box without an area.
    more = {
        "boxes": torch.cat([torch.zeros(3, 4, 4), targets["boxes"], torch.full((3, 1, 4), 20.0)], 1),
        "labels": torch.cat([torch.full((3, 4), -1), targets["labels"], torch.full((3, 1), 1)], 1),
    }
    torch.testing.assert_close(net.losses(image, more)["loss"], together["loss"])


def test_losses_without_any_box(net: YOLO) -> None:
    image, _ = batch()
    none = {"boxes": torch.zeros(3, 0, 4), "labels": torch.zeros(3, 0, dtype=torch.int64)}
    losses = net.losses(image, none)
    assert losses["box_loss"] == 0
    assert losses["dfl_loss"] == 0
    padded = {"boxes": torch.zeros(3, 2, 4), "labels": torch.full((3, 2), -1)}
    torch.testing.assert_close(net.losses(image, padded), losses)
    cells = 8 * 12 + 4 * 6 + 2 * 3
    assert losses["class_loss"].item() == pytest.approx(-cells * K * np.log(0.99), rel=0.1)  # the prior's


@pytest.mark.parametrize("box_loss", ["ciou", "giou"])
def test_gradients_are_finite_and_reach_everything(box_loss: Any) -> None:
    net = build(width=16, box_loss=box_loss, topk=200)  # so that each map learns an object
    image, targets = batch()
    net.losses(image, targets)["loss"].backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert name.startswith("backbone") or parameter.grad.any(), name  # some of its norms begin at zero
    with torch.no_grad():  # boxes of no size
        for head in net.heads:
            head.box_logits.bias.copy_((-1e3 * torch.arange(17)).repeat(4))
    for i in (0, 1):
        net.zero_grad()
        net.losses(image[i : i + 1], of(targets, i))["loss"].backward()
        assert all(p.grad.isfinite().all() for p in net.parameters() if p.grad is not None)


def test_crowds_are_not_learned_and_no_background_is_learned_inside_them(net: YOLO) -> None:
    image, targets = batch()
    targets["iscrowd"] = torch.tensor([[0, 1], [0, 0], [1, 0]], dtype=torch.uint8)
    losses = net.losses(image[2:], of(targets, 2))
    assert losses["box_loss"] == 0
    logits = net(image[2:]).logits[0]
    outside = ~centers_inside(net(image[2:]).points, targets["boxes"][2:, :1])[0, 0]
    assert 0 < (~outside).sum() < len(outside)
    expected = torch.nn.functional.softplus(logits[outside]).sum()
    torch.testing.assert_close(losses["class_loss"], expected)
    no_crowd = {key: value for key, value in targets.items() if key != "iscrowd"}
    torch.testing.assert_close(
        net.losses(image, targets | {"iscrowd": torch.zeros(3, 2, dtype=torch.uint8)}), net.losses(image, no_crowd)
    )


def test_class_weights_scale_the_loss_where_the_class_is_to_be_found(net: YOLO) -> None:
    image, targets = batch()
    plain = net.losses(image[2:], of(targets, 2))
    losses = []
    for weights in ([1.0, 1.0, 1.0], [5.0, 1.0, 5.0], [1.0, 3.0, 1.0]):
        weighted = build(width=16, class_weights=weights).eval()
        weighted.load_state_dict(net.state_dict())
        losses.append(weighted.losses(image[2:], of(targets, 2)))
    torch.testing.assert_close(losses[0], plain)
    torch.testing.assert_close(losses[1], plain)
    assert losses[2]["class_loss"] > plain["class_loss"]
    assert losses[2]["box_loss"] == plain["box_loss"]


def test_losses_need_no_values_of_the_device() -> None:
    """The meta device has shapes only: whatever waits for a value, or has a shape that depends on one, fails there."""
    net = build(width=16).to("meta")
    image, targets = batch()
    on_meta = {key: value.to("meta") for key, value in (targets | {"iscrowd": torch.zeros(3, 2)}).items()}
    losses = net.losses(image.to("meta"), on_meta, torch.ones(3, device="meta"))
    assert losses["loss"].shape == ()


# Detection.


def test_detect_clips_sorts_suppresses_and_limits(net: YOLO, planted: Any) -> None:
    boxes = torch.tensor(
        [
            [8.0, 8.0, 40.0, 40.0],
            [8.0, 8.0, 48.0, 40.0],  # overlaps the first by 0.8
            [-24.0, 24.0, 40.0, 88.0],  # reaches over the canvas of 64 x 48 (height x width)
            [0.0, 0.0, 32.0, 32.0],
        ]
    )
    probability = torch.full((4, K), 1e-4)
    probability[0, 0], probability[1, 0], probability[1, 1] = 0.6, 0.9, 0.3
    probability[2, 2], probability[3, 1] = 0.5, 0.05
    planted(net, probability, boxes)
    image = torch.zeros(1, 3, 64, 48)
    [found] = net.detect(image, Limits(**LIMITS))
    torch.testing.assert_close(found["scores"], torch.tensor([0.9, 0.5, 0.3, 0.05]))
    assert found["labels"].tolist() == [0, 2, 1, 1]
    clipped = torch.tensor([0.0, 24.0, 40.0, 64.0])
    torch.testing.assert_close(found["boxes"], torch.stack([boxes[1], clipped, boxes[1], boxes[3]]))
    assert found["boxes"].dtype == found["scores"].dtype == torch.float32
    [kept] = net.detect(image, Limits(**LIMITS | {"nms_iou": 0.85}))
    assert kept["labels"].tolist() == [0, 0, 2, 1, 1]
    [few] = net.detect(image, Limits(**LIMITS | {"max_detections": 2}))
    assert few["scores"].tolist() == found["scores"][:2].tolist()
    [high] = net.detect(image, Limits(**LIMITS | {"score_threshold": 0.5}))
    assert high["labels"].tolist() == [0]  # 0.5 is not above 0.5
    [none] = net.detect(image, Limits(**LIMITS | {"score_threshold": 0.95}))
    assert none["boxes"].shape == (0, 4)
    net.arguments = replace(net.arguments, multi_label=False)
    assert net.detect(image, Limits(**LIMITS))[0]["labels"].tolist() == [0, 2, 1]
    net.arguments = replace(net.arguments, multi_label=True, pre_nms=1)
    assert (
        net.detect(image, Limits(**LIMITS | {"max_detections": 1}))[0]["scores"].tolist()
        == found["scores"][:1].tolist()
    )
    net.arguments = YOLOArguments()


@pytest.mark.parametrize("size", [(75, 101), (33, 64), (200, 40)])
def test_odd_canvases(net: YOLO, size: tuple[int, int]) -> None:
    image, targets = batch(size)
    with torch.inference_mode():
        dense = net(image)
        assert dense.points[-1, 0] == pytest.approx(-(-size[1] // 32) * 32 - 16)
        assert net.losses(image, targets)["loss"].isfinite()
        for found in net.detect(image, Limits(**LIMITS | {"score_threshold": 0.0})):
            assert 0 < len(found["boxes"]) <= 100
            assert (found["boxes"] >= 0).all()
            assert (found["boxes"] <= torch.tensor([size[1], size[0]]).repeat(2)).all()


def test_bfloat16_and_channels_last(net: YOLO) -> None:
    image, targets = batch()
    expected = net.losses(image, targets)
    found = net.detect(image, Limits(**LIMITS | {"score_threshold": 0.0}))
    torch.testing.assert_close(net.losses(image.to(memory_format=torch.channels_last), targets), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = net.losses(image, targets)
        low = net.detect(image, Limits(**LIMITS | {"score_threshold": 0.0}))
    assert losses["loss"].dtype == torch.float32
    torch.testing.assert_close(losses, expected, rtol=0.02, atol=0.02)
    assert low[0]["boxes"].dtype == low[0]["scores"].dtype == torch.float32
    assert len(low[0]["boxes"]) == len(found[0]["boxes"])
    losses["loss"].backward()


@pytest.mark.parametrize(
    ("name", "arguments", "strides"),
    [
        ("test_vit", {"image_size": (96, 96)}, [8, 16, 32]),
        ("test_convnext", {"strides": [4, 8, 16, 32]}, [4, 8, 16, 32]),
        ("test_efficientnet", {"strides": [16], "depth": 0, "norm": "batch", "in_chans": 1}, [16]),
        ("cifar_resnet20", {"reg_max": 4, "depth": 2, "width": 8}, [4]),
    ],
)
def test_any_backbone(name: str, arguments: dict[str, Any], strides: list[int]) -> None:
    net = build(name, **{"width": 16} | arguments)
    _, targets = batch()
    image = torch.randn(3, arguments.get("in_chans", 3), 96, 96)
    assert net.backbone.strides == strides
    assert net.pretrained_cfg is not None
    losses = net.losses(image, targets)
    losses["loss"].backward()
    assert len(net.eval().detect(image, Limits(**LIMITS))) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"width": 15}, "detector_args.width is 15; it must be an even number"),
        ({"depth": -1}, "detector_args.depth is -1; it must be at least 0"),
        ({"reg_max": 0}, "detector_args.reg_max is 0; it must be at least 1"),
        ({"topk": 0}, "detector_args.topk is 0"),
        ({"prior": 1.0}, "detector_args.prior is 1.0; it must be between 0 and 1"),
        ({"norm": "layer"}, "detector_args.norm is 'layer'; it must be group or batch"),
        ({"box_loss": "diou"}, "detector_args.box_loss is 'diou'; it must be ciou or giou"),
        ({"class_weights": [1.0]}, "class_weights has 1 numbers"),
        ({"strides": [8, 32]}, "strides is .8, 32.; each must be twice"),
        ({"strides": [8, 16, 32, 64]}, "'test_resnet' has no maps of stride .64."),
    ],
)
def test_arguments_that_make_no_sense(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**arguments)


@pytest.mark.slow
def test_overfits_four_scenes() -> None:
    """AP50 of 1.00 after 150 steps; see the module's head for the time."""
    from datamodules.readers.digits import digit_scene

    scenes = [digit_scene(i, 0, "train", 96) for i in range(4)]
    most = max(len(scene["labels"]) for scene in scenes)
    boxes, labels = torch.zeros(4, most, 4), torch.full((4, most), -1)
    for i, scene in enumerate(scenes):
        boxes[i, : len(scene["labels"])] = torch.from_numpy(scene["boxes"])
        labels[i, : len(scene["labels"])] = torch.from_numpy(scene["labels"])
    image = torch.stack([torch.from_numpy(scene["image"]).permute(2, 0, 1) for scene in scenes]) / 127.5 - 1
    net = build("test_efficientnet", 10, width=32, strides=[8, 16])
    optimizer = torch.optim.AdamW(net.parameters(), lr=4e-3)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=150)
    for _ in range(150):
        optimizer.zero_grad()
        net.losses(image, {"boxes": boxes, "labels": labels})["loss"].backward()
        optimizer.step()
        rate.step()
    assert average_precision(net, image, boxes, labels) > 0.99


def average_precision(net: YOLO, image: Tensor, boxes: Tensor, labels: Tensor) -> float:
    """AP50 of pycocotools in eval mode."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def corners(box: list[float]) -> list[float]:
        return [box[0], box[1], box[2] - box[0], box[3] - box[1]]

    with torch.inference_mode():
        found = net.eval().detect(image, Limits(**LIMITS))
    predictions = [
        {"image_id": i, "category_id": label, "bbox": corners(box), "score": score}
        for i, one in enumerate(found)
        for box, score, label in zip(one["boxes"].tolist(), one["scores"].tolist(), one["labels"].tolist(), strict=True)
    ]
    truth = COCO()
    pairs = [(i, m) for i in range(len(labels)) for m in range(labels.shape[1]) if labels[i, m] >= 0]
    truth.dataset = {
        "images": [{"id": i} for i in range(len(labels))],
        "categories": [{"id": k} for k in range(10)],
        "annotations": [
            {
                "id": n + 1,
                "image_id": i,
                "category_id": int(labels[i, m]),
                "bbox": corners(boxes[i, m].tolist()),
                "area": 1000.0,
                "iscrowd": 0,
            }
            for n, (i, m) in enumerate(pairs)
        ],
    }
    truth.createIndex()
    evaluation = COCOeval(truth, truth.loadRes(predictions), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return float(evaluation.stats[1])
