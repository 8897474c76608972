"""Writes what `test` and `predict` predict: a table, and label maps as pictures; the same on any number of ranks."""

from __future__ import annotations

import csv
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import cv2
import numpy as np
import pytorch_lightning as pl
from numpy.typing import NDArray
from pytorch_lightning.callbacks import Callback

from datamodules.common.errors import UserError
from datamodules.decoding.images import IMAGE_SUFFIXES, read_image
from datamodules.decoding.video import is_frame
from datamodules.loaders import available_cores
from datamodules.splits import common_folder
from pipelines.callbacks.pictures import as_pictures, class_names_of, original_image, palette_of
from pipelines.outputs.detections import BoxFormat, drawable, entry_of, write_coco, write_csv, write_yolo
from pipelines.outputs.figures import contact_sheet
from pipelines.outputs.panels import Annotation, Palette, drawn, label_png, label_pngs, rescaled, resized

SHEET_IMAGES = 48
MAX_OVERLAY_SIDE = 8192  # larger overlays are reduced to it: JPEG ends at 65,535 pixels, viewers before


class PredictionWriter(Callback):
    """Asks the task for plain rows, batch by batch, and writes ``predictions.csv`` and a contact sheet.

    Each rank appends to a file of its own; rank 0 merges them in the order of the data set, so that memory does not
    grow with the number of images and the result does not depend on the number of ranks.

    Where the predictions have a ``mask``, ``predict`` also writes ``masks/NAME.png`` in the original size, an 8-bit PNG
    with the classes as indices and their colours as palette (for several labels a pixel ``masks/NAME_CLASS.png``, 0 and
    255), and ``overlays/NAME.jpg``, the original image with the classes over it. NAME is the image's path below the
    common folder of all images, without its suffix, see ``output_names``; the table has it in the column ``mask``.

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
        self._names: list[str] | None = None
        self._pool: ThreadPoolExecutor | None = None
        self._jobs: list[Future[None]] = []

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Tell all ranks rank 0's directory."""
        self.directory = Path(trainer.strategy.broadcast(str(self.directory)))

    def _part(self, rank: int, kind: str = "predictions") -> Path:
        return self.directory / f".{kind}.{rank}.jsonl"

    def _start(self, trainer: pl.Trainer) -> None:
        with _writing(self.directory):
            self.directory.mkdir(parents=True, exist_ok=True)
            for kind in ("predictions", "objects"):
                self._part(trainer.global_rank, kind).write_text("")

    def _add(self, trainer: pl.Trainer, task: Any, outputs: Any, batch: dict[str, Any]) -> None:
        if not len(batch["image"]):
            return  # this rank has no images
        names = class_names_of(trainer)
        rows = task.rows(batch, outputs, names)
        captions = task.captions(batch, outputs, names)
        numbers = batch["id"].tolist()
        files: list[str | None] = [None] * len(rows)
        if trainer.state.fn == "predict" and "mask" in outputs:
            files = [self._name(trainer, number, path) for number, path in zip(numbers, batch["path"], strict=True)]
            self._submit(trainer, files, batch, _write_mask, [np.asarray(mask.cpu()) for mask in outputs["mask"]])
            several = outputs["mask"][0].ndim == 3
            rows = [{**row, "mask": f"masks/{n}{'_*' * several}.png"} for row, n in zip(rows, files, strict=True)]
        elif "boxes" in outputs:
            files = [self._name(trainer, number, path) for number, path in zip(numbers, batch["path"], strict=True)]
            self._add_objects(trainer, task, files, outputs, batch)
        part = self._part(trainer.global_rank)
        with _writing(part), open(part, "a", encoding="utf-8") as file:
            for entry in zip(numbers, rows, captions, files, strict=True):
                file.write(json.dumps(entry) + "\n")

    # Masks, boxes and overlays.

    def _records(self, trainer: pl.Trainer) -> list[dict[str, Any]]:
        records = getattr(getattr(trainer, "datamodule", None), "records", None) or {}
        return next((records[s] for s in ("predict", "test", "val") if records.get(s)), [])

    def _name(self, trainer: pl.Trainer, number: int, path: str) -> str:
        """What the files of an image are called; from the whole list, so that all ranks agree."""
        if self._names is None:
            self._names = output_names([record["path"] for record in self._records(trainer)])
        return self._names[number] if number < len(self._names) else _safe(path)

    def _add_objects(self, trainer: pl.Trainer, task: Any, files: Sequence[Any], outputs: Any, batch: Any) -> None:
        """Note a batch's objects, those that ``predict`` shows or all of ``test``'s, in this rank's file."""
        self._has_boxes = True
        predicting = trainer.state.fn == "predict"
        if predicting:
            outputs = task.shown(outputs)
        sizes = [(round(height), round(width)) for height, width in batch["geometry"][:, :2].tolist()]
        part = self._part(trainer.global_rank, "objects")
        with _writing(part), open(part, "a", encoding="utf-8") as file:
            for i, (number, path) in enumerate(zip(batch["id"].tolist(), batch["path"], strict=True)):
                file.write(json.dumps([number, path, files[i], entry_of(outputs, i, sizes[i])]) + "\n")
        if predicting:
            found = [drawable(outputs, i) for i in range(len(files))]
            self._submit(trainer, files, batch, _write_boxes, found)

    def _write_objects(self, trainer: pl.Trainer) -> None:
        """Merge the ranks' objects into the files that were asked for."""
        datamodule = getattr(trainer, "datamodule", None)
        parts = [self._part(rank, "objects") for rank in range(trainer.world_size)]
        classes = int(getattr(trainer.lightning_module.taught, "num_classes", None) or 0)
        names = class_names_of(trainer) or [str(k) for k in range(classes)]
        testing = trainer.state.fn != "predict"
        with _writing(self.directory):
            if "coco" in self.box_formats or testing:
                records = self._records(trainer)
                write_coco(
                    self.directory,
                    parts,
                    class_names=names,
                    class_ids=getattr(datamodule, "class_ids", None),
                    image_ids={i: record["image_id"] for i, record in enumerate(records) if "image_id" in record},
                    folder=common_folder(record["path"] for record in records) if records else "",
                    results_only=testing,
                )
            if "yolo" in self.box_formats and not testing:
                write_yolo(self.directory, parts, names)
            if "csv" in self.box_formats and not testing:
                write_csv(self.directory, parts, names)

    def _submit(
        self, trainer: pl.Trainer, files: Sequence[Any], batch: Any, work: Callable[..., None], found: Sequence[Any]
    ) -> None:
        """Write a batch in threads while the device works on the next; waits for the batch before."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(min(4, available_cores()), "predictions")
        palette, class_names = palette_of(trainer), class_names_of(trainer)
        jobs = []
        for i, (name, path) in enumerate(zip(files, batch["path"], strict=True)):
            on_disk = is_frame(path) or Path(path).is_file()
            canvas = None if on_disk else as_pictures(batch["image"][i : i + 1])[0]
            geometry = batch["geometry"][i].cpu().numpy()
            job = (self.directory, name, found[i], palette, class_names, path, canvas, geometry)
            jobs.append(self._pool.submit(work, *job))
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
        entries = []
        for rank in range(trainer.world_size):
            part = self._part(rank)
            entries += [json.loads(line) for line in part.read_text(encoding="utf-8").splitlines()]
            part.unlink()
        entries.sort(key=lambda entry: entry[0])
        if self._has_boxes:
            self._write_objects(trainer)
        for rank in range(trainer.world_size):
            self._part(rank, "objects").unlink()
        columns = list(dict.fromkeys(key for _, row, *_ in entries for key in row))
        table = self.directory / "predictions.csv"
        with _writing(table), open(table, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(row for _, row, *_ in entries)
        with _writing(self.directory):
            self._sheet(entries)

    def _sheet(self, entries: list[Any]) -> None:
        """Overlays where there are some, else the files; sets that live in memory have no files, and no sheet."""
        shown: list[tuple[Any, str]] = []
        for _, row, caption, name in entries[:SHEET_IMAGES]:
            overlay = self.directory / "overlays" / f"{name}.jpg"
            path = overlay if name is not None and overlay.is_file() else Path(row["path"])
            if is_frame(row["path"]) and path != overlay:
                shown.append((read_image(row["path"]), caption))
            elif path.is_file():
                shown.append((path, caption))
        if shown:
            contact_sheet([p for p, _ in shown], [c for _, c in shown], self.directory / "contact_sheet.png")

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


def output_names(paths: Sequence[str]) -> list[str]:
    """What files written for images are called, without suffix; a function of the whole list alone.

    A name is the path below the common folder of all. Its image suffix is dropped unless another image would get the
    same name (``a.jpg`` beside ``a.png``, also where a file system ignores case); what is still equal gets its number.

    Args:
        paths: Files, or texts such as ``digit_scenes#0/test/3``, whose reserved characters become ``_``.

    Returns:
        Different relative paths, one an image.
    """
    top = common_folder(paths) if paths else ""
    full = [_safe(os.path.relpath(path, top) if top else path) for path in paths]
    short = [_without_suffix(name) for name in full]
    times = Counter(name.casefold() for name in short)
    names, taken = [], set()
    for number, (stem, name) in enumerate(zip(short, full, strict=True)):
        name = stem if times[stem.casefold()] == 1 else name
        while name.casefold() in taken:
            name = f"{name}_{number}"
        taken.add(name.casefold())
        names.append(name)
    return names


def _safe(path: str) -> str:
    """A relative path that every file system takes: no root, no ``..``, no control or reserved characters."""
    parts = [re.sub(r'[\x00-\x1f<>:"|?*\\#]', "_", part) for part in path.split("/")]
    return "/".join(part for part in parts if part not in ("", ".", "..")) or "_"


def _without_suffix(name: str) -> str:
    stem, suffix = os.path.splitext(name)
    return stem if suffix.lower() in IMAGE_SUFFIXES else name


def _write_mask(
    directory: Path,
    name: str,
    mask: NDArray[np.uint8],
    palette: Palette,
    class_names: Sequence[str],
    path: str,
    canvas: NDArray[np.uint8] | None,
    geometry: NDArray[np.float32],
) -> None:
    """Write the label map and the overlay of one image; runs in a thread."""
    stem = directory / "masks" / name
    with _writing(stem):
        if mask.ndim == 2:
            label_png(mask, palette, f"{stem}.png")
        else:
            label_pngs(mask, class_names or [str(k) for k in range(len(mask))], stem)
    image = original_image(path, canvas, geometry)
    if image is not None:
        _write_overlay(image, {"mask": mask}, palette, class_names, directory / "overlays" / f"{name}.jpg")


def _write_boxes(
    directory: Path,
    name: str,
    found: dict[str, Any],
    palette: Palette,
    class_names: Sequence[str],
    path: str,
    canvas: NDArray[np.uint8] | None,
    geometry: NDArray[np.float32],
) -> None:
    """Write the overlay of one image's boxes; runs in a thread."""
    image = original_image(path, canvas, geometry)
    if image is not None:
        _write_overlay(image, found, palette, class_names, directory / "overlays" / f"{name}.jpg")


def _write_overlay(
    image: NDArray[np.uint8], annotation: Annotation, palette: Palette, class_names: Sequence[str], path: Path
) -> None:
    size = image.shape[:2]
    factor = min(1.0, MAX_OVERLAY_SIDE / max(size))
    if factor < 1:
        new = max(1, round(size[0] * factor)), max(1, round(size[1] * factor))
        image, annotation = resized(image, new), rescaled(annotation, size, new)
    picture = drawn(image, annotation, palette, class_names)
    _, data = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 92])
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.tobytes())


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Say what could not be written, why, and what to do."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"Cannot write {error.filename or path}: {error.strerror or error}. Make room or allow writing there, or"
            " choose another place (predict: --output FOLDER; else --runs_dir)."
        ) from error
