"""Starting from one of this project's checkpoints: whatever of it fits, for any task that has the same backbone.

A checkpoint's ``state_dict`` is what its evaluation used, the average of the weights where there was one.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.utilities import rank_zero_info
from timm.layers import resample_abs_pos_embed
from timm.models import adapt_input_conv
from torch import Tensor, nn

from datamodules.common.errors import UserError
from tasks.backbones import head_parameters, quiet_head
from tasks.pretrained import parts, what_was_loaded

#: Where the networks of the tasks keep their backbone; a classifier is one itself.
PLACES = ("net.encoder.pyramid.", "net.encoder.model.", "net.encoder.", "backbone.")


@dataclass(frozen=True)
class Start:
    """A checkpoint to start from.

    Attributes:
        file: As it was given.
        weights: Of the network, by name.
        view: ``mean`` and ``std`` of the images, (1, C, 1, 1), where it has them.
        arguments: The task's.
    """

    file: str
    weights: dict[str, Tensor]
    view: dict[str, Tensor]
    arguments: dict[str, Any]

    def __str__(self) -> str:
        """The file, and what it holds."""
        kind = self.arguments.get("detector") or self.arguments.get("architecture") or "classifier"
        return f"{self.file} ({kind}, {self.arguments['backbone']})"


def read_start(pretrained: bool | str) -> Start | None:
    """The checkpoint that ``model.pretrained`` names; None where it names none of this project's.

    Nothing in it is executed.
    """
    path = Path(pretrained).expanduser() if isinstance(pretrained, str) else None
    if path is None or not path.is_file():
        return None
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        arguments, state = checkpoint["hyper_parameters"], checkpoint["state_dict"]
        arguments["backbone"]
    except Exception:  # of whatever kind: then it is weights of another origin, whose reader says what is wrong
        return None
    weights = {name.removeprefix("network."): value for name, value in state.items() if name.startswith("network.")}
    view = {name: state[name] for name in ("mean", "std") if name in state}
    return Start(str(pretrained), weights, view, dict(arguments)) if weights else None


def _shared_names(names: Collection[str]) -> dict[tuple[bool, str], str]:
    """A network's names by what they are called in all networks: whether of the backbone, and timm's name in it.

    Points are underlines there, since a feature net of timm's may write either.
    """
    place = next((place for place in PLACES if any(name.startswith(place) for name in names)), "")
    shared = {}
    for name in names:
        if not name.startswith(place):
            shared[False, name] = name
            continue
        inner = name.removeprefix(place)
        if place in ("net.encoder.pyramid.", "backbone."):
            if not inner.startswith("net."):  # the layers behind a net of one stride
                shared[False, f"pyramid {inner}"] = name
                continue
            inner = inner.removeprefix("net.").removeprefix("model.")
        shared[True, inner.replace(".", "_")] = name
    return shared


def _fitted(value: Tensor, name: str, target: Tensor, network: nn.Module) -> Tensor | None:
    """A tensor in the shape of its counterpart: as it is, for other channels or another image size; else None."""
    if value.shape == target.shape:
        return value
    if value.ndim == target.ndim == 4 and value.shape[1] == 3 and value.shape[::2] == target.shape[::2]:
        return adapt_input_conv(target.shape[1], value)  # type: ignore[no-any-return]
    net: Any = network.get_submodule(name.rpartition(".")[0])
    if name.endswith("pos_embed") and value.ndim == 3 and hasattr(net, "patch_embed"):
        prefix = 0 if getattr(net, "no_embed_class", False) else int(getattr(net, "num_prefix_tokens", 0))
        grid = net.patch_embed.grid_size
        is_square = math.isqrt(value.shape[1] - prefix) ** 2 == value.shape[1] - prefix
        if is_square and value.shape[2] == target.shape[2]:
            return resample_abs_pos_embed(value, grid, num_prefix_tokens=prefix)  # type: ignore[no-any-return]
    return None


def start_task(task: Any, network: nn.Module) -> None:
    """Load what fits of ``task.start``, and print what was loaded, from there or from a file of another kind.

    Raises:
        UserError: As ``start_network``.
    """
    line = what_was_loaded(network)
    if task.start is not None:
        line = start_network(network, task.backbone, task.num_classes, task.start)
        view = {name: value for name, value in task.start.view.items() if value.shape == task.mean.shape}
        task.load_state_dict(view, strict=False)  # what the weights were trained with
    if line:
        rank_zero_info(line)


@torch.no_grad()
def start_network(network: nn.Module, backbone: str, num_classes: int, start: Start) -> str:
    """Load what fits: same place and same shape, the first layer and position embeddings also where sizes differ.

    Args:
        network: Of a task.
        backbone: Its name.
        num_classes: Of the task.
        start: The checkpoint.

    Returns:
        One line that says what was loaded and what was not.

    Raises:
        UserError: If the checkpoint is of another backbone, or nothing of the backbone fits.
    """
    theirs = str(start.arguments["backbone"])
    if theirs.partition(".")[0] != backbone.partition(".")[0]:
        raise UserError(
            f"model.pretrained: {start.file} has the backbone '{theirs}', but model.backbone is '{backbone}': set"
            f" model.backbone: {theirs}, or give weights of '{backbone}'."
        )
    targets = network.state_dict()
    ours, given = _shared_names(targets), _shared_names(start.weights)
    loaded: dict[tuple[bool, str], str] = {}
    for key in given.keys() & ours.keys():
        value = _fitted(start.weights[given[key]], ours[key], targets[ours[key]], network)
        if value is not None:
            targets[ours[key]].copy_(value)
            loaded[key] = ours[key]
    if not any(of_backbone for of_backbone, _ in loaded):
        raise UserError(
            f"model.pretrained: {start}: none of its tensors fits the backbone '{backbone}'; model.backbone_args of the"
            f" two must be the same (there {start.arguments.get('backbone_args')})."
        )
    if not head_parameters(network) & set(loaded.values()):
        quiet_head(network)
    left = [name for key, name in given.items() if key not in loaded]
    new = [name for key, name in ours.items() if key not in loaded]
    line = f"pretrained: {len(loaded)} of {len(given)} tensors of {start}"
    line += f"; not loaded: {parts(left)}" if left else ""
    if given.keys() & ours.keys() - loaded.keys() and (classes := start.arguments.get("num_classes")) != num_classes:
        line += f" ({classes} classes there, {num_classes} here)"
    return line + (f"; new: {parts(new)}" if new else "")
