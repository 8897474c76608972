"""Layers and receptive fields against hand-computed nets, gradients and published figures."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from tasks.classification import Classification
from tasks.layers import list_layers, saved_bytes
from tasks.receptive_field import Axis, FollowFields, field_of

#: Size (height and width), millions of parameters, billions of multiply-accumulates: timm's own list,
#: https://github.com/huggingface/pytorch-image-models/blob/main/results/benchmark-infer-amp-nchw-pt240-cu124-rtx4090.csv
PUBLISHED = {
    "resnet34": (224, 21.8, 3.67),
    "resnet50": (224, 25.56, 4.11),
    "resnetv2_50": (224, 25.55, 4.11),
    "vgg11": (224, 132.86, 7.61),
    "mobilenetv2_140": (224, 6.11, 0.585),  # that of the paper, https://arxiv.org/abs/1801.04381; timm counts norms too
    "mobilenetv4_conv_medium": (256, 9.72, 1.1),
    "efficientnet_b0": (224, 5.29, 0.39),  # that of the paper, https://arxiv.org/abs/1905.11946
    "regnetx_032": (224, 15.3, 3.2),
    "regnety_008": (224, 6.26, 0.81),
    "convnext_tiny": (224, 28.59, 4.47),
    "convnextv2_atto": (224, 3.71, 0.55),
    "hrnet_w18_small": (224, 13.19, 1.61),
    "dla34": (224, 15.74, 3.07),
    "poolformer_s12": (224, 11.92, 1.82),
    "mixer_s16_224": (224, 18.53, 3.79),
    "vit_small_patch16_224": (224, 22.05, 4.61),
    "vit_base_patch32_224": (224, 88.22, 4.41),
}
#: Pixels that a unit of the last map sees: Araujo et al. 2019, table 1, https://distill.pub/2019/computing-receptive-fields/
FIELDS = {"vgg16": 212, "mobilenetv2_100": 491, "resnet18": 435, "densenet121": 2071}


def run(net: nn.Module, size: int = 64) -> object:
    image = torch.rand(1, 3, size, size)
    with torch.no_grad(), FollowFields(image):
        return net.eval()(image)


def test_a_net_computed_by_hand():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(3), nn.Conv2d(4, 4, 3), nn.MaxPool2d(3))
    field = field_of(run(net))
    assert field is not None
    # 3, then 3 + 2, then 5 + 2 * 3, then 11 + 2 * 3.
    assert field.height == field.width == Axis(size=17, jump=9, center=8.5)
    assert not field.sees_all


class Branches(nn.Module):
    """A residual net with a dilated, an oblong and a transposed convolution, and an enlargement."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 2, 3, stride=2, padding=1)
        self.one = nn.Conv2d(2, 2, 3, padding=2, dilation=2)
        self.two = nn.Conv2d(2, 2, (1, 7), padding=(0, 3))
        self.down = nn.Conv2d(2, 2, 2, stride=2)
        self.up = nn.ConvTranspose2d(2, 2, 2, stride=2)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        fine = self.stem(image)
        fine = self.one(fine) + self.two(fine) + fine
        coarse = self.down(fine)
        return self.up(coarse) + functional.interpolate(coarse, scale_factor=2.0) + fine


def test_fields_hold_every_pixel_that_has_a_gradient():
    torch.manual_seed(0)
    net = Branches().double()
    for parameter in net.parameters():
        parameter.data = parameter.data.abs() + 0.1
    image = torch.rand(1, 3, 64, 64, dtype=torch.double)
    with FollowFields(image):
        output = net(image)
        field = field_of(output)
    assert field is not None
    for row, column in ((14, 15), (15, 14), (20, 21)):
        probe = image.detach().clone().requires_grad_()
        (gradient,) = torch.autograd.grad(net(probe)[0, :, row, column].sum(), probe)
        touched = gradient[0].abs().sum(0) > 0
        for axis, unit, dim in ((field.height, row, 1), (field.width, column, 0)):
            seen = touched.any(dim).nonzero().flatten()
            middle = axis.center + unit * axis.jump
            assert middle - axis.size / 2 <= int(seen[0]) + 1  # even and odd units lie differently in a coarse one
            assert int(seen[-1]) <= middle + axis.size / 2
            assert len(seen) >= axis.size - 3
    assert field.height.size < field.width.size


@pytest.mark.parametrize("head", [nn.AdaptiveAvgPool2d(1), nn.Sequential(nn.Flatten(), nn.Linear(4 * 32 * 32, 5))])
def test_what_pools_or_joins_all_positions_sees_all(head: nn.Module):
    stem = nn.Conv2d(3, 4, 2, stride=2)
    field = field_of(run(nn.Sequential(stem, head)))
    assert field is not None
    assert field.sees_all
    assert field.height.size == 2


def test_attention_sees_all_and_a_layer_over_channels_does_not():
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 16, 8, stride=8)
            self.dense = nn.Linear(16, 16)
            self.attend = nn.MultiheadAttention(16, 2, batch_first=True)

        def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
            tokens = self.dense(self.stem(image).permute(0, 2, 3, 1).flatten(1, 2))
            return [tokens, self.attend(tokens, tokens, tokens)[0]]

    one, two = run(Tokens())  # type: ignore[misc]
    assert not field_of(one).sees_all  # type: ignore[union-attr]
    assert field_of(two).sees_all  # type: ignore[union-attr]


def built(name: str, size: int) -> Classification:
    task = Classification(num_classes=1000, backbone=name, in_chans=3, image_size=size)
    task.configure_model()
    return task


def test_layers_of_a_small_net():
    task = built("test_resnet", 64)
    layers = list_layers(task)
    first = layers[0]
    assert (first.kind, first.settings["kernel_size"]) == ("Conv2d", (3, 3))
    assert first.parameters == first.output[1] * 3 * 9
    assert first.macs == first.parameters * first.output[2] * first.output[3]
    assert first.formula == f"{first.output[1]} x 3 x 3 x 3"
    assert sum(layer.parameters for layer in layers) == sum(p.numel() for p in task.network.parameters())
    assert saved_bytes(task) > 3 * 64 * 64 * 4
    assert task.training


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_figures(name: str):
    size, parameters, macs = PUBLISHED[name]
    layers = list_layers(built(name, size))
    assert sum(layer.parameters for layer in layers) / 1e6 == pytest.approx(parameters, abs=0.006)
    assert sum(layer.macs for layer in layers) / 1e9 == pytest.approx(macs, rel=0.02, abs=0.006)


@pytest.mark.slow
@pytest.mark.parametrize("name", FIELDS)
def test_published_fields(name: str):
    layers = [layer for layer in list_layers(built(name, 224)) if len(layer.output) == 4 and layer.output[2] > 1]
    field = layers[-1].field
    assert field is not None
    assert field.height.size == field.width.size == FIELDS[name]
