"""RT-DETR (Zhao et al. 2023, https://arxiv.org/abs/2304.08069): transformers' encoder and decoder on a timm pyramid.

A fixed number of queries, each of which becomes one object or none; queries are matched to the true objects one to
one, by the Hungarian method. The package transformers is an extra: ``pip install "vision-pipelines[transformers]"``.

With ``model.pretrained`` a folder or a name on the hub, it is a whole pretrained model of transformers with its own
backbone: RT-DETR, RT-DETRv2 (Lv et al. 2024, https://arxiv.org/abs/2407.17140) or D-FINE (Peng et al. 2024,
https://arxiv.org/abs/2410.13842).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datamodules.common.errors import UserError
from tasks.detection.detectors.anchors import centers_of, sides_of
from tasks.detection.detectors.arguments import BackboneArguments, DetectorArguments
from tasks.detection.detectors.protocol import Detector, Family
from tasks.detection.detectors.selection import Candidates, Limits, Sources, best_candidates
from tasks.detection.detectors.targets import Truth, read_targets
from tasks.pyramid import Pyramid
from tasks.whole_models import configuration, description, import_transformers, make_whole_model, refuse_set

#: Terms of the loss, and what transformers' names of the layers' losses contain.
TERMS = {"class_loss": "loss_vfl", "l1_loss": "loss_bbox", "giou_loss": "loss_giou"}
#: Those of D-FINE beside them: of the distributions of the boxes' sides, and of their distillation.
FINE_TERMS = {"fgl_loss": "loss_fgl", "ddf_loss": "loss_ddf"}


@dataclass(frozen=True, kw_only=True)
class RTDETRArguments(DetectorArguments):
    """Arguments of RT-DETR.

    Attributes:
        strides: of the maps; None for 8, 16 and 32, or the nearest that the net has.
        width: channels of encoder and decoder.
        heads: attention heads; they divide the width.
        ffn_width: of the transformer layers' feed-forward nets.
        encoder_layers: transformer layers on the coarsest map.
        decoder_layers: layers of the decoder, each with a loss of its own.
        queries: objects of an image at most; the maps must have as many cells.
        denoising: noised true boxes that are learned beside the queries in training; 0 for none.
        transformers: configuration of a whole model of transformers (``model_type`` rt_detr, rt_detr_v2 or d_fine), in
            place of backbone and sizes; a whole model in ``model.pretrained`` fills it in.
    """

    strides: Sequence[int] | None = None
    width: int = 256
    heads: int = 8
    ffn_width: int = 1024
    encoder_layers: int = 1
    decoder_layers: int = 6
    queries: int = 300
    denoising: int = 100
    transformers: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        """Refuse values that make no sense."""
        super().__post_init__()
        self.at_least(1, "width", "heads", "queries", "decoder_layers")
        if self.width % self.heads:
            self.refuse("width", f"a multiple of heads, {self.heads}")


class WholeBackbone(nn.Module):
    """The backbone of a whole model of transformers, as a pyramid: images to their maps, finest first."""

    def __init__(self, net: nn.Module, strides: Sequence[int], pretrained_cfg: Any) -> None:
        """Take transformers' backbone over."""
        super().__init__()
        self.net = net
        self.strides = list(strides)
        self.pretrained_cfg = pretrained_cfg

    def forward(self, image: Tensor) -> list[Tensor]:
        """The maps of (B, 3, H, W)."""
        mask = torch.ones(image.shape[0], *image.shape[2:], device=image.device)
        return [features for features, _ in self.net(image, mask)]


class RTDETR(Detector):
    """A fixed number of queries on an encoded pyramid.

    Images whose sides are no multiples of the coarsest stride are filled up at the right and at the bottom, since the
    encoder doubles its maps exactly.
    """

    queries = True

    def __init__(self, backbone: Pyramid | WholeBackbone, lateral: nn.ModuleList, detr: Any) -> None:
        """Put transformers' model, without its own first part, behind a backbone and one layer a map."""
        super().__init__(backbone, detr.config.num_labels)
        self.lateral = lateral
        self.detr = detr
        self.terms = TERMS | (FINE_TERMS if detr.config.model_type == "d_fine" else {})
        # Its own backbone and the layers behind that, whose work is done above.
        self.detr.model.backbone = nn.Identity()
        self.detr.model.encoder_input_proj = nn.Identity()

    def forward(self, image: Tensor) -> tuple[Tensor, Any]:
        """Backbone and encoder: the image, filled up, and the encoder's maps."""
        coarsest = self.backbone.strides[-1]
        height, width = image.shape[-2:]
        image = F.pad(image, (0, -width % coarsest, 0, -height % coarsest))
        maps = [layer(x) for layer, x in zip(self.lateral, self.backbone(image), strict=True)]
        return image, self.detr.model.encoder(maps)

    def _decode(self, image: Tensor, encoded: Any, labels: list[dict[str, Tensor]] | None) -> Any:
        # With the encoder's output given, transformers asks `inputs_embeds` for nothing but its device.
        return self.detr.model(image, inputs_embeds=image, encoder_outputs=encoded, labels=labels)

    def image_losses(self, image: Tensor, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`class_loss`, `l1_loss` and `giou_loss`.

        Each is the sum over the decoder's layers, the encoder's choice of queries and the denoising queries.
        """
        image, encoded = self(image)
        labels = relative_targets(read_targets(targets), image)
        out = self._decode(image, encoded, labels)
        columns: dict[str, list[Tensor]] = {name: [] for name in self.terms}
        for i, label in enumerate(labels):  # one by one, since transformers divides by the batch's number of boxes
            losses = self._losses_of_one(out, i, label)
            for name, mark in self.terms.items():
                columns[name].append(torch.stack([loss for key, loss in losses.items() if mark in key]).sum())
        parts = {name: torch.stack(column) for name, column in columns.items()}
        if self.detr.config.num_denoising:  # DDP waits for its gradient, also where a batch has no boxes to noise
            parts["class_loss"] = parts["class_loss"] + 0 * self.detr.model.denoising_class_embed.weight.sum()
        return parts

    def _losses_of_one(self, out: Any, i: int, label: dict[str, Tensor]) -> dict[str, Tensor]:
        """Transformers' losses of one image, by layer."""
        one = slice(i, i + 1)
        denoising = out.denoising_meta_values if self.training else None
        if denoising:
            denoising = {**denoising, "dn_positive_idx": denoising["dn_positive_idx"][one]}
        logits, boxes = out.intermediate_logits[one].float(), out.intermediate_reference_points[one].float()
        corners, starts = out.intermediate_predicted_corners, out.initial_reference_points  # of D-FINE
        _, losses, _ = self.detr.loss_function(
            logits[:, -1],
            [label],
            logits.device,
            boxes[:, -1],
            self.detr.config,
            logits,
            boxes,
            enc_topk_logits=out.enc_topk_logits[one].float(),
            enc_topk_bboxes=out.enc_topk_bboxes[one].float(),
            denoising_meta_values=denoising,
            predicted_corners=None if corners is None else corners[one].float(),
            initial_reference_points=None if starts is None else starts[one].float(),
        )
        by_layer: dict[str, Tensor] = losses
        return by_layer

    def candidates(self, dense: tuple[Tensor, Any], size: tuple[int, int], limits: Limits) -> Candidates:
        """As every detector. One-to-one matching makes duplicates rare; ``nms_iou: 1`` switches the suppression off."""
        boxes, logits = self._queries(*dense)
        return best_candidates(boxes, logits.sigmoid(), max(logits.shape[1], limits.max_detections))

    def _queries(self, filled: Tensor, encoded: Any) -> tuple[Tensor, Tensor]:
        """Boxes (B, Q, 4) in canvas pixels and logits (B, Q, K) of the queries."""
        out = self._decode(filled, encoded, None)
        center, side = out.intermediate_reference_points[:, -1].float().chunk(2, 2)
        boxes = torch.cat([center - side / 2, center + side / 2], 2) * _width_height(filled)
        return boxes, out.intermediate_logits[:, -1].float()

    def sources(self, image: Tensor, label: int, region: Tensor | None = None) -> Sources:
        """As every detector: the queries."""
        boxes, logits = self._queries(*self(image))
        return Sources(boxes, logits[..., label], logits[..., label].sigmoid())


def relative_targets(truth: Truth, image: Tensor) -> list[dict[str, Tensor]]:
    """What transformers wants of each image: `class_labels` int64 (n,), and `boxes` float32 (n, 4), center and size.

    Args:
        truth: the annotations.
        image: (B, C, H, W), the canvas whose fractions the boxes are counted in.
    """
    targets = []
    for boxes, labels, learned in zip(truth.boxes, truth.labels, truth.learned, strict=True):
        corners = boxes[learned] / _width_height(image)
        targets.append(
            {"class_labels": labels[learned], "boxes": torch.cat([centers_of(corners), sides_of(corners)], 1)}
        )
    return targets


def _width_height(image: Tensor) -> Tensor:
    """Width, height, width, height of images (B, C, H, W): float32 (4,)."""
    return image.new_tensor([image.shape[3], image.shape[2]]).repeat(2).float()


def build_rtdetr(
    backbone: BackboneArguments,
    num_classes: int,
    arguments: RTDETRArguments = RTDETRArguments(),
    class_weights: Sequence[float] | None = None,
) -> RTDETR:
    """RT-DETR on any net, with maps of stride 8, 16 and 32; or a whole model of transformers.

    Raises:
        ImportError: without the package transformers.
        UserError: as `tasks.pyramid.create_pyramid`; an argument that makes no sense, by its key; class weights, which
            this family has none of; weights that cannot be loaded.
    """
    import_transformers("model.detector, 'rtdetr',")
    from transformers import RTDetrConfig, RTDetrForObjectDetection, RTDetrResNetConfig

    if class_weights is not None:
        raise UserError("model.class_weights is set, but rtdetr has none: leave it out, or take yolo or fcos.")
    if arguments.transformers is not None:
        return _whole_model(backbone, num_classes, arguments, arguments.transformers)
    pyramid = backbone.detection_pyramid(8, arguments.strides)
    if backbone.image_size is not None:
        _check_queries(arguments.queries, backbone.image_size, pyramid.strides)
    width, levels = arguments.width, len(pyramid.strides)
    config = RTDetrConfig(
        # The smallest that it takes: it is dropped at once.
        backbone_config=RTDetrResNetConfig(
            embedding_size=8,
            hidden_sizes=[8] * 4,
            depths=[1] * 4,
            layer_type="basic",
            out_features=[f"stage{i}" for i in range(4 - min(levels, 3) + 1, 5)],
        ),
        num_labels=num_classes,
        encoder_hidden_dim=width,
        d_model=width,
        encoder_in_channels=[width] * levels,
        decoder_in_channels=[width] * levels,
        num_feature_levels=levels,
        feat_strides=list(pyramid.strides),
        encode_proj_layers=[levels - 1],
        encoder_layers=arguments.encoder_layers,
        encoder_attention_heads=arguments.heads,
        encoder_ffn_dim=arguments.ffn_width,
        decoder_layers=arguments.decoder_layers,
        decoder_attention_heads=arguments.heads,
        decoder_ffn_dim=arguments.ffn_width,
        num_queries=arguments.queries,
        num_denoising=arguments.denoising,
    )
    lateral = nn.ModuleList(
        nn.Sequential(nn.Conv2d(count, width, 1, bias=False), nn.BatchNorm2d(width)) for count in pyramid.channels
    )
    return RTDETR(pyramid, lateral, RTDetrForObjectDetection(config))


def _whole_model(
    backbone: BackboneArguments, num_classes: int, arguments: RTDETRArguments, values: dict[str, Any]
) -> RTDETR:
    """A pretrained model with its own backbone; of the arguments it takes ``queries`` and ``denoising``."""
    for key, value, default in (
        ("in_chans", backbone.in_chans, 3),
        ("backbone_args", backbone.backbone_args or {}, {}),
        ("drop_path_rate", backbone.drop_path_rate, 0.0),
        ("grad_checkpointing", backbone.grad_checkpointing, False),
    ):
        refuse_set(f"model.{key}", value, default)
    changed = {f.name: getattr(arguments, f.name) for f in fields(arguments) if getattr(arguments, f.name) != f.default}
    changes: dict[str, Any] = {"anchor_image_size": None, "eval_size": None}  # else other sizes could not be evaluated
    changes["initializer_bias_prior_prob"] = 0.01  # of a new head, as in the paper's code
    for key in changed.keys() - {"transformers"}:
        if key not in ("queries", "denoising"):
            refuse_set(f"model.detector_args.{key}", changed[key], None)
        changes[f"num_{key}"] = changed[key]
    config = configuration(values, num_classes, **changes)
    for part in (config, config.backbone_config):  # never weights of the backbone alone
        if hasattr(part, "use_pretrained_backbone"):
            part.use_pretrained_backbone = False
    if backbone.image_size is not None:
        _check_queries(config.num_queries, backbone.image_size, config.feat_strides)
    detr: Any
    detr, line = make_whole_model("AutoModelForObjectDetection", backbone.pretrained, config)
    view = description(backbone.pretrained, [0.0] * 3, [1.0] * 3, line)
    return RTDETR(WholeBackbone(detr.model.backbone, config.feat_strides, view), detr.model.encoder_input_proj, detr)


def _check_queries(queries: int, image_size: tuple[int, int], strides: Sequence[int]) -> None:
    """Each query starts from a cell of the maps."""
    height, width = image_size
    cells = sum(-(-height // stride) * -(-width // stride) for stride in strides)
    if cells < queries:
        raise UserError(
            f"model.detector_args.queries is {queries}, but the maps of a canvas of {height} x {width} have only"
            f" {cells} cells: lower it, or raise data.image_size."
        )


FAMILY = Family(RTDETRArguments, build_rtdetr)
