"""Flags that would change nothing, numbers below what there is, and a class that nobody named."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.__main__ import main
from tests.checkpoints import write_checkpoint
from tests.conftest import write_images

REFUSED = [
    ("explain", "--method=lrp --layer=layer2", "--layer is layer2, which only --method gradcam or"),
    ("explain", "--method=gradient --steps=4", "--steps is 4, which only --method integrated_gradients"),
    ("explain", "--method=gradient --boxes=2", "--boxes is 2, but a Classification finds no boxes"),
    ("explain", "--method=gradcam --layer=fc", "--layer fc: an output of 2 axes"),
    ("explain", "--seed=-1", "--seed is -1; it must be"),
    ("explain", "--at=[9,9,2,2]", "--at is [9, 9, 2, 2]; a rectangle is"),
    ("explain", "--output={pool}/000.jpg", "000.jpg is a file: give a folder"),
    ("features", "--split=train", "--split is train, but --source is given"),
    ("features", "--output={pool}/000.jpg", "000.jpg is a file: give a folder"),
    ("select", "--output={pool}/000.jpg", "000.jpg is a file: give a folder"),
    ("select", "--copy=true --output={pool}/chosen", "chosen lies in the pool"),
    ("features", "--seed=-1", "--seed is -1; it must be"),
    ("select", "--seed=-1", "--seed is -1; it must be"),
    ("select", "--strategy=entropy --shortlist=5", "--shortlist is 5.0, which only --strategy mix uses"),
]


@pytest.mark.parametrize(("command", "flags", "message"), REFUSED)
def test_is_refused(command: str, flags: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    checkpoint = write_checkpoint(tmp_path / "a.ckpt", "classification", tmp_path)
    write_images(tmp_path, {"new": 1})
    words = [f"--ckpt_path={checkpoint}", f"--source={tmp_path / 'new'}", "--trainer.accelerator=cpu"]
    given = flags.format(pool=tmp_path / "new").split()
    assert main([command, *words, f"--output={tmp_path / 'out'}", *given]) == 2
    assert message in capsys.readouterr().err


def test_a_class_that_nobody_named(capsys: pytest.CaptureFixture[str]):
    assert main(["fit", "--data.source=pictures", "--model.backbone=test_resnet"]) == 2
    assert "nothing says what --data is: give a config" in capsys.readouterr().err


def test_validation_pictures_are_explained_without_a_test_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    counts = {f"{split}/{name}": 2 for split in ("train", "val") for name in ("ant", "bee")}
    folder = write_images(tmp_path / "data", counts)
    checkpoint = write_checkpoint(tmp_path / "a.ckpt", "classification", folder)
    words = [f"--ckpt_path={checkpoint}", "--method=gradient", "--faithful=false", "--trainer.accelerator=cpu"]
    assert main(["explain", *words, f"--output={tmp_path / 'out'}"]) == 0
    assert "val/bee/001.jpg" in capsys.readouterr().out.replace("\\", "/")


def test_a_network_by_its_name_has_no_data(capsys: pytest.CaptureFixture[str]):
    assert main(["summary", "--model.backbone=test_resnet", "--data.image_size=64"]) == 2
    assert "is --model.image_size" in capsys.readouterr().err
