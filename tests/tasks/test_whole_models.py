"""Whole pretrained models of transformers: random small ones, as `save_pretrained` writes them, since none is at hand.

The reference is transformers' own output on the same images.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("transformers")
import transformers

from datamodules.common.errors import UserError
from tasks import Classification, Detection, Segmentation
from tasks.base import Task
from tests.whole_models import save_whole_model

IMAGE = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
TARGETS = {
    "boxes": torch.tensor([[[4.0, 4, 30, 30], [20, 20, 60, 60]], [[0.0] * 4] * 2]),
    "labels": torch.tensor([[0, 2], [-1, -1]]),
}
DETRS = ["rt_detr", "rt_detr_v2", "d_fine"]


@pytest.fixture
def folder(tmp_path: Path) -> Callable[[str], str]:
    return lambda kind: save_whole_model(kind, tmp_path / kind)


def detector(source: str | bool, classes: int = 7, **arguments: Any) -> Task:
    arguments = {"in_chans": 3, "image_size": [64, 96]} | arguments
    task = Detection("rtdetr", num_classes=classes, pretrained=source, **arguments)
    task.configure_model()
    return task


def segformer(source: str | bool, classes: int = 7, **arguments: Any) -> Task:
    task = Segmentation("segformer", num_classes=classes, pretrained=source, in_chans=3, image_size=64, **arguments)
    task.configure_model()
    return task


def saved(task: Task, path: Path) -> str:
    torch.save({"state_dict": task.state_dict(), "hyper_parameters": {**task.hparams, "pretrained": False}}, path)
    return str(path)


@pytest.mark.parametrize("kind", DETRS)
def test_a_detector_computes_what_transformers_does(folder, tmp_path, caplog, kind):
    source = folder(kind)
    reference = transformers.AutoModelForObjectDetection.from_pretrained(source).eval()
    with caplog.at_level(logging.INFO):
        task = detector(source).eval()
    tensors = len(reference.state_dict())
    assert f"pretrained: {tensors} of {tensors} tensors of {source} ({kind})" in caplog.messages
    with torch.inference_mode():
        expected = reference(IMAGE / 255)
        found = task.network._decode(*task.network(task.normalize(IMAGE)), None)
        assert torch.allclose(found.intermediate_logits[:, -1], expected.logits, atol=1e-4)
        assert torch.allclose(found.intermediate_reference_points[:, -1], expected.pred_boxes, atol=1e-5)
        results = transformers.RTDetrImageProcessor().post_process_object_detection(
            expected, threshold=0.0, target_sizes=[(64, 96)] * 2
        )
        task.nms_iou, task.min_score = 1.0, 0.0
        for ours, theirs in zip(task.find(IMAGE), results, strict=True):
            assert torch.allclose(ours["scores"][:20], theirs["scores"][:20], atol=1e-5)
    # The checkpoint needs no folder.
    again = Detection(**{key: value for key, value in task.hparams.items() if key != "optim"} | {"pretrained": False})
    again.configure_model()
    again.load_state_dict(task.state_dict())
    assert again.network.detr.config.model_type == kind


@pytest.mark.parametrize("kind", DETRS)
def test_a_detector_learns_other_classes_and_goes_on_with_others_again(folder, tmp_path, caplog, kind):
    task = detector(folder(kind), classes=3).train()
    nothing = {"boxes": torch.zeros(2, 0, 4), "labels": torch.zeros(2, 0, dtype=torch.int64)}
    for targets in (TARGETS, nothing):
        task.zero_grad()
        losses = task.loss({"image": IMAGE, **targets})
        assert float(losses["loss"].detach()) == pytest.approx(
            sum(float(v.detach()) for k, v in losses.items() if k != "loss"), rel=1e-5
        )
        assert ("fgl_loss" in losses) == (kind == "d_fine")
        losses["loss"].backward()
        learned = {name for name, p in task.network.named_parameters() if p.requires_grad}
        if targets is TARGETS:
            assert {name for name, p in task.network.named_parameters() if p.grad is not None} == learned
    assert {name.split(".")[0] for name in learned - task.head_names()} == {"backbone"}
    with caplog.at_level(logging.INFO):
        other = detector(saved(task, tmp_path / "own.ckpt"), classes=5)
    assert f"(rtdetr, {kind}); not loaded: " in caplog.text
    assert torch.equal(other.network.lateral[0][0].weight, task.network.lateral[0][0].weight)


def test_segformer_computes_what_transformers_does(folder, tmp_path, caplog):
    source = folder("segformer")
    reference = transformers.SegformerForSemanticSegmentation.from_pretrained(source).eval()
    seen = transformers.SegformerImageProcessor(do_resize=False)(list(IMAGE), return_tensors="pt")["pixel_values"]
    task = segformer(source).eval()
    with torch.inference_mode():
        expected = F.interpolate(reference(seen).logits, (64, 96), mode="bilinear")
        assert torch.allclose(task(IMAGE), expected, atol=1e-5)
    other = segformer(source, classes=2, drop_path_rate=0.3).train()
    other.loss({"image": IMAGE, "mask": torch.ones(2, 64, 96, dtype=torch.uint8)})["loss"].backward()
    assert all(p.grad is not None for p in other.network.parameters())
    assert all(name.startswith("net.model.decode_head.") for name in other.head_names())
    assert other.network.net.model.config.drop_path_rate == 0.3
    with caplog.at_level(logging.INFO):
        segformer(saved(other, tmp_path / "own.ckpt"), classes=5)
    assert (
        "(segformer, segformer); not loaded: net.model.decode_head.classifier (2 classes there, 5 here)" in caplog.text
    )


def test_the_models_own_mean_and_deviation_are_taken(folder):
    source = folder("segformer")
    transformers.SegformerImageProcessor(image_mean=[0.1] * 3, image_std=[0.2] * 3).save_pretrained(source)
    task = segformer(source)
    assert task.mean.flatten().tolist() == pytest.approx([0.1] * 3)
    assert task.std.flatten().tolist() == pytest.approx([0.2] * 3)


def test_what_does_not_fit_is_refused(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    detr, seg = folder("rt_detr"), folder("segformer")
    (tmp_path / "empty").mkdir()
    cases: list[tuple[Callable[[], Any], str]] = [
        (lambda: segformer(detr), "is a model of the kind 'rt_detr'; model.architecture: segformer takes segformer"),
        (lambda: detector(seg), "is a model of the kind 'segformer'; model.detector: rtdetr takes rt_detr, "),
        (lambda: detector(str(tmp_path / "empty")), "empty is neither a file, nor a folder with a model"),
        (
            lambda: detector("no/such"),
            "no/such is neither a file, nor a folder.*nor can such a model be had from the hub",
        ),
        (
            lambda: detector(detr, backbone="resnet34"),
            "model.backbone is 'resnet34', but the model of model.pretrained",
        ),
        (lambda: detector(detr, detector_args={"width": 32}), "model.detector_args.width is 32, but the model"),
        (lambda: detector(detr, image_size=32, detector_args={"queries": 50}), "queries is 50, but the maps"),
        (lambda: segformer(seg, aux_weight=0.5), "model.aux_weight is 0.5, but the model"),
        (lambda: segformer(seg, decoder_args={"decoder_channels": 3}), "model.decoder_args.decoder_channels is 3, but"),
        (
            lambda: Classification("test_resnet", 2, pretrained=seg, in_chans=3).configure_model(),
            "segformer is a folder",
        ),
    ]
    for build, message in cases:
        with pytest.raises(UserError, match=message):
            build()
    assert detector(detr, detector_args={"queries": 15, "denoising": 0}).network.detr.config.num_queries == 15
