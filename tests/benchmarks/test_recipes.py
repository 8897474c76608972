"""The peer scripts train and find; both sides are scored by one measure, which independent figures confirm."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from benchmarks.recipes import run
from benchmarks.recipes.__main__ import main
from benchmarks.recipes.peer import Lists, Settings, evaluate, train
from benchmarks.recipes.scores import MEASURES, average_precision, confusion, interval, mean_iou
from datamodules.classification import ClassificationData
from tests.conftest import write_images

BACKBONE = "test_resnet"


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "weights.safetensors"
    save_file(timm.create_model(BACKBONE).state_dict(), path)
    return path


def lists_of(samples: list[dict[str, Any]]) -> Lists:
    return Lists({"train": samples, "val": samples[:2], "test": samples[:3]}, ["a", "b"], dict)


def samples(count: int = 8) -> list[dict[str, Any]]:
    """Gray pictures with a white square, which is class 1, at a random place."""
    rng = np.random.default_rng(0)
    made = []
    for _ in range(count):
        image, mask = np.full((64, 64, 3), 90, np.uint8), np.zeros((64, 64), np.uint8)
        x, y = rng.integers(0, 32, 2)
        image[y : y + 30, x : x + 30] = 255
        mask[y : y + 30, x : x + 30] = 1
        boxes = np.array([[x, y, x + 30, y + 30]], np.float32)
        made.append({"image": image, "mask": mask, "boxes": boxes, "labels": np.array([1]), "iscrowd": np.array([0])})
    return made


@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_a_peer_learns_a_white_square(task: str, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.recipes.detection.WIDTH", 32)
    monkeypatch.setattr("benchmarks.recipes.detection.Backbone.out_channels", 32)
    settings = Settings(BACKBONE, str(weights), (64, 64), epochs=2, seed=0, workers=0)
    peer = run.PEERS[task](settings, lists_of(samples()))
    losses = []
    counted = peer.loss
    monkeypatch.setattr(peer, "loss", lambda model, batch: losses.append(counted(model, batch)) or losses[-1])
    model = train(peer, settings, MEASURES[task][1])
    assert losses[-1] < losses[0]
    results = evaluate(peer, settings, model, "test")
    assert len(results) == 3
    assert 0 <= MEASURES[task][1](results) <= 1


def test_both_sides_run_and_a_table_compares_them(
    tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_images(tmp_path / "pictures", {"train/a": 4, "train/b": 4, "val/a": 2, "val/b": 2})
    monkeypatch.setattr("benchmarks.recipes.__main__.run_logged", in_process)
    main(
        [
            "classification",
            *("--source", str(source), "--weights", str(weights), "--backbone", BACKBONE, "--output", str(tmp_path)),
            *("--size", "32", "32", "--epochs", "1", "--seeds", "0", "--", "--data.batch_size", "4"),
        ]
    )
    text = capsys.readouterr().out
    for words in ("  ours ", "  peer ", "n=4", "ours - peer"):
        assert words in text


def in_process(command: list[str], environment: dict[str, str], log: Path) -> int:
    """The child's work in this process: an import of PyTorch more would take seconds."""
    folder = Path(command[-1]).parent
    job = json.loads((folder / "job.json").read_text())
    data = ClassificationData(job["source"])
    data.setup()
    lists = Lists(data.records, data.class_names or [], data.make_reader())
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        results, costs = run.run_ours(job) if job["side"] == "ours" else run.run_peer(job, lists)
    torch.save(results, folder / "results.pt")
    (folder / "costs.json").write_text(json.dumps(costs))
    return 0


def test_mean_iou_is_that_of_all_pictures_together() -> None:
    truth, found = torch.tensor([[0, 0, 1, 255]]), torch.tensor([[0, 1, 1, 1]])
    first = {"confusion": confusion(found, truth, 3)}
    assert mean_iou([first]) == pytest.approx((1 / 2 + 1 / 2) / 2)  # class 2 occurs nowhere
    second = {"confusion": confusion(torch.tensor([[0]]), torch.tensor([[0]]), 3)}
    assert mean_iou([first, second]) == pytest.approx((2 / 3 + 1 / 2) / 2)


def test_a_perfect_box_counts_and_a_crowd_does_not_hurt() -> None:
    boxes = torch.tensor([[0.0, 0, 20, 20]])
    found = {"boxes": boxes, "scores": torch.tensor([0.9]), "labels": torch.tensor([0])}
    truth = {"boxes": boxes, "labels": torch.tensor([0]), "iscrowd": torch.tensor([0])}
    assert average_precision([{"found": found, "truth": truth}]) == pytest.approx(1)


def test_an_interval_holds_the_difference_and_is_a_point_where_sides_are_equal() -> None:
    right = [[{"right": i % 2 == 0} for i in range(40)]]
    better = [[{"right": True} for _ in range(40)]]
    assert interval("classification", right, right) == (0, 0)
    low, high = interval("classification", better, right)
    assert 0.3 < low < 0.5 < high < 0.7
