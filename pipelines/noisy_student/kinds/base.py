"""What a kind of annotation is to the loop: the protocol behind which they stand, and what they share.

A new kind is a file of this folder with a subclass of `Kind`, and a line in ``of_data.py``.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from datamodules.annotations.records import Record
from datamodules.base import DataModule
from datamodules.common.files import write_json
from pipelines.noisy_student.selection import Selection
from pipelines.run.loading import Loaded

Floats = NDArray[np.float64]


class Chunks(Protocol):
    """A labeled pool before its chunks are merged, see ``labeling.Pool``.

    Attributes:
        records: The images.
        data: The teacher's datamodule.
        parts: Folder of the finished chunks.
    """

    records: Sequence[Record]
    data: DataModule
    parts: Path

    @property
    def names(self) -> list[str]:
        """What files that are written for the images are called."""

    def files(self) -> list[Path]:
        """The files of all chunks, in order."""


@dataclass(frozen=True)
class Doubtful:
    """Labels that are most likely wrong, the most doubtful first.

    Attributes:
        found: Of each what the report says, plain values.
        pictures: Files or arrays (H, W, 3).
        captions: Below them.
    """

    found: list[dict[str, Any]]
    pictures: list[Any]
    captions: list[str]


@dataclass(frozen=True)
class SelectionJob:
    """What a selection reads and where it writes.

    Attributes:
        directory: Where to.
        data: The labeled data.
        selection: What is asked for.
        labels: The pool's labels.
        validation: The teacher's evaluation on the validation images; needed for a target precision.
        truth: What ``truth.json`` holds: ``class_names``, and of each image of ``pool`` and ``val`` its truth.
        seed: Of the random part of repeats.
    """

    directory: Path
    data: Any
    selection: Selection
    labels: Path
    validation: Path | None
    truth: Mapping[str, Any]
    seed: int

    @property
    def class_names(self) -> list[str]:
        """K names."""
        return list(self.truth["class_names"])


class Kind(ABC):
    """One kind of annotation: what differs between the tasks.

    Attributes:
        METRIC: The score that generations are compared by: the first of ``scores``.
        UNIT: What is kept or not.
        LABELS: Suffix of a file of labels.
        EVALUATION: Suffix of the file that scores are computed from.
        CHUNK: Suffix of a chunk's file.
        REPLICATES: Of the bootstrap.
        TILE: Width of a doubtful label's picture in the sheet, in pixels.
        SOFT_FILES: Whether soft labels are files of their own, written where asked for.
        ONE_LABEL: Whether an image has one label, given as class probabilities.
        SOURCE_ARGUMENTS: Arguments of the labeled data that say where it comes from; the pseudo-labels come from their
            own file.
    """

    METRIC: ClassVar[str]
    UNIT: ClassVar[str]
    LABELS: ClassVar[str]
    EVALUATION: ClassVar[str]
    CHUNK: ClassVar[str] = ".json"
    REPLICATES: ClassVar[int] = 10_000
    TILE: ClassVar[int] = 320  # two pictures side by side
    SOFT_FILES: ClassVar[bool] = False
    ONE_LABEL: ClassVar[bool] = False
    SOURCE_ARGUMENTS: ClassVar[tuple[str, ...]]

    # What is refused.

    @abstractmethod
    def check_data(self, data: Any) -> None:
        """Refuse data of another kind.

        Raises:
            UserError: Naming the key.
        """

    @abstractmethod
    def check_selection(self, selection: Selection) -> None:
        """Refuse what has no meaning here.

        Raises:
            UserError: Naming the key and what to do in its place.
        """

    # Records.

    @abstractmethod
    def annotation(self, record: Record) -> Any:
        """What tells one annotation from another, as a plain value."""

    @abstractmethod
    def truth_of(self, record: Mapping[str, Any]) -> Any:
        """What ``truth.json`` holds of an image."""

    def unlabeled_arguments(self, class_names: list[str]) -> dict[str, Any]:
        """Arguments of the data that reads the selected labels, beside ``source``."""
        return {"class_names": class_names, "val_fraction": 0.0}

    # Labeling.

    def prepare(self, task: Any, *, soft: bool) -> None:  # noqa: B027 - not every kind has something to do
        """Make a teacher give what labels need, where asked for soft ones."""

    def together(self, teachers: Sequence[Loaded]) -> AbstractContextManager[Sequence[Loaded]]:
        """Those that label: each teacher, whose labels ``merge`` joins, or one that gives what all say."""
        return nullcontext(teachers)

    @abstractmethod
    def rows_of(self, outputs: Mapping[str, Any], batch: Mapping[str, Any], pool: Chunks) -> list[Any]:
        """What is kept of a batch of predictions."""

    def write_chunk(self, file: Any, rows: list[Any]) -> None:
        """Write the rows of a chunk into an open file."""
        file.write(json.dumps(rows).encode())

    def read_chunks(self, pool: Chunks) -> list[Any]:
        """The rows of all chunks, one an image."""
        return [row for file in pool.files() for row in json.loads(file.read_text())]

    @abstractmethod
    def merge(self, output: Path, pools: Sequence[Chunks], class_names: list[str], digest: str, *, every: bool) -> None:
        """Write the labels of all chunks of each teacher.

        Args:
            output: The file.
            pools: One of each that labeled.
            class_names: K names.
            digest: Kept in the file.
            every: Keep labels however unsure.
        """

    @abstractmethod
    def digest_in(self, file: Path) -> str | None:
        """The digest that a file of labels carries; None where there is none."""

    # Scores.

    @abstractmethod
    def evaluate(self, labels: Path, records: Sequence[Record], data: Any, task: Any, output: Path) -> None:
        """Compare a model's labels with the truth, and write what ``scores`` reads.

        Args:
            labels: The model's labels of the records.
            records: Annotated images.
            data: Whose they are.
            task: The model.
            output: The file.
        """

    @abstractmethod
    def scores(self, file: Path, truth: Sequence[Any], counts: NDArray[Any]) -> dict[str, Floats]:
        """Scores of a model by name on resamples (R, N) of the images, each (R,)."""

    def score(self, file: Path, truth: Sequence[Any]) -> float:
        """A model's main score on the images that it was evaluated on."""
        once = np.ones((1, len(truth)), np.int64)
        return float(self.scores(file, truth, once)[self.METRIC][0])

    # Selection.

    def write_selection(self, job: SelectionJob) -> dict[str, Any]:
        """Write ``selected`` and ``selection.json``.

        Returns:
            The report of the selection, see ``tally.Tally``.

        Raises:
            UserError: If nothing is kept, or a target precision lacks its validation images.
        """
        report = {"labels": job.labels.name, "unit": self.UNIT, **self.select(job)}
        write_json(job.directory / "selection.json", report)
        return report

    @abstractmethod
    def select(self, job: SelectionJob) -> dict[str, Any]:
        """Write ``selected``; returns the report of it."""

    # What is most likely wrong.

    @abstractmethod
    def doubtful(
        self,
        selected: Path,
        relabeled: Path,
        pool: Sequence[Record],
        truth: Mapping[str, Any],
        data: Any,
        count: int,
    ) -> Doubtful:
        """Taught labels with which the last student disagrees, those first that it believes least.

        Args:
            selected: What was taught.
            relabeled: The last student's labels of the pool.
            pool: The images.
            truth: What ``truth.json`` holds.
            data: The labeled data.
            count: At most so many.
        """
