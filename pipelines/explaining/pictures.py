"""One picture explained by several methods, each with what it is worth on it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datamodules.common.errors import UserError
from datamodules.common.geometry import original_size
from datamodules.loaders import Record
from pipelines.ensemble import Ensemble
from pipelines.explaining.attribution import Heat, Settings, explain_target, filled
from pipelines.explaining.faithfulness import (
    Areas,
    areas,
    cells_of,
    random_areas,
    random_weights,
    similarity,
)
from pipelines.explaining.methods import Score
from pipelines.explaining.targets import Target, Wanted, as_pixels, find_targets, scores_of
from pipelines.inference import Batch, Predictor

#: Random explanations of a picture, with whose mean those of methods are compared.
DRAWS = 3


@dataclass(frozen=True, eq=False, kw_only=True)
class Explained:
    """One method on one target.

    Attributes:
        heat: float32 (H, W), in the original picture's pixels; below 0 what speaks against the target, where the
            method says so.
        areas: What hiding and showing its cells does; None where that was not asked for.
        similarity: Rank correlation with the explanation of random weights, -1 to 1; likewise.
        conserved: Of lrp, the sum of the relevances; 1 where nothing was lost.
        seconds: That the explanation took.
    """

    heat: NDArray[np.float32]
    areas: Areas | None = None
    similarity: float | None = None
    conserved: float | None = None
    seconds: float = 0.0


@dataclass(frozen=True, eq=False, kw_only=True)
class Explanation:
    """What several methods say of one target of a picture.

    Attributes:
        path: The picture's file, or ``image0``, ... where it was given as pixels.
        size: Height and width of the original picture.
        target: What was explained.
        geometry: float32 (6,), of the canvas, see ``datamodules.common.geometry``.
        methods: By name.
        random: The areas of random explanations; None where they were not asked for.
    """

    path: str
    size: tuple[int, int]
    target: Target
    geometry: NDArray[np.float32]
    methods: dict[str, Explained] = field(default_factory=dict)
    random: Areas | None = None


@dataclass(frozen=True)
class Plan:
    """What is done for each picture.

    Attributes:
        methods: Names.
        settings: Their arguments.
        wanted: What is explained.
        faithful: Whether each is measured by deletion and insertion, and by random weights.
    """

    methods: Sequence[str]
    settings: Settings = field(default_factory=Settings)
    wanted: Wanted = field(default_factory=Wanted)
    faithful: bool = True


def explain_records(
    predictor: Predictor,
    records: Sequence[Record],
    class_names: Sequence[str],
    plan: Plan,
    *,
    skip_refused: bool = False,
    tell: Callable[[str], None] = lambda text: None,
) -> Iterator[Explanation]:
    """Explain pictures, one after the other; a detector's without objects are left out.

    Args:
        predictor: One model's.
        records: As for ``Predictor.batch``.
        class_names: K names.
        plan: What is done.
        skip_refused: Leave out methods that cannot explain the network, in place of an error.
        tell: Called with a line for each picture.

    Raises:
        UserError: If a method cannot explain the network, or the model is an ensemble or an exported file.
    """
    task = predictor.task
    if isinstance(task, Ensemble) or task.runtime is not None:
        raise UserError("explain looks into one network: give one checkpoint, not several and no exported file.")
    for number, record in enumerate(records):
        batch = predictor.batch([record], number)
        moved = {key: value.to(predictor.device) if torch.is_tensor(value) else value for key, value in batch.items()}
        targets = find_targets(task, moved, plan.wanted, class_names)
        if skip_refused and targets:
            plan, skip_refused = _with_usable_methods(task, moved, targets[0], plan, tell), False
        tell(f"{number + 1}/{len(records)} {record['path']}: {', '.join(one.name for one in targets) or 'nothing'}")
        for target in targets:
            yield explain_one(task, moved, target, plan)


def _with_usable_methods(task: Any, batch: Batch, target: Target, plan: Plan, tell: Callable[[str], None]) -> Plan:
    """A plan without the methods that cannot explain the network.

    Raises:
        UserError: If no method can.
    """
    usable = []
    for method in plan.methods:
        try:
            explain_target(task, target, as_pixels(batch["image"]), method, plan.settings)
            usable.append(method)
        except UserError as error:
            refusal = error
            tell(f"{method} is left out: {error}")
    if not usable:
        raise refusal
    return replace(plan, methods=usable)


def explain_one(task: Any, batch: Batch, target: Target, plan: Plan) -> Explanation:
    """Explain one target by all methods of a plan.

    Args:
        task: In evaluation mode.
        batch: Of one picture, on the task's device.
        target: Found in it.
        plan: What is done.

    Raises:
        UserError: If a method cannot explain the network.
    """
    image, geometry = as_pixels(batch["image"]), batch["geometry"][0].cpu().numpy()
    heats, seconds = {}, {}
    for method in plan.methods:
        began = time.perf_counter()
        heats[method] = explain_target(task, target, image, method, plan.settings)
        seconds[method] = time.perf_counter() - began
    measured, chance = _measured(task, target, image, heats, plan.settings) if plan.faithful else ({}, None)
    explained = {
        method: Explained(
            heat=to_original(heat.values, geometry),
            conserved=heat.conserved,
            seconds=seconds[method],
            **measured.get(method, {}),
        )
        for method, heat in heats.items()
    }
    return Explanation(
        path=batch["path"][0],
        size=original_size(geometry),
        target=target,
        geometry=geometry,
        methods=explained,
        random=chance,
    )


def _measured(
    task: Any, target: Target, image: Tensor, heats: dict[str, Heat], settings: Settings
) -> tuple[dict[str, dict[str, Any]], Areas]:
    """Areas and similarity of each method, and the areas of random explanations."""
    probability: Score = lambda images: scores_of(task, target, images)[1]  # noqa: E731
    empty = filled(task, image, settings.fill)
    cells = {method: cells_of(heat.values) for method, heat in heats.items()}
    found: dict[str, dict[str, Any]] = {
        method: {"areas": areas(probability, image, empty, cell)} for method, cell in cells.items()
    }
    chance = random_areas(probability, image, empty, DRAWS, settings.seed)
    with random_weights(task.network, settings.seed):
        for method, cell in cells.items():
            other = cells_of(explain_target(task, target, image, method, settings).values)
            found[method]["similarity"] = similarity(cell.cpu().numpy(), other.cpu().numpy())
    return found, chance


def to_original(heat: Tensor, geometry: NDArray[np.float32]) -> NDArray[np.float32]:
    """A map over the canvas as one over the original picture: float32 (H, W), bilinear; cropped away parts are 0.

    Args:
        heat: (h, w).
        geometry: (6,), see ``datamodules.common.geometry``.
    """
    size = original_size(geometry)
    scale_x, scale_y, offset_x, offset_y = geometry[2:].tolist()
    # Pixel centers of the original in pixels of the canvas, where whole numbers are centers.
    matrix = np.array(
        [[scale_x, 0, 0.5 * scale_x + offset_x - 0.5], [0, scale_y, 0.5 * scale_y + offset_y - 0.5]], np.float64
    )
    how = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    values = np.ascontiguousarray(heat.detach().cpu().numpy(), np.float32)
    # The border of the canvas goes on for the half pixel around it.
    warped = cv2.warpAffine(values, matrix, size[::-1], flags=how, borderMode=cv2.BORDER_REPLICATE)
    rows, columns = (
        (np.arange(length) + 0.5) * scale + offset
        for length, scale, offset in ((size[0], scale_y, offset_y), (size[1], scale_x, offset_x))
    )
    outside = ((rows < 0) | (rows > heat.shape[0]))[:, None] | (columns < 0) | (columns > heat.shape[1])
    return np.where(outside, 0, warped).astype(np.float32)
