"""The torchvision families against torchvision itself, and what all detectors promise."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision.models.detection as tv
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import paste_masks_in_image, project_masks_on_boxes
from torchvision.ops import box_iou, generalized_box_iou_loss

from datamodules.common import rle
from datamodules.readers.digits import digit_scene
from tasks.detection.detectors.anchors import anchor_shapes, grid_anchors
from tasks.detection.detectors.arguments import BackboneArguments
from tasks.detection.detectors.families import detector_arguments, family_of
from tasks.detection.detectors.losses import iou_loss
from tasks.detection.detectors.masks import encode_masks, mask_targets, mask_windows, paste_masks
from tasks.detection.detectors.protocol import Limits
from tasks.detection.detectors.retinanet import match_anchors

K = 5
ALL = 10**6  # samples an image: so many that nothing is left to chance
DENSE = {"head_channels": 32, "head_depth": 2}
STAGES = {"head_channels": 32, "box_head_width": 64, "rpn_samples": ALL, "box_samples": ALL, "proposals": (60, 60)}
SMALL: dict[str, dict[str, Any]] = {
    "retinanet": DENSE,
    "fcos": DENSE,
    "faster_rcnn": STAGES,
    "mask_rcnn": STAGES | {"mask_head_width": 16, "mask_head_depth": 1},
    "box_regression": {},
}
BOXES = [family for family in SMALL if family != "box_regression"]
PARTS = {
    "retinanet": {"class_loss", "box_loss"},
    "fcos": {"class_loss", "box_loss", "centerness_loss"},
    "faster_rcnn": {"objectness_loss", "proposal_loss", "class_loss", "box_loss"},
    "mask_rcnn": {"objectness_loss", "proposal_loss", "class_loss", "box_loss", "mask_loss"},
    "box_regression": {"class_loss", "box_loss"},
}
HEIGHT, WIDTH = 100, 132  # no multiples of 32
ANY: dict[str, Any] = {"score_threshold": 0.0, "nms_iou": 0.5, "max_detections": 300}

anyfamily = pytest.mark.parametrize("family", SMALL)


def build(family: Any, name: str = "test_resnet", num_classes: int = K, **args: Any) -> Any:
    """A detector; arguments that are the backbone's, or class weights, go there."""
    weights = args.pop("class_weights", None)
    of_backbone = {key: args.pop(key) for key in ("image_size", "backbone_args") if key in args}
    backbone = BackboneArguments(name, **of_backbone)
    return family_of(family).build(backbone, num_classes, detector_arguments(family, args), weights)


def make(family: str, name: str = "test_resnet", **args: Any) -> Any:
    torch.manual_seed(0)
    detector = build(family, name, **(SMALL[family] | args))
    for name, parameter in detector.named_parameters():  # last layers start near zero; scores should differ here
        if any(part in name for part in ("cls_logits.weight", "cls_score.weight", "mask_fcn_logits.weight")):
            nn.init.normal_(parameter, std=0.3)
    return detector.eval()  # batch norm would make the images depend on each other


def batch(counts: tuple[int, ...] = (3, 0, 2), size: tuple[int, int] = (HEIGHT, WIDTH), seed: int = 1) -> Any:
    """Noise, and boxes with rectangular masks, in two layers where they overlap."""
    random = torch.Generator().manual_seed(seed)
    height, width = size
    image = torch.randn(len(counts), 3, height, width, generator=random)
    most = max(counts)
    boxes = torch.zeros(len(counts), most, 4)
    labels = torch.full((len(counts), most), -1)
    masks = torch.zeros(len(counts), 2, height, width, dtype=torch.int16)
    for i, count in enumerate(counts):
        corner = torch.rand(count, 2, generator=random) * torch.tensor([width - 50.0, height - 50.0])
        boxes[i, :count] = torch.cat([corner, corner + 14 + 34 * torch.rand(count, 2, generator=random)], 1).round()
        labels[i, :count] = torch.randint(K, (count,), generator=random)
        for j in range(count):
            x1, y1, x2, y2 = boxes[i, j].long().tolist()
            masks[i, j % 2, y1:y2, x1:x2] = j + 1
    return image, {"boxes": boxes, "labels": labels, "masks": masks}


def image_of(targets: dict[str, Tensor], i: int) -> dict[str, Tensor]:
    return {key: value[i : i + 1] for key, value in targets.items()}


def values(losses: dict[str, Tensor]) -> dict[str, float]:
    return {key: float(value) for key, value in losses.items()}


@anyfamily
def test_losses_and_detections_have_the_form_that_all_detectors_have(family: str) -> None:
    detector = make(family)
    image, targets = batch()
    losses = detector.losses(image, targets)
    assert set(losses) == {"loss"} | PARTS[family]
    assert float(losses["loss"]) == pytest.approx(sum(float(losses[part]) for part in PARTS[family]), rel=1e-5)
    losses["loss"].backward()
    # DDP waits for the gradient of each parameter.
    assert all(p.grad is not None and p.grad.isfinite().all() for p in detector.parameters())
    with torch.inference_mode():
        found = detector.detect(image, Limits(**ANY))
        again = detector.detect(image, Limits(**ANY))
        few = detector.detect(image, Limits(**(ANY | {"max_detections": 1})))
        middle = float(found[0]["scores"].median())
        some = detector.detect(image, Limits(**(ANY | {"score_threshold": middle})))
    assert len(found) == len(image)
    for of_image, twice, one, above in zip(found, again, few, some, strict=True):
        boxes, scores, labels = (of_image[key] for key in ("boxes", "scores", "labels"))
        assert len(boxes) == len(scores) == len(labels) > 0
        assert len(one["boxes"]) == 1
        assert (boxes.dtype, scores.dtype, labels.dtype) == (torch.float32, torch.float32, torch.int64)
        assert (boxes >= 0).all()
        assert (boxes[:, 2] <= WIDTH).all()
        assert (boxes[:, 3] <= HEIGHT).all()
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        assert (scores[:-1] >= scores[1:]).all()
        assert ((scores > 0) & (scores <= 1)).all()
        assert ((labels >= 0) & (labels < K)).all()
        assert (above["scores"] > middle).all()
        for key, value in of_image.items():
            assert torch.equal(value, twice[key])
            assert torch.allclose(one[key], value[:1], atol=1e-5)  # a smaller batch rounds differently
        if family == "mask_rcnn":
            assert of_image["masks"].shape == (len(boxes), 28, 28)
            assert ((of_image["masks"] >= 0) & (of_image["masks"] <= 1)).all()


@anyfamily
def test_an_images_loss_is_its_own_and_its_weight_scales_it(family: str) -> None:
    detector = make(family)
    image, targets = batch()
    with torch.no_grad():
        one_by_one = [values(detector.losses(image[i : i + 1], image_of(targets, i))) for i in range(3)]
        together = values(detector.losses(image, targets))
        weighted = values(detector.losses(image, targets, torch.tensor([1.0, 2.0, 0.0])))
    for key in together:
        own = [losses[key] for losses in one_by_one]
        assert together[key] == pytest.approx(sum(own) / 3, rel=1e-4, abs=1e-7), key
        assert weighted[key] == pytest.approx((own[0] + 2 * own[1]) / 3, rel=1e-4, abs=1e-7), key


@anyfamily
def test_a_few_steps_lower_the_loss(family: str) -> None:
    detector = make(family).train()
    image, targets = batch()
    optimizer = torch.optim.AdamW(detector.parameters(), lr=2e-3)
    history = []
    for _ in range(6):
        loss = detector.losses(image, targets)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(float(loss))
    assert history[-1] < 0.9 * history[0], history


@anyfamily
@pytest.mark.parametrize("rows", [0, 2])
def test_a_batch_without_boxes_trains(family: str, rows: int) -> None:
    detector = make(family)
    image, _ = batch((0, 0))
    targets = {
        "boxes": torch.zeros(2, rows, 4),
        "labels": torch.full((2, rows), -1),
        "iscrowd": torch.zeros(2, rows, dtype=torch.uint8),
        "masks": torch.zeros(2, 1, HEIGHT, WIDTH, dtype=torch.int16),
    }
    losses = detector.losses(image, targets)
    losses["loss"].backward()
    assert all(value.isfinite() for value in losses.values())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in detector.parameters())
    assert float(losses["box_loss"]) == 0


@anyfamily
def test_the_first_losses_are_sane(family: str) -> None:
    torch.manual_seed(0)
    image, targets = batch()
    losses = values(build(family, **SMALL[family]).losses(image, targets))
    assert losses["loss"] < 5, losses
    if family in ("faster_rcnn", "mask_rcnn"):
        assert losses["class_loss"] == pytest.approx(np.log(K + 1), rel=0.05)
        assert losses["objectness_loss"] == pytest.approx(np.log(2), rel=0.05)
    if family == "mask_rcnn":
        assert losses["mask_loss"] == pytest.approx(np.log(2) * 2 / 3, rel=0.05)  # one image of three has none


@anyfamily
def test_crowds_are_neither_learned_nor_learned_as_background(family: str) -> None:
    detector = make(family)
    image, targets = batch((1, 1))
    targets["boxes"][:] = torch.tensor([-200.0, -200.0, 400.0, 400.0])  # with the cells of the coarsest maps around
    with torch.no_grad():
        plain = values(detector.losses(image, targets))
        crowd = values(detector.losses(image, targets | {"iscrowd": torch.ones(2, 1, dtype=torch.uint8)}))
    assert plain["loss"] > 0
    assert crowd["loss"] == 0
    # Beside an object, a crowd takes nothing from it.
    image, targets = batch((1,))
    both = {"boxes": F.pad(targets["boxes"], (0, 0, 1, 0)), "labels": F.pad(targets["labels"], (1, 0))}
    both["boxes"][0, 0, 2:] = 1e-3  # the crowd is the first object and has no pixel
    both |= {"masks": targets["masks"] * 2, "iscrowd": torch.tensor([[1, 0]], dtype=torch.uint8)}
    with torch.no_grad():
        assert values(detector.losses(image, both)) == pytest.approx(values(detector.losses(image, targets)), rel=1e-5)


@anyfamily
def test_labels_are_those_of_the_data(family: str) -> None:
    """torchvision's second stage counts classes from 1."""
    detector = make(family)
    for name, parameter in detector.named_parameters():
        if name.endswith(("cls_logits.bias", "cls_score.bias", "class_layer.bias")) and "rpn" not in name:
            parameter.data.fill_(-20)
            parameter.data[len(parameter) - K + 3] = 20  # of the last anchor; background comes first
    image, targets = batch((2,))
    with torch.inference_mode():
        found = detector.detect(image, Limits(**ANY))[0]
        right = values(detector.losses(image, targets | {"labels": torch.full((1, 2), 3)}))
        wrong = values(detector.losses(image, targets | {"labels": torch.full((1, 2), 2)}))
    best = found["labels"][found["scores"] > 0.3]
    assert len(best) > 0
    assert (best == 3).all()
    assert right["class_loss"] < wrong["class_loss"]


@anyfamily
def test_class_weights_scale_a_class(family: str) -> None:
    image, targets = batch((2,))
    targets["labels"][:] = 3
    results = []
    for weights in (None, [1.0] * K, [9.0, 9.0, 9.0, 4.0, 9.0]):
        detector = make(family, class_weights=weights)
        with torch.no_grad():
            results.append(values(detector.losses(image, targets)))
    assert results[0] == pytest.approx(results[1])
    assert results[0]["box_loss"] == pytest.approx(results[2]["box_loss"])
    ratio = results[2]["class_loss"] / results[0]["class_loss"]
    assert ratio == pytest.approx(4) if family == "box_regression" else 1 < ratio < 4
    with pytest.raises(ValueError, match=r"model.class_weights has 2 numbers, but there are 5 classes"):
        make(family, class_weights=[1.0, 2.0])


# torchvision itself, on the same maps.


class Stub(nn.Module):
    """torchvision's detectors want a backbone, which is not called here."""

    out_channels = 32


class Anchors(nn.Module):
    def __init__(self, anchors: Tensor) -> None:
        super().__init__()
        self.anchors = anchors

    def forward(self, images: ImageList, features: Any) -> list[Tensor]:
        return [self.anchors] * len(images.image_sizes)


def real_targets(targets: dict[str, Tensor], offset: int = 0) -> list[dict[str, Tensor]]:
    result = []
    for boxes, labels, layers in zip(*(targets[key] for key in ("boxes", "labels", "masks")), strict=True):
        count = int((labels >= 0).sum())
        numbers = torch.arange(1, count + 1).view(-1, 1, 1, 1)
        masks = (layers == numbers).any(1).to(torch.uint8)
        result.append({"boxes": boxes[:count], "labels": labels[:count] + offset, "masks": masks})
    return result


def same(ours: list[dict[str, Tensor]], theirs: list[dict[str, Tensor]]) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        assert len(mine["boxes"]) > 5
        assert torch.equal(mine["labels"], other["labels"])
        assert torch.allclose(mine["scores"], other["scores"], atol=1e-6)
        assert torch.allclose(mine["boxes"], other["boxes"], atol=1e-3)


@pytest.mark.parametrize("family", ["retinanet", "fcos"])
@pytest.mark.parametrize("box_loss", ["l1", "giou"])
def test_dense_losses_and_detections_are_torchvisions(family: str, box_loss: str) -> None:
    if family == "fcos" and box_loss == "l1":
        pytest.skip("FCOS has GIoU alone")
    detector = make(family, box_loss=box_loss)
    image, targets = batch(seed=2)
    dense = {key: value for key, value in detector(image).items() if key != "sizes"}
    levels = grid_anchors(detector(image)["sizes"], detector.fpn.strides, detector.shapes)
    limits = {"score_thresh": 0.01, "nms_thresh": 0.5, "detections_per_img": 40}
    if family == "retinanet":
        peer = tv.RetinaNet(Stub(), K, head=detector.head, **limits)
        detector.head.regression_head._loss_type = box_loss
    else:
        peer = tv.FCOS(Stub(), K, head=tv.fcos.FCOSHead(32, 1, K, 2), **limits)
        peer.head.classification_head = detector.classification_head
        peer.head.regression_head = detector.regression_head
    names = {"classification": "class_loss", "bbox_regression": "box_loss", "bbox_ctrness": "centerness_loss"}
    sizes = [len(level) for level in levels]
    for i, real in enumerate(real_targets(targets)):
        of_image = {key: value[i : i + 1] for key, value in dense.items()}
        args = [[real], of_image, [torch.cat(levels)]] + ([sizes] if family == "fcos" else [])
        theirs = values(peer.compute_loss(*args))
        ours = values(detector.losses(image[i : i + 1], image_of(targets, i)))
        assert len(theirs) == len(ours) - 1
        for name, value in theirs.items():
            assert ours[names[name]] == pytest.approx(value, rel=1e-5, abs=1e-6), name
    with torch.no_grad():
        split = {key: list(value.split(sizes, 1)) for key, value in dense.items()}
        theirs = peer.postprocess_detections(split, [levels] * len(image), [(HEIGHT, WIDTH)] * len(image))
        ours = detector.detect(image, Limits(0.01, 0.5, 40))
    for of_image in theirs:  # which keeps boxes that clipping has left nothing of
        wide = (of_image["boxes"][:, 2:] - of_image["boxes"][:, :2] > 0.01).all(1)
        for key in of_image:
            of_image[key] = of_image[key][wide]
    same(ours, theirs)


def test_two_stage_losses_and_detections_are_torchvisions() -> None:
    detector = make("mask_rcnn")
    for parameter in (detector.roi_heads.box_predictor.bbox_pred.weight, detector.rpn.head.bbox_pred.weight):
        nn.init.normal_(parameter, std=0.05)
    image, targets = batch(size=(128, 192), seed=3)  # where torchvision guesses the strides right
    peer = tv.MaskRCNN(
        Stub(),
        K + 1,
        rpn_head=detector.rpn.head,
        rpn_anchor_generator=AnchorGenerator(((32,),) * 5, ((0.5, 1.0, 2.0),) * 5),
        box_head=detector.roi_heads.box_head,
        mask_head=detector.mask_head,
        rpn_post_nms_top_n_train=60,
        rpn_post_nms_top_n_test=60,
        rpn_batch_size_per_image=ALL,
        box_batch_size_per_image=ALL,
        box_score_thresh=0.05,
        box_detections_per_img=40,
    )
    peer.roi_heads.box_predictor = detector.roi_heads.box_predictor
    peer.roi_heads.mask_predictor = detector.mask_predictor
    detector.train()
    detector.backbone.eval()  # the same maps each time
    maps = detector(image)["maps"]
    anchors = torch.cat(grid_anchors([x.shape[-2:] for x in maps], detector.fpn.strides, detector.shapes))
    peer.rpn.anchor_generator = Anchors(anchors)
    names = {
        "loss_objectness": "objectness_loss",
        "loss_rpn_box_reg": "proposal_loss",
        "loss_classifier": "class_loss",
        "loss_box_reg": "box_loss",
        "loss_mask": "mask_loss",
    }

    def run(start: int, stop: int, real: list[dict[str, Tensor]] | None) -> tuple[Any, dict[str, float]]:
        features = OrderedDict((key, x[start:stop]) for key, x in zip(["0", "1", "2", "3", "pool"], maps, strict=True))
        images = ImageList(image[start:stop], [(128, 192)] * (stop - start))
        proposals, losses = peer.rpn(images, features, real)
        found, more = peer.roi_heads(features, proposals, images.image_sizes, real)
        return found, values(losses | more)

    for i, real in enumerate(real_targets(targets, offset=1)):
        _, theirs = run(i, i + 1, [real])
        ours = values(detector.losses(image[i : i + 1], image_of(targets, i)))
        assert set(theirs) == set(names)
        for name, value in theirs.items():
            assert ours[names[name]] == pytest.approx(value, rel=1e-5, abs=1e-6), name
    peer.eval()
    detector.eval()
    with torch.no_grad():
        theirs, _ = run(0, 3, None)
        ours = detector.detect(image, Limits(0.05, 0.5, 40))
    for of_image in theirs:
        of_image["labels"] -= 1
    same(ours, theirs)
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.allclose(mine["masks"], other["masks"].squeeze(1), atol=1e-5)


def test_iou_losses_are_torchvisions() -> None:
    random = torch.Generator().manual_seed(0)
    corner = torch.rand(2, 200, 2, generator=random)
    first, second = torch.cat([corner, corner + torch.rand(2, 200, 2, generator=random)], 2)
    assert torch.allclose(iou_loss(first, second, "giou"), generalized_box_iou_loss(first, second), atol=1e-6)
    assert torch.allclose(iou_loss(first, second, "iou"), 1 - box_iou(first, second).diagonal(), atol=1e-5)


def test_matching_is_torchvisions_but_for_boxes_that_touch_no_anchor() -> None:
    _, targets = batch((7,))
    anchors = torch.cat(grid_anchors([(13, 17), (7, 9)], [8, 16], anchor_shapes([4.0, 6.0], [0.5, 1.0, 2.0])))
    boxes, learned = targets["boxes"][0], torch.ones(7, dtype=torch.bool)
    matcher = tv.RetinaNet(Stub(), K, anchor_generator=AnchorGenerator(), head=nn.Identity()).proposal_matcher
    expected = matcher(box_iou(boxes, anchors))
    assert {-2, -1, 0, 6} <= set(expected.tolist())
    assert torch.equal(match_anchors(boxes, learned, anchors), expected)
    beyond = torch.cat([boxes, torch.tensor([[1e4, 1e4, 2e4, 2e4]])])
    assert torch.equal(match_anchors(beyond, torch.ones(8, dtype=torch.bool), anchors), expected)
    less = learned.clone()
    less[6] = False
    expected = matcher(box_iou(boxes[:6], anchors))
    assert torch.equal(match_anchors(boxes, less, anchors), expected)


def test_anchors_are_torchvisions_around_the_cells_centers() -> None:
    strides, sizes = [8, 16], [(8, 12), (4, 6)]
    theirs = AnchorGenerator(((32, 40), (64, 80)), ((0.5, 1.0, 2.0),) * 2)
    maps = [torch.zeros(1, 1, *size) for size in sizes]
    (expected,) = theirs(ImageList(torch.zeros(1, 3, 64, 96), [(64, 96)]), maps)
    ours = grid_anchors(sizes, strides, anchor_shapes([4.0, 5.0], [0.5, 1.0, 2.0]))
    half = torch.cat([torch.full((len(level), 1), stride / 2) for level, stride in zip(ours, strides, strict=True)])
    assert (torch.cat(ours) - half - expected).abs().max() <= 0.5  # torchvision rounds
    # On odd canvases, strides are still strides: the last of 4 cells of stride 32 on 100 pixels.
    assert grid_anchors([(4, 4)], [32], torch.ones(1, 2))[0][-1].tolist() == [96, 96, 128, 128]


# Masks.


def test_mask_targets_are_torchvisions_and_made_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    _, targets = batch((6,), seed=5)
    (real,) = real_targets(targets)
    random = torch.Generator().manual_seed(0)
    rows = torch.randint(6, (20,), generator=random)
    regions = (real["boxes"][rows] + 8 * torch.randn(20, 4, generator=random)).clamp(min=0)
    regions[:, 2:] = torch.maximum(regions[:, 2:], regions[:, :2] + 2)
    expected = project_masks_on_boxes(real["masks"], regions, rows, 28)
    assert expected.mean() > 0.2
    assert torch.allclose(mask_targets(targets["masks"][0], rows + 1, regions, 28), expected, atol=1e-6)
    monkeypatch.setattr("tasks.detection.detectors.masks.CHUNK_BYTES", 4 * 2 * HEIGHT * WIDTH * 2)
    assert torch.allclose(mask_targets(targets["masks"][0], rows + 1, regions, 28), expected, atol=1e-6)


def some_masks(count: int, height: int, width: int, largest: float) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    probs = F.interpolate(torch.rand(count, 1, 5, 5, generator=random), size=(28, 28), mode="bicubic").squeeze(1)
    corner = torch.rand(count, 2, generator=random) * torch.tensor([width, height]) * 0.95
    boxes = torch.cat([corner, corner + 3 + largest * torch.rand(count, 2, generator=random)], 1)
    limits = torch.tensor([width, height, width, height])
    return probs.clamp(0, 1), torch.minimum(boxes, limits)


def test_pasted_masks_are_those_of_grid_sample() -> None:
    height, width = 90, 140
    probs, boxes = some_masks(20, height, width, 60)
    boxes[0] = torch.tensor([0.0, 0.0, width, height])  # whole columns, whose run lengths run together
    probs[0] = 0.9
    boxes[1, 2:] = boxes[1, :2] + 0.2  # no center of a pixel
    y, x = torch.arange(height) + 0.5, torch.arange(width) + 0.5
    masks = paste_masks(probs, boxes, height, width)
    assert masks.shape == (20, height, width)
    assert masks.dtype == torch.bool
    for prob, box, mask in zip(probs, boxes, masks, strict=True):
        x1, y1, x2, y2 = box
        across, down = (x - x1) / (x2 - x1) * 2 - 1, (y - y1) / (y2 - y1) * 2 - 1
        grid = torch.stack([across.expand(height, width), down.unsqueeze(1).expand(height, width)], -1)
        whole = F.grid_sample(prob[None, None], grid[None], align_corners=False)[0, 0]
        clear = (whole - 0.5).abs() > 1e-4
        assert torch.equal(mask[clear], (whole >= 0.5)[clear])
    # torchvision's, with boxes of whole pixels
    theirs = paste_masks_in_image(probs[:, None], boxes, (height, width))[:, 0] >= 0.5
    large = masks.sum((1, 2)) > 100
    iou = (masks & theirs).sum((1, 2)) / (masks | theirs).sum((1, 2))
    assert large.sum() > 5
    assert iou[large].mean() > 0.9
    # run lengths are those of the metrics
    assert encode_masks(probs, boxes, height, width) == rle.of_masks(masks)
    assert encode_masks(probs[:0], boxes[:0], height, width) == []
    assert paste_masks(probs[:0], boxes[:0], height, width).shape == (0, height, width)


def test_five_hundred_masks_on_a_large_picture_stay_small() -> None:
    probs, boxes = some_masks(500, 1040, 1388, 40)
    windows = list(mask_windows(probs, boxes, 1040, 1388))
    rles = encode_masks(probs, boxes, 1040, 1388)
    assert sum(window.nbytes for _, _, window in windows) < 500 * 45 * 45
    assert len(rles) == 500
    assert all(rle["size"] == [1040, 1388] for rle in rles)


def test_masks_are_asked_for() -> None:
    image, targets = batch()
    del targets["masks"]
    with pytest.raises(ValueError, match="'mask_rcnn', which learns masks, but the data has none"):
        make("mask_rcnn").losses(image, targets)


# Nets.


@pytest.mark.parametrize(
    ("name", "size", "args", "fine", "coarse"),
    [
        ("test_convnext", (96, 128), {}, [4, 8, 16, 32], [8, 16, 32]),
        ("test_vit", (160, 160), {}, [4, 8, 16, 32], [8, 16, 32]),
        ("vit_tiny_patch16_224", (70, 98), {"patch_size": 14, "depth": 3, "embed_dim": 24}, [7, 14, 28], [7, 14, 28]),
        ("cifar_resnet20", (70, 90), {}, [4], [4]),
    ],
)
def test_strides_follow_the_net(name: str, size: Any, args: Any, fine: list[int], coarse: list[int]) -> None:
    image, targets = batch((1,), size=size)
    for family, strides in (("faster_rcnn", fine), ("fcos", coarse), ("retinanet", coarse)):
        detector = make(family, name=name, image_size=size, backbone_args=args)
        assert detector.backbone.strides == strides
        assert detector.fpn.strides == strides + [strides[-1] * 2, strides[-1] * 4][: 1 + (family != "faster_rcnn")]
        maps = detector.fpn(detector.backbone(image))
        assert [x.shape[1] for x in maps] == [32] * len(maps)
        for x, stride in zip(maps, detector.fpn.strides, strict=True):
            assert abs(x.shape[2] - size[0] / stride) <= 1
            assert abs(x.shape[3] - size[1] / stride) <= 1
        losses = detector.losses(image, targets)
        assert losses["loss"].isfinite()
        if family == "faster_rcnn":
            assert detector.roi_heads.box_roi_pool.scales == [1 / stride for stride in strides]


def test_swin_gives_maps_too() -> None:
    args = {"embed_dim": 24, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2)}
    image, targets = batch((2,), size=(96, 96))
    detector = make("fcos", name="swin_tiny_patch4_window7_224", image_size=(96, 96), backbone_args=args)
    assert detector.losses(image, targets)["loss"].isfinite()
    assert BackboneArguments("swin_tiny_patch4_window7_224", backbone_args=args).strides() == [4, 8, 16, 32]


@pytest.mark.parametrize("family", BOXES)
def test_other_levels_anchors_and_widths(family: str) -> None:
    image, targets = batch(size=(64, 64))
    args = {"strides": [2, 4, 8], "head_channels": 24, "head_depth": 1}
    if family != "fcos":
        args |= {"anchor_scales": [3.0, 5.0], "anchor_ratios": [1.0]}
    detector = make(family, **args)
    assert detector.backbone.strides == [2, 4, 8]
    assert detector.losses(image, targets)["loss"].isfinite()
    assert len(detector.detect(image, Limits(**ANY))) == 3


@pytest.mark.parametrize("family", ["fcos", "faster_rcnn", "box_regression"])
def test_the_dense_part_is_compiled_whole(family: str) -> None:
    detector = make(family)
    image, _ = batch((2, 1))
    with torch.no_grad():
        dense = detector(image)
        compiled = torch.compile(detector, backend="eager", fullgraph=True)(image)
    assert dense.keys() == compiled.keys()
    for key, value in dense.items():
        for one, other in zip(value, compiled[key], strict=True):
            assert torch.equal(one, other) if isinstance(one, Tensor) else one == other


@anyfamily
def test_half_precision_and_channels_last(family: str) -> None:
    """Box arithmetic stays in float32."""
    image, targets = batch((2, 1))
    detector = make(family)
    with torch.no_grad():
        plain = values(detector.losses(image, targets))
        detector = detector.to(memory_format=torch.channels_last)
        last = values(detector.losses(image.contiguous(memory_format=torch.channels_last), targets))
        with torch.autocast("cpu", torch.bfloat16):
            low = values(detector.losses(image, targets))
            found = detector.detect(image, Limits(**ANY))
    assert last == pytest.approx(plain, rel=1e-3)
    assert low["loss"] == pytest.approx(plain["loss"], rel=0.15)
    assert all(value.dtype == torch.float32 for key, value in found[0].items() if key != "labels")


@pytest.mark.parametrize(
    ("family", "args", "message"),
    [
        ("fcos", {"strides": [8, 32]}, r"detector_args.strides is \[8, 32\]; each must be twice the one before"),
        ("fcos", {"strides": [5]}, r"'test_resnet' has no maps of stride \[5\]"),
        ("fcos", {"box_loss": "l1"}, r"detector_args.box_loss is 'l1'; it must be giou or iou"),
        ("retinanet", {"box_loss": "iou"}, r"detector_args.box_loss is 'iou'; it must be l1 or giou"),
        ("retinanet", {"anchor_scales": []}, r"detector_args.anchor_scales is \[\]; it needs one or more numbers"),
        ("faster_rcnn", {"anchor_ratios": [0.0]}, r"detector_args.anchor_ratios is \[0.0\]; it needs one or more"),
        ("faster_rcnn", {"proposals": [100]}, r"detector_args.proposals is \[100\]; it must be two numbers"),
        ("mask_rcnn", {"candidates": (0, 5)}, r"detector_args.candidates is \[0, 5\]; it must be two numbers"),
        ("fcos", {"name": "resnet81"}, r"no net named 'resnet81'; did you mean"),
        ("box_regression", {"name": "resnet81"}, r"no net named 'resnet81'; did you mean"),
    ],
)
def test_what_makes_no_sense_is_refused(family: str, args: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(family, **args)


@pytest.mark.slow
@anyfamily
def test_every_family_overfits_four_scenes(family: str) -> None:
    """About 15 seconds of one core each."""
    from torchmetrics.detection import MeanAveragePrecision

    size, steps = 128, 120
    scenes = [digit_scene(i, size=size) for i in range(4)]
    if family == "box_regression":  # it has one box for an image
        for scene in scenes:
            largest = (scene["boxes"][:, 2:] - scene["boxes"][:, :2]).prod(1).argmax()
            scene |= {key: scene[key][largest : largest + 1] for key in ("boxes", "labels")}
    truth = [{key: torch.as_tensor(scene[key]) for key in ("boxes", "labels", "masks")} for scene in scenes]
    most = max(len(scene["labels"]) for scene in truth)
    missing = [most - len(scene["labels"]) for scene in truth]
    targets = {
        "boxes": torch.stack([F.pad(t["boxes"], (0, 0, 0, n)) for t, n in zip(truth, missing, strict=True)]),
        "labels": torch.stack([F.pad(t["labels"], (0, n), value=-1) for t, n in zip(truth, missing, strict=True)]),
        "masks": torch.stack([t["masks"] for t in truth]),
    }
    image = torch.stack([torch.as_tensor(scene["image"]).permute(2, 0, 1) for scene in scenes]) / 127.5 - 1
    torch.manual_seed(0)
    small = {"head_channels": 64, "head_depth": 2} if family in ("fcos", "retinanet") else {"head_channels": 64}
    if "rcnn" in family:
        small |= {"box_head_width": 128, "proposals": (200, 100), "box_samples": 128}
    if family == "mask_rcnn":
        small |= {"mask_head_width": 32, "mask_head_depth": 2}
    detector = build(family, num_classes=10, **small)
    optimizer = torch.optim.AdamW(detector.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.2)
    for _ in range(steps):
        optimizer.zero_grad()
        detector.losses(image, targets)["loss"].backward()
        nn.utils.clip_grad_norm_(detector.parameters(), 10.0)
        optimizer.step()
        schedule.step()
    with torch.inference_mode():
        found = detector.eval().detect(image, Limits(0.05, 0.5, 100))
    boxes = MeanAveragePrecision()
    boxes.update([{key: f[key] for key in ("boxes", "scores", "labels")} for f in found], truth)
    assert float(boxes.compute()["map_50"]) > 0.9
    if family == "mask_rcnn":
        masks = MeanAveragePrecision(iou_type="segm")
        whole = [f | {"masks": paste_masks(f["masks"], f["boxes"], size, size)} for f in found]
        for scene in truth:
            scene["masks"] = scene["masks"] == torch.arange(1, len(scene["labels"]) + 1).view(-1, 1, 1)
        masks.update(whole, truth)
        assert float(masks.compute()["map_50"]) > 0.9
