"""Where an export begins to differ: the same picture at each stage on its way, from the file to what is found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datamodules.annotations.records import Record
from datamodules.base import DataModule
from pipelines.export.graph import Stages
from pipelines.export.side import Array, Export, run_with_inner

#: Mean difference in levels of 255 from which on pixels are others.
PIXELS = 0.1
#: Relative difference of float values by precision, and the fraction of boxes that have no partner.
VALUES = {"fp32": 1e-3, "fp16": 3e-2, "int8": 0.5}
BOXES = {"fp32": 0.02, "fp16": 0.2, "int8": 1.0}
#: What the network gives; a classifier's logits are outputs of the file, too.
RAW = ("raw_", "logits")
#: Boxes before the suppression that are compared: the best.
BEST = 100
#: Partners differ by at most so much of their size, and in their score.
SAME_PLACE, SAME_SCORE = 0.02, 0.01


@dataclass(frozen=True)
class Difference:
    """How far a stage differs, over the pictures that were looked at.

    Attributes:
        stage: Its name.
        value: The largest difference.
        limit: From which on it counts.
        picture: The one that shows it most.
    """

    stage: str
    value: float
    limit: float
    picture: str

    @property
    def differs(self) -> bool:
        """Whether it counts."""
        return not self.value <= self.limit  # NaN does


def compare(export: Export, data: DataModule, split: str, count: int) -> list[Difference]:
    """All stages of some pictures, spread over a split, in the order of their way."""
    records = data.records[split]
    chosen = [records[i] for i in np.linspace(0, len(records) - 1, min(count, len(records))).round().astype(int)]
    run = run_with_inner(export.path, export.about)
    transform = data.make_transform(train=False)
    stages = Stages(export.task).eval()
    limits = _limits(export)
    worst: dict[str, tuple[float, str]] = {}
    for record in chosen:
        for stage, value in _of_picture(export, stages, run, transform, record).items():
            if stage not in worst or not value <= worst[stage][0]:
                worst[stage] = (value, str(record["path"]))
    return [Difference(stage, value, limits[stage], picture) for stage, (value, picture) in worst.items()]


def _limits(export: Export) -> dict[str, float]:
    precision = export.about["precision"]
    values, boxes = VALUES[precision], BOXES[precision]
    return {
        "decoded picture": PIXELS,
        "resized picture": PIXELS,
        "network input": 1e-2 if precision != "fp32" else 1e-3,
        "raw outputs": values,
        "decoded boxes": boxes,
        "after suppression": boxes,
        "outputs": values,
        "class names": 0.0,
    }


def _of_picture(export: Export, stages: Stages, run: Any, transform: Any, record: Record) -> dict[str, float]:
    """The difference at each stage of one picture."""
    original = export.read(record)
    own = {key: value for key, value in original.items() if key in ("image", "path")}
    canvas = transform(own, None)["image"]
    theirs = export.decoded(record)
    their_canvas, _ = export.model.prepare(theirs)
    differences = {
        "decoded picture": _pixels(original["image"], theirs),
        "resized picture": _pixels(canvas, their_canvas),
    }
    image = torch.from_numpy(np.ascontiguousarray(canvas)).permute(2, 0, 1).unsqueeze(0)
    with torch.inference_mode():
        ours = {name: value[0].float().numpy() for name, value in stages(image).items()}
    found = {name: np.asarray(value[0], np.float32) for name, value in run(export.model.batch([their_canvas])).items()}
    return {**differences, **_values(ours, found, export)}


def _values(ours: dict[str, Array], found: dict[str, Array], export: Export) -> dict[str, float]:
    """Differences inside the graph and of its outputs."""
    differences: dict[str, float] = {}
    shared = [name for name in ours if name in found]
    if "network_input" in shared:
        differences["network input"] = relative(ours["network_input"], found["network_input"])
    raw = [relative(ours[name], found[name]) for name in shared if name.startswith(RAW)]
    if raw:
        differences["raw outputs"] = max(raw)
    if "boxes" in ours:
        for stage, prefix in (("decoded boxes", "decoded_"), ("after suppression", "")):
            if all(f"{prefix}{key}" in shared for key in ("boxes", "scores", "labels")):
                differences[stage] = _unmatched(_boxes(ours, prefix), _boxes(found, prefix))
    else:
        differences["outputs"] = max(
            relative(ours[name], found[name]) for name in ("probabilities", "scores") if name in shared
        )
    names = [export.class_names[k] for k in range(len(export.order))]
    differences["class names"] = float(names != export.model.class_names)
    return differences


def _pixels(ours: Array, theirs: Array) -> float:
    """Mean difference in levels of 255."""
    if ours.shape != theirs.shape:
        return float("inf")
    scale = 1.0 if ours.dtype == np.uint8 else 255.0
    return float(np.abs(ours.astype(np.float64) - theirs.astype(np.float64)).mean() * scale)


def relative(ours: Array, theirs: Array) -> float:
    """Root of the mean square difference, in that of the values."""
    if ours.shape != theirs.shape:
        return float("inf")
    ours, theirs = ours.astype(np.float64), theirs.astype(np.float64)
    return float(np.sqrt(((ours - theirs) ** 2).mean() / max(1e-12, float((ours**2).mean()))))


def _boxes(values: dict[str, Array], prefix: str) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes, scores and labels of those that are there, the best first."""
    boxes, scores, labels = (torch.from_numpy(values[f"{prefix}{key}"]) for key in ("boxes", "scores", "labels"))
    there = (labels >= 0) & (scores > 0)
    boxes, scores, labels = boxes[there], scores[there], labels[there]
    order = scores.argsort(descending=True)[:BEST]
    return boxes[order], scores[order], labels[order]


def _unmatched(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """The fraction of boxes of either side that have no partner of the same place, class and score."""
    if not len(ours[0]) or not len(theirs[0]):
        return float(len(ours[0]) != len(theirs[0]))
    size = (ours[0][:, 2:] - ours[0][:, :2]).amax(1).clamp_min(1.0)
    apart = (ours[0].unsqueeze(1) - theirs[0]).abs().amax(2) / size.unsqueeze(1)
    same = (apart < SAME_PLACE) & (ours[2].unsqueeze(1) == theirs[2])
    same &= (ours[1].unsqueeze(1) - theirs[1]).abs() < SAME_SCORE
    # Where the list is cut, the last ones of one side have their partners behind the cut of the other.
    least = max(float(ours[1].min()), float(theirs[1].min())) + SAME_SCORE if len(ours[0]) == BEST else -1.0
    here, there = ours[1] > least, theirs[1] > least
    alone = int((~same.any(1) & here).sum()) + int((~same.any(0) & there).sum())
    return alone / max(1, int(here.sum()) + int(there.sum()))
