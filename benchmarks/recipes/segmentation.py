"""Semantic segmentation as a careful user of segmentation_models_pytorch writes it."""

from __future__ import annotations

from typing import Any

import albumentations as A
import cv2
import numpy as np
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from timm.models import load_state_dict
from torch import Tensor, nn
from torch.utils.data import Dataset

from benchmarks.recipes.peer import Lists, Results, Settings
from benchmarks.recipes.scores import confusion

IGNORE = 255
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Masks(Dataset[Any]):
    """Pictures and masks through albumentations, stretched to one size."""

    def __init__(self, lists: Lists, split: str, size: tuple[int, int], *, train: bool) -> None:
        """Choose the transforms."""
        self.records, self.read, self.train = lists.records[split], lists.read, train
        augment = [
            A.HorizontalFlip(p=0.5),
            A.Affine(scale=(0.8, 1.2), rotate=(-10, 10), p=0.5),
            A.RandomBrightnessContrast(p=0.5),
        ]
        steps = [A.Resize(*size, interpolation=cv2.INTER_LINEAR), *(augment if train else []), A.Normalize(MEAN, STD)]
        self.transform = A.Compose(steps)

    def __len__(self) -> int:
        """Pictures of the split."""
        return len(self.records)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """The transformed picture, and its mask: transformed too in training, in original pixels in evaluation."""
        sample = self.read(self.records[index])
        image, mask = sample["image"], np.asarray(sample["mask"])
        found = self.transform(image=image, mask=mask)
        mask = found["mask"] if self.train else mask
        return torch.from_numpy(found["image"]).permute(2, 0, 1), torch.from_numpy(mask.astype(np.int64))


class SegmentationPeer:
    """SMP's U-Net on timm's encoder, cross-entropy and Dice."""

    lr, batch_size = 1e-3, 8

    def __init__(self, settings: Settings, lists: Lists) -> None:
        """Keep the settings and the lists of files."""
        self.settings, self.lists = settings, lists
        self.classes = len(lists.class_names)
        self.dice = smp.losses.DiceLoss("multiclass", ignore_index=IGNORE)

    def data(self, split: str, *, train: bool) -> Dataset[Any]:
        """The pictures of a split."""
        return Masks(self.lists, split, self.settings.size, train=train)

    def build(self) -> nn.Module:
        """The U-Net with its default decoder."""
        model: nn.Module = smp.Unet(f"tu-{self.settings.backbone}", encoder_weights=None, classes=self.classes)
        weights = {f"encoder.model.{key}": value for key, value in load_state_dict(self.settings.weights).items()}
        missing = model.load_state_dict(weights, strict=False).missing_keys
        if missing := [key for key in missing if key.startswith("encoder.")]:
            raise ValueError(f"{self.settings.weights} lacks {missing[:3]}")
        return model

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Cross-entropy and Dice."""
        images, masks = (torch.stack(parts) for parts in zip(*batch, strict=True))
        logits = model(images)
        loss: Tensor = F.cross_entropy(logits, masks, ignore_index=IGNORE) + self.dice(logits, masks)
        return loss

    def find(self, model: nn.Module, batch: Any) -> Results:
        """Each picture's confusion matrix, in original pixels."""
        logits = model(torch.stack([image for image, _ in batch]))
        results = []
        for scores, (_, mask) in zip(logits, batch, strict=True):
            resized = F.interpolate(scores[None], mask.shape[-2:], mode="bilinear", align_corners=False)
            results.append({"confusion": confusion(resized[0].argmax(0), mask, self.classes)})
        return results
