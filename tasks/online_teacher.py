"""Teachers that label while the student learns: FixMatch's, the student itself, and a mean teacher, its average.

They are the baselines that the offline noisy student is compared with (``NoisyStudent.teacher``).

FixMatch (Sohn et al. 2020, https://arxiv.org/abs/2001.07685): the student's own prediction for the weak view of an
image, in the same forward pass and without a gradient, is the hard label of its strong view, where it is sure enough.

Mean teacher (Tarvainen and Valpola 2017, https://arxiv.org/abs/1703.01780): the moving average of the student's weights
labels the weak view. Labels are hard and confident ones, as in its relatives for boxes (Unbiased Teacher, Liu et al.
2021, https://arxiv.org/abs/2102.09480), in place of the first paper's squared difference of probabilities.
"""

from __future__ import annotations

from typing import Any, Literal, NoReturn

import torch
from timm.utils import ModelEmaV3
from torch import Tensor

from datamodules.common.batch import IGNORE, NO_LABEL
from datamodules.common.errors import UserError
from tasks.base import Task
from tasks.classification import Classification
from tasks.detection.task import Detection
from tasks.hooks import Batch
from tasks.reproducibility import broadcast_buffers
from tasks.segmentation.task import Segmentation

TeacherKind = Literal["offline", "fixmatch", "mean_teacher"]
#: Arguments that only some teachers have a use for, and what they are by default.
USED_BY: dict[str, tuple[Any, tuple[TeacherKind, ...]]] = {
    "loss": ("paper", ("offline",)),
    "labels": ("soft", ("offline",)),
    "temperature": (1.0, ("offline",)),
    "smoothing": (0.0, ("offline",)),
    "threshold": (None, ("fixmatch", "mean_teacher")),
    "ema_decay": (None, ("mean_teacher",)),
    "burn_in_steps": (0, ("mean_teacher",)),
}


class MeanTeacher:
    """A moving average of a task's weights and statistics, which predicts in evaluation mode and is never trained.

    No module, so that a module which holds it neither registers nor trains nor saves it as a part of itself.

    Args:
        student: The task, on its device; the average starts as its copy.
        decay: Fraction of the average that stays in each step. In the first steps it is less, so that all weights so
            far count alike, as in the authors' code: min(1 - 1 / step, decay).
        burn_in_steps: Steps in which the average is but a copy of the student.
    """

    def __init__(self, student: Task, decay: float, burn_in_steps: int = 0) -> None:
        self.average = ModelEmaV3(
            student, decay, use_warmup=True, warmup_power=1.0, update_after_step=burn_in_steps
        ).requires_grad_(False)
        self.updates = 0

    @property
    def task(self) -> Task:
        """The task with the averaged weights."""
        task: Task = self.average.module
        return task

    def update(self, student: Task) -> None:
        """Take in the student's weights after an optimizer step; on every rank the same."""
        self.updates += 1
        self.average.update(student, self.updates)
        # Weights are the same on all ranks, statistics of batch norms are not: rank 0's, as DDP does in training.
        broadcast_buffers([buffer for buffer in self.task.buffers() if buffer.is_floating_point()])

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"state_dict": self.task.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it back."""
        self.task.load_state_dict(state["state_dict"])
        self.updates = state["updates"]


def fixmatch_loss(
    student: Classification, labeled: Batch, unlabeled: Batch, threshold: float, unlabeled_weight: float
) -> dict[str, Tensor]:
    """FixMatch's loss of one batch; all three kinds of images go through the network together.

    Args:
        student: In training mode.
        labeled: B images with ``label``, and perhaps ``weight``.
        unlabeled: U images with a strong view, ``image``, and a weak one, ``weak_image``.
        threshold: Probability from which on a label is taught.
        unlabeled_weight: lambda_u of the paper.

    Returns:
        ``loss``, the labeled images' mean plus lambda_u times the mean over all U; both, and ``kept``, the fraction of
        the U images that are taught.
    """
    sizes = [len(labeled["image"]), *(2 * [len(unlabeled["image"])])]
    images = [labeled["image"], unlabeled["image"], unlabeled["weak_image"]]
    of_labeled, strong, weak = student(_together(images)).split(sizes)
    confidence, label = weak.detach().float().softmax(1).max(1)
    kept = (confidence >= threshold).float()
    supervised = student.per_image_loss(of_labeled, labeled["label"], student.label_smoothing)
    if "weight" in labeled:
        supervised = supervised * labeled["weight"]
    taught = student.per_image_loss(strong, label, 0.0) * kept
    losses = {"loss_labeled": supervised.mean(), "loss_unlabeled": taught.mean(), "kept": kept.mean()}
    return {"loss": losses["loss_labeled"] + unlabeled_weight * losses["loss_unlabeled"], **losses}


def _together(images: list[Tensor]) -> Tensor:
    """One batch of images of bytes and of floats in [0, 1]."""
    if len({image.dtype for image in images}) > 1:
        images = [image if image.is_floating_point() else image.float() / 255 for image in images]
    return torch.cat(images)


@torch.no_grad()
def confident_labels(teacher: Task, unlabeled: Batch, threshold: float) -> tuple[Batch, Tensor]:
    """What a teacher is sure of on the weak view, as targets of the strong one, which shows the same places.

    Args:
        teacher: In evaluation mode.
        unlabeled: ``weak_image``, and for masks ``mask``, which is 255 off the picture.
        threshold: Probability, or a box's score, from which on a label is taught.

    Returns:
        The targets, in the form of a labeled batch, and float32 (U,), the fraction of it that each image's loss counts.
        Classes: 1 or 0. Masks: the fraction of the pixels that are not 255, so that unsure ones stay in the mean.
        Boxes: 1, or 0 where there is none: an image of which the teacher says nothing is not taught to be empty.
    """
    image = unlabeled["weak_image"]
    if isinstance(teacher, Classification):
        confidence, label = teacher.predict({"image": image})["probabilities"].max(1)
        return {"label": label}, (confidence >= threshold).float()
    if isinstance(teacher, Segmentation):
        return _confident_masks(teacher, image, unlabeled["mask"], threshold)
    assert isinstance(teacher, Detection), "NoisyStudent refuses other tasks"
    return _confident_boxes(teacher, image, threshold)


def _confident_masks(teacher: Segmentation, image: Tensor, shown: Tensor, threshold: float) -> tuple[Batch, Tensor]:
    scores = teacher.scores(image)
    inside = shown != IGNORE
    if teacher.kind == "multiclass":
        confidence, label = scores.max(1)
    else:
        if teacher.kind == "binary":
            scores = scores.squeeze(1)
        else:
            inside = inside.unsqueeze(1).expand_as(scores)
        confidence, label = torch.maximum(scores, 1 - scores), scores > 0.5
    sure = inside & (confidence >= threshold)
    part = sure.flatten(1).sum(1) / inside.flatten(1).sum(1).clamp_min(1)
    return {"mask": torch.where(sure, label.to(torch.uint8), IGNORE)}, part


def _confident_boxes(teacher: Detection, image: Tensor, threshold: float) -> tuple[Batch, Tensor]:
    sure = [{k: v[f["scores"] >= threshold] for k, v in f.items()} for f in teacher.find(image)]
    most = max(len(found["labels"]) for found in sure)
    boxes = image.new_zeros((len(sure), most, 4), dtype=torch.float32)
    labels = image.new_full((len(sure), most), NO_LABEL, dtype=torch.int64)
    for i, found in enumerate(sure):
        boxes[i, : len(found["boxes"])] = found["boxes"]
        labels[i, : len(found["labels"])] = found["labels"]
    targets = {"boxes": boxes, "labels": labels, "iscrowd": torch.zeros_like(labels, dtype=torch.uint8)}
    return targets, (labels >= 0).any(1).float()


def check_teacher(teacher: TeacherKind, student: Task, given: dict[str, Any]) -> None:
    """Refuse what the teacher has no use for, and students that it cannot teach.

    Args:
        teacher: ``NoisyStudent.teacher``.
        student: The task.
        given: The arguments of `USED_BY`, as they were given.

    Raises:
        UserError: Naming the argument.
    """
    _check_values(teacher, given)
    if teacher != "offline":
        _check_student(teacher, student)


def _check_values(teacher: TeacherKind, given: dict[str, Any]) -> None:
    for key, value in given.items():
        default, users = USED_BY[key]
        if value != default and teacher not in users:
            raise UserError(
                f"model.{key} is {value!r}, but model.teacher is '{teacher}': only {' and '.join(users)} has a use for"
                " it. Leave it out."
            )
    threshold, decay = given["threshold"], given["ema_decay"]
    if threshold is not None and not 0 <= threshold <= 1:
        raise UserError(f"model.threshold is {threshold}; it is a probability, 0 to 1.")
    if decay is not None and not 0 <= decay < 1:
        raise UserError(f"model.ema_decay is {decay}; it must be at least 0 and below 1, for example 0.999.")
    if given["burn_in_steps"] < 0:
        raise UserError(f"model.burn_in_steps is {given['burn_in_steps']}; it must be 0 or more.")


def _check_student(teacher: TeacherKind, student: Task) -> None:
    kind = type(student).__name__
    if teacher == "fixmatch" and not isinstance(student, Classification):
        raise UserError(f"model.teacher is 'fixmatch', which is for Classification; for {kind} take mean_teacher.")
    if not isinstance(student, Classification | Detection | Segmentation):
        raise UserError(f"model.teacher is '{teacher}', which cannot teach {kind}; take offline.")
    if isinstance(student, Detection) and student.has_masks:
        raise UserError(
            f"model.teacher is '{teacher}', which teaches boxes, but model.student.detector '{student.detector}' learns"
            " masks, too: take another detector, or model.teacher: offline."
        )
    if isinstance(student, Classification):
        for key, value in (("mixup", student.mixup), ("cutmix", student.cutmix)):
            if value:
                raise UserError(
                    f"model.student.{key} is {value}, but model.teacher is '{teacher}', whose labels come too late to"
                    " be mixed: leave it out."
                )


def refuse_data(teacher: TeacherKind) -> NoReturn:
    """Say which unlabeled images the teacher needs; the data has others.

    Raises:
        UserError: Always.
    """
    if teacher == "offline":
        raise UserError(
            "data.pool (or data.labels_per_class, data.labeled_images) gives images without labels, but model.teacher"
            " is 'offline', which teaches labels that are there: label them with `pseudo-label` and give"
            " data.unlabeled, or set model.teacher: fixmatch or mean_teacher."
        )
    raise UserError(
        f"model.teacher is '{teacher}', which labels unlabeled images itself: give them as data.pool of"
        " SemiSupervised, in place of data.unlabeled."
    )
