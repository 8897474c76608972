"""Exports of segmentation and detection, of every architecture and family, in every format; slow.

``python -m tests.pipelines.test_export_dense`` prints the table of docs/export.md.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch

from pipelines.__main__ import main
from pipelines.export.graph import Shape, exported_program, task_for_export, write_onnx
from pipelines.export.onnx_file import hide_inner
from tasks.classification import Classification
from tasks.detection.detectors.families import Name
from tasks.detection.postprocess import found_of_images
from tasks.detection.task import Detection
from tasks.segmentation.architectures import ARCHITECTURES
from tasks.segmentation.task import Segmentation
from tests.checkpoints import write_checkpoint
from tests.pipelines.test_detection import write_coco
from tests.pipelines.test_segmentation import write_pairs

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

FAMILIES = get_args(Name)
SMALL: dict[str, dict[str, Any]] = {
    "fcos": {"head_channels": 16, "head_depth": 1},
    "retinanet": {"head_channels": 16, "head_depth": 1},
    "faster_rcnn": {"head_channels": 16, "box_head_width": 16, "proposals": [50, 50]},
    "mask_rcnn": {"head_channels": 16, "box_head_width": 16, "proposals": [50, 50], "mask_head_width": 8},
    "yolo": {"width": 16},
    "rtdetr": {"width": 16, "heads": 2, "queries": 20, "decoder_layers": 1, "ffn_width": 16},
    "box_regression": {"head_channels": 16},
}
FORMATS = ("onnx batch", "torch_export batch", "openvino", "onnx batch,size")
SIDE = 96
#: Pairs that do not work, by network and format; docs/export.md has the reasons.
FAILS: dict[tuple[str, str], str] = {
    ("detection rtdetr", words): "transformers fixes the batch" for words in FORMATS if "batch" in words
}
FAILS["detection box_regression", "torch_export batch"] = "torch 2.14 assumes two boxes and more"
#: Pairs whose export is another model, which `verify` refuses: pooling to cells of the traced size.
DIFFER = {(f"segmentation {name}", "onnx batch,size") for name in ("pspnet", "upernet")}


def detection(family: str) -> Detection:
    """A small detector with weights large enough that it finds something."""
    torch.manual_seed(0)
    task = Detection(
        detector=family,  # type: ignore[arg-type]
        backbone="test_resnet",
        num_classes=3,
        in_chans=3,
        image_size=SIDE,
        detector_args=SMALL[family],
    )
    task.configure_model()
    # RT-DETR takes its queries by their scores, which a net without training leaves to rounding errors.
    factors = {"backbone": 3.0, "score": 100.0} if family == "rtdetr" else {"": 1.5}
    for name, parameter in task.network.named_parameters():
        for part, factor in factors.items():
            if part in name and parameter.dim() > 1:
                parameter.data.mul_(factor)
    return task.eval()


def segmentation(architecture: str) -> Segmentation:
    torch.manual_seed(0)
    backbone = {"segnet": "vgg11_bn", "dpt": "vit_tiny_patch16_224"}.get(architecture, "test_resnet")
    task = Segmentation(architecture=architecture, backbone=backbone, num_classes=3, in_chans=3, image_size=SIDE)
    task.configure_model()
    return task.eval()


def classification(backbone: str) -> Classification:
    torch.manual_seed(0)
    task = Classification(backbone=backbone, num_classes=3, in_chans=3, image_size=SIDE, tta=["hflip"])
    task.configure_model()
    return task.eval()


def pictures(count: int, side: int = SIDE) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)


QUICK = {"fcos", "yolo", "box_regression", "retinanet"}


@pytest.mark.parametrize(
    "family", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]
)
def test_tensors_hold_what_is_detected(family):
    """The traceable way finds the same boxes, in the same order, as the one that training is evaluated with."""
    task, image = detection(family), pictures(2)
    with torch.no_grad():
        found, columns = task.find(image), task.outputs(image)
    in_tensors = found_of_images({k: v for k, v in columns.items() if not k.startswith("decoded")})
    for ours, theirs in zip(found, in_tensors, strict=True):
        assert len(ours["scores"]) > 0
        assert ours.keys() == theirs.keys()
        for key, value in ours.items():
            torch.testing.assert_close(value, theirs[key], atol=1e-5, rtol=1e-5)


def worst_difference(task: Any, words: str, folder: Path) -> tuple[str, float]:
    """Export to a file, run it on pictures of other sizes and numbers, and compare: the exporter, the difference."""
    kind, _, dynamic = words.partition(" ")
    any_size, any_batch = "size" in dynamic, "batch" in dynamic
    side = None if any_size else SIDE
    shape = Shape(3, side, side, None if any_batch else 1, "uint8", (SIDE, SIDE))
    stages = task_for_export(task)
    images = [pictures(1), *([pictures(3)] if any_batch else []), *([pictures(1, 150)] if any_size else [])]
    if kind == "torch_export":
        program = exported_program(stages, shape).module()
        exporter, run = "torch.export", lambda image: {k: v.numpy() for k, v in program(image).items()}
    else:
        path = folder / "model.onnx"
        exporter, _ = write_onnx(stages, shape, path)
        hide_inner(path)
        from pipelines.exported.runner import open_model

        if kind == "openvino":
            import openvino

            openvino.save_model(openvino.convert_model(str(path)), str(folder / "model.xml"), compress_to_fp16=False)
            path = folder / "model.xml"
        of_file = open_model(path, kind)
        run = lambda image: of_file(image.numpy())  # noqa: E731
    return exporter, max(apart(task, image, run(image)) for image in images)


def apart(task: Any, image: torch.Tensor, found: dict[str, np.ndarray]) -> float:
    """The largest relative difference of an output; of boxes, of the best ten."""
    with torch.no_grad():
        expected = {name: value.numpy() for name, value in task.outputs(image).items()}
    worst = 0.0
    for name in ("probabilities", "scores", "boxes", "masks"):
        if name not in expected:
            continue
        ours, theirs = expected[name], found[name]
        assert ours.shape == theirs.shape, name
        if task.finds_boxes:
            ours, theirs = ours[:, :10], theirs[:, :10]
        scale = max(1.0, float(np.abs(ours).max()))
        worst = max(worst, float(np.abs(ours - theirs).max()) / scale)
    return worst


def networks() -> dict[str, Any]:
    """All networks of the table, by name: what makes each."""
    makers: dict[str, Any] = {f"detection {name}": lambda name=name: detection(name) for name in FAMILIES}
    makers |= {f"segmentation {name}": lambda name=name: segmentation(name) for name in ARCHITECTURES}
    for name in ("test_resnet", "mobilenetv2_100", "convnext_atto", "vit_tiny_patch16_224", "lenet5"):
        makers[f"classification {name}"] = lambda name=name: classification(name)
    return makers


@pytest.mark.slow
@pytest.mark.parametrize("words", FORMATS)
@pytest.mark.parametrize("name", networks())
def test_every_network_in_every_format(name, words, tmp_path):
    if "openvino" in words:
        pytest.importorskip("openvino")
    if (name, words) in FAILS:
        with pytest.raises(Exception):  # noqa: B017, PT011 - told in the documentation
            worst_difference(networks()[name](), words, tmp_path)
        return
    _, difference = worst_difference(networks()[name](), words, tmp_path)
    assert (difference < 1e-3) != ((name, words) in DIFFER)


DETECTION = """
model:
  class_path: Detection
  init_args: {detector: DETECTOR, backbone: test_resnet, detector_args: ARGS, max_detections: 20, optim: {lr: 0.01}}
data:
  class_path: DetectionData
  init_args:
    {source: digits, num_scenes: {train: 40, val: 8, test: 8}, image_size: 64, batch_size: 8, num_workers: 0}
trainer:
  accelerator: cpu
  max_epochs: 2
  num_sanity_val_steps: 0
  enable_progress_bar: false
  enable_model_summary: false
  wandb: {mode: "off"}
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "words", [[], ["--nms", "outside"], ["--format", "torch_export"], ["--format", "openvino"], ["--precision", "fp16"]]
)
def test_a_detector_from_the_command_line(words):
    text = DETECTION.replace("DETECTOR", "yolo").replace("ARGS", "{width: 16}")
    Path("config.yaml").write_text(text, encoding="utf-8")
    assert main(["fit", "--config", "config.yaml", "--name", "run"]) == 0
    assert main(["export", "--ckpt_path", "runs/run/0/checkpoints/last.ckpt", *words]) == 0


@pytest.mark.slow
def test_suppression_at_another_threshold_is_found(capsys, monkeypatch):
    text = DETECTION.replace("DETECTOR", "yolo").replace("ARGS", "{width: 16}")
    Path("config.yaml").write_text(text, encoding="utf-8")
    assert main(["fit", "--config", "config.yaml", "--name", "run"]) == 0
    checkpoint = "runs/run/0/checkpoints/last.ckpt"
    with monkeypatch.context() as patch:
        limits = Detection.limits.fget
        patch.setattr(Detection, "limits", property(lambda task: replace(limits(task), nms_iou=0.95)))
        assert main(["export", "--ckpt_path", checkpoint, "--output", "model.onnx", "--verify", "false"]) == 0
    assert main(["verify", "--ckpt_path", checkpoint, "--model", "model.onnx"]) == 1
    assert "'after suppression'" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("format", ["torch_export", "onnx"])
def test_tensorflows_padding_leaves_with_open_sizes(format):
    """It took seven minutes to trace, and then torch.export could not write it."""
    source = write_pairs(Path("pictures"), {"train": 1, "val": 2})
    same = {"backbone": "mobilenetv2_035", "backbone_args": {"pad_type": "same"}}
    write_checkpoint(Path("a.ckpt"), "segmentation", source, model=same)
    words = ["--format", format, "--dynamic", "size", "--output", "a.pt2" if format == "torch_export" else "a.onnx"]
    assert main(["export", "--ckpt_path", "a.ckpt", *words]) == 0


@pytest.mark.slow
def test_what_a_file_cannot_hold_is_told_in_one_line(capsys, monkeypatch):
    def save(*_: Any) -> None:
        raise RuntimeError("Failed serializing node ceil in graph\nOriginal exception Traceback")

    monkeypatch.setattr(torch.export, "save", save)
    source = write_pairs(Path("pictures"), {"train": 1, "val": 1})
    write_checkpoint(Path("a.ckpt"), "segmentation", source)
    words = ["--format", "torch_export", "--dynamic", "size", "--output", "a.pt2"]
    assert main(["export", "--ckpt_path", "a.ckpt", *words]) == 1
    said = capsys.readouterr().err
    assert "torch.export: RuntimeError: Failed serializing node ceil in graph. Leave --dynamic size out" in said
    assert not Path("a.pt2").exists()


@pytest.mark.slow
def test_segmentations_leave_together():
    # Pictures of 48 x 40 pixels, which the network pads: the graph once kept the padding that it was traced with.
    source = write_pairs(Path("pictures"), {"train": 1, "val": 2})
    for seed, name in enumerate("ab"):
        write_checkpoint(Path(f"{name}.ckpt"), "segmentation", source, seed=seed)
    assert main(["export", "--ckpt_path", "[a.ckpt,b.ckpt]", "--output", "ab.onnx", "--dynamic", "size"]) == 0


@pytest.mark.slow
def test_detectors_do_not_leave_together(capsys):
    boxes = write_coco(Path("boxes"), {"train": 1, "val": 1})
    for seed, name in enumerate("cd"):
        write_checkpoint(Path(f"{name}.ckpt"), "detection", boxes, seed=seed)
    capsys.readouterr()
    assert main(["export", "--ckpt_path", "[c.ckpt,d.ckpt]", "--output", "cd.onnx"]) == 2
    assert "export one checkpoint; test and predict fuse boxes" in capsys.readouterr().err


def table() -> None:
    """Print what works, with the exporter and the largest difference."""
    from tempfile import TemporaryDirectory

    wanted = sys.argv[1] if len(sys.argv) > 1 else ""
    for words in FORMATS:
        for name, make in networks().items():
            if wanted not in f"{name} {words}":
                continue
            with TemporaryDirectory() as folder:
                try:
                    exporter, difference = worst_difference(make(), words, Path(folder))
                    print(f"| {name} | {words} | {exporter} | {difference:.1e} |", flush=True)
                except Exception as error:
                    print(f"| {name} | {words} | - | {str(error).splitlines()[0][:300]} |", flush=True)


if __name__ == "__main__":
    table()
