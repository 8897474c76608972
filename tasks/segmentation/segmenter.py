"""The parts of a segmentation network that are the same for all architectures: encoder, padding and cropping."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datamodules.common.errors import UserError
from tasks.pyramid import Pyramid


def round_up(side: int, multiple: int) -> int:
    """The next multiple that is not smaller."""
    # Not -(-side // multiple): in ONNX the quotient of a negative number is rounded towards zero.
    return (side + multiple - 1) // multiple * multiple


class Encoder(nn.Module):
    """A pyramid with SMP's interface: an image to a list of itself and its maps of stride 2, 4, ... 2 ** depth.

    Maps that the net lacks (ConvNeXt, Swin and ViT have none of stride 2) or the architecture does not use have no
    channels, as in SMP's own encoders.
    """

    def __init__(self, pyramid: Pyramid, levels: list[int], depth: int, in_chans: int) -> None:
        """Wrap `pyramid`, whose maps are those of `levels` (1 to `depth`); strides are less where it is dilated."""
        super().__init__()
        self.pyramid = pyramid
        self.levels = levels
        channels = dict(zip(levels, pyramid.channels, strict=True))
        self.out_channels = [in_chans, *(channels.get(level, 0) for level in range(1, depth + 1))]
        self.output_stride = pyramid.strides[-1]

    def forward(self, image: Tensor) -> list[Tensor]:
        """(B, C, H, W), H and W multiples of the last stride, to `depth` + 1 maps."""
        batch, _, height, width = image.shape
        features = [image.new_empty(batch, 0, height >> i, width >> i) for i in range(len(self.out_channels))]
        features[0] = image
        for level, features_of_level in zip(self.levels, self.pyramid(image), strict=True):
            features[level] = features_of_level
        return features

    def set_in_channels(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: SMP calls it, but the pyramid was built with the right number."""

    def make_dilated(self, output_stride: int) -> None:
        """Nothing: SMP calls it, but the pyramid was built with the right stride."""


class Segmenter(nn.Module):
    """A network that pads: normalized float images (B, C, H, W) of any size to logits (B, num_outputs, H, W).

    Images are padded with zeros (the mean color) at the bottom and on the right to what the network takes, and the
    logits are cropped. With an auxiliary head the result in training is a pair: logits, and the head's logits
    (B, aux_classes). Raises ValueError for images larger than a net of fixed size takes, and in training for one image
    where a batch norm has only one value a channel.

    Attributes:
        stride_multiple: heights and widths are padded to multiples of it.
        fixed_size: height and width that all images are padded to, where the encoder takes no other.
        pretrained_cfg: timm's description of the encoder, for `tasks.backbones.normalization`.
    """

    def __init__(self, net: nn.Module, names: tuple[str, str], prefix: str, multiple: int, pretrained_cfg: Any) -> None:
        """Wrap `net`, called `names` (architecture, backbone); its encoder's parameters begin with `prefix`."""
        super().__init__()
        self.net = net
        self.names = names
        self.encoder_prefix = f"net.{prefix}"
        self.stride_multiple = multiple
        # PAN's pyramid attention halves the deepest map three times.
        self.least_side = 8 * multiple if names[0] == "pan" else multiple
        self.fixed_size: tuple[int, int] | None = None
        self.pretrained_cfg = pretrained_cfg

    def padded_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width that an image is padded to."""
        if self.fixed_size:
            if height > self.fixed_size[0] or width > self.fixed_size[1]:
                size = " x ".join(str(side) for side in self.fixed_size)
                raise UserError(
                    f"model.backbone: '{self.names[1]}' was built for images of {size} pixels and takes no larger ones,"
                    f" but this one has {height} x {width}. Evaluate by tiles of that size, or take a net for all sizes"
                    " (resnet18, convnext_tiny, vit_small_patch16_224)."
                )
            return self.fixed_size
        return self._padded(height), self._padded(width)

    def _padded(self, side: int) -> int:
        padded = round_up(side, self.stride_multiple)
        if self.least_side == self.stride_multiple:  # a `max` that decides nothing would stay in an exported graph
            return padded
        # `max` would be decided while an export with open sizes is traced.
        return torch.sym_max(self.least_side, padded)  # type: ignore[return-value]

    def forward(self, image: Tensor) -> Any:
        """Logits of the class of each pixel; in training with an auxiliary head also those of the whole image."""
        height, width = image.shape[-2:]
        below, beside = (a - b for a, b in zip(self.padded_size(height, width), (height, width), strict=True))
        # An export with open sizes always pads: it would keep the decision for the image that it is traced with.
        if torch.compiler.is_exporting() or below or beside:
            image = F.pad(image, (0, beside, 0, below))
        try:
            result = self.net(image)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise UserError(
                f"model.architecture: '{self.names[0]}' reduces an image to one value a channel, and its batch norm"
                f" cannot train on one image ({height} x {width} pixels); set data.batch_size to 2 or more, or take"
                " larger crops or another architecture (fpn)."
            ) from error
        logits, aux = result if isinstance(result, tuple) else (result, None)
        logits = logits[..., :height, :width]
        return (logits, aux) if self.training and aux is not None else logits


def encoder_parameter_names(module: nn.Module) -> set[str]:
    """Names of the parameters of a `Segmenter`'s encoder: those that pretrained weights are for."""
    prefix = str(module.encoder_prefix)
    return {name for name, _ in module.named_parameters() if name.startswith(prefix)}
