"""`--model.pretrained` with a run's own checkpoint or a whole model of transformers, through the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from pipelines.__main__ import main
from tests.conftest import write_images
from tests.pipelines.test_detection import write_coco
from tests.whole_models import save_whole_model

CONFIG = """
model: {{class_path: Classification, init_args: {{backbone: test_resnet, optim: {{lr: 0.01}}}}}}
data: {{class_path: ClassificationData, init_args: {{source: {source}, image_size: 32, batch_size: 4, num_workers: 0}}}}
trainer: {{max_epochs: 1, num_sanity_val_steps: 0, wandb: {{mode: "off"}}, enable_progress_bar: false,
  enable_model_summary: false}}
"""


def test_a_run_starts_from_the_average_of_another_with_other_classes(tmp_path, folder, caplog):
    Path("first.yaml").write_text(CONFIG.format(source=folder))
    assert main(["fit", "--config", "first.yaml", "--trainer.ema_decay", "0.9"]) == 0
    first = Path("runs/first/0/checkpoints/best.ckpt")
    weights = torch.load(first, weights_only=True)
    name = "network.conv1.0.weight"
    assert not torch.equal(weights["state_dict"][name], weights["current_model_state"][name])
    write_images(
        Path("three"), {f"{split}/{name}": 4 for split in ("train", "val", "test") for name in ("ant", "bee", "fly")}
    )
    Path("second.yaml").write_text(CONFIG.format(source="three"))
    still = ["--model.optim.lr", "1e-12", "--model.freeze_norm", "true"]
    caplog.set_level("INFO")
    assert main(["fit", "--config", "second.yaml", "--model.pretrained", str(first), *still]) == 0
    said = [record.message for record in caplog.records if record.message.startswith("pretrained:")]
    assert said == [
        f"pretrained: 90 of 92 tensors of {first} (classifier, test_resnet); not loaded: fc (2 classes there, 3 here);"
        " new: fc"
    ]
    second = torch.load("runs/second/0/checkpoints/last.ckpt", weights_only=True)
    assert torch.allclose(second["state_dict"][name], weights["state_dict"][name], atol=1e-6)
    first.unlink()  # nor is it needed any more
    assert main(["test", "--name", "second"]) == 0


DETECTION = """
model: {{class_path: Detection, init_args: {{detector: rtdetr, pretrained: {pretrained}, optim: {{lr: 0.001}}}}}}
data: {{class_path: DetectionData, init_args: {{source: {source}, image_size: 64, batch_size: 4, num_workers: 0}}}}
trainer: {{max_epochs: 1, num_sanity_val_steps: 0, wandb: {{mode: "off"}}, enable_progress_bar: false,
  enable_model_summary: false}}
"""


def test_a_whole_model_of_transformers_is_trained_and_its_checkpoint_needs_nothing_else(tmp_path):
    pytest.importorskip("transformers")
    folder = save_whole_model("rt_detr_v2", tmp_path / "hub")
    source = write_coco(tmp_path / "pictures", {"train": 8, "val": 3, "test": 3})
    Path("cells.yaml").write_text(DETECTION.format(source=source, pretrained=folder))
    assert main(["fit", "--config", "cells.yaml"]) == 0
    shutil.rmtree(folder)
    best = "runs/cells/0/checkpoints/best.ckpt"
    assert main(["predict", "--ckpt_path", best, "--source", str(source / "test"), "--output", "found"]) == 0
    assert len(json.loads(Path("found/annotations.json").read_text())["images"]) == 3
