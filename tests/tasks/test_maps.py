"""Maps of any layout: what a unit sees, where it lies, and how a map is read."""

from __future__ import annotations

import pytest
import torch

from datamodules.common.errors import UserError
from tasks.classification import Classification
from tasks.maps import choose_maps, list_maps, run_to, tapped


def built(backbone: str, size: int) -> Classification:
    torch.manual_seed(0)
    task = Classification(backbone=backbone, num_classes=3, image_size=size, in_chans=3)
    task.configure_model()
    return task.eval()


def by_name(task, names):
    return choose_maps(task, list_maps(task), names)


def test_a_convolutions_units():
    """ResNet-18's stem, by hand: 7 x 7 pixels around 2 i + 0.5; and a unit of layer1 sees where its gradient is."""
    task = built("resnet18", 64)
    stem, layer1 = by_name(task, ["act1", "layer1"])
    assert (stem.channels, stem.grid, stem.layout) == (64, (32, 32), "channels_first")
    assert stem.seen_by(5, 10, (32, 32), (64, 64)) == (17.0, 7.0, 24.0, 14.0)
    assert stem.place_of(5, 10, (32, 32), (64, 64)) == (19.5, 9.5, 21.5, 11.5)
    assert stem.seen_by(0, 0, (32, 32), (64, 64)) == (0.0, 0.0, 4.0, 4.0)
    with torch.no_grad():
        for parameter in task.parameters():
            parameter.abs_().add_(0.01)  # all paths count: timm's blocks begin as 0
    image = torch.rand(8, 3, 64, 64, requires_grad=True)
    (output,) = run_to(task, [layer1], image)
    (gradient,) = torch.autograd.grad(output[:, :, 8, 7].sum(), image)
    left, right = gradient.abs().sum((0, 1, 2)).nonzero()[[0, -1], 0].tolist()
    top, bottom = gradient.abs().sum((0, 1, 3)).nonzero()[[0, -1], 0].tolist()
    assert layer1.seen_by(8, 7, (16, 16), (64, 64)) == (left, top, right + 1, bottom + 1)


def test_padding_of_its_own_moves_the_center():
    """TensorFlow's padding of a stride-2 convolution: one pixel at the right and none at the left of an even side."""
    plain = built("mobilenetv2_100", 64)
    torch.manual_seed(0)
    same = Classification(
        backbone="mobilenetv2_100", num_classes=3, image_size=64, in_chans=3, backbone_args={"pad_type": "same"}
    )
    same.configure_model()
    assert by_name(plain, ["bn1"])[0].field.height.center == 0.5
    assert by_name(same, ["bn1"])[0].field.height.center == 1.5


def test_tokens():
    task = built("test_vit", 160)
    (block,) = by_name(task, ["blocks.2"])
    assert (block.layout, block.prefix, block.grid, block.sees_all) == ("tokens", 1, (10, 10), True)
    image = torch.rand(2, 3, 160, 160)
    with torch.no_grad(), tapped(task, [block]) as found:
        task(image)
        (output,) = run_to(task, [block], image)
    torch.testing.assert_close(output[1, :, 3, 7], found["blocks.2"][1, 1 + 3 * 10 + 7])
    assert block.seen_by(3, 7, (10, 10), (160, 160)) == (0.0, 0.0, 160.0, 160.0)
    assert block.place_of(3, 7, (10, 10), (160, 160)) == (112.0, 48.0, 128.0, 64.0)


def test_the_network_computes_the_same_while_it_is_watched():
    """The next layer may work in place: what was kept is what the module gave."""
    task = built("resnet18", 64)
    conv, norm = by_name(task, ["conv1", "bn1"])
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad(), tapped(task, [conv, norm]) as found:
        watched = task(image)
    with torch.no_grad():
        torch.testing.assert_close(watched, task(image))
        torch.testing.assert_close(found["bn1"], task.network.bn1(found["conv1"]))
    assert found["bn1"].min() < 0


@pytest.mark.parametrize(
    ("backbone", "size", "names"),
    [
        ("resnet18", 64, ["act1", "layer1", "layer2", "layer3", "layer4"]),
        ("mobilenetv2_100", 96, ["blocks.0", "blocks.1", "blocks.2", "blocks.4", "blocks.6"]),
        ("test_vit", 160, ["blocks.1", "blocks.2", "blocks.3", "blocks.5"]),
        ("lenet5", 32, ["c1", "c3"]),
        pytest.param("swin_tiny_patch4_window7_224", 224, [f"layers.{i}" for i in range(4)], marks=pytest.mark.slow),
        pytest.param("pvt_v2_b0", 64, [f"stages.{i}" for i in range(4)], marks=pytest.mark.slow),
        pytest.param("mixer_s32_224", 224, [f"blocks.{i}" for i in (1, 3, 5, 7)], marks=pytest.mark.slow),
    ],
)
def test_the_ends_of_stages(backbone, size, names):
    task = built(backbone, size)
    chosen = choose_maps(task, list_maps(task))
    assert [one.name for one in chosen] == names
    with torch.no_grad():
        outputs = run_to(task, chosen, torch.rand(2, 3, size, size))
    assert [tuple(x.shape) for x in outputs] == [(2, one.channels, *one.grid) for one in chosen]


def test_a_layer_that_is_none():
    task = built("test_resnet", 64)
    with pytest.raises(UserError, match=r"--layers names 'layer9'.*layer4"):
        by_name(task, ["layer9"])
