"""SegFormer (Xie et al. 2021, https://arxiv.org/abs/2105.15203) as a whole model of transformers, with its own encoder.

SMP's `segformer` is its decoder on any net of timm, which has no Mix Transformer; this is the published model, whose
weights lie in a folder or on the hub.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from tasks.segmentation.segmenter import Segmenter
from tasks.whole_models import adopt_whole_model, configuration, description, make_whole_model, refuse_set

STRIDE = 32  # of the deepest map


class SegFormer(nn.Module):
    """Transformers' model: normalized float images (B, 3, H, W) to logits (B, K, H, W).

    The model itself computes a quarter of the size, which is enlarged as transformers' post-processing does.
    """

    def __init__(self, model: nn.Module) -> None:
        """Wrap a ``SegformerForSemanticSegmentation``."""
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Tensor:
        """Logits in the size of the image."""
        logits: Tensor = self.model(pixel_values=image).logits
        return F.interpolate(logits, image.shape[2:], mode="bilinear", align_corners=False)


def whole_segformer(task: Any, num_outputs: int) -> Segmenter | None:
    """The network, where ``model.pretrained`` names such a model, or a checkpoint of one; else None.

    Args:
        task: A segmentation whose architecture is ``segformer``.
        num_outputs: Logits a pixel.

    Raises:
        UserError: No such model, or one of another kind; a setting that would have no effect; weights that cannot be
            loaded.
    """
    adopt_whole_model(task, "decoder_args", "model.architecture: segformer", ("segformer",))
    if "transformers" not in (task.decoder_args or {}):
        return None
    for key, default in (("in_chans", 3), ("backbone_args", {}), ("aux_weight", 0.0)):
        refuse_set(f"model.{key}", getattr(task, key) or default, default)
    refuse_set("model.grad_checkpointing", task.grad_checkpointing, False)
    for key in task.decoder_args.keys() - {"transformers"}:
        refuse_set(f"model.decoder_args.{key}", task.decoder_args[key], None)
    values, pretrained = task.decoder_args["transformers"], task.weights_to_build_with
    changes = {"drop_path_rate": task.drop_path_rate} if task.drop_path_rate else {}
    config = configuration(values, num_outputs, **changes)
    model, line = make_whole_model("AutoModelForSemanticSegmentation", pretrained, config)
    view = description(pretrained, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, line)
    return Segmenter(SegFormer(model), ("segformer", values["model_type"]), "model.segformer.", STRIDE, view)
