"""Several checkpoints of one task as one model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from datamodules.common.errors import UserError
from pipelines.fusion import fused_found, mean_thresholds
from pipelines.run.loading import Loaded, load_weights
from tasks.base import Task
from tasks.checks import TrainingPlan
from tasks.classification import Classification
from tasks.detection.task import Detection
from tasks.hooks import Batch, TaskHooks
from tasks.segmentation.task import Segmentation

#: What all members must see alike: they are shown one batch.
VIEW = ("image_size", "in_chans", "dtype", "resize", "crop_pct", "interpolation", "tile", "tile_overlap")
SAYS = ("multi_label", "has_masks")


class Ensemble(TaskHooks):
    """Tasks whose predictions are fused: it evaluates and predicts as one of them does, and cannot be trained.

    Probabilities of classes and of pixels are averaged, boxes fused by weighted boxes fusion (`fused_found`); the
    thresholds are the means of the members'. Everything else (metrics, names, tables) is the first member's.

    Args:
        members: The checkpoints; the weights are loaded with the networks, in ``configure_model``.

    Raises:
        UserError: If they differ in their task, their classes, or how they see a picture.
    """

    def __init__(self, members: Sequence[Loaded]) -> None:
        super().__init__()
        check_alike(members)
        self.members = nn.ModuleList([member.task for member in members])
        self.checkpoints = [Path(member.checkpoint) for member in members]

    def __getattr__(self, name: str) -> Any:
        """What is not the ensemble's own is the first member's."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("__") or "members" not in self.__dict__.get("_modules", {}):
                raise
            return getattr(self.members[0], name)

    @property
    def tasks(self) -> list[Task]:
        """The members."""
        return list(self.members)  # type: ignore[arg-type]

    @property
    def taught(self) -> Ensemble:
        """The ensemble."""
        return self

    def resolve(self, spec: dict[str, Any], source: str) -> None:
        """As each member."""
        for task in self.tasks:
            task.resolve(spec, source)

    def configure_model(self) -> None:
        """Build the members' networks with their weights, once."""
        if self.tasks[0].network is not None:
            return
        for task, checkpoint in zip(self.tasks, self.checkpoints, strict=True):
            load_weights(task, checkpoint)
        first = self.tasks[0]
        if isinstance(first, Detection):
            first.best_thresholds = mean_thresholds([task.best_thresholds for task in self.tasks])  # type: ignore[misc]

    def check_training(self, plan: TrainingPlan) -> None:
        """Refuse to be trained."""
        raise UserError("Several checkpoints together are not trained on: give one --ckpt_path.")

    def augment(self, batch: Batch) -> Batch:
        """Not called: an ensemble is not trained."""
        return batch

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Not called: ``check_training`` has refused before."""
        raise AssertionError("an ensemble is not trained")

    def forward(self, image: Tensor) -> list[Any]:
        """What each member's network gives for images: uint8 (B, C, H, W), or float in [0, 1]."""
        return [task(image) for task in self.tasks]

    def infer(self, image: Tensor) -> list[Any]:
        """What each member's network computes to predict images."""
        return [task.infer(image) for task in self.tasks]

    def predict(self, batch: Batch) -> dict[str, Any]:
        """The fused predictions, of the form of one member's."""
        first = self.tasks[0]
        if isinstance(first, Segmentation):
            return first.predict(batch, lambda image: self.outputs(image)["scores"])
        if isinstance(first, Classification):
            return self.outputs(batch["image"])
        assert isinstance(first, Detection), "check_alike refuses other tasks"
        return fused_found([task.predict(batch) for task in self.tasks], first.max_detections)

    def outputs(self, image: Tensor) -> dict[str, Tensor]:
        """``Task.outputs`` with the mean of the members' probabilities, of classes or of pixels.

        Args:
            image: uint8 (B, C, H, W), or float in [0, 1].
        """
        first = self.tasks[0]
        key = "scores" if isinstance(first, Segmentation) else "probabilities"
        mean = torch.stack([task.computed(image)[key] for task in self.tasks]).mean(0)
        return first.with_logits(mean) if isinstance(first, Classification) else {key: mean}


def joined(members: Sequence[Loaded]) -> Loaded:
    """One checkpoint as it is, several as an `Ensemble` on the first one's data.

    Raises:
        UserError: If they do not go together.
    """
    first = members[0]
    if len(members) == 1:
        return first
    together: Any = Ensemble(members)
    return Loaded(first.checkpoint, together, first.data, first.config)


def members_of(task: TaskHooks) -> list[Task]:
    """The tasks of an ensemble; a task is its own only one."""
    return task.tasks if isinstance(task, Ensemble) else [task.taught]


def check_alike(members: Sequence[Loaded]) -> None:
    """Refuse checkpoints whose predictions cannot be fused.

    Raises:
        UserError: Naming two of them and what differs.
    """
    first = members[0]
    if not isinstance(first.task, Classification | Detection | Segmentation):
        raise UserError(f"{first.checkpoint} is a {type(first.task).__name__}, whose predictions are not fused.")
    for other in members[1:]:
        pair = f"{other.checkpoint} and {first.checkpoint} do not go together"
        if type(other.task) is not type(first.task):
            kinds = f"a {type(other.task).__name__} and a {type(first.task).__name__}"
            raise UserError(f"{pair}: {kinds}. Give checkpoints of one task.")
        if other.data.class_names != first.data.class_names:
            classes = f"their classes are {other.data.class_names} and {first.data.class_names}"
            raise UserError(f"{pair}: {classes}. Give checkpoints of the same classes, in one order.")
        for part, name, keys in (("data", "data", VIEW), ("task", "model", SAYS)):
            for key in keys:
                theirs, ours = (getattr(getattr(one, part), key, None) for one in (other, first))
                if _plain(theirs) != _plain(ours):
                    raise UserError(
                        f"{pair}: {name}.{key} is {theirs} and {ours}, but they are shown the same pictures. Train them"
                        f" alike, or set --{name}.{key} for both."
                    )


def _plain(value: Any) -> Any:
    """A size, one number or two, as a list."""
    if isinstance(value, list | tuple):
        return list(value)
    return [value, value] if isinstance(value, int) and not isinstance(value, bool) else value
