"""Writes what `test` and `predict` predict: a table, and label maps as pictures; the same on any number of ranks."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from datamodules.common.errors import UserError
from datamodules.common.files import atomic_path
from datamodules.common.geometry import original_size
from datamodules.decoding.contents import exists
from datamodules.loaders import available_cores
from datamodules.splits import common_folder
from pipelines.callbacks.originals import Original, class_names_of, palette_of, records_of
from pipelines.callbacks.overlays import ImageFiles, writing
from pipelines.outputs.detections import (
    BoxFormat,
    drawable,
    entry_of,
    write_coco_data_set,
    write_coco_results,
    write_csv,
    write_yolo,
)
from pipelines.outputs.names import output_names, safe_name
from pipelines.outputs.prediction_files import clear_folder
from pipelines.outputs.rank_files import RankFiles
from pipelines.outputs.sheets import contact_sheet, is_wrong

SHEET_IMAGES = 48


class PredictionWriter(Callback):
    """Asks the task for plain rows, batch by batch, and writes ``predictions.csv`` and a contact sheet.

    Each rank appends to files of its own, and rank 0 merges them line by line in the order of the data set. So the
    result does not depend on the number of ranks, and of what grows with the data only the names of the images are in
    memory.

    Where the predictions have a ``mask``, ``predict`` also writes ``masks/NAME.png`` in the original size, an 8-bit PNG
    with the classes as indices and their colors as palette (for multi-label masks ``masks/NAME_CLASS.png``, 0 and 255),
    and ``overlays/NAME.jpg``, the original image with the classes over it. NAME is the image's path below the common
    folder of all images, without its suffix, see ``output_names``; the table has it in the column ``mask``.

    Where they have ``boxes``, ``predict`` writes those above the score threshold in the formats asked for, and
    ``overlays/NAME.jpg``; ``test`` writes all of them as COCO results, see ``pipelines.outputs.detections``.

    Args:
        directory: Where to write; only rank 0's counts, the other ranks are told it.
        box_formats: What ``predict`` writes boxes as.

    Raises:
        UserError: If there is no such format.
        UserError: If something cannot be written, naming it.
    """

    def __init__(self, directory: Path | None, box_formats: Sequence[BoxFormat] = ("coco",)) -> None:
        super().__init__()
        unknown = [name for name in box_formats if name not in get_args(BoxFormat)]
        if unknown or not box_formats:
            raise UserError(f"--box_formats is {list(box_formats)}; it takes {', '.join(get_args(BoxFormat))}.")
        self.directory = directory or Path()
        self.box_formats = box_formats
        self._has_boxes = False
        self._captioned = 0  # images of this rank that have a caption
        self._names: list[str] | None = None  # of all images' files
        self._pool: ThreadPoolExecutor | None = None
        self._jobs: list[Future[None]] = []

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Remove what an earlier ``predict`` wrote there; tell all ranks rank 0's directory."""
        if stage == "predict" and trainer.is_global_zero:
            with writing(self.directory):
                clear_folder(self.directory)
        self.directory = Path(trainer.strategy.broadcast(str(self.directory)))

    # The ranks' files; a line is an image's number, then what `_add` and `_add_objects` write.

    @property
    def _rows(self) -> RankFiles:
        return RankFiles(self.directory, "predictions")

    @property
    def _objects(self) -> RankFiles:
        return RankFiles(self.directory, "objects")

    def _start(self, trainer: pl.Trainer) -> None:
        self._has_boxes, self._captioned, self._names = False, 0, None
        with writing(self.directory):
            self.directory.mkdir(parents=True, exist_ok=True)
            self._rows.start(trainer.global_rank)
            self._objects.start(trainer.global_rank)

    # A batch.

    def _add(self, trainer: pl.Trainer, task: Any, outputs: Any, batch: dict[str, Any]) -> None:
        if not len(batch["image"]):
            return  # this rank has no images
        class_names = class_names_of(trainer)
        rows = task.rows(batch, outputs, class_names)
        files: list[Any] = [None] * len(rows)
        if trainer.state.fn == "predict" and "mask" in outputs:
            files = self._file_names(trainer, batch)
            masks = [np.asarray(mask.cpu()) for mask in outputs["mask"]]
            self._submit(trainer, files, batch, ImageFiles.write_mask, masks)
            suffix = "_*" if masks[0].ndim == 3 else ""  # multi-label: a file for each class
            rows = [{**row, "mask": f"masks/{name}{suffix}.png"} for row, name in zip(rows, files, strict=True)]
        elif "boxes" in outputs:
            files = self._file_names(trainer, batch)
            self._add_objects(trainer, task, files, outputs, batch)
        captions = self._captions(task, outputs, batch, class_names)
        with writing(self._rows.path(trainer.global_rank)):
            self._rows.append(trainer.global_rank, zip(batch["id"].tolist(), rows, captions, files, strict=True))

    def _captions(self, task: Any, outputs: Any, batch: dict[str, Any], class_names: list[str]) -> list[Any]:
        """Captions of images that may be on the contact sheet: the first ones of all are among each rank's first."""
        size = len(batch["image"])
        if self._captioned >= SHEET_IMAGES:
            return [None] * size
        self._captioned += size
        return list(task.captions(batch, outputs, class_names))

    def _file_names(self, trainer: pl.Trainer, batch: dict[str, Any]) -> list[str]:
        """What the files of a batch's images are called; from the whole list, so that all ranks agree."""
        if self._names is None:
            self._names = output_names([record["path"] for record in self._records(trainer)])
        known = self._names
        pairs = zip(batch["id"].tolist(), batch["path"], strict=True)
        return [known[number] if number < len(known) else safe_name(path) for number, path in pairs]

    def _records(self, trainer: pl.Trainer) -> list[dict[str, Any]]:
        return records_of(trainer, "predict", "test", "val")

    def _add_objects(self, trainer: pl.Trainer, task: Any, files: list[str], outputs: Any, batch: Any) -> None:
        """Note a batch's objects, those that ``predict`` shows or all of ``test``'s, in this rank's file."""
        self._has_boxes = True
        predicting = trainer.state.fn == "predict"
        if predicting:
            outputs = task.shown(outputs)
        lines = []
        for i, (number, path) in enumerate(zip(batch["id"].tolist(), batch["path"], strict=True)):
            lines.append([number, path, files[i], entry_of(outputs, i, original_size(batch["geometry"][i]))])
        with writing(self._objects.path(trainer.global_rank)):
            self._objects.append(trainer.global_rank, lines)
        if predicting:
            found = [drawable(outputs, i) for i in range(len(files))]
            self._submit(trainer, files, batch, ImageFiles.write_overlay, found)

    def _submit(
        self,
        trainer: pl.Trainer,
        files: list[str],
        batch: Any,
        write: Callable[[ImageFiles, Any], None],
        found: Sequence[Any],
    ) -> None:
        """Write a batch in threads while the device works on the next; waits for the batch before."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(min(4, available_cores()), "predictions")
        palette, class_names = palette_of(trainer), class_names_of(trainer)
        jobs = []
        for i, name in enumerate(files):
            image = ImageFiles(self.directory, name, Original.of(batch, i), palette, class_names)
            jobs.append(self._pool.submit(write, image, found[i]))
        self._wait()
        self._jobs = jobs

    def _wait(self) -> None:
        for job in self._jobs:
            job.result()
        self._jobs = []

    # The end.

    def _finish(self, trainer: pl.Trainer) -> None:
        self._wait()
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None
        trainer.strategy.barrier("predictions")
        if not trainer.is_global_zero:
            return
        if self._has_boxes:
            self._write_objects(trainer)
        self._write_table(trainer.world_size)
        self._rows.remove(trainer.world_size)
        self._objects.remove(trainer.world_size)

    def _write_objects(self, trainer: pl.Trainer) -> None:
        """Merge the ranks' objects into the files that were asked for."""
        testing = trainer.state.fn != "predict"
        formats = {"coco"} if testing else set(self.box_formats)
        classes = int(trainer.lightning_module.taught.num_classes or 0)
        names = class_names_of(trainer) or [str(k) for k in range(classes)]
        with writing(self.directory):
            if "coco" in formats:
                self._write_coco(trainer, names, results_only=testing)
            if "yolo" in formats:
                write_yolo(self.directory, self._objects.merged(trainer.world_size), names)
            if "csv" in formats:
                write_csv(self.directory, self._objects.merged(trainer.world_size), names)

    def _write_coco(self, trainer: pl.Trainer, class_names: list[str], results_only: bool) -> None:
        records = self._records(trainer)
        class_ids = getattr(getattr(trainer, "datamodule", None), "class_ids", None)
        class_ids = list(range(1, len(class_names) + 1)) if class_ids is None else class_ids

        def image_id(number: int) -> Any:
            """The data set's own id, or the number from 1."""
            record = records[number] if number < len(records) else {}
            return record.get("image_id", number + 1)

        ranks = trainer.world_size
        write_coco_results(self.directory, self._objects.merged(ranks), class_ids, image_id)
        if not results_only:
            folder = common_folder(record["path"] for record in records) if records else ""
            lines = self._objects.merged(ranks)
            write_coco_data_set(self.directory, lines, class_ids, image_id, class_names, folder)

    def _write_table(self, ranks: int) -> None:
        """Merge the ranks' rows into the table, and draw the first images."""
        columns: dict[str, None] = {}  # by first appearance
        for _, row, *_ in self._rows.merged(ranks):
            columns.update(dict.fromkeys(row))
        shown: list[tuple[str | Path, str, bool]] = []
        table = self.directory / "predictions.csv"
        with writing(table), atomic_path(table) as path, open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(columns))
            writer.writeheader()
            for number, (_, row, caption, name) in enumerate(self._rows.merged(ranks)):
                writer.writerow(row)
                picture = self._picture(row["path"], name) if number < SHEET_IMAGES else None
                if picture is not None:
                    shown.append((picture, caption, is_wrong(row)))
        if shown:
            sheet = self.directory / "contact_sheet.png"
            with writing(sheet):
                pictures, captions, wrong = map(list, zip(*shown, strict=True))
                contact_sheet(pictures, captions, sheet, wrong=wrong)

    def _picture(self, path: str, name: str | None) -> str | Path | None:
        """The overlay of an image where there is one, else its file; images that live in memory have none."""
        overlay = self.directory / "overlays" / f"{name}.jpg"
        if name is not None and overlay.is_file():
            return overlay
        return path if exists(path) else None

    # Lightning's hooks.

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start empty."""
        self._start(trainer)

    def on_predict_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Write one batch."""
        self._add(trainer, pl_module.taught, outputs, batch)

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Merge."""
        self._finish(trainer)

    # `test` writes the same table, with the truth beside the predictions.
    on_test_start = on_predict_start
    on_test_batch_end = on_predict_batch_end
    on_test_end = on_predict_end
