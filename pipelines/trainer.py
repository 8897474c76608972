"""The Trainer: Lightning's, with the commands that need one model and one datamodule as methods."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, Checkpoint, ModelCheckpoint
from pytorch_lightning.callbacks import ModelSummary as LightningSummary
from pytorch_lightning.callbacks import ProgressBar as LightningBar
from pytorch_lightning.loggers import Logger
from pytorch_lightning.plugins.environments import SLURMEnvironment
from pytorch_lightning.utilities import rank_zero_info, rank_zero_only
from pytorch_lightning.utilities.model_helpers import is_overridden

from datamodules.base import DataModule
from datamodules.common.errors import UserError
from pipelines.callbacks.checkpoints import KeepBest, SaveLast
from pipelines.callbacks.pictures import Pictures
from pipelines.callbacks.predictions import PredictionWriter
from pipelines.callbacks.progress import ProgressBar
from pipelines.callbacks.run_files import RunFiles
from pipelines.callbacks.summary import ModelSummary
from pipelines.hardware import AveragedWeights, Precision, SyncBatchNorm, resolve_precision
from pipelines.noisy_student.selection import Selection
from pipelines.noisy_student.student import task_config, write_student
from pipelines.outputs.detections import BoxFormat
from pipelines.run.checkpoints import (
    AtomicCheckpointIO,
    check_data,
    check_fits,
    global_step_of,
    open_checkpoint,
)
from pipelines.run.directory import (
    checkpoint_config,
    find_checkpoint,
    find_resume,
    new_run,
    run_config,
    run_of_checkpoint,
    wandb_id,
    write_config,
    write_data_files,
    write_environment,
)
from pipelines.run.metrics_file import MetricsCSV
from pipelines.run.tracking import Wandb, wandb_logger
from tasks.base import Task
from tasks.checks import TrainingPlan
from tasks.hooks import TaskHooks
from tasks.noisy_student import NoisyStudent


class Trainer(pl.Trainer):
    """Lightning's Trainer with a run directory around it.

    Args:
        precision: ``auto`` is bf16 on a GPU that has it, else 32 bits.
        ema_decay: Decay of an exponential moving average of the weights, which is then evaluated and saved as the
            model (Lightning's WeightAveraging); none by default.
        sync_batchnorm: Batch norms take their statistics over all ranks; for GPUs.
        save_every_minutes: Save ``last.ckpt`` inside long epochs so often; 0 for the epoch's end only.
        save_every_n_steps: Save ``last.ckpt`` inside epochs after so many optimiser steps.
        wandb: Weights & Biases.
        callbacks: Further Lightning callbacks; with a ModelCheckpoint among them, ours are left out.
        logger: Further Lightning loggers; ``false`` leaves only ``metrics.csv``.
        enable_checkpointing: ``false`` writes no checkpoints.
        enable_progress_bar: Show a progress bar.
        log_every_n_steps: Optimiser steps between two rows of training losses; the only syncs with the device.
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
        wandb: Wandb = Wandb(),  # noqa: B008 - frozen
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
        if ema_decay is not None and not 0 < ema_decay < 1:
            raise UserError(f"trainer.ema_decay is {ema_decay}; it must lie between 0 and 1, for example 0.999.")
        if save_every_n_steps is not None and save_every_n_steps < 1:
            raise UserError(f"trainer.save_every_n_steps is {save_every_n_steps}; it must be at least 1.")
        if log_every_n_steps < 1:
            raise UserError(f"trainer.log_every_n_steps is {log_every_n_steps}; it must be at least 1.")
        if use_distributed_sampler:
            raise UserError(
                "trainer.use_distributed_sampler is true: Lightning's sampler repeats samples to even out the ranks."
                " Leave it out; the datamodule shares the samples among the ranks itself."
            )
        callbacks = [callbacks] if isinstance(callbacks, Callback) else list(callbacks or [])
        own_checkpoints = any(isinstance(c, Checkpoint) for c in callbacks)
        self._add_checkpoints = enable_checkpointing is not False and not own_checkpoints
        if enable_progress_bar is not False and not any(isinstance(c, LightningBar) for c in callbacks):
            callbacks.append(ProgressBar())
        own_summary = any(isinstance(c, LightningSummary) for c in callbacks)
        if kwargs.get("enable_model_summary") is not False and not own_summary:
            callbacks.append(ModelSummary())
        if ema_decay is not None:
            callbacks.append(AveragedWeights(ema_decay))
        plugins = kwargs.pop("plugins", None) or []
        plugins = list(plugins) if isinstance(plugins, list | tuple) else [plugins]
        if not any(isinstance(p, pl.plugins.CheckpointIO) for p in plugins):
            plugins.append(AtomicCheckpointIO())
        if sync_batchnorm:
            plugins.append(SyncBatchNorm())
        super().__init__(
            precision=resolve_precision(precision, kwargs.get("accelerator", "auto")),
            callbacks=callbacks,
            logger=False,
            enable_checkpointing=own_checkpoints,
            enable_progress_bar=enable_progress_bar,
            log_every_n_steps=log_every_n_steps,
            benchmark=torch.cuda.is_available() and not deterministic if benchmark is None else benchmark,
            deterministic=deterministic,
            sync_batchnorm=sync_batchnorm,
            plugins=plugins,
            use_distributed_sampler=False,
            **kwargs,
        )
        environment = self._accelerator_connector.cluster_environment
        if isinstance(environment, SLURMEnvironment) and environment not in plugins:
            # Lightning's requeueing saves wherever each rank happens to be, into the working directory, and any later
            # run that starts there would go on from that file. Continuing is the affair of --resume auto.
            environment.auto_requeue = False
        self.save_every_minutes, self.save_every_n_steps = save_every_minutes, save_every_n_steps
        self.wandb = wandb
        self._user_loggers = (
            [logger] if isinstance(logger, Logger) else ([] if isinstance(logger, bool | None) else list(logger))
        )
        self._wandb_on = logger is not False
        self.run_name = "run"
        self.runs_dir = Path("runs")
        self.config: dict[str, Any] | None = None  # the parsed config, where the command line made this trainer
        self.run_dir: Path | None = None

    # The commands.

    def fit(  # type: ignore[override]
        self,
        model: TaskHooks,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        datamodule: pl.LightningDataModule | None = None,
        ckpt_path: str | None = None,
        resume: str | None = None,
    ) -> None:
        """Train a model.

        Args:
            model: The task.
            train_dataloaders: As in Lightning, in place of a datamodule.
            val_dataloaders: As in Lightning, in place of a datamodule.
            datamodule: The data.
            ckpt_path: Start a new run from the full state of this checkpoint: a file, ``best`` or ``last``.
            resume: ``auto`` continues the newest run of this name from its newest good checkpoint, and starts a new
                run where there is none; or a run directory to continue.
        """
        if ckpt_path is not None and resume is not None:
            raise UserError(
                "--ckpt_path (a new run starts from a checkpoint) and --resume (a run goes on) are both given: leave"
                " one out."
            )
        run, checkpoint = find_resume(self.runs_dir, self.run_name, resume)
        if ckpt_path is not None:
            if isinstance(model, NoisyStudent):
                raise UserError(
                    f"--ckpt_path {ckpt_path} would start the student from another model's state; a noisy student"
                    " starts from scratch. Leave it out; --resume auto continues a student's own run."
                )
            checkpoint = find_checkpoint(self.runs_dir, self.run_name, ckpt_path)
        if checkpoint is not None:
            model.taught.load_pretrained = False
        self._prepare(model, datamodule, "fit")
        plan = TrainingPlan(
            batch_size=getattr(datamodule, "batch_size", None),
            has_validation=self._has_validation(datamodule),
            has_end=self.max_epochs != -1 or self.max_steps != -1,
            monitors=[c.monitor for c in self.callbacks if isinstance(getattr(c, "monitor", None), str)],
        )
        model.check_training(plan)
        if checkpoint is not None:
            check_fits(checkpoint, model.taught)
            if run is not None:
                check_data(checkpoint, datamodule)
        if self.fast_dev_run or getattr(self, "barebones", False):
            super().fit(model, train_dataloaders, val_dataloaders, datamodule, _str(checkpoint))
            return
        files = self._start_run(model, datamodule, run, checkpoint)
        if checkpoint is not None:
            rank_zero_info(f"Continuing from {checkpoint}.")
        super().fit(model, train_dataloaders, val_dataloaders, datamodule, _str(checkpoint))
        for logger in self.loggers:
            logger.finalize("success")
        if isinstance(model, NoisyStudent) and self.run_dir is not None and self.is_global_zero:
            write_student(self.run_dir / "checkpoints")
        files.summary(self)

    def validate(  # type: ignore[override]
        self,
        model: TaskHooks,
        dataloaders: Any = None,
        datamodule: pl.LightningDataModule | None = None,
        ckpt_path: str | None = None,
    ) -> Any:
        """Evaluate a checkpoint on the validation split and write ``validate.json``.

        Args:
            model: The task.
            dataloaders: As in Lightning, in place of a datamodule.
            datamodule: The data.
            ckpt_path: A file, ``best`` or ``last``; ``best`` of the newest run of this name by default.
        """
        checkpoint = self._start_evaluation(model, datamodule, ckpt_path, "validate")
        results = super().validate(model, dataloaders, str(checkpoint), False, datamodule)
        self._print_metrics()
        return results

    def test(  # type: ignore[override]
        self,
        model: TaskHooks,
        dataloaders: Any = None,
        datamodule: pl.LightningDataModule | None = None,
        ckpt_path: str | None = None,
    ) -> Any:
        """Evaluate a checkpoint on the test split; write ``test.json`` and ``predictions.csv``.

        Args:
            model: The task.
            dataloaders: As in Lightning, in place of a datamodule.
            datamodule: The data.
            ckpt_path: A file, ``best`` or ``last``; ``best`` of the newest run of this name by default.
        """
        checkpoint = self._start_evaluation(model, datamodule, ckpt_path, "test")
        self.callbacks.append(PredictionWriter(self.run_dir))
        results = super().test(model, dataloaders, str(checkpoint), False, datamodule)
        self._print_metrics()
        return results

    def predict(  # type: ignore[override]
        self,
        model: TaskHooks,
        dataloaders: Any = None,
        datamodule: pl.LightningDataModule | None = None,
        ckpt_path: str | None = None,
        source: str | None = None,
        output: str | None = None,
        box_formats: list[BoxFormat] = ["coco"],  # noqa: B006 - never changed
    ) -> None:
        """Predict images; write ``predictions.csv``, a contact sheet, and what masks and boxes need.

        Masks: ``masks/`` and ``overlays/``. Boxes: ``overlays/``, and what ``box_formats`` names: ``coco`` is
        ``predictions.json`` (COCO's results) and ``annotations.json`` (the same as a data set), ``yolo`` is
        ``labels/``, ``csv`` is ``boxes.csv``.

        Args:
            model: The task.
            dataloaders: As in Lightning, in place of a datamodule.
            datamodule: The data.
            ckpt_path: A file, ``best`` or ``last``; ``best`` of the newest run of this name by default.
            source: A folder (with its sub-folders), an image or a video file; the test split of the data by default.
            output: Where to write; ``predict`` in the run directory by default.
            box_formats: What boxes are written as: ``coco``, ``yolo``, ``csv``, or several.
        """
        if source is not None and not Path(source).exists():
            raise UserError(f"--source {source} does not exist in {Path.cwd()}. Give a folder, an image or a video.")
        if list(box_formats) != ["coco"] and not model.taught.finds_boxes:
            raise UserError(
                f"--box_formats is {box_formats}, but a {type(model).__name__} finds no boxes: leave it out."
            )
        if source is not None and output is not None and Path(output).resolve().is_relative_to(Path(source).resolve()):
            raise UserError(
                f"--output {output} lies inside --source {source}: the next call would predict what this one writes."
                " Give a folder elsewhere."
            )
        if datamodule is not None:
            datamodule.predict_source = source  # type: ignore[attr-defined]
        checkpoint = self._start_evaluation(model, datamodule, ckpt_path, "predict", output)
        writer = PredictionWriter(Path(output) if output else self.run_dir and self.run_dir / "predict", box_formats)
        self.callbacks.append(writer)
        super().predict(model, dataloaders, datamodule, False, str(checkpoint))
        rank_zero_info(f"Predictions are in {writer.directory}.")

    def probe(
        self,
        model: TaskHooks,
        datamodule: pl.LightningDataModule,
        C: float = 0.1,
        ckpt_path: str | None = None,
    ) -> None:
        """Fit a logistic regression on frozen features, fold it into the head, evaluate and save it.

        Args:
            model: A classification task, usually with pretrained weights.
            datamodule: The data; its training images are taken without augmentation.
            C: Inverse of the regularisation's strength, scikit-learn's.
            ckpt_path: Take the features of this checkpoint, such as a ``student.ckpt``; the model's own by default.
        """
        from pipelines.probe import fit_head

        if self.world_size > 1:
            raise UserError(
                f"probe runs on one device, but there are {self.world_size} (trainer.devices times num_nodes). Add"
                " --trainer.devices 1 --trainer.num_nodes 1."
            )
        checkpoint = None if ckpt_path is None else find_checkpoint(self.runs_dir, self.run_name, ckpt_path)
        if checkpoint is not None:
            model.taught.load_pretrained = False
        self._prepare(model, datamodule, "probe")
        if checkpoint is not None:
            check_fits(checkpoint, model.taught)
            model.load_state_dict(open_checkpoint(checkpoint)["state_dict"])
        files = self._start_run(model, datamodule, None, None)
        fit_head(self, model, datamodule, C)
        super().validate(model, datamodule=datamodule, verbose=False)
        self._print_metrics()
        assert self.run_dir is not None
        (self.run_dir / "checkpoints").mkdir(exist_ok=True)
        for name in ("best", "last"):
            self.save_checkpoint(self.run_dir / "checkpoints" / f"{name}.ckpt")
        files.summary(self)

    def pseudo_label(
        self,
        model: TaskHooks,
        datamodule: pl.LightningDataModule,
        source: str,
        output: str,
        ckpt_path: str | None = None,
        teachers: list[str] = [],  # noqa: B006 - never changed
        selection: Selection | None = None,
        batch_size: int | None = None,
        soft: bool = False,
    ) -> None:
        """Label a pool of images with a teacher, as an ordinary annotation file that any run can read.

        Class probabilities become a ``.parquet`` list, boxes a COCO ``.json`` file with scores, masks index PNGs with
        maps of confidence and a ``.parquet`` list of them. The teacher sees clean images in evaluation mode, with its
        averaged weights where it has some. Ranks share the pool; the same command goes on where a killed one ended,
        and does nothing where the file is complete.

        Args:
            model: The teacher.
            datamodule: Its data: how it reads and resizes images.
            source: The pool: a folder with its sub-folders, or a ``.csv`` or ``.parquet`` list with a column ``path``.
            output: The file to write, ``.parquet``, or ``.json`` for boxes.
            ckpt_path: The teacher: a file, ``best`` or ``last``; ``best`` of the newest run of this name by default.
            teachers: Further checkpoints; the labels are the mean of all teachers' probabilities.
            selection: Also write the labels worth teaching, as ``selected`` beside the output.
            batch_size: Images a step; that of the data by default.
            soft: For masks, also write the two most probable classes of each pixel with their probabilities, which a
                student then learns in place of the one class. Probabilities of whole images are soft in any case.
        """
        from pipelines.noisy_student.command import pseudo_label
        from pipelines.noisy_student.labelling import Teacher

        assert isinstance(datamodule, DataModule)
        assert isinstance(model, Task)
        teacher = Teacher(find_checkpoint(self.runs_dir, self.run_name, ckpt_path), model, datamodule)
        pseudo_label(self, teacher, teachers, source, Path(output), selection, batch_size, soft=soft)

    # What the commands share.

    def _print_metrics(self) -> None:
        lines = [f"  {name:<20}  {float(value):.4f}" for name, value in sorted(self.callback_metrics.items())]
        rank_zero_print("\n".join([*lines, f"  {'written to':<20}  {self.run_dir}"]))

    def _prepare(self, model: TaskHooks, datamodule: pl.LightningDataModule | None, stage: str) -> None:
        """Read the data and build the model before anything is written or any rank started: mistakes end here."""
        if datamodule is not None:
            for hook in ("on_after_batch_transfer", "on_before_batch_transfer", "transfer_batch_to_device"):
                if is_overridden(hook, datamodule):
                    raise UserError(
                        f"{type(datamodule).__name__} overrides {hook}; Lightning would then skip the model's, which"
                        " seeds and augments the batch. Move that work into the datamodule's transforms."
                    )
            datamodule.trainer = self  # Lightning attaches it later; the number of ranks decides what a batch needs
            datamodule.setup(stage)
            if isinstance(getattr(datamodule, "class_names", None), list):
                source = str(getattr(datamodule, "source", type(datamodule).__name__))
                model.resolve(datamodule.spec(), source)  # type: ignore[attr-defined]
        model.configure_model()

    def _start_evaluation(
        self,
        model: TaskHooks,
        datamodule: pl.LightningDataModule | None,
        ckpt_path: str | None,
        command: str,
        output: str | None = None,
    ) -> Path:
        checkpoint = find_checkpoint(self.runs_dir, self.run_name, ckpt_path)
        model.taught.load_pretrained = False
        self._prepare(model, datamodule, command)
        check_fits(checkpoint, model.taught)
        check_data(checkpoint, datamodule)
        self.run_dir = run_of_checkpoint(checkpoint) or (Path(output) if output else self._new_run())
        rank_zero_info(f"Using {checkpoint}.")
        self.callbacks[:0] = [RunFiles(self.run_dir, self.config)]
        if command != "predict" and self.run_dir is not None:
            self.callbacks.append(Pictures(self.run_dir / "pictures", 0))
        return checkpoint

    def _new_run(self) -> Path | None:
        return new_run(self.runs_dir, self.run_name) if rank_zero_only.rank == 0 else None

    def _start_run(
        self,
        model: TaskHooks,
        datamodule: pl.LightningDataModule | None,
        run: Path | None,
        checkpoint: Path | None,
    ) -> RunFiles:
        """Choose the run directory and set up what writes into it."""
        # In a SLURM job Lightning starts from any hpc_ckpt_*.ckpt here, the working directory by default:
        # https://github.com/Lightning-AI/pytorch-lightning/blob/master/src/lightning/pytorch/trainer/connectors/checkpoint_connector.py
        self._default_root_dir = str(self.runs_dir)
        self.run_dir = directory = run or self._new_run()
        config = None
        if self.config is not None:
            resolved = datamodule.resolved() if datamodule is not None and hasattr(datamodule, "resolved") else {}
            config = run_config(self.config, dict(model.hparams), resolved)
        carried = None if config is None else checkpoint_config(task_config(config, model, datamodule))
        files = RunFiles(directory, carried)
        self.callbacks[:0] = [files]
        # Ranks above 0 learn the directory from rank 0 once the ranks are connected; until then nothing is written.
        checkpoints = (directory or Path(self.runs_dir)) / "checkpoints"
        if self._add_checkpoints:
            self.callbacks += [
                KeepBest(
                    dirpath=checkpoints,
                    filename="best",
                    monitor=model.taught.monitor if self._has_validation(datamodule) else None,
                    mode=model.taught.mode,
                    enable_version_counter=False,
                ),
                SaveLast(checkpoints, self.save_every_minutes, self.save_every_n_steps),
            ]
        for callback in self.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
                callback.dirpath = str(checkpoints)
        if directory is None:
            return files
        if config is not None:
            write_config(directory, config)
        write_environment(directory)
        write_data_files(directory, datamodule)
        step = None if checkpoint is None or run is None else global_step_of(checkpoint)
        csv = MetricsCSV(directory)
        if step is not None:
            csv.resume(step - 1)
        tracker = wandb_logger(
            directory,
            mode=self.wandb.mode if self._wandb_on else "off",
            project=self.wandb.project,
            name=f"{self.run_name}/{directory.name}",
            run_id=wandb_id(directory),
            entity=self.wandb.entity,
            group=self.wandb.group,
            tags=self.wandb.tags,
            config=config or dict(model.hparams),
        )
        self.loggers = [csv, *([tracker] if tracker else []), *self._user_loggers]
        self.callbacks.append(Pictures(directory / "pictures", self.wandb.table_rows))
        return files

    @staticmethod
    def _has_validation(datamodule: pl.LightningDataModule | None) -> bool:
        records = getattr(datamodule, "records", None)
        return records is None or bool(records.get("val"))


@rank_zero_only
def rank_zero_print(text: str) -> None:
    """Print on rank 0."""
    print(text, flush=True)


def _str(path: Path | None) -> str | None:
    return None if path is None else str(path)
