"""Pseudo-labels of images with one label each: class probabilities as a list, like any list of labeled images."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodules.annotations.records import Record
from datamodules.common.errors import UserError
from pipelines.noisy_student.kinds.base import Chunks, Doubtful, Floats, Kind, SelectionJob
from pipelines.noisy_student.kinds.tables import digest_of_table, write_table
from pipelines.noisy_student.precision import evaluated
from pipelines.noisy_student.selection import Selection, select
from pipelines.scorers import accuracy

COLUMN = "p_"  # how the reader of lists knows a column of class probabilities


@dataclass(frozen=True)
class Labels:
    """What teachers say of images: their paths, and float32 (N, K) probabilities of the classes."""

    paths: list[str]
    probabilities: NDArray[np.float32]
    class_names: list[str]

    @property
    def classes(self) -> NDArray[np.int64]:
        """The most probable class of each image, int64 (N,)."""
        return self.probabilities.argmax(1) if self.paths else np.zeros(0, np.int64)

    def rows(self, rows: NDArray[np.int64]) -> Labels:
        """Some rows, in this order, repeated ones several times."""
        return Labels([self.paths[i] for i in rows], self.probabilities[rows], self.class_names)


class Images(Kind):
    """Images with one label each."""

    METRIC = "accuracy"
    UNIT = "labels"
    LABELS = EVALUATION = ".parquet"
    CHUNK = ".npy"
    TILE = 96
    ONE_LABEL = True
    SOURCE_ARGUMENTS = (
        "source",
        "image_root",
        "columns",
        "val_fraction",
        "test_fraction",
        "split_seed",
        "split_file",
        "weight_file",
    )

    def check_data(self, data: Any) -> None:
        """Refuse data without one label each."""
        if not all(isinstance(record.get("label"), int) for record in data.records["train"]):
            raise UserError(
                "noisy-student is for images with one label each, boxes, or one class a pixel; the data has another"
                " kind of label."
            )

    def check_selection(self, selection: Selection) -> None:
        """Refuse what is meant for boxes."""
        if selection.ignore is not None:
            raise UserError(f"selection.ignore is {selection.ignore}, but only boxes have it: leave it out.")

    def annotation(self, record: Record) -> Any:
        """The label."""
        return record["label"]

    def truth_of(self, record: Mapping[str, Any]) -> int:
        """The class of an image, -1 where unknown."""
        return int(record.get("label", -1))

    def rows_of(self, outputs: Mapping[str, Any], batch: Mapping[str, Any], pool: Chunks) -> list[Any]:
        """Probabilities, float32 (B, K)."""
        if "probabilities" not in outputs:
            raise UserError("The teacher gives no class probabilities: pseudo-label needs one label an image.")
        return [outputs["probabilities"].float().cpu().numpy()]

    def write_chunk(self, file: Any, rows: list[Any]) -> None:
        """Write a chunk as an array."""
        np.save(file, np.concatenate(rows))

    def read_chunks(self, pool: Chunks) -> list[Any]:
        """Of each chunk float32 (n, K)."""
        return [np.load(file) for file in pool.files()]

    def merge(self, output: Path, pools: Sequence[Chunks], class_names: list[str], digest: str, *, every: bool) -> None:
        """Write the mean over the teachers."""
        each = [np.concatenate(self.read_chunks(pool)) for pool in pools]
        mean = (np.sum(each, axis=0, dtype=np.float64) / len(each)).astype(np.float32)
        paths = [record["path"] for record in pools[0].records]
        write_labels(Labels(paths, np.asarray(mean), class_names), output, digest)

    def digest_in(self, file: Path) -> str | None:
        """The digest that a list of labels carries."""
        return digest_of_table(file)

    def evaluate(self, labels: Path, records: Sequence[Record], data: Any, task: Any, output: Path) -> None:
        """Nothing: the list of labels is all that ``scores`` needs."""

    def scores(self, file: Path, truth: Sequence[int], counts: NDArray[Any]) -> dict[str, Floats]:
        """The accuracy."""
        return {self.METRIC: accuracy(counts, correct(file, truth))}

    def select(self, job: SelectionJob) -> dict[str, Any]:
        """Write ``selected.parquet``."""
        pool = read_labels(job.labels)
        seen = None
        if job.validation is not None and job.truth["val"]:
            probabilities = read_labels(job.validation, pool.class_names).probabilities
            seen = evaluated(probabilities, np.array(job.truth["val"], np.int64))
        known = np.array(job.truth["pool"], np.int64)
        selected = select(
            pool.probabilities, pool.class_names, job.selection, validation=seen, seed=job.seed, truth=known
        )
        write_labels(pool.rows(selected.rows), job.directory / "selected.parquet")
        return selected.report

    def doubtful(
        self,
        selected: Path,
        relabeled: Path,
        pool: Sequence[Record],
        truth: Mapping[str, Any],
        data: Any,
        count: int,
    ) -> Doubtful:
        """Images in which the last student sees another class than was taught, the least probable ones first."""
        names = truth["class_names"]
        taught, student = read_labels(selected, names), read_labels(relabeled, names)
        row_of = {path: i for i, path in enumerate(student.paths)}
        label_of = dict(zip(taught.paths, taught.classes.tolist(), strict=True))

        def probability(path: str) -> float:
            return float(student.probabilities[row_of[path], label_of[path]])

        image_of = {record["path"]: record["image"] for record in pool}
        doubtful = Doubtful([], [], [])
        others = [path for path, label in label_of.items() if int(student.classes[row_of[path]]) != label]
        for path in sorted(others, key=lambda path: (probability(path), path))[:count]:
            known = truth["pool"][row_of[path]]
            found = {
                "path": path,
                "taught": names[label_of[path]],
                "student": names[int(student.classes[row_of[path]])],
                "probability": probability(path),
                "truth": names[known] if known >= 0 else None,
            }
            caption = f"{found['taught']}? student: {found['student']}"
            doubtful.found.append(found)
            doubtful.pictures.append(image_of[path])
            doubtful.captions.append(caption if known < 0 else f"{caption}, truth: {found['truth']}")
        return doubtful


IMAGES = Images()


def write_labels(labels: Labels, output: Path, digest: str | None = None) -> None:
    """Write a list with the columns ``path``, ``split``, ``p_CLASS``, and for people ``pseudo_label``, ``confidence``.

    Args:
        labels: What to write; a path that comes twice is two rows.
        output: A ``.parquet`` file; replaced in one step.
        digest: Kept in the file's metadata.
    """
    columns: dict[str, Any] = {
        "path": [path if path.startswith("digits#") else os.path.abspath(path) for path in labels.paths],
        "split": ["train"] * len(labels.paths),
        "pseudo_label": [labels.class_names[k] for k in labels.classes],
        "confidence": labels.probabilities.max(1, initial=0.0),
    }
    for k, name in enumerate(labels.class_names):
        columns[f"{COLUMN}{name}"] = labels.probabilities[:, k]
    write_table(columns, output, {} if digest is None else {"digest": digest})


def read_labels(file: Path, class_names: Sequence[str] | None = None) -> Labels:
    """Read what ``write_labels`` wrote, corrected by hand or not.

    Args:
        file: The list.
        class_names: Order of the classes; the file's by default.

    Raises:
        UserError: If it has no columns of class probabilities, or lacks one.
    """
    import pyarrow.parquet as pq

    table = pq.read_table(file)
    names = list(class_names or [c.removeprefix(COLUMN) for c in table.column_names if c.startswith(COLUMN)])
    missing = [name for name in names if COLUMN + name not in table.column_names]
    if missing or not names:
        raise UserError(f"{file} has no column '{COLUMN}{missing[0] if missing else 'CLASS'}' of class probabilities.")
    columns = [table.column(COLUMN + name).to_numpy() for name in names]
    return Labels(table.column("path").to_pylist(), np.stack(columns, 1).astype(np.float32), names)


def correct(file: Path, truth: Sequence[int]) -> NDArray[np.bool_]:
    """Whether each image is classified correctly, bool (N,)."""
    found: NDArray[np.bool_] = read_labels(file).probabilities.argmax(1) == np.array(truth, np.int64)
    return found
