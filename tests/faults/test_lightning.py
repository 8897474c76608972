"""Every callback and argument of Lightning works or is refused by name, as docs/lightning.md says."""

from __future__ import annotations

import functools
import inspect
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping, LambdaCallback, LearningRateMonitor, ModelCheckpoint, Timer
from pytorch_lightning.strategies import DDPStrategy, ModelParallelStrategy, StrategyRegistry

from datamodules.common.errors import UserError
from pipelines.__main__ import main
from pipelines.advice import shared_memory_doubts, with_advice
from pipelines.lightning_parts import CALLBACKS, SETTINGS, check_parts, keep_patience, stopped_early
from pipelines.run.directory import newest_config, wandb_id, write_config
from pipelines.run.environment import write_environment
from pipelines.trainer import Trainer
from tests.conftest import in_child
from tests.ranks import in_ranks

PAGE = (Path(__file__).parents[2] / "docs" / "lightning.md").read_text()


def rows(table: int) -> dict[str, str]:
    """Each name of a table, and what is said of it."""
    text = PAGE.split("| --- | --- |")[table + 1].split("\n\n")[0]
    lines = [line.strip("| ").split(" | ") for line in text.strip().splitlines()]
    return {name: says for names, says in lines for name in re.findall(r"`(\w+)`", names)}


def test_the_page_has_all_callbacks():
    said = rows(0)
    assert set(said) == set(pl.callbacks.__all__)
    assert {name for name, says in said.items() if says.startswith("refused")} == set(CALLBACKS)


def test_the_page_has_all_arguments():
    said = rows(1)
    assert set(said) == set(inspect.signature(pl.Trainer.__init__).parameters) - {"self"}
    refused = {name for name, says in said.items() if says.startswith("refused")}
    assert refused == {*SETTINGS, "use_distributed_sampler"}


@pytest.mark.parametrize("name", sorted(CALLBACKS))
def test_what_is_refused_is_refused_with_subclasses(name: str):
    cls = getattr(pl.callbacks, name)
    own = type("Own", (cls,), {"__abstractmethods__": frozenset()})
    with pytest.raises(UserError, match=r"trainer\.callbacks: \w+ does not work here: .+"):
        check_parts([own.__new__(own)], "auto", {})


WORKING = {"single_device", "ddp", "ddp_find_unused_parameters_false", "ddp_find_unused_parameters_true"}


def test_strategies():
    """Each of Lightning's works, which is shown below, or is refused by name."""
    assert {name for name in re.findall(r"`(\w+)`", PAGE) if name in WORKING} == WORKING
    for name in StrategyRegistry.available_strategies():
        if name in WORKING:
            check_parts([], name, {})
            continue
        with pytest.raises(UserError, match=rf"trainer\.strategy is {name}, which does not work here"):
            Trainer(accelerator="cpu", strategy=name)
        assert re.search(rf"`{re.sub('_(find|offload|stage|cpu).*', '', name)}\w*`.* refused: ", PAGE), name
    check_parts([], DDPStrategy(), {"overfit_batches": 1})
    for own in (DDPStrategy(start_method="fork"), ModelParallelStrategy()):
        with pytest.raises(UserError, match=r"trainer\.strategy is .*, which does not work here"):
            check_parts([], own, {})


@pytest.mark.slow
@pytest.mark.parametrize("strategy", sorted(WORKING))
def test_a_strategy_that_works_trains(strategy: str):
    ranks = 1 if strategy == "single_device" else 2
    words = ["fit", "--model=Classification", "--model.backbone=lenet5", "--data=ClassificationData"]
    words += ["--data.source=digits", "--data.image_size=28", "--data.in_chans=1", "--data.num_workers=0"]
    words += ["--trainer.accelerator=cpu", f"--trainer.devices={ranks}", "--trainer.max_steps=2", "--name=x"]
    words += ["--trainer.wandb.mode=off"] + ([] if ranks == 1 else [f"--trainer.strategy={strategy}"])
    work = functools.partial(main, words)
    assert (in_ranks(work) if ranks == 2 else [in_child(work)]) == [0] * ranks
    assert torch.load("runs/x/0/checkpoints/last.ckpt", weights_only=True)["global_step"] == 2


def test_settings():
    with pytest.raises(UserError, match=r"trainer\.reload_dataloaders_every_n_epochs is 1, which does not work"):
        Trainer(accelerator="cpu", reload_dataloaders_every_n_epochs=1)
    for own in (ModelCheckpoint(save_last=True), ModelCheckpoint(filename="best")):
        with pytest.raises(UserError, match=r"ModelCheckpoint\.\w+ is .+ (always|anyway)"):
            Trainer(accelerator="cpu", callbacks=[own])
    stops = EarlyStopping("train/loss", check_on_train_epoch_end=True)
    with pytest.raises(UserError, match=r"check_on_train_epoch_end is true, .*check_val_every_n_epoch 2"):
        Trainer(accelerator="cpu", callbacks=[stops], check_val_every_n_epoch=2)
    assert Trainer(accelerator="cpu", callbacks=[stops]).adds_checkpoints
    own = [ModelCheckpoint(filename="e{epoch}"), LearningRateMonitor(), Timer(), LambdaCallback()]
    assert Trainer(accelerator="cpu", callbacks=own).adds_checkpoints


def stopped(**changed: int) -> dict[str, Any]:
    return {"stopped_epoch": 3, "wait_count": 2, "patience": 2, "best_score": torch.tensor(0.5), **changed}


def test_a_run_that_stopped_early_is_done_until_its_patience_is_greater():
    callback = EarlyStopping("val/loss", patience=2)
    key = callback.state_key
    assert "stopped early, in epoch 3" in str(stopped_early({key: stopped()}, [callback]))
    assert stopped_early({key: stopped(stopped_epoch=0)}, [callback]) is None
    assert stopped_early({key: stopped()}, [EarlyStopping("val/loss", patience=5)]) is None
    assert stopped_early({key: stopped(wait_count=0)}, [EarlyStopping("val/loss", patience=5)]), "at a threshold"
    longer = EarlyStopping("val/loss", patience=5)
    keep_patience([longer])
    longer.load_state_dict(stopped())
    assert (longer.patience, longer.wait_count) == (5, 2)


DATA = SimpleNamespace(batch_size=8, image_size=[64, 64], num_workers=4)
ERRORS = [
    (torch.OutOfMemoryError("CUDA out of memory. Tried"), "batch_size to 4 with trainer.accumulate_grad_batches 4"),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "data.batch_size 8 and data.image_size"),
    (ValueError("Expected more than 1 value per channel when training, got"), "model.freeze_norm: true"),
    (RuntimeError("DataLoader worker (pid(s) 12) exited unexpectedly"), "lower data.num_workers (4)"),
    (RuntimeError("DataLoader worker (pid 12) is killed by signal: Bus error. It"), "no room in /dev/shm"),
    (RuntimeError("DataLoader timed out after 300 seconds"), "no batch came for 300 seconds"),
    (OSError(24, "Too many open files"), "ulimit -n"),
    (EOFError(), "ulimit -n"),
]  # fmt: skip


@pytest.mark.parametrize(("error", "advice"), ERRORS, ids=lambda value: str(value)[:30])
def test_errors_of_libraries_say_what_to_set(error: Exception, advice: str):
    """Rows 25 to 28 and cases 05 and 07."""
    with (
        pytest.raises(UserError, match=re.escape(advice)),
        with_advice(SimpleNamespace(accumulate_grad_batches=2), DATA),
    ):
        raise error


def test_a_small_shared_memory_is_told_before(monkeypatch: pytest.MonkeyPatch):
    """Row 28."""
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=64 * 2**20))
    assert shared_memory_doubts(DATA) == []
    large = SimpleNamespace(batch_size=64, image_size=224, num_workers=8)
    assert "has 64 MiB free, but 8 loader processes hold about 294 MiB" in shared_memory_doubts(large)[0]
    assert shared_memory_doubts(SimpleNamespace(batch_size=64, image_size=224, num_workers=0)) == []


def test_other_errors_stay_as_they_are():
    for error in (RuntimeError("boom"), UserError("mine"), KeyError("x")):
        with pytest.raises(type(error), match=str(error)), with_advice(None, DATA):
            raise error


def test_small_files_of_a_run_never_stop_a_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WANDB_SWEEP_ID", "s")
    monkeypatch.setenv("WANDB_RUN_ID", "agent001")
    assert wandb_id(tmp_path) == "agent001"
    monkeypatch.delenv("WANDB_SWEEP_ID")
    assert wandb_id(tmp_path) == "agent001"
    (tmp_path / "wandb_id.txt").write_bytes(b"\xff\x00 \n")
    assert re.fullmatch(r"[0-9a-f]{8}", wandb_id(tmp_path))
    (tmp_path / "environment.json").write_text("{")
    write_environment(tmp_path)
    for config in ({"a": 1}, {"a": 2}):
        write_config(tmp_path, config)
    assert newest_config(tmp_path) == {"a": 2}
    (tmp_path / "config.1.yaml").write_text(": [")
    assert newest_config(tmp_path) == {}
