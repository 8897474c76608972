"""The Lightning hooks around a task: what is logged, when, and how a run stays exact.

Two classes have them: every task, and a module that teaches a task (``tasks.noisy_student``). The hooks call plain
methods of ``taught``, the task itself or the one that is taught, so that whatever a task does at a hook also happens
when it is a student.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau

from datamodules.common.errors import UserError
from tasks.checks import TrainingPlan
from tasks.finite import NonFiniteLossError, StepGuard, refuse_spoiled
from tasks.optimizers import build_optimizer
from tasks.reproducibility import own_sums, same_buffers_on_all_ranks, seed_step
from tasks.schedules import build_scheduler

Batch = dict[str, Any]


class TaskHooks(LightningModule, ABC):
    """A module that Lightning trains and evaluates. Only these hooks log; validation and test are the same code."""

    def __init__(self) -> None:
        super().__init__()
        self._batches_seen = 0
        self._loss_sums: dict[str, Tensor] = {}
        self._guard = StepGuard()
        self._mid_step = False  # gradients of some batches are accumulated
        self._last_train: dict[str, float] = {}
        self._plateau: ReduceLROnPlateau | None = None
        self._restored_plateau: dict[str, Any] | None = None

    # What a subclass supplies.

    @property
    @abstractmethod
    def taught(self) -> Any:
        """The task whose network is trained and evaluated: a ``tasks.base.Task``."""

    @abstractmethod
    def resolve(self, spec: dict[str, Any], source: str) -> None:
        """Take what was left out from the data's ``spec()``; refuse what was set and differs."""

    @abstractmethod
    def check_training(self, plan: TrainingPlan) -> None:
        """Refuse what can only fail later, before a run directory exists."""

    @abstractmethod
    def augment(self, batch: Batch) -> Batch:
        """Random augmentation of a training batch on the device."""

    @abstractmethod
    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """``{"loss": scalar, ...}``: the loss that is minimized and its parts, each a mean over the batch."""

    # Training.

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Move the tensors, not the lists; Lightning would look at each path of a batch, 0.2 ms for 128 of them."""
        tensors = {key: value for key, value in batch.items() if not isinstance(value, list)}
        return {**batch, **super().transfer_batch_to_device(tensors, device, dataloader_idx)}

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Re-seed all randomness of the step from a key, then augment training batches on the device."""
        if self._trainer is None or not self.trainer.training:
            return batch
        seed_step(self.trainer.global_rank, self._batches_seen)
        self._batches_seen += 1
        return self.augment(batch)

    def on_train_start(self) -> None:
        """Restore the plateau schedule, which exists only now, and the modes of the epoch that is resumed."""
        self.train()
        # Checkpoints are read before Lightning moves the model to its device.
        self._loss_sums = {name: sums.to(self.device) for name, sums in self._loss_sums.items()}
        self._guard = StepGuard(self, self._loss_sums, self._guard.skipped)
        if self._plateau is not None and self._restored_plateau is not None:
            self._plateau.load_state_dict(self._restored_plateau)

    def on_train_epoch_start(self) -> None:
        """Unfreeze at the scheduled epoch, and say so."""
        if self.taught.unfreeze_at_epoch is not None and self.current_epoch == self.taught.unfreeze_at_epoch:
            self.train()  # Lightning does not: after a validation it restores each module's mode as it was
            rank_zero_info(f"Epoch {self.current_epoch}: the backbone is trained from here on.")

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss; its sums stay on the device until ``flush``."""
        self._mid_step = True
        losses = self.loss(batch)
        size = len(batch["image"])
        for name, value in losses.items():
            value = value.detach().float()
            # new_full, not new_tensor: the latter copies from the host, which waits for the device.
            term = torch.stack([value * size, value.new_full((), size)])
            self._loss_sums[name] = self._loss_sums[name] + term if name in self._loss_sums else term
        return self._guard.watched(losses["loss"], batch)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Leave alone what is unfrozen later, skip a step that is not finite, flush every ``log_every_n_steps``."""
        self._mid_step = False
        self.taught.drop_frozen_gradients()
        self._loss_sums = self._guard.check(optimizer, self.trainer.global_step, self._loss_sums)
        if (self.trainer.global_step + 1) % self.trainer.log_every_n_steps == 0:
            self.flush(step=self.trainer.global_step)
            self._log_last_train()

    def on_train_epoch_end(self) -> None:
        """Flush what is left, so that callbacks that watch ``train/loss`` see every epoch's."""
        self.flush(step=self.trainer.global_step - 1)
        if self._last_train:
            self._log_last_train()
        self._guard.end(self.steps_per_epoch())

    def on_train_end(self) -> None:
        """Refuse a training whose last steps changed nothing."""
        self._guard.end(2)

    def steps_per_epoch(self) -> int:
        """Optimizer steps in an epoch."""
        return max(1, int(np.ceil(self.trainer.num_training_batches / self.trainer.accumulate_grad_batches)))

    def flush(self, step: int) -> None:
        """Log the mean training losses since the last flush, over all ranks: the only sync with the device.

        Raises:
            NonFiniteLossError: If the sum is NaN or infinite.
        """
        self._guard.settle()
        if not self._loss_sums:
            return
        names = list(self._loss_sums)
        stacked = torch.stack([self._loss_sums[name] for name in names])
        sums = torch.as_tensor(self.trainer.strategy.reduce(stacked, reduce_op="sum"))
        self._loss_sums, self._guard.sums = {}, {}
        if 0 in sums[:, 1].tolist():
            return  # all of these steps were skipped
        values = (sums[:, 0] / sums[:, 1]).tolist()
        self._last_train = {f"train/{name}": value for name, value in zip(names, values, strict=True)}
        bad = [name for name, value in self._last_train.items() if not np.isfinite(value)]
        if bad:
            raise NonFiniteLossError(
                f"{', '.join(bad)} became {self._last_train[bad[0]]} at or shortly before step {step} (epoch"
                f" {self.current_epoch}). Lower model.optim.lr, add trainer.gradient_clip_val or a longer warm-up, or"
                " use trainer.precision: 32-true; then continue from the last checkpoint with --resume auto."
            )
        lr = max(group["lr"] for group in self.trainer.optimizers[0].param_groups)
        skipped = {"train/skipped_steps": float(self._guard.skipped)} if self._guard.skipped else {}
        self._to_loggers({**self._last_train, "train/lr": lr, **skipped}, step)

    @property
    def skipped_in_a_row(self) -> int:
        """How many of the last optimizer steps were skipped since they were not finite; waits for the device."""
        return self._guard.in_a_row

    def recent_loss(self) -> float | None:
        """The mean loss of this rank since the last flush, or else that of the last one; a sync with the device."""
        total, count = self._loss_sums["loss"].tolist() if "loss" in self._loss_sums else (0, 0)
        return total / count if count else self._last_train.get("train/loss")

    def _log_last_train(self) -> None:
        """Give the progress bar and callbacks the last flushed means."""
        # As tensors on the CPU: Lightning would put numbers on the device and, for the bar, fetch them in every step.
        values = {name: torch.tensor(value) for name, value in self._last_train.items()}
        self.log_dict(values, prog_bar=True, logger=False, batch_size=1)

    # The optimizer.

    def global_batch(self) -> int:
        """Images in one optimizer step: of all ranks, times accumulation; what ``lr_scaling`` goes by.

        Of a semi-supervised batch the labeled images count, as in the papers, which give their rates for these (Noisy
        Student 0.128 for 2,048, FixMatch 0.03 for 64): then a rate does not depend on the ratio of the two halves.
        """
        data = getattr(self.trainer, "datamodule", None)
        batch_size = int(getattr(data, "train_batch", getattr(data, "batch_size", 1)))
        ranks, accumulated = int(self.trainer.world_size), int(self.trainer.accumulate_grad_batches)
        return batch_size * ranks * accumulated

    def configure_optimizers(self) -> Any:
        """The optimizer and schedule of ``optim``; a plateau schedule is stepped after each validation."""
        trainer, task = self.trainer, self.taught
        total_steps = trainer.estimated_stepping_batches
        if not np.isfinite(total_steps):
            raise UserError("The schedule needs an end: set trainer.max_epochs or trainer.max_steps.")
        trainer.fit_loop.setup_data()  # with max_steps alone, Lightning does not count the batches before this hook
        global_batch = self.global_batch()
        optimizer = build_optimizer(task.network, task.optim, global_batch, head_names=task.head_names())
        scheduler, interval = build_scheduler(
            optimizer, task.optim, int(total_steps), self.steps_per_epoch(), mode=task.mode
        )
        if isinstance(scheduler, ReduceLROnPlateau):
            self._plateau = scheduler
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": interval}}

    # Validation and test: the same code.

    def on_validation_epoch_start(self) -> None:
        """Check the loss first, so that a broken model is never evaluated; start metrics and ranks from one state."""
        if self.trainer.state.fn == "fit":
            self.flush(step=self.trainer.global_step - 1)
        self.taught.eval_metrics.reset()
        same_buffers_on_all_ranks(self, start=True)

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """Predict, and add to the metrics; nothing for the empty batch of a rank that has no images."""
        if not len(batch["image"]):
            return {}
        predictions: dict[str, Any] = self.taught.predict(batch)
        self.taught.update_metrics(batch, predictions)
        return predictions

    def on_validation_epoch_end(self) -> None:
        """Log every metric as ``val/...``; in training, step the plateau schedule and let the task see the metrics."""
        same_buffers_on_all_ranks(self, start=False)
        metrics = self._log_metrics("val")
        if self.trainer.state.fn != "fit" or self.trainer.sanity_checking:
            return
        self.taught.after_validation()
        if self._plateau is not None:
            if self.taught.monitor not in metrics:
                raise UserError(f"optim.schedule is 'plateau', but there is no {self.taught.monitor} to follow.")
            self._plateau.step(metrics[self.taught.monitor])

    def on_test_epoch_start(self) -> None:
        """As for validation."""
        self.taught.eval_metrics.reset()
        self.taught.before_test()

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """As for validation."""
        return self.validation_step(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        """Log every metric as ``test/...``."""
        self._log_metrics("test")

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """Predict; nothing for the empty batch of a rank that has no images."""
        return self.taught.predict(batch) if len(batch["image"]) else {}

    def _log_metrics(self, stage: str) -> dict[str, float]:
        values = self.taught.eval_metrics.compute()
        scalars = {k: v for k, v in values.items() if isinstance(v, Tensor) and v.numel() == 1}
        metrics = {f"{stage}/{name}": float(value) for name, value in scalars.items()}
        for name, value in metrics.items():
            self.log(name, value, prog_bar=name == self.taught.monitor, logger=False, batch_size=1)
        if self.trainer.state.fn == "fit" and not self.trainer.sanity_checking:
            self._to_loggers(metrics, step=self.trainer.global_step - 1)
        return metrics

    def _to_loggers(self, metrics: dict[str, float], step: int) -> None:
        # Not through self.log: Lightning writes those rows after the callbacks of the batch, so that a row would be
        # missing from the history of a run that is killed after a checkpoint and continued from it.
        for logger in self.loggers:
            logger.log_metrics({"epoch": self.current_epoch, **metrics}, step=step)

    # What a checkpoint keeps beside Lightning's own.

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the batch counter, the sums that were not yet flushed, and the task's own state.

        So a resumed run goes on exactly. Lightning calls this on all ranks, but rank 0 alone writes: it writes the sums
        of each, since floats that are added in another order are other floats.
        """
        refuse_spoiled(self.state_dict())
        checkpoint["task_state"] = {
            "batches_seen": self._batches_seen,
            "loss_sums": {k: self.all_gather(v.clone()) for k, v in self._loss_sums.items()},
            "mid_step": self._mid_step,
            "skipped_steps": self._guard.skipped,
            "last_train": dict(self._last_train),
            "plateau": None if self._plateau is None else self._plateau.state_dict(),
            **self.taught.state(),
        }
        # The weights are in this very file: to load it, no pretrained weights are needed.
        checkpoint["hyper_parameters"] = {**self.taught.hparams, "pretrained": False}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take them back."""
        state = checkpoint.get("task_state", {})
        self._batches_seen = state.get("batches_seen", 0)
        place = (0, 1) if self._trainer is None else (self.trainer.global_rank, self.trainer.world_size)
        self._loss_sums = {k: own_sums(v, *place) for k, v in state.get("loss_sums", {}).items()}
        self._guard.skipped = state.get("skipped_steps", 0)
        self._last_train = state.get("last_train", {})
        self._restored_plateau = state.get("plateau")
        self.taught.load_state(state)
