"""Sections of a report about detected objects."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.outputs import page
from pipelines.outputs.box_errors import box_error_picture
from pipelines.outputs.drawing import draw_boxes
from pipelines.outputs.palettes import class_palette
from pipelines.outputs.sheets import Picture
from pipelines.outputs.svg import Series, chart
from pipelines.report import boxes, parts
from pipelines.report.measured import Measured
from pipelines.report.scoring import FEW, Scorer, scored
from pipelines.scorers import f1_of_counts
from tasks.detection.evaluation.curves import (
    RECALLS,
    confusion_matrix,
    error_kinds,
    f1_over_confidence,
    precision_recall,
)
from tasks.detection.evaluation.matching import Matching

SHOWN = 8
MAX_MATRIX = 25
MAX_CURVES = 6
SIDE = 300  # of an image's picture
SIZES = {"small (below 32 x 32)": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large (from 96 x 96)": (96.0**2, 1e18)}
CONFIDENCES = np.linspace(0, 1, 101)
#: Kinds of errors with what they mean; see ``tasks.detection.evaluation.curves.error_kinds``.
KINDS = {
    "correct": "found, right class, IoU of at least 0.5",
    "localization": "right class, IoU from 0.1 to below 0.5",
    "class": "right place, another class",
    "duplicate": "a second box for an object that was found",
    "background": "nothing is annotated there",
    "both": "wrong class, IoU from 0.1 to below 0.5",
    "missed": "an annotated object that nothing stands for",
}


def sections(measured: Measured, said: str) -> list[tuple[str, str]]:
    """Title and HTML of each section."""
    matching = boxes.matching_of(measured)
    return [
        ("Classes", _classes(measured, matching)),
        ("Confusions", _confusions(measured, matching)),
        ("Kinds of errors", _kinds(measured, matching)),
        ("Precision and recall, and thresholds", _curves(measured, matching)),
        ("Calibration", _calibration(measured)),
        ("Size of the objects", _sizes(measured, matching)),
        ("Properties of the pictures", parts.properties(measured, boxes.scorer_50, "map_50")),
        ("Mistakes", _mistakes(measured, matching)),
    ]


def described(measured: Measured) -> str:
    """How many objects of each class."""
    counts = np.bincount(measured.each["truth_labels"], minlength=len(measured.class_names))
    order = np.argsort(-counts, kind="stable")[:12].tolist()
    return f"{counts.sum():,} objects: " + ", ".join(
        f"{page.escaped(measured.class_names[k])}: {counts[k]:,}" for k in order
    )


def _tables(measured: Measured, matching: Matching) -> tuple[Any, Any, Any]:
    """Right, kept and true objects of each image and class at the thresholds, (N, K)."""
    kept = matching.kept(boxes.thresholds(measured)) & ~matching.ignored
    right, single = kept & matching.hit, ~matching.crowd
    return (
        boxes.by_class(matching.image[right], matching.labels[right], measured),
        boxes.by_class(matching.image[kept], matching.labels[kept], measured),
        boxes.by_class(matching.true_image[single], matching.true_labels[single], measured),
    )


def _classes(measured: Measured, matching: Matching) -> str:
    hits, kept, true = _tables(measured, matching)

    def score(counts: NDArray[Any]) -> dict[str, NDArray[np.float64]]:
        f1 = f1_of_counts(counts, hits, kept, true)
        return {str(k): f1[:, k] for k in range(f1.shape[1])}

    f1, curves, at = scored(measured, score, FEW), precision_recall(matching), boxes.thresholds(measured)
    rows = []
    for k, name in enumerate(measured.class_names):
        right, number, objects = (float(table[:, k].sum()) for table in (hits, kept, true))
        precision, recall = (f"{right / total:.4f}" if total else "" for total in (number, objects))
        ap = f"{curves[k].average_precision():.4f}" if objects else ""
        whole = parts.with_interval(f1[str(k)]) if number + objects else ""
        rows.append([page.escaped(name), f"{objects:,.0f}", ap, f"{at[k]:.3f}", precision, recall, whole])
    head = ["class", "objects", "AP50", "threshold", "precision", "recall", "F1 [95 %]"]
    said = "<p>Precision, recall and F1 (IoU 0.5) at the class's threshold, that of the best F1 on validation.</p>"
    return said + page.table(head, rows)


def _confusions(measured: Measured, matching: Matching) -> str:
    names = [*measured.class_names, "background"]
    matrix = confusion_matrix(matching, boxes.thresholds(measured))
    return page.matrix(matrix, names) if len(names) <= MAX_MATRIX else ""


def _kinds(measured: Measured, matching: Matching) -> str:
    found = error_kinds(matching, boxes.thresholds(measured))
    rows = [[kind, f"{int(found[kind].sum()):,}", what] for kind, what in KINDS.items()]
    what = "masks" if measured.facts.get("masks") else "boxes"
    intro = f"<p>The kinds of TIDE, of {what} at the classes' thresholds.</p>"
    return intro + page.table(["kind", "objects", "meaning"], rows, texts=(0, 2))


def _curves(measured: Measured, matching: Matching) -> str:
    curves = precision_recall(matching)
    known = sorted((c.average_precision(), k) for k, c in enumerate(curves) if c.num_truths)
    chosen = known if len(known) <= MAX_CURVES else [*known[: MAX_CURVES // 2], *known[-MAX_CURVES // 2 :]]
    names = measured.class_names
    recall = [Series(RECALLS.tolist(), curves[k].interpolated().tolist(), f"{names[k]} {ap:.3f}") for ap, k in chosen]
    f1 = f1_over_confidence(curves, CONFIDENCES)
    at = [Series(CONFIDENCES.tolist(), f1[k].tolist(), names[k]) for _, k in chosen]
    which = "" if len(chosen) == len(known) else "<p>The three worst and the three best classes.</p>"
    return (
        which
        + chart(recall, "average precision in the legend", "recall", "precision at IoU 0.5", (0, 1), (0, 1.02))
        + chart(at, "", "confidence", "F1 at IoU 0.5", (0, 1), (0, 1.02))
    )


def _calibration(measured: Measured) -> str:
    before = boxes.confidences(measured)
    if not len(before[0]):
        return ""
    said, temperature = "Of all boxes, right at an IoU of 0.5.", measured.facts.get("score_temperature")
    if temperature is None:
        return parts.calibration(measured, before, None, f"{said} After a test there is a temperature, too.")
    losses = [boxes.likelihood(before[0], before[1], t) for t in (1.0, temperature)]
    said += (
        f" Temperature {temperature:.3f}, by which the logits of the scores would have to be divided, found on the"
        " validation images, not on these; nothing uses it, since the order of the boxes, and with it every metric,"
        " stays the same."
    )
    return parts.calibration(measured, before, boxes.confidences(measured, temperature), said, losses)


def _sizes(measured: Measured, matching: Matching) -> str:
    found = matching.found(matching.kept(boxes.thresholds(measured)))
    area = measured.each["truth_area"]
    rows = []
    for name, (low, high) in SIZES.items():
        mine = (area >= low) & (area < high) & ~matching.crowd
        if not mine.any():
            continue
        recall = scored(measured, _recall(matching, mine & found, mine), FEW)
        ap = scored(measured, boxes.size_scorer(measured, low, high), FEW)
        mean = float(boxes.size_scorer(measured, low, high, boxes.IOUS)(np.ones((1, len(measured)), np.int64))["ap"][0])
        found_of = [parts.with_interval(recall["recall"]), parts.with_interval(ap["ap"])]
        rows.append([name, f"{mine.sum():,}", *found_of, f"{mean:.4f}"])
    said = (
        "<p>Found: at the classes' thresholds, IoU 0.5. Average precision as COCO's: objects of another size, and what"
        " finds them, count neither way.</p>"
    )
    head = ["area in pixels", "objects", "found [95 %]", "AP50 [95 %]", "mAP"]
    return said + page.table(head, rows)


def _recall(matching: Matching, found: NDArray[np.bool_], objects: NDArray[np.bool_]) -> Scorer:
    """Which fraction of some annotated objects is found."""
    hits, total = (np.bincount(matching.true_image[w], minlength=matching.num_images) for w in (found, objects))
    return lambda counts: {"recall": (counts @ hits) / np.maximum(counts @ total, 1)}


def _mistakes(measured: Measured, matching: Matching) -> str:
    kept, f1 = matching.kept(boxes.thresholds(measured)), _image_f1(measured, matching)
    worst = [i for i in np.argsort(f1, kind="stable").tolist() if f1[i] < 1][:SHOWN]
    false = np.flatnonzero(kept & (matching.truth < 0))[:SHOWN].tolist()
    missed = np.flatnonzero(~matching.found(kept) & ~matching.crowd)
    missed = missed[np.argsort(-measured.each["truth_area"][missed], kind="stable")][:SHOWN]
    order = np.lexsort((measured.image_of("scores"), -measured.each["scores"]))
    wrong = [
        _around(
            measured,
            int(matching.image[d]),
            measured.each["boxes"][order[d]],
            int(matching.labels[d]),
            float(matching.scores[d]),
        )
        for d in false
    ]
    lost = [
        _around(
            measured, int(matching.true_image[t]), measured.each["truth_boxes"][t], int(matching.true_labels[t]), None
        )
        for t in missed.tolist()
    ]
    return (
        parts.mistakes(
            "The worst images",
            "Right boxes green, wrong ones red, missed objects orange.",
            [
                (parts.thumbnail(errors(measured, i), SIDE), f"F1 {f1[i]:.3f}<br>{page.escaped(measured.names[i])}")
                for i in worst
            ],
        )
        + parts.mistakes(
            "The most confident mistakes",
            "Boxes that found nothing of their class. Some may be missing in the annotations.",
            wrong,
        )
        + parts.mistakes("The largest missed objects", "", lost)
    )


def shown_boxes(measured: Measured, image: int) -> dict[str, NDArray[Any]]:
    """What is drawn of an image's detections: those that reach their class's threshold."""
    found = {name: measured.entries(name, image) for name in ("boxes", "scores", "labels")}
    keep = found["scores"] >= boxes.thresholds(measured)[found["labels"]]
    return {name: values[keep] for name, values in found.items()}


def errors(measured: Measured, image: int) -> Picture | None:
    """The picture with right, wrong and missed boxes."""
    pixels = parts.original(measured, image)
    if pixels is None:
        return None
    truth = {name: measured.entries(f"truth_{name}", image) for name in ("boxes", "labels")}
    found = shown_boxes(measured, image)
    pixels, factor = _enlarged(pixels)
    truth["boxes"], found["boxes"] = truth["boxes"] * factor, found["boxes"] * factor
    return box_error_picture(pixels, {**truth, "iscrowd": measured.entries("truth_crowd", image)}, found)


def _enlarged(pixels: Picture) -> tuple[Picture, int]:
    """A small picture with larger pixels, and how much larger: lines that are drawn on it are to hide little."""
    factor = max(1, SIDE // max(pixels.shape[:2]))
    return pixels.repeat(factor, 0).repeat(factor, 1), factor


def _around(measured: Measured, image: int, box: NDArray[Any], label: int, score: float | None) -> tuple[str, str]:
    """A box and what lies around it."""
    pixels = parts.original(measured, image)
    names = measured.class_names
    number = "" if score is None else f" {score:.2f}"
    caption = f"{page.escaped(names[label])}{number}<br>{page.escaped(measured.names[image])}"
    if pixels is None:
        return parts.thumbnail(None), caption
    pixels, factor = _enlarged(pixels)
    box = box * factor
    drawn = draw_boxes(pixels, box[None], np.array([label]), None, names, class_palette(names, None))
    height, width = pixels.shape[:2]
    side = max(64.0 * factor, 2.5 * float(max(box[2] - box[0], box[3] - box[1])))
    left, top = (int(max(0, (box[i] + box[i + 2] - side) / 2)) for i in (0, 1))
    return parts.thumbnail(drawn[top : min(height, int(top + side)), left : min(width, int(left + side))]), caption


def image_scores(measured: Measured) -> NDArray[np.float64]:
    """How good each image's answer is, (N,): F1 of its objects at the thresholds."""
    return _image_f1(measured, boxes.matching_of(measured))


def _image_f1(measured: Measured, matching: Matching) -> NDArray[np.float64]:
    hits, number, true = (table.sum(1) for table in _tables(measured, matching))
    return np.asarray(np.where(number + true > 0, 2 * hits / np.maximum(number + true, 1), 1.0))


def pictures(one: Measured, other: Measured, image: int) -> str:
    """The errors of two models in an image."""
    return "".join(parts.thumbnail(errors(measured, image), SIDE) for measured in (one, other))


def answer(measured: Measured, image: int) -> str:
    """How good a model's answer is."""
    return f"F1 {image_scores(measured.take([image]))[0]:.3f}"
