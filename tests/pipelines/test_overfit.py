"""Any backbone through one config: only `--model.backbone` changes, and the net overfits one batch."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from pipelines.__main__ import main
from tests.conftest import in_child

QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.wandb.mode=off"]
STEPS = 80
TWELVE = ["resnet18", "vgg11_bn", "densenet121", "inception_v3", "xception41", "mobilenetv2_100", "efficientnet_b0"]
TWELVE += [
    "convnext_atto",
    "vit_tiny_patch16_224",
    "swin_tiny_patch4_window7_224",
    "coatnet_nano_rw_224",
    "regnetx_002",
]


def losses(*flags: str) -> list[float]:
    """Training loss of every step."""
    status = in_child(lambda: main(["fit", "--config", "classification/overfit", *QUIET, *flags]), seconds=900)
    assert status == 0
    with open(Path("runs") / "classification-overfit" / "0" / "metrics.csv", newline="") as file:
        return [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]


@pytest.mark.parametrize("backbone", ["test_resnet", pytest.param("test_vit", marks=pytest.mark.slow)])
def test_tiny_backbones_overfit_one_batch(backbone):
    # An epoch is one step here: validating and saving after each would take most of the time.
    seldom = ["--trainer.check_val_every_n_epoch", str(STEPS), "--trainer.enable_checkpointing", "false"]
    small = ["--data.image_size", "64", "--model.optim.lr", "3e-3", "--trainer.max_epochs", str(STEPS)]
    steps = losses("--model.backbone", backbone, *small, *seldom)
    assert len(steps) == STEPS
    assert steps[0] > 1.5
    assert min(steps[-5:]) < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("backbone", TWELVE)
def test_twelve_families_overfit_one_batch(backbone):
    steps = losses("--model.backbone", backbone)
    print(f"{backbone}: loss {steps[0]:.3f} -> {steps[-1]:.4f}")
    assert steps[0] > 1.5
    assert min(steps[-5:]) < 0.1
