"""SegNet: a mirrored VGG that unpools to where the encoder's maxima were."""

from __future__ import annotations

import itertools

import pytest
import torch
from timm.models.vgg import VGG
from torch import Tensor, nn

from tasks.networks.segnet import SegNet

TINY = [4, "M", 6, 6, "M", 8, "M", 8, 10, "M", 10, "M"]


def segnet(norm: bool = True, classes: int = 3) -> SegNet:
    torch.manual_seed(0)
    vgg = VGG(TINY, num_classes=0, mlp_ratio=0.001, norm_layer=nn.BatchNorm2d if norm else None)
    return SegNet(vgg, classes)


def traced(net: SegNet, image: Tensor) -> tuple[list[tuple[Tensor, Tensor, Tensor]], list[Tensor], list[Tensor]]:
    """Each pooling's input, output and indices; what goes into each stage of the decoder, and what comes out."""
    pooled: list[tuple[Tensor, Tensor, Tensor]] = []
    unpooled: list[Tensor] = []
    decoded: list[Tensor] = []
    for layer in net.encoder.features:
        if isinstance(layer, nn.MaxPool2d):
            layer.register_forward_hook(lambda _, given, out: pooled.append((given[0], *out)))
    for stage in net.decoder:
        stage.register_forward_pre_hook(lambda _, given: unpooled.append(given[0]))
        stage.register_forward_hook(lambda _, given, out: decoded.append(out))
    net(image)
    return pooled, unpooled, decoded


@pytest.mark.parametrize("size", [(64, 96), (45, 70)])
def test_unpooling_puts_values_where_the_encoders_maxima_were(size: tuple[int, int]) -> None:
    net = segnet().eval()
    with torch.no_grad():
        pooled, unpooled, decoded = traced(net, torch.randn(2, 3, *size))
    assert len(pooled) == len(unpooled) == 5
    given = [pooled[-1][1], *decoded[:-1]]  # what each unpooling unpools
    for (before, _, _), values, after in zip(reversed(pooled), given, unpooled, strict=True):
        assert after.shape == before.shape
        expected = torch.zeros_like(before)
        for b, c, y, x in itertools.product(*(range(n) for n in values.shape)):
            window = before[b, c, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2]
            dy, dx = divmod(int(window.flatten().argmax()), 2)  # as max pooling, the first of equals
            expected[b, c, 2 * y + dy, 2 * x + dx] = values[b, c, y, x]
        assert torch.equal(after, expected)


def test_one_pooling_by_hand() -> None:
    pool, unpool = nn.MaxPool2d(2, 2, return_indices=True), nn.MaxUnpool2d(2, 2)
    image = torch.tensor([[[[1.0, 5.0, 2.0, 0.0], [3.0, 4.0, 8.0, 7.0]]]])
    values, indices = pool(image)
    assert values.tolist() == [[[[5.0, 8.0]]]]
    assert indices.tolist() == [[[[1, 6]]]]
    assert unpool(values, indices).tolist() == [[[[0.0, 5.0, 0.0, 0.0], [0.0, 0.0, 8.0, 0.0]]]]
    net = segnet().eval()
    with torch.no_grad():
        pooled, unpooled, _ = traced(net, torch.randn(1, 3, 64, 64))
    assert torch.equal(unpool(pooled[-1][1], pooled[-1][2]), unpooled[0])


def test_decoder_mirrors_the_encoder() -> None:
    net = segnet(classes=7)
    convolutions = [layer for layer in net.encoder.features if isinstance(layer, nn.Conv2d)]
    mirrored = [layer for layer in net.decoder.modules() if isinstance(layer, nn.Conv2d)]
    shapes = [(layer.out_channels, layer.in_channels) for layer in reversed(convolutions)]
    assert [(layer.in_channels, layer.out_channels) for layer in mirrored] == [*shapes[:-1], (4, 7)]
    norms = [layer for layer in net.decoder.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert len(norms) == len(mirrored) - 1
    assert isinstance(net.decoder[-1][-1], nn.Conv2d)  # logits are neither normalised nor cut at zero


@pytest.mark.parametrize("norm", [True, False])
def test_any_size_any_memory_format_and_all_parameters_train(norm: bool) -> None:
    net = segnet(norm).eval()
    image = torch.randn(2, 3, 61, 83)
    logits = net(image)
    assert logits.shape == (2, 3, 61, 83)
    other = net.to(memory_format=torch.channels_last)(image.to(memory_format=torch.channels_last))
    assert torch.allclose(logits, other, atol=1e-5)
    net.train()(image).square().mean().backward()
    used = {name: p.grad for name, p in net.named_parameters() if ".features." in name or name.startswith("decoder.")}
    assert [name for name, grad in used.items() if grad is None] == []
    with torch.autocast("cpu", torch.bfloat16):
        assert net(image).dtype == torch.bfloat16
