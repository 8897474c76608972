"""The command ``summary``."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from pipelines.__main__ import main
from tasks.detection.task import Detection
from tasks.flops import count_flops
from tasks.layers import list_layers
from tasks.segmentation.architectures import ARCHITECTURES
from tests.checkpoints import write_checkpoint


def test_a_network_by_its_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = ["--model.backbone=test_resnet", "--model.image_size=64", "--output", str(tmp_path)]
    assert main(["summary", *words]) == 0
    printed = capsys.readouterr().out
    layers = json.loads((tmp_path / "layers.json").read_text())
    parameters = sum(layer["parameters"] for layer in layers)
    assert f"parameters  {parameters:,}" in printed
    assert f"MACs        {sum(layer['macs'] for layer in layers):,} for an image" in printed
    assert all(layer["name"] in printed for layer in layers)
    assert "image       64 x 64 x 3" in printed
    assert Image.open(tmp_path / "effective_field.png").width > 300


def test_a_checkpoint(capsys: pytest.CaptureFixture[str]):
    write_checkpoint(Path("a.ckpt"), "classification", "pictures")
    assert main(["summary", "--ckpt_path=a.ckpt"]) == 0
    printed = capsys.readouterr().out
    assert "image       48 x 48 x 3" in printed
    assert re.search(r"Linear +2 ", printed)
    Path("a.onnx").write_bytes(b"")
    assert main(["summary", "--ckpt_path=a.onnx", "--config=quickstart"]) == 2
    assert "an exported file, which has no layers" in capsys.readouterr().err


DETECTORS = ["fcos", *(pytest.param(name, marks=pytest.mark.slow) for name in ("rtdetr", "mask_rcnn", "yolo"))]


@pytest.mark.parametrize("detector", DETECTORS)
def test_detectors(detector: str, capsys: pytest.CaptureFixture[str]):
    words = ["--model=Detection", "--model.num_classes=3", f"--model.detector={detector}", "--model.image_size=128"]
    assert main(["summary", *words, "--model.backbone=test_resnet"]) == 0
    printed = capsys.readouterr().out
    assert " Conv2d " in printed
    assert "128 x 128 x 3" in printed
    task = Detection(num_classes=3, detector=detector, image_size=128, backbone="test_resnet", in_chans=3)
    task.configure_model()
    assert sum(layer.macs for layer in list_layers(task)) == pytest.approx(count_flops(task) / 2)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_segmenters(architecture: str, capsys: pytest.CaptureFixture[str]):
    backbone = "test_vit" if architecture == "dpt" else "vgg11" if architecture == "segnet" else "resnet18"
    words = ["--model=Segmentation", "--model.num_classes=3", f"--model.architecture={architecture}"]
    assert main(["summary", *words, f"--model.backbone={backbone}", "--model.image_size=128"]) == 0
    assert " Conv2d " in capsys.readouterr().out


def test_an_unknown_network(capsys: pytest.CaptureFixture[str]):
    assert main(["summary", "--model.backbone=resnet5"]) == 2
    assert "resnet50" in capsys.readouterr().err
