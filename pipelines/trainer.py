"""The Trainer: Lightning's, with a run directory around each command that trains or evaluates."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, Checkpoint
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_info

from pipelines.advice import with_advice
from pipelines.batch_trial import settle_batch
from pipelines.callbacks.predictions import PredictionWriter
from pipelines.defaults import (
    as_loggers,
    check_arguments,
    check_prediction,
    check_start,
    requeues,
    with_own_callbacks,
    with_own_plugins,
)
from pipelines.epoch_loop import EpochLoop
from pipelines.evaluation import print_metrics, start_evaluation
from pipelines.hardware import AveragedWeights, Precision, resolve_precision
from pipelines.lightning_parts import check_parts, wait_for_ranks
from pipelines.outputs.detections import BoxFormat
from pipelines.preparation import check_training, prepare, start_run
from pipelines.resuming import resumes_nothing, start_of
from pipelines.run.compatibility import check_fits, check_optimizer
from pipelines.run.lock import only_writer
from pipelines.run.saves import Saves
from pipelines.run.tracking import Wandb
from pipelines.run_trainer import RunTrainer
from tasks.hooks import TaskHooks


class Trainer(RunTrainer):
    """Lightning's Trainer with a run directory around it.

    Args:
        precision: ``auto`` is bf16 on a GPU that has it, else 32 bits.
        ema_decay: Decay of an exponential moving average of the weights, which is then evaluated and saved as the
            model (Lightning's WeightAveraging); none by default. It ramps up: min(ema_decay, (1 + t) / (10 + t)) in
            step t.
        sync_batchnorm: Batch norms take their statistics over all ranks; for GPUs.
        save_every_minutes: Save ``last.ckpt`` inside long epochs so often; 0 for the epoch's end only.
        save_every_n_steps: Save ``last.ckpt`` inside epochs after so many optimizer steps.
        max_skipped_steps: An optimizer step whose loss or gradient is NaN or infinite is skipped; so many in a row end
            the run. 0 does not look.
        max_failed_saves: A checkpoint that cannot be written is tried again at the next save; so many failures of one
            file in a row end the run.
        rank_start_timeout: Seconds for which a rank may hang, while another waits for it, before its first batch: it is
            then named, and all end. 0 for no limit but the strategy's own.
        rank_timeout: The same later. Saving, drawing and measuring may take 25 minutes at one place.
        wandb: Weights & Biases.
        report: Write ``report.html`` and a model card at the end of ``fit``, ``validate`` and ``test``.
        report_explanations: So many of the worst images of ``validate`` and ``test`` get a Layer-CAM there; 0 for none.
        callbacks: Further Lightning callbacks; a ModelCheckpoint writes beside ``best.ckpt`` and ``last.ckpt``.
        logger: Further Lightning loggers; ``false`` leaves only ``metrics.csv``.
        enable_checkpointing: ``false`` writes neither ``best.ckpt`` nor ``last.ckpt``.
        enable_progress_bar: Show a progress bar.
        log_every_n_steps: Optimizer steps between two rows of training losses; the only syncs with the device.
        deterministic: Only algorithms that give the same result each time; see Lightning.
        benchmark: cuDNN's search for the fastest kernels; on by default, but not with ``deterministic``.
        use_distributed_sampler: Must stay false: the datamodule shares the samples among the ranks, without repeats.
        kwargs: Lightning's other arguments.
    """

    def __init__(
        self,
        *,
        precision: Precision = "auto",
        ema_decay: float | None = None,
        sync_batchnorm: bool = False,
        save_every_minutes: float = 10.0,
        save_every_n_steps: int | None = None,
        max_skipped_steps: int = 10,
        max_failed_saves: int = 3,
        rank_start_timeout: float = 300.0,
        rank_timeout: float = 120.0,
        wandb: Wandb = Wandb(),  # noqa: B008 - frozen
        report: bool = True,
        report_explanations: int = 6,
        callbacks: list[Callback] | Callback | None = None,
        logger: Logger | Iterable[Logger] | bool | None = None,
        enable_checkpointing: bool | None = None,
        enable_progress_bar: bool | None = None,
        log_every_n_steps: int = 50,
        benchmark: bool | None = None,
        deterministic: bool | Literal["warn"] | None = None,
        use_distributed_sampler: bool = False,
        **kwargs: Any,
    ) -> None:
        check_arguments(
            ema_decay=ema_decay,
            save_every_n_steps=save_every_n_steps,
            max_skipped_steps=max_skipped_steps,
            max_failed_saves=max_failed_saves,
            rank_timeouts=(rank_start_timeout, rank_timeout),
            log_every_n_steps=log_every_n_steps,
            report_explanations=report_explanations,
            use_distributed_sampler=use_distributed_sampler,
        )
        given = [callbacks] if isinstance(callbacks, Callback) else list(callbacks or [])
        check_parts(given, kwargs.get("strategy", "auto"), kwargs)
        callbacks = with_own_callbacks(
            given,
            progress_bar=enable_progress_bar is not False,
            summary=kwargs.get("enable_model_summary") is not False,
        )
        plugins = with_own_plugins(kwargs.pop("plugins", None), kwargs.get("strategy"), sync_batchnorm=sync_batchnorm)
        has_checkpoints = any(isinstance(callback, Checkpoint) for callback in callbacks)
        if benchmark is None:
            benchmark = torch.cuda.is_available() and not deterministic
        # In a SLURM job Lightning starts from any hpc_ckpt_*.ckpt in this folder, the working directory by default:
        # https://github.com/Lightning-AI/pytorch-lightning/blob/master/src/lightning/pytorch/trainer/connectors/checkpoint_connector.py
        kwargs["default_root_dir"] = kwargs.get("default_root_dir") or "runs"
        super().__init__(
            precision=resolve_precision(precision, kwargs.get("accelerator", "auto")),
            callbacks=callbacks,
            logger=False,
            enable_checkpointing=has_checkpoints,
            enable_progress_bar=enable_progress_bar,
            log_every_n_steps=log_every_n_steps,
            benchmark=benchmark,
            deterministic=deterministic,
            sync_batchnorm=sync_batchnorm,
            plugins=plugins,
            use_distributed_sampler=False,
            **kwargs,
        )
        self.fit_loop.epoch_loop = EpochLoop.like(self.fit_loop.epoch_loop)
        if ema_decay is not None:
            # Only now is it known where the training will be; Lightning wants the checkpoint callbacks to be last.
            number = sum(not isinstance(callback, Checkpoint) for callback in self.callbacks)
            self.callbacks.insert(number, AveragedWeights(ema_decay, self.strategy.root_device))
        self.adds_checkpoints = enable_checkpointing is not False
        self.handles_signals = not requeues(plugins, kwargs.get("strategy"))
        self.save_every_minutes, self.save_every_n_steps = save_every_minutes, save_every_n_steps
        self.max_skipped_steps, self.saves = max_skipped_steps, Saves(max_failed_saves)
        self.rank_start_timeout, self.rank_timeout = rank_start_timeout, rank_timeout
        wait_for_ranks(self.strategy, rank_start_timeout, rank_timeout)
        self.wandb, self.report, self.report_explanations = wandb, report, report_explanations
        self.wandb_mode = "off" if logger is False else wandb.mode
        self.user_loggers = as_loggers(logger)
        self.run_name, self.runs_dir = "run", Path("runs")
        self.config = self.run_dir = None
        self.trust = []

    # The commands.

    def fit(  # type: ignore[override]
        self,
        model: TaskHooks,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        datamodule: pl.LightningDataModule | None = None,
        ckpt_path: str | None = None,
        resume: str | None = None,
    ) -> Path | None:
        """Train a model.

        Args:
            model: The task.
            train_dataloaders: As in Lightning, in place of a datamodule.
            val_dataloaders: As in Lightning, in place of a datamodule.
            datamodule: The data.
            ckpt_path: Start a new run from the full state of this checkpoint: a file, ``best`` or ``last``.
            resume: ``auto`` continues the newest run of this name from its newest good checkpoint, and starts a new
                run where there is none; or a run directory to continue.

        Returns:
            The run directory on rank 0.
        """
        check_start(model, ckpt_path, resume)
        with ExitStack() as locks:
            run, checkpoint = start_of(self, ckpt_path, resume, locks)
            prepare(self, model, datamodule, "fit", weights_follow=checkpoint is not None)
            settle_batch(self, model, datamodule, run, checkpoint)
            check_training(self, model, datamodule)
            if checkpoint is not None:
                check_fits(checkpoint, model.taught)
                check_optimizer(checkpoint, model.taught)
                if run is not None and resumes_nothing(self, checkpoint, datamodule):
                    return run
            start = None if checkpoint is None else str(checkpoint)
            if self.fast_dev_run or getattr(self, "barebones", False):
                super().fit(model, train_dataloaders, val_dataloaders, datamodule, start)
                return None
            with self.one_command():
                files = start_run(self, model, datamodule, run, checkpoint)
                if run is None and self.run_dir is not None:
                    locks.enter_context(only_writer(self.run_dir))
                if checkpoint is not None:
                    rank_zero_info(f"Continuing from {checkpoint}.")
                with with_advice(self, datamodule):
                    super().fit(model, train_dataloaders, val_dataloaders, datamodule, start)
                for logger in self.loggers:
                    logger.finalize("success")
                files.summary(self)
        return self.run_dir

    def validate(  # type: ignore[override]
        self,
        model: TaskHooks,
        dataloaders: Any = None,
        datamodule: pl.LightningDataModule | None = None,
        ckpt_path: str | list[str] | None = None,
    ) -> Any:
        """Evaluate a checkpoint on the validation split and write ``validate.json``.

        Args:
            model: The task.
            dataloaders: As in Lightning, in place of a datamodule.
            datamodule: The data.
            ckpt_path: A file, ``best`` or ``last``; ``best`` of the newest run of this name by default. Several files,
                ``[a.ckpt,b.ckpt]``, are fused.

        Returns:
            The metrics, as Lightning returns them.
        """
        with self.one_command():
            checkpoint = start_evaluation(self, model, datamodule, ckpt_path, "validate")
            results = super().validate(model, dataloaders, checkpoint, False, datamodule)
            print_metrics(self)
        return results

    def test(  # type: ignore[override]
        self,
        model: TaskHooks,
        dataloaders: Any = None,
        datamodule: pl.LightningDataModule | None = None,
        ckpt_path: str | list[str] | None = None,
    ) -> Any:
        """Evaluate a checkpoint on the test split; write ``test.json`` and ``predictions.csv``.

        Args:
            model: The task.
            dataloaders: As in Lightning, in place of a datamodule.
            datamodule: The data.
            ckpt_path: A file, ``best`` or ``last``; ``best`` of the newest run of this name by default. Several files,
                ``[a.ckpt,b.ckpt]``, are fused.

        Returns:
            The metrics, as Lightning returns them.
        """
        with self.one_command():
            checkpoint = start_evaluation(self, model, datamodule, ckpt_path, "test")
            self.callbacks.append(PredictionWriter(self.run_dir))
            results = super().test(model, dataloaders, checkpoint, False, datamodule)
            print_metrics(self)
        return results

    def predict(  # type: ignore[override]
        self,
        model: TaskHooks,
        dataloaders: Any = None,
        datamodule: pl.LightningDataModule | None = None,
        ckpt_path: str | list[str] | None = None,
        source: str | list[str] | None = None,
        output: str | None = None,
        box_formats: list[BoxFormat] = ["coco"],  # noqa: B006 - never changed
    ) -> Path:
        """Predict images; write ``predictions.csv``, a contact sheet, and what masks and boxes need.

        Masks: ``masks/`` and ``overlays/``. Boxes: ``overlays/``, and what ``box_formats`` names: ``coco`` is
        ``predictions.json`` (COCO's results) and ``annotations.json`` (the same as a data set), ``yolo`` is
        ``labels/``, ``csv`` is ``boxes.csv``.

        Args:
            model: The task.
            dataloaders: As in Lightning, in place of a datamodule.
            datamodule: The data.
            ckpt_path: A file, ``best`` or ``last``; ``best`` of the newest run of this name by default. Several files,
                ``[a.ckpt,b.ckpt]``, are fused.
            source: A folder (with its sub-folders), an image or a video file, a pattern ('new/*.jpg'), a list of files
                (.txt, .csv, .parquet), or several of these; the test split of the data by default.
            output: Where to write, in place of what an earlier call wrote; ``predict`` in the run directory by default.
            box_formats: What boxes are written as: ``coco``, ``yolo``, ``csv``, or several.

        Returns:
            The folder that was written.
        """
        check_prediction(model, source, output, box_formats)
        if datamodule is not None:
            datamodule.predict_source = source  # type: ignore[attr-defined]
        with self.one_command():
            checkpoint = start_evaluation(self, model, datamodule, ckpt_path, "predict", output)
            directory = Path(output) if output else self.run_dir and self.run_dir / "predict"
            writer = PredictionWriter(directory, box_formats)
            self.callbacks.append(writer)
            super().predict(model, dataloaders, datamodule, False, checkpoint)
        rank_zero_info(f"Predictions are in {writer.directory}.")
        return writer.directory
