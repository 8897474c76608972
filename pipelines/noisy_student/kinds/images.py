"""Pseudo-labels of images with one label each: class probabilities as a list, like any list of labelled images."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from datamodules.common.errors import UserError
from pipelines.noisy_student.manifest import write_json
from pipelines.noisy_student.scorers import accuracy
from pipelines.noisy_student.selection import Selection, Validation, select

if TYPE_CHECKING:
    from datamodules.annotations.records import Record
    from pipelines.noisy_student.labelling import Pool, Teacher

METRIC = "accuracy"
UNIT = "labels"
LABELS = JUDGED = ".parquet"
PART = ".npy"
REPLICATES = 10_000  # of the bootstrap
TILE = 96
SOFT_FILES = False  # probabilities are in the list in any case
#: Arguments of the labelled data that say where it comes from; the pseudo-labels come from their own list.
SOURCE_ARGUMENTS: tuple[str, ...] = (
    *("source", "image_root", "columns", "val_fraction", "test_fraction", "split_seed", "split_file"),
)
COLUMN = "p_"  # how the reader of lists knows a column of class probabilities


class Labels(NamedTuple):
    """What teachers say of images: their paths, and float32 (N, K) probabilities of the classes."""

    paths: list[str]
    probabilities: NDArray[np.float32]
    class_names: list[str]


# What is refused.


def check_data(data: Any) -> None:
    """Refuse data that is not of this kind.

    Raises:
        UserError: Naming what is.
    """
    if not all(isinstance(record.get("label"), int) for record in data.records["train"]):
        raise UserError(
            "noisy-student is for images with one label each, boxes, or one class a pixel; the data has another kind of"
            " label."
        )


def check_selection(selection: Selection) -> None:
    """Refuse what is meant for another task."""
    if selection.ignore is not None:
        raise UserError(f"selection.ignore is {selection.ignore}, but only boxes have it: leave it out.")


def annotation(record: Record) -> Any:
    """What tells one annotation from another, as a plain value."""
    return record["label"]


def unlabelled_arguments(class_names: list[str]) -> dict[str, Any]:
    """Arguments of the data that reads the selected labels, beside ``source``."""
    return {"class_names": class_names, "val_fraction": 0.0}


# Labelling.


def together(teachers: Sequence[Teacher]) -> AbstractContextManager[Sequence[Teacher]]:
    """Each teacher labels; ``merge`` takes the mean."""
    return nullcontext(teachers)


def prepare(task: Any, *, soft: bool) -> None:
    """Make a teacher give what labels need: probabilities in any case."""


def rows_of(outputs: Mapping[str, Any], batch: Mapping[str, Any], pool: Pool) -> list[Any]:
    """What is kept of a batch: float32 (B, K)."""
    if "probabilities" not in outputs:
        raise UserError("The teacher gives no class probabilities: pseudo-label needs one label an image.")
    return [outputs["probabilities"].float().cpu().numpy()]


def write_part(file: Any, rows: list[Any]) -> None:
    """Write a chunk into an open file."""
    np.save(file, np.concatenate(rows))


def merge(output: Path, pools: Sequence[Pool], class_names: list[str], digest: str, *, every: bool) -> None:
    """Write the labels of all chunks, the mean over the teachers."""
    each = [np.concatenate([np.load(file) for file in pool.files()]) for pool in pools]
    mean = (np.sum(each, axis=0, dtype=np.float64) / len(each)).astype(np.float32)
    paths = [record["path"] for record in pools[0].records]
    write_labels(Labels(paths, np.asarray(mean), class_names), output, {"digest": digest})


def digest_in(file: Path) -> str | None:
    """The digest that a file of labels carries."""
    import pyarrow.parquet as pq

    if not file.is_file():
        return None
    note = json.loads((pq.read_schema(file).metadata or {}).get(b"pseudo_label", b"{}"))
    digest: str | None = note.get("digest")
    return digest


def write_labels(labels: Labels, output: Path, note: dict[str, str] | None = None) -> None:
    """Write a list with the columns ``path``, ``split``, ``p_CLASS``, and for people ``pseudo_label``, ``confidence``.

    Args:
        labels: What to write; a path that comes twice is two rows.
        output: A ``.parquet`` file; replaced in one step.
        note: Kept in the file's metadata.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    best = labels.probabilities.argmax(1) if len(labels.paths) else np.zeros(0, np.int64)
    columns: dict[str, Any] = {
        "path": [path if path.startswith("digits#") else os.path.abspath(path) for path in labels.paths],
        "split": ["train"] * len(labels.paths),
        "pseudo_label": [labels.class_names[k] for k in best],
        "confidence": labels.probabilities.max(1, initial=0.0),
        **{f"{COLUMN}{name}": labels.probabilities[:, k] for k, name in enumerate(labels.class_names)},
    }
    table = pa.table(columns).replace_schema_metadata({"pseudo_label": json.dumps(note or {})})
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(f".{output.name}.{os.getpid()}")
    pq.write_table(table, temporary)
    os.replace(temporary, output)


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


def taken(labels: Labels, rows: NDArray[np.int64]) -> Labels:
    """Some rows, in this order, repeated ones several times."""
    return Labels([labels.paths[i] for i in rows], labels.probabilities[rows], labels.class_names)


# Scores, selection, and what is most likely wrong.


def judge(labels: Path, records: Sequence[Record], data: Any, task: Any, output: Path) -> None:
    """Compare labels with the truth: the list of labels is all that is needed."""


def scores(file: Path, truth: Sequence[int], counts: NDArray[Any]) -> dict[str, NDArray[np.float64]]:
    """Scores of a model on resamples (R, N) of the images, each (R,)."""
    return {METRIC: accuracy(counts, right(file, truth))}


def right(file: Path, truth: Sequence[int]) -> NDArray[np.bool_]:
    """Whether each image is classified rightly, bool (N,)."""
    found: NDArray[np.bool_] = read_labels(file).probabilities.argmax(1) == np.array(truth, np.int64)
    return found


def truth_of(record: Record) -> int:
    """What ``truth.json`` holds of an image: its class, -1 where unknown."""
    return int(record.get("label", -1))


def choose(
    directory: Path,
    data: Any,
    selection: Selection,
    labels_file: Path,
    validation_file: Path | None,
    truth: Mapping[str, Any],
    seed: int,
) -> dict[str, Any]:
    """Write ``selected.parquet`` and ``selection.json``.

    Args:
        directory: Where to.
        data: The labelled data; not used here.
        selection: What is asked for.
        labels_file: The pool's labels.
        validation_file: The teacher on the validation images; needed for a target precision.
        truth: True classes of ``pool`` and ``val``, -1 where unknown.
        seed: Of the random part of repeats.

    Returns:
        The account of it.
    """
    labels = read_labels(labels_file)
    validation = None
    if validation_file is not None:
        seen = read_labels(validation_file, labels.class_names)
        validation = Validation(seen.probabilities, np.array(truth["val"], np.int64))
    known = np.array(truth["pool"], np.int64)
    chosen = select(labels.probabilities, labels.class_names, selection, validation=validation, seed=seed, truth=known)
    write_labels(taken(labels, chosen.rows), directory / "selected.parquet")
    account = {"labels": labels_file.name, **chosen.account}
    write_json(directory / "selection.json", account)
    return account


def suspects(
    selected: Path, judged: Path, pool: Sequence[Record], truth: Mapping[str, Any], data: Any, count: int
) -> tuple[list[dict[str, Any]], list[Any], list[str]]:
    """Taught labels that the last student believes least, the most doubtful first.

    Args:
        selected: What was taught.
        judged: The last student's labels of the pool.
        pool: The images.
        truth: True classes of ``pool``, and ``class_names``.
        data: The labelled data.
        count: At most so many.

    Returns:
        Plain values, pictures (files or arrays), and captions of each.
    """
    names = truth["class_names"]
    taught, student = read_labels(selected, names), read_labels(judged, names)
    places = {path: i for i, path in enumerate(student.paths)}
    label_of = dict(zip(taught.paths, taught.probabilities.argmax(1).tolist(), strict=True))
    known = {path: truth["pool"][places[path]] for path in label_of}
    order = sorted(label_of, key=lambda path: (float(student.probabilities[places[path], label_of[path]]), path))
    found = [
        {
            "path": path,
            "taught": names[label_of[path]],
            "student": names[int(student.probabilities[places[path]].argmax())],
            "probability": float(student.probabilities[places[path], label_of[path]]),
            "truth": names[known[path]] if known[path] >= 0 else None,
        }
        for path in order[:count]
    ]
    images = {record["path"]: record["image"] for record in pool}
    captions = [
        f"{s['taught']}? student: {s['student']}" + (f", truth: {s['truth']}" if s["truth"] is not None else "")
        for s in found
    ]
    return found, [images[s["path"]] for s in found], captions
