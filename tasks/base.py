"""The base of every task: what is logged, when, and how a run stays exact. Networks and losses are elsewhere."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Literal

import numpy as np
import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from datamodules.common.errors import UserError
from tasks.backbones import freeze, keep_frozen_in_eval, normalization, prefers_channels_last
from tasks.checks import check_training
from tasks.optim import Optim, build_optimizer, build_scheduler, describe
from tasks.reproducibility import same_buffers_on_all_ranks, seed_step

Batch = dict[str, Any]


class NonFiniteLossError(UserError):
    """The training loss became NaN or infinite; the run ends, and no checkpoint of that model becomes ``best``."""


class Task(LightningModule, ABC):
    """A network, its loss and its metrics as pure methods, and the Lightning hooks around them.

    A subclass supplies ``build_network`` and ``build_metrics`` and the pure methods ``loss``, ``predict`` and
    ``update_metrics``, which neither log nor touch the trainer, so that another module can hold a task and call them.
    Only the hooks of this class log. Validation and test are the same code.

    Attributes:
        monitor: The metric that decides which checkpoint is ``best``.
        mode: Whether more of it is better (``max``) or less (``min``).
    """

    monitor: str = "val/loss"
    mode: Literal["min", "max"] = "min"
    mean: Tensor
    std: Tensor
    eval_metrics: Any

    def __init__(
        self,
        *,
        num_classes: int | None,
        backbone: str,
        optim: Optim | dict[str, Any],
        in_chans: int | None,
        image_size: int | list[int] | None,
        freeze_backbone: bool,
        unfreeze_at_epoch: int | None,
        freeze_norm: bool,
        channels_last: bool | Literal["auto"],
        compile: bool,
    ) -> None:
        super().__init__()
        if unfreeze_at_epoch is not None and (unfreeze_at_epoch < 1 or not freeze_backbone):
            raise UserError(
                f"model.unfreeze_at_epoch is {unfreeze_at_epoch}; it needs freeze_backbone: true and an epoch >= 1."
            )
        self.num_classes = num_classes
        self.backbone = backbone
        self.optim = Optim(**optim) if isinstance(optim, dict) else optim
        self.in_chans = in_chans
        self.image_size = [image_size, image_size] if isinstance(image_size, int) else image_size
        self.freeze_backbone = freeze_backbone
        self.unfreeze_at_epoch = unfreeze_at_epoch
        self.freeze_norm = freeze_norm
        self.channels_last = channels_last
        self.compile_network = compile
        self.load_pretrained = True  # false where a checkpoint's weights follow, so that no weights file is needed
        self.network: Any = None
        self._batches_seen = 0
        self._loss_sums: dict[str, Tensor] = {}
        self._last_train: dict[str, float] = {}
        self._plateau: ReduceLROnPlateau | None = None

    # What a task supplies.

    @abstractmethod
    def build_network(self) -> nn.Module:
        """The network; input is a normalised float (B, C, H, W)."""

    @abstractmethod
    def build_metrics(self) -> nn.Module:
        """Objects with ``reset``, ``update`` and ``compute() -> dict`` whose states sum over ranks."""

    @abstractmethod
    def head_names(self) -> set[str]:
        """Names of the network's parameters that are not the backbone's."""

    @abstractmethod
    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """``{"loss": scalar, ...}``: the loss that is minimised and its parts, each a mean over the batch."""

    @abstractmethod
    def predict(self, batch: Batch) -> dict[str, Any]:
        """Predictions for a batch, whether or not it has annotations; each value one entry an image."""

    @abstractmethod
    def update_metrics(self, batch: Batch, predictions: dict[str, Any]) -> None:
        """Add a batch to the evaluation metrics."""

    @abstractmethod
    def rows(self, batch: Batch, predictions: dict[str, Any], class_names: list[str]) -> list[dict[str, Any]]:
        """Predictions as plain rows for a table, with the truth beside them where the batch has it."""

    def captions(self, batch: Batch, predictions: dict[str, Any] | None, class_names: list[str]) -> list[str]:
        """One short text an image, for pictures."""
        return [""] * len(batch["image"])

    def augment(self, batch: Batch) -> Batch:
        """Random augmentation of a training batch on the device."""
        return batch

    # The network.

    def resolve(self, spec: dict[str, Any], source: str) -> None:
        """Take what was left out from the data; refuse what was set and differs.

        Args:
            spec: The datamodule's ``spec()``.
            source: Its name, for the message.

        Raises:
            UserError: If a value that was set differs from the data's, naming both.
        """
        for key, value in spec.items():
            mine = getattr(self, key, None)
            if mine is None:
                setattr(self, key, value)
            elif mine != value:
                raise UserError(
                    f"model.{key} is {mine}, but the data ({source}) has {value}. Leave model.{key} out to take the"
                    " data's, or mend the data's setting."
                )
            if key in self.hparams:
                self.hparams[key] = value

    def configure_model(self) -> None:
        """Build the network, once; sizes that were left out come from the attached datamodule."""
        if self.network is not None:
            return
        datamodule = getattr(self._trainer, "datamodule", None) if self._trainer is not None else None
        if datamodule is not None:
            self.resolve(datamodule.spec(), type(datamodule).__name__)
        for key in ("num_classes", "in_chans"):
            if getattr(self, key) is None:
                raise UserError(f"model.{key} is not set, and there is no data to take it from.")
        network = self.build_network()
        if self.freeze_backbone and self.unfreeze_at_epoch is None:
            freeze(network, keep=self.head_names_of(network))
        mean, std = normalization(network, int(self.in_chans or 3))
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))
        if self.channels_last == "auto":
            self.channels_last = prefers_channels_last(network)
        if self.channels_last:
            network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if self.compile_network:
            network.compile()
        self.network = network
        self.eval_metrics = self.build_metrics()
        self.train(self.training)

    def check_training(
        self, *, batch_size: int | None, has_validation: bool, has_end: bool, monitors: Sequence[str] = ()
    ) -> None:
        """Refuse what can only fail later, before a run directory exists.

        Args:
            batch_size: Images a device and step, where known.
            has_validation: Whether there is a validation split.
            has_end: Whether the number of epochs or steps is limited.
            monitors: Metrics that callbacks watch.

        Raises:
            UserError: Naming the setting.
        """
        check_training(self, has_validation=has_validation, has_end=has_end, monitors=monitors)

    def head_names_of(self, network: nn.Module) -> set[str]:
        """``head_names`` of a network that is not yet the task's."""
        self.network = network
        try:
            return self.head_names()
        finally:
            self.network = None

    def forward(self, image: Tensor) -> Any:
        """Normalise, then run the network.

        Args:
            image: uint8 (B, C, H, W), or float in [0, 1].
        """
        assert self.network is not None, "configure_model has run"
        return self.network(self.normalize(image))

    def normalize(self, image: Tensor) -> Tensor:
        """The only normalisation there is: by the backbone's own mean and deviation.

        Args:
            image: uint8 (B, C, H, W), or float in [0, 1].
        """
        scale = 255.0 if image.dtype == torch.uint8 else 1.0
        memory_format = torch.channels_last if self.channels_last else torch.contiguous_format
        image = image.to(dtype=self.mean.dtype, memory_format=memory_format)
        return torch.addcmul(-self.mean / self.std, image, 1.0 / (scale * self.std))

    def train(self, mode: bool = True) -> Task:
        """Set the mode; what is frozen stays in evaluation mode, though Lightning calls this each epoch."""
        super().train(mode)
        if self.network is not None and self.backbone_is_frozen:
            keep_frozen_in_eval(self.network, keep=self.head_names())
        if self.network is not None and self.freeze_norm:
            head = self.head_names()
            for name, module in self.network.named_modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm) and f"{name}.weight" not in head:
                    module.eval()
        return self

    @property
    def backbone_is_frozen(self) -> bool:
        """Whether the backbone is frozen in the current epoch."""
        if not self.freeze_backbone:
            return False
        return self.unfreeze_at_epoch is None or self.current_epoch < self.unfreeze_at_epoch

    # Training.

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Move the tensors; lists (paths, records) stay where they are.

        Lightning would look at each of their elements: 0.2 ms a batch for 128 paths.
        """
        tensors = {key: value for key, value in batch.items() if not isinstance(value, list)}
        return {**batch, **super().transfer_batch_to_device(tensors, device, dataloader_idx)}

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Re-seed all randomness of the step from a key, then augment training batches on the device."""
        if self._trainer is None or not self.trainer.training:
            return batch
        seed_step(self.trainer.global_rank, self._batches_seen)
        self._batches_seen += 1
        return self.augment(batch)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss; its sums stay on the device until ``flush``."""
        losses = self.loss(batch)
        size = len(batch["image"])
        for name, value in losses.items():
            value = value.detach().float()
            # new_full, not new_tensor: the latter copies from the host, which waits for the device.
            term = torch.stack([value * size, value.new_full((), size)])
            self._loss_sums[name] = self._loss_sums[name] + term if name in self._loss_sums else term
        return losses["loss"]

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Keep parts that are unfrozen later still; flush the sums every ``log_every_n_steps`` optimiser steps."""
        if self.freeze_backbone and self.unfreeze_at_epoch is not None and self.backbone_is_frozen:
            # They take part in DDP's all-reduce from the start: DDP never reduces what was frozen when it wrapped.
            # https://pytorch.org/docs/stable/generated/torch.nn.parallel.DistributedDataParallel.html
            head = self.head_names()
            assert self.network is not None
            for name, parameter in self.network.named_parameters():
                if name not in head:
                    parameter.grad = None
        if (self.trainer.global_step + 1) % self.trainer.log_every_n_steps == 0:
            self.flush(step=self.trainer.global_step)
            self._log_last_train()

    def flush(self, step: int) -> None:
        """Log the mean training losses since the last flush, over all ranks: the only sync with the device.

        Raises:
            NonFiniteLossError: If the sum is NaN or infinite.
        """
        if not self._loss_sums:
            return
        names = list(self._loss_sums)
        sums = self.trainer.strategy.reduce(torch.stack([self._loss_sums[n] for n in names]), reduce_op="sum")
        self._loss_sums = {}
        values = (sums[:, 0] / sums[:, 1]).tolist()  # type: ignore[index]
        self._last_train = {f"train/{name}": value for name, value in zip(names, values, strict=True)}
        bad = [name for name, value in self._last_train.items() if not np.isfinite(value)]
        if bad:
            raise NonFiniteLossError(
                f"{', '.join(bad)} became {self._last_train[bad[0]]} at or shortly before step {step} (epoch"
                f" {self.current_epoch}). Lower model.optim.lr, add trainer.gradient_clip_val or a longer warm-up, or"
                " use trainer.precision: 32-true; then continue from the last checkpoint with --resume auto."
            )
        lr = max(group["lr"] for group in self.trainer.optimizers[0].param_groups)
        self._to_loggers({**self._last_train, "train/lr": lr}, step)

    def _log_last_train(self) -> None:
        """Give the progress bar and callbacks the last flushed means."""
        # As tensors on the CPU: Lightning would put numbers on the device and, for the bar, fetch them in every step.
        values = {name: torch.tensor(value) for name, value in self._last_train.items()}
        self.log_dict(values, prog_bar=True, logger=False, batch_size=1)

    def on_train_epoch_start(self) -> None:
        """Unfreeze at the scheduled epoch, and say so."""
        if self.unfreeze_at_epoch is not None and self.current_epoch == self.unfreeze_at_epoch:
            self.train()  # Lightning does not: behind a validation it restores each module's mode as it was
            rank_zero_info(f"Epoch {self.current_epoch}: the backbone is trained from here on.")

    def on_train_epoch_end(self) -> None:
        """Flush what is left, so that callbacks that watch ``train/loss`` see every epoch's."""
        self.flush(step=self.trainer.global_step - 1)
        if self._last_train:
            self._log_last_train()

    def configure_optimizers(self) -> Any:
        """The optimiser and schedule of ``optim``; a plateau schedule is stepped after each validation."""
        trainer = self.trainer
        total = trainer.estimated_stepping_batches
        if not np.isfinite(total):
            raise UserError("The schedule needs an end: set trainer.max_epochs or trainer.max_steps.")
        trainer.fit_loop.setup_data()  # with max_steps alone, Lightning does not count the batches before this hook
        batches = trainer.num_training_batches
        steps_per_epoch = max(1, int(np.ceil(batches / trainer.accumulate_grad_batches)))
        data = getattr(trainer, "datamodule", None)
        global_batch = int(getattr(data, "batch_size", 1)) * trainer.world_size * trainer.accumulate_grad_batches
        rank_zero_info(describe(self.optim, global_batch))
        assert self.network is not None
        optimizer = build_optimizer(self.network, self.optim, global_batch, head_names=self.head_names())
        scheduler, interval = build_scheduler(optimizer, self.optim, int(total), steps_per_epoch, mode=self.mode)
        if isinstance(scheduler, ReduceLROnPlateau):
            self._plateau = scheduler
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": interval}}

    # Validation and test: the same code.

    def on_validation_epoch_start(self) -> None:
        """Check the loss first, so that a broken model is never evaluated; start metrics and ranks from one state."""
        if self.trainer.state.fn == "fit":
            self.flush(step=self.trainer.global_step - 1)
        self.eval_metrics.reset()
        same_buffers_on_all_ranks(self, start=True)

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """Predict, and add to the metrics; nothing for the empty batch of a rank that has no images."""
        if not len(batch["image"]):
            return {}
        predictions = self.predict(batch)
        self.update_metrics(batch, predictions)
        return predictions

    def on_validation_epoch_end(self) -> None:
        """Log every metric as ``val/...``."""
        same_buffers_on_all_ranks(self, start=False)
        metrics = self._log_metrics("val")
        if self._plateau is not None and self.trainer.state.fn == "fit" and not self.trainer.sanity_checking:
            if self.monitor not in metrics:
                raise UserError(f"optim.schedule is 'plateau', but there is no {self.monitor} to follow.")
            self._plateau.step(metrics[self.monitor])

    def on_test_epoch_start(self) -> None:
        """As for validation."""
        self.eval_metrics.reset()

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """As for validation."""
        return self.validation_step(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        """Log every metric as ``test/...``."""
        self._log_metrics("test")

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """Predict; nothing for the empty batch of a rank that has no images."""
        return self.predict(batch) if len(batch["image"]) else {}

    def _log_metrics(self, stage: str) -> dict[str, float]:
        values = {k: v for k, v in self.eval_metrics.compute().items() if isinstance(v, Tensor) and v.numel() == 1}
        metrics = {f"{stage}/{name}": float(value) for name, value in values.items()}
        for name, value in metrics.items():
            self.log(name, value, prog_bar=name == self.monitor, logger=False, batch_size=1)
        if self.trainer.state.fn == "fit" and not self.trainer.sanity_checking:
            self._to_loggers(metrics, step=self.trainer.global_step - 1)
        return metrics

    def _to_loggers(self, metrics: dict[str, float], step: int) -> None:
        # Not through self.log: Lightning writes those rows after the callbacks of the batch, so that a row would be
        # missing from the history of a run that is killed behind a checkpoint and continued from it.
        for logger in self.loggers:
            logger.log_metrics({"epoch": self.current_epoch, **metrics}, step=step)

    # What a checkpoint keeps beside Lightning's own.

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the batch counter and the sums that were not yet flushed, so that a resumed run goes on exactly.

        Lightning calls this on all ranks, but rank 0 alone writes: the sums are those of all.
        """
        reduce = self.trainer.strategy.reduce
        checkpoint["task_state"] = {
            "batches_seen": self._batches_seen,
            "loss_sums": {k: reduce(v.clone(), reduce_op="sum") for k, v in self._loss_sums.items()},
            "last_train": dict(self._last_train),
            "plateau": None if self._plateau is None else self._plateau.state_dict(),
        }
        # The weights are in this very file: to load it, no pretrained weights are needed.
        checkpoint["hyper_parameters"] = {**checkpoint.get("hyper_parameters", {}), "pretrained": False}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take them back."""
        state = checkpoint.get("task_state", {})
        self._batches_seen = state.get("batches_seen", 0)
        mine = self._trainer is None or self.trainer.is_global_zero  # the other ranks start from zero
        self._loss_sums = {k: v * mine for k, v in state.get("loss_sums", {}).items()}
        self._last_train = state.get("last_train", {})
        self._restored_plateau = state.get("plateau")

    def on_train_start(self) -> None:
        """Restore the plateau schedule, which exists only now, and the modes of the epoch that is resumed."""
        self.train()
        # Checkpoints are read before Lightning moves the model to its device.
        self._loss_sums = {name: sums.to(self.device) for name, sums in self._loss_sums.items()}
        restored = getattr(self, "_restored_plateau", None)
        if self._plateau is not None and restored is not None:
            self._plateau.load_state_dict(restored)

    def remember_arguments(self) -> None:
        """Store the constructor's arguments as plain hyper-parameters; called at the end of a subclass's constructor.

        Plain types only: objects in hyper-parameters cannot be loaded with ``weights_only=True``.
        """
        self.hparams["optim"] = asdict(self.optim)
