"""The first stage's regions in tensors of one shape for all images, for an export."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torchvision.models.detection.rpn import RegionProposalNetwork, concat_box_prediction_layers
from torchvision.ops import clip_boxes_to_image

from tasks.detection.detectors.selection import least, rows_of, unsuppressed


def propose_in_tensors(
    rpn: RegionProposalNetwork, dense: Mapping[str, list[Tensor]], levels: list[Tensor], size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """As torchvision's `filter_proposals`.

    Args:
        rpn: in evaluation mode.
        dense: `objectness` and `offsets` of each map, as from `FasterRCNN.forward`.
        levels: anchors float32 (A_i, 4) of each map.
        size: height and width of the canvas.

    Returns:
        Regions float32 (B, P, 4), the best first, and which of them are there, bool (B, P).
    """
    parts = []
    for i, (anchors, objectness, offsets) in enumerate(zip(levels, dense["objectness"], dense["offsets"], strict=True)):
        scores, of_anchors = concat_box_prediction_layers([objectness], [offsets])
        batch = objectness.shape[0]
        scores, of_anchors = scores.float().view(batch, -1), of_anchors.float().view(batch, -1, 4)
        best, places = scores.topk(least(rpn.pre_nms_top_n(), scores.shape[1]), 1)
        chosen, of_chosen = rows_of(of_anchors, places), anchors[places]
        boxes = rpn.box_coder.decode_single(chosen.flatten(0, 1), of_chosen.flatten(0, 1)).view_as(chosen)
        parts.append((boxes, best.sigmoid(), torch.full_like(places, i)))
    boxes, scores, level = (torch.cat(part, 1) for part in zip(*parts, strict=True))
    boxes = clip_boxes_to_image(boxes, size)
    there = ((boxes[..., 2:] - boxes[..., :2]) >= rpn.min_size).all(2) & (scores >= rpn.score_thresh)
    there = there & unsuppressed(boxes, scores, level, there, rpn.nms_thresh, len(levels))
    places = scores.masked_fill(~there, -1.0).topk(least(rpn.post_nms_top_n(), scores.shape[1]), 1).indices
    return rows_of(boxes, places), there.gather(1, places)
