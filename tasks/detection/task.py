"""Detection of objects by boxes, and by masks of instances, with several families of detectors."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from datamodules.common.errors import UserError
from tasks.base import Task
from tasks.detection.detectors.arguments import BackboneArguments
from tasks.detection.detectors.families import Name, detector_arguments, family_of
from tasks.detection.detectors.masks import encode_masks
from tasks.detection.detectors.selection import Found, Limits
from tasks.detection.evaluation.curves import Thresholds
from tasks.detection.evaluation.metrics import CocoMetrics
from tasks.detection.postprocess import boxes_in_original, check_limits, found_by_tiles, found_of_images
from tasks.device_augment import jitter_images
from tasks.hooks import Batch
from tasks.optim import Optim
from tasks.whole_models import adopt_whole_model

#: Transformers' names of the whole models that `rtdetr` can start from.
WHOLE_DETECTORS = ("rt_detr", "rt_detr_v2", "d_fine")
#: The confidence that is used until a validation has found better ones.
FIRST_THRESHOLD = 0.5


class Detection(Task):
    """Objects' boxes and classes, and with ``mask_rcnn`` their masks, on any timm backbone.

    Args:
        detector: The family: ``faster_rcnn`` (two stages), ``retinanet`` and ``fcos`` (dense), ``yolo`` (dense,
            task-aligned), ``rtdetr`` (a transformer; needs the extra transformers), ``mask_rcnn`` (two stages, with
            masks), ``box_regression`` (one box an image).
        backbone: A timm name; ``python -m pipelines list backbones`` shows all.
        num_classes: Taken from the data where it is left out; so are ``in_chans`` and ``image_size``.
        pretrained: ``true`` for the hub's weights of the backbone, a weights file, a checkpoint of any task; for
            ``rtdetr`` a whole model of transformers, too.
        backbone_args: Arguments for the backbone's own constructor.
        detector_args: Arguments of the family's own, as ``{head_channels: 128}``; docs/detection.md lists them.
        drop_path_rate: Stochastic depth in the backbone.
        freeze_backbone: Train only what is not the backbone; its batch norms keep their statistics.
        unfreeze_at_epoch: From this epoch on (counted from 0) the backbone is trained too.
        freeze_norm: The backbone's batch norms keep the statistics of the pretrained weights.
        grad_checkpointing: Save memory by computing the backbone's activations twice.
        class_weights: Factors of the class loss, one a class.
        color_jitter: Strength of brightness, contrast and saturation jitter on the device.
        min_score: Boxes below it are not even evaluated; average precision is to see all that could matter.
        nms_iou: Of two boxes of a class that overlap more, the one of lower score is dropped.
        max_detections: Boxes of an image at most, in the head and in the metric.
        score_threshold: What ``predict`` writes and pictures show; ``best`` is for each class the confidence of the
            best F1 in the last validation, which the checkpoint holds (0.5 before the first).
        size_ranges: Names and areas in original pixels, from and to, of the metrics by size; COCO's where left out.
        optim: Optimizer and schedule.
        in_chans: Channels of the images.
        image_size: Height and width of the canvas.
        channels_last: Memory format; ``auto`` where the network gains by it.
        compile: Compile the dense part (backbone, pyramid, heads) with torch.compile.
    """

    monitor = "val/map"
    mode = "max"
    finds_boxes = True
    suppresses_inside = True  # whether ``outputs`` leaves duplicates out
    eval_metrics: CocoMetrics

    def __init__(
        self,
        detector: Name = "fcos",
        backbone: str = "resnet18",
        num_classes: int | None = None,
        pretrained: bool | str = False,
        backbone_args: dict[str, Any] | None = None,
        detector_args: dict[str, Any] | None = None,
        drop_path_rate: float = 0.0,
        freeze_backbone: bool = False,
        unfreeze_at_epoch: int | None = None,
        freeze_norm: bool = False,
        grad_checkpointing: bool = False,
        class_weights: list[float] | None = None,
        color_jitter: float = 0.0,
        min_score: float = 0.001,
        nms_iou: float = 0.6,
        max_detections: int = 100,
        score_threshold: float | Literal["best"] = "best",
        size_ranges: dict[str, list[float]] | None = None,
        optim: Optim = Optim(),  # noqa: B008 - frozen
        in_chans: int | None = None,
        image_size: int | list[int] | None = None,
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
        check_limits(min_score, nms_iou, score_threshold, max_detections)
        if color_jitter < 0:
            raise UserError(f"model.color_jitter is {color_jitter}; it must be 0 (off) or more.")
        detector_arguments(detector, detector_args or {})  # to refuse them before there are data
        self.detector: Name = detector
        self.pretrained = pretrained
        self.backbone_args, self.detector_args = backbone_args, detector_args
        self.drop_path_rate = drop_path_rate
        self.grad_checkpointing = grad_checkpointing
        self.class_weights = class_weights
        self.jitter = color_jitter
        self.min_score, self.nms_iou, self.max_detections = min_score, nms_iou, max_detections
        self.score_threshold: float | Literal["best"] = score_threshold
        self.size_ranges = size_ranges
        self.best_thresholds: dict[str, dict[str, Any]] = {}  # of boxes and masks; found by a validation
        if self.has_masks:
            self.monitor = "val/mask_map"
        self.save_hyperparameters(ignore=["optim"])
        self.remember_arguments()

    @property
    def has_masks(self) -> bool:
        """Whether the family gives masks."""
        return family_of(self.detector).has_masks

    def resolve(self, spec: dict[str, Any], source: str) -> None:
        """As every task; and a family that learns masks needs data that has them."""
        spec = dict(spec)
        if not spec.pop("masks", True) and self.has_masks:
            raise UserError(
                f"model.detector is '{self.detector}', which learns masks, but data.masks is false ({source}): set"
                " data.masks: true, or take model.detector: faster_rcnn."
            )
        super().resolve(spec, source)

    def build_network(self) -> nn.Module:
        """The detector: see ``tasks.detection.detectors``."""
        size = self.image_size
        backbone = BackboneArguments(
            self.backbone,
            in_chans=int(self.in_chans or 3),
            pretrained=self.weights_to_build_with,
            image_size=(size[0], size[1]) if size else None,
            drop_path_rate=self.drop_path_rate,
            backbone_args=self.backbone_args,
            grad_checkpointing=self.grad_checkpointing,
        )
        if self.detector == "rtdetr":
            adopt_whole_model(self, "detector_args", "model.detector: rtdetr", WHOLE_DETECTORS)
        arguments = detector_arguments(self.detector, self.detector_args or {})
        return family_of(self.detector).build(backbone, int(self.num_classes or 0), arguments, self.class_weights)

    def head_names(self) -> set[str]:
        """Names of the parameters that are not the backbone's."""
        assert self.network is not None
        return {name for name, _ in self.network.named_parameters() if not name.startswith("backbone.")}

    def build_metrics(self) -> Metric:
        """COCO's metrics; see `CocoMetrics`."""
        return CocoMetrics(
            int(self.num_classes or 0),
            iou_type=("bbox", "segm") if self.has_masks else "bbox",
            max_detections=self.max_detections,
            size_ranges=None if self.size_ranges is None else {k: (v[0], v[1]) for k, v in self.size_ranges.items()},
        )

    def augment(self, batch: Batch) -> Batch:
        """Jitter; images become float32 in [0, 1] where it is on."""
        return jitter_images(batch, self.jitter)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Mean over the batch of each image's loss times its ``weight``, and the terms it is the sum of."""
        losses: dict[str, Tensor] = self.network.losses(self.normalize(batch["image"]), batch, batch.get("weight"))
        return losses

    # Evaluation and prediction.

    def find(self, image: Tensor) -> list[Found]:
        """What the network finds, however unsure, in canvas pixels: `tasks.detection.postprocess.Found` of each image.

        Args:
            image: uint8 (B, C, H, W), or float in [0, 1].
        """
        if self.runtime is not None:
            return found_of_images(self.runtime(image))
        return self.network.detect(self.normalize(image), self.limits)  # type: ignore[no-any-return]

    @property
    def limits(self) -> Limits:
        """What of all candidates is kept."""
        return Limits(self.min_score, self.nms_iou, self.max_detections)

    def outputs(self, image: Tensor) -> dict[str, Tensor]:
        """What ``find`` finds, in tensors of one shape for all images: see ``Detector.in_tensors``."""
        return self.network.in_tensors(self.normalize(image), self.limits, self.suppresses_inside)  # type: ignore[no-any-return]

    def infer(self, image: Tensor) -> list[Found]:
        """As ``find``."""
        return self.find(image)

    def predict(self, batch: Batch) -> dict[str, Any]:
        """All boxes above ``min_score``, in original pixels; each value is a list of one entry an image.

        Returns:
            ``boxes`` float32 (n, 4), x1 y1 x2 y2; ``scores`` float32 (n,), descending; ``labels`` int64 (n,); and of
            families with masks ``masks``, n run-length encodings (COCO's ``size`` and ``counts``).
        """
        if "tiles" in batch:
            found = [
                found_by_tiles(self.find, image, windows, nms_iou=self.nms_iou, max_detections=self.max_detections)
                for image, windows in zip(batch["image"], batch["tiles"], strict=True)
            ]
        else:
            found = self.find(batch["image"])
        geometry = batch["geometry"].cpu()
        found = [boxes_in_original(of_image, record) for of_image, record in zip(found, geometry, strict=True)]
        predictions: dict[str, Any] = {key: [f[key] for f in found] for key in ("boxes", "scores", "labels")}
        if self.has_masks:
            sizes = [(round(float(record[0])), round(float(record[1]))) for record in geometry]
            predictions["masks"] = [
                encode_masks(f["masks"], f["boxes"], *size) for f, size in zip(found, sizes, strict=True)
            ]
        return predictions

    def update_metrics(self, batch: Batch, predictions: dict[str, Any]) -> None:
        """Compare with the annotations of the original pictures."""
        self.eval_metrics.update(predictions, batch["target"], batch["id"])

    def after_validation(self) -> None:
        """Keep each class's confidence of the best F1 for ``predict`` and ``test``."""
        self.best_thresholds = {kind: asdict(best) for kind, best in self.eval_metrics.thresholds.items()}

    def before_test(self) -> None:
        """F1 and the like are taken at the checkpoint's thresholds, not at the best of the test."""
        self.eval_metrics.at = {kind: Thresholds(**best) for kind, best in self.best_thresholds.items()} or None  # type: ignore[misc]

    def thresholds(self) -> Tensor:
        """The confidence from which on an object of each class is shown and written: float32 (K,), on the CPU."""
        classes = int(self.num_classes or 0)
        if self.score_threshold != "best":
            return torch.full((classes,), float(self.score_threshold))
        best = self.best_thresholds.get("segm" if self.has_masks else "bbox")
        return torch.tensor([FIRST_THRESHOLD] * classes if best is None else best["per_class"])

    def shown(self, predictions: dict[str, Any]) -> dict[str, Any]:
        """Of what `predict` gives, the objects whose score reaches their class's threshold."""
        limits = self.thresholds()
        kept: dict[str, Any] = {key: [] for key in predictions}
        for i, (scores, labels) in enumerate(zip(predictions["scores"], predictions["labels"], strict=True)):
            keep = scores >= limits.to(scores.device)[labels]
            for key in ("boxes", "scores", "labels"):
                kept[key].append(predictions[key][i][keep])
            if "masks" in predictions:
                flags = keep.tolist()
                kept["masks"].append([m for m, flag in zip(predictions["masks"][i], flags, strict=True) if flag])
        return kept

    def rows(self, batch: Batch, predictions: dict[str, Any], class_names: list[str]) -> list[dict[str, Any]]:
        """Path, and how many objects of each class reach their threshold, with the true number where it is known."""
        found = self.shown(predictions)
        rows: list[dict[str, Any]] = []
        truths = batch.get("target", [None] * len(batch["path"]))
        for path, labels, truth in zip(batch["path"], found["labels"], truths, strict=True):
            counts = torch.bincount(labels.cpu(), minlength=len(class_names)).tolist()
            row: dict[str, Any] = {"path": path, "objects": len(labels)}
            if truth is not None:
                row["true_objects"] = len(truth["labels"])
            rows.append(row | {f"number_{name}": n for name, n in zip(class_names, counts, strict=True)})
        return rows

    def captions(self, batch: Batch, predictions: dict[str, Any] | None, class_names: list[str]) -> list[str]:
        """The file's name, and how many objects of the most frequent classes are found."""
        names = [path.rsplit("/", 1)[-1] for path in batch["path"]]
        if predictions is None:
            return names
        texts = []
        for name, row in zip(names, self.rows({"path": batch["path"]}, predictions, class_names), strict=True):
            counts = sorted(
                ((v, k.removeprefix("number_")) for k, v in row.items() if k.startswith("number_")), reverse=True
            )
            texts.append(" · ".join([name, *(f"{v} × {k}" for v, k in counts[:3] if v)]))
        return texts

    # What a checkpoint keeps.

    def state(self) -> dict[str, Any]:
        """The thresholds."""
        return {"best_thresholds": self.best_thresholds}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take them back."""
        self.best_thresholds = state.get("best_thresholds", {})
