"""The methods by their names: a score of a task, explained as one map over its canvas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from datamodules.common.errors import UserError
from pipelines.explaining import libraries, maps, methods
from pipelines.explaining.relevance import propagate
from pipelines.explaining.targets import Target, scores_of
from tasks.flops import predicting

Method = Literal["gradient", "integrated_gradients", "smoothgrad", "occlusion", "gradcam", "layercam", "lrp"]
#: Those of the extra ``explain``.
Further = Literal["guided_backprop", "deeplift", "gradcam++", "scorecam"]
Fill = Literal["mean", "black", "blur"]
#: How far lrp's bounds lie beyond black and white: black itself could get no relevance from positive weights.
BEYOND = 1e-3
#: What uses an argument; the others are for all.
USERS = {
    "layer": ("gradcam", "layercam", "gradcam++", "scorecam"),
    "steps": ("integrated_gradients",),
    "samples": ("smoothgrad",),
    "noise": ("smoothgrad",),
    "window": ("occlusion",),
}
WINDOWS = 6  # windows of the occlusion along the shorter side, where its size is left open


@dataclass(frozen=True)
class Settings:
    """Arguments of the methods.

    Attributes:
        layer: Of gradcam, layercam, gradcam++ and scorecam, see ``maps.find_place``.
        fill: What hidden pixels look like, and the baseline of integrated_gradients and deeplift: the network's mean
            color, black, or the blurred picture.
        steps: Of integrated_gradients.
        samples: Of smoothgrad.
        noise: Of smoothgrad, in parts of the range from black to white.
        window: Side of occlusion's windows in pixels of the canvas; a sixth of its shorter side by default. They move
            by half of it.
        seed: Of all that is random.
    """

    layer: str | None = None
    fill: Fill = "mean"
    steps: int = 32
    samples: int = 16
    noise: float = 0.1
    window: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse values that make no sense."""
        for key, least in (("steps", 1), ("samples", 1), ("window", 2)):
            value = getattr(self, key)
            if value is not None and value < least:
                raise UserError(f"--{key} is {value}; it must be at least {least}.")
        if not 0 < self.noise <= 1:
            raise UserError(f"--noise is {self.noise}; it must be above 0 and at most 1.")
        if self.seed < 0:
            raise UserError(f"--seed is {self.seed}; it must be at least 0.")

    def check_used_by(self, names: Sequence[str]) -> None:
        """Refuse what was set for methods that are not asked for.

        Raises:
            UserError: Naming the flag and the methods that use it.
        """
        for key, users in USERS.items():
            value = getattr(self, key)
            if value != getattr(Settings, key) and not set(users) & set(names):
                raise UserError(f"--{key} is {value}, which only --method {' or '.join(users)} uses: leave it out.")


@dataclass(frozen=True)
class Heat:
    """A map over the canvas.

    Attributes:
        values: float32 (H, W), on the task's device; below 0 what speaks against the target, where the method says so.
        conserved: Of lrp, the sum of all relevances; 1 where nothing was lost.
    """

    values: Tensor
    conserved: float | None = None


def methods_of(text: str | None) -> list[str]:
    """The methods that a user names, with commas; all that need no further package by default.

    Raises:
        UserError: If one is unknown.
    """
    known = [*get_args(Method), *get_args(Further)]
    if text is None:
        return list(get_args(Method))
    names = [name.strip() for name in text.split(",")]
    if unknown := [name for name in names if name not in known]:
        raise UserError(f"--method is '{text}'; '{unknown[0]}' is none of {', '.join(known)}.")
    return list(dict.fromkeys(names))


def filled(task: Any, image: Tensor, fill: Fill) -> Tensor:
    """An image that says nothing, of the same shape: see ``Settings.fill``."""
    if fill == "blur":
        return methods.blurred(image)
    return torch.zeros_like(image) if fill == "black" else task.mean.to(image).expand_as(image).clamp(0, 1)


def explain_target(task: Any, target: Target, image: Tensor, method: str, settings: Settings) -> Heat:
    """Explain one score by one method.

    Args:
        task: In evaluation mode.
        target: Of ``find_targets``.
        image: float32 (1, C, H, W), in [0, 1], on the task's device.
        method: Of ``Method`` or ``Further``.
        settings: Its arguments.

    Raises:
        UserError: If the network cannot be explained by the method, naming the reason, or a package is missing.
    """

    def score(images: Tensor) -> Tensor:
        return scores_of(task, target, images)[0]

    with predicting(task):
        if method == "lrp":
            low, high = (-BEYOND - task.mean) / task.std, (1 + BEYOND - task.mean) / task.std
            found = propagate(task.network, score, image, low, high)
            return Heat(found.pixels.sum(0), found.conserved)
        return Heat(_map(task, score, image, method, settings))


def _map(task: Any, score: methods.Score, image: Tensor, method: str, settings: Settings) -> Tensor:
    if method in ("gradcam", "layercam"):
        found = maps.activations(maps.find_place(task, image, settings.layer), score, image)
        heat = maps.grad_cam(*found) if method == "gradcam" else maps.layer_cam(*found)
        return maps.enlarged(heat, image.shape[-2:])
    if method == "gradient":
        return methods.heat_of(methods.gradient(score, image), signed=False)
    if method == "smoothgrad":
        noisy = methods.smoothgrad(score, image, settings.noise, settings.samples, settings.seed)
        return methods.heat_of(noisy, signed=False)
    baseline = filled(task, image, settings.fill)
    if method == "integrated_gradients":
        return methods.heat_of(methods.integrated_gradients(score, image, baseline, settings.steps), signed=True)
    if method == "occlusion":
        shorter = min(image.shape[-2:])
        window = min(settings.window or max(2, shorter // WINDOWS), shorter)
        falls = methods.occlusion(score, image, baseline, window, max(1, window // 2))
        return falls.mean(0)
    if method in ("gradcam++", "scorecam"):
        return libraries.of_grad_cam(method, task, score, image, maps.find_place(task, image, settings.layer))
    return methods.heat_of(libraries.of_captum(method, task, score, image, baseline), signed=method == "deeplift")
