"""What differs between the tasks: one module of functions each, which the loop calls.

``images`` (one label an image: a list of class probabilities), ``boxes`` (a COCO file with scores) and ``pixels``
(index PNGs and maps of confidence, with a list of them).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from datamodules.base import DataModule
from datamodules.detection import DetectionData
from datamodules.segmentation import SegmentationData
from pipelines.noisy_student.kinds import boxes, images, pixels
from pipelines.noisy_student.selection import Selection

if TYPE_CHECKING:
    from datamodules.annotations.records import Record
    from pipelines.noisy_student.labelling import Pool, Teacher


class Kind(Protocol):
    """What the modules have; ``images`` describes each function."""

    METRIC: str  # the score that generations are compared by: the first of `scores`
    UNIT: str  # what is kept or not
    LABELS: str  # suffix of a file of labels
    JUDGED: str  # suffix of the file that scores are computed from
    PART: str  # suffix of a chunk's file
    REPLICATES: int
    TILE: int  # width of a doubtful label's picture in the sheet, in pixels
    SOFT_FILES: bool  # soft labels are files of their own, written where asked for
    SOURCE_ARGUMENTS: tuple[str, ...]

    def check_data(self, data: Any) -> None:
        """Refuse data of another kind."""

    def check_selection(self, selection: Selection) -> None:
        """Refuse what has no meaning here."""

    def annotation(self, record: Record) -> Any:
        """What tells one annotation from another, as a plain value."""

    def truth_of(self, record: Record) -> Any:
        """What ``truth.json`` holds of an image."""

    def unlabelled_arguments(self, class_names: list[str]) -> dict[str, Any]:
        """Arguments of the data that reads the selected labels."""

    def prepare(self, task: Any, *, soft: bool) -> None:
        """Make a teacher give what labels need, where asked for soft ones."""

    def together(self, teachers: Sequence[Teacher]) -> AbstractContextManager[Sequence[Teacher]]:
        """Those that label: each teacher, whose labels `merge` joins, or one that gives what all say."""

    def rows_of(self, outputs: Mapping[str, Any], batch: Mapping[str, Any], pool: Pool) -> list[Any]:
        """What is kept of a batch of predictions."""

    def write_part(self, file: Any, rows: list[Any]) -> None:
        """Write a chunk into an open file."""

    def merge(self, output: Path, pools: Sequence[Pool], class_names: list[str], digest: str, *, every: bool) -> None:
        """Write the labels of all chunks of each teacher."""

    def digest_in(self, file: Path) -> str | None:
        """The digest that a file of labels carries."""

    def judge(self, labels: Path, records: Sequence[Record], data: Any, task: Any, output: Path) -> None:
        """Compare labels with the truth, and write what ``scores`` reads."""

    def scores(self, file: Path, truth: Sequence[Any], counts: NDArray[Any]) -> dict[str, NDArray[np.float64]]:
        """Scores of a model by name on resamples (R, N) of the images, each (R,)."""

    def choose(
        self,
        directory: Path,
        data: Any,
        selection: Selection,
        labels_file: Path,
        validation_file: Path | None,
        truth: Mapping[str, Any],
        seed: int,
    ) -> dict[str, Any]:
        """Write what is taught, and the account of it, which is returned."""

    def suspects(
        self, selected: Path, judged: Path, pool: Sequence[Record], truth: Mapping[str, Any], data: Any, count: int
    ) -> tuple[list[dict[str, Any]], list[Any], list[str]]:
        """The labels that are most likely wrong: plain values, pictures, captions."""


def kind_of(data: DataModule | type[DataModule]) -> Kind:
    """The module of functions for a datamodule, or for its class."""
    cls = data if isinstance(data, type) else type(data)
    if issubclass(cls, DetectionData):
        return boxes
    if issubclass(cls, SegmentationData):
        return pixels
    return images


def score(kind: Kind, file: Path, truth: Sequence[Any]) -> float:
    """A model's main score on the images that it was judged on."""
    once = np.ones((1, len(truth)), np.int64)
    return float(kind.scores(file, truth, once)[kind.METRIC][0])
