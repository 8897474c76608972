"""What networks say of each picture of a pool: values, embeddings, and predictions to be corrected."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datamodules.common import rle
from datamodules.common.batch import windows
from datamodules.common.geometry import original_size
from pipelines.ensemble import members_of
from pipelines.outputs.formats.labeling import Annotated, Thing
from pipelines.selecting.uncertainty import Values, of_boxes, of_probabilities
from tasks.base import Task
from tasks.embeddings import embed
from tasks.hooks import TaskHooks
from tasks.segmentation.task import Segmentation

View: TypeAlias = Literal["hflip", "vflip", "darker", "brighter"]
AXES = {"hflip": 3, "vflip": 2}
FACTORS = {"darker": 0.7, "brighter": 1.3}
SURE_ENOUGH = 0.5  # a label of several is suggested from here on
BACKGROUND = "background"  # a class that nobody draws


@dataclass
class Pool:
    """Of N pictures: paths, values by name, and embeddings (D,)."""

    paths: list[str] = field(default_factory=list)
    values: list[Values] = field(default_factory=list)
    vectors: list[NDArray[np.float32]] = field(default_factory=list)

    @property
    def columns(self) -> dict[str, list[float]]:
        """All values of all pictures, by name."""
        return {name: [one[name] for one in self.values] for name in (self.values[0] if self.values else {})}


def stacked(pool: Pool) -> NDArray[np.float64]:
    """The embeddings, (N, D)."""
    return np.stack(pool.vectors).astype(np.float64)


@torch.inference_mode()
def look_at(
    model: TaskHooks, batches: Iterable[Mapping[str, Any]], views: Sequence[View], *, values: bool, vectors: bool
) -> Pool:
    """Go through a pool once.

    Args:
        model: A task, or an ensemble.
        batches: Of an evaluation loader.
        views: Each member also sees the pictures so.
        values: Whether to predict.
        vectors: Whether to embed, by the first member; of tiles the mean.
    """
    members = members_of(model)
    found = Pool()
    for batch in batches:
        images = len(batch["image"])
        of_image: list[list[Values]] = [[] for _ in range(images)]
        embedded: list[list[NDArray[np.float32]]] = [[] for _ in range(images)]
        for places, _, window in windows(batch):
            shown = window.to(members[0].mean.device)
            if values:
                for i, value in zip(places, _values(members, shown, views), strict=True):
                    of_image[i].append(value)
            if vectors:
                for i, vector in zip(places, embed(members[0], shown).cpu().numpy(), strict=True):
                    embedded[i].append(vector)
        found.paths += batch["path"]
        if values:
            found.values += [_together(each, adds=members[0].finds_boxes) for each in of_image]
        if vectors:
            found.vectors += [np.mean(each, 0) for each in embedded]
    return found


def _together(tiles: Sequence[Values], adds: bool) -> Values:
    """Of a picture's tiles the mean; of what counts boxes the sum."""
    return {
        name: sum(v[name] for v in tiles) / (1 if adds and name != "disagreement" else len(tiles)) for name in tiles[0]
    }


def _values(members: Sequence[Task], image: Tensor, views: Sequence[View]) -> list[Values]:
    seen = [(None, image), *((view, _seen(image, view)) for view in views)]
    if members[0].finds_boxes:
        answers = [_boxes(task, shown, view) for task in members for view, shown in seen]
        thresholds = members[0].thresholds().tolist()  # type: ignore[operator]
        return [of_boxes(each, thresholds) for each in zip(*answers, strict=True)]
    key = "scores" if isinstance(members[0], Segmentation) else "probabilities"
    tensors = []
    for task in members:
        for view, shown in seen:
            answer = task.computed(shown)[key]
            turned = answer.ndim == 4 and view in AXES
            tensors.append(answer.flip(AXES[str(view)]) if turned else answer)
    return of_probabilities(tensors, bool(getattr(members[0], "multi_label", False)))


def _seen(image: Tensor, view: View) -> Tensor:
    if view in AXES:
        return image.flip(AXES[view])
    floats = image.float() / 255 if image.dtype == torch.uint8 else image
    return (floats * FACTORS[view]).clamp(0, 1)


def _boxes(task: Any, image: Tensor, view: View | None) -> list[dict[str, NDArray[Any]]]:
    """What is found in each picture, in the picture's own direction."""
    height, width = image.shape[2:]
    answers = []
    for found in task.find(image):
        answer = {key: found[key].float().cpu().numpy() for key in ("boxes", "scores")}
        answer["labels"] = found["labels"].cpu().numpy()
        boxes = answer["boxes"]
        if view == "hflip":
            answer["boxes"] = np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], 1)
        elif view == "vflip":
            answer["boxes"] = np.stack([boxes[:, 0], height - boxes[:, 3], boxes[:, 2], height - boxes[:, 1]], 1)
        answers.append(answer)
    return answers


@torch.inference_mode()
def predict(model: Any, batches: Iterable[Mapping[str, Any]], class_names: Sequence[str]) -> list[Annotated]:
    """What the model says of pictures, for people to correct; in original pixels, without names.

    Args:
        model: A task, or an ensemble.
        batches: Of an evaluation loader.
        class_names: K.
    """
    device = members_of(model)[0].mean.device
    found = []
    for batch in batches:
        predictions = model.predict({**batch, "image": batch["image"].to(device)})
        if "boxes" in predictions:
            predictions = model.shown(predictions)
        for i, path in enumerate(batch["path"]):
            size = original_size(batch["geometry"][i])
            if "boxes" in predictions:
                found.append(Annotated(path, size, things=_objects(predictions, i, class_names)))
            elif "mask" in predictions:
                found.append(Annotated(path, size, things=_regions(predictions["mask"][i], class_names)))
            else:
                multi_label = bool(getattr(model, "multi_label", False))
                tags = _tags(predictions["probabilities"][i], class_names, multi_label)
                found.append(Annotated(path, size, tags=tags))
    return found


def _tags(probabilities: Tensor, class_names: Sequence[str], multi_label: bool) -> list[tuple[str, float]]:
    values = probabilities.float().tolist()
    best = max(range(len(values)), key=values.__getitem__)
    chosen = [k for k, value in enumerate(values) if value >= SURE_ENOUGH] if multi_label else [best]
    return [(class_names[k], values[k]) for k in chosen]


def _objects(predictions: Mapping[str, Any], i: int, class_names: Sequence[str]) -> list[Thing]:
    boxes, scores, labels = (predictions[key][i].cpu().tolist() for key in ("boxes", "scores", "labels"))
    masks = predictions["masks"][i] if "masks" in predictions else [None] * len(boxes)
    each = zip(boxes, scores, labels, masks, strict=True)
    return [Thing(class_names[label], tuple(box), score, mask) for box, score, label, mask in each]


def _regions(mask: Tensor, class_names: Sequence[str]) -> list[Thing]:
    """Of a label map (H, W), or masks (K, H, W) that may overlap, one mask a class that is there."""
    layers = mask.cpu() if mask.ndim == 3 else torch.stack([mask.cpu() == k for k in range(len(class_names))])
    things = []
    for name, layer in zip(class_names, layers, strict=True):
        rows, columns = (layer == 1).nonzero(as_tuple=True) if mask.ndim == 3 else layer.nonzero(as_tuple=True)
        if len(rows) and name.lower() != BACKGROUND:
            box = (int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1)
            (run,) = rle.of_masks((layer == 1).byte()[None])
            things.append(Thing(name, tuple(map(float, box)), None, run))
    return things
