"""The command line: which words are flags, which errors are for people, and what a command leaves on its Trainer."""

from __future__ import annotations

import errno
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from torch.utils.data import DataLoader, Dataset

from datamodules import ClassificationData, DetectionData
from datamodules.common.errors import UserError
from pipelines import cli
from pipelines.__main__ import main
from pipelines.command import Command, _of_checkpoint
from pipelines.config import mistakes, peers, reasons
from pipelines.config.ready import complete
from pipelines.config.reasons import is_about_arguments, reason_of
from pipelines.config.signatures import arguments_of
from pipelines.config.words import Flag, asks_for_help, config_names, flags, value_of
from pipelines.run.loading import Carried
from pipelines.run.tracking import Wandb, WandbRun
from pipelines.trainer import Trainer
from tasks import Classification, Detection, Segmentation
from tests.conftest import in_child, write_images

CONFIG = """
model:
  class_path: Classification
  init_args: {backbone: test_resnet}
data:
  class_path: ClassificationData
  init_args: {source: pictures, image_size: 32, batch_size: 4, num_workers: 0}
trainer:
  max_steps: 1
  accelerator: cpu
  enable_progress_bar: false
  enable_model_summary: false
  wandb: {mode: "off"}
"""

# Words.


def test_flags_are_known_by_their_whole_names():
    words = [
        "--config",
        "a.yaml",
        "--configs",
        "b",
        "--config=c.yaml",
        "-c",
        "d",
        "alone",
        "--x",
        "--y=1=2",
        "--n",
        "-1",
    ]
    assert config_names(words) == ["a.yaml", "c.yaml", "d"]
    found = {flag.name: flag for flag in flags(words)}
    assert found["--configs"] == Flag("--configs", "b", 2, 2)
    assert found["alone"] == Flag("alone", None, 7, 1)
    assert found["--x"] == Flag("--x", None, 8, 1)
    assert found["--y"].value == "1=2"
    assert found["--n"].value == "-1"
    assert value_of(["--name", "a", "--name=b", "--names", "c"], "--name") == "b"
    assert value_of(["--names", "c"], "--name") is None


def test_help_is_asked_for_by_a_flag_not_by_a_value():
    assert asks_for_help(["--model.help"])
    assert asks_for_help(["--config", "x", "-h"])
    assert not asks_for_help(["--data.source", "pictures.help"])
    assert not asks_for_help(["--name=--help"])


@pytest.mark.parametrize("more", [["--configs", "b"], ["--configs=b"], ["--confi", "b"], ["--configs"]])
def test_what_begins_like_config_is_another_flag(more: list[str], capsys: pytest.CaptureFixture[str]):
    Path("a.yaml").write_text(CONFIG)
    assert main(["fit", "--config", "a.yaml", *more]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert more[0].partition("=")[0] in message
    assert "Traceback" not in message


def test_help_of_a_named_config_is_shown(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as end:
        main(["fit", "--config", "quickstart", "--help"])
    assert end.value.code == 0
    assert "--resume" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict", "probe", "pseudo-label"])
def test_help_has_the_flags_of_each_command(command: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    shown = capsys.readouterr().out
    assert f"usage: python -m pipelines {command}" in shown
    for flag in (
        "--model",
        "--data",
        "--trainer.max_epochs",
        "--name",
        "--runs_dir",
        "--seed_everything",
        "--ckpt_path",
    ):
        assert flag in shown
    assert "--datamodule" not in shown


def test_without_a_seed_it_is_0(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    (tmp_path / "x.yaml").write_text(CONFIG)
    for more, seed in (([], "0"), (["--seed_everything", "7"], "7")):
        with pytest.raises(SystemExit):
            main(["fit", "--config", str(tmp_path / "x.yaml"), "--print_config", *more])
        assert f"seed_everything: {seed}\n" in capsys.readouterr().out


def test_a_checkpoints_name_seed_and_precision_are_taken():
    carried = Carried(Path("x.ckpt"), {}, {}, name="n", seed=3, precision="bf16-mixed")
    words = ["--name=n", "--seed_everything=3", "--trainer.precision=bf16-mixed"]
    assert _of_checkpoint(carried) == words
    assert _of_checkpoint(Carried(Path("x.ckpt"), {}, {}, seed=0)) == ["--seed_everything=0"]


class Told(WandbRun):
    """Notes how it is closed."""

    def __init__(self) -> None:
        self.ends: list[bool] = []

    def finish(self, failed: bool = False) -> None:
        self.ends.append(failed)


def test_a_wandb_run_ends_as_its_command_does():
    def command(trainer: object, model: object, datamodule: object, broken: bool) -> str:
        if broken:
            raise RuntimeError
        return "done"

    told = Told()
    made = SimpleNamespace(
        flags=["broken"],
        config_init={"broken": False},
        command=Command("x", command),
        trainer=SimpleNamespace(loggers=[told]),
        model=None,
        datamodule=None,
    )
    assert cli.CLI.call(made) == "done"  # type: ignore[arg-type]
    made.config_init = {"broken": True}
    with pytest.raises(RuntimeError):
        cli.CLI.call(made)  # type: ignore[arg-type]
    assert told.ends == [False, True]


# Which errors are for people.


class Breaks(Dataset):
    """Raises in a worker process."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> int:
        raise self.error


def in_worker(error: BaseException) -> BaseException:
    with pytest.raises(type(error)) as raised:
        list(DataLoader(Breaks(error), num_workers=1))
    return raised.value


@pytest.fixture
def missing() -> OSError:
    with pytest.raises(OSError, match="No such file") as raised:
        Path("nowhere/image.png").read_bytes()
    return raised.value


def test_only_errors_for_people_have_a_reason(missing: OSError):
    assert reason_of(UserError("data.x is 1; write 2.")) == "data.x is 1; write 2."
    assert reason_of(missing) == "nowhere/image.png: No such file or directory."
    assert reason_of(PermissionError(errno.EACCES, "Permission denied", "/x/y")) == "/x/y: Permission denied."
    assert "No space left" in str(reason_of(OSError(errno.ENOSPC, "No space left on device")))
    for bug in (KeyError("mask"), ValueError("3 values"), TypeError("no"), AssertionError("no"), OSError("odd")):
        assert reason_of(bug) is None


def test_a_missing_file_of_the_program_itself_is_a_bug():
    path = str(reasons.HOUSE / "pipelines" / "nothing.json")
    assert reason_of(FileNotFoundError(errno.ENOENT, "No such file or directory", path)) is None
    library = str(Path(sys.prefix) / "lib" / "nothing.so")
    assert reason_of(FileNotFoundError(errno.ENOENT, "No such file or directory", library)) is None


def test_the_same_holds_in_a_loaders_worker(missing: OSError):
    text = "a.png holds\n  no pixels. Remove it."
    assert reason_of(in_worker(UserError(text))) == text
    assert reason_of(in_worker(missing)) == "nowhere/image.png: No such file or directory."
    assert reason_of(in_worker(ValueError("a bug"))) is None
    with pytest.raises(KeyError) as raised:
        list(DataLoader(Breaks(KeyError("mask")), num_workers=1))
    assert reason_of(raised.value) is None


def test_a_librarys_refusal_of_an_argument_is_for_people_and_our_own_is_not():
    with pytest.raises(ValueError, match="x") as ours:
        raise ValueError("x")
    assert not is_about_arguments(ours.value)
    with pytest.raises(TypeError, match="gradient_clip_val") as theirs:
        Trainer(gradient_clip_val="x", accelerator="cpu")
    assert is_about_arguments(theirs.value)


def broken(*args: object, **kwargs: object) -> None:
    raise ValueError("a bug of ours")


@pytest.mark.parametrize("place", ["constructor", "setup", "training"])
def test_a_bug_of_ours_keeps_its_traceback(place: str, folder, monkeypatch, capsys):
    Path("a.yaml").write_text(CONFIG)
    where = {
        "constructor": (ClassificationData, "__init__"),
        "setup": (ClassificationData, "setup"),
        "training": (Classification, "training_step"),
    }
    if place == "constructor":
        monkeypatch.setattr("datamodules.base.DataModule.__init__", broken)
    else:
        monkeypatch.setattr(*where[place], broken)
    assert main(["fit", "--config", "a.yaml"]) == 1
    shown = capsys.readouterr().err
    assert "Traceback (most recent call last)" in shown
    assert "ValueError: a bug of ours" in shown
    assert "error: a bug" not in shown


# What a command leaves on its Trainer.


def trainer(**arguments) -> Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    return Trainer(accelerator="cpu", devices=1, max_steps=1, wandb=Wandb(mode="off"), **quiet, **arguments)


def parts(folder: Path) -> dict:
    arguments = {"class_names": ["ant", "bee"], "image_size": 32, "batch_size": 4, "num_workers": 0}
    return {
        "model": Classification("test_resnet", num_classes=2, in_chans=3),
        "datamodule": ClassificationData(str(folder), **arguments),
    }


def test_the_callbacks_of_a_command_do_not_outlive_it(folder: Path):
    own = ModelCheckpoint(filename="mine")
    for callbacks in ([], [own]):
        runner = trainer(callbacks=list(callbacks))
        before = list(runner.callbacks)
        runner.fit(**parts(folder))
        assert runner.callbacks == before
        file = str(next((Path("runs/run")).rglob("*.ckpt")))
        runner.validate(**parts(folder), ckpt_path=file)
        runner.test(**parts(folder), ckpt_path=file)
        runner.predict(**parts(folder), ckpt_path=file, source=str(folder / "val"))
        assert runner.callbacks == before
        assert own.dirpath is None


def test_test_and_predict_of_one_trainer_write_their_own_tables(folder: Path):
    runner = trainer()
    last = str(runner.fit(**parts(folder)) / "checkpoints" / "last.ckpt")
    runner.test(**parts(folder), ckpt_path=last)
    tested = runner.run_dir
    table = (tested / "predictions.csv").read_text()
    assert json.loads((tested / "test.json").read_text())
    written = runner.predict(**parts(folder), ckpt_path=last, source=str(folder / "val" / "ant"))
    assert written != tested
    assert (tested / "predictions.csv").read_text() == table
    assert len((written / "predictions.csv").read_text().splitlines()) == 1 + 3


class Stop(Callback):
    """Raises in the first batch, whatever runs."""

    def on_train_batch_start(self, *args: object) -> None:
        raise RuntimeError("stop")

    on_test_batch_start = on_predict_batch_start = on_validation_batch_start = on_train_batch_start


def test_the_callbacks_of_a_command_that_raises_do_not_outlive_it(folder: Path):
    run = trainer().fit(**parts(folder))
    last = str(run / "checkpoints" / "last.ckpt")
    runner = trainer(callbacks=[Stop()], num_sanity_val_steps=0)
    before = list(runner.callbacks)
    with pytest.raises(RuntimeError, match="stop"):
        runner.fit(**parts(folder))
    assert runner.callbacks == before
    for command in (runner.validate, runner.test, runner.predict):
        with pytest.raises(RuntimeError, match="stop"):
            command(**parts(folder), ckpt_path=last)
        assert runner.callbacks == before


# Functions as commands.


def count(
    trainer: Trainer, model: torch.nn.Module, datamodule: ClassificationData, ckpt_path: str, times: int = 2
) -> int:
    """Count something.

    Args:
        trainer: Where to run.
        model: The task.
        datamodule: The data.
        ckpt_path: The checkpoint.
        times: How often.
    """
    return times * len(datamodule.class_names or ())


def test_a_plain_function_is_a_command_and_returns_its_result(folder: Path, capsys: pytest.CaptureFixture[str]):
    write_images(Path("pictures"), {"test/ant": 1}, seed=1)
    Path("a.yaml").write_text(CONFIG)
    assert in_child(lambda: main(["fit", "--config", "a.yaml"])) == 0
    command = Command("count", count)
    words = ["--ckpt_path", "runs/a/0/checkpoints/last.ckpt", "--times", "3", "--trainer.accelerator=cpu"]
    assert cli.run(command, words) == 6
    assert cli.execute(command, [*words, "--timess=3"]) == 2
    assert "unknown flag --timess; did you mean --times?" in capsys.readouterr().err
    for wrong, message in (
        ("--data.batchsize=3", "unknown flag --data.batchsize; did you mean --data.batch_size?"),
        ("--data.batch_size=x", "--data.batch_size is 'x'; it must be a whole number or auto or null."),
        ("--model.optim.lrr=1", "unknown flag --model.optim.lrr; did you mean --model.optim.lr?"),
        ("--model=Classificatio", "--model names an unknown task 'Classificatio'; did you mean Classification?"),
        ("--data.batch_size", "--data.batch_size needs a value"),
        ("--trainer.max_epoch=3", "unknown flag --trainer.max_epoch; did you mean --trainer.max_epochs?"),
    ):
        assert cli.execute(command, [*words, wrong]) == 2, wrong
        assert message in capsys.readouterr().err
    assert cli.execute(command, ["--times", "3"]) == 2
    assert "count needs to know which model" in capsys.readouterr().err


def test_runs_of_ready_configs_and_of_files_in_folders_have_names_of_their_own(tmp_path):
    for file in ("birds.yaml", "c/birds.yaml", "d/birds.yaml"):
        Path(file).parent.mkdir(exist_ok=True)
        Path(file).write_text("{}")
    given = ["quickstart", "classification/folder", "detection/folder", "birds.yaml", "c/birds.yaml", "d/birds.yaml"]
    named = ["quickstart", "classification-folder", "detection-folder", "birds", "c-birds", "d-birds"]
    assert [complete(["fit", "--config", name])[-1] for name in given] == named
    assert complete(["fit", "--config", str(tmp_path / "c/birds.yaml")])[-1] == "c-birds"


def test_what_other_tools_words_mean_exists_here():
    parts = {"model": [Classification, Detection, Segmentation], "data": [ClassificationData, DetectionData]}
    found = {"box_formats", "ckpt_path", "name", "runs_dir", "seed_everything"}
    for part, classes in {**parts, "trainer": [Trainer]}.items():
        found |= {".".join(map(str, keys)) for cls in classes for keys in _all_keys(arguments_of(cls), (part,))}
    assert set(peers.WORDS) <= found
    assert peers.key_of("img-size") == peers.key_of("IMGSZ") == "data.image_size"


def _all_keys(arguments, above):
    return mistakes._all_keys(arguments, mistakes.Context({}, {}), above)
