"""``summary``: what a network is made of, layer by layer, and what each of its units sees."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from datamodules.common.errors import UserError
from datamodules.common.files import atomic_path
from pipelines import cli
from pipelines.command import Command
from pipelines.config.words import CONFIG, flags
from pipelines.exported.metadata import is_exported
from pipelines.outputs.layer_table import field_figure, layer_table
from pipelines.outputs.names import short_number
from pipelines.run.directory import find_checkpoint
from pipelines.run.loading import load_weights
from pipelines.trainer import Trainer
from tasks.base import Task
from tasks.flops import gray_image, predicting
from tasks.hooks import TaskHooks
from tasks.layers import Layer, list_layers, saved_bytes

#: A network by its name alone: ImageNet's classifier. The data are never read.
OF_A_NAME = ["--model=Classification", "--model.num_classes=1000"]
NO_DATA = ["--data=ClassificationData", "--data.source=digits"]
NOISE_IMAGES = 16


def main(words: list[str]) -> int:
    """The command ``summary``.

    Args:
        words: Its flags; ``--model.backbone NAME`` alone is enough.

    Returns:
        The exit status, see ``cli.execute``.
    """
    given = {flag.name for flag in flags(words)}
    needs_data = not given & {*CONFIG, "--ckpt_path", "--data", "--help", "-h"}
    of_data = sorted(name for name in given if name.startswith("--data.") and not name.endswith(".help"))
    if needs_data and of_data:
        way = "the size of its images is --model.image_size" if "--data.image_size" in of_data else "leave it out"
        print(f"error: {of_data[0]}: a network by its name has no data; {way}, or give a --config.", file=sys.stderr)
        return 2
    lead = [*([] if "--model" in given else OF_A_NAME), *NO_DATA] if needs_data else []
    return cli.execute(Command("summary", summary, optionally=True), [*lead, *words])


def summary(
    trainer: Trainer,
    model: TaskHooks,
    datamodule: pl.LightningDataModule,
    ckpt_path: str | None = None,
    output: str | None = None,
) -> list[Layer]:
    """Show the layers of a network: shapes, parameters, multiply-accumulates, receptive fields, memory.

    Args:
        trainer: Knows the run; nothing is trained.
        model: Any task.
        datamodule: The data; they are read only where the config leaves the number of classes to them.
        ckpt_path: Take the network of this checkpoint, with its weights: a file, ``best`` or ``last``.
        output: Folder for ``layers.json``, and ``effective_field.png``, which shows on which pixels the middle of the
            deepest map depends: by gradient on noise, Luo et al. 2016, https://arxiv.org/abs/1701.04128.

    Returns:
        The layers, in the order of their calls.
    """
    checkpoint = None if ckpt_path is None else find_checkpoint(trainer.runs_dir, trainer.run_name, ckpt_path)
    task = _built(model.taught, datamodule, checkpoint)
    layers = list_layers(task)
    print("\n".join(layer_table(layers)))
    print("\n".join(totals(task, layers)), flush=True)
    if output is not None:
        _write(task, layers, Path(output))
    return layers


def _built(task: Task, datamodule: Any, checkpoint: Path | None) -> Task:
    if task.num_classes is None:
        if datamodule.class_names is None:  # a checkpoint's data knows them
            datamodule.setup("fit")
        task.resolve(datamodule.spec(), type(datamodule).__name__)
    task.in_chans = task.in_chans or 3
    if checkpoint is None:
        task.configure_model()
        return task
    if is_exported(checkpoint):
        raise UserError(f"--ckpt_path {checkpoint} is an exported file, which has no layers: give its checkpoint.")
    load_weights(task, checkpoint)
    return task


def totals(task: Task, layers: list[Layer]) -> list[str]:
    """What the layers sum up to, and the memory they need."""
    image = gray_image(task)
    parameters = sum(parameter.numel() for parameter in task.network.parameters())
    trained = sum(parameter.numel() for parameter in task.network.parameters() if parameter.requires_grad)
    weights, kept = 4 * parameters, saved_bytes(task)
    height, width = image.shape[-2:]
    return [
        "",
        f"image       {height} x {width} x {image.shape[1]}",
        f"parameters  {parameters:,} ({short_number(parameters)}), {trained:,} of them trained",
        f"MACs        {sum(layer.macs for layer in layers):,} for an image",
        f"prediction  {_mebibytes(weights)} of weights in float32",
        f"training    {_mebibytes(weights + 12 * trained)} of weights, gradients and AdamW's two moments, and"
        f" {_mebibytes(kept)} for each image of the batch",
    ]


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"


def _write(task: Task, layers: list[Layer], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(folder / "layers.json") as path:
        path.write_text(json.dumps([asdict(layer) for layer in layers], indent=1), encoding="utf-8")
    maps = [layer for layer in layers if layer.field and len(layer.output) == 4 and min(layer.output[2:]) > 1]
    if not maps:
        return
    deepest = max(reversed(maps), key=lambda layer: layer.field.height.jump if layer.field else 0)
    picture = field_figure(effective_field(task, deepest.name), deepest)
    with atomic_path(folder / "effective_field.png") as path:
        Image.fromarray(picture).save(path, format="PNG")
    print(f"{folder}: layers.json, effective_field.png")


def effective_field(task: Task, layer: str) -> NDArray[np.float32]:
    """How much the middle unit of a map depends on each pixel: float32 (H, W), 1 where it does most.

    Args:
        task: Its network is built.
        layer: A module of the network whose output is a map, (B, C, H, W).
    """
    found: list[Tensor] = []
    handle = task.network.get_submodule(layer).register_forward_hook(lambda *given: found.append(given[2]))
    generator = torch.Generator().manual_seed(0)
    size = (NOISE_IMAGES, *gray_image(task).shape[1:])
    noise = torch.rand(size, generator=generator).to(task.mean.device).requires_grad_()
    try:
        with predicting(task), torch.enable_grad():
            task(noise)
            middle = found[0][:, :, found[0].shape[2] // 2, found[0].shape[3] // 2]
            (gradient,) = torch.autograd.grad(middle.sum(), noise)
    finally:
        handle.remove()
    field = gradient.abs().mean((0, 1))
    return (field / field.max().clamp_min(1e-20)).cpu().numpy()
