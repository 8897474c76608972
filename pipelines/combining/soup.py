"""A soup of checkpoints: one network with the mean of their weights (Wortsman et al. 2022, "Model soups").

Its mixing is a stage's command: ``python -m`` this module.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from datamodules.base import DataModule
from pipelines import cli
from pipelines.command import Command
from pipelines.ensemble import members_of
from pipelines.evaluation import start_evaluation
from pipelines.run.checkpoints import AtomicCheckpointIO
from pipelines.stages.launching import StageCommand
from pipelines.trainer import Trainer
from tasks.hooks import TaskHooks


def mix(
    trainer: Trainer,
    model: TaskHooks,
    datamodule: DataModule,
    output: str,
    ckpt_path: str | list[str] | None = None,
) -> None:
    """Write a checkpoint with the mean of several checkpoints' weights, its batch norms' statistics taken anew.

    What else a checkpoint keeps (config, thresholds, temperature) is the first one's.

    Args:
        trainer: Where to run.
        model: The ensemble of the checkpoints.
        datamodule: The first one's data, whose training images the statistics are of.
        output: The file to write.
        ckpt_path: The checkpoints, two or more.
    """
    file = Path(output)
    start_evaluation(trainer, model, datamodule, ckpt_path, "predict", str(file.parent))
    first, *_ = tasks = members_of(model)
    first.load_state_dict(mean_weights([task.state_dict() for task in tasks]))
    device = trainer.strategy.root_device
    first.to(device)
    recompute_norms(first, (first.augment(_on(device, batch))["image"] for batch in datamodule.train_dataloader()))
    if trainer.is_global_zero:
        kept = torch.load(model.checkpoints[0], map_location="cpu", weights_only=True, mmap=True)  # type: ignore[arg-type,union-attr,index]
        weights = {name: value.cpu() for name, value in first.state_dict().items()}
        AtomicCheckpointIO().save_checkpoint({**kept, "state_dict": weights}, file)


main = functools.partial(cli.execute, Command("mix", mix))


def _on(device: torch.device, batch: dict[str, object]) -> dict[str, object]:
    return {key: value.to(device) if torch.is_tensor(value) else value for key, value in batch.items()}


def mean_weights(each: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of several states of one network; what is no float (counts of batches) is the first one's."""
    return {
        name: torch.stack([state[name].float() for state in each]).mean(0).to(value.dtype)
        if value.is_floating_point()
        else value
        for name, value in each[0].items()
    }


@torch.no_grad()
def recompute_norms(task: nn.Module, images: Iterable[Tensor]) -> None:
    """Take the statistics of batch norms anew: those of averaged weights are not the average of the statistics.

    As ``torch.optim.swa_utils.update_bn`` does, but norms that a task keeps frozen keep theirs.

    Args:
        task: Left in evaluation mode.
        images: Batches as the task takes them; not read where it has no such norm.
    """
    task.train()
    norms = [m for m in task.modules() if isinstance(m, _BatchNorm) and m.training and m.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches, each counted once
    if norms:
        for image in images:
            task(image)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    task.eval()


MIX = StageCommand("mix", ("pipelines.combining.soup",), main)

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
