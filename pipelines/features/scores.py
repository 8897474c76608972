"""What a network says of each class, as one number that has a gradient; and which channels it says it by."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from datamodules.common.errors import UserError
from tasks.base import Task
from tasks.classification import Classification
from tasks.detection.detectors.protocol import Detector
from tasks.detection.task import Detection
from tasks.flops import predicting
from tasks.maps import Map, tapped
from tasks.segmentation.task import Segmentation

LEAST = 1e-6  # probability of a class of which there is no box


def class_scores(task: Task, image: Tensor) -> Tensor:
    """A score of each class: float (B, K).

    Of a classification the logits; of a segmentation the mean logit over the pixels; of a detection the logarithm of
    the class's best box.

    Args:
        task: Its network is built.
        image: uint8 (B, C, H, W), or float in [0, 1].

    Raises:
        UserError: If it is a task of another kind.
    """
    if isinstance(task, Classification):
        logits: Tensor = task(image)
        return logits.float()
    if isinstance(task, Segmentation):
        output = task(image)
        means = (output[0] if isinstance(output, tuple) else output).float().mean((2, 3))
        return torch.cat([-means, means], 1) if means.shape[1] == 1 else means
    if isinstance(task, Detection):
        found = Detector.in_tensors(task.network, task.normalize(image), task.limits)  # without masks, which take long
        scores, labels = found["scores"].float(), found["labels"]
        of_class = [scores.where(labels == k, scores.new_zeros(())) for k in range(int(task.num_classes or 0))]
        best = torch.stack([torch.cat([one, one.new_zeros(len(one), 1)], 1).amax(1) for one in of_class], 1)
        return best.clamp_min(LEAST).log()
    raise UserError(f"A {type(task).__name__} has no class scores; classification, detection and segmentation do.")


def scores_of(task: Task, image: Tensor, classes: Sequence[int]) -> Tensor:
    """The score of class ``classes[i]`` in image i: float (B,).

    As ``class_scores``; but of a detection the largest logit of all that may make a box of the class, however unsure.

    Args:
        task: Its network is built.
        image: uint8 (B, C, H, W), or float in [0, 1].
        classes: B numbers.
    """
    if not isinstance(task, Detection):
        scores = class_scores(task, image)
        return scores[torch.arange(len(scores)), torch.tensor(list(classes), device=scores.device)]
    pairs = zip(task.normalize(image).split(1), classes, strict=True)
    return torch.cat([task.network.sources(one, label).logits.amax(1) for one, label in pairs])


def relevance(task: Task, maps: Sequence[Map], images: Iterable[Tensor], most: int) -> list[Tensor]:
    """How much the best class's score of each image owes to each channel: of each map float32 (C,), on the CPU.

    Gradient times activation (Shrikumar et al. 2016, https://arxiv.org/abs/1605.01713), summed over the map, its
    absolute value averaged over the images.

    Args:
        task: Its network is built.
        maps: Of ``tasks.maps.list_maps``.
        images: Batches, uint8 (B, C, H, W).
        most: Images that are looked at.
    """
    sums, count = [torch.zeros(one.channels) for one in maps], 0
    for batch in images:
        image = batch[: most - count]
        pixels = task.normalize(image).mul(task.std).add(task.mean).requires_grad_()  # floats in [0, 1]
        size = (image.shape[2], image.shape[3])
        with predicting(task), torch.enable_grad(), tapped(task, maps) as found:
            score = class_scores(task, pixels).amax(1).sum()
            outputs = [found[one.name] for one in maps]
            gradients = torch.autograd.grad(score, outputs, allow_unused=True)
        for total, one, output, gradient in zip(sums, maps, outputs, gradients, strict=True):
            if gradient is not None:
                product = (output.detach() * gradient).float()
                # Class tokens, too: often it is they alone that the head looks at.
                by_image = product.sum(1) if one.layout == "tokens" else one.read(product, size).sum((2, 3))
                total += by_image.abs().sum(0).cpu()
        count += len(image)
        if count >= most:
            break
    return [total / max(1, count) for total in sums]
