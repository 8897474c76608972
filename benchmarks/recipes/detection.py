"""Box detection as a careful user of torchvision writes it."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision.models.detection import FCOS
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from benchmarks.recipes.peer import Lists, Results, Settings

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
WIDTH = 128  # of pyramid and heads, as in the ready config


class Boxes(Dataset[Any]):
    """Pictures in their own size, as torchvision's detectors take them; mirrored at random in training."""

    def __init__(self, lists: Lists, split: str, *, train: bool) -> None:
        """Keep the list and the reader."""
        self.records, self.read, self.train = lists.records[split], lists.read, train

    def __len__(self) -> int:
        """Pictures of the split."""
        return len(self.records)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The picture in [0, 1], and what torchvision calls its target."""
        sample = self.read(self.records[index])
        image = torch.from_numpy(sample["image"]).permute(2, 0, 1).float() / 255
        boxes = torch.as_tensor(sample["boxes"]).reshape(-1, 4).clone()
        crowd, labels = torch.as_tensor(sample["iscrowd"]), torch.as_tensor(sample["labels"])
        if self.train:
            boxes, labels = boxes[crowd == 0], labels[crowd == 0]
            if torch.rand(()) < 0.5:
                image, width = image.flip(2), image.shape[2]
                boxes = torch.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], 1)
        return image, {"boxes": boxes, "labels": labels, "iscrowd": crowd}


class Backbone(nn.Module):
    """timm's maps of strides 8, 16 and 32, torchvision's pyramid on top."""

    out_channels = WIDTH

    def __init__(self, settings: Settings) -> None:
        """Build it with pretrained weights."""
        super().__init__()
        self.net = timm.create_model(
            settings.backbone, features_only=True, out_indices=(2, 3, 4), **settings.pretrained
        )
        channels = self.net.feature_info.channels()
        self.fpn = FeaturePyramidNetwork(channels, WIDTH, LastLevelP6P7(WIDTH, WIDTH))

    def forward(self, image: Tensor) -> OrderedDict[str, Tensor]:
        """Five maps."""
        maps: OrderedDict[str, Tensor] = self.fpn(OrderedDict(enumerate(self.net(image))))
        return maps


class DetectionPeer:
    """torchvision's FCOS with its own losses, resize and suppression."""

    lr, batch_size = 5e-4, 8

    def __init__(self, settings: Settings, lists: Lists) -> None:
        """Keep the settings and the lists of files."""
        self.settings, self.lists = settings, lists

    def data(self, split: str, *, train: bool) -> Dataset[Any]:
        """The pictures of a split."""
        return Boxes(self.lists, split, train=train)

    def build(self) -> nn.Module:
        """FCOS; the longer side of a picture becomes that of the size."""
        anchors = AnchorGenerator(tuple((8 * 2**level,) for level in range(5)), ((1.0,),) * 5)
        model: nn.Module = FCOS(
            Backbone(self.settings),
            len(self.lists.class_names),
            min_size=min(self.settings.size),
            max_size=max(self.settings.size),
            image_mean=MEAN,
            image_std=STD,
            anchor_generator=anchors,
            score_thresh=0.01,
        )
        return model

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """The sum of FCOS's losses."""
        losses: dict[str, Tensor] = model([image for image, _ in batch], [target for _, target in batch])
        return torch.stack(list(losses.values())).sum()

    def find(self, model: nn.Module, batch: Any) -> Results:
        """Boxes found and true, in original pixels."""
        found = model([image for image, _ in batch])
        return [{"found": f, "truth": target} for f, (_, target) in zip(found, batch, strict=True)]
