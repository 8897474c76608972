"""What the results of all tasks have, and how they are written."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodules.common.errors import UserError
from datamodules.common.files import write_json
from datamodules.decoding.images import read_image
from pipelines.callbacks.originals import Original
from pipelines.callbacks.overlays import ImageFiles, writing
from pipelines.outputs.palettes import Palette, class_palette

Picture = NDArray[np.uint8]


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Result(ABC):
    """What all results have.

    Attributes:
        path: The picture's file, or ``image0``, ``image1``, ... where it was given as pixels.
        name: What ``save`` calls its files.
        size: Height and width of the original picture.
        class_names: The model's K classes.
        category_ids: Their K numbers in COCO's files: those of the data set, or 1 to K.
        image: The picture where it was given as pixels; a file is read again where it is needed.
    """

    path: str
    name: str
    size: tuple[int, int]
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    image: Any = None
    colors: Any = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.path}: {self.summary()}>"

    @abstractmethod
    def summary(self) -> str:
        """What was found, in a few words."""

    def pixels(self) -> Picture:
        """The original picture: uint8 (H, W, 3), RGB.

        Raises:
            UserError: If its file is gone, or has channels that are no colors.
        """
        try:
            return read_image(self.path if self.image is None else self.image)
        except OSError as error:
            raise UserError(f"{self.path} cannot be read again to draw on it: {error.strerror or error}.") from error

    def palette(self) -> Palette:
        """The classes' colors, uint8 (256, 3)."""
        return class_palette(self.class_names, self.colors)

    def save(self, directory: str | Path) -> Path:
        """Write ``json/NAME.json``, ``overlays/NAME.jpg`` (``plot``) and, of label maps, ``masks/NAME.png``.

        Args:
            directory: Where to; made if it is not there. Files of the same name are replaced.

        Returns:
            The JSON file.

        Raises:
            UserError: If something cannot be written, naming it.
        """
        file = Path(directory) / "json" / f"{self.name}.json"
        with writing(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            write_json(file, {"path": self.path, "height": self.size[0], "width": self.size[1], **self._json()})
        canvas = self.pixels()
        whole = np.array([*canvas.shape[:2], 1, 1, 0, 0], np.float32)
        self._write(
            ImageFiles(Path(directory), self.name, Original("", canvas, whole), self.palette(), self.class_names)
        )
        return file

    @abstractmethod
    def to_coco(self, image_id: int = 1) -> list[dict[str, Any]]:
        """As COCO's results: plain values, one dict an object, class or label.

        Args:
            image_id: Of the picture.
        """

    @abstractmethod
    def plot(self) -> Picture:
        """The picture with what was found drawn over it: uint8 (H, W, 3), RGB."""

    @abstractmethod
    def to_supervision(self) -> Any:
        """As the package supervision has it.

        Raises:
            UserError: If that package is not installed.
        """

    def _json(self) -> dict[str, Any]:
        return {"results": self.to_coco()}

    @abstractmethod
    def _write(self, files: ImageFiles) -> None:
        """Write the pictures."""


def import_supervision() -> Any:
    """The package supervision, imported when it is needed.

    Raises:
        UserError: If it is not installed.
    """
    try:
        import supervision
    except ImportError as error:
        raise UserError(
            "to_supervision needs the package supervision: pip install 'vision-pipelines[supervision]'."
        ) from error
    return supervision
