"""The evaluation of boxes: ours, pycocotools and torchmetrics' MeanAveragePrecision on the same random detections."""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics.detection import MeanAveragePrecision

from benchmarks.common import Row, Unavailable, alternate, per_round, row
from tasks.detection.evaluation.metrics import CocoMetrics

Found = list[dict[str, Tensor]]
BATCH = 16


def evaluation(
    repeats: int, images: int = 5_000, part: int = 500, boxes: int = 100, truths: int = 7, classes: int = 80
) -> list[Row]:
    """CPU seconds of an evaluation, from tensors to figures; pycocotools is given COCO's lists, ready made.

    The time goes with the number of images, so the others see a part of them, which ours sees too.

    Args:
        repeats: Rounds.
        images: Images that ours evaluates.
        part: Images that are compared on.
        boxes: Detections an image; as many as COCO's ``maxDets``.
        truths: Annotations an image; COCO has 7.
        classes: K.

    Raises:
        Unavailable: If pycocotools is not installed.
    """
    try:
        import pycocotools.cocoeval  # noqa: F401 - for tests and benchmarks only
    except ImportError as error:
        raise Unavailable("the evaluation is compared with pycocotools: pip install pycocotools.") from error
    found, true = random_detections(images, boxes, truths, classes)
    data, results = as_coco(found[:part], true[:part], classes)
    values: dict[str, float] = {}

    def timed(name: str, work: Callable[[], float]) -> Callable[[], float]:
        def once() -> float:
            started = time.process_time()
            values[name] = work()
            return time.process_time() - started

        return once

    small = found[:part], true[:part]
    of = f"evaluation of {part:,} images with {boxes} boxes"
    variants = {
        f"{of}, ours": timed("ours", lambda: ours_map(*small, classes)),
        f"{of}, pycocotools": timed("pycocotools", lambda: pycocotools_map(data, results)),
    }
    for backend in ("pycocotools", "faster_coco_eval"):
        work = torchmetrics_map(backend, *small)
        variants[f"{of}, torchmetrics on {backend}"] = timed(f"torchmetrics on {backend}", work)
    seconds = alternate(variants, repeats)
    # torchmetrics turns corners into sides in float32, which moves an IoU over a threshold now and then.
    limits = {name: 1e-6 if name == "pycocotools" else 1e-2 for name in values}
    wrong = {name: value for name, value in values.items() if abs(value - values["ours"]) > limits[name]}
    if wrong:
        raise AssertionError(f"the mAP differs: ours {values['ours']}, {wrong}")
    whole = alternate({"ours": timed("whole", lambda: ours_map(found, true, classes))}, repeats)["ours"]
    rows = [row(f"evaluation of {images:,} images with {boxes} boxes, ours", whole, "s", "<= 20")]
    rows += [row(name, runs, "s") for name, runs in seconds.items()]
    mine, *others = seconds.values()
    for name, runs, goal in zip(list(values)[1:], others, (">= 5", "", ""), strict=False):
        rows.append(row(f"evaluation, {name} over ours", per_round(lambda a, b: a / b, runs, mine), "x", goal))
    return rows


def random_detections(images: int, boxes: int, truths: int, classes: int, seed: int = 0) -> tuple[Found, Found]:
    """Detections of which three in four lie near an annotation of their class, and the annotations."""
    rng = np.random.default_rng(seed)
    found, true = [], []
    for _ in range(images):
        place, number = random_boxes(rng, truths), rng.integers(0, classes, truths)
        source, near = rng.integers(0, truths, boxes), rng.random(boxes) < 0.75
        moved = place[source] + rng.normal(0, 3, (boxes, 4))
        moved[:, 2:] = np.maximum(moved[:, 2:], moved[:, :2] + 1)
        corners = np.where(near[:, None], moved, random_boxes(rng, boxes)).astype(np.float32)
        labels = np.where(near, number[source], rng.integers(0, classes, boxes))
        scores = torch.from_numpy(rng.random(boxes).astype(np.float32))
        found.append({"boxes": torch.from_numpy(corners), "scores": scores, "labels": torch.from_numpy(labels)})
        true.append({"boxes": torch.from_numpy(place.astype(np.float32)), "labels": torch.from_numpy(number)})
    return found, true


def random_boxes(rng: np.random.Generator, count: int, side: int = 640) -> Any:
    """float64 (count, 4), x1 y1 x2 y2: of 8 to 300 pixels a side, and inside the picture."""
    low = rng.uniform(0, side - 8, (count, 2))
    return np.concatenate([low, np.minimum(low + np.exp(rng.uniform(2.1, 5.7, (count, 2))), side)], 1)


def ours_map(found: Found, true: Found, classes: int) -> float:
    """All of `CocoMetrics`: also the curves' thresholds."""
    metric = CocoMetrics(classes)
    for first in range(0, len(found), BATCH):
        part = found[first : first + BATCH]
        predictions = {key: [image[key] for image in part] for key in part[0]}
        metric.update(predictions, true[first : first + BATCH], range(first, first + len(part)))
    return float(metric.compute()["map"])


def torchmetrics_map(backend: str, found: Found, true: Found) -> Callable[[], float]:
    """The same by torchmetrics."""

    def work() -> float:
        metric = MeanAveragePrecision(backend=backend)
        for first in range(0, len(found), BATCH):
            metric.update(found[first : first + BATCH], true[first : first + BATCH])
        with contextlib.redirect_stdout(io.StringIO()):
            return float(metric.compute()["map"])

    return work


def as_coco(found: Found, true: Found, classes: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A COCO data set and results as its files hold them."""
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for image, (detections, truth) in enumerate(zip(found, true, strict=True)):
        for part, entries in ((truth, annotations), (detections, results)):
            boxes = part["boxes"].double()
            boxes[:, 2:] -= boxes[:, :2]
            for box, label in zip(boxes.tolist(), part["labels"].tolist(), strict=True):
                entries.append({"image_id": image, "category_id": label, "bbox": box})
        first = len(results) - len(detections["scores"])
        for entry, score in zip(results[first:], detections["scores"].tolist(), strict=True):
            entry["score"] = score
    for number, entry in enumerate(annotations, 1):
        entry |= {"id": number, "iscrowd": 0, "area": entry["bbox"][2] * entry["bbox"][3]}
    categories = [{"id": number} for number in range(classes)]
    images = [{"id": number} for number in range(len(found))]
    return {"images": images, "categories": categories, "annotations": annotations}, results


def pycocotools_map(data: dict[str, Any], results: list[dict[str, Any]]) -> float:
    """The way of pycocotools itself: index, load the results, evaluate, accumulate, summarize."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = data
        truth.createIndex()
        copies = [dict(result) for result in results]  # it writes into them
        verdict = COCOeval(truth, truth.loadRes(copies), "bbox")
        verdict.evaluate()
        verdict.accumulate()
        verdict.summarize()
    return float(verdict.stats[0])
