"""What callbacks draw from: the data's class names and colors, and images in their original pixels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray

from datamodules.common.geometry import mask_to_original, original_size
from datamodules.decoding.contents import exists
from datamodules.decoding.images import read_image
from pipelines.outputs.palettes import Palette, class_palette

OUTSIDE = 238  # light gray: pixels of the original that the canvas does not have


def class_names_of(trainer: pl.Trainer) -> list[str]:
    """The datamodule's class names; none without it."""
    return list(_of_data(trainer, "class_names") or [])


def palette_of(trainer: pl.Trainer) -> Palette:
    """The datamodule's class colors, or the default ones."""
    return class_palette(class_names_of(trainer), _of_data(trainer, "class_colors"))


def records_of(trainer: pl.Trainer, *splits: str) -> list[dict[str, Any]]:
    """The datamodule's records of the first of the splits that has some; none where the data has no records."""
    records = _of_data(trainer, "records") or {}
    return next((records[split] for split in splits if records.get(split)), [])


def _of_data(trainer: pl.Trainer, name: str) -> Any:
    # A user's own script may have given loaders instead of a datamodule, or a datamodule of another library.
    return getattr(getattr(trainer, "datamodule", None), name, None)


def as_pictures(image: torch.Tensor) -> NDArray[np.uint8]:
    """A batch (B, C, H, W), uint8 or float in [0, 1], as uint8 (B, H, W, 3), or (B, H, W, 1) of its first channel."""
    if image.is_floating_point():
        image = (image.detach().float().clamp(0, 1) * 255).round().to(torch.uint8)
    channels = 3 if image.shape[1] == 3 else 1
    return image[:, :channels].permute(0, 2, 3, 1).cpu().numpy()


@dataclass(frozen=True)
class Original:
    """Where the original pixels of a batch's image come from.

    Attributes:
        path: It is read again from there if it is a file, in an archive too, or a video's frame, of the geometry's
            size.
        canvas: The image of the batch, uint8 (h, w, C), where there is no file.
        geometry: Its geometry record, float32 (6,).
    """

    path: str
    canvas: NDArray[np.uint8] | None
    geometry: NDArray[np.float32]

    @classmethod
    def of(cls, batch: Mapping[str, Any], index: int) -> Original:
        """That of one image of a batch."""
        path = str(batch["path"][index])
        on_disk = exists(path)
        canvas = None if on_disk else as_pictures(batch["image"][index][None])[0]
        return cls(path, canvas, batch["geometry"][index].cpu().numpy())

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in original pixels."""
        return original_size(self.geometry)

    def pixels(self) -> NDArray[np.uint8] | None:
        """The image, uint8 (H, W, C); None where there is neither file nor canvas, or the geometry is no geometry.

        What the canvas does not have of it, because it was cropped away, is light gray.
        """
        if exists(self.path):
            try:
                image = read_image(self.path)
            except (OSError, ValueError):  # gone meanwhile, or channels that are no RGB
                pass
            else:
                if image.shape[:2] == self.size:
                    return np.asarray(image)
        if self.canvas is None or not np.isfinite(self.geometry).all() or min(self.geometry[:4]) <= 0:
            return None
        pixels: NDArray[Any] = self.canvas
        geometry: NDArray[Any] = self.geometry
        return mask_to_original(pixels, geometry, outside=OUTSIDE)
