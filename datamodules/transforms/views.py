"""Two views of an unlabeled image: a weak one, which an online teacher labels, and a strong one to learn from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from datamodules.collate import collate
from datamodules.common.errors import UserError
from datamodules.loaders import Record, RecordDataset
from datamodules.samplers import Key, key_seed
from datamodules.transforms.augment import Augment
from datamodules.transforms.custom import build_transforms
from datamodules.transforms.pipeline import Transform

#: Strong noise that leaves every pixel where it is: that of Unbiased Teacher (Liu et al. 2021,
#: https://arxiv.org/abs/2102.09480) without its cut-outs.
STILL: list[dict[str, Any]] = [
    {"ColorJitter": {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1, "p": 0.8}},
    {"ToGray": {"p": 0.2}},
    {"GaussianBlur": {"blur_limit": 0, "sigma_limit": (0.1, 2.0), "p": 0.5}},
]


class TwoViews(RecordDataset):
    """A weak and a strong view of each image, by keys of their own.

    Args:
        records: Records of images.
        read: Record -> sample with ``image`` (H, W, C).
        weak: Transform of the weak view.
        strong: Transform of the strong view: of the weak view where ``weak.dense``, else of the original.
        shows: Whether samples say by ``mask`` which pixels of the canvas are the picture's (0; the others 255).
        seed: The run's seed.
        stream: Name of the stream, part of every key.
    """

    def __init__(
        self,
        records: list[Record],
        read: Callable[[Record], Record],
        weak: Transform,
        strong: Transform,
        *,
        shows: bool,
        seed: int,
        stream: str,
    ) -> None:
        super().__init__(records, read, weak, seed=seed, stream=stream)
        self.strong, self.shows = strong, shows

    def __getitem__(self, key: Key) -> Record:
        index, pass_, position = key
        path = self.records[index]["path"]
        image = self.read(self.records[index])["image"]
        original: Record = {"image": image, "path": path}
        shown = {"mask": np.zeros(image.shape[:2], np.uint8)} if self.shows else {}
        seeds = [key_seed(self.seed, f"{self.stream}/{view}", pass_, position) for view in ("weak", "strong")]
        weak = self.transform({**original, **shown}, seeds[0])
        before = {"image": weak["image"], "path": path} if self.strong.dense else original
        strong = self.strong(before, seeds[1])
        return {**weak, "image": strong["image"], "weak_image": weak["image"], "path": path, "id": index}


def collate_views(samples: list[Record]) -> dict[str, Any]:
    """As `collate`, with ``weak_image`` beside ``image``."""
    weak = torch.from_numpy(np.stack([sample["weak_image"] for sample in samples])).permute(0, 3, 1, 2)
    return {**collate(samples), "weak_image": weak}


def randomized(augment: Augment) -> Augment:
    """RandAugment behind the same crop and flips; the strong view of whole images, where nothing else is said.

    Raises:
        UserError: If the augmentation is a list of transforms, which has no stronger form.
    """
    if augment.transforms is not None:
        raise UserError(
            "data.strong is not set, and data.labeled.augment.transforms has no stronger form: set data.strong, for"
            " example {preset: rand}."
        )
    if augment.preset == "none":
        return Augment(preset="rand", hflip=0.0, crop="none")
    return augment if augment.preset == "rand" else replace(augment, preset="rand")


def still(channels: int) -> Augment:
    """`STILL`, as far as it means something for images of so many channels."""
    color = {"RandomBrightnessContrast": {"brightness_limit": 0.4, "contrast_limit": 0.4, "p": 0.8}}
    if channels == 3:
        return Augment(transforms=STILL)
    return Augment(transforms=[STILL[0] if channels == 1 else color, STILL[2]])


def check_still(augment: Augment) -> None:
    """Refuse what moves pixels, or cuts them out.

    Raises:
        UserError: Naming the transform, or the preset.
    """
    if augment.transforms is None:
        raise UserError(
            f"data.strong.preset is '{augment.preset}', which moves pixels: the masks and boxes that a teacher finds on"
            " the weak view would not fit. Give data.strong.transforms that change colors only, as [{ColorJitter: {p:"
            " 0.8}}], or leave it out."
        )
    for transform in build_transforms(augment.transforms, "data.strong.transforms"):
        if {"mask", "bboxes"} & set(transform.available_keys):
            raise UserError(
                f"data.strong.transforms has {type(transform).__name__}, which moves or removes pixels: the masks and"
                " boxes that a teacher finds on the weak view would not fit. Take transforms that change colors only."
            )


def image_only(record: Record, read: Callable[[Record], Record], draw: Callable[[Record], Record]) -> Record:
    """A file or array is decoded; a digit scene is drawn, and only its picture kept."""
    return {"image": (draw if "scene" in record else read)(record)["image"]}
