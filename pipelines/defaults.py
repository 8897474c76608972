"""What the Trainer refuses among its and its commands' arguments, and what it adds to those of Lightning."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pytorch_lightning.callbacks import Callback, ModelSummary, ProgressBar
from pytorch_lightning.loggers import Logger
from pytorch_lightning.plugins import CheckpointIO
from pytorch_lightning.plugins.environments import ClusterEnvironment, SLURMEnvironment, TorchElasticEnvironment

from datamodules.common.errors import UserError
from pipelines.callbacks.overview import Overview
from pipelines.callbacks.progress import ProgressBar as OwnProgressBar
from pipelines.hardware import SyncBatchNorm
from pipelines.outputs.detections import BoxFormat
from pipelines.outputs.prediction_files import check_folder
from pipelines.run.checkpoints import AtomicCheckpointIO
from tasks.hooks import TaskHooks
from tasks.noisy_student import NoisyStudent


def check_arguments(
    *,
    ema_decay: float | None,
    save_every_n_steps: int | None,
    max_skipped_steps: int,
    max_failed_saves: int,
    rank_timeouts: tuple[float, float],
    log_every_n_steps: int,
    report_explanations: int,
    use_distributed_sampler: bool,
) -> None:
    """Refuse values out of range.

    Raises:
        UserError: Naming the key, its value and the fix.
    """
    if ema_decay is not None and not 0 < ema_decay < 1:
        raise UserError(f"trainer.ema_decay is {ema_decay}; it must lie between 0 and 1, for example 0.999.")
    if save_every_n_steps is not None and save_every_n_steps < 1:
        raise UserError(f"trainer.save_every_n_steps is {save_every_n_steps}; it must be at least 1.")
    if max_skipped_steps < 0:
        raise UserError(
            f"trainer.max_skipped_steps is {max_skipped_steps}; it must be at least 0, which does not look."
        )
    if max_failed_saves < 1:
        raise UserError(f"trainer.max_failed_saves is {max_failed_saves}; it must be at least 1, the first failure.")
    for name, seconds in zip(("rank_start_timeout", "rank_timeout"), rank_timeouts, strict=True):
        if not seconds >= 0:
            raise UserError(f"trainer.{name} is {seconds}; it must be 0, for no limit, or a number of seconds.")
    if log_every_n_steps < 1:
        raise UserError(f"trainer.log_every_n_steps is {log_every_n_steps}; it must be at least 1.")
    if report_explanations < 0:
        raise UserError(f"trainer.report_explanations is {report_explanations}; it must be 0, for none, or more.")
    if use_distributed_sampler:
        raise UserError(
            "trainer.use_distributed_sampler is true: Lightning's sampler repeats samples to even out the ranks."
            " Leave it out; the datamodule shares the samples among the ranks itself."
        )


def check_start(model: TaskHooks, ckpt_path: str | None, resume: str | None) -> None:
    """Refuse a start from a checkpoint that is none, or two starts at once.

    Raises:
        UserError: Naming both flags.
    """
    if ckpt_path is None:
        return
    if resume is not None:
        raise UserError(
            "--ckpt_path (a new run starts from a checkpoint) and --resume (a run is continued) are both given: leave"
            " one out."
        )
    if isinstance(model, NoisyStudent):
        raise UserError(
            f"--ckpt_path {ckpt_path} would start the student from another model's state; a noisy student"
            " starts from scratch. Leave it out; --resume auto continues a student's own run."
        )


def check_prediction(
    model: TaskHooks, source: str | list[str] | None, output: str | None, box_formats: list[BoxFormat]
) -> None:
    """Refuse formats that the task does not write, and an output with other files or one to be read by the next call.

    Raises:
        UserError: Naming the flag.
    """
    if list(box_formats) != ["coco"] and not model.taught.finds_boxes:
        raise UserError(f"--box_formats is {box_formats}, but a {type(model).__name__} finds no boxes: leave it out.")
    if output is None:
        return
    check_folder(Path(output))
    if source is None:
        return
    sources = [source] if isinstance(source, str) else source
    inside = next((one for one in sources if Path(output).resolve().is_relative_to(Path(one).resolve())), None)
    if inside is not None:
        raise UserError(
            f"--output {output} lies inside --source {inside}: the next call would predict what this one writes."
            " Give a folder elsewhere."
        )


def with_own_callbacks(given: list[Callback], *, progress_bar: bool, summary: bool) -> list[Callback]:
    """The given callbacks, and our progress bar and summary unless there is one or none is wanted."""
    callbacks = list(given)
    has_bar = any(isinstance(callback, ProgressBar) for callback in callbacks)
    if progress_bar and not has_bar:
        callbacks.append(OwnProgressBar())
    if summary and not any(isinstance(callback, ModelSummary) for callback in callbacks):
        callbacks.append(Overview())
    return callbacks


def as_loggers(logger: Logger | Iterable[Logger] | bool | None) -> list[Logger]:
    """The user's own loggers; true and false are no loggers."""
    if logger is None or isinstance(logger, bool):
        return []
    return [logger] if isinstance(logger, Logger) else list(logger)


def with_own_plugins(given: Any, strategy: Any, *, sync_batchnorm: bool) -> list[Any]:
    """The given plugins, and ours for what none of them does: checkpoint files, batch norms over ranks, SLURM."""
    plugins = list(given) if isinstance(given, list | tuple) else [given] if given else []
    if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
        plugins.append(AtomicCheckpointIO())
    if sync_batchnorm:
        plugins.append(SyncBatchNorm())
    # Lightning's requeueing saves wherever each rank happens to be, into the working directory, and any later run that
    # starts there would continue from that file; here --resume auto does that. The order of the two questions is
    # Lightning's: torchrun may also be used inside a SLURM job.
    if not _environments(plugins, strategy) and not TorchElasticEnvironment.detect() and SLURMEnvironment.detect():
        plugins.append(SLURMEnvironment(auto_requeue=False))
    return plugins


def requeues(plugins: list[Any], strategy: Any) -> bool:
    """Whether the user asked for Lightning's requeueing, with a ``SLURMEnvironment`` among the plugins."""
    environments = _environments(plugins, strategy)
    return any(isinstance(found, SLURMEnvironment) and found.auto_requeue for found in environments)


def _environments(plugins: list[Any], strategy: Any) -> list[Any]:
    of_strategy = getattr(strategy, "cluster_environment", None)
    found = [plugin for plugin in plugins if isinstance(plugin, ClusterEnvironment)]
    return found if of_strategy is None else [*found, of_strategy]
