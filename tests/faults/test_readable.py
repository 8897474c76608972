"""Row 43: what is saved can be read back with `weights_only=True`, or is refused when the training starts."""

from __future__ import annotations

import argparse
import collections
import dataclasses
import datetime
import enum
import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_lightning.callbacks import Callback

from datamodules.common.errors import UserError
from pipelines.__main__ import main
from pipelines.run.checkpoints import AtomicCheckpointIO


class Color(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


@dataclasses.dataclass
class Point:
    x: int = 1
    at: Path = Path("a")


Pair = collections.namedtuple("Pair", "a b")
WHEN = datetime.datetime(2026, 1, 2, 3)
ARGUMENTS: list[tuple[Any, Any]] = [
    (Path("a/b"), "a/b"),
    (np.float32(0.5), 0.5),
    (np.int64(3), 3),
    (np.str_("x"), "x"),
    (np.arange(3), [0, 1, 2]),
    (np.dtype("uint8"), "uint8"),
    (Color.RED, "red"),
    (Level.HIGH, 3),
    (Point(), {"x": 1, "at": "a"}),
    (collections.defaultdict(list, a=[1]), {"a": [1]}),
    (collections.Counter("aa"), {"a": 2}),
    (datetime.timedelta(minutes=1), 60.0),
    (WHEN, "2026-01-02T03:00:00"),
    (argparse.Namespace(a=Path("x")), {"a": "x"}),
    (Pair(1, 2), (1, 2)),
    (frozenset({1}), {1}),
    ({"deep": [{"x": (np.float64(1.5),)}]}, {"deep": [{"x": (1.5,)}]}),
    (torch.float16, torch.float16),
    (torch.Size([1, 2]), torch.Size([1, 2])),
]
REFUSED = [functools.partial(int), torch.nn.Linear(1, 1), len, Point, object()]
IO = AtomicCheckpointIO()


@pytest.mark.parametrize(("value", "expected"), ARGUMENTS, ids=lambda value: type(value).__name__)
def test_hyper_parameters_are_read_back(value: Any, expected: Any):
    IO.save_checkpoint({"global_step": 1, "hyper_parameters": {"x": value}}, "a.ckpt")
    found = torch.load("a.ckpt", weights_only=True)["hyper_parameters"]["x"]
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize("value", REFUSED, ids=lambda value: type(value).__name__)
def test_others_are_refused(value: Any):
    with pytest.raises(UserError, match=r"hyper-parameter x\.y is a .*save_hyperparameters\(ignore=\['x'\]\)"):
        IO.save_checkpoint({"hyper_parameters": {"x": {"y": value}}}, "a.ckpt")
    assert not Path("a.ckpt").exists()


@pytest.mark.parametrize("value", [*REFUSED, Color.RED, WHEN, datetime.timedelta(1), np.arange(2), Point()])
def test_a_state_must_come_back_as_it_was(value: Any):
    with pytest.raises(UserError, match=r"The state of Mine holds a .*callbacks\.Mine\{'a': 1\}\.x"):
        IO.save_checkpoint({"callbacks": {"Mine{'a': 1}": {"x": value}}}, "a.ckpt")


def test_weights_are_the_same_objects():
    state = torch.nn.BatchNorm1d(2).state_dict()
    IO.save_checkpoint({"state_dict": state, "callbacks": {"A": {"n": np.float64(2), "p": Path("x")}}}, "a.ckpt")
    found = torch.load("a.ckpt", weights_only=True)
    assert found["state_dict"]._metadata == state._metadata
    assert found["callbacks"] == {"A": {"n": 2.0, "p": "x"}}


class Forgetful(Callback):
    """Its state cannot be read back."""

    def state_dict(self) -> dict[str, Any]:
        return {"when": WHEN}


def test_a_training_that_could_not_be_resumed_does_not_start(capsys: pytest.CaptureFixture[str]):
    flags = ["--data.image_size=28", "--data.in_chans=1", "--trainer.max_epochs=1", "--trainer.wandb.mode=off"]
    flags += ["--model.backbone=lenet5", "--data.num_workers=0", "--trainer.enable_progress_bar=false"]
    words = ["fit", "--model=Classification", "--data=ClassificationData", "--data.source=digits", *flags]
    assert main([*words, "--trainer.accelerator=cpu", f"--trainer.callbacks={__name__}.Forgetful"]) == 1
    assert "The state of Forgetful holds a datetime" in capsys.readouterr().err
    assert not list(Path("runs").rglob("*.ckpt"))
