"""Pseudo-labels of boxes: a COCO file with a score for each, which is an ordinary data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodules.annotations.records import Record
from datamodules.common.errors import UserError
from datamodules.common.files import read_json
from pipelines.fusion import fused
from pipelines.noisy_student.kinds.base import Chunks, Floats, SelectionJob
from pipelines.noisy_student.kinds.box_files import (
    Boxes,
    boxes_of_entries,
    images_of,
    objects_of,
    read_boxes,
    take,
    true_boxes,
    write_boxes,
)
from pipelines.noisy_student.kinds.dense import Agreement, Dense, annotated, indices
from pipelines.noisy_student.kinds.tables import write_arrays
from pipelines.noisy_student.precision import Evaluated
from pipelines.noisy_student.selection import LEAST_SCORE, Selection, thresholds_of
from pipelines.noisy_student.tally import Correct, Tally, counted, fraction, precision_report
from pipelines.outputs.detections import entry_of
from pipelines.scorers import average_precision
from tasks.detection.evaluation.matching import Matching, match
from tasks.detection.evaluation.metrics import COCO_IOUS

IGNORE = 0.1  # score from which on a box that is not taught is no background either


class BoxKind(Dense):
    """Boxes of objects."""

    METRIC = "mAP"
    UNIT = "boxes"
    LABELS = ".json"
    REPLICATES = 2_000  # each ranks all boxes again
    KEY = "boxes"
    SOURCE_ARGUMENTS = (
        *("source", "format", "image_root", "class_ids", "voc_one_based", "voc_difficult"),
        *("num_scenes", "scene_digits", "val_fraction", "test_fraction", "split_seed", "split_file", "weight_file"),
    )

    # What is refused.

    def check_data(self, data: Any) -> None:
        """Refuse masks of objects."""
        if data.masks:
            raise UserError(
                "data.masks is true, but masks of objects are not pseudo-labeled: leave it out, and take a detector of"
                " boxes, for example faster_rcnn for mask_rcnn."
            )

    def check_selection(self, selection: Selection) -> None:
        """Refuse balance, and thresholds of boxes that are dropped."""
        if selection.balance:
            raise UserError(
                "selection.balance is true, but an image has boxes of several classes: set data.balance: sampler for"
                " the student, which draws images of rare classes more often."
            )
        if selection.precision is not None:
            return
        ignore = _ignore(selection)
        values = selection.threshold if isinstance(selection.threshold, dict) else {"": selection.threshold}
        for name, value in values.items():
            if value < ignore:
                where = f" of '{name}'" if name else ""
                raise UserError(
                    f"selection.threshold{where} is {value:g}, but boxes below selection.ignore ({ignore:g}) are"
                    " dropped: give a higher one, for example 0.5, or selection.precision: 0.9."
                )

    def annotation(self, record: Record) -> Any:
        """Boxes, labels and crowds."""
        if "scene" in record:
            return list(record["scene"])
        return [record[key].tolist() for key in ("boxes", "labels", "iscrowd")]

    # Labeling.

    def prepare(self, task: Any, *, soft: bool) -> None:
        """Refuse a teacher that gives masks, and soft labels."""
        if soft:
            raise UserError("soft is true, but a box has one class and a score: only labels of pixels can be soft.")
        if getattr(task, "has_masks", False):
            raise UserError(
                f"The teacher is a {task.detector}, but masks of objects are not pseudo-labeled: take a detector of"
                " boxes."
            )

    def rows_of(self, outputs: Mapping[str, Any], batch: Mapping[str, Any], pool: Chunks) -> list[Any]:
        """One entry of ``entry_of`` an image."""
        sizes = [(round(height), round(width)) for height, width in batch["geometry"][:, :2].tolist()]
        return [entry_of(outputs, i, size) for i, size in enumerate(sizes)]

    def merge(self, output: Path, pools: Sequence[Chunks], class_names: list[str], digest: str, *, every: bool) -> None:
        """Write the boxes of a score of at least ``LEAST_SCORE``, or ``every`` one; several teachers' are fused."""
        each = [self.read_chunks(pool) for pool in pools]
        entries = each[0] if len(each) == 1 else [fused(of_image) for of_image in zip(*each, strict=True)]
        found = boxes_of_entries([record["path"] for record in pools[0].records], entries)
        if not every:
            found = take(found, found.scores >= LEAST_SCORE)
        write_boxes(found, output, class_names, pools[0].data.class_ids, digest)  # type: ignore[attr-defined]

    def digest_in(self, file: Path) -> str | None:
        """The digest in the file's ``info``."""
        content = read_json(file) or {}
        digest: str | None = content.get("info", {}).get("pseudo_label", {}).get("digest")
        return digest

    # Scores.

    def evaluate(self, labels: Path, records: Sequence[Record], data: Any, task: Any, output: Path) -> None:
        """Match boxes with the truth, at COCO's ten IoU thresholds.

        The ``.npz`` file has ``image``, ``labels``, ``scores`` (D,) in the order of falling score, ``hit`` and
        ``ignored`` bool (10, D), ``truths`` int64 (N, K). As many detections of an image and class count as the task
        gives.
        """
        classes, size = len(data.class_names), len(records)
        found, true = objects_of(read_boxes(labels, data.class_names)), objects_of(true_boxes(records, data))
        most = int(getattr(task, "max_detections", 100))
        each = [match(found, true, classes, size, iou_threshold=iou, max_detections=most) for iou in COCO_IOUS]
        single = ~true.crowd
        truths = np.zeros((size, classes), np.int64)
        np.add.at(truths, (true.image[single], true.labels[single]), 1)
        write_arrays(
            output,
            image=each[0].image,
            labels=each[0].labels,
            scores=each[0].scores,
            hit=np.stack([matching.hit for matching in each]),
            ignored=np.stack([matching.ignored for matching in each]),
            truths=truths,
        )

    def scores(self, file: Path, truth: Sequence[Any], counts: NDArray[Any]) -> dict[str, Floats]:
        """COCO's mAP, and AP at an IoU of 0.5."""
        with np.load(file) as known:
            columns = [known[key] for key in ("image", "labels", "hit", "ignored", "truths")]
        table = average_precision(counts, *columns)
        return {self.METRIC: table.mean(1), "AP50": table[:, 0]}

    # Selection.

    def select(self, job: SelectionJob) -> dict[str, Any]:
        """Write ``selected.json``.

        Boxes that reach the threshold of their class are taught. Those between it and ``selection.ignore`` become
        crowds, on which detectors learn neither an object nor background. Images without a box to teach are left out.
        """
        names = job.class_names
        found = read_boxes(job.labels, names)
        thresholds, report = _thresholds(found, job.selection, names, job.validation)
        kept = (found.scores >= thresholds[found.labels]) & ~found.crowd
        if not kept.any():
            highest = f"the highest score is {found.scores.max():.3f}" if len(kept) else "there is none"
            raise UserError(
                f"selection keeps none of the {len(kept)} pseudo-labels; {highest}. Lower selection.threshold or"
                " selection.precision, or train a better teacher."
            )
        written = kept | found.crowd | (found.scores >= _ignore(job.selection))
        selected = take(found._replace(crowd=~kept), written)
        selected = images_of(selected, np.unique(found.image[kept]))
        write_boxes(selected, job.directory / "selected.json", names, job.data.class_ids)
        tally = Tally(
            class_names=names,
            thresholds=thresholds,
            labeled=counted(found.labels, names),
            kept=counted(found.labels[kept], names),
            taught=counted(selected.labels[~selected.crowd], names),
            images=len(selected.paths),
            distinct_images=len(selected.paths),
        )
        report |= tally.report() | {"pool_images": len(found.paths), "ignored": int(selected.crowd.sum())}
        return report | _compared(found, kept, annotated(job.truth, job.data), job.data, names)

    # What is most likely wrong.

    def agreements(self, selected: Path, relabeled: Path, class_names: list[str]) -> list[Agreement]:
        """F1 at an IoU of 0.5; the student's boxes count from the thresholds of the selection on."""
        taught, student = read_boxes(selected, class_names), read_boxes(relabeled, class_names)
        limits = read_json(selected.with_name("selection.json"))["thresholds"]
        least = np.array([np.inf if limits[name] is None else limits[name] for name in class_names])
        student = _of_paths(take(student, student.scores >= least[student.labels]), taught.paths)
        size = len(taught.paths)
        matching = match(objects_of(student), objects_of(taught), len(class_names), size)
        hits = np.bincount(matching.image[matching.hit], minlength=size)
        wrong = np.bincount(matching.image[~matching.hit & ~matching.ignored], minlength=size)
        true = np.bincount(matching.true_image[~matching.crowd], minlength=size)
        f1 = 2 * hits / np.maximum(1, hits + wrong + true)

        def one(i: int) -> Agreement:
            rows = (taught.image == i) & ~taught.crowd, student.image == i
            counts = {"taught": int(rows[0].sum()), "student": int(rows[1].sum())}
            sides = [_shown(boxes, row) for boxes, row in zip((taught, student), rows, strict=True)]
            return Agreement(taught.paths[i], float(f1[i]), lambda: sides, counts)

        return [one(i) for i in range(size)]


BOXES = BoxKind()


def _ignore(selection: Selection) -> float:
    return IGNORE if selection.ignore is None else selection.ignore


def _thresholds(
    found: Boxes, selection: Selection, names: list[str], validation: Path | None
) -> tuple[NDArray[np.float64], dict[str, Any]]:
    """One threshold a class, and for the report how it was found; boxes that are dropped anyway do not take part."""
    ignore = _ignore(selection)
    seen = None
    if validation is not None and selection.precision is not None:
        with np.load(validation) as known:
            # Boxes that found a crowd are neither right nor wrong. The first row is of an IoU of 0.5.
            taking_part = ~known["ignored"][0] & (known["scores"] >= ignore)
            seen = Evaluated(known["labels"][taking_part], known["scores"][taking_part], known["hit"][0][taking_part])
    sure = found.scores >= ignore
    thresholds, report = thresholds_of(selection, found.labels[sure], found.scores[sure], names, seen)
    if isinstance(selection.threshold, dict):  # a class that is not named is not taught
        thresholds[[name not in selection.threshold for name in names]] = np.inf
    return thresholds, report


def _compared(
    found: Boxes, kept: NDArray[np.bool_], records: Mapping[int, Record], data: Any, names: list[str]
) -> dict[str, Any]:
    """Precision, and how many of the true objects are taught, where the truth is known."""
    if not records:
        return {}
    places = indices(list(records))
    true = objects_of(true_boxes(list(records.values()), data))

    def matched(rows: NDArray[np.bool_]) -> Matching:
        return match(objects_of(images_of(take(found, rows), places)), true, len(names), len(places))

    everything, taught = matched(~found.crowd), matched(kept)
    report = precision_report(names, _correct(everything, names), _correct(taught, names), taught.num_truths)
    return report | {"found": fraction(taught.hit.sum(), taught.num_truths.sum()) or 0.0}


def _correct(matching: Matching, names: list[str]) -> Correct:
    """Boxes that find an object of their class at an IoU of 0.5; what found a crowd does not count."""
    known = ~matching.ignored
    return Correct(counted(matching.labels[matching.hit & known], names), counted(matching.labels[known], names))


def _of_paths(found: Boxes, paths: Sequence[str]) -> Boxes:
    """The boxes of some images, which are numbered in the order of ``paths``."""
    place_of = {path: place for place, path in enumerate(paths)}
    new = np.array([place_of.get(path, -1) for path in found.paths], np.int64)[found.image]
    found = take(found._replace(image=new), new >= 0)
    found = take(found, np.argsort(found.image, kind="stable"))
    size_of = dict(zip(found.paths, found.sizes, strict=True))
    return found._replace(paths=list(paths), sizes=[size_of[path] for path in paths])


def _shown(boxes: Boxes, rows: NDArray[np.bool_]) -> dict[str, Any]:
    return {"boxes": boxes.boxes[rows], "labels": boxes.labels[rows], "scores": boxes.scores[rows]}
