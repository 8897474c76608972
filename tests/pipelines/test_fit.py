"""What a run leaves behind, through the command line: files, probe, averaged weights, schedules, broken losses, W&B."""

from __future__ import annotations

import csv
import importlib.metadata
import json
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from pytorch_lightning.callbacks import Callback
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from datamodules import ClassificationData
from pipelines.__main__ import main
from pipelines.commands.probe import features, fit_head
from pipelines.run.tracking import Wandb
from pipelines.trainer import Trainer
from tasks import Classification
from tests.conftest import in_child, offline_records, write_images

CONFIG = """
model:
  class_path: Classification
  init_args: {{backbone: test_resnet, optim: {{lr: 3.0e-3}}}}
data:
  class_path: ClassificationData
  init_args: {{source: {source}, image_size: 32, batch_size: 4, num_workers: 0}}
trainer:
  max_epochs: 2
  num_sanity_val_steps: 0
  log_every_n_steps: 2
  enable_progress_bar: false
  enable_model_summary: false
"""
OFF = ("--trainer.wandb.mode", "off")
RUN = Path("runs/run/0")


@pytest.fixture
def config(tmp_path: Path, folder: Path) -> str:
    path = tmp_path / "run.yaml"
    path.write_text(CONFIG.format(source=folder))
    return str(path)


def run(*words: str, figures: bool = False) -> int:
    return in_child(lambda: main(list(words)), figures=figures)


def checkpoint(name: str) -> dict:
    return torch.load(RUN / "checkpoints" / f"{name}.ckpt", weights_only=True)


def metrics() -> list[dict[str, str]]:
    with open(RUN / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_leaves_its_files(config, monkeypatch):
    logger = [
        "--trainer.logger=CSVLogger",
        "--trainer.logger.save_dir=.",
        "--trainer.logger.prefix=http://me:s3cret@h/",
    ]
    monkeypatch.setattr(sys, "argv", ["pipelines", "fit", *logger, "--x.api_key", "s3cret"])  # what is recorded
    assert run("fit", "--config", config, *logger, figures=True) == 0
    assert run("validate", "--config", config) == 0
    assert run("test", "--config", config, figures=True) == 0
    assert {p.name for p in (RUN / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    saved = yaml.safe_load((RUN / "config.yaml").read_text())
    assert saved["model"]["init_args"]["num_classes"] == 2
    assert saved["data"]["init_args"]["class_names"] == ["ant", "bee"]
    assert "ckpt_path" not in saved
    validated = json.loads((RUN / "validate.json").read_text())
    best = max(float(row["val/accuracy"]) for row in metrics() if row["val/accuracy"])
    assert validated["val/accuracy"] == pytest.approx(best)
    tested = json.loads((RUN / "test.json").read_text())
    assert {"test/accuracy", "test/f1", "test/ece", "test/loss", "per_class"} <= tested.keys()
    with open(RUN / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert sum(row["truth"] == row["label"] for row in rows) / len(rows) == pytest.approx(tested["test/accuracy"])
    split = json.loads((RUN / "split.json").read_text())
    assert {name: len(paths) for name, paths in split.items()} == {"train": 16, "val": 6, "test": 6}
    pictures = {p.name for p in (RUN / "pictures").iterdir()}
    assert {"train_batch.png", "curves.png", "val_confusion_matrix.png", "test_confusion_matrix.png"} <= pictures
    environment = json.loads((RUN / "environment.json").read_text())
    assert environment[0]["packages"]["torch"] == importlib.metadata.version("torch")
    assert len(list((RUN / "wandb").glob("offline-run-*"))) == 2  # of the training, and of the test: one W&B run
    files = [path for path in RUN.rglob("*") if path.is_file()]
    assert any(b"api_key" in path.read_bytes() for path in RUN.glob("wandb/*/*.wandb"))
    assert [path for path in files if b"s3cret" in path.read_bytes()] == []
    assert run("fit", "--config", str(RUN / "config.yaml"), "--name", "again", *OFF) == 0  # a saved config runs


def test_a_probe_leaves_an_ordinary_checkpoint(config):
    assert run("probe", "--config", config, *OFF) == 0
    assert run("validate", "--config", config) == 0
    assert json.loads((RUN / "validate.json").read_text())["val/accuracy"] >= 0.5
    assert run("predict", "--ckpt_path", str(RUN / "checkpoints/best.ckpt"), "--source", "pictures/test/ant") == 0


def test_folding_the_regression_into_the_head_changes_nothing(folder):
    write_images(folder, {"train/cat": 8, "val/cat": 3})
    data = ClassificationData(
        str(folder), image_size=32, num_workers=0, class_names=["ant", "bee", "cat"], batch_size=8
    )
    data.setup("fit")
    model = Classification("test_resnet", num_classes=3, in_chans=3)
    model.configure_model()
    trainer = Trainer(accelerator="cpu", devices=1, wandb=Wandb(mode="off"), enable_progress_bar=False)
    fit_head(trainer, model, data, 0.1)
    x, y = features(model, data.train_features_dataloader(), torch.device("cpu"))
    scaler = StandardScaler().fit(x)
    reference = LogisticRegression(C=0.1, max_iter=5000).fit(scaler.transform(x), y).predict_proba(scaler.transform(x))
    batches = list(data.train_features_dataloader())
    with torch.inference_mode():
        ours = torch.cat([model.predict(batch)["probabilities"] for batch in batches]).numpy()
    assert np.abs(ours - reference).max() < 1e-5


def test_a_class_without_training_images_is_never_predicted(folder):
    """And the others are, by the classes' own numbers: the absent one is the first of three."""
    data = ClassificationData(
        str(folder), image_size=32, num_workers=0, class_names=["aardvark", "ant", "bee"], batch_size=8
    )
    (folder / "train" / "aardvark").mkdir()
    write_images(folder, {"train/aardvark": 1})
    data.setup("fit")
    data.records["train"] = [record for record in data.records["train"] if record["label"] != 0]
    model = Classification("test_resnet", num_classes=3, in_chans=3)
    model.configure_model()
    trainer = Trainer(accelerator="cpu", devices=1, wandb=Wandb(mode="off"), enable_progress_bar=False)
    fit_head(trainer, model, data, 1.0)
    batches = list(data.train_features_dataloader())
    with torch.inference_mode():
        found = torch.cat([model.predict(batch)["probabilities"] for batch in batches])
    labels = torch.cat([batch["label"] for batch in batches])
    assert set(labels.tolist()) == {1, 2}
    assert found[:, 0].max() == 0
    assert (found.argmax(1) == labels).float().mean() > 0.9  # the classes' colors tell them apart


def test_two_classes_get_half_the_regression_each(folder):
    """One row for two classes: the softmax of (-z / 2, z / 2) is the sigmoid of z."""
    data = ClassificationData(str(folder), image_size=32, num_workers=0, class_names=["ant", "bee"], batch_size=8)
    data.setup("fit")
    model = Classification("test_resnet", num_classes=2, in_chans=3)
    model.configure_model()
    trainer = Trainer(accelerator="cpu", devices=1, wandb=Wandb(mode="off"), enable_progress_bar=False)
    fit_head(trainer, model, data, 0.1)
    x, y = features(model, data.train_features_dataloader(), torch.device("cpu"))
    scaler = StandardScaler().fit(x)
    reference = LogisticRegression(C=0.1, max_iter=5000).fit(scaler.transform(x), y).predict_proba(scaler.transform(x))
    with torch.inference_mode():
        ours = torch.cat([model.predict(batch)["probabilities"] for batch in data.train_features_dataloader()])
    assert np.abs(ours.numpy() - reference).max() < 1e-5


def test_averaged_weights_are_evaluated_and_saved(config):
    assert run("fit", "--config", config, *OFF, "--trainer.ema_decay", "0.5") == 0
    last = checkpoint("last")
    name = "network.conv1.0.weight"
    assert not torch.equal(last["state_dict"][name], last["current_model_state"][name])
    expected = [float(row["val/accuracy"]) for row in metrics() if row["val/accuracy"]][-1]
    assert run("validate", "--config", config, "--ckpt_path", "last") == 0
    assert json.loads((RUN / "validate.json").read_text())["val/accuracy"] == pytest.approx(expected)


def test_a_broken_loss_ends_the_run_and_is_never_best(config, capfd):
    broken = ["--model.optim.name", "sgd", "--model.optim.lr", "1e30", "--trainer.log_every_n_steps", "50"]
    assert run("fit", "--config", config, *OFF, *broken) == 1
    assert "7 optimizer steps in a row" in capfd.readouterr().err
    assert not (RUN / "checkpoints" / "best.ckpt").exists()


def test_on_a_tie_the_later_model_is_best(config):
    same = ["--model.optim.lr", "1e-12", "--trainer.max_epochs", "3"]
    assert run("fit", "--config", config, *OFF, *same) == 0
    assert len({row["val/accuracy"] for row in metrics() if row["val/accuracy"]}) == 1
    assert checkpoint("best")["epoch"] == 2


def test_plateau_follows_each_validation(config):
    flat = ["--model.optim.schedule", "plateau", "--model.optim.plateau_patience", "0", "--model.optim.lr", "1e-12"]
    assert run("fit", "--config", config, *OFF, *flat, "--trainer.max_epochs", "3") == 0
    rates = [float(row["train/lr"]) for row in metrics() if row["train/lr"]]
    assert rates[-1] == pytest.approx(1e-13)
    assert rates[0] == 1e-12


class KillInSecondEpoch(Callback):
    """SIGKILL in the second epoch."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.current_epoch == 1 and batch_idx == 1:
            (file,) = (RUN / "wandb").glob("offline-run-*/*.wandb")
            while 1 not in steps_in(file, of_running=True):  # W&B writes from a process of its own
                time.sleep(0.05)
            os.kill(os.getpid(), signal.SIGKILL)


def steps_in(file: Path, *, of_running: bool = False) -> list[int]:
    """The steps that an offline run of W&B has on the disk."""
    records = offline_records(file, of_running=of_running)
    return [r.history.step.num for r in records if r.WhichOneof("record_type") == "history"]


def test_a_resumed_run_is_the_same_wandb_run_with_growing_steps(config):
    killer = f"--trainer.callbacks={__name__}.KillInSecondEpoch"
    assert run("fit", "--config", config, killer) == -signal.SIGKILL
    assert run("fit", "--config", config, "--resume", "auto") == 0
    folders = sorted((RUN / "wandb").glob("offline-run-*"))
    assert len(folders) == 2
    assert len({f.name.rsplit("-", 1)[1] for f in folders}) == 1
    found = [steps_in(next(folder.glob("*.wandb"))) for folder in folders]
    assert all(found)
    steps = [*found[0], *found[1]]
    assert steps == sorted(set(steps))
