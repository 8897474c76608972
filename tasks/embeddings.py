"""One vector an image, from what a trained task's network has learned to see."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from datamodules.common.errors import UserError
from tasks.base import Task
from tasks.classification import Classification
from tasks.detection.task import Detection
from tasks.segmentation.task import Segmentation


def embed(task: Task, image: Tensor) -> Tensor:
    """Embeddings of images: float32 (B, D).

    Of a classification what its last layer sees, of a detection and a segmentation the mean over the picture of the
    backbone's last map.

    Args:
        task: Whose network is built.
        image: uint8 (B, C, H, W), or float in [0, 1].

    Raises:
        UserError: If it is a task of another kind.
    """
    network: Any = task.network
    normalized = task.normalize(image)
    if isinstance(task, Classification):
        features = network.forward_features(normalized)
        embedding: Tensor = network.forward_head(features, pre_logits=True).flatten(1)
    elif isinstance(task, Detection):
        embedding = network.backbone(normalized)[-1].mean((2, 3))
    elif isinstance(task, Segmentation):
        embedding = _deepest_map(network, normalized).mean((2, 3))
    else:
        raise UserError(f"A {type(task).__name__} has no embeddings; classification, detection and segmentation do.")
    return embedding.float()


def _deepest_map(network: Any, image: Tensor) -> Tensor:
    """The last map of a `Segmenter`'s encoder, (B, D, h, w)."""
    encoder = getattr(network.net, "encoder", None)
    if encoder is None:
        encoder = network.net.model.segformer  # transformers' whole model
    elif hasattr(encoder, "features"):
        encoder = encoder.features[-1]  # SegNet runs its encoder layer by layer
    maps: list[Tensor] = []
    handle = encoder.register_forward_hook(lambda _, inputs, output: maps.append(_last_map(output)))
    try:
        network(image)
    finally:
        handle.remove()
    return maps[-1]


def _last_map(output: Any) -> Tensor:
    """The last of an encoder's maps: not the places of a pooling's maxima, nor tokens, nor levels without channels."""
    if hasattr(output, "last_hidden_state"):
        return _last_map(output.last_hidden_state)
    if isinstance(output, Tensor):
        return output
    levels: Sequence[Tensor] = output[0] if isinstance(output[0], list | tuple) else output
    return [x for x in levels if x.is_floating_point() and x.ndim == 4 and x.shape[1]][-1]
