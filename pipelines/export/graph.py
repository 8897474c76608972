"""A task's ``outputs`` as one graph, with the values at which ``verify`` compares it with the network."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from datamodules.common.errors import UserError
from pipelines.ensemble import members_of
from tasks.base import Task
from tasks.same_padding import whole_numbers

Dynamic = Literal["batch", "size"]
#: In the graph, but no output of the file: what the network takes, what it gives, and boxes before the suppression.
INNER = ("network_input", "raw_", "decoded_")


@dataclass(frozen=True)
class Shape:
    """What images a graph takes.

    Attributes:
        channels: C.
        height: None for any.
        width: None for any.
        batch: None for any.
        dtype: ``uint8``, or ``float32`` in [0, 1].
        example: Height and width that it is traced with.
    """

    channels: int
    height: int | None
    width: int | None
    batch: int | None
    dtype: Literal["uint8", "float32"]
    example: tuple[int, int]

    def images(self) -> Tensor:
        """Images of this kind, which are no different from run to run."""
        shape = (self.batch or 2, self.channels, *self.example)
        values = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        return values if self.dtype == "uint8" else values.float() / 255

    def dynamic_axes(self) -> dict[int, str]:
        """The axes whose length is open, by their place."""
        named = {0: ("batch", self.batch), 2: ("height", self.height), 3: ("width", self.width)}
        return {axis: name for axis, (name, length) in named.items() if length is None}


class Stages(nn.Module):
    """A task as a module of images (B, C, H, W): its ``outputs``, and what goes into and comes out of the network.

    ``network_input`` is the normalized image; ``raw_0``, ``raw_1``, ... are the network's own float outputs, of the
    first view where there are several. Of an ensemble they are those of all members' networks, one after the other.
    """

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.task = task
        self._of_batch: list[int] = []  # which of the network's tensors are a batch's, and no constants

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Everything by name; outputs first."""
        seen: dict[int, tuple[Tensor, Any]] = {}  # by network: of several views the first

        def look(network: nn.Module, args: tuple[Any, ...], out: Any) -> None:
            seen.setdefault(id(network), (args[0], out))

        handles = [member.network.register_forward_hook(look) for member in members_of(self.task)]
        try:
            outputs = self.task.outputs(image)
        finally:
            for handle in handles:
                handle.remove()
        given, raw = next(iter(seen.values()))[0], list(_tensors([out for _, out in seen.values()]))
        # While a graph is made, a comparison would close the batch where it is open.
        if not (torch.compiler.is_exporting() or torch.jit.is_tracing()):  # type: ignore[attr-defined]
            self._of_batch = [i for i, value in enumerate(raw) if value.shape[0] == image.shape[0]]
        inner = {f"raw_{number}": raw[i] for number, i in enumerate(self._of_batch)}
        return _distinct({**outputs, "network_input": given, **inner})


def _tensors(value: Any) -> Iterator[Tensor]:
    """The float tensors in a nested value."""
    if isinstance(value, Tensor):
        if value.is_floating_point() and value.dim():
            yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from _tensors(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _tensors(part)


def _distinct(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """One name a tensor: the first."""
    known: dict[int, str] = {}
    return {name: value for name, value in values.items() if known.setdefault(id(value), name) == name}


def is_inner(name: str) -> bool:
    """Whether a value is no output of the file."""
    return name.startswith(INNER)


def task_for_export(task: Task) -> Stages:
    """A built task in evaluation mode, in plain memory order, ready to be traced."""
    task.eval()
    for member in members_of(task):
        member.channels_last = False
    task.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    task.requires_grad_(False)
    return Stages(task).eval()


def exported_program(stages: Stages, shape: Shape) -> torch.export.ExportedProgram:
    """The graph by ``torch.export``."""
    axes = {axis: torch.export.Dim.DYNAMIC for axis in shape.dynamic_axes()}
    with quietly(), whole_numbers(), torch.no_grad():
        stages(shape.images())
        return torch.export.export(stages, (shape.images(),), dynamic_shapes=({**axes},) if axes else None)


def write_onnx(stages: Stages, shape: Shape, path: Path) -> tuple[Literal["dynamo", "torchscript"], list[str]]:
    """Write an ONNX file that has all stages as outputs.

    Returns:
        Which of torch's exporters wrote it, and the names of the outputs.

    Raises:
        UserError: If neither can; the reason of the newer one is told.
    """
    images = shape.images()
    with torch.no_grad():
        names = list(stages(images))
    common: dict[str, Any] = {"input_names": ["image"], "output_names": names}
    axes = shape.dynamic_axes()
    try:
        with quietly(), whole_numbers(), torch.no_grad():
            open_axes = ({axis: torch.export.Dim.DYNAMIC for axis in axes},) if axes else None
            program = torch.onnx.export(
                stages, (images,), dynamo=True, dynamic_shapes=open_axes, verbose=False, **common
            )
            assert program is not None
            program.save(str(path))
        return "dynamo", names
    except Exception as error:  # the exporters fail in any way; the other one may not
        reason = first_line(error)
    if axes:  # which TorchScript's exporter closes without a word: other pictures would get other results
        open_ones = [name for name, axis in (("batch", 0), ("size", 2)) if axis in axes]
        raise UserError(
            f"this network cannot be exported with --dynamic {','.join(open_ones)}: {reason}. Leave it out."
        )
    try:
        with quietly(), whole_numbers(), torch.no_grad():
            torch.onnx.export(stages, (images,), str(path), dynamo=False, opset_version=18, **common)
        return "torchscript", names
    except Exception as error:
        raise UserError(
            f"this network cannot be exported to ONNX: {reason} (torch.export); {first_line(error)} (TorchScript)."
        ) from error


def first_line(error: BaseException) -> str:
    """What lies at the bottom of an error, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines: Sequence[str] = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200] if lines else ''}"


@contextmanager
def quietly() -> Iterator[None]:
    """Without the exporters' warnings and notes, of which there are hundreds."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir", "torch")]
    before = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, before, strict=True):
                logger.setLevel(level)
