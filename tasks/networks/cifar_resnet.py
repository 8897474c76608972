"""ResNets for small pictures (He et al. 2016, https://arxiv.org/abs/1512.03385): 3x3 stem of stride 1, no max-pooling.

`cifar_resnet18` is ImageNet's ResNet-18 (widths 64 to 512) with that stem, as in
https://github.com/kuangliu/pytorch-cifar: 11.2 M parameters. `cifar_resnet{20,26,32,38}` are the paper's CIFAR nets
of 6n + 2 layers (widths 16, 32, 64): 0.27, 0.37, 0.47 and 0.57 M. Two deviations from the paper: a change of width
goes through a 1x1 projection (its option B) where the paper's CIFAR nets pad with zeros (option A, which has no
parameters), and the last norm of each block starts at zero (Goyal et al. 2017, https://arxiv.org/abs/1706.02677), as
in timm.
"""

from __future__ import annotations

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock, ResNet
from torch import nn

NAMES = ("cifar_resnet18", "cifar_resnet20", "cifar_resnet26", "cifar_resnet32", "cifar_resnet38")
CONFIG: dict[str, Any] = {
    "num_classes": 10,
    "input_size": (3, 32, 32),
    "pool_size": (4, 4),
    "crop_pct": 1.0,
    "mean": (0.4914, 0.4822, 0.4465),
    "std": (0.2470, 0.2435, 0.2616),
    "first_conv": "conv1",
    "classifier": "fc",
}
# timm looks this name up in the module that registers a model.
default_cfgs = generate_default_cfgs({name: CONFIG for name in NAMES})


class CifarResNet(ResNet):  # type: ignore[misc]  # timm is untyped
    """timm's ResNet of basic blocks with the small-picture stem; images of any size from 8 x 8.

    Maps (stride, channels): stem 1, `layer1` 1, `layer2` 2, `layer3` 4 and, with four widths, `layer4` 8.
    """

    def __init__(
        self,
        layers: tuple[int, ...],
        channels: tuple[int, ...],
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        zero_init_last: bool = True,
    ) -> None:
        """Build the net.

        Args:
            layers: number of blocks of each stage, three or four stages.
            channels: width of each stage.
            num_classes: number of outputs; 0 gives the pooled features.
            in_chans: number of input channels.
            global_pool: timm's name of the pooling before the classifier.
            drop_rate: dropout before the classifier.
            drop_path_rate: stochastic depth of the last block, growing linearly from 0 in the first.
            zero_init_last: start each block's last norm at zero.
        """
        # timm fixes the stem's width at 64 unless the stem is "deep" (then 2 * stem_width); the stem is replaced below.
        super().__init__(
            BasicBlock,
            layers,
            channels=channels,
            stem_type="deep",
            stem_width=channels[0] // 2,
            num_classes=num_classes,
            in_chans=in_chans,
            global_pool=global_pool,
            drop_rate=drop_rate,
            drop_path_rate=drop_path_rate,
            zero_init_last=zero_init_last,
        )
        self.conv1 = nn.Conv2d(in_chans, channels[0], 3, padding=1, bias=False)
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
        self.maxpool = nn.Identity()
        if len(layers) == 3:
            self.layer4 = nn.Sequential()  # timm's forward names four stages
        self.feature_info: list[dict[str, Any]] = [
            {**info, "reduction": max(1, info["reduction"] // 4)} for info in self.feature_info
        ]


def _create(
    name: str, layers: tuple[int, ...], channels: tuple[int, ...], pretrained: bool, **kwargs: Any
) -> nn.Module:
    model: nn.Module = build_model_with_cfg(
        CifarResNet,
        name,
        pretrained,
        layers=layers,
        channels=channels,
        feature_cfg={"out_indices": tuple(range(len(layers) + 1))},
        **kwargs,
    )
    return model


def _create_thin(depth: int, pretrained: bool, **kwargs: Any) -> nn.Module:
    return _create(f"cifar_resnet{depth}", ((depth - 2) // 6,) * 3, (16, 32, 64), pretrained, **kwargs)


# `**kwargs` is timm's interface: `create_model` passes arguments of its own (pretrained_cfg_overlay, cache_dir, ...).
@register_model  # type: ignore[untyped-decorator]
def cifar_resnet18(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-18 with a 3x3 stride-1 stem, widths 64 to 512."""
    return _create("cifar_resnet18", (2, 2, 2, 2), (64, 128, 256, 512), pretrained, **kwargs)


@register_model  # type: ignore[untyped-decorator]
def cifar_resnet20(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """CIFAR ResNet of 20 layers, widths 16, 32, 64."""
    return _create_thin(20, pretrained, **kwargs)


@register_model  # type: ignore[untyped-decorator]
def cifar_resnet26(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """CIFAR ResNet of 26 layers, widths 16, 32, 64."""
    return _create_thin(26, pretrained, **kwargs)


@register_model  # type: ignore[untyped-decorator]
def cifar_resnet32(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """CIFAR ResNet of 32 layers, widths 16, 32, 64."""
    return _create_thin(32, pretrained, **kwargs)


@register_model  # type: ignore[untyped-decorator]
def cifar_resnet38(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """CIFAR ResNet of 38 layers, widths 16, 32, 64."""
    return _create_thin(38, pretrained, **kwargs)
