"""RT-DETR: the form that all detectors have, images on their own, odd sizes, and 16 overfitted pictures."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")

from datamodules.readers.digits import digit_scene
from tasks import Detection
from tasks.detection.detectors.arguments import BackboneArguments
from tasks.detection.detectors.protocol import Limits
from tasks.detection.detectors.rtdetr import RTDETRArguments, build_rtdetr, relative_targets
from tasks.detection.detectors.targets import read_targets

SMALL = {"width": 32, "heads": 4, "ffn_width": 64, "queries": 30, "decoder_layers": 2, "denoising": 20}
IMAGE = torch.randn(3, 3, 64, 100, generator=torch.Generator().manual_seed(0))
TARGETS = {
    "boxes": torch.tensor([[[4.0, 4, 40, 40], [30, 30, 60, 60]], [[10, 20, 60, 60], [0, 0, 0, 0]], [[0.0] * 4] * 2]),
    "labels": torch.tensor([[0, 1], [2, -1], [-1, -1]]),
}


def make(image_size=None, class_weights=None, **arguments):
    torch.manual_seed(0)
    backbone = BackboneArguments("test_resnet", image_size=image_size)
    return build_rtdetr(backbone, 3, RTDETRArguments(**(SMALL | arguments)), class_weights)


def test_every_parameter_learns_also_without_boxes():
    made = make().train()
    assert all(not name.startswith("detr.model.backbone") for name, _ in made.named_parameters())
    nothing = {"boxes": torch.zeros(3, 0, 4), "labels": torch.zeros(3, 0, dtype=torch.int64)}
    for targets in (TARGETS, nothing):
        made.zero_grad()
        losses = made.losses(IMAGE, targets)
        assert set(losses) == {"loss", "class_loss", "l1_loss", "giou_loss"}
        assert float(losses["loss"]) == pytest.approx(sum(float(v) for k, v in losses.items() if k != "loss"), rel=1e-5)
        losses["loss"].backward()
        if targets is TARGETS:
            assert all(p.grad is not None and p.grad.isfinite().all() for p in made.parameters())
        assert made.detr.model.denoising_class_embed.weight.grad is not None


def test_an_images_loss_is_its_own_and_its_weight_scales_it():
    made = make().eval()
    single = [made.losses(IMAGE[i : i + 1], {k: v[i : i + 1] for k, v in TARGETS.items()})["loss"] for i in range(3)]
    assert torch.isclose(made.losses(IMAGE, TARGETS)["loss"], torch.stack(single).mean(), rtol=1e-4)
    weight = torch.tensor([2.0, 0.0, 1.0])
    weighted = made.losses(IMAGE, TARGETS, weight)["loss"]
    assert torch.isclose(weighted, (torch.stack(single) * weight).mean(), rtol=1e-4)


def test_detections_lie_on_the_canvas_of_any_size():
    with torch.inference_mode():
        found = make().eval().detect(IMAGE, Limits(0.0, 1.0, 20))
    for of_image in found:
        boxes, scores = of_image["boxes"], of_image["scores"]
        assert 0 < len(boxes) == len(scores) == len(of_image["labels"]) <= 20
        assert (boxes >= 0).all()
        assert (boxes <= torch.tensor([100, 64, 100, 64])).all()
        assert (scores[:-1] >= scores[1:]).all()


def test_targets_are_centers_and_sizes_in_fractions_of_the_canvas():
    targets = {
        "boxes": torch.tensor([[[0.0, 0, 128, 64], [16.0, 8, 80, 24], [0, 0, 0, 0]]]),
        "labels": torch.tensor([[0, 2, -1]]),
        "iscrowd": torch.tensor([[1, 0, 0]]),
    }
    (one,) = relative_targets(read_targets(targets), torch.zeros(1, 3, 64, 128))
    assert one["class_labels"].tolist() == [2]
    assert one["boxes"].tolist() == [[48 / 128, 16 / 64, 64 / 128, 16 / 64]]


def test_boxes_are_fractions_of_the_filled_canvas_and_of_the_last_layer():
    """A canvas of 64 x 100 is filled up to 64 x 128; each query may report several classes."""
    made = make().eval()
    logits = torch.full((1, 2, 2, 3), -9.0)
    logits[0, 0] = 9.0  # of the first layer
    logits[0, 1, 0, 1], logits[0, 1, 1, 2], logits[0, 1, 1, 0] = 2.0, 1.0, 0.5
    boxes = torch.zeros(1, 2, 2, 4)
    boxes[0, 1] = torch.tensor([[0.25, 0.5, 0.25, 0.5], [0.75, 0.5, 0.5, 0.25]])
    made._decode = lambda image, encoded, labels: SimpleNamespace(
        intermediate_logits=logits, intermediate_reference_points=boxes
    )
    with torch.inference_mode():
        (found,) = made.detect(IMAGE[:1], Limits(0.1, 1.0, 10))
    assert found["labels"].tolist() == [1, 2, 0]
    assert found["scores"].tolist() == pytest.approx(torch.tensor([2.0, 1.0, 0.5]).sigmoid().tolist())
    wide = [64, 24, 100, 40]  # up to 128, clipped
    assert found["boxes"].tolist() == [[16, 16, 48, 48], wide, wide]


def test_each_term_is_summed_over_the_layers():
    """Two layers of the decoder, the encoder's choice of queries, and in training the denoising queries."""
    made = make().eval()
    names = [f"loss_{kind}{layer}" for kind in ("vfl", "bbox", "giou") for layer in ("", "_aux_0", "_dn_0")]
    made._losses_of_one = lambda out, i, label: {name: torch.tensor(float(10**k)) for k, name in enumerate(names)}
    losses = made.image_losses(IMAGE[:1], {key: value[:1] for key, value in TARGETS.items()})
    assert {name: float(value) for name, value in losses.items()} == {
        "class_loss": 111,
        "l1_loss": 111_000,
        "giou_loss": 111_000_000,
    }


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"heads": 5}, "width is 32; it must be a multiple of heads, 5"),
        ({"queries": 500, "image_size": (64, 64)}, "queries is 500, but the maps .* have only 84 cells"),
        ({"class_weights": [1, 1, 1]}, "model.class_weights is set, but rtdetr has none"),
        ({"decoder_layers": 0}, "decoder_layers is 0"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments, said):
    with pytest.raises(ValueError, match=said):
        make(**arguments)


@pytest.mark.slow
def test_overfits_sixteen_pictures():
    scenes = [digit_scene(i, size=64) for i in range(16)]
    most = max(len(s["labels"]) for s in scenes)
    boxes, labels = torch.zeros(16, most, 4), torch.full((16, most), -1)
    for i, scene in enumerate(scenes):
        boxes[i, : len(scene["labels"])] = torch.from_numpy(scene["boxes"])
        labels[i, : len(scene["labels"])] = torch.from_numpy(scene["labels"])
    image = torch.from_numpy(np.stack([s["image"] for s in scenes])).permute(0, 3, 1, 2)
    batch = {"image": image, "boxes": boxes, "labels": labels}
    torch.manual_seed(0)
    args = {"width": 64, "heads": 4, "ffn_width": 128, "queries": 50, "decoder_layers": 3, "denoising": 50}
    task = Detection("rtdetr", "cifar_resnet20", num_classes=10, in_chans=3, image_size=64, detector_args=args)
    task.configure_model()
    task.train()
    optimizer = torch.optim.AdamW(task.parameters(), lr=5e-4, weight_decay=1e-4)
    for step in range(400):
        optimizer.param_groups[0]["lr"] = 5e-4 * min(1, (step + 1) / 40, (400 - step) / 100)
        optimizer.zero_grad()
        task.loss(batch)["loss"].backward()
        torch.nn.utils.clip_grad_norm_(task.parameters(), 1.0)
        optimizer.step()
    task.eval()
    metric = task.build_metrics()
    with torch.inference_mode():
        geometry = torch.tensor([[64, 64, 1, 1, 0, 0]] * 16).float()
        predictions = task.predict({**batch, "geometry": geometry})
    targets = [{"boxes": torch.from_numpy(s["boxes"]), "labels": torch.from_numpy(s["labels"])} for s in scenes]
    metric.update(predictions, targets, list(range(16)))
    reached = float(metric.compute()["map_50"])
    print(f"AP50 {reached:.3f}")
    assert reached >= 0.95
