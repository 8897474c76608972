"""Row 18: a hung rank is named; what ends one rank ends all, and one of them speaks."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from pytorch_lightning.callbacks import Callback

from datamodules.common.errors import UserError
from pipelines.__main__ import main
from pipelines.run import standing
from pipelines.run.standing import Standing, late
from tests.conftest import write_images
from tests.pipelines.test_ranks import CONFIG
from tests.ranks import in_ranks, torchrun_environment

COUNTS = {"train/a": 8, "train/b": 8, "val/a": 2, "val/b": 2}
TWO = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--trainer.max_epochs", "1"]


class Sleep(Callback):
    """Rank 1 sleeps behind its second batch."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_rank == 1 and batch_idx == 1:
            time.sleep(120)


class Refuse(Callback):
    """Rank 1 fails behind its second batch."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_rank == 1 and batch_idx == 1:
            raise UserError("no more")


def by_hand(rank: int, world_size: int, port: int) -> dict[str, str]:
    """Ranks that no launcher gives a store; the next port is almost always free."""
    names = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port + 1), "WORLD_SIZE": str(world_size)}
    return {**names, "NODE_RANK": "0", "RANK": str(rank), "LOCAL_RANK": str(rank)}


def write_config(directory: Path) -> Path:
    path = directory / "config.yaml"
    path.write_text(CONFIG.format(source=write_images(directory / "pictures", COUNTS, (32, 32))))
    return path


def test_a_hung_rank_is_named_within_its_time_out(tmp_path, capfd):
    flags = ["--config", str(write_config(tmp_path)), *TWO, f"--trainer.callbacks={__name__}.Sleep"]
    began = time.monotonic()
    assert in_ranks(lambda: main(["fit", *flags, "--trainer.rank_timeout", "3"])) == [1, 1]
    said = capfd.readouterr().err
    assert said.count("error: ") == 1
    assert "error: rank 1 (" in said
    assert "test_hung_ranks.py" in said
    assert "trainer.rank_timeout (3)" in said
    assert "note: rank 1 stood here:" in said
    assert time.monotonic() - began < 40


@pytest.mark.slow
def test_work_of_one_rank_alone_is_no_hang(tmp_path, monkeypatch, capfd):
    """Rank 0 draws for longer than the time-out, with the other one waiting at its next collective."""
    monkeypatch.setattr("pipelines.callbacks.curves.Curves._draw", lambda self, trainer, module: time.sleep(4))
    flags = ["--config", str(write_config(tmp_path)), *TWO, "--trainer.max_epochs", "2"]
    assert in_ranks(lambda: main(["fit", *flags, "--trainer.rank_timeout", "1"])) == [0, 0]
    assert "error" not in capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(("bad", "environment"), [(0, torchrun_environment), (1, torchrun_environment), (0, by_hand)])
def test_what_one_rank_refuses_ends_all_and_is_said_once(tmp_path, capfd, bad, environment):
    """The other one has come to the process group already, or is still on its way there."""
    config = write_config(tmp_path)
    lone = write_images(tmp_path / "lone", COUNTS, (32, 32))
    (lone / "train" / "a" / "000.jpg").write_bytes(b"no image")

    def work() -> int:
        mine = ["--data.source", str(lone)] if int(os.environ["RANK"]) == bad else []
        return main(["fit", "--config", str(config), *TWO, *mine])

    assert in_ranks(work, environment=environment) == [1, 1]
    said = capfd.readouterr().err
    assert said.count("error: ") == 1
    assert f"error: {'rank 1: ' if bad else ''}1 image file(s) cannot be read:" in said
    assert "lone/train/a/000.jpg" in said
    assert "Traceback" not in said


@pytest.mark.slow
def test_ranks_that_see_different_images_are_named(tmp_path, capfd):
    config = write_config(tmp_path)
    lone = write_images(tmp_path / "lone", {**COUNTS, "train/b": 7}, (32, 32))

    def work() -> int:
        mine = ["--data.source", str(lone)] if os.environ["RANK"] == "1" else []
        return main(["fit", "--config", str(config), *TWO, *mine])

    assert in_ranks(work) == [1, 1]
    said = capfd.readouterr().err
    assert said.count("error: ") == 1
    assert said.count("The ranks see different images:") == 1
    assert ": train 16, val 4" in said
    assert ": train 15, val 4" in said
    assert "Traceback" not in said


@pytest.mark.slow
def test_a_rank_that_fails_in_training_speaks_alone(tmp_path, capfd):
    """The other one's error, a lost connection, is none of its own."""
    config = write_config(tmp_path)
    flags = [*TWO, f"--trainer.callbacks={__name__}.Refuse"]
    assert in_ranks(lambda: main(["fit", "--config", str(config), *flags])) == [1, 1]
    said = capfd.readouterr().err
    assert said.count("error: ") == 1
    assert "error: rank 1: no more" in said
    assert "Traceback" not in said


def told(doing: standing.Doing, seconds: float = 10.0) -> Standing:
    return Standing("node", 7, doing, "a.py:1 (f)", seconds, 3)


def test_which_rank_is_late():
    assert late({1: told("works", 10)}, {}, 5) == {
        1: "rank 1 (node, process 7) hangs: for 10 s it has stood at a.py:1 (f)"
    }
    assert late({1: told("works", 4)}, {}, 5) == {}
    assert late({1: told("works alone", 1000)}, {}, 5) == {}
    assert list(late({1: told("works alone", 2000)}, {}, 5)) == [1]
    assert list(late({1: None, 2: told("waits")}, {}, 5)) == [1]
    assert list(late({1: told("works", 0), 2: told("waits")}, {1: 6.0}, 5)) == [1], "it tells nothing any more"
    assert late({1: told("ended")}, {}, 5) == {1: "rank 1 (node, process 7) has ended"}
    assert list(late({1: told("waits"), 2: told("waits")}, {}, 5)) == [1, 2], "all wait for each other"
    assert late({1: told("waits"), 2: told("backward")}, {}, 5) == {}, "it may compute"
    assert late({1: told("waits", 3)}, {}, 5) == {}
    assert late({1: told("works", 0), 2: None}, {}, 5) == {}, "one that works comes first"
