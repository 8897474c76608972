"""Grad-CAM and Layer-CAM: which places of a layer speak for a score. Maps of convolutions, and tokens as a grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datamodules.common.errors import UserError
from pipelines.explaining.methods import Score
from tasks.base import Task
from tasks.detection.task import Detection
from tasks.segmentation.task import Segmentation


@dataclass(frozen=True)
class Place:
    """A layer whose output is a map, or a list of maps.

    Attributes:
        name: Within the network.
        module: What runs it.
        prefix: Tokens before those of the grid: class token, registers.
        deepest: Of several maps the last one; else the one that matters most for the score, as skip connections may
            leave the last one with nothing to say.
    """

    name: str
    module: nn.Module
    prefix: int = 0
    deepest: bool = False


def find_place(task: Task, image: Tensor, layer: str | None = None) -> Place:
    """The layer of the class activation maps.

    By default: of a plain ViT the first norm of its last block, since behind that block only the class token counts; of
    other classifiers the last map before the pooling; of detectors and segmentations the backbone's maps.

    Args:
        task: Its network is built.
        image: float32 (1, C, H, W).
        layer: A name, as ``summary`` shows it.

    Raises:
        UserError: If there is no such layer, or no map can be found.
    """
    network: Any = task.network
    modules = dict(network.named_modules())
    prefix = int(getattr(network, "num_prefix_tokens", 0) or 0)
    if layer is not None:
        if layer not in modules or not layer:
            near = get_close_matches(layer, list(modules), 1)
            hint = f" Did you mean {near[0]}?" if layer and near else ""
            raise UserError(f"--layer {layer or 'empty'}: the network has no such layer.{hint} `summary` lists them.")
        return Place(layer, modules[layer], prefix, deepest=True)
    if isinstance(task, Detection):
        return Place("backbone", network.backbone)
    if isinstance(task, Segmentation):
        name = next((name for name in ("net.encoder", "net.model.segformer") if name in modules), None)
        if name is not None and not hasattr(modules[name], "features"):  # SegNet runs its encoder layer by layer
            return Place(name, modules[name])
    blocks = getattr(network, "blocks", None)
    if blocks is not None and len(blocks) and hasattr(blocks[-1], "norm1"):
        return Place(f"blocks.{len(blocks) - 1}.norm1", blocks[-1].norm1, prefix)
    return Place(*_last_map(network, task, image), prefix, deepest=True)


def _last_map(network: nn.Module, task: Task, image: Tensor) -> tuple[str, nn.Module]:
    """The last module that gives a map with several places; of a segmentation the smallest of these."""
    found: list[tuple[str, nn.Module, int]] = []
    names = {module: name for name, module in network.named_modules() if name}

    def note(module: nn.Module, _: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.ndim == 4 and output.is_floating_point():
            height, width = as_map(output, image.shape[-2:], 0).shape[-2:]
            if height * width > 1:
                found.append((names[module], module, height * width))

    handles = [module.register_forward_hook(note) for module in names]
    try:
        with torch.no_grad():
            task(image)
    finally:
        for handle in handles:
            handle.remove()
    if not found:
        raise UserError(
            f"model.backbone '{task.backbone}' has no layer with a map that gradcam and layercam could use: name one by"
            " --layer (`summary` lists them), or take other methods."
        )
    least = min(size for *_, size in found)
    name, module, _ = found[-1] if not isinstance(task, Segmentation) else [one for one in found if one[2] == least][-1]
    return name, module


def as_map(output: Tensor, size: Sequence[int], prefix: int, name: str = "") -> Tensor:
    """A layer's output as a map (B, C, h, w): tokens (B, N, C) become a grid, channels come first.

    Args:
        output: (B, C, h, w), (B, h, w, C) or (B, N, C).
        size: Height and width of the image.
        prefix: Tokens before those of the grid.
        name: The layer's, for messages.

    Raises:
        UserError: If the output is none of these.
    """
    height, width = size
    if output.ndim == 3:
        count = output.shape[1] - prefix
        rows = max(1, round((count * height / width) ** 0.5))
        if rows * (count // rows) == count:
            grid: Tensor = output[:, prefix:].transpose(1, 2).unflatten(2, (rows, count // rows))
            return grid
        raise UserError(
            f"--layer {name}: a layer of {count} tokens forms no grid for an image of {height} x {width} pixels."
        )
    if output.ndim != 4:
        raise UserError(
            f"--layer {name}: an output of {output.ndim} axes, {tuple(output.shape)}, is no map: take an earlier layer."
        )
    first, last = (abs(_skew(output.shape[i], output.shape[i + 1], height / width)) for i in (1, 2))
    return output.permute(0, 3, 1, 2) if first < last else output


def _skew(rows: int, columns: int, aspect: float) -> float:
    """How far the sides of a map are from the aspect of the image; 0 where they fit."""
    return float(torch.tensor(rows / columns / aspect).log())


def activations(place: Place, score: Score, image: Tensor) -> tuple[Tensor, Tensor]:
    """A layer's map and the score's gradient there: float32 (C, h, w) each.

    Of several maps (a backbone's) the last one, or that whose activations times gradients have the largest sum of
    absolute values.

    Args:
        place: The layer.
        score: See ``pipelines.explaining.methods``.
        image: float32 (1, C, H, W).

    Raises:
        UserError: If the score does not depend on the layer.
    """
    kept: list[Any] = []
    handle = place.module.register_forward_hook(lambda *given: kept.append(given[2]))
    try:
        with torch.enable_grad():
            value = score(image.detach().requires_grad_()).sum()
            maps = [x for x in _maps_in(kept[0]) if x.requires_grad and not _is_image(x, image)] if kept else []
            found = torch.autograd.grad(value, maps, allow_unused=True) if maps else ()
    finally:
        handle.remove()
    pairs = [(x, g) for x, g in zip(maps, found, strict=True) if g is not None]
    if not pairs:
        raise UserError(f"--layer {place.name}: the score does not depend on this layer.")
    chosen, slope = pairs[-1] if place.deepest else max(pairs, key=lambda pair: float((pair[0] * pair[1]).abs().sum()))
    size = image.shape[-2:]
    as_maps = [as_map(x.detach().float(), size, place.prefix, place.name)[0] for x in (chosen, slope)]
    return as_maps[0], as_maps[1]


def _is_image(level: Tensor, image: Tensor) -> bool:
    """Whether an encoder's first level is what it was given: the image, perhaps padded."""
    return level.ndim == 4 and level.shape[1] == image.shape[1] and level.shape[-1] >= image.shape[-1]


def _maps_in(output: Any) -> list[Tensor]:
    """The maps of a layer's output: itself, or those of a list, without levels that have no channels."""
    if hasattr(output, "last_hidden_state"):
        output = output.hidden_states or output.last_hidden_state
    if isinstance(output, Tensor):
        return [output]
    levels = output[0] if isinstance(output[0], list | tuple) else output
    return [x for x in levels if isinstance(x, Tensor) and x.is_floating_point() and x.numel()]


def grad_cam(features: Tensor, slope: Tensor) -> Tensor:
    """Grad-CAM (Selvaraju et al. 2016, https://arxiv.org/abs/1610.02391): float32 (h, w), 0 or more.

    Args:
        features: (C, h, w).
        slope: The score's gradient there, (C, h, w).
    """
    return (slope.mean((1, 2), keepdim=True) * features).sum(0).relu()


def layer_cam(features: Tensor, slope: Tensor) -> Tensor:
    """Layer-CAM (Jiang et al. 2021, https://doi.org/10.1109/TIP.2021.3089943): Grad-CAM with weights for places."""
    return (slope.relu() * features).sum(0).relu()


def enlarged(heat: Tensor, size: Sequence[int]) -> Tensor:
    """A map (h, w) at the size of the image, (H, W), bilinear."""
    return F.interpolate(heat[None, None], tuple(size), mode="bilinear")[0, 0]
