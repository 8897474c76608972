"""Pseudo-labels of boxes: a COCO file with a score for each, which is an ordinary data set."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from datamodules.common.errors import UserError
from datamodules.decoding.images import read_image
from pipelines.fusion import fused
from pipelines.noisy_student.kinds.box_files import (
    Boxes,
    images_of,
    objects_of,
    read_boxes,
    take,
    true_boxes,
    write_boxes,
)
from pipelines.noisy_student.manifest import write_json
from pipelines.noisy_student.paths import beside
from pipelines.noisy_student.scorers import average_precision
from pipelines.noisy_student.selection import (
    LEAST_SCORE,
    Judged,
    Selection,
    by_class,
    fixed_thresholds,
    thresholds_for,
)
from pipelines.outputs.detections import entry_of
from pipelines.outputs.drawing import drawn, rescaled, resized
from pipelines.outputs.palettes import class_palette
from pipelines.outputs.panels import display_size
from tasks.detection.evaluation.matching import Matching, match
from tasks.detection.evaluation.metrics import COCO_IOUS

if TYPE_CHECKING:
    from datamodules.annotations.records import Record
    from pipelines.noisy_student.labelling import Pool, Teacher

METRIC = "mAP"
UNIT = "boxes"
LABELS = PART = ".json"
JUDGED = ".npz"
REPLICATES = 2_000  # of the bootstrap; each ranks all boxes again
TILE = 320  # two pictures side by side
SOFT_FILES = False
SOURCE_ARGUMENTS: tuple[str, ...] = (
    *("source", "format", "image_root", "class_ids", "voc_one_based", "voc_difficult", "num_scenes", "scene_digits"),
    *("val_fraction", "test_fraction", "split_seed", "split_file"),
)
IGNORE = 0.1  # score from which on a box that is not taught is no background either


# What is refused.


def check_data(data: Any) -> None:
    """Refuse masks of objects.

    Raises:
        UserError: Naming the key.
    """
    if data.masks:
        raise UserError(
            "data.masks is true, but masks of objects are not pseudo-labelled: leave it out, and take a detector of"
            " boxes, for example faster_rcnn for mask_rcnn."
        )


def check_selection(selection: Selection) -> None:
    """Refuse what has no meaning for boxes.

    Raises:
        UserError: Naming the key and what to do in its place.
    """
    if selection.balance:
        raise UserError(
            "selection.balance is true, but an image has boxes of several classes: set data.balance: sampler for the"
            " student, which draws images of rare classes more often."
        )
    ignore = _ignore(selection)
    values = selection.threshold if isinstance(selection.threshold, dict) else {"": selection.threshold}
    for name, value in values.items():
        if selection.precision is None and value < ignore:
            where = f" of '{name}'" if name else ""
            raise UserError(
                f"selection.threshold{where} is {value:g}, but boxes below selection.ignore ({ignore:g}) are dropped:"
                " give a higher one, for example 0.5, or selection.precision: 0.9."
            )


def _ignore(selection: Selection) -> float:
    return IGNORE if selection.ignore is None else selection.ignore


def annotation(record: Record) -> Any:
    """What tells one annotation from another, as a plain value."""
    if "scene" in record:
        return list(record["scene"])
    return [record[key].tolist() for key in ("boxes", "labels", "iscrowd")]


def truth_of(record: Record) -> str | None:
    """What ``truth.json`` holds of an image: the path of the annotated record; None where nothing is known."""
    return str(record["path"]) if "boxes" in record or "scene" in record else None


def unlabelled_arguments(class_names: list[str]) -> dict[str, Any]:
    """Arguments of the data that reads the selected boxes, beside ``source``."""
    return {"class_names": class_names, "val_fraction": 0.0}


# Labelling.


def prepare(task: Any, *, soft: bool) -> None:
    """Refuse a teacher that gives masks, and soft labels."""
    if soft:
        raise UserError("soft is true, but a box has one class and a score: only labels of pixels can be soft.")
    if getattr(task, "has_masks", False):
        raise UserError(
            f"The teacher is a {task.detector}, but masks of objects are not pseudo-labelled: take a detector of boxes."
        )


def together(teachers: Sequence[Teacher]) -> AbstractContextManager[Sequence[Teacher]]:
    """Each teacher labels; ``merge`` fuses the boxes."""
    return nullcontext(teachers)


def rows_of(outputs: Mapping[str, Any], batch: Mapping[str, Any], pool: Pool) -> list[Any]:
    """What is kept of a batch: one entry of ``entry_of`` an image."""
    sizes = [(round(height), round(width)) for height, width in batch["geometry"][:, :2].tolist()]
    return [entry_of(outputs, i, size) for i, size in enumerate(sizes)]


def write_part(file: Any, rows: list[Any]) -> None:
    """Write a chunk into an open file."""
    file.write(json.dumps(rows).encode())


def merge(output: Path, pools: Sequence[Pool], class_names: list[str], digest: str, *, every: bool) -> None:
    """Write the boxes of all chunks, those of a score of at least ``LEAST_SCORE``; all of them with ``every``."""
    each = [[entry for file in pool.files() for entry in json.loads(file.read_text())] for pool in pools]
    entries = each[0] if len(pools) == 1 else [fused(entries) for entries in zip(*each, strict=True)]
    paths = [record["path"] for record in pools[0].records]
    image = np.repeat(np.arange(len(paths)), [len(entry["labels"]) for entry in entries])
    corners = np.array([box for entry in entries for box in entry["bbox"]], np.float64).reshape(-1, 4)
    corners[:, 2:] += corners[:, :2]
    scores = np.array([score for entry in entries for score in entry["scores"]], np.float32)
    labels = np.array([label for entry in entries for label in entry["labels"]], np.int64)
    found = Boxes(
        paths,
        [tuple(entry["size"]) for entry in entries],
        image,
        corners.astype(np.float32),
        labels,
        scores,
        np.zeros(len(image), np.bool_),
    )
    if not every:
        found = take(found, scores >= LEAST_SCORE)
    write_boxes(found, output, class_names, pools[0].data.class_ids, digest)  # type: ignore[attr-defined]


def digest_in(file: Path) -> str | None:
    """The digest that a file of labels carries."""
    if not file.is_file():
        return None
    note = json.loads(file.read_text(encoding="utf-8")).get("info", {}).get("pseudo_label", {})
    digest: str | None = note.get("digest")
    return digest


# Scores.


def judge(labels: Path, records: Sequence[Record], data: Any, task: Any, output: Path) -> None:
    """Match boxes with the truth, at COCO's ten IoU thresholds, and write what ``scores`` needs.

    Args:
        labels: A model's boxes for the records.
        records: Annotated images.
        data: Whose they are.
        task: The model: how many detections of an image and class count.
        output: An ``.npz`` file: ``image``, ``labels``, ``scores`` (D,) in the order of falling score, ``hit`` and
            ``ignored`` bool (10, D), ``truths`` int64 (N, K).
    """
    classes, size = len(data.class_names), len(records)
    found, true = objects_of(read_boxes(labels, data.class_names)), objects_of(true_boxes(records, data))
    most = int(getattr(task, "max_detections", 100))
    each = [match(found, true, classes, size, iou_threshold=iou, max_detections=most) for iou in COCO_IOUS]
    single = ~true.crowd
    truths = np.zeros((size, classes), np.int64)
    np.add.at(truths, (true.image[single], true.labels[single]), 1)
    temporary = beside(output)
    with open(temporary, "wb") as file:
        np.savez(
            file,
            image=each[0].image,
            labels=each[0].labels,
            scores=each[0].scores,
            hit=np.stack([m.hit for m in each]),
            ignored=np.stack([m.ignored for m in each]),
            truths=truths,
        )
    os.replace(temporary, output)


def scores(file: Path, truth: Sequence[Any], counts: NDArray[Any]) -> dict[str, NDArray[np.float64]]:
    """Scores of a model on resamples (R, N) of the images, each (R,)."""
    with np.load(file) as known:
        columns = [known[key] for key in ("image", "labels", "hit", "ignored", "truths")]
    table = average_precision(counts, *columns)
    return {METRIC: table.mean(1), "AP50": table[:, 0]}


# Selection.


def choose(
    directory: Path,
    data: Any,
    selection: Selection,
    labels_file: Path,
    validation_file: Path | None,
    truth: Mapping[str, Any],
    seed: int,
) -> dict[str, Any]:
    """Write ``selected.json`` and ``selection.json``; see ``images.choose``.

    Boxes that reach the threshold of their class are taught. Those between it and ``selection.ignore`` become crowds,
    on which detectors learn neither an object nor background. Images without a box to teach are left out.

    Raises:
        UserError: If nothing is kept, or a target precision lacks its validation images.
    """
    names = list(truth["class_names"])
    found = read_boxes(labels_file, names)
    ignore = _ignore(selection)
    account: dict[str, Any] = {}
    if selection.precision is not None:
        if validation_file is None:
            raise UserError("selection.precision needs labelled validation images: set data.val_fraction.")
        with np.load(validation_file) as known:
            counted = ~known["ignored"][0] & (known["scores"] >= ignore)
            seen = Judged(known["labels"][counted], known["scores"][counted], known["hit"][0][counted])
        sure = found.scores >= ignore
        thresholds, account = thresholds_for(found.labels[sure], found.scores[sure], names, selection, seen)
        thresholds = np.maximum(thresholds, ignore)
    else:
        thresholds = fixed_thresholds(names, selection.threshold)
        if isinstance(selection.threshold, dict):  # a class that is not named is not taught
            thresholds[[name not in selection.threshold for name in names]] = np.inf
    kept = (found.scores >= thresholds[found.labels]) & ~found.crowd
    if not kept.any():
        highest = f"the highest score is {found.scores.max():.3f}" if len(kept) else "there is none"
        raise UserError(
            f"selection keeps none of the {len(kept)} pseudo-labels; {highest}. Lower selection.threshold or"
            " selection.precision, or train a better teacher."
        )
    chosen = found._replace(crowd=found.crowd | ~kept)
    chosen = images_of(take(chosen, kept | found.crowd | (found.scores >= ignore)), np.unique(found.image[kept]))
    write_boxes(chosen, directory / "selected.json", names, data.class_ids)
    account |= _describe(found, kept, chosen, thresholds, names) | {"ignored": int(chosen.crowd.sum())}
    account |= _compared(found, kept, truth["pool"], data, names) | {"labels": labels_file.name}
    write_json(directory / "selection.json", account)
    return account


def _describe(
    found: Boxes, kept: NDArray[np.bool_], chosen: Boxes, thresholds: NDArray[np.float64], names: list[str]
) -> dict[str, Any]:
    """Counts of the account."""

    def count(labels: NDArray[np.int64]) -> dict[str, Any]:
        return by_class(names, np.bincount(labels, minlength=len(names)).tolist())

    return {
        "unit": UNIT,
        "pool": len(kept),
        "kept": int(kept.sum()),
        "coverage": float(kept.mean()),
        "pool_images": len(found.paths),
        "images": len(chosen.paths),
        "distinct_images": len(chosen.paths),
        "thresholds": by_class(names, [None if np.isinf(t) else float(t) for t in thresholds]),
        "labelled_as": count(found.labels),
        "kept_as": count(found.labels[kept]),
        "taught_as": count(chosen.labels[~chosen.crowd]),
    }


def _compared(found: Boxes, kept: NDArray[np.bool_], truth: Sequence[Any], data: Any, names: list[str]) -> Any:
    """Precision, and how many of the true objects are taught, where the truth is known."""
    records = {record["path"]: record for record in data.records["train"]} if any(truth) else {}
    places = np.array([i for i, path in enumerate(truth) if path is not None], np.int64)
    if not len(places):
        return {}
    true = true_boxes([records[truth[i]] for i in places], data)
    some = images_of(take(found, ~found.crowd), places)
    is_kept = kept[~found.crowd][np.isin(found.image[~found.crowd], places)]
    everything, taught = (
        match(objects_of(part), objects_of(true), len(names), len(places)) for part in (some, take(some, is_kept))
    )
    here = taught.hit, ~taught.ignored
    return {
        "precision_of_all": _precision(everything),
        "precision": _precision(taught),
        "precision_by_class": by_class(names, [_precision(taught, k) for k in range(len(names))]),
        "found": float(here[0].sum() / max(1, taught.num_truths.sum())),
        "truth_of_taught": by_class(names, taught.num_truths.tolist()),
    }


def _precision(matching: Matching, label: int | None = None) -> float | None:
    """Part of the boxes that find an object of their class at an IoU of 0.5."""
    counted = ~matching.ignored & (True if label is None else matching.labels == label)
    return float(matching.hit[counted].mean()) if counted.any() else None


# What is most likely wrong.


def suspects(
    selected: Path, judged: Path, pool: Sequence[Record], truth: Mapping[str, Any], data: Any, count: int
) -> tuple[list[dict[str, Any]], list[Any], list[str]]:
    """Images whose taught boxes and those of the last student agree least (F1 at an IoU of 0.5); see ``images``.

    The student's boxes count from the thresholds of the selection on; pictures show both side by side.
    """
    names = list(truth["class_names"])
    taught, student = read_boxes(selected, names), read_boxes(judged, names)
    limits = json.loads(selected.with_name("selection.json").read_text())["thresholds"]
    least = np.array([np.inf if limits[name] is None else limits[name] for name in names])
    places = {path: i for i, path in enumerate(student.paths)}
    where = np.array([places[path] for path in taught.paths], np.int64)
    order = np.argsort(where)  # the file may have been put into another order
    student = images_of(take(student, student.scores >= least[student.labels]), where[order])
    size = len(taught.paths)
    rank = np.empty(size, np.int64)
    rank[order] = np.arange(size)
    matching = match(objects_of(student), objects_of(taught._replace(image=rank[taught.image])), len(names), size)
    hits, wrong = (
        np.bincount(matching.image[part], minlength=size) for part in (matching.hit, ~matching.hit & ~matching.ignored)
    )
    true = np.bincount(matching.true_image[~matching.crowd], minlength=size)
    agreement = (2 * hits / np.maximum(1, hits + wrong + true))[rank]
    palette = class_palette(names)
    files = {record["path"]: record["image"] for record in pool}
    found, pictures, captions = [], [], []
    for i in sorted(range(size), key=lambda i: (agreement[i], taught.paths[i]))[:count]:
        path = taught.paths[i]
        rows = (taught.image == i) & ~taught.crowd, student.image == rank[i]
        found.append({"path": path, "agreement": float(agreement[i]), "taught": int(rows[0].sum())})
        found[-1]["student"] = int(rows[1].sum())
        image = read_image(files.get(path, path))
        new = display_size(image.shape[:2])
        sides = []
        for boxes, row in zip((taught, student), rows, strict=True):
            shown = {"boxes": boxes.boxes[row], "labels": boxes.labels[row], "scores": boxes.scores[row]}
            sides.append(drawn(resized(image, new), rescaled(shown, image.shape[:2], new), palette, names))
        pictures.append(np.concatenate(sides, axis=1))
        captions.append(f"taught | student: they agree to {agreement[i]:.0%}")
    return found, pictures, captions
