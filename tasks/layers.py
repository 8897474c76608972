"""What each layer of a task's network is: shapes, parameters, multiply-accumulates, receptive field."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tasks.flops import FORMULAS, gray_image, predicting
from tasks.receptive_field import Field, FollowFields, field_of

if TYPE_CHECKING:
    from tasks.base import Task

DROPOUTS = (nn.Dropout, nn.Dropout2d, nn.AlphaDropout)


@dataclass(frozen=True)
class Layer:
    """A module that computes something of its own; with several calls, its first one.

    Attributes:
        name: Within the network, ``layer1.0.conv1``; empty for the network itself.
        kind: Its class.
        output: Shape of what it gives for one image; empty where that is no tensor.
        settings: Kernel, stride, padding, dilation and groups, where it has them.
        parameters: Of its own, without those of the modules in it.
        formula: How their number comes about: ``64 x 3 x 7 x 7``.
        macs: Multiply-accumulates for one image.
        field: What a unit of its output sees; None where it sees no image.
    """

    name: str
    kind: str
    output: tuple[int, ...]
    settings: dict[str, Any]
    parameters: int
    formula: str
    macs: int
    field: Field | None


def list_layers(task: Task, image_size: tuple[int, int] | None = None) -> list[Layer]:
    """The layers in the order of their calls, for one gray image.

    Args:
        task: Its network is built.
        image_size: Height and width; the task's own by default, or where that is open the backbone's.
    """
    with _own_macs(task.network) as macs:
        seen = follow_outputs(task, image_size)
    modules = dict(task.network.named_modules())
    layers = [_layer(name, modules[name], *found, macs.get(name, 0)) for name, found in seen.items()]
    return [layer for layer in layers if layer.parameters or layer.macs or _is_leaf(modules[layer.name])]


def follow_outputs(
    task: Task, image_size: tuple[int, int] | None = None
) -> dict[str, tuple[tuple[int, ...], Field | None]]:
    """Of each module of the network, by its name, the shape and the field of its first output, for one gray image.

    They are in the order in which the calls end: a block comes behind what it is made of. The shape of what is no
    tensor is empty.

    Args:
        task: Its network is built.
        image_size: As for ``list_layers``.
    """
    image = gray_image(task, image_size)
    seen: dict[str, tuple[tuple[int, ...], Field | None]] = {}
    names = {module: name for name, module in task.network.named_modules()}

    def record(module: nn.Module, _: Any, output: Any) -> None:
        shape = tuple(output.shape) if isinstance(output, Tensor) else ()
        seen.setdefault(names[module], (shape, field_of(output)))

    handles = [module.register_forward_hook(record) for module in names]
    try:
        with predicting(task), FollowFields(image):
            task.infer(image)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def saved_bytes(task: Task, image_size: tuple[int, int] | None = None) -> int:
    """Bytes that one image keeps in memory between the forward and the backward pass, in float32."""
    kept: dict[int, int] = {}
    parameters = {parameter.data_ptr() for parameter in task.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    # In evaluation mode: batch norm refuses a batch of one image where its maps have one position.
    with predicting(task), torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = task(gray_image(task, image_size))
    del output
    return sum(kept.values())


def _is_leaf(module: nn.Module) -> bool:
    return next(module.children(), None) is None and not isinstance(module, (nn.Identity, nn.Flatten, *DROPOUTS))


@contextmanager
def _own_macs(network: nn.Module) -> Iterator[dict[str, int]]:
    """By the name within the network, without what modules inside of it compute: filled while a block runs.

    Modules may be called through the network or one by one, as a detector's second stage is.
    """
    own: dict[str, int] = {}
    running: list[list[int]] = []  # of each call: operations before it, and those of the calls inside
    names = {module: name for name, module in network.named_modules()}
    counter = FlopCounterMode(display=False, custom_mapping=FORMULAS)

    def begin(*_: Any) -> None:
        running.append([counter.get_total_flops(), 0])

    def end(module: nn.Module, *_: Any) -> None:
        before, inside = running.pop()
        spent = counter.get_total_flops() - before
        own[names[module]] = own.get(names[module], 0) + (spent - inside) // 2
        if running:
            running[-1][1] += spent

    handles = [module.register_forward_pre_hook(begin) for module in names]
    handles += [module.register_forward_hook(end) for module in names]
    try:
        with counter:
            yield own
    finally:
        for handle in handles:
            handle.remove()


def _layer(name: str, module: nn.Module, output: tuple[int, ...], field: Field | None, macs: int) -> Layer:
    shapes = [tuple(parameter.shape) for parameter in module.parameters(recurse=False)]
    return Layer(
        name=name,
        kind=type(module).__name__,
        output=output,
        settings=_settings(module),
        parameters=sum(parameter.numel() for parameter in module.parameters(recurse=False)),
        formula=" + ".join(" x ".join(map(str, shape)) for shape in shapes),
        macs=macs,
        field=field,
    )


def _settings(module: nn.Module) -> dict[str, Any]:
    keys = ("kernel_size", "stride", "padding", "dilation", "groups")
    found = {key: getattr(module, key) for key in keys if isinstance(getattr(module, key, None), int | tuple | str)}
    return found if "kernel_size" in found else {}
