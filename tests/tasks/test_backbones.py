"""Backbones: names, weights, sizes, pyramids, freezing; and the nets that timm lacks."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from tasks import backbones
from tasks.networks.simple_pyramid import SimplePyramid
from tasks.pyramid import Pyramid, create_pyramid

REPOSITORY = Path(__file__).parents[2]
TWELVE = {  # name: a small size that it takes
    "resnet18": 32,
    "vgg11_bn": 32,
    "densenet121": 32,
    "inception_v3": 96,
    "xception41": 32,
    "mobilenetv2_100": 32,
    "efficientnet_b0": 32,
    "convnext_atto": 32,
    "vit_tiny_patch16_224": 32,
    "swin_tiny_patch4_window7_224": 64,
    "coatnet_nano_rw_224": 64,
    "regnetx_002": 32,
}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size"), TWELVE.items())
def test_twelve_families_take_small_images_with_only_the_name_changed(name: str, size: int) -> None:
    net = backbones.create_classifier(name, 3, image_size=(size, size))
    logits = net(torch.rand(2, 3, size, size))
    assert logits.shape == (2, 3)
    assert torch.isfinite(logits).all()
    assert len(backbones.head_parameters(net)) == 2
    grouped_or_transformer = name.startswith(("regnet", "vit", "swin"))
    assert backbones.prefers_channels_last(net) != grouped_or_transformer
    assert backbones.uses_grouped_convs(net) == name.startswith("regnet")


@pytest.mark.parametrize("channels", [1, 2, 5])
@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "lenet5", "cifar_resnet20"])
def test_any_number_of_channels(name: str, channels: int) -> None:
    net = backbones.create_classifier(name, 4, in_chans=channels, image_size=(32, 32))
    assert net(torch.rand(2, channels, 32, 32)).shape == (2, 4)
    mean, std = backbones.normalization(net, channels)
    assert len(mean) == len(std) == channels


def test_normalization_is_the_nets_own_and_grey_is_the_mean() -> None:
    net = backbones.create_classifier("cifar_resnet20", 10)
    assert backbones.normalization(net, 3)[0] == [0.4914, 0.4822, 0.4465]
    assert backbones.normalization(net, 4)[1] == [0.2470, 0.2435, 0.2616, 0.2470]
    assert backbones.normalization(net, 1)[0] == [pytest.approx((0.4914 + 0.4822 + 0.4465) / 3)]
    assert backbones.normalization(nn.Identity(), 3)[0] == [0.485, 0.456, 0.406]


@pytest.mark.parametrize(
    ("name", "near"),
    [("resnet81", "resnet"), ("mobilenet_v2_100", "mobilenetv2_100"), ("ResNet18", "resnet18"), ("lenet", "lenet5")],
)
def test_unknown_name_gives_the_nearest(name: str, near: str) -> None:
    with pytest.raises(ValueError, match=rf"no net named '{name}'; did you mean .*{near}"):
        backbones.create_classifier(name, 2)


def test_unknown_tag_gives_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"'resnet18' has no weights tagged 'a1_in2k'; it has .*a1_in1k"):
        backbones.create_classifier("resnet18.a1_in2k", 2)
    with pytest.raises(ValueError, match=r"no net named 'resnet81.a1_in1k'"):
        backbones.check_backbone("resnet81.a1_in1k")
    backbones.check_backbone("resnet18.a1_in1k")


def test_arguments_that_a_net_lacks_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"model.drop_path_rate: the net 'vgg11'"):
        backbones.create_classifier("vgg11", 2, drop_path_rate=0.1)
    with pytest.raises(ValueError, match=r"model.drop_path_rate: the net 'lenet5'"):
        backbones.create_classifier("lenet5", 2, drop_path_rate=0.1)
    with pytest.raises(ValueError, match=r"model.backbone_args.wings: the net 'test_resnet'"):
        backbones.create_classifier("test_resnet", 2, backbone_args={"wings": 2})
    with pytest.raises(ValueError, match="grad_checkpointing: the net 'lenet5'"):
        backbones.create_classifier("lenet5", 2, grad_checkpointing=True)


def test_rates_reach_the_net() -> None:
    net = backbones.create_classifier("cifar_resnet20", 2, drop_rate=0.3, drop_path_rate=0.2)
    assert net.drop_rate == 0.3
    rates = [m.drop_prob for m in net.modules() if type(m).__name__ == "DropPath"]
    assert rates == pytest.approx([0.2 * i / 8 for i in range(1, 9)])  # linear from 0 in the first of nine blocks


@pytest.mark.parametrize(
    ("name", "size", "reason"),
    [
        ("vit_tiny_patch16_224", (40, 40), "multiple of that; take 48 x 48"),
        ("inception_v3", (32, 48), r"made for 299 x 299.* 32 x 48"),
    ],
)
def test_size_that_a_net_cannot_take_is_refused(name: str, size: tuple[int, int], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        backbones.create_classifier(name, 2, image_size=size)


def test_default_image_size() -> None:
    assert backbones.default_image_size("inception_v3") == (299, 299)
    assert backbones.default_image_size("cifar_resnet18") == (32, 32)


def test_list_backbones() -> None:
    everything = backbones.list_backbones()
    assert len(everything) > 1000
    assert {"lenet5", "cifar_resnet18", "resnet18"} < set(everything)
    assert backbones.list_backbones("CIFAR_ResNet") == [f"cifar_resnet{depth}" for depth in (18, 20, 26, 32, 38)]
    assert backbones.list_backbones("lenet?") == ["lenet5"]
    assert backbones.list_backbones("no such net") == []


# Weights from local files.


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "weights.safetensors"
    save_file(timm.create_model("test_resnet", num_classes=7).state_dict(), path)
    return path


@pytest.mark.parametrize("num_classes", [7, 3, 1000])
def test_local_weights_load_and_only_the_fitting_classifier_with_them(weights: Path, num_classes: int) -> None:
    net = backbones.create_classifier("test_resnet", num_classes, pretrained=str(weights))
    expected = timm.create_model("test_resnet", num_classes=7, checkpoint_path=str(weights)).state_dict()
    head = backbones.head_parameters(net)
    for name, value in net.state_dict().items():
        if name not in head:
            assert torch.equal(value, expected[name]), name
    if num_classes == 7:
        assert torch.equal(net.state_dict()["fc.weight"], expected["fc.weight"])


def test_local_weights_for_grey_images_are_summed(weights: Path) -> None:
    three = backbones.create_classifier("test_resnet", 2, pretrained=str(weights))
    grey = backbones.create_classifier("test_resnet", 2, in_chans=1, pretrained=str(weights))
    first = three.pretrained_cfg["first_conv"]
    expected = three.get_submodule(first).weight.sum(1, keepdim=True)
    assert torch.allclose(grey.get_submodule(first).weight, expected)


def test_local_pth_without_a_classifier_loads(tmp_path: Path, weights: Path) -> None:
    state = timm.create_model("test_resnet", num_classes=0, checkpoint_path="").state_dict()
    torch.save({"state_dict": state}, tmp_path / "trunk.pth")
    net = backbones.create_classifier("test_resnet", 1000, pretrained=str(tmp_path / "trunk.pth"))
    name = next(iter(state))
    assert torch.equal(net.state_dict()[name], state[name])


@pytest.mark.parametrize("num_classes", [7, 3])
def test_local_weights_that_do_not_fit_are_named(tmp_path: Path, num_classes: int) -> None:
    state = timm.create_model("test_resnet", num_classes=7).state_dict()
    lacking = {key: value for key, value in state.items() if key != "layer1.0.conv1.weight"} | {
        "extra.weight": torch.zeros(1)
    }
    torch.save(lacking, tmp_path / "bad.pth")
    with pytest.raises(ValueError, match=r"bad.pth does not fit 'test_resnet'.*layer1.0.conv1.weight.*extra.weight"):
        backbones.create_classifier("test_resnet", num_classes, pretrained=str(tmp_path / "bad.pth"))
    torch.save(state | {"conv1.0.weight": torch.zeros(1, 3, 3, 3)}, tmp_path / "bad.pth")
    with pytest.raises(ValueError, match=r"bad.pth does not fit 'test_resnet'.*|conv1"):
        backbones.create_classifier("test_resnet", num_classes, pretrained=str(tmp_path / "bad.pth"))


def test_missing_or_foreign_file_of_weights_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere.pth"):
        backbones.create_classifier("test_resnet", 2, pretrained="nowhere.pth")
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(ValueError, match=r"text.pth cannot be read as weights"):
        backbones.create_classifier("test_resnet", 2, pretrained=str(tmp_path / "text.pth"))


def test_net_without_weights_on_the_hub_says_so() -> None:
    with pytest.raises(ValueError, match=r"weights of 'lenet5' could not be loaded.*pretrained: FILE"):
        backbones.create_classifier("lenet5", 2, pretrained=True)


def test_weights_without_a_network_say_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match=r"weights of 'test_resnet' could not be loaded.*pretrained: FILE"):
        backbones.create_classifier("test_resnet", 2, pretrained=True)


# Pyramids.


@pytest.mark.parametrize(
    ("name", "strides"),
    [
        ("test_resnet", [2, 4, 8, 16, 32]),
        ("test_efficientnet", [2, 4, 8, 16, 32]),
        ("test_convnext", [4, 8, 16, 32]),
        ("test_vit", [4, 8, 16, 32]),
        ("swin_tiny_patch4_window7_224", [4, 8, 16, 32]),
        ("cifar_resnet20", [1, 2, 4]),
        ("cifar_resnet18", [1, 2, 4, 8]),
    ],
)
def test_pyramid_has_the_promised_maps_and_uses_all_its_parameters(name: str, strides: list[int]) -> None:
    pyramid = create_pyramid(name, in_chans=2, image_size=(64, 96))
    assert pyramid.strides == strides
    for wanted in (strides, strides[1:3]):
        pyramid = create_pyramid(name, in_chans=2, image_size=(64, 96), strides=wanted)
        maps = pyramid(torch.rand(2, 2, 64, 96))
        shapes = [(2, c, 64 // s, 96 // s) for c, s in zip(pyramid.channels, wanted, strict=True)]
        assert [tuple(features.shape) for features in maps] == shapes
        sum(features.square().sum() for features in maps).backward()
        assert [n for n, p in pyramid.named_parameters() if p.grad is None] == []


def test_pyramid_takes_local_weights_of_a_classifier(weights: Path) -> None:
    pyramid = create_pyramid("test_resnet", pretrained=str(weights), strides=[4, 8])
    classifier = backbones.create_classifier("test_resnet", 7, pretrained=str(weights))
    assert torch.equal(pyramid.net.model.layer2[0].conv1.weight, classifier.layer2[0].conv1.weight)
    assert backbones.normalization(pyramid, 3) == backbones.normalization(classifier, 3)
    assert backbones.head_parameters(pyramid) == set()


def test_pyramid_of_a_net_with_nhwc_maps_without_intermediates_is_turned() -> None:
    class Nhwc(nn.Module):
        output_fmt = "NHWC"

        def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
            return [x.permute(0, 2, 3, 1)]

    image = torch.rand(1, 3, 4, 5)
    assert torch.equal(Pyramid(Nhwc(), [3], [1])(image)[0], image)


def test_pyramid_refusals() -> None:
    with pytest.raises(ValueError, match=r"'cifar_resnet20' has no maps of stride \[32\]; it has \[1, 2, 4\]"):
        create_pyramid("cifar_resnet20", strides=[4, 32])
    with pytest.raises(ValueError, match="'lenet5' gives no feature maps"):
        create_pyramid("lenet5")


# Freezing.


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_vit", "cifar_resnet20"])
def test_frozen_backbone_does_not_change_in_training(name: str) -> None:
    torch.manual_seed(0)
    net = backbones.create_classifier(name, 2, image_size=(32, 32), drop_path_rate=0.5)
    head = backbones.head_parameters(net)
    backbones.freeze(net)
    assert {key for key, p in net.named_parameters() if p.requires_grad} == head
    before = {key: value.clone() for key, value in net.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        net.train()
        backbones.keep_frozen_in_eval(net)
        net(torch.rand(4, 3, 32, 32)).square().sum().backward()
        optimizer.step()
    changed = {key for key, value in net.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == head


def test_frozen_backbone_is_deterministic_but_dropout_before_the_head_is_not() -> None:
    torch.manual_seed(0)
    image = torch.rand(2, 3, 32, 32)
    for rates, same in (({"drop_path_rate": 0.5}, True), ({"drop_rate": 0.5}, False)):
        net = backbones.create_classifier("test_resnet", 2, **rates).train()
        backbones.keep_frozen_in_eval(net, keep=backbones.head_parameters(net))
        assert torch.equal(net(image), net(image)) == same


def test_frozen_modules_without_anything_to_keep_are_the_whole_net() -> None:
    pyramid = create_pyramid("test_resnet")
    assert backbones.frozen_modules(pyramid) == [pyramid]


# The nets that timm lacks.


def count(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def test_parameter_counts_are_the_published_ones() -> None:
    assert count(timm.create_model("lenet5")) == 61_706
    assert count(timm.create_model("cifar_resnet18")) == 11_173_962  # kuangliu/pytorch-cifar
    projections = 16 * 32 + 2 * 32 + 32 * 64 + 2 * 64  # option B; the paper's option A has 269,722
    assert count(timm.create_model("cifar_resnet20")) == 269_722 + projections
    for depth in (20, 26, 32, 38):
        net = timm.create_model(f"cifar_resnet{depth}")
        convolutions = [m for m in net.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
        assert len(convolutions) + 1 == depth


@pytest.mark.parametrize("name", ["lenet5", "cifar_resnet18", "cifar_resnet20"])
@pytest.mark.parametrize("size", [8, 28, 45])
def test_our_nets_take_any_size_and_behave_like_timms(name: str, size: int) -> None:
    net = timm.create_model(name, num_classes=5, in_chans=3).eval()
    image = torch.rand(2, 3, size, size)
    features = net.forward_features(image)
    assert torch.allclose(net(image), net.forward_head(features))
    assert net.forward_head(features, pre_logits=True).shape == (2, net.head_hidden_size)
    net.reset_classifier(4)
    assert net.get_classifier().out_features == net(image).shape[1] == 4
    net.reset_classifier(0)
    assert net(image).shape == (2, net.head_hidden_size)


def test_lenet_pads_28_pixels_as_the_paper_does() -> None:
    net = timm.create_model("lenet5").eval()
    image = torch.rand(1, 1, 28, 28)
    assert torch.equal(net(image), net(nn.functional.pad(image, (2, 2, 2, 2))))


def test_cifar_resnet_checkpoints_and_gives_the_same() -> None:
    torch.manual_seed(0)
    image = torch.rand(2, 3, 32, 32)
    torch.manual_seed(0)
    plain = backbones.create_classifier("cifar_resnet20", 2)
    torch.manual_seed(0)
    saving = backbones.create_classifier("cifar_resnet20", 2, grad_checkpointing=True)
    for net in (plain, saving):
        net.train()(image).sum().backward()
    assert torch.allclose(plain.conv1.weight.grad, saving.conv1.weight.grad, atol=1e-6)


# Real weights on real pictures.


@pytest.mark.slow
@pytest.mark.shared_data
@pytest.mark.parametrize(("backbone_args", "expected"), [(None, 0.745), ({"pad_type": "same"}, 0.830)])
def test_shared_weights_recognise_imagenet_samples(backbone_args: dict[str, str] | None, expected: float) -> None:
    from PIL import Image
    from timm.data import create_transform

    places = [REPOSITORY / "data", REPOSITORY.parent / "shared" / "data"]
    data = next((place for place in places if (place / "imagenet-samples").is_dir()), None)
    if data is None:
        pytest.skip("data/imagenet-samples is not there")
    file = data / "pretrained-mobilenetv2_100" / "mobilenetv2_100.safetensors"
    net = backbones.create_classifier("mobilenetv2_100", 1000, pretrained=str(file), backbone_args=backbone_args).eval()
    mean, std = backbones.normalization(net, 3)
    transform = create_transform((3, 224, 224), crop_pct=0.875, interpolation="bicubic", mean=mean, std=std)
    with (data / "imagenet-samples" / "labels.csv").open() as table:
        rows = list(csv.DictReader(table))
    hits = 0
    with torch.inference_mode():
        for start in range(0, len(rows), 50):
            part = rows[start : start + 50]
            images = [Image.open(data / "imagenet-samples" / "images" / row["filename"]).convert("RGB") for row in part]
            predicted = net(torch.stack([transform(image) for image in images])).argmax(1)
            hits += int((predicted == torch.tensor([int(row["class_index"]) for row in part])).sum())
    assert len(rows) == 200
    assert hits / 200 == pytest.approx(expected, abs=0.011)  # decoders differ in the last bit


def test_a_new_head_on_pretrained_features_starts_near_zero(tmp_path: Path) -> None:
    """timm's own start of a two-class head on MobileNet gives first losses of about 5 and wrecks the features."""
    donor = backbones.create_classifier("mobilenetv2_035", 7)
    save_file(donor.state_dict(), tmp_path / "donor.safetensors")
    net = backbones.create_classifier("mobilenetv2_035", 2, pretrained=str(tmp_path / "donor.safetensors"))
    assert net.get_classifier().weight.abs().max() < 0.05
    same = backbones.create_classifier("mobilenetv2_035", 7, pretrained=str(tmp_path / "donor.safetensors"))
    assert torch.equal(same.get_classifier().weight, donor.get_classifier().weight)


def test_a_plain_net_gives_its_last_block_to_the_pyramid() -> None:
    """All blocks of a ViT have one stride: of several maps of a stride the last is taken."""
    last = len(timm.create_model("test_vit").blocks) - 1
    assert last > 0
    assert list(create_pyramid("test_vit", strides=[16, 32]).net.feature_info.out_indices) == [last]


def test_the_coarser_map_of_a_simple_pyramid_has_the_largest_of_four() -> None:
    pyramid = SimplePyramid(2, 16, [32], width=2)
    x = torch.rand(1, 2, 6, 4)
    largest = nn.functional.max_pool2d(x, 2).repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert torch.equal(pyramid(x)[0], pyramid(largest)[0])


def test_a_frozen_norm_without_weights_keeps_its_statistics_too() -> None:
    model = nn.ModuleDict({"norm": nn.BatchNorm2d(2, affine=False), "head": nn.Linear(2, 2), "act": nn.ReLU()})
    head = {"head.weight", "head.bias"}
    assert backbones.frozen_modules(model, head) == [model["norm"]]
    backbones.keep_frozen_in_eval(model.train(), head)
    assert not model["norm"].training
    assert model["head"].training
