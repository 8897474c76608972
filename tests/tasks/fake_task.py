"""A task of a few numbers, its data and a quiet trainer, for tests of what surrounds a network."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics import MeanMetric

from tasks.base import Task
from tasks.hooks import Batch
from tasks.optim import Optim


class Net(nn.Module):
    """A backbone and a head, each with a batch norm: (B, 1, H, W) to (B, 2)."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))
        self.head = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 2))

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.head(self.backbone(image).mean((2, 3)))
        return logits


class Score(MeanMetric):
    """The mean of all scores, as ``score``."""

    def compute(self) -> dict[str, Tensor]:  # type: ignore[override]
        return {"score": super().compute()}


class FakeTask(Task):
    """Notes what is called at which hook; its loss is a number that each batch brings along, plus 0 times the net."""

    monitor = "val/score"

    def __init__(self, optim: Optim = Optim(name="sgd", schedule="constant"), **arguments: Any) -> None:  # noqa: B008
        common = {"freeze_backbone": False, "unfreeze_at_epoch": None, "freeze_norm": False, "compile": False}
        common |= {"num_classes": 2, "in_chans": 1, "image_size": 8, "channels_last": False}
        super().__init__(backbone="fake", optim=optim, **{**common, **arguments})
        self.called: list[str] = []
        self.kept: list[float] = []

    def build_network(self) -> nn.Module:
        return Net()

    def build_metrics(self) -> nn.Module:
        return Score()

    def head_names(self) -> set[str]:
        return {name for name, _ in self.network.named_parameters() if name.startswith("head.")}

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        return {"loss": batch["loss"].mean() + 0 * self(batch["image"]).sum()}

    def predict(self, batch: Batch) -> dict[str, Any]:
        return {"scores": batch["loss"]}

    def update_metrics(self, batch: Batch, predictions: dict[str, Any]) -> None:
        self.eval_metrics.update(predictions["scores"])

    def rows(self, batch: Batch, predictions: dict[str, Any], class_names: list[str]) -> list[dict[str, Any]]:
        return []

    def after_validation(self) -> None:
        self.called.append("after_validation")
        self.kept.append(float(self.eval_metrics.compute()["score"]))

    def before_test(self) -> None:
        self.called.append("before_test")

    def state(self) -> dict[str, Any]:
        return {"kept": self.kept}

    def load_state(self, state: dict[str, Any]) -> None:
        self.kept = state.get("kept", [])


class FakeData(pl.LightningDataModule):
    """Batches of the given losses, one a batch, and one batch to be evaluated."""

    def __init__(self, losses: list[list[float]], semi_supervised: bool = False) -> None:
        super().__init__()
        self.batch_size = len(losses[0])
        self.batches = [self.batch(values) for values in losses]
        if semi_supervised:
            self.batches = [{"labeled": batch} for batch in self.batches]

    @staticmethod
    def batch(losses: list[float]) -> Batch:
        generator = torch.Generator().manual_seed(len(losses))
        image = torch.rand(len(losses), 1, 8, 8, generator=generator)
        return {"image": image, "loss": torch.tensor(losses), "path": [""] * len(losses)}

    def spec(self) -> dict[str, Any]:
        return {}

    def train_dataloader(self) -> Any:
        return DataLoader(self.batches, batch_size=None)

    def val_dataloader(self) -> Any:
        return DataLoader([self.batch([0.5, 1.0])], batch_size=None)

    test_dataloader = val_dataloader


def quiet_trainer(**arguments: Any) -> pl.Trainer:
    """Lightning's trainer on one CPU that writes nothing."""
    quiet: dict[str, Any] = {"accelerator": "cpu", "devices": 1, "logger": False, "enable_checkpointing": False}
    quiet |= {"enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    return pl.Trainer(**{**quiet, "max_epochs": 1, **arguments})
