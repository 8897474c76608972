"""The config that a checkpoint carries: what it may say, and that nothing of it is ever executed."""

from __future__ import annotations

import dataclasses
import sys
import typing
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import yaml

from datamodules import ClassificationData
from datamodules.base import DataModule
from datamodules.common.errors import UserError
from pipelines.__main__ import main
from pipelines.config import renamed
from pipelines.config.carried import Names, changed, convert, is_plain_type, packages_of
from pipelines.config.errors import Mistake
from pipelines.config.signatures import arguments_of, is_component, is_group, members, subclasses
from pipelines.run.loading import load, read_carried
from tasks import Classification
from tasks.base import Task
from tests.conftest import in_child, write_images

MODEL = {"class_path": "tasks.Classification", "init_args": {"backbone": "test_resnet", "num_classes": 2}}
DATA = {"class_path": "datamodules.ClassificationData", "init_args": {"source": "pictures", "image_size": 32}}
TRAP = """
from pathlib import Path

import pytorch_lightning as pl

Path("executed").touch()

from tasks import Classification


class Stranger(Classification):
    pass


class Spy(pl.Callback):
    pass


def call(*args, **kwargs):
    Path("executed").touch()
"""


def checkpoint(path: Path, **config: Any) -> Path:
    """A file that any network fits too little for, with a config of one's choice."""
    text = config.pop("text", None) or yaml.safe_dump({"model": MODEL, "data": DATA, **config})
    torch.save({"state_dict": {}, "global_step": 1, "config": text}, path)
    return path


def model(**arguments: Any) -> dict[str, Any]:
    return {"model": {**MODEL, "init_args": {**MODEL["init_args"], **arguments}}}


def data(**arguments: Any) -> dict[str, Any]:
    return {"data": {**DATA, "init_args": {**DATA["init_args"], **arguments}}}


SPEC = {"class_path": "trap.call", "init_args": {}}
ATTEMPTS: dict[str, dict[str, Any]] = {
    "a foreign task": {"model": {"class_path": "trap.Stranger", "init_args": {}}},
    "a foreign datamodule": {"data": SPEC},
    "a function as the task": {"model": SPEC},
    "a name in place of keys": {"model": "trap.Stranger"},
    "a config file in place of keys": {"model": "stranger.yaml"},
    "a config file in place of a group": model(optim="stranger.yaml"),
    "a class in place of a group": model(optim={"class_path": "trap.call", "init_args": {}}),
    "a foreign task inside a student": {
        "model": {"class_path": "tasks.NoisyStudent", "init_args": {"student": {"class_path": "trap.Stranger"}}}
    },
    "foreign data inside": {
        "data": {"class_path": "datamodules.SemiSupervised", "init_args": {"labeled": SPEC, "unlabeled": SPEC}}
    },
    "a class below Any": model(backbone_args={"act_layer": SPEC}),
    "a class below Any, as text": model(backbone_args={"act_layer": "{class_path: trap.call, init_args: {}}"}),
    "a class below Any, as escaped text": model(backbone_args={"act_layer": '{"class\\x5fpath": "trap.call"}'}),
    "a file below Any": model(backbone_args={"act_layer": "stranger.yaml"}),
    "a transform": data(augment={"transforms": [{"class_path": "trap.call"}]}),
    "dict_kwargs": {"model": {**MODEL, "dict_kwargs": {"x": SPEC}}},
    "a module through ours": {"model": {"class_path": "tasks.base.torch.hub.load", "init_args": {}}},
    "a callback": {"trainer": {"callbacks": [{"class_path": "trap.Spy"}]}},
    "a logger": {"trainer": {"logger": {"class_path": "trap.call"}}},
    "a plugin": {"trainer": {"plugins": [{"class_path": "trap.call"}]}},
    "a strategy": {"trainer": {"strategy": {"class_path": "trap.call"}}},
    "a precision that is a class": {"trainer": {"precision": SPEC}},
    "a flag in the name": {"name": "--trainer.callbacks=trap.Spy"},
    "a YAML tag": {"text": "model: !!python/object/apply:trap.call []\ndata: {}\n"},
    "weights": model(pretrained="stranger.pth"),
}


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module that can be imported, and leaves a file when it is; a config that names it; pictures to predict."""
    (tmp_path / "trap.py").write_text(TRAP)
    (tmp_path / "stranger.yaml").write_text("class_path: trap.Stranger\ninit_args: {}\n")
    write_images(tmp_path / "pictures", {f"{s}/{c}": 2 for s in ("train", "val", "test") for c in ("a", "b")}, (32, 32))
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("trap", None)


@pytest.mark.parametrize("attempt", ATTEMPTS)
def test_nothing_that_a_checkpoint_says_is_executed(attempt: str, trap: Path, capsys: pytest.CaptureFixture[str]):
    file = checkpoint(trap / "stranger.ckpt", **ATTEMPTS[attempt])
    status = main(["predict", "--ckpt_path", str(file), "--source", "pictures", "--trainer.accelerator", "cpu"])
    message = capsys.readouterr().err
    assert status in (1, 2)  # the weights fit no network, if nothing else is wrong
    assert "Traceback" not in message
    assert not Path("executed").exists()
    assert "trap" not in sys.modules


@pytest.mark.parametrize("command", ["validate", "test", "probe", "pseudo-label"])
def test_the_other_commands_refuse_it_too(command: str, trap: Path, capsys: pytest.CaptureFixture[str]):
    file = checkpoint(trap / "stranger.ckpt", model={"class_path": "trap.Stranger", "init_args": {}})
    more = ["--source", "pictures", "--output", "labels.parquet"] if command == "pseudo-label" else []
    assert main([command, "--ckpt_path", str(file), *more]) == 1
    assert "nothing of it was imported" in capsys.readouterr().err
    assert not Path("executed").exists()


def test_a_flag_does_not_make_the_checkpoints_names_be_imported(trap: Path, capsys: pytest.CaptureFixture[str]):
    file = checkpoint(trap / "stranger.ckpt", model={"class_path": "trap.Stranger", "init_args": {}})
    assert main(["predict", "--ckpt_path", str(file), "--model.backbone", "resnet18", "--trainr.x", "1"]) != 0
    assert "Traceback" not in capsys.readouterr().err
    assert not Path("executed").exists()


def test_trust_allows_a_package_by_its_whole_name(trap: Path):
    file = checkpoint(trap / "own.ckpt", model={**MODEL, "class_path": "trap.Stranger"})
    with pytest.raises(UserError, match=r"add --trust trap\."):
        load(file)
    with pytest.raises(UserError, match="nothing of it was imported"):
        load(file, trust=["tra"])
    assert not Path("executed").exists()
    assert type(load(file, trust=["trap"]).task).__name__ == "Stranger"
    function = checkpoint(trap / "function.ckpt", model={**MODEL, "class_path": "trap.call"})
    with pytest.raises(UserError, match="is no Task"):
        load(function, trust=["trap"])


def test_a_checkpoint_names_a_run_below_the_folder_of_all_runs(tmp_path: Path):
    for name in ("../elsewhere", "/tmp/x", "a/../../b", "", "--config", 3):
        with pytest.raises(UserError, match="is no name of a folder"):
            read_carried(checkpoint(tmp_path / "x.ckpt", name=name))
    assert read_carried(checkpoint(tmp_path / "x.ckpt", name="group/run")).name == "group/run"


def test_what_is_carried_is_what_was_configured(tmp_path: Path):
    augment = {"preset": "rand", "crop_scale": [0.5, 1]}
    optim = {"lr": "1e-3", "name": "sgd"}
    file = checkpoint(
        tmp_path / "x.ckpt",
        **model(optim=optim, image_size=[32, 48], top_k=[1], class_weights=[1, 2], drop_rate=1),
        **data(image_size=[32, 48], class_names=["a", "b"], crop_pct=None, augment=augment),
        trainer={"precision": "32-true"},
        seed_everything=3,
        name="x",
    )
    loaded = load(file)
    assert isinstance(loaded.task, Classification)
    assert isinstance(loaded.data, ClassificationData)
    assert loaded.task.optim.lr == 1e-3
    assert loaded.task.optim.name == "sgd"
    assert type(loaded.task.drop_rate) is float
    assert loaded.data.image_size == (32, 48)
    assert loaded.data.augment.crop_scale == (0.5, 1.0)
    carried = read_carried(file)
    assert (carried.name, carried.seed, carried.precision) == ("x", 3, "32-true")


def test_old_keys_are_translated_by_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(renamed, "RENAMED", {"Task": {"network": "backbone"}, "Optim": {"rate": "lr"}})
    file = checkpoint(
        tmp_path / "x.ckpt",
        model={"class_path": "tasks.Classification", "init_args": {"network": "test_resnet", "optim": {"rate": 0.5}}},
    )
    task = load(file).task
    assert (task.backbone, task.optim.lr) == ("test_resnet", 0.5)


def test_a_users_old_key_gets_an_error_that_names_the_new(monkeypatch, capsys):
    monkeypatch.setattr(renamed, "RENAMED", {"Task": {"network": "backbone"}})
    Path("old.yaml").write_text(yaml.safe_dump({**model(network="test_resnet"), "data": DATA}))
    assert main(["fit", "--config", "old.yaml"]) == 2
    assert "model.network has a new name: write model.backbone." in capsys.readouterr().err


def test_classes_that_moved_are_found_by_their_name(tmp_path: Path):
    file = checkpoint(tmp_path / "x.ckpt", model={**MODEL, "class_path": "tasks.old.place.Classification"})
    assert isinstance(load(file).task, Classification)


@dataclasses.dataclass
class Group:
    """Numbers."""

    a: int = 1
    b: tuple[float, ...] = ()


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        (1, float, 1.0),
        ("1e-3", float, 1e-3),
        (True, bool | float, True),
        (1, int | float, 1),
        (1, float | int, 1),
        (True, float | bool, True),
        (None, int | None, None),
        ([1, 2], tuple[int, int] | int | None, (1, 2)),
        (["a"], list[str], ["a"]),
        (["x"], list[Literal["x", "y"]], ["x"]),
        ({"a": [1, 2]}, dict[str, list[float]], {"a": [1.0, 2.0]}),
        ({"b": [1, 2]}, Group, Group(1, (1.0, 2.0))),
        (SPEC, Any, SPEC),
        ({"x": SPEC}, dict[str, Any], {"x": SPEC}),
        ("{class_path: trap.call}", Any, "{class_path: trap.call}"),
    ],
)
def test_plain_values_become_what_a_constructor_wants(value, hint, expected):
    converted = convert(value, hint, (), Names())
    assert converted == expected
    assert type(converted) is type(expected)


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        ("x", int),
        (1.5, int),
        (True, int),
        (None, int),
        ([1], tuple[int, int]),
        ("z", Literal["x"]),
        ("x", list[str]),
        (len, Any),
        ({"c": 1}, Group),
        ("trap.call", type),
    ],
)
def test_values_that_do_not_fit_are_refused(value, hint):
    with pytest.raises(Mistake):
        convert(value, hint, ("model", "x"), Names())


def test_flags_change_what_is_carried():
    config = {"data": {"class_path": "A", "init_args": {"n": 1, "l": [1], "d": {"x": 1}, "part": dict(MODEL)}}}

    def arguments(key: str, value: Any) -> Any:
        return changed(config, key.split("."), value)["data"]["init_args"]

    assert arguments("data.n", 2) == {**config["data"]["init_args"], "n": 2}
    assert arguments("data.init_args.n", 2)["n"] == 2
    assert arguments("data.l+", [2])["l"] == [1, 2]
    assert arguments("data.d.y", 2)["d"] == {"x": 1, "y": 2}
    assert arguments("data.d", {"y": 2})["d"] == {"y": 2}
    assert arguments("data.part.backbone", "b")["part"]["init_args"] == {"backbone": "b", "num_classes": 2}
    assert arguments("data.part", "tasks.Other")["part"] == {**MODEL, "class_path": "tasks.Other"}
    assert changed(config, ["data", "class_path"], "B")["data"]["class_path"] == "B"
    assert config["data"]["init_args"]["n"] == 1  # the config itself stays


def test_new_arguments_of_a_part_stand_before_those_that_it_has():
    config = {"model": {"class_path": "tasks.NoisyStudent", "init_args": {"student": dict(MODEL)}}}

    def student(value: Any) -> Any:
        return changed(config, ["model", "student"], value)["model"]["init_args"]["student"]

    assert student({"num_classes": 9}) == {**MODEL, "init_args": {"backbone": "test_resnet", "num_classes": 9}}
    other = {"class_path": "tasks.Other", "init_args": {"num_classes": 9, "x": 1}}
    assert student(other) == {**other, "init_args": {"backbone": "test_resnet", "num_classes": 9, "x": 1}}
    assert student({"class_path": "tasks.Other"}) == {**MODEL, "class_path": "tasks.Other"}


def test_packages_of_a_users_own_config():
    values = {"model": {"class_path": "mine.nets.Net"}, "data": [{"class_path": "tasks.X"}, {"class_path": "Short"}]}
    assert packages_of(values) == ["mine"]


def unusable(hint: Any) -> list[Any]:
    """What a type has inside that is no plain data, no group and no class of ours."""
    options = [option for option in members(hint) if option not in (Any, ..., type(None))]
    found = []
    for option in options:
        if typing.get_origin(option) in (list, dict, tuple):
            found += [bad for inner in typing.get_args(option) for bad in unusable(inner)]
        elif not (is_group(option) or is_component(option) or is_plain_type(option)):
            found.append(option)
    return found


def test_every_argument_of_our_classes_can_come_from_a_checkpoint():
    """A function or a type among the arguments could not be given as plain data."""
    classes = {**subclasses(Task), **subclasses(DataModule)}
    ours = {name: cls for name, cls in classes.items() if cls.__module__.startswith(("tasks", "datamodules"))}
    assert len(ours) >= 8
    for name, cls in ours.items():
        for argument, hint in (arguments_of(cls) or {}).items():
            assert not unusable(hint), f"{name}.{argument}"


def test_no_folder_is_left_behind(trap: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TMPDIR", str(trap / "tmp"))
    (trap / "tmp").mkdir()
    config = {"model": MODEL, "data": {**DATA, "init_args": {**DATA["init_args"], "num_workers": 0, "batch_size": 2}}}
    Path("run.yaml").write_text(yaml.safe_dump(config))
    quiet = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.wandb.mode=off"]

    def work() -> int:
        import tempfile

        tempfile.tempdir = None
        status = main(["fit", "--config", "run.yaml", "--trainer.max_steps=1", *quiet])
        last = "runs/run/0/checkpoints/last.ckpt"
        return (
            status
            or main(["validate", "--ckpt_path", last, *quiet, "--data.batch_size=3", "--model.tta=[hflip]"])
            or main(["predict", "--ckpt_path", last, "--source", "pictures/test", *quiet])
        )

    assert in_child(work) == 0
    assert [p.name for p in (trap / "tmp").glob("pipelines-*")] == []
    assert Path("runs/run/0/validate.json").exists()
    assert Path("runs/run/0/predict/predictions.csv").exists()
