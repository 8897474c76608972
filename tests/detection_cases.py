"""Random detections and annotations for tests of detection metrics, and pycocotools' evaluation of them."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

SIDE = 160


@dataclass
class Case:
    """Some images: what a detector said, what is there, and the settings to evaluate with."""

    num_classes: int
    predictions: dict[str, list[Any]]
    targets: list[dict[str, torch.Tensor]]
    ids: list[int]
    max_detections: int = 100
    size_ranges: dict[str, tuple[float, float]] | None = None
    iou_thresholds: NDArray[np.float64] = field(default_factory=lambda: np.linspace(0.5, 0.95, 10))

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "num_classes": self.num_classes,
            "max_detections": self.max_detections,
            "size_ranges": self.size_ranges,
            "iou_thresholds": self.iou_thresholds,
        }

    def part(self, rows: list[int]) -> tuple[dict[str, list[Any]], list[dict[str, torch.Tensor]], list[int]]:
        """The arguments of `update` for some of the images."""
        predictions = {name: [column[row] for row in rows] for name, column in self.predictions.items()}
        return predictions, [self.targets[row] for row in rows], [self.ids[row] for row in rows]

    def parts(self, size: int = 2) -> list[Any]:
        rows = list(range(len(self.ids)))
        return [self.part(rows[start : start + size]) for start in range(0, len(rows), size)]


def random_boxes(rng: np.random.Generator, count: int) -> NDArray[np.float32]:
    low = rng.uniform(0, SIDE - 8, (count, 2))
    size = np.exp(rng.uniform(1.5, 5, (count, 2)))
    return np.concatenate([low, np.minimum(low + size, SIDE)], 1).astype(np.float32)


def random_case(seed: int, *, masks: bool = False, full: bool = False) -> Case:
    """Crowds, empty images, absent classes, tied scores, more detections than are evaluated, sizes of one's own.

    `full` is COCO's setting: ten IoU thresholds, its sizes, 100 detections.
    """
    rng = np.random.default_rng(seed)
    num_images, num_classes = int(rng.integers(1, 5)), int(rng.integers(1, 4))
    present = rng.permutation(num_classes)[: rng.integers(1, num_classes + 1)]  # in the annotations
    ids = (rng.permutation(50)[:num_images] + (1 << 33)).tolist()
    predictions: dict[str, list[Any]] = {"boxes": [], "scores": [], "labels": []}
    targets: list[dict[str, torch.Tensor]] = []
    for _ in ids:
        truths = 0 if rng.random() < 0.2 else int(rng.integers(1, 8))
        count = 0 if rng.random() < 0.2 else int(rng.integers(1, 16))
        boxes, labels = random_boxes(rng, truths), rng.choice(present, truths)
        found = random_boxes(rng, count)
        classes = rng.integers(0, num_classes, count)
        if truths:
            source = rng.integers(0, truths, count)
            size = np.tile(boxes[source, 2:] - boxes[source, :2], (1, 2))
            moved = boxes[source] + rng.normal(0, rng.choice([0, 0.02, 0.1, 0.3], (count, 1)), (count, 4)) * size
            near = (rng.random(count) < 0.85) & (moved[:, 2:] > moved[:, :2] + 1).all(1)
            found[near] = moved[near].clip(0, SIDE)
            classes = np.where(rng.random(count) < 0.8, labels[source], classes)
        scores = rng.random(count).astype(np.float32)
        predictions["boxes"].append(torch.from_numpy(found))
        predictions["scores"].append(torch.from_numpy(scores.round(1) if rng.random() < 0.5 else scores))
        predictions["labels"].append(torch.from_numpy(classes).long())
        target = {
            "boxes": torch.from_numpy(boxes),
            "labels": torch.from_numpy(labels).long(),
            "iscrowd": torch.from_numpy(rng.random(truths) < 0.2).to(torch.uint8),
        }
        if rng.random() < 0.3:
            target["area"] = (target["boxes"][:, 2:] - target["boxes"][:, :2]).prod(1) * 0.8
        if masks:
            target["masks"] = painted(boxes, rng, layers=2)
            predictions.setdefault("masks", []).append(one_each(painted(found, rng, layers=max(1, count)), count))
        targets.append(target)
    case = Case(num_classes, predictions, targets, ids)
    if not full:
        case.max_detections = int(rng.choice([1, 3, 10, 100, 500]))
        case.iou_thresholds = np.array([0.5, 0.75])
        case.size_ranges = {"tiny": (0, 30.0**2), "rest": (30.0**2, 1e9)} if rng.random() < 0.5 else {}
    return case


def painted(boxes: NDArray[np.float32], rng: np.random.Generator, layers: int) -> torch.Tensor:
    """int16 (L, H, W): an ellipse in each box, painted over earlier ones of its layer."""
    masks = np.zeros((layers, SIDE, SIDE), np.int16)
    y, x = np.mgrid[:SIDE, :SIDE]
    for number, (x1, y1, x2, y2) in enumerate(boxes.astype(np.float64), 1):
        inside = ((2 * x - x1 - x2) / (x2 - x1)) ** 2 + ((2 * y - y1 - y2) / (y2 - y1)) ** 2 <= 1
        layer = (number - 1) % layers if layers >= len(boxes) else int(rng.integers(layers))
        masks[layer][inside] = number
    return torch.from_numpy(masks)


def one_each(layers: torch.Tensor, count: int) -> torch.Tensor:
    """Bool (count, H, W) of the objects in layers."""
    numbers = torch.arange(1, count + 1).view(-1, 1, 1, 1)
    return (layers.unsqueeze(0) == numbers).any(1)


def encode(mask: torch.Tensor) -> dict[str, Any]:
    result: dict[str, Any] = coco_mask.encode(np.asfortranarray(mask.numpy().astype(np.uint8)))
    return result


def pycocotools_evaluation(case: Case, kind: str) -> COCOeval:
    """The evaluation by pycocotools, not summarized."""
    order = np.argsort(case.ids)
    found: list[dict[str, Any]] = []
    true: list[dict[str, Any]] = []
    for image in order:
        target = case.targets[image]
        numbers = range(1, len(target["labels"]) + 1)
        shapes = [encode((target["masks"] == k).any(0)) for k in numbers] if kind == "segm" else []
        for k, (box, label, crowd) in enumerate(zip(target["boxes"], target["labels"], target["iscrowd"], strict=True)):
            entry = _entry(true, case.ids[image], box, label, shapes[k] if shapes else None)
            entry["iscrowd"] = int(crowd)
            if "area" in target:
                entry["area"] = float(target["area"][k])
        for k, score in enumerate(case.predictions["scores"][image]):
            shape = encode(case.predictions["masks"][image][k]) if kind == "segm" else None
            box, label = (case.predictions[name][image][k] for name in ("boxes", "labels"))
            _entry(found, case.ids[image], box, label, shape)["score"] = float(score)
    base = {
        "images": [{"id": number, "height": SIDE, "width": SIDE} for number in case.ids],
        "categories": [{"id": k} for k in range(case.num_classes)],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        sets = []
        for annotations in (true, found):
            sets.append(COCO())
            sets[-1].dataset = base | {"annotations": annotations}
            sets[-1].createIndex()
        evaluation = COCOeval(*sets, kind)
        evaluation.params.iouThrs = case.iou_thresholds
        counts = [count for count in (1, 10) if count < case.max_detections]
        evaluation.params.maxDets = [*counts, case.max_detections]
        if case.size_ranges is not None:
            evaluation.params.areaRng = [[0, 1e10], *(list(r) for r in case.size_ranges.values())]
            evaluation.params.areaRngLbl = ["all", *case.size_ranges]
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


def _entry(entries: list[dict[str, Any]], image: int, box: torch.Tensor, label: Any, shape: Any) -> dict[str, Any]:
    x1, y1, x2, y2 = box.double().tolist()
    area = (x2 - x1) * (y2 - y1) if shape is None else float(coco_mask.area(shape))
    entry = {
        "id": len(entries) + 1,
        "image_id": image,
        "category_id": int(label),
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "area": area,
    }
    entries.append(entry if shape is None else entry | {"segmentation": shape})
    return entries[-1]


def expected_values(case: Case, kind: str) -> tuple[dict[str, float], dict[str, NDArray[np.float64]]]:
    """What `CocoMetrics` has to give: values and per-class columns, from pycocotools' tables."""
    evaluation = pycocotools_evaluation(case, kind)
    precision, recall = (np.where(evaluation.eval[n] < 0, np.nan, evaluation.eval[n]) for n in ("precision", "recall"))
    thresholds, sizes = list(case.iou_thresholds), evaluation.params.areaRngLbl
    prefix = "mask_" if kind == "segm" else ""

    def mean(values: NDArray[np.float64]) -> float:
        values = values[~np.isnan(values)]
        return float(values.mean()) if len(values) else np.nan

    values = {
        "map": mean(precision[..., 0, -1]),
        "map_50": mean(precision[thresholds.index(0.5), ..., 0, -1]),
        "map_75": mean(precision[thresholds.index(0.75), ..., 0, -1]),
    }
    for place, size in enumerate(sizes[1:], 1):
        values |= {f"map_{size}": mean(precision[..., place, -1]), f"mar_{size}": mean(recall[..., place, -1])}
    for place, count in enumerate(evaluation.params.maxDets):
        values[f"mar_{count}"] = mean(recall[..., 0, place])
    columns = {
        "ap": precision[..., 0, -1].mean((0, 1)),
        "ap_50": precision[thresholds.index(0.5), ..., 0, -1].mean(0),
        "ap_75": precision[thresholds.index(0.75), ..., 0, -1].mean(0),
        "ar": recall[..., 0, -1].mean(0),
    }
    return {prefix + k: v for k, v in values.items()}, {prefix + k: v for k, v in columns.items()}
