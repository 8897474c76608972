"""SegNet (Badrinarayanan et al. 2017, https://arxiv.org/abs/1511.00561): max-unpooling with the encoder's own indices.

The encoder is the convolutional part of a VGG; the decoder is its mirror image. Each pooling remembers where its
maxima were; the decoder puts values back to those places, with zeros elsewhere, and convolves. As in the authors'
published model for VGG-16 each convolution of the decoder is followed by batch norm and ReLU, but for the last, which
gives the logits. Two deviations: the encoder has batch norm only where the VGG has (take a `*_bn`), and the
convolutions of the decoder that are followed by batch norm have no bias.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


def _mirror(convolutions: list[nn.Conv2d], num_outputs: int | None) -> nn.Sequential:
    """One stage of the decoder: the stage's convolutions backwards; the last gives `num_outputs` logits, if set."""
    layers: list[nn.Module] = []
    for index, convolution in reversed(list(enumerate(convolutions))):
        if index == 0 and num_outputs is not None:
            last = nn.Conv2d(convolution.out_channels, num_outputs, 3, padding=1)
            nn.init.xavier_uniform_(last.weight)
            nn.init.zeros_(last.bias)  # type: ignore[arg-type]
            layers.append(last)
            continue
        mirrored = nn.Conv2d(convolution.out_channels, convolution.in_channels, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(mirrored.weight, nonlinearity="relu")
        layers += [mirrored, nn.BatchNorm2d(convolution.in_channels), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


class SegNet(nn.Module):
    """Normalized images (B, C, H, W), of 32 x 32 pixels or more, to logits (B, num_outputs, H, W).

    Attributes:
        encoder: the VGG; its `features` are used.
        decoder: one stage for each pooling, the deepest first.
    """

    def __init__(self, encoder: nn.Module, num_outputs: int) -> None:
        """Build the decoder for a VGG of timm, whose poolings are changed so that they give their indices."""
        super().__init__()
        self.encoder = encoder
        stages: list[list[nn.Conv2d]] = [[]]
        for layer in encoder.features:  # type: ignore[union-attr]
            if isinstance(layer, nn.Conv2d):
                stages[-1].append(layer)
            elif isinstance(layer, nn.MaxPool2d):
                layer.return_indices = True
                stages.append([])
        pooled = stages[:-1]
        self.decoder = nn.ModuleList(
            [_mirror(stage, None if place else num_outputs) for place, stage in reversed(list(enumerate(pooled)))]
        )

    def forward(self, x: Tensor) -> Tensor:
        """Logits of each pixel."""
        pooled = []
        for layer in self.encoder.features:  # type: ignore[union-attr]
            if isinstance(layer, nn.MaxPool2d):
                size = x.shape[-2:]
                x, indices = layer(x)
                pooled.append((indices, size))
            else:
                x = layer(x)
        for stage, (indices, size) in zip(self.decoder, reversed(pooled), strict=True):
            x = stage(F.max_unpool2d(x, indices, [2, 2], output_size=size))
        return x
