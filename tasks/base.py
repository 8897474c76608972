"""The base of every task: a network, its loss, predictions and metrics. Hooks are in ``tasks.hooks``."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Literal

import torch
from torch import Tensor, nn

from datamodules.common.errors import UserError
from tasks.backbones import freeze, keep_frozen_in_eval, normalization, prefers_channels_last
from tasks.checks import TrainingPlan, check_training
from tasks.from_checkpoint import Start, read_start, start_task
from tasks.hooks import Batch, TaskHooks
from tasks.optim import Optim

#: With timm's norms that have an activation, which are of these classes, too.
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


class Task(TaskHooks):
    """A network, its loss and its metrics as pure methods.

    A subclass supplies ``build_network`` and ``build_metrics`` and the pure methods ``loss``, ``predict`` and
    ``update_metrics``, which neither log nor touch the trainer, so that another module can hold a task and call them.
    It overrides no hook of Lightning: these call ``after_validation``, ``before_test``, ``state`` and ``load_state``,
    also where the task is a student.

    Attributes:
        monitor: The metric that decides which checkpoint is ``best``.
        mode: Whether more of it is better (``max``) or less (``min``).
        finds_boxes: Whether predictions are boxes, of which ``shown`` selects those to be drawn and written.
        runtime: Runs an exported file in place of the network, see ``pipelines.exported``.
    """

    monitor: str = "val/loss"
    mode: Literal["min", "max"] = "min"
    finds_boxes = False
    runtime: Callable[[Tensor], dict[str, Tensor]] | None = None
    pretrained: bool | str = False
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
        self.chosen: dict[str, str] = {}  # what was chosen for the user, by key, and why; a run prints it
        self.load_pretrained = True  # false where a checkpoint's weights follow, so that no weights file is needed
        self.start: Start | None = None
        self.network: Any = None

    @property
    def taught(self) -> Task:
        """This task."""
        return self

    # What a task supplies.

    @abstractmethod
    def build_network(self) -> nn.Module:
        """The network; input is a normalized float (B, C, H, W)."""

    @abstractmethod
    def build_metrics(self) -> nn.Module:
        """Objects with ``reset``, ``update`` and ``compute() -> dict`` whose states sum over ranks."""

    @abstractmethod
    def head_names(self) -> set[str]:
        """Names of the network's parameters that are not the backbone's."""

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

    def shown(self, predictions: dict[str, Any]) -> dict[str, Any]:
        """Of what ``predict`` gives, what is drawn and written: all of it."""
        return predictions

    def infer(self, image: Tensor) -> Any:
        """What the network computes to predict images, without test-time augmentation.

        Args:
            image: uint8 (B, C, H, W), or float in [0, 1].
        """
        return self(image)

    def outputs(self, image: Tensor) -> dict[str, Tensor]:
        """What ``predict`` takes from the network, as tensors by name: what an exported file computes.

        Args:
            image: uint8 (B, C, H, W), or float in [0, 1].
        """
        raise UserError(f"{type(self).__name__} cannot be exported: it has no method `outputs`.")

    def computed(self, image: Tensor) -> dict[str, Tensor]:
        """``outputs``, or what an exported file computes in their place."""
        return self.outputs(image) if self.runtime is None else self.runtime(image)

    def augment(self, batch: Batch) -> Batch:
        """Random augmentation of a training batch on the device: none."""
        return batch

    # What happens at Lightning's hooks, also where the task is a student.

    def after_validation(self) -> None:
        """In training, see the metrics of a validation; those of the sanity check are not worth it."""

    def before_test(self) -> None:
        """Prepare the metrics, which have just been reset."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps beside weights and arguments, in plain types; keys of ``task_state``."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take it back.

        Args:
            state: A checkpoint's ``task_state``; keys may be missing in checkpoints of another version.
        """

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
                    " data's, or fix the data's setting."
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
        self.start = read_start(self.pretrained) if self.load_pretrained else None
        network = self.build_network()
        if self.freeze_backbone and self.unfreeze_at_epoch is None:
            freeze(network, keep=self.head_names_of(network))
        mean, std = normalization(network, int(self.in_chans or 3))
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))
        start_task(self, network)
        if self.channels_last == "auto":
            self.channels_last = prefers_channels_last(network)
        if self.channels_last:
            network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if self.compile_network:
            network.compile()
        self.network = network
        self.eval_metrics = self.build_metrics()
        self.train(self.training)

    @property
    def weights_to_build_with(self) -> bool | str:
        """``pretrained``, where the network's constructor is to load it: not where a checkpoint's weights follow."""
        return self.pretrained if self.load_pretrained and self.start is None else False

    @property
    def image_height_width(self) -> tuple[int, int] | None:
        """``image_size`` as a pair, None where it is open."""
        return (self.image_size[0], self.image_size[1]) if self.image_size else None

    def check_training(self, plan: TrainingPlan) -> None:
        """Refuse what can only fail later, before a run directory exists.

        Raises:
            UserError: Naming the setting.
        """
        check_training(self, plan)

    def head_names_of(self, network: nn.Module) -> set[str]:
        """``head_names`` of a network that is not yet the task's."""
        self.network = network
        try:
            return self.head_names()
        finally:
            self.network = None

    def forward(self, image: Tensor) -> Any:
        """Normalize, then run the network.

        Args:
            image: uint8 (B, C, H, W), or float in [0, 1].
        """
        assert self.network is not None, "configure_model has run"
        return self.network(self.normalize(image))

    def normalize(self, image: Tensor) -> Tensor:
        """The only normalization there is: by the backbone's own mean and deviation.

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
                if isinstance(module, NORMS) and f"{name}.weight" not in head:
                    module.eval()
        return self

    @property
    def backbone_is_frozen(self) -> bool:
        """Whether the backbone is frozen in the current epoch."""
        if not self.freeze_backbone:
            return False
        return self.unfreeze_at_epoch is None or self.current_epoch < self.unfreeze_at_epoch

    def drop_frozen_gradients(self) -> None:
        """Remove the gradients of a backbone that is unfrozen later, so that the optimizer leaves it as it is.

        It takes part in DDP's all-reduce from the start: DDP never reduces what was frozen when it wrapped.
        https://pytorch.org/docs/stable/generated/torch.nn.parallel.DistributedDataParallel.html
        """
        if self.unfreeze_at_epoch is None or not self.backbone_is_frozen:
            return
        head = self.head_names()
        for name, parameter in self.network.named_parameters():
            if name not in head:
                parameter.grad = None

    def remember_arguments(self) -> None:
        """Store the constructor's arguments as plain hyper-parameters; called at the end of a subclass's constructor.

        Plain types only: objects in hyper-parameters cannot be loaded with ``weights_only=True``.
        """
        self.hparams["optim"] = asdict(self.optim)
