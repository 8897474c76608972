"""What boxes and pixels share: many labels in one image, which is known by its path."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from datamodules.annotations.records import Record
from datamodules.decoding.images import read_image
from pipelines.noisy_student.kinds.base import Doubtful, Kind
from pipelines.outputs.drawing import drawn, rescaled, resized
from pipelines.outputs.palettes import class_palette
from pipelines.outputs.panels import display_size


@dataclass(frozen=True)
class Agreement:
    """How far the taught labels of an image and those of the last student agree.

    Attributes:
        path: The image's.
        agreement: 0 to 1.
        sides: Makes the annotations of both in the image's pixels, the taught one first; called where they are shown.
        counts: What else the report says.
    """

    path: str
    agreement: float
    sides: Callable[[], list[dict[str, Any]]]
    counts: dict[str, int] = field(default_factory=dict)


AGREE = 0.9  # from this agreement on the student does not contradict the label


class Dense(Kind):
    """A kind whose images have many labels each.

    Attributes:
        KEY: Of the annotation in a record; generated scenes have ``scene`` in its place.
    """

    KEY: ClassVar[str]
    EVALUATION = ".npz"

    def truth_of(self, record: Mapping[str, Any]) -> str | None:
        """The path of the annotated record; None where nothing is known."""
        return str(record["path"]) if self.KEY in record or "scene" in record else None

    @abstractmethod
    def agreements(self, selected: Path, relabeled: Path, class_names: list[str]) -> list[Agreement]:
        """Of each image that is taught, see ``doubtful``."""

    def doubtful(
        self,
        selected: Path,
        relabeled: Path,
        pool: Sequence[Record],
        truth: Mapping[str, Any],
        data: Any,
        count: int,
    ) -> Doubtful:
        """Images whose taught labels and those of the last student differ, the most different first, side by side."""
        names = list(truth["class_names"])
        palette = class_palette(names, getattr(data, "class_colors", None))
        image_of = {record["path"]: record["image"] for record in pool}
        every = self.agreements(selected, relabeled, names)
        others = [one for one in every if one.agreement < AGREE]
        least = sorted(others, key=lambda one: (one.agreement, one.path))[:count]
        pictures = []
        for one in least:
            image = read_image(image_of.get(one.path, one.path))
            size, new = image.shape[:2], display_size(image.shape[:2])
            shown = [drawn(resized(image, new), rescaled(side, size, new), palette, names) for side in one.sides()]
            pictures.append(np.concatenate(shown, axis=1))
        return Doubtful(
            found=[{"path": one.path, "agreement": one.agreement, **one.counts} for one in least],
            pictures=pictures,
            captions=[f"taught | student: they agree to {one.agreement:.0%}" for one in least],
        )


def annotated(truth: Mapping[str, Any], data: Any) -> dict[int, Record]:
    """Images of the pool whose annotation was hidden, by their place in it."""
    if not any(truth["pool"]):
        return {}
    records = {record["path"]: record for record in data.records["train"]}
    return {place: records[path] for place, path in enumerate(truth["pool"]) if path is not None}


def indices(values: Sequence[int]) -> NDArray[np.int64]:
    """Row numbers as an array, also where there are none."""
    return np.array(list(values), np.int64)
