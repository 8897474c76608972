"""Pseudo-labels: what a teacher, or the mean of several, says of a pool of images, as an ordinary list.

The pool is cut into chunks; rank r labels chunks r, r + world, ..., each into a file of its own. So any number of ranks
gives the same bytes, and a run that was killed goes on behind the last chunk.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytorch_lightning as pl
from numpy.typing import NDArray
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.utilities import rank_zero_info
from torch.utils.data import Sampler

from datamodules.base import DataModule
from datamodules.images import find_images
from datamodules.loading import Record, RecordDataset, make_loader
from datamodules.readers.lists import read_paths
from pipelines.checkpoint_io import check_fits, read_checkpoint_config
from pipelines.noisy_student.machine import digest_of
from pipelines.noisy_student.selection import Selection, Validation, select
from tasks.base import Task

Key = tuple[int, int, int]
CHUNK_BATCHES = 16  # batches a file: what a kill costs
VIEW = ("image_size", "in_chans", "dtype", "resize", "crop_pct", "interpolation", "eval_batch_size")
COLUMN = "p_"  # how the reader of lists knows a column of class probabilities


class Labels(NamedTuple):
    """What teachers say of images: their paths, and float32 (N, K) probabilities of the classes."""

    paths: list[str]
    probabilities: NDArray[np.float32]
    class_names: list[str]


class Teacher(NamedTuple):
    """A checkpoint with the task and the data settings that it was trained with."""

    checkpoint: Path
    task: Task
    data: DataModule


def pool_records(source: str | Path) -> list[Record]:
    """The images of a pool: a folder with its sub-folders, an image, or a ``.csv`` or ``.parquet`` list with ``path``.

    Raises:
        FileNotFoundError: If there is no such thing, or an image of the list is missing.
        ValueError: If it holds no images.
    """
    path = Path(source)
    if not path.exists():
        raise FileNotFoundError(
            f"--source {source} does not exist in {Path.cwd()}. Give a folder of images, or a .csv or .parquet list"
            " with a column 'path'."
        )
    if path.suffix in (".csv", ".parquet"):
        return read_paths(path)
    return [{"image": file, "path": file} for file in find_images(str(path))]


def load_teacher(checkpoint: str | Path) -> Teacher:
    """Build the task and the datamodule that a checkpoint's config names; no weights are loaded yet.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, or was not written by this command line.
    """
    from jsonargparse import ArgumentParser

    path = Path(checkpoint)
    if not path.is_file():
        raise FileNotFoundError(f"teacher {checkpoint} does not exist. Give the checkpoint of a trained task.")
    config = read_checkpoint_config(path)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Task, "model")
    parser.add_subclass_arguments(DataModule, "data")
    made = parser.instantiate_classes(parser.parse_object({key: config[key] for key in ("model", "data")}))
    return Teacher(path, made.model, made.data)


def prepare_teacher(
    trainer: pl.Trainer, teacher: Teacher, *, batch_size: int | None = None, needs_validation: bool = False
) -> None:
    """Build a teacher's network for its data.

    Args:
        trainer: Where it is to run.
        teacher: Its data is read only where its config does not say all of it.
        batch_size: Images a step; that of the data by default.
        needs_validation: Read the labelled validation images, too.

    Raises:
        ValueError: If the checkpoint does not fit the task.
    """
    data = teacher.data
    if batch_size is not None:
        data.eval_batch_size = batch_size
    data.trainer = trainer
    known = data.class_names is not None and getattr(data, "image_size", 0) is not None
    if needs_validation or not known:
        data.setup("validate" if needs_validation else "predict")
    teacher.task.load_pretrained = False  # the checkpoint's weights follow
    teacher.task.resolve(data.spec(), str(teacher.checkpoint))
    teacher.task.configure_model()
    check_fits(teacher.checkpoint, teacher.task)


def label_pool(
    trainer: pl.Trainer,
    teachers: Sequence[Teacher],
    records: Sequence[Record],
    output: Path,
) -> Labels:
    """Label images and write them as a list that any run can read.

    Args:
        trainer: Where to run; its number of processes shares the chunks.
        teachers: Their probabilities are averaged.
        records: The images.
        output: The ``.parquet`` file; one that the same teachers wrote for the same images is not made again.

    Returns:
        The labels, on every rank.

    Raises:
        ValueError: If the teachers differ in their classes, or are of a task that has no class probabilities.
    """
    class_names = _common_classes(teachers)
    paths = [record["path"] for record in records]
    digest = _digest(teachers, paths)
    parts = output.with_name(f".{output.name}.parts-{digest}")
    if (known := _read_if(output, digest)) is not None:
        rank_zero_info(f"{output} holds these labels already.")
        shutil.rmtree(parts, ignore_errors=True)  # of a run that was killed behind its last line
        return known
    for number, teacher in enumerate(teachers):
        pool = Pool(teacher.data, records, parts / str(number))
        writer = ChunkWriter(pool)
        trainer.callbacks.append(writer)
        try:
            # Lightning's own, not our command of that name.
            pl.Trainer.predict(trainer, teacher.task, None, pool, False, str(teacher.checkpoint))
        finally:
            trainer.callbacks.remove(writer)
    trainer.strategy.barrier("labels")
    each = [Pool(t.data, records, parts / str(i)).read() for i, t in enumerate(teachers)]
    mean = (np.sum(each, axis=0, dtype=np.float64) / len(each)).astype(np.float32)
    labels = Labels(paths, np.asarray(mean), class_names)
    trainer.strategy.barrier("labels read")
    if trainer.is_global_zero:
        write_labels(labels, output, {"digest": digest})
        shutil.rmtree(parts)
    trainer.strategy.barrier("labels written")
    return labels


def write_selection(
    trainer: pl.Trainer,
    teachers: Sequence[Teacher],
    labels: Labels,
    selection: Selection,
    output: Path,
) -> None:
    """Write ``selected.parquet`` and ``selection.json`` beside the labels.

    Args:
        trainer: As for ``label_pool``.
        teachers: The same.
        labels: The pool's.
        selection: What is asked for; a target precision labels the first teacher's validation split, too.
        output: The labels' file.
    """
    validation = None
    if selection.precision is not None:
        records = teachers[0].data.records["val"]
        seen = label_pool(trainer, teachers, records, output.with_name("validation.parquet"))
        validation = Validation(seen.probabilities, np.array([record["label"] for record in records], np.int64))
    if trainer.is_global_zero:
        chosen = select(labels.probabilities, labels.class_names, selection, validation=validation)
        write_labels(taken(labels, chosen.rows), output.with_name("selected.parquet"))
        output.with_name("selection.json").write_text(json.dumps(chosen.account, indent=2) + "\n", encoding="utf-8")
        account = chosen.account
        rank_zero_info(
            f"{output.with_name('selected.parquet')} teaches {account['images']} images: {account['kept']} of"
            f" {account['pool']} labels were kept ({account['coverage']:.0%})."
        )
    trainer.strategy.barrier("selected")


def taken(labels: Labels, rows: NDArray[np.int64]) -> Labels:
    """Some rows, in this order, repeated ones several times."""
    return Labels([labels.paths[i] for i in rows], labels.probabilities[rows], labels.class_names)


class Pool(pl.LightningDataModule):
    """The chunks of a pool that this rank has still to label, as batches of the teacher's own view of the images.

    Args:
        data: The teacher's datamodule: reading, resolution and crop are its.
        records: The images.
        parts: Folder of the finished chunks.
    """

    def __init__(self, data: DataModule, records: Sequence[Record], parts: Path) -> None:
        super().__init__()
        self.allow_zero_length_dataloader_with_multiple_devices = True  # a rank may find nothing left to do
        self.data, self.records, self.parts = data, records, parts
        self.batch_size = data.eval_batch_size
        self.chunk = CHUNK_BATCHES * self.batch_size
        self.chunks = -(-len(records) // self.chunk)

    def file(self, chunk: int) -> Path:
        """The file of a chunk."""
        return self.parts / f"{chunk:06d}.npy"

    def read(self) -> NDArray[np.float32]:
        """All chunks: float32 (N, K)."""
        return np.concatenate([np.load(self.file(chunk)) for chunk in range(self.chunks)])

    def predict_dataloader(self) -> Batches:
        """The batches of what is left."""
        assert self.trainer is not None
        mine = range(self.trainer.global_rank, self.chunks, self.trainer.world_size)
        batches = _ChunkBatches(
            [chunk for chunk in mine if not self.file(chunk).exists()], self.chunk, self.batch_size, len(self.records)
        )
        dataset = RecordDataset(self.records, self.data.make_reader(), self.data.make_transform(train=False))
        workers = self.data._resolve_num_workers(len(self.records)) if isinstance(self.records[0]["image"], str) else 0
        loader: Any = make_loader(dataset, batches, num_workers=workers, pin_memory=False)  # type: ignore[arg-type]
        return Batches(loader)


class Batches:
    """A loader that Lightning leaves as it is: for prediction it would rebuild a DataLoader around another sampler."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.loader)


class _ChunkBatches(Sampler[list[Key]]):
    """Batches of keys; none reaches over the end of a chunk."""

    def __init__(self, chunks: Sequence[int], chunk: int, batch_size: int, total: int) -> None:
        self.batches = [
            [(i, -1, i) for i in range(first, min(first + batch_size, (c + 1) * chunk, total))]
            for c in chunks
            for first in range(c * chunk, min((c + 1) * chunk, total), batch_size)
        ]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[Key]]:
        return iter(self.batches)


class ChunkWriter(Callback):
    """Writes a chunk's probabilities as soon as it is complete; the file is whole or not there."""

    def __init__(self, pool: Pool) -> None:
        super().__init__()
        self.pool = pool
        self._rows: list[NDArray[np.float32]] = []

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Make the folder."""
        self.pool.parts.mkdir(parents=True, exist_ok=True)

    def on_predict_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the batch; write behind the last one of its chunk."""
        if "probabilities" not in outputs:
            raise ValueError(
                f"{type(pl_module).__name__} gives no class probabilities: pseudo-label is for classification so far."
            )
        self._rows.append(outputs["probabilities"].float().cpu().numpy())
        last = int(batch["id"][-1])
        if (last + 1) % self.pool.chunk == 0 or last + 1 == len(self.pool.records):
            target = self.pool.file(last // self.pool.chunk)
            temporary = target.with_name(f".{target.name}.{os.getpid()}")
            with open(temporary, "wb") as file:
                np.save(file, np.concatenate(self._rows))
            os.replace(temporary, target)
            self._rows = []


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
        "path": [path if "#" in path else os.path.abspath(path) for path in labels.paths],
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
        ValueError: If it has no columns of class probabilities, or lacks one.
    """
    import pyarrow.parquet as pq

    table = pq.read_table(file)
    names = list(class_names or [c.removeprefix(COLUMN) for c in table.column_names if c.startswith(COLUMN)])
    missing = [name for name in names if COLUMN + name not in table.column_names]
    if missing or not names:
        raise ValueError(f"{file} has no column '{COLUMN}{missing[0] if missing else 'CLASS'}' of class probabilities.")
    columns = [table.column(COLUMN + name).to_numpy() for name in names]
    return Labels(table.column("path").to_pylist(), np.stack(columns, 1).astype(np.float32), names)


def _read_if(file: Path, digest: str) -> Labels | None:
    """The labels of a file that carries this digest."""
    import pyarrow.parquet as pq

    if not file.is_file():
        return None
    note = json.loads((pq.read_schema(file).metadata or {}).get(b"pseudo_label", b"{}"))
    return read_labels(file) if note.get("digest") == digest else None


def _common_classes(teachers: Sequence[Teacher]) -> list[str]:
    first = teachers[0]
    for teacher in teachers:
        if teacher.data.class_names != first.data.class_names:
            raise ValueError(
                f"{teacher.checkpoint} knows the classes {teacher.data.class_names}, but {first.checkpoint}"
                f" {first.data.class_names}: teachers whose labels are averaged need the same."
            )
    return list(first.data.class_names or ())


def _digest(teachers: Sequence[Teacher], paths: Sequence[str]) -> str:
    """Of the teachers' weights and views of the images, the images' names, and how they are cut into batches."""
    digest = hashlib.sha256(json.dumps(list(paths)).encode())
    for teacher in teachers:
        view = {key: getattr(teacher.data, key, None) for key in VIEW} | {"tta": getattr(teacher.task, "tta", None)}
        digest.update(f"{digest_of(teacher.checkpoint)} {view} {CHUNK_BATCHES}".encode())
    return digest.hexdigest()[:16]
