"""The callbacks of every run, without training: best and last checkpoint, the run's files, the progress bar."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from pytorch_lightning.callbacks import ModelCheckpoint, TQDMProgressBar
from pytorch_lightning.utilities.exceptions import SIGTERMException

from pipelines.callbacks import checkpoints
from pipelines.callbacks.checkpoints import KeepBest, SaveLast
from pipelines.callbacks.progress import ProgressBar
from pipelines.callbacks.run_files import RunFiles
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


@pytest.fixture(autouse=True)
def _own_handlers() -> Iterator[None]:
    """What SaveLast does with signals ends with the test."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
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


def test_the_summary_says_what_was_reached_and_what_to_use_next(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "checkpoints").mkdir()
    for name in ("best", "last"):
        (tmp_path / "checkpoints" / f"{name}.ckpt").touch()
    best = ModelCheckpoint(monitor="val/accuracy")
    best.best_model_score = torch.tensor(0.75)
    trainer = trainer_of(current_epoch=3, global_step=120, checkpoint_callbacks=[ModelCheckpoint(), best])
    trainer.callback_metrics = {"val/accuracy": torch.tensor(0.5)}
    files = RunFiles(tmp_path, None)
    files._started -= 90
    files.summary(trainer)
    rows = dict(line.strip().split("  ", 1) for line in capsys.readouterr().out.strip().splitlines())
    folder = tmp_path / "checkpoints"
    assert {name: value.strip() for name, value in rows.items()} == {
        "trained": "3 epochs, 120 steps, 1.5 min",
        "best val/accuracy": "0.7500",
        "last val/accuracy": "0.5000",
        "best checkpoint": f"{folder}/best.ckpt",
        "last checkpoint": f"{folder}/last.ckpt",
        "run directory": str(tmp_path),
        "use it": f"python -m pipelines predict --ckpt_path {folder}/best.ckpt --source IMAGES",
    }


def test_the_progress_bar_has_no_version_number(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = {"v_num": 3, "val/accuracy": 0.5}
    monkeypatch.setattr(TQDMProgressBar, "get_metrics", lambda *args: dict(shown))
    assert ProgressBar().get_metrics(None, None) == {"val/accuracy": 0.5}  # type: ignore[arg-type]
