"""Image classification: single-label, multi-label or with soft labels."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

from datamodules.common.errors import UserError
from tasks.backbones import create_classifier, head_parameters
from tasks.calibration import CalibratedTask
from tasks.checks import TrainingPlan
from tasks.device_augment import color_jitter, mix, random_erasing
from tasks.hooks import Batch
from tasks.losses import classification_loss, keep_class_weights
from tasks.metrics import ClassificationMetrics, MultiLabelMetrics
from tasks.optim import Optim

#: Axes that test-time augmentation flips.
VIEWS = {"hflip": (3,), "vflip": (2,), "rot180": (2, 3)}
#: Fraction of a soft label above which it is shown as its class alone.
SURE = 0.999


class Classification(CalibratedTask):
    """Classification with any timm backbone.

    Args:
        backbone: A timm name, or ``lenet5``, ``cifar_resnet18``, ...; ``python -m pipelines list backbones`` shows all.
        num_classes: Taken from the data where it is left out; so are ``in_chans`` and ``image_size``.
        pretrained: ``true`` for the hub's weights, a local weights file, or a checkpoint of any task.
        backbone_args: Arguments for the network's own constructor.
        drop_rate: Dropout before the head.
        drop_path_rate: Stochastic depth: the rate at which the last block is dropped, less for earlier ones.
        freeze_backbone: Train only the head; batch norms keep their statistics.
        unfreeze_at_epoch: From this epoch on (counted from 0) the backbone is trained too.
        freeze_norm: Batch norms keep the statistics of the pretrained weights, in place of those of small batches.
        grad_checkpointing: Save memory by computing activations twice.
        loss: ``cross_entropy`` for one label or soft labels; ``bce`` and ``focal`` treat each class on its own and are
            what multi-label images need. ``auto`` takes what fits the labels.
        label_smoothing: Fraction of the target spread over all classes.
        focal_gamma: Exponent of the focal loss.
        class_weights: One a class; from the data with ``data.balance: loss``. With ``bce`` and ``focal`` they weight
            the positive labels.
        mixup: Parameter alpha of mixup; 0 for none.
        cutmix: Parameter alpha of cutmix; 0 for none.
        mix_prob: Fraction of the batches that are mixed.
        erasing: Probability of random erasing.
        color_jitter: Strength of brightness, contrast and saturation jitter on the device.
        top_k: Also report accuracy among the k best; those below the number of classes count.
        tta: Views that prediction averages over, beside the image itself.
        calibrated: Divide the logits of evaluation and prediction by the temperature that the validation found.
        optim: Optimizer and schedule.
        in_chans: Channels of the images.
        image_size: Height and width of the images.
        multi_label: Whether an image may have several labels (multi-label).
        channels_last: Memory format; ``auto`` where the network gains by it.
        compile: Compile the network with torch.compile.
    """

    monitor = "val/accuracy"  # val/map for multi-label images
    mode = "max"
    loss_weights: Tensor | None

    def __init__(
        self,
        backbone: str = "resnet18",
        num_classes: int | None = None,
        pretrained: bool | str = False,
        backbone_args: dict[str, Any] | None = None,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        freeze_backbone: bool = False,
        unfreeze_at_epoch: int | None = None,
        freeze_norm: bool = False,
        grad_checkpointing: bool = False,
        loss: Literal["auto", "cross_entropy", "bce", "focal"] = "auto",
        label_smoothing: float = 0.0,
        focal_gamma: float = 2.0,
        class_weights: list[float] | None = None,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        mix_prob: float = 1.0,
        erasing: float = 0.0,
        color_jitter: float = 0.0,
        top_k: list[int] = [5],  # noqa: B006 - never changed
        tta: list[Literal["hflip", "vflip", "rot180"]] = [],  # noqa: B006 - never changed
        calibrated: bool = False,
        optim: Optim = Optim(),  # noqa: B008 - frozen
        in_chans: int | None = None,
        image_size: int | list[int] | None = None,
        multi_label: bool | None = None,
        channels_last: bool | Literal["auto"] = "auto",
        compile: bool = False,
    ) -> None:
        super().__init__(
            num_classes=num_classes,
            backbone=backbone,
            optim=optim,
            in_chans=in_chans,
            image_size=image_size,
            freeze_backbone=freeze_backbone,
            unfreeze_at_epoch=unfreeze_at_epoch,
            freeze_norm=freeze_norm,
            channels_last=channels_last,
            compile=compile,
        )
        for key, value in (("mix_prob", mix_prob), ("erasing", erasing), ("label_smoothing", label_smoothing)):
            if not 0 <= value <= 1:
                raise UserError(f"model.{key} is {value}; it must lie between 0 and 1.")
        for key, value in (("mixup", mixup), ("cutmix", cutmix), ("color_jitter", color_jitter)):
            if value < 0:
                raise UserError(f"model.{key} is {value}; it must be 0 (off) or more.")
        if focal_gamma != 2 and loss != "focal":
            raise UserError(f"model.focal_gamma is {focal_gamma}, but model.loss is '{loss}': set model.loss: focal.")
        self.pretrained = pretrained
        self.backbone_args = backbone_args
        self.drop_rate, self.drop_path_rate = drop_rate, drop_path_rate
        self.grad_checkpointing = grad_checkpointing
        self.loss_kind = loss
        self.label_smoothing, self.focal_gamma = label_smoothing, focal_gamma
        self.class_weights = class_weights
        self.mixup, self.cutmix, self.mix_prob = mixup, cutmix, mix_prob
        self.erasing, self.jitter = erasing, color_jitter
        self.top_k = top_k
        self.tta = tta
        self.calibrated = calibrated
        self.multi_label = multi_label
        self.save_hyperparameters(ignore=["optim"])
        self.remember_arguments()

    @property
    def mixes(self) -> bool:
        """Whether mixup or cutmix is on."""
        return self.mixup > 0 or self.cutmix > 0

    def build_network(self) -> nn.Module:
        """The timm classifier; input is a normalized float (B, C, H, W), output logits (B, K)."""
        if self.multi_label is None:
            self.multi_label = False
        if self.multi_label and self.loss_kind == "cross_entropy":
            raise UserError("model.loss is 'cross_entropy', but the images are multi-label: use bce or focal.")
        keep_class_weights(self, self.class_weights)
        if self.multi_label:
            self.monitor = "val/map"
        return create_classifier(
            self.backbone,
            int(self.num_classes or 0),
            in_chans=int(self.in_chans or 3),
            pretrained=self.weights_to_build_with,
            image_size=self.image_height_width,
            drop_rate=self.drop_rate,
            drop_path_rate=self.drop_path_rate,
            backbone_args=self.backbone_args,
            grad_checkpointing=self.grad_checkpointing,
        )

    def check_training(self, plan: TrainingPlan) -> None:
        """As the base, and: mixup and cutmix mix pairs of images, so they need an even batch size."""
        super().check_training(plan)
        if self.mixes and plan.batch_size is not None and plan.batch_size % 2:
            key = "mixup" if self.mixup else "cutmix"
            raise UserError(
                f"model.{key} is {getattr(self, key)}, which mixes pairs of images, but data.batch_size is"
                f" {plan.batch_size}: set it to an even number."
            )

    def head_names(self) -> set[str]:
        """Names of the classifier's parameters."""
        assert self.network is not None
        return head_parameters(self.network)

    def build_metrics(self) -> Metric | MetricCollection:
        """Metrics whose states have a fixed size and sum over ranks."""
        classes = int(self.num_classes or 0)
        if self.multi_label:
            return MultiLabelMetrics(classes)
        return ClassificationMetrics(classes, top_k=tuple(self.top_k))

    def augment(self, batch: Batch) -> Batch:
        """Jitter, erasing, mixup and cutmix, in that order; images become float32 in [0, 1] where any is on."""
        if not (self.jitter or self.erasing or self.mixes):
            return batch
        image = batch["image"]
        image = image.float() / 255 if image.dtype == torch.uint8 else image.clone()
        if self.jitter:
            image = color_jitter(image, self.jitter)
        if self.erasing:
            image = random_erasing(image, self.erasing, self.mean, self.std)
        batch = {**batch, "image": image}
        if self.mixes:
            batch = mix(batch, int(self.num_classes or 0), self.mixup, self.cutmix, self.mix_prob)
        return batch

    def per_image_loss(self, logits: Tensor, label: Tensor, label_smoothing: float) -> Tensor:
        """The loss of each image: float (B,)."""
        kind = ("bce" if self.multi_label else "cross_entropy") if self.loss_kind == "auto" else self.loss_kind
        return classification_loss(
            logits,
            label,
            kind=kind,
            label_smoothing=label_smoothing,
            class_weights=self.loss_weights,
            focal_gamma=self.focal_gamma,
        )

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Mean over the batch of each image's loss times its ``weight``."""
        loss = self.per_image_loss(self(batch["image"]), batch["label"], self.label_smoothing)
        if "weight" in batch:
            loss = loss * batch["weight"]
        return {"loss": loss.mean()}

    def outputs(self, image: Tensor) -> dict[str, Tensor]:
        """``logits`` and ``probabilities``, float32 (B, K); with test-time augmentation the mean over the views."""
        views = [image, *(image.flip(VIEWS[name]) for name in VIEWS if name in self.tta)]
        logits = [self(view).float() / self.divisor for view in views]
        probabilities = torch.stack([x.sigmoid() if self.multi_label else x.softmax(1) for x in logits]).mean(0)
        if len(views) == 1:
            return {"logits": logits[0], "probabilities": probabilities}
        return self.with_logits(probabilities)

    def with_logits(self, probabilities: Tensor) -> dict[str, Tensor]:
        """``probabilities`` float32 (B, K), a mean of several, and the ``logits`` that would give them."""
        logits = probabilities.logit(1e-7) if self.multi_label else probabilities.clamp_min(1e-12).log()
        return {"logits": logits, "probabilities": probabilities}

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """``outputs`` of the images."""
        return self.computed(batch["image"])

    def update_metrics(self, batch: Batch, predictions: dict[str, Any]) -> None:
        """Accuracy and its kin count the most likely class of a soft label; the loss is without label smoothing."""
        label = batch["label"]
        loss = self.per_image_loss(predictions["logits"], label, 0.0)
        if not self.multi_label and label.is_floating_point():
            label = label.argmax(1)
        self.eval_metrics.add_logits(predictions["logits"], label)
        self.eval_metrics.update(predictions["probabilities"], label, loss)

    def rows(self, batch: Batch, predictions: dict[str, Any], class_names: list[str]) -> list[dict[str, Any]]:
        """Path, truth where known, the most likely classes and their probabilities; all classes if multi-label."""
        probabilities = predictions["probabilities"].float().cpu()
        truths = self._truths(batch, class_names)
        rows: list[dict[str, Any]] = []
        order = probabilities.argsort(dim=1, descending=True, stable=True)[:, : max(5, *self.top_k, 1)]
        for i, path in enumerate(batch["path"]):
            row: dict[str, Any] = {"path": path}
            if truths is not None:
                row["truth"] = truths[i]
            if self.multi_label:
                chosen = [n for n, p in zip(class_names, probabilities[i].tolist(), strict=True) if p >= 0.5]
                row["label"] = ";".join(chosen)
                row |= {f"p_{n}": p for n, p in zip(class_names, probabilities[i].tolist(), strict=True)}
            else:
                for rank, k in enumerate(order[i].tolist(), 1):
                    suffix = "" if rank == 1 else f"_{rank}"
                    row[f"label{suffix}"] = class_names[k]
                    row[f"probability{suffix}"] = float(probabilities[i, k])
            rows.append(row)
        return rows

    def captions(self, batch: Batch, predictions: dict[str, Any] | None, class_names: list[str]) -> list[str]:
        """Truth, and prediction with its probability where there is one."""
        truths = self._truths(batch, class_names) or [""] * len(batch["image"])
        if predictions is None:
            return truths
        rows = self.rows(batch, predictions, class_names)
        guesses = [f"{r['label']} {r['probability']:.2f}" if "probability" in r else r["label"] for r in rows]
        return [
            f"{guess} ({truth})" if truth and truth != row["label"] else guess
            for guess, truth, row in zip(guesses, truths, rows, strict=True)
        ]

    def _truths(self, batch: Batch, class_names: list[str]) -> list[str] | None:
        if "label" not in batch:
            return None
        label = batch["label"].cpu()
        if not label.is_floating_point():
            return [class_names[k] for k in label.tolist()]
        if self.multi_label:
            return [";".join(n for n, y in zip(class_names, r, strict=True) if y >= 0.5) for r in label.tolist()]
        return [_soft_name(row, class_names) for row in label]


def _soft_name(label: Tensor, class_names: list[str]) -> str:
    """The class of a soft label (K,), or its two most probable ones with their fractions."""
    fractions, classes = label.topk(min(2, len(label)))
    if fractions[0] > SURE:
        return class_names[int(classes[0])]
    pairs = zip(fractions.tolist(), classes.tolist(), strict=True)
    return " ".join(f"{class_names[k]} {fraction:.2f}" for fraction, k in pairs if fraction > 0)
