"""Semantic segmentation with any encoder-decoder of segmentation_models_pytorch, or SegNet."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import Metric

from datamodules.common.batch import IGNORE
from datamodules.common.errors import UserError
from tasks.calibration import CalibratedTask, on_grid, sampled_pixels
from tasks.device_augment import jitter_images
from tasks.hooks import Batch
from tasks.losses import keep_class_weights
from tasks.optim import Optim
from tasks.segmentation.losses import Kind, check_loss_arguments, check_losses, presence_loss, segmentation_loss
from tasks.segmentation.metrics import SegmentationMetrics, image_scores
from tasks.segmentation.networks import create_segmenter
from tasks.segmentation.postprocess import Scorer, labels_by_tiles, labels_in_original, log_probabilities, resized
from tasks.segmentation.segmenter import encoder_parameter_names
from tasks.segmentation.whole_segformer import whole_segformer


class Segmentation(CalibratedTask):
    """Semantic segmentation: an encoder-decoder on any timm backbone.

    Args:
        architecture: Decoder; all but ``segnet`` are those of segmentation_models_pytorch.
        backbone: Encoder: a timm name; ``python -m pipelines list backbones`` shows all.
        num_classes: Taken from the data where it is left out; so are ``in_chans`` and ``image_size``.
        pretrained: ``true`` for the hub's weights of the encoder, a weights file, a checkpoint of any task; for
            ``segformer`` a whole model of transformers, too.
        backbone_args: Arguments for the encoder's own constructor.
        decoder_args: Arguments for the decoder's constructor in segmentation_models_pytorch, as
            ``decoder_channels: [256, 128, 64, 32, 16]``.
        drop_path_rate: Stochastic depth in the encoder.
        freeze_backbone: Train only the decoder; the encoder's batch norms keep their statistics.
        unfreeze_at_epoch: From this epoch on (counted from 0) the encoder is trained too.
        freeze_norm: The encoder's batch norms keep the statistics of the pretrained weights.
        grad_checkpointing: Save memory by computing the encoder's activations twice.
        losses: Weights of the losses that are added: ``cross_entropy``, ``focal``, ``dice``, ``jaccard``, ``tversky``,
            ``lovasz``.
        label_smoothing: Fraction of the target spread over all classes, in cross-entropy.
        focal_gamma: Exponent of the focal loss.
        tversky_alpha: Weight of false positives in the Tversky loss.
        tversky_beta: Weight of false negatives in the Tversky loss.
        class_weights: One a class; from the data with ``data.balance: loss``.
        aux_weight: Weight of an auxiliary head on the encoder's last map, which says which classes an image holds; 0
            for no such head.
        color_jitter: Strength of brightness, contrast and saturation jitter on the device.
        tta: Views that evaluation and prediction average over, beside the image itself.
        tta_scales: Sizes that they average over, beside the image's own, as ``[0.75, 1.25]``.
        calibrated: Divide the logits of evaluation and prediction by the temperature that the validation found.
        boundary_metric: Also report the boundary F-score, which costs time.
        optim: Optimizer and schedule.
        in_chans: Channels of the images.
        image_size: Height and width of the training images.
        multi_label: Whether a pixel may have several labels (multi-label).
        channels_last: Memory format; ``auto`` where the network gains by it.
        compile: Compile the network with torch.compile.
    """

    monitor = "val/miou"
    mode = "max"
    loss_weights: Tensor | None

    def __init__(
        self,
        architecture: Literal[
            "unet",
            "unetplusplus",
            "manet",
            "linknet",
            "fpn",
            "pspnet",
            "deeplabv3",
            "deeplabv3plus",
            "pan",
            "upernet",
            "segformer",
            "dpt",
            "segnet",
        ] = "unet",
        backbone: str = "resnet18",
        num_classes: int | None = None,
        pretrained: bool | str = False,
        backbone_args: dict[str, Any] | None = None,
        decoder_args: dict[str, Any] | None = None,
        drop_path_rate: float = 0.0,
        freeze_backbone: bool = False,
        unfreeze_at_epoch: int | None = None,
        freeze_norm: bool = False,
        grad_checkpointing: bool = False,
        losses: dict[str, float] = {"cross_entropy": 1.0},  # noqa: B006 - never changed
        label_smoothing: float = 0.0,
        focal_gamma: float = 2.0,
        tversky_alpha: float = 0.3,
        tversky_beta: float = 0.7,
        class_weights: list[float] | None = None,
        aux_weight: float = 0.0,
        color_jitter: float = 0.0,
        tta: list[Literal["hflip", "vflip"]] = [],  # noqa: B006 - never changed
        tta_scales: list[float] = [],  # noqa: B006 - never changed
        calibrated: bool = False,
        boundary_metric: bool = False,
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
        check_losses(losses)
        given = {"label_smoothing": label_smoothing, "focal_gamma": focal_gamma}
        check_loss_arguments(losses, **given, tversky_alpha=tversky_alpha, tversky_beta=tversky_beta)
        for key, value in (("color_jitter", color_jitter), ("aux_weight", aux_weight)):
            if value < 0:
                raise UserError(f"model.{key} is {value}; it must be 0 (off) or more.")
        if any(not 0.25 <= scale <= 4 for scale in tta_scales):
            raise UserError(f"model.tta_scales is {tta_scales}; each must lie between 0.25 and 4.")
        self.architecture = architecture
        self.pretrained = pretrained
        self.backbone_args, self.decoder_args = backbone_args, decoder_args
        self.drop_path_rate = drop_path_rate
        self.grad_checkpointing = grad_checkpointing
        self.losses = losses
        self.label_smoothing, self.focal_gamma = label_smoothing, focal_gamma
        self.tversky_alpha, self.tversky_beta = tversky_alpha, tversky_beta
        self.class_weights = class_weights
        self.aux_weight = aux_weight
        self.jitter = color_jitter
        self.tta, self.tta_scales = tta, tta_scales
        self.calibrated = calibrated
        self.boundary_metric = boundary_metric
        self.multi_label = multi_label
        self.with_confidence = 0  # classes a pixel whose probability pseudo-label asks for
        self.save_hyperparameters(ignore=["optim"])
        self.remember_arguments()

    @property
    def kind(self) -> Kind:
        """``multilabel``; ``binary`` (one score a pixel) for two classes; else ``multiclass``."""
        if self.multi_label:
            return "multilabel"
        return "binary" if self.num_classes == 2 else "multiclass"

    def build_network(self) -> nn.Module:
        """The encoder-decoder: normalized float (B, C, H, W) to logits (B, K, H, W), K = 1 if binary."""
        classes = int(self.num_classes or 0)
        if classes > IGNORE:
            raise UserError(f"model.num_classes is {classes}; masks of 8 bits hold at most {IGNORE} classes.")
        keep_class_weights(self, self.class_weights)
        outputs = 1 if self.kind == "binary" else classes
        if self.architecture == "segformer" and (whole := whole_segformer(self, outputs)) is not None:
            return whole
        return create_segmenter(
            self.architecture,
            self.backbone,
            outputs,
            in_chans=int(self.in_chans or 3),
            pretrained=self.weights_to_build_with,
            image_size=self.image_height_width,
            decoder_args=self.decoder_args,
            drop_path_rate=self.drop_path_rate,
            backbone_args=self.backbone_args,
            aux_classes=classes if self.aux_weight else 0,
            grad_checkpointing=self.grad_checkpointing,
        )

    def head_names(self) -> set[str]:
        """Names of the decoder's parameters."""
        assert self.network is not None
        encoder = encoder_parameter_names(self.network)
        return {name for name, _ in self.network.named_parameters() if name not in encoder}

    def build_metrics(self) -> Metric:
        """Metrics whose states have a fixed size and sum over ranks."""
        return SegmentationMetrics(
            int(self.num_classes or 0), multi_label=bool(self.multi_label), boundary=self.boundary_metric
        )

    def augment(self, batch: Batch) -> Batch:
        """Jitter; images become float32 in [0, 1] where it is on."""
        return jitter_images(batch, self.jitter)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Mean over the batch of each image's loss times its ``weight``; where there are several, its parts too."""
        output = self(batch["image"])
        logits, presence = output if isinstance(output, tuple) else (output, None)
        losses = segmentation_loss(
            logits,
            batch["mask"],
            kind=self.kind,
            losses=self.losses,
            soft_mask=batch.get("soft_mask"),
            weight=batch.get("weight"),
            class_weights=self.loss_weights,
            label_smoothing=self.label_smoothing,
            focal_gamma=self.focal_gamma,
            tversky_alpha=self.tversky_alpha,
            tversky_beta=self.tversky_beta,
        )
        if presence is not None:
            losses["presence"] = presence_loss(presence.float(), batch["mask"], batch.get("weight"))
            losses["loss"] = losses["loss"] + self.aux_weight * losses["presence"]
        return losses

    # Evaluation and prediction.

    def scores(self, image: Tensor) -> Tensor:
        """The ``scores`` of ``outputs``."""
        return self.computed(image)["scores"]

    def outputs(self, image: Tensor) -> dict[str, Tensor]:
        """``scores``: class probabilities, float32 (B, K, H, W), K = 1 if binary; of several views the mean."""
        flips: list[int | None] = [None]
        flips += [axis for name, axis in (("hflip", 3), ("vflip", 2)) if name in self.tta]
        views = [self._view(image, scale, flip) for scale in (1.0, *self.tta_scales) for flip in flips]
        return {"scores": views[0] if len(views) == 1 else torch.stack(views).mean(0)}

    def _view(self, image: Tensor, scale: float, flip: int | None) -> Tensor:
        """Class probabilities of an image that the network sees resized and flipped along an axis, turned back."""
        seen = image if scale == 1 else resized(image, scale)
        logits = self(seen if flip is None else seen.flip(flip)).float() / self.divisor
        scores: Tensor = logits.softmax(1) if self.kind == "multiclass" else logits.sigmoid()
        scores = scores if flip is None else scores.flip(flip)
        return scores if scale == 1 else F.interpolate(scores, image.shape[2:], mode="bilinear")

    def predict(self, batch: Batch, scorer: Scorer | None = None) -> dict[str, Any]:
        """``mask``: for each image the labels in its original pixels, uint8 (H, W), or (K, H, W) if multi-label.

        With ``with_confidence`` also ``confidence``: uint8 (H, W), the label's probability in parts of 255, rounded
        down; and with two of them ``second``: uint8 (2, H, W), the next class and its probability.
        Of annotated images with one class a pixel, ``sample``: float32 (B, K, P), logits of the pixels ``on_grid``.
        ``scorer`` gives the scores in place of ``scores``, where several networks predict together.
        """
        how, scorer = (self.kind == "multilabel", self.with_confidence), scorer or self.scores
        sample = {}
        if "tiles" in batch:
            pairs = zip(batch["image"], batch["tiles"], strict=True)
            labels = [labels_by_tiles(scorer, image, windows, *how) for image, windows in pairs]
        else:
            scores = scorer(batch["image"])
            sample = {"sample": log_probabilities(on_grid(scores))} if "mask" in batch and not self.multi_label else {}
            records = zip(scores, batch["geometry"].cpu(), strict=True)
            labels = [labels_in_original(of_image, record, *how) for of_image, record in records]
        if self.with_confidence:
            found = {"mask": [planes[0] for planes in labels], "confidence": [planes[1] for planes in labels]}
            return found | ({"second": [planes[2:] for planes in labels]} if self.with_confidence > 1 else {})
        return {"mask": labels, **sample}

    def update_metrics(self, batch: Batch, predictions: dict[str, Any]) -> None:
        """Compare with the masks of the original pictures."""
        if "sample" in predictions:
            self.eval_metrics.add_logits(*sampled_pixels(batch["mask"], predictions["sample"]))
        for prediction, target in zip(predictions["mask"], batch["target"], strict=True):
            self.eval_metrics.update(prediction, target["mask"].to(prediction.device))

    def rows(self, batch: Batch, predictions: dict[str, Any], class_names: list[str]) -> list[dict[str, Any]]:
        """Path, size, what fraction of the image each class covers (0 to 1), and the scores where there is a truth."""
        rows: list[dict[str, Any]] = []
        truths = batch.get("target", [None] * len(batch["path"]))
        for path, mask, truth in zip(batch["path"], predictions["mask"], truths, strict=True):
            mask = mask.cpu()
            height, width = mask.shape[-2:]
            row: dict[str, Any] = {"path": path, "height": height, "width": width}
            if truth is not None:
                row |= image_scores(mask, truth["mask"].cpu(), int(self.num_classes or 0), bool(self.multi_label))
            counts = mask.flatten(1).sum(1) if self.multi_label else torch.bincount(mask.flatten(), minlength=256)
            row |= {f"area_{name}": int(n) / (height * width) for name, n in zip(class_names, counts, strict=False)}
            rows.append(row)
        return rows

    def captions(self, batch: Batch, predictions: dict[str, Any] | None, class_names: list[str]) -> list[str]:
        """The file's name, and how much of the image the largest classes cover."""
        names = [path.rsplit("/", 1)[-1] for path in batch["path"]]
        if predictions is None:
            return names
        texts = []
        for name, row in zip(names, self.rows({"path": batch["path"]}, predictions, class_names), strict=True):
            areas = [(v, k.removeprefix("area_")) for k, v in row.items() if k.startswith("area_")]
            texts.append(
                " · ".join([name, *(f"{k} {v:.0%}" for v, k in sorted(areas, reverse=True)[:3] if v >= 0.005)])
            )
        return texts
