"""``data.batch_size: auto``: sizes are tried with a margin, the run's config holds the number, and keeps it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from datamodules.common.errors import UserError
from pipelines import batch_trial
from pipelines.__main__ import main
from pipelines.batch_trial import find_batch, repeated, settle_batch
from pipelines.run.checkpoints import read_checkpoint_config
from tests.conftest import write_images

GIB = 2**30


def machine(monkeypatch: Any, limit: float, fixed: float, image: float, fails_at: int | None = None) -> list[int]:
    """A device on which a step takes ``fixed`` + ``image`` GiB an image; returns the sizes that are tried."""
    tried: list[int] = []

    def peak(trainer: Any, model: Any, batch: dict[str, Any], device: Any, copies: int) -> int | None:
        size = len(batch["image"])
        tried.append(size)
        return None if fails_at is not None and size >= fails_at else round((fixed + image * size) * GIB)

    monkeypatch.setattr(batch_trial, "_peak", peak)
    monkeypatch.setattr(batch_trial, "_available", lambda device: round(limit * GIB))
    monkeypatch.setattr(batch_trial, "_images", lambda data: {"image": torch.zeros(4, 1), "path": list("abcd")})
    return tried


def found(images: int, device: str = "cpu") -> int:
    trainer: Any = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device(device)), callbacks=[])
    data = SimpleNamespace(records={"train": [{}] * images})
    return find_batch(trainer, torch.nn.BatchNorm1d(2), data)[0]  # type: ignore[arg-type]


def test_half_of_a_cpus_memory_may_be_used_and_no_more_is_ever_tried(monkeypatch: Any) -> None:
    tried = machine(monkeypatch, limit=8, fixed=0.5, image=0.05)
    assert found(100_000) == 64  # 3.7 GiB; 128 images would take 6.9, more than half
    assert tried == [4, 8, 16, 32, 64, 128]
    tried = machine(monkeypatch, limit=8, fixed=0.0, image=0.07)
    assert found(100_000) == 32  # 64 images take 4.5 GiB, more than half; 128 are not tried
    assert max(tried) == 64


def test_an_epoch_keeps_eight_steps(monkeypatch: Any) -> None:
    machine(monkeypatch, limit=1000, fixed=0.1, image=0.01)
    assert found(600) == 64
    assert found(20) == 4
    assert found(100_000) == 1024


def test_a_size_that_fails_ends_the_search(monkeypatch: Any) -> None:
    monkeypatch.setattr(batch_trial, "_free", lambda device: None)
    monkeypatch.setattr(batch_trial, "_share", lambda device: 0.8)
    tried = machine(monkeypatch, limit=100, fixed=1, image=0.1, fails_at=32)
    assert found(10_000) == 16
    assert tried == [4, 8, 16, 32]


def test_nothing_fits(monkeypatch: Any) -> None:
    machine(monkeypatch, limit=1, fixed=2, image=0.1)
    with pytest.raises(UserError, match=r"not even 4 images fit into 50% of 1\.0 GiB: lower data\.image_size"):
        found(10_000)


def test_a_batch_repeats_its_images() -> None:
    batch = {"image": torch.arange(3), "path": ["a", "b", "c"], "boxes": torch.ones(3, 2, 4)}
    large = repeated(batch, 7)
    assert large["image"].tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert large["path"] == list("abcabca")
    assert large["boxes"].shape == (7, 2, 4)


def test_several_devices_are_refused() -> None:
    data = SimpleNamespace(tries_batch=True)
    with pytest.raises(UserError, match=r"tries one device, but the training has 2: find it with trainer\.devices: 1"):
        settle_batch(SimpleNamespace(world_size=2), None, data)  # type: ignore[arg-type]


def config_of(run: Path) -> dict[str, Any]:
    files = sorted(run.glob("config*.yaml"), key=lambda file: file.stat().st_mtime_ns)
    return dict(yaml.safe_load(files[-1].read_text()))


@pytest.mark.parametrize("task", ["Classification", pytest.param("Detection", marks=pytest.mark.slow)])
def test_the_run_holds_the_number_and_goes_on_with_it(task: str, tmp_path: Path, capfd: Any, monkeypatch: Any) -> None:
    flags = [f"--model={task}", "--model.backbone=test_resnet", f"--data={task}Data", "--data.batch_size=auto"]
    if task == "Detection":
        flags += ["--model.detector=fcos", "--data.source=digits", "--data.image_size=64"]
        flags += ["--data.num_scenes={train: 40, val: 2, test: 0}", "--data.augment.canvas_sizes=[32, 64]"]
    else:
        source = write_images(tmp_path / "data", {f"{s}/{c}": n for s, n in (("train", 20), ("val", 2)) for c in "ab"})
        flags += [f"--data.source={source}", "--data.image_size=32"]
    flags += ["--data.num_workers=0", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
    flags += ["--trainer.wandb.mode=off", "--trainer.report=false", "--trainer.limit_val_batches=0", "--name=b"]
    monkeypatch.setattr(batch_trial, "_available", lambda device: 1000 * GIB)  # whatever runs beside the test
    peaks: list[tuple[int, ...]] = []
    true_peak = batch_trial._peak

    def peak(trainer: Any, model: Any, batch: dict[str, Any], *rest: Any) -> int | None:
        before = {name: value.clone() for name, value in model.state_dict().items()}
        peaks.append(tuple(batch["image"].shape))
        used = true_peak(trainer, model, batch, *rest)
        assert used is not None
        assert any(not torch.equal(value, before[name]) for name, value in model.state_dict().items())  # batch norms
        return used

    monkeypatch.setattr(batch_trial, "_peak", peak)
    assert main(["fit", *flags, "--trainer.max_steps=2"]) == 0
    side = 64 if task == "Detection" else 32
    assert peaks == [(4, 3, side, side)]  # 40 images: 8 steps of at most 5
    run = Path("runs/b/0")
    assert config_of(run)["data"]["init_args"]["batch_size"] == 4
    assert "data.batch_size: 4, tried" in " ".join(capfd.readouterr().out.split())
    assert read_checkpoint_config(run / "checkpoints/last.ckpt")["data"]["init_args"]["batch_size"] == 4
    monkeypatch.setattr(batch_trial, "find_batch", lambda *arguments: (8, 1, 1))  # another machine would find more
    assert main(["fit", *flags, "--trainer.max_steps=4", "--resume=auto"]) == 0
    assert config_of(run)["data"]["init_args"]["batch_size"] == 4
    assert "data.batch_size: 4, as when the training began" in " ".join(capfd.readouterr().out.split())


@pytest.mark.parametrize("key", ["--data.batch_size", "--teacher.data.batch_size"])
def test_a_loop_needs_a_number(key: str, capsys: Any) -> None:
    assert main(["noisy-student", "--config=noisy_student/digits", f"{key}=auto"]) == 2
    assert "data.batch_size is auto, but the steps of students and controls follow from it" in capsys.readouterr().err
