"""Attribution by gradients and by occlusion: pure functions of a score and an image.

A score takes images float32 (B, C, H, W), values in [0, 1], and gives one number an image, (B,). All functions return
float32 (C, H, W): what each value of the image does for the score.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Score: TypeAlias = Callable[[Tensor], Tensor]
CHUNK = 8  # images in one forward pass; more are slower on a CPU, whose memory they fill


def gradient(score: Score, image: Tensor) -> Tensor:
    """The gradient of the score (Simonyan et al. 2013, https://arxiv.org/abs/1312.6034), signed.

    Args:
        score: See the module.
        image: float32 (1, C, H, W).
    """
    return _gradients(score, image)[0]


def integrated_gradients(score: Score, image: Tensor, baseline: Tensor, steps: int = 32) -> Tensor:
    """Integrated gradients (Sundararajan et al. 2017, https://arxiv.org/abs/1703.01365), by Gauss-Legendre quadrature.

    Their sum is the difference of the scores of image and baseline, but for the error of the quadrature.

    Args:
        score: See the module.
        image: float32 (1, C, H, W).
        baseline: The same shape: an image that says nothing.
        steps: Points on the straight line between both.
    """
    places, weights = (torch.from_numpy(x).float() for x in np.polynomial.legendre.leggauss(steps))
    total = torch.zeros_like(image[0])
    for part in range(0, steps, CHUNK):
        alpha = ((places[part : part + CHUNK] + 1) / 2).to(image).view(-1, 1, 1, 1)
        weight = (weights[part : part + CHUNK] / 2).to(image).view(-1, 1, 1, 1)
        total += (weight * _gradients(score, baseline + alpha * (image - baseline))).sum(0)
    return total * (image - baseline)[0]


def smoothgrad(score: Score, image: Tensor, noise: float = 0.1, samples: int = 16, seed: int = 0) -> Tensor:
    """The mean gradient of noisy copies of the image (Smilkov et al. 2017, https://arxiv.org/abs/1706.03825), signed.

    Args:
        score: See the module.
        image: float32 (1, C, H, W).
        noise: Standard deviation of the normal noise, in parts of the range from black to white.
        samples: Copies.
        seed: Of the noise.
    """
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros_like(image[0])
    for part in range(0, samples, CHUNK):
        size = (min(CHUNK, samples - part), *image.shape[1:])
        noisy = image + noise * torch.randn(size, generator=generator).to(image)
        total += _gradients(score, noisy).sum(0)
    return total / samples


def occlusion(score: Score, image: Tensor, baseline: Tensor, window: int, stride: int) -> Tensor:
    """By how much the score falls where a window is hidden (Zeiler and Fergus 2013, https://arxiv.org/abs/1311.2901).

    A pixel gets the mean over the windows that hide it.

    Args:
        score: See the module.
        image: float32 (1, C, H, W).
        baseline: The same shape: what a window is filled with.
        window: Its side in pixels; at most those of the image.
        stride: From one window to the next, at most ``window``.
    """
    size = image.shape[-2:]
    tops, lefts = (_starts(side, window, stride) for side in size)
    masks = image.new_zeros(len(tops) * len(lefts), 1, *size)
    for number, (top, left) in enumerate((top, left) for top in tops for left in lefts):
        masks[number, :, top : top + window, left : left + window] = 1
    with torch.no_grad():
        before = score(image)
        falls = [before - score(image * (1 - part) + baseline * part) for part in masks.split(CHUNK)]
    fall = torch.cat(falls).view(-1, 1, 1, 1)
    return ((fall * masks).sum(0) / masks.sum(0)).expand(image.shape[1:]).clone()


def _starts(side: int, window: int, stride: int) -> list[int]:
    """Where windows begin; the last one ends with the image."""
    last = max(0, side - window)
    return [*range(0, last, stride), last]


def _gradients(score: Score, images: Tensor) -> Tensor:
    """Of each image its score's gradient, (B, C, H, W); images do not depend on one another."""
    with torch.enable_grad():
        leaf = images.detach().requires_grad_()
        (found,) = torch.autograd.grad(score(leaf).sum(), leaf)
    return found.detach()


# Fillings.


def blurred(image: Tensor) -> Tensor:
    """An image (1, C, H, W) without detail: means over a window of a quarter of its shorter side, twice."""
    side = max(3, min(image.shape[-2:]) // 4 // 2 * 2 + 1)
    for _ in range(2):
        padded = F.pad(image, [side // 2] * 4, mode="replicate")
        image = F.avg_pool2d(padded, side, stride=1)
    return image


def heat_of(attribution: Tensor, *, signed: bool) -> Tensor:
    """The channels of an attribution (C, H, W) as one map (H, W): their sum, or the sum of their absolute values."""
    return attribution.sum(0) if signed else attribution.abs().sum(0)
