"""LeNet-5 (LeCun et al. 1998, "Gradient-based learning applied to document recognition"), for images of any size.

As in the paper: 5x5 convolutions of 6, 16 and 120 maps, 2x2 average pooling, tanh, 84 hidden units, 61,706 parameters
with ten classes and one channel. Deviations: C3 is connected to all maps of S2, pooling has no trainable
coefficients, the output is linear instead of radial basis functions. The paper's input is 32 x 32: smaller images are
padded with zeros to that (as the paper does with 28 x 28 digits), and the maps of larger ones are average-pooled to
the 5 x 5 that C5 expects.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import nn

SIDE = 32
default_cfgs = generate_default_cfgs(
    {
        "lenet5": {
            "num_classes": 10,
            "input_size": (1, SIDE, SIDE),
            "crop_pct": 1.0,
            "mean": (0.5,),
            "std": (0.5,),
            "first_conv": "c1",
            "classifier": "fc",
        }
    }
)


class LeNet5(nn.Module):
    """LeNet-5 with the methods of a timm net. It has no feature pyramid: its unpadded maps do not keep a stride."""

    def __init__(self, num_classes: int = 10, in_chans: int = 1, drop_rate: float = 0.0, global_pool: str = "") -> None:
        """Build the net.

        Args:
            num_classes: number of outputs; 0 gives the 84 hidden units.
            in_chans: number of input channels.
            drop_rate: dropout before the classifier.
            global_pool: taken because timm passes it; there is nothing to pool after C5.
        """
        super().__init__()
        self.num_classes = num_classes
        self.num_features = 120
        self.head_hidden_size = 84
        self.c1 = nn.Conv2d(in_chans, 6, 5)
        self.c3 = nn.Conv2d(6, 16, 5)
        self.c5 = nn.Conv2d(16, 120, 5)
        self.f6 = nn.Linear(120, 84)
        self.head_drop = nn.Dropout(drop_rate)
        self.fc: nn.Module = nn.Linear(84, num_classes) if num_classes > 0 else nn.Identity()

    def get_classifier(self) -> nn.Module:
        """The last layer."""
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the last layer by a new one of `num_classes` outputs (0: none)."""
        self.num_classes = num_classes
        new = nn.Linear(84, num_classes) if num_classes > 0 else nn.Identity()
        self.fc = new.to(self.f6.weight)

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) images to (B, 120, 1, 1)."""
        height, width = max(0, SIDE - x.shape[-2]), max(0, SIDE - x.shape[-1])
        x = F.pad(x, (width // 2, width - width // 2, height // 2, height - height // 2))
        x = F.avg_pool2d(torch.tanh(self.c1(x)), 2)
        x = F.avg_pool2d(torch.tanh(self.c3(x)), 2)
        return torch.tanh(self.c5(F.adaptive_avg_pool2d(x, 5)))

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """(B, 120, 1, 1) to (B, num_classes), or to the (B, 84) hidden units with `pre_logits`."""
        x = self.head_drop(torch.tanh(self.f6(x.flatten(1))))
        if pre_logits:
            return x
        logits: torch.Tensor = self.fc(x)
        return logits

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) images to (B, num_classes) logits."""
        return self.forward_head(self.forward_features(x))


@register_model  # type: ignore[untyped-decorator]
def lenet5(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """LeNet-5; `**kwargs` is timm's interface."""
    model: nn.Module = build_model_with_cfg(LeNet5, "lenet5", pretrained, **kwargs)
    return model
