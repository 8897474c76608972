"""What stands in a run directory, and which directory a command takes."""

from __future__ import annotations

import csv
import importlib.metadata
import json
import math
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from datamodules.common.errors import UserError
from pipelines.run import directory as run_directory
from pipelines.run.directory import (
    checkpoint_config,
    find_checkpoint,
    find_resume,
    new_run,
    run_config,
    run_of_checkpoint,
    runs_of,
    wandb_id,
    write_config,
    write_data_files,
)
from pipelines.run.environment import write_environment
from pipelines.run.results import write_metrics
from pipelines.run.student import export, write_student


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")


def test_versions_are_numbers_and_the_next_one_is_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert new_run(tmp_path, "a") == tmp_path / "a" / "0"
    for name in ("2", "10", "notes"):
        (tmp_path / "a" / name).mkdir()
    touch(tmp_path / "a" / "11")  # a file
    assert [run.name for run in runs_of(tmp_path, "a")] == ["0", "2", "10"]
    assert runs_of(tmp_path, "b") == []
    (tmp_path / "a" / "11").unlink()
    assert new_run(tmp_path, "a").name == "11"
    monkeypatch.setattr(run_directory, "runs_of", lambda root, name: [Path("10")])  # another one started meanwhile
    assert new_run(tmp_path, "a").name == "12"
    touch(tmp_path / "file")
    with pytest.raises(UserError, match=r"Cannot make the run directory .*/file/a/11: .*Set --runs_dir"):
        new_run(tmp_path / "file", "a")


def test_the_run_of_a_checkpoint(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "a" / "3"
    touch(run / "config.yaml", run / "checkpoints" / "best.ckpt")
    assert run_of_checkpoint(run / "checkpoints" / "best.ckpt") == run
    stage = tmp_path / "loop" / "teacher"
    touch(stage / "config.yaml", stage / "student.ckpt")
    assert run_of_checkpoint(stage / "student.ckpt") is None
    for version in ("0", "1"):
        (stage / version).mkdir()
    assert run_of_checkpoint(stage / "student.ckpt") == stage / "1"
    assert run_of_checkpoint(tmp_path / "copied" / "best.ckpt") is None


def test_best_is_taken_from_the_newest_run_that_has_one(tmp_path: Path) -> None:
    for version, names in (("0", ("best", "last")), ("1", ("best",)), ("2", ())):
        (tmp_path / "a" / version).mkdir(parents=True)
        touch(*(tmp_path / "a" / version / "checkpoints" / f"{name}.ckpt" for name in names))
    assert find_checkpoint(tmp_path, "a", None) == tmp_path / "a/1/checkpoints/best.ckpt"
    assert find_checkpoint(tmp_path, "a", "best") == tmp_path / "a/1/checkpoints/best.ckpt"
    assert find_checkpoint(tmp_path, "a", "last") == tmp_path / "a/0/checkpoints/last.ckpt"
    own = tmp_path / "own.ckpt"
    with pytest.raises(UserError, match=r"--ckpt_path .*own\.ckpt does not exist"):
        find_checkpoint(tmp_path, "a", str(own))
    touch(own)
    assert find_checkpoint(tmp_path, "a", str(own)) == own
    with pytest.raises(UserError, match="--ckpt_path last: no run named 'b' in"):
        find_checkpoint(tmp_path, "b", "last")


def test_only_the_newest_run_is_resumed_without_being_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = {tmp_path / "a/0/checkpoints": Path("good.ckpt")}
    monkeypatch.setattr(run_directory, "newest_good_checkpoint", good.get)
    (tmp_path / "a" / "0").mkdir(parents=True)
    assert find_resume(tmp_path, "a", None) == (None, None)
    assert find_resume(tmp_path, "a", "auto") == (tmp_path / "a/0", Path("good.ckpt"))
    (tmp_path / "a" / "1").mkdir()
    assert find_resume(tmp_path, "a", "auto") == (None, None)
    assert find_resume(tmp_path, "b", "auto") == (None, None)
    assert find_resume(tmp_path, "a", str(tmp_path / "a/0")) == (tmp_path / "a/0", Path("good.ckpt"))
    with pytest.raises(UserError, match=r"--resume .*/a/1: there is no run directory with a readable checkpoint"):
        find_resume(tmp_path, "a", str(tmp_path / "a/1"))


def test_a_config_that_differs_gets_the_next_number(tmp_path: Path) -> None:
    first, second = {"b": 1, "a": "é"}, {"b": 2}
    expected = [(first, "config.yaml"), (first, "config.yaml"), (second, "config.1.yaml"), (second, "config.1.yaml")]
    expected += [(first, "config.2.yaml"), (first, "config.2.yaml")]  # what was run last stands last
    for config, name in expected:
        assert write_config(tmp_path, config) == tmp_path / name
    assert (tmp_path / "config.yaml").read_text(encoding="utf-8") == "b: 1\na: é\n"
    assert sorted(os.listdir(tmp_path)) == ["config.1.yaml", "config.2.yaml", "config.yaml"]


def test_each_command_adds_its_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for words in (["fit"], ["fit", "--resume", "auto"]):
        monkeypatch.setattr(sys, "argv", words)
        write_environment(tmp_path)
    entries = json.loads((tmp_path / "environment.json").read_text())
    assert [entry["command"] for entry in entries] == [["fit"], ["fit", "--resume", "auto"]]
    for entry in entries:
        assert set(entry) == {"command", "python", "platform", "git", "packages"}
        assert entry["packages"]["torch"] == importlib.metadata.version("torch")
        assert entry["python"] == ".".join(map(str, sys.version_info[:3]))


def test_metrics_are_json_that_every_reader_takes(tmp_path: Path) -> None:
    write_metrics(tmp_path / "m.json", {"b": math.nan, "a": 0.1, "per_class": {"iou": [0.5, math.inf, None], "n": [1]}})
    text = (tmp_path / "m.json").read_text()
    assert "NaN" not in text
    assert json.loads(text) == {"b": None, "a": 0.1, "per_class": {"iou": [0.5, None, None], "n": [1]}}
    assert list(json.loads(text)) == ["b", "a", "per_class"]


def test_a_runs_config_has_no_arguments_of_one_command_and_resolved_values() -> None:
    config = {
        "name": "n",
        "ckpt_path": "x",
        "resume": "auto",
        "model": {"class_path": "A", "init_args": {"num_classes": None, "backbone": "b"}},
        "data": {"class_path": "D", "init_args": {"image_size": 8}},
    }
    resolved = run_config(config, {"num_classes": 3, "in_chans": 1}, {"image_size": [8, 8]})
    assert resolved == {
        "name": "n",
        "model": {"class_path": "A", "init_args": {"num_classes": 3, "backbone": "b"}},
        "data": {"class_path": "D", "init_args": {"image_size": [8, 8]}},
    }
    assert config["model"]["init_args"]["num_classes"] is None  # type: ignore[index]


def test_a_checkpoint_carries_what_belongs_to_the_model() -> None:
    config = {
        "name": "n",
        "seed_everything": 7,
        "runs_dir": "runs",
        "model": {"class_path": "A", "init_args": {"pretrained": "file", "backbone": "b"}},
        "data": {"class_path": "D"},
        "trainer": {"precision": "bf16", "devices": 8},
    }
    assert checkpoint_config(config) == {
        "name": "n",
        "seed_everything": 7,
        "model": {"class_path": "A", "init_args": {"pretrained": False, "backbone": "b"}},
        "data": {"class_path": "D"},
        "trainer": {"precision": "bf16"},
    }
    assert checkpoint_config({"trainer": {"precision": None}}) == {}


def test_a_run_keeps_its_identity(tmp_path: Path) -> None:
    first, other = wandb_id(tmp_path), wandb_id(tmp_path.parent)
    assert len(first) == 8
    assert int(first, 16) >= 0
    assert wandb_id(tmp_path) == first != other


def test_split_and_skipped_files(tmp_path: Path) -> None:
    write_data_files(tmp_path, SimpleNamespace())
    assert os.listdir(tmp_path) == []
    records = {"train": [{"path": "ä.jpg", "label": 0}, {"path": "b.jpg"}], "val": []}
    with pytest.warns(UserWarning, match=r"1 unreadable image\(s\) left out; they are listed in .*skipped\.csv"):
        write_data_files(tmp_path, SimpleNamespace(records=records, skipped=[("c.jpg", "truncated, at 5")]))
    split = (tmp_path / "split.json").read_text(encoding="utf-8")
    assert json.loads(split) == {"train": ["ä.jpg", "b.jpg"], "val": []}
    assert "ä" in split
    with open(tmp_path / "skipped.csv", newline="", encoding="utf-8") as file:
        assert list(csv.reader(file)) == [["path", "reason"], ["c.jpg", "truncated, at 5"]]


def test_a_students_checkpoint_is_its_best_or_else_its_last(tmp_path: Path) -> None:
    write_student(tmp_path)
    assert not list(tmp_path.iterdir())
    for name in ("last", "best"):
        torch.save({"which": name}, tmp_path / f"{name}.ckpt")
        write_student(tmp_path)
        assert torch.load(tmp_path / "student.ckpt", weights_only=True) == {"which": name}


def test_an_exported_checkpoint_keeps_what_evaluation_needs(tmp_path: Path) -> None:
    """Thresholds of a detector among it, which are in the task's state; nothing of the training's."""
    kept: dict[str, Any] = {
        "state_dict": {"w": torch.ones(2)},
        "hyper_parameters": {"a": 1},
        "config": "model: x",
        "epoch": 3,
        "global_step": 12,
        "pytorch-lightning_version": "2.6",
        "task_state": {"best_thresholds": [0.5]},
    }
    torch.save({**kept, "optimizer_states": [1], "loops": {}, "callbacks": {}}, tmp_path / "a.ckpt")
    export(tmp_path / "a.ckpt", tmp_path / "b.ckpt")
    found = torch.load(tmp_path / "b.ckpt", weights_only=True)
    assert torch.equal(found.pop("state_dict")["w"], torch.ones(2))
    del kept["state_dict"]
    assert found == kept
