"""The callbacks of every run, without training: best and last checkpoint, the run's files, the progress bar."""

from __future__ import annotations

import io
import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint, Timer
from pytorch_lightning.utilities.exceptions import SIGTERMException

from pipelines.callbacks import checkpoints, curves, progress
from pipelines.callbacks.checkpoints import KeepBest, SaveLast
from pipelines.callbacks.ending import why_stopped
from pipelines.callbacks.progress import ProgressBar
from pipelines.callbacks.run_files import RunFiles
from pipelines.outputs.curves import best_row, read_rows
from pipelines.run.checkpoints import TRIAL

# Checkpoints.


@pytest.mark.parametrize("mode", ["max", "min"])
def test_of_two_equal_models_the_later_one_is_kept(mode: str) -> None:
    best = KeepBest(monitor="m", mode=mode, save_top_k=1)
    strategy = SimpleNamespace(reduce_boolean_decision=lambda value, **_: bool(value))
    trainer: Any = SimpleNamespace(strategy=strategy, lightning_module=None)
    assert best.check_monitor_top_k(trainer, torch.tensor(0.5))  # the first one
    best.best_model_score = torch.tensor(0.5)
    best.best_k_models = {"first": torch.tensor(0.5)}
    best.kth_best_model_path = "first"
    assert best.check_monitor_top_k(trainer, torch.tensor(0.5))
    assert best.check_monitor_top_k(trainer, torch.tensor(0.6)) is (mode == "max")
    assert best.check_monitor_top_k(trainer, torch.tensor(0.4)) is (mode == "min")
    assert not best.check_monitor_top_k(trainer, torch.tensor(float("nan")))  # undefined is never best


@pytest.fixture(autouse=True)
def _own_handlers() -> Iterator[None]:
    """What SaveLast does with signals ends with the test."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


class Clock:
    """Stands for the module ``time``."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


class Training:
    """As much of a trainer as SaveLast asks for; notes the step of each checkpoint."""

    log_every_n_steps = 5
    fit_loop = SimpleNamespace(_data_fetcher=None)  # no validation inside an epoch

    def __init__(self, world_size: int = 1, asked_elsewhere: bool = False) -> None:
        self.global_step, self.is_last_batch, self.world_size = 0, False, world_size
        self.saved: list[int] = []
        self.fit_loop = SimpleNamespace(_data_fetcher=None)  # no validation inside the epoch
        self.strategy = SimpleNamespace(
            broadcast=lambda value: value,
            reduce_boolean_decision=lambda value, all: (value and asked_elsewhere) if all else value or asked_elsewhere,
        )

    def save_checkpoint(self, path: Path) -> None:
        if path == TRIAL:
            return
        assert path == Path("run/last.ckpt")
        self.saved.append(self.global_step)

    def run(self, callback: SaveLast, batches: int, accumulate: int = 1, asked: int | None = None) -> None:
        callback.on_train_start(self, None)  # type: ignore[arg-type]
        if asked is not None:
            signal.getsignal(asked)(asked, None)  # type: ignore[operator]
        start = self.global_step
        for batch in range(1, batches + 1):
            self.global_step = start + batch // accumulate
            self.is_last_batch = batch == batches
            callback.on_train_batch_end(self, None, None, None, batch)  # type: ignore[arg-type]
        callback.on_train_epoch_end(self, None)  # type: ignore[arg-type]


def test_last_is_saved_after_complete_steps_and_at_the_end_of_an_epoch() -> None:
    training = Training()
    training.run(SaveLast(Path("run"), 0, 3), 12, accumulate=2)
    assert training.saved == [3, 6]  # not behind the first batch, which completed no step
    training = Training()
    training.global_step = 6  # resumed
    training.run(SaveLast(Path("run"), 0, 3), 9, accumulate=2)
    assert training.saved == [9, 10]
    training = Training()
    training.run(SaveLast(Path("run"), 0, None), 4)
    assert training.saved == [4]


def test_last_is_saved_when_the_minutes_are_over(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(checkpoints, "time", clock)
    training, callback = Training(), SaveLast(Path("run"), 2.0, None)
    for step, seconds in ((4, 130), (5, 119), (10, 120), (15, 200), (20, 241)):
        clock.now, training.global_step = seconds, step
        callback.on_train_batch_end(training, None, None, None, step)  # type: ignore[arg-type]
    assert training.saved == [10, 20]  # at 120 and 241 seconds; step 4 is not asked


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_saves_after_the_next_step_and_ends_with_its_number(number: signal.Signals) -> None:
    training, callback = Training(), SaveLast(Path("run"), 0, None)
    with pytest.raises(SIGTERMException) as stopped:
        training.run(callback, 4, accumulate=2, asked=number)
    assert stopped.value.args == (128 + number,)
    assert training.saved == [1]


def test_a_signal_to_another_rank_counts_too() -> None:
    training = Training(world_size=2, asked_elsewhere=True)
    with pytest.raises(SIGTERMException) as stopped:
        training.run(SaveLast(Path("run"), 0, None), 1)
    assert stopped.value.args == (128 + signal.SIGTERM,)
    assert training.saved == [1]
    training = Training(world_size=2)
    training.run(SaveLast(Path("run"), 0, None), 2)
    assert training.saved == [2]


# The run's files.


def trainer_of(fn: str = "fit", rank: int = 0, **rest: Any) -> Any:
    metrics = SimpleNamespace(per_class=lambda: {"iou": [0.5, None]})
    return SimpleNamespace(
        loggers=[],
        is_global_zero=rank == 0,
        state=SimpleNamespace(fn=fn),
        strategy=SimpleNamespace(broadcast=lambda value: value),
        callback_metrics={"test/b": torch.tensor(0.25), "test/a": torch.tensor(float("nan"))},
        lightning_module=SimpleNamespace(taught=SimpleNamespace(eval_metrics=metrics)),
        datamodule=SimpleNamespace(class_names=["x", "y"]),
        **rest,
    )


def test_results_are_written_by_rank_0_of_the_command_they_belong_to(tmp_path: Path) -> None:
    files, module = RunFiles(tmp_path, None), SimpleNamespace()
    files.on_validation_end(trainer_of("fit"), module)  # type: ignore[arg-type]
    files.on_test_end(trainer_of("test", rank=1), module)  # type: ignore[arg-type]
    RunFiles(None, None).on_test_end(trainer_of("test"), module)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []
    files.on_validation_end(trainer_of("validate"), module)  # type: ignore[arg-type]
    files.on_test_end(trainer_of("test"), module)  # type: ignore[arg-type]
    expected = {"test/a": None, "test/b": 0.25, "per_class": {"class": ["x", "y"], "iou": [0.5, None]}}
    for name in ("validate.json", "test.json"):
        assert json.loads((tmp_path / name).read_text()) == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == ["test.json", "validate.json"]


def test_a_checkpoint_gets_the_config_as_text() -> None:
    checkpoint: dict[str, Any] = {}
    RunFiles(None, None).on_save_checkpoint(trainer_of(), None, checkpoint)  # type: ignore[arg-type]
    assert checkpoint == {}
    config = {"b": 1, "a": "é"}
    RunFiles(None, config).on_save_checkpoint(trainer_of(), None, checkpoint)  # type: ignore[arg-type]
    assert checkpoint["config"] == "b: 1\na: é\n"
    assert yaml.safe_load(checkpoint["config"]) == config


def test_all_ranks_are_told_rank_0s_directory(tmp_path: Path) -> None:
    trainer = trainer_of()
    trainer.strategy.broadcast = lambda value: str(tmp_path)
    files = RunFiles(None, None)
    files.setup(trainer, None, "fit")  # type: ignore[arg-type]
    assert files.directory == tmp_path


def test_the_summary_says_why_it_ended_what_was_reached_and_what_comes_next(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["pipelines/__main__.py"])
    run = tmp_path / "my runs"
    (run / "checkpoints").mkdir(parents=True)
    for name in ("best", "last"):
        (run / "checkpoints" / f"{name}.ckpt").touch()
    values = ("39,0,2.0,,", "39,0,,0.75,0.5", "79,1,,0.75,0.4", "119,2,,0.5,nan")
    (run / "metrics.csv").write_text("\n".join(["step,epoch,train/loss,val/accuracy,val/auc", *values, ""]))
    trainer = trainer_of(current_epoch=3, global_step=120, callbacks=[], should_stop=False, max_steps=-1, max_epochs=3)
    trainer.lightning_module.taught.monitor, trainer.lightning_module.taught.mode = "val/accuracy", "max"
    trainer.datamodule.records = {"test": [{}]}
    files = RunFiles(run, {"model": {"class_path": "mine.Task"}})
    files._started -= 90
    files.summary(trainer)
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.strip().splitlines()]
    best, last = (f"{run}/checkpoints/{name}.ckpt" for name in ("best", "last"))
    program = "python -m pipelines"
    assert lines == [
        "trained 3 epochs, 120 steps, 1:30; trainer.max_epochs (3) is reached",
        "reached best (epoch 2) last (epoch 3)",  # of equal ones the later one
        "val/accuracy 0.7500 0.5000",
        "val/auc 0.4000 undefined",
        f"checkpoints {best}",
        last,
        f"run {run}",
        f"next {program} test --ckpt_path '{best}' --trust mine",
        f"{program} predict --ckpt_path '{best}' --source PICTURES --trust mine",
    ]
    trainer.state.fn = "fit"
    files.on_exception(trainer, None, SIGTERMException(128 + signal.SIGINT))  # type: ignore[arg-type]
    said = " ".join(capsys.readouterr().out.split())
    assert "stopped by Ctrl-C" in said
    assert f"go on {program} fit --config '{run}/config.yaml' --resume '{run}'" in said
    (tmp_path / "started.json").touch()  # a stage of noisy student, which gives the commands itself
    files.summary(trainer)
    assert "next" not in capsys.readouterr().out


def test_why_a_training_ended() -> None:
    early = EarlyStopping("val/loss")
    early.stopping_reason_message = "Monitored metric val/loss did not improve in the last 3 records. Best score: 1."
    base = {"should_stop": True, "max_steps": -1, "max_epochs": 5, "global_step": 7, "callbacks": []}

    def why(exception: BaseException | None = None, **changed: Any) -> str:
        return why_stopped(SimpleNamespace(**{**base, **changed}), exception)

    assert why(callbacks=[early]) == "early stopping: monitored metric val/loss did not improve in the last 3 records"
    timer = Timer(duration="00:00:00:01")
    timer._offset = 2.0  # type: ignore[attr-defined]
    assert why(callbacks=[timer]) == "trainer.max_time is over"
    assert why() == "a callback asked to stop"
    assert why(should_stop=False, max_steps=7) == "trainer.max_steps (7) is reached"
    assert why(should_stop=False) == "trainer.max_epochs (5) is reached"
    assert why(KeyboardInterrupt()) == "stopped by Ctrl-C"
    assert why(SIGTERMException(143)) == "stopped by SIGTERM"


def test_ctrl_c_saves_behind_the_step_and_the_second_one_ends_at_once() -> None:
    training, callback = Training(), SaveLast(Path("run"), 0, None)
    with pytest.raises(SIGTERMException) as stopped:
        training.run(callback, 4, asked=signal.SIGINT)
    assert stopped.value.args == (130,)
    assert training.saved == [1]
    with pytest.raises(KeyboardInterrupt):
        callback._note(signal.SIGINT, None)
    callback.on_train_start(training, None)  # type: ignore[arg-type]
    callback.on_validation_start(training, None)  # type: ignore[arg-type]
    with pytest.raises(KeyboardInterrupt):
        callback._note(signal.SIGINT, None)


def test_results_of_older_weights_are_set_aside_once_a_run_goes_on(tmp_path: Path) -> None:
    for name in ("test.json", "metrics.csv", "pictures/test_panels.png", "pictures/val_panels.png", "predict/x.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    files = RunFiles(tmp_path, None)
    for resumed in (False, True):
        files.is_resumed = resumed
        files.on_train_batch_start(trainer_of(), None, {}, 0)  # type: ignore[arg-type]
        assert (tmp_path / "test.json").exists() is not resumed
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    older = [f"older_results/{name}" for name in ("predict/x.png", "test.json", "test_panels.png")]
    assert left == ["metrics.csv", *older, "pictures/val_panels.png"]


def test_curves_are_drawn_from_the_metrics_as_often_as_time_allows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(curves, "curves_figure", lambda *arguments: drawn.append(arguments))
    monkeypatch.setattr(curves, "save_png", lambda picture, path: path)
    clock = Clock()
    monkeypatch.setattr(curves, "time", clock)
    trainer = trainer_of(num_training_batches=4, accumulate_grad_batches=2)
    module: Any = SimpleNamespace(taught=SimpleNamespace(monitor="val/f1", mode="max"))
    watcher = curves.Curves(tmp_path)
    watcher.on_train_epoch_end(trainer, module)
    (tmp_path / "metrics.csv").write_text("step,epoch,train/loss,val/f1\n1,0,2.0,0.5\n3,1,nan,0.75\n")
    rows = read_rows(tmp_path / "metrics.csv")
    assert rows == [
        {"step": 1, "epoch": 0, "train/loss": 2.0, "val/f1": 0.5},
        {"step": 3, "epoch": 1, "val/f1": 0.75},
    ]
    watcher.on_train_epoch_end(trainer, module)
    assert drawn == [(rows, "val/f1", "max", 2)]
    clock.now, watcher._next = 5, 10  # drawing took long
    watcher.on_train_epoch_end(trainer, module)
    assert len(drawn) == 1
    watcher.on_train_end(trainer, module)
    assert len(drawn) == 2
    assert best_row([*rows, {"step": 5, "val/f1": 0.75}, {"step": 7}], "val/f1", "max") == {"step": 5, "val/f1": 0.75}


# What is seen while a command runs.


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("is_terminal", [True, False])
def test_progress(is_terminal: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    screen = Terminal() if is_terminal else io.StringIO()
    monkeypatch.setattr(progress.sys, "stderr", screen)
    monkeypatch.setattr(progress, "REFRESH_SECONDS", 0.0)
    best = ModelCheckpoint(monitor="val/accuracy", mode="max")
    best.best_model_score = torch.tensor(0.5)
    trainer: Any = SimpleNamespace(
        global_step=0,
        current_epoch=1,
        max_epochs=3,
        world_size=2,
        num_training_batches=4,
        num_val_batches=[2],
        estimated_stepping_batches=12,
        callback_metrics={},
        checkpoint_callbacks=[best],
        sanity_checking=False,
        state=SimpleNamespace(fn="fit"),
    )
    module: Any = SimpleNamespace(recent_loss=lambda: 0.25, taught=SimpleNamespace(monitor="val/accuracy", mode="max"))
    bar, half = ProgressBar(), {"image": torch.zeros(3, 1)}
    bar.on_train_start(trainer, module)
    bar.on_train_epoch_start(trainer, module)
    for batch in range(4):
        trainer.global_step += 1
        bar.on_train_batch_end(trainer, module, None, {"labeled": half, "unlabeled": half}, batch)
    bar.on_validation_start(trainer, module)
    bar.on_validation_batch_end(trainer, module, None, half, 0)
    trainer.callback_metrics = {"val/accuracy": torch.tensor(0.75)}
    bar.on_validation_end(trainer, module)
    bar.on_train_epoch_end(trainer, module)
    assert bar._train.images == 4 * 6 * 2
    left = capsys.readouterr().out
    assert re.fullmatch(r"epoch 2/3  loss 0\.25  val/accuracy 0\.7500 \(best\)  [\d,.e+]+ images/s  0:00 left\n", left)
    if not is_terminal:
        assert screen.getvalue() == ""
        return
    drawn = screen.getvalue().split("\r")
    assert drawn[1].startswith("epoch 2/3  [====            ]  25%  loss 0.25  ")
    assert "validation  [========        ]  50%  1 of 2 batches" in drawn[5]
    assert drawn[6] == "\x1b[K"  # taken away before the epoch's own line


def test_durations() -> None:
    assert [progress.duration(seconds) for seconds in (0.4, 65, 7265)] == ["0:00", "1:05", "2:01:05"]
