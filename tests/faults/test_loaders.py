"""Rows 25, 26 and 29: what a loader's process waits for or stumbles over is named."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from datamodules import ClassificationData
from datamodules.common.errors import UserError
from datamodules.loaders import Record, RecordDataset, make_loader
from datamodules.samplers import EvalSampler, TrainSampler
from pipelines.__main__ import main
from pipelines.advice import with_advice
from tests.conftest import in_child, write_images
from tests.pipelines.test_ranks import CONFIG


def read(record: Record) -> Record:
    if record["path"].startswith("slow"):
        time.sleep(60)
    if record["path"].startswith("killed"):
        os.kill(os.getpid(), signal.SIGKILL)
    return {"image": np.zeros((4, 4, 3), np.uint8), "label": 0, "geometry": np.zeros(6, np.float32)}


def unchanged(sample: Record, seed: int | None) -> Record:
    return sample


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("slow", "no batch came for 1"),
        pytest.param("killed", "a loader process was killed", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("trains", [True, False])
def test_the_images_that_are_waited_for_are_named(kind, says, trains):
    """Also in an epoch that a resumed run begins at its third batch."""
    sampler = TrainSampler(12, 2) if trains else EvalSampler(12, 2)
    keys = list(sampler)[4]
    paths = [f"{number}.jpg" for number in range(12)]
    paths[keys[1][0]] = f"{kind}.jpg"
    dataset = RecordDataset([{"path": path, "image": path} for path in paths], read, unchanged)
    loader = make_loader(dataset, sampler, num_workers=1, pin_memory=False, timeout=1)
    if trains:
        loader.load_state_dict({"epoch": 0, "batches": 3})
    given: list[dict] = []
    with pytest.raises(UserError) as caught, with_advice(None, SimpleNamespace(num_workers=1)):
        given.extend(loader)
    if kind == "slow":
        assert f"The batch that did not come: {paths[keys[0][0]]}, slow.jpg." in str(caught.value)
    assert says in str(caught.value)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-150])


@pytest.mark.slow
def test_a_jpeg_that_is_cut_behind_its_header_is_named_in_training(tmp_path, capfd):
    source = write_images(tmp_path / "pictures", {"train/a": 8, "train/b": 8, "val/a": 2, "val/b": 2}, (64, 64))
    cut(source / "train" / "a" / "003.jpg")
    (tmp_path / "config.yaml").write_text(CONFIG.format(source=source))
    for workers in ("0", "1"):
        assert in_child(lambda w=workers: main(["fit", "--config", "config.yaml", "--data.num_workers", w])) == 1
        said = capfd.readouterr().err
        assert "Traceback" not in said
        (line,) = [line for line in said.splitlines() if "error: " in line]
        assert "train/a/003.jpg" in line
        assert "data.on_corrupt: skip" in line


@pytest.mark.slow
def test_skip_has_a_limit(tmp_path, monkeypatch):
    source = write_images(tmp_path / "pictures", {"train/a": 8, "train/b": 8}, (32, 32))
    for number in range(3):
        cut(source / "train" / "a" / f"00{number}.jpg")
    how = {"image_size": 32, "batch_size": 4, "on_corrupt": "skip"}
    data = ClassificationData(str(source), **how)
    data.setup("fit")
    assert len(data.skipped) == 3, "some may always be left out"
    monkeypatch.setattr("datamodules.cache.SOME_CORRUPT", 1)
    ClassificationData(str(source), **how, max_corrupt=0.2).setup("fit")
    with pytest.raises(UserError, match=r"3 of 16 image files .* data\.max_corrupt \(0\.1\)[^$]*train/a/000\.jpg"):
        ClassificationData(str(source), **how).setup("fit")
