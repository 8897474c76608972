"""What the three peer scripts share: the settings of a careful user who tunes nothing, and a plain training loop.

AdamW at one rate for all parameters, 5 % of linear warm-up, cosine to zero, gradients clipped at norm 1, a validation
after each epoch, the best epoch's weights tested.
"""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

WARMUP = 0.05
WEIGHT_DECAY = 0.05
CLIP = 1.0

Results = list[dict[str, Any]]
"""Of each picture what `benchmarks.recipes.scores` compares."""


@dataclass(frozen=True)
class Settings:
    """What both sides are given.

    Attributes:
        backbone: timm's name.
        weights: Local file of the backbone's weights.
        size: Height and width.
        epochs: Passes over the training pictures.
        seed: Of everything random.
        workers: Loader processes.
    """

    backbone: str
    weights: str
    size: tuple[int, int]
    epochs: int
    seed: int
    workers: int = 2

    @property
    def pretrained(self) -> dict[str, Any]:
        """The weights as timm takes them from a local file."""
        return {"pretrained": True, "pretrained_cfg_overlay": {"file": self.weights}}


@dataclass(frozen=True)
class Lists:
    """The pictures of a set, which both sides share.

    Attributes:
        records: Of each split (train, val, test) its pictures, as `datamodules.annotations.records` describes them.
        class_names: In the order of the class numbers.
        read: Decodes one record into arrays in original pixels.
    """

    records: dict[str, list[dict[str, Any]]]
    class_names: list[str]
    read: Callable[[dict[str, Any]], dict[str, Any]]


class Peer(Protocol):
    """One of the scripts."""

    lr: float
    batch_size: int

    def data(self, split: str, *, train: bool) -> Dataset[Any]:
        """The pictures of a split; augmented in training."""

    def build(self) -> nn.Module:
        """The network."""

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """The mean loss of a batch."""

    def find(self, model: nn.Module, batch: Any) -> Results:
        """Predictions and truth of each picture of a batch."""


def train(peer: Peer, settings: Settings, score: Callable[[Results], float]) -> nn.Module:
    """Train, and return the network with the weights of the epoch that validation liked best."""
    random.seed(settings.seed)
    np.random.seed(settings.seed)
    torch.manual_seed(settings.seed)
    loader = _loader(peer, settings, "train", train=True)
    val = _loader(peer, settings, "val", train=False)
    model = peer.build()
    optimizer = torch.optim.AdamW(model.parameters(), lr=peer.lr, weight_decay=WEIGHT_DECAY)
    steps = settings.epochs * len(loader)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _factor(step, steps))
    best, kept = -math.inf, copy.deepcopy(model.state_dict())
    for epoch in range(settings.epochs):
        model.train()
        for batch in loader:
            optimizer.zero_grad()
            peer.loss(model, batch).backward()
            nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            scheduler.step()
        value = score(_results(peer, model, val))
        print(f"epoch {epoch + 1}/{settings.epochs}: val {value:.4f}", flush=True)
        if value >= best:
            best, kept = value, copy.deepcopy(model.state_dict())
    model.load_state_dict(kept)
    return model


def evaluate(peer: Peer, settings: Settings, model: nn.Module, split: str) -> Results:
    """The results on the pictures of a split."""
    return _results(peer, model, _loader(peer, settings, split, train=False))


def _factor(step: int, steps: int) -> float:
    warmup = max(1, round(WARMUP * steps))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def _loader(peer: Peer, settings: Settings, split: str, *, train: bool) -> DataLoader[Any]:
    dataset = peer.data(split, train=train)
    full = train and len(dataset) > peer.batch_size  # type: ignore[arg-type]
    return DataLoader(
        dataset,
        peer.batch_size,
        shuffle=train,
        drop_last=full,
        num_workers=settings.workers,
        collate_fn=_as_list,
        persistent_workers=settings.workers > 0,
    )


def _as_list(samples: Sequence[Any]) -> list[Any]:
    return list(samples)


def _results(peer: Peer, model: nn.Module, loader: DataLoader[Any]) -> Results:
    model.eval()
    with torch.inference_mode():
        return [result for batch in loader for result in peer.find(model, batch)]
