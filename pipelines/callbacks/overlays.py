"""Files that `predict` writes for one image: its label map, and the image with what was found drawn over it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from datamodules.common.errors import UserError
from datamodules.common.files import atomic_path
from pipelines.callbacks.originals import Original
from pipelines.outputs.drawing import Annotation, drawn, rescaled, resized
from pipelines.outputs.label_maps import label_png, label_pngs
from pipelines.outputs.palettes import Palette

MAX_OVERLAY_SIDE = 8192  # larger overlays are reduced to it: JPEG ends at 65,535 pixels, viewers before
JPEG_QUALITY = 92


@dataclass(frozen=True)
class ImageFiles:
    """The files of one image below ``directory``: ``masks/NAME.png`` and ``overlays/NAME.jpg``."""

    directory: Path
    name: str
    original: Original
    palette: Palette
    class_names: Sequence[str]

    def write_mask(self, mask: NDArray[np.uint8]) -> None:
        """Write a label map (H, W), or masks (K, H, W) that may overlap, in original pixels, and the overlay."""
        stem = self.directory / "masks" / self.name
        with writing(stem.with_name(f"{stem.name}.png")):
            if mask.ndim == 2:
                label_png(mask, self.palette, f"{stem}.png")
            else:
                label_pngs(mask, self.class_names or [str(k) for k in range(len(mask))], stem)
        self.write_overlay({"mask": mask})

    def write_overlay(self, annotation: Annotation) -> None:
        """Write the image with an annotation in original pixels over it; nothing where the image cannot be had."""
        image = self.original.pixels()
        if image is None:
            return
        size = image.shape[:2]
        factor = min(1.0, MAX_OVERLAY_SIDE / max(size))
        if factor < 1:
            new = max(1, round(size[0] * factor)), max(1, round(size[1] * factor))
            image, annotation = resized(image, new), rescaled(annotation, size, new)
        self.write_picture(drawn(image, annotation, self.palette, self.class_names))

    def write_picture(self, picture: NDArray[np.uint8]) -> None:
        """Write the overlay, uint8 (H, W, 3)."""
        _, data = cv2.imencode(
            ".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
        )
        path = self.directory / "overlays" / f"{self.name}.jpg"
        with writing(path), atomic_path(path) as temporary:
            temporary.write_bytes(data.tobytes())


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say what could not be written, why, and what to do.

    Raises:
        UserError: In place of the system's error.
    """
    try:
        yield
    except OSError as error:
        raise UserError(
            f"Cannot write {path}: {error.strerror or error}. Make room or allow writing there, or choose another place"
            " (predict: --output FOLDER; else --runs_dir)."
        ) from error
