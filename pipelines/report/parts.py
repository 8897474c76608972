"""Sections of a report that every task has: metrics with intervals, calibration, properties of pictures, thumbnails."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from datamodules.decoding.images import read_image
from pipelines.outputs import page
from pipelines.outputs.sheets import EMPTY, Picture, rgb
from pipelines.outputs.svg import Series, chart
from pipelines.report.collect import from_png
from pipelines.report.measured import Measured
from pipelines.report.scoring import FEW, Scorer, scored

Floats = NDArray[np.float64]
BINS = 15  # of a reliability diagram, as the metric `ece`
PARTS = 4  # of the images by a property
MAX_CURVES = 6
SIDE = 220  # pixels of a thumbnail
SPLITS = {"val": "validation", "test": "test"}
WORDS = {
    "f1": "F1, mean of the classes",
    "f1_micro": "F1 of all labels together",
    "mean_average_precision": "mean average precision of the labels",
    "top5": "accuracy among the best 5",
    "loss": "negative log-likelihood",
    "miou": "mean IoU",
    "mean_accuracy": "mean recall of the classes",
    "map_50": "AP50",
    "map": "mAP (IoU 0.5 to 0.95)",
}


def word(metric: str) -> str:
    """A metric's name for people."""
    return WORDS.get(metric, metric)


def with_interval(found: Mapping[str, Any]) -> str:
    """``0.912 [0.894, 0.930]``."""
    mean = "undefined" if np.isnan(found["mean"]) else f"{found['mean']:.4f}"
    return f"{mean} [{found['low']:.4f}, {found['high']:.4f}]"


def metrics_table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Scores with their intervals."""
    rows = [
        [page.escaped(word(name)), f"<b>{one['mean']:.4f}</b>", f"{one['low']:.4f} to {one['high']:.4f}"]
        for name, one in found.items()
    ]
    return page.table(["metric", "value", "95 %"], rows)


# Calibration.

Answers = tuple[Floats, NDArray[np.bool_], NDArray[np.int64]]
"""Of each answer its probability, whether it is right, and its image."""


def bins_of(answers: Answers, images: int) -> Floats:
    """Number, sum of probabilities and right ones of each image and bin: float64 (N, ``BINS``, 3)."""
    confidence, right, image = answers
    cell = image * BINS + np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)
    sums = [np.bincount(cell, weights=w, minlength=images * BINS) for w in (None, confidence, right.astype(float))]
    return np.stack([np.asarray(s, np.float64).reshape(images, BINS) for s in sums], 2)


def calibration_scorer(bins: Floats) -> Scorer:
    """The expected calibration error (Naeini et al. 2015; Guo et al. 2017)."""
    flat = bins.reshape(len(bins), -1)

    def score(counts: NDArray[Any]) -> dict[str, Floats]:
        number, stated, right = np.moveaxis((np.asarray(counts, np.float64) @ flat).reshape(-1, BINS, 3), 2, 0)
        error = np.abs(stated - right).sum(1) / np.maximum(number.sum(1), 1)
        return {"calibration error": np.asarray(error)}

    return score


def calibration(
    measured: Measured, before: Answers, after: Answers | None, said: str, losses: Sequence[float] = ()
) -> str:
    """Reliability diagrams and the error with its interval, before and after temperature scaling.

    Args:
        measured: The images.
        before: Answers at a temperature of 1.
        after: Those at the checkpoint's; None where it has none.
        said: A sentence: what the temperature is, and where it was found.
        losses: Negative log-likelihood before and after, where there is one.
    """
    diagrams, rows = [], []
    named = [("before", before)] + ([("after temperature scaling", after)] if after is not None else [])
    for number, (name, answers) in enumerate(named):
        bins = bins_of(answers, len(measured))
        error = scored(measured, calibration_scorer(bins), FEW)["calibration error"]
        rows.append([name, f"<b>{error['mean']:.4f}</b>", f"{error['low']:.4f} to {error['high']:.4f}"])
        rows[-1].append(f"{losses[number]:.4f}" if losses else "")
        diagrams.append(_reliability(bins.sum(0), f"{name}: error {error['mean']:.3f}"))
    intro = (
        f"<p>How far stated probabilities can be trusted. {page.escaped(said)} Of few images the calibration error is"
        " too high, since no bin is ever quite right, and its interval, too; the likelihood is not.</p>"
    )
    head = ["", "calibration error", "95 %", "negative log-likelihood" if losses else ""]
    return f"{intro}{page.table(head, rows)}{''.join(diagrams)}"


def _reliability(bins: Floats, title: str) -> str:
    number, stated, right = bins.T
    centers = [(i + 0.5) / BINS for i in range(BINS)]
    share = np.where(number > 0, right / np.maximum(number, 1), np.nan)
    mean = np.where(number > 0, stated / np.maximum(number, 1), np.nan)
    series = [
        Series(centers, share.tolist(), "right", "steps"),
        Series(mean.tolist(), share.tolist(), "at the mean probability", "dots", color="#e45756"),
        Series([0, 1], [0, 1], "perfect", "dashed", color="#999"),
        Series(centers, (number / max(number.sum(), 1)).tolist(), "fraction of the answers", "line", color="#54a24b"),
    ]
    return chart(series, title, "stated probability", "fraction right", (0, 1), (0, 1))


# Thresholds.


def thresholds(confidence: Floats, right: NDArray[np.bool_], accuracy: str, share: str) -> str:
    """What is gained where answers below a probability are left out: a chart, its series with these names."""
    at = np.linspace(0, 1, 51)
    taken = confidence[None] >= at[:, None]
    known = np.where(taken.any(1), (taken & right).sum(1) / np.maximum(taken.sum(1), 1), np.nan)
    series = [Series(at.tolist(), known.tolist(), accuracy), Series(at.tolist(), taken.mean(1).tolist(), share)]
    return chart(series, "", "least probability", "", (0, 1), (0, 1.02))


# Precision and recall.


def precision_recall(classes: Sequence[tuple[str, NDArray[np.bool_], Floats]]) -> str:
    """One class against the others, by its probability: the worst and the best classes.

    Args:
        classes: Of each its name, which images are of it (N,), and its probability there (N,).
    """
    from sklearn.metrics import average_precision_score, precision_recall_curve

    known = [(float(average_precision_score(true, score)), n, true, score) for n, true, score in classes if true.any()]
    known.sort(key=lambda one: one[0])
    chosen = known if len(known) <= MAX_CURVES else [*known[: MAX_CURVES // 2], *known[-MAX_CURVES // 2 :]]
    series = []
    for average, name, true, score in chosen:
        precision, recall, _ = precision_recall_curve(true, score)
        step = max(1, len(recall) // 200)
        series.append(Series(recall[::step].tolist(), precision[::step].tolist(), f"{name} {average:.3f}"))
    mean = np.mean([one[0] for one in known]) if known else np.nan
    which = "all classes" if len(chosen) == len(known) else "the three worst and the three best classes"
    return (
        f"<p>Each class against the others, {which}; average precision in the legend, its mean over the classes is"
        f" {mean:.4f}.</p>" + chart(series, "", "recall", "precision", (0, 1), (0, 1.02))
    )


def counted(names: Sequence[str], counts: NDArray[Any]) -> str:
    """How many images there are of each class (K,), the most frequent ones first."""
    most = np.argsort(-counts, kind="stable")[:12]
    named = ", ".join(f"{page.escaped(names[k])}: {counts[k]:,}" for k in most.tolist())
    return named + (f" and {len(counts) - 12:,} more classes" if len(counts) > 12 else "")


# Properties of pictures.


def properties(measured: Measured, make_scorer: Callable[[Measured], Scorer], main: str) -> str:
    """The main metric of the images in ``PARTS`` parts of equal size, by brightness, sharpness and size.

    Args:
        measured: The images.
        make_scorer: Of some of the images.
        main: Name of the metric.
    """
    height, width = measured.arrays["size"].astype(np.float64).T
    values = {
        "brightness": measured.arrays["brightness"].astype(np.float64),
        "sharpness": measured.arrays["sharpness"].astype(np.float64),
        "size (root of pixels)": np.sqrt(height * width),
    }
    charts, rows = [], []
    for name, of_images in values.items():
        found = _by_parts(measured, of_images, make_scorer, main)
        if len(found) < 2:
            continue
        means, lows, highs = ([one[key] for _, _, one in found] for key in ("mean", "low", "high"))
        series = [Series(range(len(found)), means, style="dots", low=lows, high=highs)]
        labels = [f"{_short(low)} to {_short(high)}" for (low, high), _, _ in found]
        ends = (-0.5, len(found) - 0.5)
        charts.append(chart(series, f"{word(main)} by {name}", name, word(main), ends, None, labels))
        rows += [
            [f"{name} {label}", str(number), with_interval(one)]
            for label, (_, number, one) in zip(labels, found, strict=True)
        ]
    if not charts:
        return ""
    intro = (
        "<p>Sharpness is the deviation of the Laplacian: blurred pictures have a low one. The images of each property"
        f" in {PARTS} parts of equal number.</p>"
    )
    return f"{intro}{''.join(charts)}{page.table(['part', 'images', word(main)], rows)}"


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"


def _by_parts(
    measured: Measured, values: Floats, make_scorer: Callable[[Measured], Scorer], main: str
) -> list[tuple[tuple[float, float], int, dict[str, Any]]]:
    """Ends, number of images and score of each part that holds ten images or more."""
    if np.ptp(values) <= 1e-6 * max(1.0, float(np.abs(values).max())):
        return []
    edges = np.unique(np.quantile(values, np.linspace(0, 1, PARTS + 1)))
    number = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, max(0, len(edges) - 2))
    found = []
    for part in range(len(edges) - 1):
        which = np.flatnonzero(number == part)
        if len(which) >= 10:
            some = measured.take(which)
            ends = float(edges[part]), float(edges[part + 1])
            found.append((ends, len(which), scored(some, make_scorer(some), FEW)[main]))
    return found


# Pictures.


def original(measured: Measured, image: int) -> Picture | None:
    """An image's pixels, uint8 (H, W, 3); None where its file is gone."""
    kept = measured.entries("picture", image)
    if len(kept):
        return rgb(from_png(kept, color=True))
    try:
        return rgb(np.asarray(read_image(str(measured.arrays["path"][image]))))
    except (OSError, ValueError):
        return None


def thumbnail(pixels: Picture | None, side: int = SIDE) -> str:
    """A picture of at most so many pixels a side, as HTML; a gray tile for None."""
    if pixels is None:
        return page.picture(Image.new("RGB", (side // 2, side // 2), EMPTY), photo=True)
    factor = side / max(pixels.shape[:2])
    size = [max(1, round(length * factor)) for length in pixels.shape[1::-1]]
    how = cv2.INTER_NEAREST if factor >= 2 else cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
    return page.picture(np.asarray(cv2.resize(pixels, size, interpolation=how)), photo=True)


def mistakes(title: str, intro: str, figures: Sequence[tuple[str, str]]) -> str:
    """A gallery below a heading; nothing without figures."""
    if not figures:
        return ""
    return f"<h3>{page.escaped(title)}</h3><small>{page.escaped(intro)}</small>{page.gallery(figures, SIDE)}"
