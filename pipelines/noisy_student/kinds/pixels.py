"""Pseudo-labels of pixels: index PNGs with maps of confidence; see ``pixel_files``."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodules.annotations.records import Record
from datamodules.common.batch import IGNORE
from datamodules.common.errors import UserError
from pipelines.fusion import averaged_scores
from pipelines.noisy_student.kinds.base import Chunks, Floats, SelectionJob
from pipelines.noisy_student.kinds.dense import Agreement, Dense, annotated
from pipelines.noisy_student.kinds.pixel_files import (
    PNGS,
    STEPS,
    Mask,
    PixelFiles,
    merge_pixels,
    read_mask,
    read_pixels,
    write_pngs,
)
from pipelines.noisy_student.kinds.tables import digest_of_table, write_arrays, write_table
from pipelines.noisy_student.paths import listed
from pipelines.noisy_student.selection import Selection, fixed_thresholds
from pipelines.noisy_student.tally import Correct, Tally, precision_report
from pipelines.outputs.label_maps import label_png
from pipelines.outputs.palettes import class_palette
from pipelines.run.loading import Loaded
from pipelines.scorers import mean_iou

THREADS = 4


class Pixels(Dense):
    """One class a pixel."""

    METRIC = "mIoU"
    UNIT = "pixels"
    LABELS = ".parquet"
    SOFT_FILES = True
    KEY = "mask"
    SOURCE_ARGUMENTS = (
        *("source", "images", "masks", "image_root", "mask_format", "colors", "class_values", "ignore_values"),
        *("num_scenes", "val_fraction", "test_fraction", "split_seed", "split_file", "weight_file"),
    )

    # What is refused.

    def check_data(self, data: Any) -> None:
        """Refuse several labels a pixel."""
        if data.multi_label:
            raise UserError(
                "data.multi_label is true, but pseudo-labels have one class a pixel: give masks of one class a pixel"
                " (mask_format: index)."
            )

    def check_selection(self, selection: Selection) -> None:
        """Refuse what only images or boxes have."""
        if selection.precision is not None:
            raise UserError(
                f"selection.precision is {selection.precision}, but the pixels of an image are not independent samples:"
                " the bound would promise too much. Set selection.threshold, and see the precision that the report"
                " states."
            )
        if selection.balance:
            raise UserError(
                "selection.balance is true, but an image has pixels of several classes: set data.balance: sampler (or"
                " loss) for the student, which favors rare classes."
            )
        if selection.ignore is not None:
            raise UserError(
                f"selection.ignore is {selection.ignore}, but only boxes have it: pixels below the threshold are"
                " ignored."
            )

    def annotation(self, record: Record) -> Any:
        """The mask files and their sizes on the disk."""
        if "scene" in record:
            return list(record["scene"])
        mask = record["mask"]
        files = mask if isinstance(mask, list) else [mask]
        return [[file, os.path.getsize(file)] if isinstance(file, str) else str(file) for file in files]

    def unlabeled_arguments(self, class_names: list[str]) -> dict[str, Any]:
        """Masks are index PNGs."""
        return {"class_names": class_names, "mask_format": "index", "val_fraction": 0.0}

    # Labeling.

    def prepare(self, task: Any, *, soft: bool) -> None:
        """Make a teacher say how sure it is of each pixel; with ``soft`` of the next class, too.

        Raises:
            UserError: If it gives several labels a pixel.
        """
        if getattr(task, "multi_label", False):
            raise UserError("The teacher gives several labels a pixel (model.multi_label), but pseudo-labels have one.")
        task.with_confidence = 2 if soft else 1

    @contextmanager
    def together(self, teachers: Sequence[Loaded]) -> Iterator[Sequence[Loaded]]:
        """One teacher gives the mean of all: maps of every class's probability are too large to be kept for it."""
        with averaged_scores(teachers) as mean:
            yield [mean]

    def rows_of(self, outputs: Mapping[str, Any], batch: Mapping[str, Any], pool: Chunks) -> list[Any]:
        """Write the PNGs of a batch, and keep what the list says of each image."""
        palette = class_palette(pool.data.class_names or [], getattr(pool.data, "class_colors", None))
        names = [pool.names[number] for number in batch["id"].tolist()]
        seconds = outputs.get("second", [None] * len(names))

        def write(name: str, mask: Any, sure: Any, second: Any) -> dict[str, Any]:
            labels, levels = np.asarray(mask.cpu()), np.asarray(sure.cpu())
            planes = None if second is None else np.asarray(second.cpu())
            return write_pngs(pool.parts / PNGS, name, palette, labels, levels, planes)

        with ThreadPoolExecutor(THREADS) as threads:
            return list(threads.map(write, names, outputs["mask"], outputs["confidence"], seconds))

    def merge(self, output: Path, pools: Sequence[Chunks], class_names: list[str], digest: str, *, every: bool) -> None:
        """Move the PNGs into the list's folder, and write the list."""
        (pool,) = pools
        merge_pixels(output, pool, self.read_chunks(pool), digest)

    def digest_in(self, file: Path) -> str | None:
        """The digest that a list of labels carries; None where its PNGs are gone."""
        return digest_of_table(file) if file.with_suffix("").is_dir() else None

    # Scores.

    def evaluate(self, labels: Path, records: Sequence[Record], data: Any, task: Any, output: Path) -> None:
        """Write each image's confusion matrix: ``confusion`` int64 (N, K, K), rows the true classes."""
        classes, read = len(data.class_names), data.make_reader()

        def compare(record: Record, mask: str) -> NDArray[np.int64]:
            return confusion(read(record)["mask"], read_mask(mask), classes)

        with ThreadPoolExecutor(THREADS) as threads:
            each = list(threads.map(compare, records, read_pixels(labels).masks))
        write_arrays(output, confusion=np.stack(each))

    def scores(self, file: Path, truth: Sequence[Any], counts: NDArray[Any]) -> dict[str, Floats]:
        """The mean IoU."""
        with np.load(file) as known:
            return {self.METRIC: mean_iou(counts, known["confusion"])}

    # Selection.

    def select(self, job: SelectionJob) -> dict[str, Any]:
        """Write ``selected.parquet`` with its folder.

        Pixels below the threshold of their class become 255. Images without any other pixel are left out.
        """
        names, pixels = job.class_names, read_pixels(job.labels)
        thresholds = fixed_thresholds(names, job.selection.threshold)
        output, folder = job.directory / "selected.parquet", pixels.folder
        shutil.rmtree(output.with_suffix(""), ignore_errors=True)  # of a run that was killed
        known, read = annotated(job.truth, job.data), job.data.make_reader()
        palette = class_palette(names, getattr(job.data, "class_colors", None))

        def work(i: int) -> _Selected:
            mask, kept = read_mask(pixels.masks[i]), _kept(pixels, i, thresholds)
            target = output.with_suffix("") / Path(pixels.masks[i]).relative_to(folder)
            if (kept != IGNORE).any():
                label_png(kept, palette, target)
            true = read(known[i])["mask"] if i in known else np.full_like(mask, IGNORE)
            soft = b"" if pixels.soft is None else Path(pixels.soft[i]).read_bytes()
            return _Selected(
                mask=str(target.relative_to(job.directory)),
                digest=hashlib.sha256(kept.tobytes() + soft).hexdigest()[:32],
                labeled=_counts(mask, len(names)),
                kept=_counts(kept, len(names)),
                confusion_of_all=confusion(true, mask, len(names)),
                confusion_of_kept=confusion(true, kept, len(names)),
            )

        with ThreadPoolExecutor(THREADS) as threads:
            done = list(threads.map(work, range(len(pixels.masks))))
        taught = [i for i, image in enumerate(done) if image.kept.any()]
        if not taught:
            raise UserError(
                f"selection keeps none of the pixels of {len(done)} images. Lower selection.threshold, or train a"
                " better teacher."
            )
        columns = {
            "path": [listed(pixels.paths[i], output) for i in taught],
            "split": ["train"] * len(taught),
            "mask": [done[i].mask for i in taught],
            "digest": [done[i].digest for i in taught],
        }
        if pixels.soft is not None:  # as the teacher wrote them: where the mask is 255 they do not count
            columns["soft_mask"] = [listed(pixels.soft[i], output) for i in taught]
        write_table(columns, output, {"digest": ""})
        return _report(done, names, thresholds, len(taught))

    # What is most likely wrong.

    def agreements(self, selected: Path, relabeled: Path, class_names: list[str]) -> list[Agreement]:
        """The fraction of the taught pixels of which the student says the same."""
        taught, student = read_pixels(selected), read_pixels(relabeled)
        student_of = dict(zip(student.paths, student.masks, strict=True))

        def agreement(path: str, mask: str) -> Agreement:
            given, other = read_mask(mask), read_mask(student_of[path])
            equal = float((given == other)[given != IGNORE].mean())
            return Agreement(path, equal, lambda: [{"mask": read_mask(m)} for m in (mask, student_of[path])])

        with ThreadPoolExecutor(THREADS) as threads:
            return list(threads.map(agreement, taught.paths, taught.masks))


PIXELS = Pixels()


@dataclass(frozen=True)
class _Selected:
    """What is selected of an image: its mask's file and digest; pixels by class (K,); of true and given ones (K, K)."""

    mask: str
    digest: str
    labeled: NDArray[np.int64]
    kept: NDArray[np.int64]
    confusion_of_all: NDArray[np.int64]
    confusion_of_kept: NDArray[np.int64]


def _kept(pixels: PixelFiles, i: int, thresholds: NDArray[np.float64]) -> Mask:
    """The mask of an image, 255 where the confidence is below the threshold of the class."""
    mask = read_mask(pixels.masks[i])
    if pixels.maps[i] == pixels.masks[i]:  # a list without confidences
        return mask
    # The least level of each class that reaches its threshold; ignored pixels of a corrected mask never do.
    least = np.full(256, STEPS + 1, np.int64)
    least[: len(thresholds)] = np.ceil(thresholds * STEPS - 1e-9)
    return np.where(read_mask(pixels.maps[i]) >= least[mask], mask, IGNORE).astype(np.uint8)


def _counts(mask: Mask, classes: int) -> NDArray[np.int64]:
    """Pixels of each class; ignored ones are left out."""
    return np.bincount(mask.ravel(), minlength=256)[:classes]


def confusion(truth: Mask, mask: Mask, classes: int) -> NDArray[np.int64]:
    """Pixels of each true and given class, int64 (K, K); those that either ignores are left out."""
    known = (truth != IGNORE) & (mask != IGNORE)
    cells = truth[known].astype(np.int64) * classes + mask[known]
    return np.bincount(cells, minlength=classes * classes).reshape(classes, classes)


def _report(
    done: Sequence[_Selected], names: list[str], thresholds: NDArray[np.float64], taught: int
) -> dict[str, Any]:
    """Counts of the selection from those of its images, of which so many are taught."""
    kept = np.sum([image.kept for image in done], axis=0)
    tally = Tally(
        class_names=names,
        thresholds=thresholds,
        labeled=np.sum([image.labeled for image in done], axis=0),
        kept=kept,
        taught=kept,
        images=taught,
        distinct_images=taught,
    )
    report = {**tally.report(), "pool_images": len(done)}
    everything = np.sum([image.confusion_of_all for image in done], axis=0)
    of_kept = np.sum([image.confusion_of_kept for image in done], axis=0)
    if everything.any():
        all_correct, kept_correct = (Correct(table.diagonal(), table.sum(0)) for table in (everything, of_kept))
        report |= precision_report(names, all_correct, kept_correct, of_kept.sum(1))
    return report
