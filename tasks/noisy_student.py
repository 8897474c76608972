"""The student of noisy student training: any task, taught by labeled and pseudo-labeled images together.

Xie et al. 2020, https://arxiv.org/abs/1911.04252. The method is offline: the teacher has labeled the images before,
and is not in memory here. The noise is in the arguments of the student (``drop_rate``, ``drop_path_rate``) and of the
data (``augment``). Note that the paper speaks of stochastic depth by its survival: 0.8 is ``drop_path_rate: 0.2``.

Beside it, as baselines on the same data, two online methods, whose teacher labels in each step; see
``tasks.online_teacher``.
"""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datamodules.common.errors import UserError
from tasks.base import Task
from tasks.checks import TrainingPlan
from tasks.classification import Classification
from tasks.detection.task import Detection
from tasks.hooks import Batch, TaskHooks
from tasks.joined import join_batches
from tasks.online_teacher import (
    MeanTeacher,
    TeacherKind,
    check_teacher,
    confident_labels,
    fixmatch_loss,
    refuse_data,
)
from tasks.student import own_arguments, refuse_own_hooks, save_as_the_students, without_noise


class NoisyStudent(TaskHooks):
    """Trains a student on ``{"labeled": batch, "unlabeled": batch}``; its checkpoints are the student's own.

    Both halves go through the network as one batch, which matters for batch norm. Labels of the unlabeled half are
    ordinary targets, so that every task can be a student. The student starts from scratch, or from the same pretrained
    weights as the teacher did; never from the teacher.

    With an online teacher the unlabeled half holds two views of each image in place of a label (``pool`` of
    ``SemiSupervised``). The loss is then the labeled images' mean plus ``unlabeled_weight`` times
    the mean over all unlabeled ones, and ``train/kept`` the fraction of them that is taught.

    Args:
        student: The task, with the noise of the model among its arguments.
        teacher: Who labels the unlabeled images. ``offline``: a teacher has done so before. ``fixmatch``: the student
            itself, for classification. ``mean_teacher``: the moving average of the student's weights.
        loss: ``paper`` is the mean over all images of both halves; ``code``, as in the authors' public code, is the
            mean over the labeled plus the ratio times the mean over the unlabeled: (1 + ratio) times as much, so in
            effect another learning rate.
        unlabeled_weight: Multiplies the loss of the unlabeled images, beside the above; lambda_u of FixMatch.
        labels: ``soft`` takes the teacher's probabilities as they are, ``hard`` its most likely class.
        temperature: Soft labels are sharpened (below 1) or flattened (above 1): p^(1/T), normalized.
        smoothing: Fraction of a hard pseudo-label that is spread over all classes; the code has 0.1.
        threshold: Online: probability, or score of a box, from which on a label is taught; 0.95, for boxes 0.7.
        ema_decay: Mean teacher: fraction of the average that stays in each step; 0.999. The student is what is
            evaluated and saved; for an average of it, as in the papers, set ``trainer.ema_decay``, too.
        burn_in_steps: Mean teacher: optimizer steps that learn from the labels alone, until the teacher is worth
            listening to.
        noise: ``false`` switches the student's dropout and stochastic depth off, also those that a net has by
            default: for a control.
    """

    def __init__(
        self,
        student: Task,
        teacher: TeacherKind = "offline",
        loss: Literal["paper", "code"] = "paper",
        unlabeled_weight: float = 1.0,
        labels: Literal["soft", "hard"] = "soft",
        temperature: float = 1.0,
        smoothing: float = 0.0,
        threshold: float | None = None,
        ema_decay: float | None = None,
        burn_in_steps: int = 0,
        noise: bool = True,
    ) -> None:
        if not isinstance(student, Task):
            raise UserError(
                f"model.student is a {type(student).__name__}; give an ordinary task, for example Classification."
            )
        refuse_own_hooks(student)
        given: dict[str, Any] = {"loss": loss, "labels": labels, "temperature": temperature, "smoothing": smoothing}
        given |= {"threshold": threshold, "ema_decay": ema_decay, "burn_in_steps": burn_in_steps}
        check_teacher(teacher, student, given)
        if unlabeled_weight < 0:
            raise UserError(f"model.unlabeled_weight is {unlabeled_weight}; it must be 0 or more.")
        _check_labels(labels, temperature, smoothing)
        super().__init__()
        own_arguments(student)
        self.student = student
        self.loss_scale = loss
        self.unlabeled_weight = unlabeled_weight
        self.labels = labels
        self.temperature, self.smoothing = temperature, smoothing
        self.noise = noise
        self.teacher: TeacherKind = teacher
        self.threshold = (0.7 if isinstance(student, Detection) else 0.95) if threshold is None else threshold
        self.ema_decay, self.burn_in_steps = 0.999 if ema_decay is None else ema_decay, burn_in_steps
        self.mean_teacher: MeanTeacher | None = None  # no sub-module: weight averaging and checkpoints have it not
        self._restored_teacher: dict[str, Any] | None = None
        # Checkpoints are the student's: the same names, so that `test` and the next generation take them unchanged.
        save_as_the_students(self)

    @property
    def taught(self) -> Task:
        """The student."""
        return self.student

    # Before training.

    def resolve(self, spec: dict[str, Any], source: str) -> None:
        """Take what was left out from the data.

        Raises:
            UserError: If the data's unlabeled images are not of the kind that the teacher needs; as for every task.
        """
        spec = dict(spec)
        if (two_views := spec.pop("two_views", None)) is not None and two_views != (self.teacher != "offline"):
            refuse_data(self.teacher)
        self.student.resolve(spec, source)

    def configure_model(self) -> None:
        """Build the student's network, once."""
        if self.student.network is not None:
            return
        self.student.configure_model()
        if not self.noise:
            assert isinstance(self.student.network, nn.Module)
            without_noise(self.student.network)

    def check_training(self, plan: TrainingPlan) -> None:
        """The student's checks, and: there is one kind of label."""
        if isinstance(self.student, Classification) and self.student.multi_label:
            raise UserError("model.student is multi-label; noisy student needs one label an image.")
        self.student.check_training(plan)

    def forward(self, image: Tensor) -> Any:
        """The student's."""
        return self.student(image)

    # The pure methods.

    def augment(self, batch: Batch) -> Batch:
        """The student's own augmentation of each half, then one batch of both.

        With an online teacher the labeled batch, with the other one as its ``unlabeled``: labels come in ``loss``.
        """
        if "labeled" not in batch:
            raise UserError(
                "model is a NoisyStudent, but the batch has no labeled and unlabeled half. Use data.class_path:"
                " SemiSupervised."
            )
        labeled = self.student.augment(batch["labeled"])
        if ("weak_image" in batch.get("unlabeled", ())) != (self.teacher != "offline"):
            refuse_data(self.teacher)
        if "unlabeled" not in batch:  # a control
            return labeled
        if self.teacher != "offline":
            return {**labeled, "unlabeled": self.student.augment(batch["unlabeled"])}
        # Made soft or hard first: mixup mixes labels as it mixes images.
        return self.join(labeled, self.student.augment(self.pseudo_targets(batch["unlabeled"])))

    def join(self, labeled: Batch, unlabeled: Batch) -> Batch:
        """One batch of both halves, the labeled first; ``weight`` carries the scale of the loss.

        Args:
            labeled: A batch of B images.
            unlabeled: A batch of U images with pseudo-labels, as ``pseudo_targets`` makes them.

        Returns:
            A batch of B + U images. Its mean loss is ``loss``'s: the weights are 1 for ``paper``, (B + U) / B for
            ``code``, where U / B is the ratio.
        """
        size, rest = len(labeled["image"]), len(unlabeled["image"])
        scale = (size + rest) / size if self.loss_scale == "code" else 1.0
        joined = join_batches(labeled, unlabeled, self.student.num_classes)
        weights = [
            batch["weight"] if "weight" in batch else batch["image"].new_ones(n, dtype=torch.float32)
            for batch, n in ((labeled, size), (unlabeled, rest))
        ]
        return {**joined, "weight": torch.cat([scale * weights[0], scale * self.unlabeled_weight * weights[1]])}

    def pseudo_targets(self, batch: Batch) -> Batch:
        """Soft or hard labels from the teacher's probabilities; batches without them are left alone."""
        label = batch.get("label")
        if label is None or not label.is_floating_point():
            return batch
        if self.labels == "hard":
            label = F.one_hot(label.argmax(1), label.shape[1]).to(label.dtype)
            label = label * (1 - self.smoothing) + self.smoothing / label.shape[1]
        elif self.temperature != 1:
            label = (label.clamp_min(1e-12).log() / self.temperature).softmax(1)
        return {**batch, "label": label}

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """The student's, of a joined batch; or an online method's, of a labeled one with its ``unlabeled``."""
        if "unlabeled" not in batch:
            return self.student.loss(batch)
        labeled, unlabeled = {k: v for k, v in batch.items() if k != "unlabeled"}, batch["unlabeled"]
        if self.teacher == "fixmatch":
            student = cast(Classification, self.student)
            return fixmatch_loss(student, labeled, unlabeled, self.threshold, self.unlabeled_weight)
        teacher = self.start_teacher()
        if teacher.updates < self.burn_in_steps:
            return self.student.loss(labeled)
        targets, kept = confident_labels(teacher.task, unlabeled, self.threshold)
        size, rest = len(labeled["image"]), len(unlabeled["image"])
        joined = join_batches(labeled, {**unlabeled, **targets}, self.student.num_classes)
        mine = labeled["weight"] if "weight" in labeled else torch.ones_like(kept[:1]).expand(size)
        # So that the mean over both is the mean of the labeled plus the weighted mean of the unlabeled.
        weights = [mine / size, self.unlabeled_weight * kept / rest]
        losses = self.student.loss({**joined, "weight": (size + rest) * torch.cat(weights)})
        return {**losses, "kept": kept.mean()}

    def start_teacher(self) -> MeanTeacher:
        """The mean teacher; made of the student as it is, or of a checkpoint's, where there is none yet."""
        if self.mean_teacher is None:
            self.mean_teacher = MeanTeacher(self.student, self.ema_decay, self.burn_in_steps)
            if self._restored_teacher is not None:
                self.mean_teacher.load_state_dict(self._restored_teacher)
                self._restored_teacher = None
        return self.mean_teacher

    # Lightning's hooks.

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Both halves of a training batch."""
        if "labeled" not in batch:
            return super().transfer_batch_to_device(batch, device, dataloader_idx)
        move = super().transfer_batch_to_device
        return {name: move(half, device, dataloader_idx) for name, half in batch.items()}

    def on_fit_start(self) -> None:
        """Make the mean teacher, after the checkpoint of the resumed run is loaded and on the device."""
        self.mean_teacher = None
        if self.teacher == "mean_teacher":
            self.start_teacher()

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """The optimizer's, and the mean teacher's: before any callback, so that a checkpoint has both."""
        super().optimizer_step(*args, **kwargs)
        if self.mean_teacher is not None:
            self.mean_teacher.update(self.student)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """As an ordinary task's, with the student's arguments; the mean teacher under a key of its own."""
        super().on_save_checkpoint(checkpoint)
        if self.mean_teacher is not None:
            checkpoint["mean_teacher"] = self.mean_teacher.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take it back."""
        super().on_load_checkpoint(checkpoint)
        self._restored_teacher = checkpoint.get("mean_teacher")


def _check_labels(labels: Literal["soft", "hard"], temperature: float, smoothing: float) -> None:
    if temperature <= 0:
        raise UserError(f"model.temperature is {temperature}; it must be above 0 (1 leaves the labels alone).")
    if not 0 <= smoothing < 1:
        raise UserError(f"model.smoothing is {smoothing}; it must be at least 0 and below 1.")
    if labels == "hard" and temperature != 1:
        raise UserError(f"model.temperature is {temperature}, but model.labels is 'hard', which has none.")
    if labels == "soft" and smoothing:
        raise UserError(f"model.smoothing is {smoothing}, but model.labels is 'soft': soft labels need none.")
