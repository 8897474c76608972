"""Classification as a careful user of timm writes it."""

from __future__ import annotations

from typing import Any

import timm
import torch
import torch.nn.functional as F
from PIL import Image
from timm.data import create_transform
from torch import Tensor, nn
from torch.utils.data import Dataset

from benchmarks.recipes.peer import Lists, Results, Settings

LABEL_SMOOTHING = 0.1


class Pictures(Dataset[Any]):
    """Files, opened with Pillow and transformed by timm."""

    def __init__(self, records: list[dict[str, Any]], size: tuple[int, int], *, train: bool) -> None:
        """Choose timm's own transform of the size, for training or evaluation."""
        self.records = records
        self.transform = create_transform((3, *size), is_training=train, interpolation="bicubic", crop_pct=0.875)

    def __len__(self) -> int:
        """Pictures of the split."""
        return len(self.records)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """The transformed picture, and its class."""
        record = self.records[index]
        return self.transform(Image.open(record["image"]).convert("RGB")), record["label"]


class ClassificationPeer:
    """timm's model and transforms, cross-entropy with label smoothing."""

    lr, batch_size = 1e-3, 32

    def __init__(self, settings: Settings, lists: Lists) -> None:
        """Keep the settings and the lists of files."""
        self.settings, self.lists = settings, lists

    def data(self, split: str, *, train: bool) -> Dataset[Any]:
        """The pictures of a split."""
        return Pictures(self.lists.records[split], self.settings.size, train=train)

    def build(self) -> nn.Module:
        """The network of timm."""
        classes = len(self.lists.class_names)
        model: nn.Module = timm.create_model(self.settings.backbone, num_classes=classes, **self.settings.pretrained)
        return model

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Cross-entropy."""
        images, labels = _stack(batch)
        return F.cross_entropy(model(images), labels, label_smoothing=LABEL_SMOOTHING)

    def find(self, model: nn.Module, batch: Any) -> Results:
        """Which pictures are right."""
        images, labels = _stack(batch)
        return [{"right": bool(right)} for right in model(images).argmax(1) == labels]


def _stack(batch: Any) -> tuple[Tensor, Tensor]:
    return torch.stack([image for image, _ in batch]), torch.tensor([label for _, label in batch])
