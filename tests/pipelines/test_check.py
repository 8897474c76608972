"""The command `check`: table, JSON and exit status, of a source and of a config."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from pipelines.__main__ import main
from tests.conftest import write_images


@pytest.fixture
def source(tmp_path):
    """A training picture that is a validation picture, too, and a nearly black one."""
    root = write_images(tmp_path / "pictures", {"train/ant": 6, "train/bee": 6, "val/ant": 2, "val/bee": 2})
    (root / "val/ant/000.jpg").write_bytes((root / "train/ant/001.jpg").read_bytes())
    Image.fromarray(np.full((40, 48, 3), 3, np.uint8)).save(root / "train/bee/dark.png")
    return root


def test_of_a_source(source, capsys):
    assert main(["check", str(source), "--task", "classification", "--data.test_fraction", "0"]) == 1
    out, err = capsys.readouterr()
    assert "train 13, val 4 images, 2 classes" in out
    assert "error    duplicate-split" in out
    assert "val/ant/000.jpg: the same file as train/ant/001.jpg (train)" in out
    assert "1 finding(s) are as bad as --fail_on error or worse" in err
    written = json.loads((source.parent / "check/check.json").read_text())
    assert written["images"] == {"train": 13, "val": 4}
    assert written["classes"] == ["ant", "bee"]
    kinds = {found["kind"]: found for found in written["findings"]}
    assert list(kinds)[:2] == ["duplicate-split", "dark"]
    assert kinds["dark"]["path"].endswith("train/bee/dark.png")
    assert kinds["dark"]["severity"] == "warning"
    assert kinds["duplicate-split"]["others"] == [str(source / "train/ant/001.jpg")]


def test_of_a_config(source, tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text(
        f"model: {{class_path: Classification, init_args: {{backbone: lenet5}}}}\n"
        f"data: {{class_path: ClassificationData, init_args: {{source: {source}}}}}\n"
    )
    words = ["check", "--config", "mine.yaml", "--output", "found"]
    assert main([*words, "--fail_on", "never"]) == 0
    assert (tmp_path / "found/check.json").is_file()
    (source / "val/ant/000.jpg").unlink()
    assert main(words) == 0
    assert main([*words, "--fail_on", "warning"]) == 1
    capsys.readouterr()
    assert main(["check", "--config", "mine.yaml", "--data.source", "nowhere"]) == 2
    assert "data.source 'nowhere' does not exist" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["pictures"], "--task is missing"),
        (["pictures", "--task", "boxes"], "--task is 'boxes'"),
        (["--task", "detection"], "is for a source without a config"),
    ],
)
def test_what_is_wrong_with_the_words(words, said, capsys):
    assert main(["check", *words]) == 2
    assert said in capsys.readouterr().err
