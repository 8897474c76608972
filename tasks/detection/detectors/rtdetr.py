"""RT-DETR (Zhao et al. 2023, https://arxiv.org/abs/2304.08069): transformers' encoder and decoder on a timm pyramid.

A fixed number of queries, each of which becomes one object or none; queries are matched to the true objects one to
one, by the Hungarian method. The package transformers is an extra: ``pip install "vision-pipelines[rtdetr]"``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datamodules.common.errors import UserError
from tasks.detection.detectors.fpn import detection_pyramid
from tasks.detection.detectors.parts import Limits, batch_means, best_boxes, read_targets
from tasks.pyramid import Pyramid


class RTDETR(nn.Module):
    """Normalised float images (B, C, H, W) of any size that the backbone takes to boxes and classes.

    Images whose sides are no multiples of the coarsest stride are filled up at the right and at the bottom, since the
    encoder doubles its maps exactly.

    Attributes:
        backbone: the `Pyramid`; all other parameters are the head's.
        pretrained_cfg: timm's description of the backbone, for `tasks.backbones.normalization`.
    """

    def __init__(self, backbone: Pyramid, config: Any) -> None:
        """Put transformers' RT-DETR of this configuration behind a pyramid."""
        from transformers import RTDetrForObjectDetection

        super().__init__()
        self.backbone = backbone
        self.pretrained_cfg = backbone.pretrained_cfg
        self.lateral = nn.ModuleList(
            nn.Sequential(nn.Conv2d(count, config.encoder_hidden_dim, 1, bias=False), nn.BatchNorm2d(config.d_model))
            for count in backbone.channels
        )
        self.detr = RTDetrForObjectDetection(config)
        # Its own ResNet and the layers behind that, whose work is done above.
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

    def losses(self, image: Tensor, targets: Mapping[str, Tensor], weight: Tensor | None = None) -> dict[str, Tensor]:
        """`loss` and its parts `class_loss`, `l1_loss`, `giou_loss`, each a mean over the images of each image's own.

        The parts are sums over the decoder's layers, the encoder's choice of queries and the denoising queries.

        Args:
            image: float (B, C, H, W), normalised.
            targets: `boxes` float32 (B, M, 4), canvas pixels; `labels` int64 (B, M), -1 where there is no box; M may be
                0. `iscrowd` uint8 (B, M), optional: crowds are not learnt.
            weight: float (B,), scales each image's loss.
        """
        from transformers.loss.loss_rt_detr import RTDetrForObjectDetectionLoss

        image, encoded = self(image)
        truth = read_targets(targets)
        size = image.new_tensor([image.shape[3], image.shape[2]]).repeat(2).float()
        labels = []
        for boxes, classes, learnt in zip(truth.boxes, truth.labels, truth.learnt, strict=True):
            corners = boxes[learnt] / size
            centre, side = (corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]
            labels.append({"class_labels": classes[learnt], "boxes": torch.cat([centre, side], 1)})
        out = self._decode(image, encoded, labels)
        denoising = out.denoising_meta_values if self.training else None
        columns: dict[str, list[Tensor]] = {"class_loss": [], "l1_loss": [], "giou_loss": []}
        for i, label in enumerate(labels):  # one by one, since transformers divides by the batch's number of boxes
            of_image = slice(i, i + 1)
            own = denoising and {**denoising, "dn_positive_idx": denoising["dn_positive_idx"][of_image]}
            _, parts, _ = RTDetrForObjectDetectionLoss(
                out.intermediate_logits[of_image, -1].float(),
                [label],
                image.device,
                out.intermediate_reference_points[of_image, -1].float(),
                self.detr.config,
                out.intermediate_logits[of_image].float(),
                out.intermediate_reference_points[of_image].float(),
                enc_topk_logits=out.enc_topk_logits[of_image].float(),
                enc_topk_bboxes=out.enc_topk_bboxes[of_image].float(),
                denoising_meta_values=own,
            )
            for name, mark in (("class_loss", "loss_vfl"), ("l1_loss", "loss_bbox"), ("giou_loss", "loss_giou")):
                columns[name].append(torch.stack([part for key, part in parts.items() if mark in key]).sum())
        losses = {name: torch.stack(column) for name, column in columns.items()}
        if self.detr.config.num_denoising:  # DDP waits for its gradient, also where a batch has no boxes to noise
            losses["class_loss"] = losses["class_loss"] + 0 * self.detr.model.denoising_class_embed.weight.sum()
        return batch_means(losses, weight)

    def detect(
        self, image: Tensor, *, score_threshold: float, nms_iou: float, max_detections: int
    ) -> list[dict[str, Tensor]]:
        """Boxes of each image, the best first.

        Args:
            image: float (B, C, H, W), normalised.
            score_threshold: scores must be above it.
            nms_iou: of two boxes of a class that overlap more, the lower is dropped. One-to-one matching makes that
                rare; 1 switches it off.
            max_detections: boxes of an image at most.

        Returns:
            B dicts: `boxes` float32 (n, 4), x1 y1 x2 y2 in canvas pixels, clipped to the canvas; `scores` float32 (n,),
            descending; `labels` int64 (n,).
        """
        height, width = image.shape[-2:]
        filled, encoded = self(image)
        out = self._decode(filled, encoded, None)
        scores = out.intermediate_logits[:, -1].float().sigmoid()
        centre, side = out.intermediate_reference_points[:, -1].float().chunk(2, 2)
        size = scores.new_tensor([filled.shape[3], filled.shape[2]]).repeat(2)
        boxes = torch.cat([centre - side / 2, centre + side / 2], 2) * size
        num_classes, limits = scores.shape[2], Limits(score_threshold, nms_iou, max_detections)
        flat = scores.flatten(1)
        best, places = flat.topk(min(max(scores.shape[1], max_detections), flat.shape[1]), 1)
        return [
            best_boxes(of_image[place // num_classes], score, place % num_classes, (height, width), limits)
            for of_image, score, place in zip(boxes, best, places, strict=True)
        ]


def build_rtdetr(
    backbone: str,
    num_classes: int,
    *,
    in_chans: int = 3,
    pretrained: bool | str = False,
    image_size: tuple[int, int] | None = None,
    drop_path_rate: float = 0.0,
    backbone_args: dict[str, Any] | None = None,
    grad_checkpointing: bool = False,
    strides: Sequence[int] | None = None,
    width: int = 256,
    heads: int = 8,
    ffn_width: int = 1024,
    encoder_layers: int = 1,
    decoder_layers: int = 6,
    queries: int = 300,
    denoising: int = 100,
    class_weights: Sequence[float] | None = None,
) -> RTDETR:
    """RT-DETR on any net: maps of stride 8, 16 and 32.

    Args:
        backbone: timm's name, or one of ours.
        num_classes: K, without background.
        in_chans: number of input channels.
        pretrained: True for the hub, or a local file of the backbone's weights.
        image_size: height and width of the images, for nets of fixed size.
        drop_path_rate: stochastic depth in the backbone.
        backbone_args: more arguments of timm's constructor.
        grad_checkpointing: recompute the backbone's activations in the backward pass.
        strides: of the maps; None for 8, 16 and 32, or the nearest that the net has.
        width: channels of encoder and decoder.
        heads: attention heads; they divide the width.
        ffn_width: of the transformer layers' feed-forward nets.
        encoder_layers: transformer layers on the coarsest map.
        decoder_layers: layers of the decoder, each with a loss of its own.
        queries: objects of an image at most; the maps must have as many cells.
        denoising: noised true boxes that are learnt beside the queries in training; 0 for none.
        class_weights: not for this family.

    Raises:
        ImportError: without the package transformers.
        UserError: as `tasks.backbones.create_pyramid`; an argument that makes no sense, by its key.
    """
    try:
        from transformers import RTDetrConfig, RTDetrResNetConfig
    except ImportError as error:
        raise ImportError(
            "model.detector is 'rtdetr', which needs the package transformers: pip install"
            ' "vision-pipelines[rtdetr]", or take another detector, for example yolo.'
        ) from error
    if class_weights is not None:
        raise UserError("model.class_weights is set, but rtdetr has none: leave it out, or take yolo or fcos.")
    for key, value in (("width", width), ("heads", heads), ("queries", queries), ("decoder_layers", decoder_layers)):
        if value < 1:
            raise UserError(f"model.detector_args.{key} is {value}; it must be at least 1.")
    if width % heads:
        raise UserError(f"model.detector_args.width is {width}; it must be a multiple of heads, {heads}.")
    pyramid = detection_pyramid(
        backbone,
        finest=8,
        strides=strides,
        in_chans=in_chans,
        pretrained=pretrained,
        image_size=image_size,
        drop_path_rate=drop_path_rate,
        backbone_args=backbone_args,
        grad_checkpointing=grad_checkpointing,
    )
    levels = len(pyramid.strides)
    if image_size is not None:
        cells = sum(-(-image_size[0] // s) * -(-image_size[1] // s) for s in pyramid.strides)
        if cells < queries:
            raise UserError(
                f"model.detector_args.queries is {queries}, but the maps of a canvas of {image_size[0]} x"
                f" {image_size[1]} have only {cells} cells: lower it, or raise data.image_size."
            )
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
        encoder_layers=encoder_layers,
        encoder_attention_heads=heads,
        encoder_ffn_dim=ffn_width,
        decoder_layers=decoder_layers,
        decoder_attention_heads=heads,
        decoder_ffn_dim=ffn_width,
        num_queries=queries,
        num_denoising=denoising,
    )
    return RTDETR(pyramid, config)
