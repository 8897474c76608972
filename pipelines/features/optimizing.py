"""Pictures that make a unit, a channel or a class as large as they can, and DeepDream.

The method is that of Olah, Mordvintsev and Schubert, "Feature Visualization", Distill 2017,
https://distill.pub/2017/feature-visualization/: the picture's Fourier coefficients are learned, scaled so that all
frequencies change at one pace, in colors that are as independent as those of photographs, and each step sees the
picture moved, turned and resized a little. The numbers are those of lucid (https://github.com/tensorflow/lucid,
Apache-2.0).
DeepDream: Mordvintsev, Olah and Tyka 2015,
https://research.google/blog/inceptionism-going-deeper-into-neural-networks/.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipelines.features.clock import Clock
from tasks.base import Task
from tasks.flops import predicting
from tasks.maps import Map, run_to

#: Square root of the covariance of the colors of ImageNet's pixels; lucid's.
COLORS = ((0.26, 0.09, 0.02), (0.27, 0.00, -0.05), (0.27, -0.09, 0.03))
STARTS = 4  # noises, of which the best one is taken
WAKING = 16  # first steps, in which the gradient passes all ReLUs if a unit is 0
NOISE = 0.01  # deviation of the coefficients at the beginning
RATE = 0.05  # Adam's
SHIFT, TURN, ZOOM = 8, 10.0, 0.1  # pixels, degrees, fraction
OCTAVE = 1.4  # DeepDream's sizes, each this times the one before
STRENGTH = 0.008  # of a DeepDream's step, in parts of white

#: Images float (B, C, H, W) in [0, 1] to what is to grow, (B,).
Objective = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Grown:
    """Pictures that were grown.

    Attributes:
        pictures: float32 (N, C, H, W) in [0, 1], on the CPU.
        before: What was to grow, at the beginning, (N,).
        after: At the end, without movement, (N,).
        steps: Done; fewer than asked for if the time was over.
    """

    pictures: Tensor
    before: list[float]
    after: list[float]
    steps: int


def of_channels(task: Task, one: Map, channels: Sequence[int], neuron: bool = False) -> Objective:
    """Channel ``channels[i]`` of image i: its mean over the map, or with ``neuron`` the unit in the middle.

    Args:
        task: Its network is built.
        one: The map.
        channels: As many as there will be images.
        neuron: The unit in the middle only.
    """
    chosen = torch.tensor(list(channels))

    def objective(image: Tensor) -> Tensor:
        (output,) = run_to(task, [one], image)
        mine = output[torch.arange(len(image)), chosen.to(image.device)]
        middle: Tensor = mine[:, mine.shape[1] // 2, mine.shape[2] // 2]
        mean: Tensor = mine.mean((1, 2))
        return middle if neuron else mean

    return objective


def grow(
    task: Task,
    objective: Objective,
    count: int,
    size: tuple[int, int],
    steps: int,
    seed: int,
    clock: Clock,
    shift: int = SHIFT,
) -> Grown:
    """Learn pictures that make an objective large.

    Args:
        task: Its network is built.
        objective: What is to grow.
        count: Pictures, N.
        size: Their height and width.
        steps: Of Adam.
        seed: The same pictures come out for the same seed.
        clock: No further step is begun once it is over.
        shift: How far a step's picture is moved at most, in pixels; less in small pictures.
    """
    device, channels = task.mean.device, int(task.in_chans or 3)
    generator = torch.Generator().manual_seed(seed)
    with predicting(task):
        spectrum = _start(objective, count, channels, size, generator, device)
        before = objective(_picture(spectrum, size))
        spectrum.requires_grad_()
        optimizer = torch.optim.Adam([spectrum], lr=RATE)
        done = 0
        is_dead = bool((before == 0).any())
        while done < steps and not clock.over:
            waking = _through_relus(task) if is_dead and done < WAKING else nullcontext()
            with waking, torch.enable_grad():
                value = objective(_moved(_picture(spectrum, size), generator, shift))
                (spectrum.grad,) = torch.autograd.grad(-value.sum(), spectrum)
            optimizer.step()
            done += 1
        pictures = _picture(spectrum, size)
        after = objective(pictures)
    return Grown(pictures.float().cpu(), before.tolist(), after.tolist(), done)


@contextmanager
def _through_relus(task: Task) -> Iterator[None]:
    """Inside it, gradients pass ReLUs whose output is 0, too, as in lucid: a unit that is 0 would learn nothing."""

    def remember(module: Any, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        module.seen = given[0]
        return (given[0].clone(), *given[1:])  # the module may work in place

    def pass_on(module: Any, _: Any, output: Tensor) -> Tensor:
        seen = module.__dict__.pop("seen")
        passed: Tensor = output.detach() + seen - seen.detach()
        return passed

    handles = []
    for module in task.network.modules():
        if isinstance(module, nn.ReLU):
            handles += [module.register_forward_pre_hook(remember), module.register_forward_hook(pass_on)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _start(
    objective: Objective, count: int, channels: int, size: tuple[int, int], generator: torch.Generator, device: Any
) -> Tensor:
    """Of a few noises the one with the largest objective for each picture: (N, C, H, W // 2 + 1, 2)."""
    shape = (count, channels, size[0], size[1] // 2 + 1, 2)
    draws = [NOISE * torch.randn(shape, generator=generator).to(device) for _ in range(STARTS)]
    values = torch.stack([objective(_picture(draw, size)) for draw in draws])
    best = values.argmax(0).tolist()
    start: Tensor = torch.stack([draws[which][i] for i, which in enumerate(best)])
    return start


def _picture(spectrum: Tensor, size: tuple[int, int]) -> Tensor:
    """Coefficients (N, C, H, W // 2 + 1, 2) as pictures (N, C, H, W) in [0, 1]."""
    height, width = size
    rows = torch.fft.fftfreq(height, device=spectrum.device)[:, None]
    columns = torch.fft.rfftfreq(width, device=spectrum.device)[None]
    scale = math.sqrt(height * width) / (rows**2 + columns**2).sqrt().clamp_min(1 / max(size))
    waves = torch.view_as_complex((spectrum * scale[..., None]).contiguous())
    pixels = torch.fft.irfft2(waves, s=size) / 4
    if pixels.shape[1] == 3:
        colors = torch.tensor(COLORS, device=pixels.device)
        pixels = torch.einsum("nchw,dc->ndhw", pixels, colors / colors.norm(dim=0).max())
    seen: Tensor = pixels.sigmoid()
    return seen


def _moved(pictures: Tensor, generator: torch.Generator, shift: int) -> Tensor:
    """The pictures moved, turned and resized at random, all alike; their edges are mirrored."""
    height, width = pictures.shape[2:]
    draw = (2 * torch.rand(4, generator=generator) - 1).tolist()
    angle, zoom = math.radians(TURN * draw[0]), 1 + ZOOM * draw[1]
    shift = min(shift, min(height, width) // 16)
    x, y = (2 * round(shift * one) / side for one, side in zip(draw[2:], (width, height), strict=True))
    cos, sin = math.cos(angle) * zoom, math.sin(angle) * zoom
    theta = torch.tensor([[cos, -sin * height / width, x], [sin * width / height, cos, y]], device=pictures.device)
    grid = F.affine_grid(theta.expand(len(pictures), 2, 3), list(pictures.shape), align_corners=False)
    return F.grid_sample(pictures, grid, padding_mode="reflection", align_corners=False)


def dream(task: Task, one: Map, picture: Tensor, octaves: int, steps: int, seed: int, clock: Clock) -> Tensor:
    """Exaggerate in a picture what a layer sees in it: float32 (C, H, W) in [0, 1], on the CPU.

    The mean square of the layer's map grows, from a small size of the picture to its own; at each size what was
    dreamed before is enlarged, and the picture's own details are added.

    Args:
        task: Its network is built.
        one: The layer's map.
        picture: float (C, H, W) in [0, 1].
        octaves: Sizes, each 1.4 times the one before; 1 for a net of one size.
        steps: At each of them.
        seed: Of the movements.
        clock: No further step is begun once it is over.
    """
    device = task.mean.device
    full = picture.to(device)[None]
    generator = torch.Generator().manual_seed(seed)
    sides = [[round(side / OCTAVE**i) for side in full.shape[2:]] for i in reversed(range(octaves))]
    change = torch.zeros_like(full)
    with predicting(task):
        for size in sides:
            base = F.interpolate(full, size, mode="bilinear", antialias=True)
            change = F.interpolate(change, size, mode="bilinear")
            for _ in range(steps):
                if clock.over:
                    break
                change = _dreamed(task, one, base, change, generator)
        change = F.interpolate(change, full.shape[2:], mode="bilinear")
    return (full + change).clamp(0, 1)[0].float().cpu()


def _dreamed(task: Task, one: Map, base: Tensor, change: Tensor, generator: torch.Generator) -> Tensor:
    """The change after a step along the gradient, whose mean size is 1; the picture is rolled at random."""
    y, x = torch.randint(-SHIFT, SHIFT + 1, (2,), generator=generator).tolist()
    with torch.enable_grad():
        seen = (base + change).clamp(0, 1).roll((y, x), (2, 3)).detach().requires_grad_()
        (output,) = run_to(task, [one], seen)
        (gradient,) = torch.autograd.grad(output.square().mean(), seen)
    gradient = gradient.roll((-y, -x), (2, 3))
    return change + STRENGTH * gradient / gradient.abs().mean().clamp_min(1e-12)
