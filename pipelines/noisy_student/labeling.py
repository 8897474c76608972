"""Pseudo-labels: what a teacher, or the mean of several, predicts for a pool of images, as an ordinary annotation file.

The pool is split into chunks; rank r labels chunks r, r + world, ..., each into its own file. So any number of ranks
gives the same bytes, and a run that was killed continues after the last chunk.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.utilities import rank_zero_info
from torch.utils.data import Sampler

from datamodules.annotations.mask_checks import two_sizes
from datamodules.base import DataModule
from datamodules.common.errors import UserError
from datamodules.common.files import atomic_path
from datamodules.loaders import Record, RecordDataset, make_loader
from pipelines.noisy_student.kinds.of_data import kind_of
from pipelines.noisy_student.paths import listed
from pipelines.outputs.names import output_names
from pipelines.run.compatibility import check_fits
from pipelines.run.loading import Loaded, load
from pipelines.stages.manifest import digest_of

Key = tuple[int, int, int]
CHUNK_BATCHES = 16  # batches a file: what a kill costs
VIEW = (
    "image_size",
    "in_chans",
    "dtype",
    "resize",
    "crop_pct",
    "interpolation",
    "eval_batch_size",
    "tile",
    "tile_overlap",
)
SAYS = ("tta", "tta_scales", "nms_iou", "min_score", "max_detections")


def load_teacher(checkpoint: str | Path, trust: Sequence[str] = ()) -> Loaded:
    """Make the task and the datamodule that a checkpoint's config names; no weights are loaded yet.

    Args:
        checkpoint: The file.
        trust: Packages of the user's own whose classes it may name.

    Raises:
        UserError: If there is no such file.
        UserError: If it is damaged, was not written by this command line, or names what it may not.
    """
    if not Path(checkpoint).is_file():
        raise UserError(f"teacher {checkpoint} does not exist. Give the checkpoint of a trained task.")
    return load(checkpoint, trust=trust)


def prepare_teacher(
    trainer: pl.Trainer, teacher: Loaded, *, batch_size: int | None = None, needs_validation: bool = False
) -> None:
    """Build a teacher's network for its data.

    Args:
        trainer: Where it is to run.
        teacher: Its data is read only where its config does not say all of it.
        batch_size: Images a step; that of the data by default.
        needs_validation: Read the labeled validation images, too.

    Raises:
        UserError: If the checkpoint does not fit the task.
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
    teachers: Sequence[Loaded],
    records: Sequence[Record],
    output: Path,
    *,
    every: bool = False,
    soft: bool = False,
) -> None:
    """Label images and write them as a file that any run can read.

    Args:
        trainer: Where to run; its number of processes shares the chunks.
        teachers: Their probabilities are averaged; boxes are fused.
        records: The images.
        output: The file; one that the same teachers wrote for the same images is not made again.
        every: Keep labels however unsure, which scores need; see ``BoxKind.merge``.
        soft: Write soft labels of pixels, too.

    Raises:
        UserError: If the teachers differ in their classes, or, for pixels, in how they see images.
    """
    kind = kind_of(teachers[0].data)
    class_names = _common_classes(teachers)
    for teacher in teachers:
        kind.prepare(teacher.task, soft=soft)
        _one_by_one(teacher.data, records)
    paths = [record["path"] for record in records]
    digest = _digest(teachers, paths if kind.ONE_LABEL else [listed(path, output) for path in paths])
    digest += "-soft" if soft and kind.SOFT_FILES else ""
    parts = output.with_name(f".{output.name}.parts-{digest}")
    if kind.digest_in(output) == digest:
        rank_zero_info(f"{output} holds these labels already.")
        shutil.rmtree(parts, ignore_errors=True)  # of a run that was killed behind its last line
        return
    with kind.together(teachers) as labeling:
        pools = [Pool(teacher.data, records, parts / str(i)) for i, teacher in enumerate(labeling)]
        for teacher, pool in zip(labeling, pools, strict=True):
            writer = ChunkWriter(pool)
            trainer.callbacks.append(writer)  # type: ignore[attr-defined]
            try:
                # Lightning's own, not our command of that name.
                pl.Trainer.predict(trainer, teacher.task, None, pool, False, str(teacher.checkpoint))
            finally:
                trainer.callbacks.remove(writer)  # type: ignore[attr-defined]
    trainer.strategy.barrier("labels")
    if trainer.is_global_zero:
        kind.merge(output, pools, class_names, digest, every=every)
        shutil.rmtree(parts)
    trainer.strategy.barrier("labels written")


def evaluate(
    trainer: pl.Trainer, teachers: Sequence[Loaded], records: Sequence[Record], data: DataModule, output: Path
) -> None:
    """Label annotated images and compare: write the file that ``Kind.scores`` reads.

    Args:
        trainer: As for ``label_pool``.
        teachers: The same.
        records: Annotated images.
        data: Whose they are.
        output: The file; its labels are beside it.
    """
    kind = kind_of(data)
    labels = output.with_suffix(kind.LABELS)
    # Without their annotations, which the teacher's own data may read in another way.
    bare: list[Record] = [{key: r[key] for key in ("image", "path", "scene") if key in r} for r in records]
    label_pool(trainer, teachers, bare, labels, every=True)
    if trainer.is_global_zero:
        kind.evaluate(labels, records, data, teachers[0].task, output)
    trainer.strategy.barrier("evaluated")


def _one_by_one(data: DataModule, records: Sequence[Record]) -> None:
    """Images of several sizes that are taken as they are do not go into one batch."""
    if getattr(data, "resize", None) == "native" and isinstance(records[0]["image"], str) and data.eval_batch > 1:
        data.eval_batch_size = 1 if len(two_sizes(records)) > 1 else data.eval_batch_size


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
        self.batch_size = data.eval_batch
        self.chunk = CHUNK_BATCHES * self.batch_size
        self.chunks = -(-len(records) // self.chunk)
        self.kind = kind_of(data)

    @cached_property
    def names(self) -> list[str]:
        """What files that are written for the images are called."""
        return output_names([record["path"] for record in self.records])

    def file(self, chunk: int) -> Path:
        """The file of a chunk."""
        return self.parts / f"{chunk:06d}{self.kind.CHUNK}"

    def files(self) -> list[Path]:
        """The files of all chunks, in order."""
        return [self.file(chunk) for chunk in range(self.chunks)]

    def predict_dataloader(self) -> Batches:
        """The batches of what is left."""
        assert self.trainer is not None
        mine = range(self.trainer.global_rank, self.chunks, self.trainer.world_size)
        batches = _ChunkBatches(
            [chunk for chunk in mine if not self.file(chunk).exists()], self.chunk, self.batch_size, len(self.records)
        )
        dataset = RecordDataset(self.records, self.data.make_reader(), self.data.make_transform(train=False))
        workers = self.data._workers(self.records) if isinstance(self.records[0]["image"], str) else 0
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
    """Writes a chunk's labels as soon as it is complete; the file is whole or not there."""

    def __init__(self, pool: Pool) -> None:
        super().__init__()
        self.pool = pool
        self._rows: list[Any] = []

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
        self._rows += self.pool.kind.rows_of(outputs, batch, self.pool)
        last = int(batch["id"][-1])
        if (last + 1) % self.pool.chunk == 0 or last + 1 == len(self.pool.records):
            target = self.pool.file(last // self.pool.chunk)
            with atomic_path(target) as temporary, open(temporary, "wb") as file:
                self.pool.kind.write_chunk(file, self._rows)
            self._rows = []


def _common_classes(teachers: Sequence[Loaded]) -> list[str]:
    first = teachers[0]
    for teacher in teachers:
        if teacher.data.class_names != first.data.class_names:
            raise UserError(
                f"{teacher.checkpoint} knows the classes {teacher.data.class_names}, but {first.checkpoint}"
                f" {first.data.class_names}: teachers whose labels are averaged need the same."
            )
    return list(first.data.class_names or ())


def _digest(teachers: Sequence[Loaded], paths: Sequence[str]) -> str:
    """Of the teachers' weights and views of the images, the images' names, and how they are split into batches."""
    digest = hashlib.sha256(json.dumps(list(paths)).encode())
    for teacher in teachers:
        view = {key: getattr(teacher.data, key, None) for key in VIEW}
        view["eval_batch_size"] = teacher.data.eval_batch
        view |= {key: getattr(teacher.task, key, None) for key in SAYS}
        digest.update(f"{digest_of(teacher.checkpoint)} {view} {CHUNK_BATCHES}".encode())
    return digest.hexdigest()[:16]
