"""Cross-validation: folds, splits, one command that goes on where it was stopped."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datamodules.common.errors import UserError
from datamodules.folds import fold_numbers, splits_of_fold
from pipelines.__main__ import main
from pipelines.commands import folds as command
from pipelines.statistics import folds_interval
from tests.conftest import in_child, write_images


def records(labels: list[int], groups: list[str] | None = None) -> list[dict[str, Any]]:
    found = [{"path": f"x/{i:03d}.png", "label": label, "split": "train"} for i, label in enumerate(labels)]
    return [record | {"group": groups[i]} for i, record in enumerate(found)] if groups else found


def test_folds_are_stratified_and_do_not_depend_on_the_order() -> None:
    given = records([0] * 50 + [1] * 21 + [2] * 4)
    numbers = fold_numbers(given, 5, seed=0)
    assert sorted(Counter(numbers).values()) == [15] * 5
    for label, low, high in ((0, 10, 10), (1, 4, 5), (2, 0, 1)):
        counts = Counter(n for n, record in zip(numbers, given, strict=True) if record["label"] == label)
        assert all(low <= counts[fold] <= high for fold in range(5)), (label, counts)
    assert fold_numbers(given[::-1], 5, seed=0)[::-1] == numbers
    assert fold_numbers(given, 5, seed=1) != numbers


def test_groups_stay_together_and_classes_are_shared() -> None:
    rng = np.random.default_rng(0)
    groups = [f"g{number}" for number in range(20) for _ in range(int(rng.integers(2, 9)))]
    given = records([int(group[1:]) % 2 for group in groups], groups)
    numbers = fold_numbers(given, 4, seed=0)
    of_group = {record["group"]: number for record, number in zip(given, numbers, strict=True)}
    assert all(of_group[record["group"]] == number for record, number in zip(given, numbers, strict=True))
    counts = Counter(zip(numbers, (record["label"] for record in given), strict=True))
    expected = len(given) / 8
    assert all(abs(counts[fold, label] - expected) <= 4 for fold in range(4) for label in range(2)), counts


def test_every_image_is_tested_once_and_never_trained_on_by_its_fold() -> None:
    given = records([0, 1] * 20)
    numbers = fold_numbers(given, 4, seed=0)
    splits = [splits_of_fold(given, numbers, fold, 0.2, seed=0) for fold in range(4)]
    for split in splits:
        assert {name: len(paths) for name, paths in split.items()} == {"train": 24, "val": 6, "test": 10}
        assert len({path for paths in split.values() for path in paths}) == 40
    assert sorted(path for split in splits for path in split["test"]) == sorted(r["path"] for r in given)
    assert all(record["split"] == "train" for record in given)  # unchanged


@pytest.mark.parametrize("folds", [1, 7])
def test_a_number_of_folds_that_cannot_be(folds: int) -> None:
    with pytest.raises(UserError, match=rf"--folds is {folds}; it must be at least 2, and at most the 6 images"):
        fold_numbers(records([0] * 6), folds, seed=0)


def test_the_interval_is_nadeau_and_bengios() -> None:
    found = folds_interval([0.90, 0.92, 0.94, 0.88, 0.91], 0.25)
    each = np.array(found["each"])
    half = 2.7764451 * each.std(ddof=1) * np.sqrt(1 / 5 + 0.25)  # the quantile of t with 4 degrees of freedom
    assert found["mean"] == pytest.approx(0.91)
    assert (found["low"], found["high"]) == pytest.approx((0.91 - half, 0.91 + half))


def words(source: Path) -> list[str]:
    flags = ["--model=Classification", "--model.backbone=test_resnet", "--data=ClassificationData"]
    flags += [f"--data.source={source}", "--data.image_size=32", "--data.num_workers=0", "--data.batch_size=4"]
    flags += ["--data.val_fraction=0.25", "--trainer.max_epochs=1", "--trainer.accelerator=cpu"]
    flags += ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
    return [*flags, "--trainer.wandb.mode=off", "--trainer.report=false", "--name=cv"]


@pytest.mark.slow
def test_a_stopped_cross_validation_goes_on(tmp_path: Path, capfd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_images(tmp_path / "data", {"train/ant": 8, "train/bee": 8, "test/ant": 2, "test/bee": 2})
    train = command.train_and_test

    def stop_at_the_second(folder: Path, *rest: Any) -> Path:
        if folder.name == "cv-fold1":
            raise KeyboardInterrupt
        return train(folder, *rest)

    def stopped() -> int:
        monkeypatch.setattr(command, "train_and_test", stop_at_the_second)
        return main(["folds", *words(source), "--folds=2"])

    assert in_child(stopped) == 130
    assert sorted(p.name for p in Path("runs").iterdir()) == ["cv-fold0", "cv-fold1", "cv-folds"]
    assert in_child(lambda: main(["folds", *words(source), "--folds=2"])) == 0
    said = capfd.readouterr().out
    assert "folds: runs/cv-fold0: done before" in said
    assert "4 test images are kept" in said
    report = json.loads(Path("runs/cv-folds/folds.json").read_text())
    scores = [json.loads(Path(f"runs/cv-fold{fold}/0/test.json").read_text())["test/accuracy"] for fold in range(2)]
    assert report["metric"] == "test/accuracy"
    assert report["metrics"]["test/accuracy"]["each"] == scores
    assert report["metrics"]["test/accuracy"] == folds_interval(scores, 16 / 12)
    with open("runs/cv-folds/predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len({row["path"] for row in rows}) == len(rows) == 16
    right = [[row["label"] == row["truth"] for row in rows if row["fold"] == str(fold)] for fold in range(2)]
    assert [sum(each) / 8 for each in right] == scores


def test_several_devices_need_a_launcher(tmp_path: Path, capsys: Any) -> None:
    source = write_images(tmp_path / "data", {"train/ant": 4, "train/bee": 4})
    assert main(["folds", *words(source), "--trainer.devices=2", "--trainer.strategy=ddp"]) == 2
    assert "trainer.devices is 2: folds runs in one process" in capsys.readouterr().err
    assert main(["folds", *words(source), "--data.split_file=x.json"]) == 2
    assert "data.split_file is set, but folds draws its own splits" in capsys.readouterr().err
