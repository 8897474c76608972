"""What is explained: a class of a picture, a box by the very anchor, query or region that made it, pixels of a mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.ops import box_iou, clip_boxes_to_image

from datamodules.common.errors import UserError
from datamodules.common.geometry import boxes_to_canvas, boxes_to_original, original_size
from pipelines.outputs.palettes import BACKGROUND_NAMES
from tasks.base import Task
from tasks.classification import Classification
from tasks.detection.task import Detection
from tasks.hooks import Batch
from tasks.segmentation.task import Segmentation

SURE = 0.5  # probability from which on a picture has a label, where it may have several
FOUND = 0.5  # pixels and parts of a score by which a box may differ from that of its source


@dataclass(frozen=True, eq=False, kw_only=True)
class Target:
    """One score of a network.

    Attributes:
        name: For people: ``bee 0.98``.
        label: The class.
        probability: What the network says of it, 0 to 1; of pixels the mean.
        box: float32 (4,), x1 y1 x2 y2 of a detector's object, in canvas pixels.
        source: Its place among ``Detector.sources``.
        region: float32 (4,): where a second stage looked.
        pixels: bool (H, W), those of a mask, on the canvas.
    """

    name: str
    label: int
    probability: float
    box: Tensor | None = None
    source: int = 0
    region: Tensor | None = None
    pixels: Tensor | None = None

    def box_in(self, geometry: NDArray[np.float32]) -> list[float] | None:
        """The box in original pixels; None where there is none."""
        if self.box is None:
            return None
        corners: list[float] = boxes_to_original(self.box.cpu().numpy()[None], geometry)[0].tolist()
        return [round(corner, 1) for corner in corners]


@dataclass(frozen=True)
class Wanted:
    """What a user asks for.

    Attributes:
        label: The class; what the network says by default.
        at: A point x y, or a rectangle x1 y1 x2 y2, in original pixels: the box there, or these pixels of a mask.
        boxes: Of a picture at most, the surest first.
    """

    label: int | None = None
    at: Sequence[int] | None = None
    boxes: int = 1


def label_of(target: str | None, class_names: Sequence[str]) -> int | None:
    """The number of a class that is given by its name or number.

    Raises:
        UserError: If there is no such class.
    """
    if target is None:
        return None
    if target in class_names:
        return list(class_names).index(target)
    if target.isdigit() and int(target) < len(class_names):
        return int(target)
    near = get_close_matches(target, class_names, 1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(class_names[:10])}"
    raise UserError(f"--target is '{target}', which is no class of the checkpoint; {hint}")


def as_pixels(image: Tensor) -> Tensor:
    """Images of a batch as float32 in [0, 1]."""
    return image.float() / 255 if image.dtype == torch.uint8 else image.float()


@torch.no_grad()
def find_targets(task: Task, batch: Batch, wanted: Wanted, class_names: Sequence[str]) -> list[Target]:
    """What is to be explained of one picture; nothing where a detector finds nothing.

    Args:
        task: In evaluation mode.
        batch: Of one picture, on the task's device.
        wanted: What is asked for.
        class_names: K names.

    Raises:
        UserError: If the task cannot be explained, or what is asked for lies outside of the picture.
    """
    if "tiles" in batch:
        raise UserError("explain looks at whole canvases, but the data has tiles: add --data.tile null.")
    image, geometry = as_pixels(batch["image"]), batch["geometry"][0].cpu().numpy()
    if wanted.boxes > 1 and not isinstance(task, Detection):
        raise UserError(f"--boxes is {wanted.boxes}, but a {type(task).__name__} finds no boxes: leave it out.")
    area = None if wanted.at is None else _on_canvas(wanted.at, geometry, batch["path"][0])
    if isinstance(task, Classification):
        if area is not None:
            raise UserError("--at is for boxes and masks; a class is one of the whole picture: leave it out.")
        return _classes(task, image, wanted, class_names)
    if isinstance(task, Detection):
        return _boxes(task, image, wanted, area, class_names)
    if isinstance(task, Segmentation):
        return [_pixels(task, image, wanted, area, _shown(geometry, image), class_names)]
    raise UserError(f"A {type(task).__name__} cannot be explained; classification, detection and segmentation can.")


def scores_of(task: Any, target: Target, image: Tensor) -> tuple[Tensor, Tensor]:
    """A target's logit and its probability on images, float32 (B,) each.

    Args:
        task: As for ``find_targets``.
        target: Found on one of these images, or on one of their size.
        image: float32 (B, C, H, W), in [0, 1].
    """
    if isinstance(task, Classification):
        logits = task(image).float()
        probabilities = (logits / task.divisor).sigmoid() if task.multi_label else (logits / task.divisor).softmax(1)
        return logits[:, target.label], probabilities[:, target.label]
    if isinstance(task, Detection):
        return _scores_of_box(task, target, image)
    logits, probabilities = _scores_of_pixels(task, target.label, image)
    assert target.pixels is not None
    return logits[:, target.pixels].mean(1), probabilities[:, target.pixels].mean(1)


def _named(class_names: Sequence[str], label: int, probability: float) -> str:
    name = class_names[label] if label < len(class_names) else str(label)
    return f"{name} {probability:.2f}"


def _on_canvas(at: Sequence[int], geometry: NDArray[np.float32], path: str) -> Tensor:
    """A point or a rectangle as a rectangle x1 y1 x2 y2 of the canvas."""
    height, width = original_size(geometry)
    x1, y1, x2, y2 = at if len(at) == 4 else (at[0], at[1], at[0] + 1, at[1] + 1)
    if not (0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height):
        raise UserError(f"--at {' '.join(map(str, at))} lies outside of {path}, {width} x {height} pixels.")
    area = boxes_to_canvas(np.array([[x1, y1, x2, y2]], np.float32), geometry)[0]
    return torch.from_numpy(area)


def _shown(geometry: NDArray[np.float32], image: Tensor) -> Tensor:
    """Where the canvas shows the picture and no padding: bool (H, W)."""
    height, width = original_size(geometry)
    return _within(_on_canvas([0, 0, width, height], geometry, ""), image)


def _within(area: Tensor, image: Tensor) -> Tensor:
    """The pixels of a rectangle, one at least: bool (H, W)."""
    rows, columns = (torch.arange(side, device=image.device) + 0.5 for side in image.shape[-2:])
    x1, y1, x2, y2 = area.tolist()
    inside_rows = (rows > y1) & (rows < y2)
    inside_columns = (columns > x1) & (columns < x2)
    if not inside_rows.any():
        inside_rows[min(max(0, int(y1)), len(rows) - 1)] = True
    if not inside_columns.any():
        inside_columns[min(max(0, int(x1)), len(columns) - 1)] = True
    inside: Tensor = inside_rows[:, None] & inside_columns
    return inside


# Classes.


def _classes(task: Classification, image: Tensor, wanted: Wanted, names: Sequence[str]) -> list[Target]:
    probabilities = task.outputs(image)["probabilities"][0]
    best = int(probabilities.argmax())
    if wanted.label is not None:
        labels = [wanted.label]
    elif task.multi_label:
        labels = [k for k, p in enumerate(probabilities.tolist()) if p >= SURE] or [best]
    else:
        labels = [best]
    values = [(k, float(probabilities[k])) for k in labels]
    return [Target(name=_named(names, k, value), label=k, probability=value) for k, value in values]


# Boxes.


def _boxes(task: Any, image: Tensor, wanted: Wanted, area: Tensor | None, names: Sequence[str]) -> list[Target]:
    """The surest boxes, of those that reach their class's threshold where some do."""
    found = task.network.detect(task.normalize(image), task.limits)[0]
    keep = torch.ones_like(found["labels"], dtype=torch.bool)
    if wanted.label is not None:
        keep &= found["labels"] == wanted.label
    if area is not None:
        x, y = ((area[:2] + area[2:]) / 2).tolist()
        boxes = found["boxes"]
        keep &= (boxes[:, 0] <= x) & (boxes[:, 1] <= y) & (boxes[:, 2] >= x) & (boxes[:, 3] >= y)
    sure = found["scores"] >= task.thresholds().to(found["scores"].device)[found["labels"]]
    chosen = (keep & sure if bool((keep & sure).any()) else keep).nonzero().squeeze(1)[: wanted.boxes]
    return [_box(task, image, {key: value[i] for key, value in found.items()}, names) for i in chosen.tolist()]


def _box(task: Any, image: Tensor, found: dict[str, Tensor], names: Sequence[str]) -> Target:
    label, score = int(found["labels"]), float(found["scores"])
    sources = task.network.sources(task.normalize(image), label)
    boxes = clip_boxes_to_image(sources.boxes[0], tuple(image.shape[-2:]))
    away = (boxes - found["boxes"]).abs().amax(1) + (sources.scores[0] - score).abs()
    source = int(away.argmin())
    assert float(away[source]) < FOUND, f"no source of box {found['boxes'].tolist()}: {float(away[source]):.3f} away"
    region = None if sources.regions is None else sources.regions[0, source]
    return Target(
        name=_named(names, label, score),
        label=label,
        probability=score,
        box=found["boxes"],
        source=source if region is None else 0,
        region=region,
    )


def _scores_of_box(task: Any, target: Target, image: Tensor) -> tuple[Tensor, Tensor]:
    """Of the box's own source; where sources are chosen anew for each image, of that whose box is nearest."""
    sources = task.network.sources(task.normalize(image), target.label, target.region)
    if not task.network.queries:
        return sources.logits[:, target.source], sources.scores[:, target.source]
    assert target.box is not None
    overlaps = box_iou(sources.boxes.detach().flatten(0, 1), target.box[None]).view(sources.logits.shape)
    nearest = overlaps.argmax(1, keepdim=True)
    return sources.logits.gather(1, nearest).squeeze(1), sources.scores.gather(1, nearest).squeeze(1)


# Masks.


def _pixels(
    task: Segmentation, image: Tensor, wanted: Wanted, area: Tensor | None, shown: Tensor, names: Sequence[str]
) -> Target:
    """Pixels of a class: those that the network gives it, or those that are asked for."""
    classes = int(task.num_classes or 0)
    probabilities = torch.stack([_scores_of_pixels(task, k, image)[1][0] for k in range(classes)])
    said = probabilities.argmax(0)
    where = shown if area is None else _within(area, image)
    label = wanted.label
    if label is None:
        counts = torch.bincount(said[where], minlength=classes)
        if area is None and names and names[0].lower() in BACKGROUND_NAMES and bool(counts[1:].any()):
            counts[0] = 0
        label = int(counts.argmax())
    pixels = where & (said == label) if area is None else where
    if not pixels.any():  # asked for a class that the network sees nowhere: where it is most probable
        pixels = where & (probabilities[label] >= probabilities[label][where].max())
    value = float(probabilities[label][pixels].mean())
    return Target(name=_named(names, label, value), label=label, probability=value, pixels=pixels)


def _scores_of_pixels(task: Segmentation, label: int, image: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and probabilities of a class, float32 (B, H, W)."""
    logits = task(image).float()
    if task.kind == "binary":
        logits = logits[:, 0] if label == 1 else -logits[:, 0]
        return logits, (logits / task.divisor).sigmoid()
    scaled = logits / task.divisor
    probabilities = scaled.softmax(1) if task.kind == "multiclass" else scaled.sigmoid()
    return logits[:, label], probabilities[:, label]
