"""Networks of segmentation: architectures, encoders, weights, sizes, refusals; and the matrix in the docs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from segmentation_models_pytorch.encoders import encoders as smp_encoders
from timm.models import vgg
from torch import Tensor, nn

from tasks.backbones import freeze, keep_frozen_in_eval, normalization
from tasks.segmentation.architectures import ARCHITECTURES, SMP
from tasks.segmentation.networks import create_segmenter
from tasks.segmentation.segmenter import Segmenter, encoder_parameter_names

REPOSITORY = Path(__file__).parents[2]
SMALL_VGG: dict[str, Any] = {"mlp_ratio": 0.001}  # of the head, which is built and thrown away
TINY_VGG = [8, "M", 8, "M", 16, 16, "M", 16, "M", 24, "M"]
NARROW = {"decoder_channels": [32, 16, 16, 8, 8]}
SMALL: dict[str, dict[str, Any]] = {  # decoders for tests of seconds
    "unet": NARROW,
    "unetplusplus": NARROW,
    "manet": NARROW,
    "dpt": {"decoder_intermediate_channels": [8, 8, 16, 16], "decoder_fusion_channels": 16},
    "upernet": {"decoder_channels": 32},
    "deeplabv3": {"decoder_channels": 32},
}
SWIN: dict[str, Any] = {"embed_dim": 16, "depths": (1, 1, 2, 1), "num_heads": (1, 2, 4, 8)}


@pytest.fixture(autouse=True)
def _tiny_vgg(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A VGG-11 of few channels, but in the tests that take minutes."""
    if request.node.get_closest_marker("slow") is None:
        monkeypatch.setitem(vgg.cfgs, "vgg11", TINY_VGG)


def encoder_of(architecture: str) -> tuple[str, dict[str, Any] | None]:
    """A tiny encoder that fits, and its arguments."""
    return {"dpt": ("test_vit", None), "segnet": ("vgg11_bn", SMALL_VGG)}.get(architecture, ("test_resnet", None))


def small(architecture: str, **arguments: Any) -> Segmenter:
    torch.manual_seed(0)
    backbone, backbone_args = encoder_of(architecture)
    decoder_args = SMALL.get(architecture)
    given = {"image_size": (64, 64), "backbone_args": backbone_args, "decoder_args": decoder_args} | arguments
    return create_segmenter(architecture, backbone, 3, **given)


def squares(count: int = 4, side: int = 64) -> tuple[Tensor, Tensor]:
    """Pictures with one square of one of two colours each, and their masks (0: background)."""
    torch.manual_seed(0)
    image = torch.randn(count, 3, side, side) * 0.1
    mask = torch.zeros(count, side, side, dtype=torch.long)
    for i in range(count):
        y, x = (int(v) for v in torch.randint(4, side // 2, (2,)))
        place = (slice(y, y + side // 3), slice(x, x + side // 3))
        mask[i][place] = 1 + i % 2
        image[i, i % 2][place] += 2
    return image, mask


def overfit(net: nn.Module, steps: int, lr: float, count: int = 4) -> tuple[list[float], float]:
    """The losses of training on a few pictures, and the mean IoU in evaluation mode afterwards."""
    image, mask = squares(count)
    optimizer = torch.optim.Adam(net.parameters(), lr)
    losses = []
    net.train()
    for _ in range(steps):
        loss = F.cross_entropy(net(image), mask)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    with torch.no_grad():
        found = net.eval()(image).argmax(1)
    ious = [((found == k) & (mask == k)).sum() / ((found == k) | (mask == k)).sum() for k in range(3)]
    return losses, float(torch.stack(ious).mean())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_takes_odd_sizes_and_learns(architecture: str) -> None:
    net = small(architecture).train()
    logits = net(torch.randn(2, 3, 61, 83))
    assert logits.shape == (2, 3, 61, 83)
    logits.square().mean().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None] == []  # DDP refuses such
    losses, _ = overfit(net, 6, 1e-2 if architecture == "segnet" else 3e-3, count=2)
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name != "segnet"])
def test_auxiliary_head_answers_in_training_only(architecture: str) -> None:
    net = small(architecture, aux_classes=5).train()
    logits, presence = net(torch.randn(2, 3, 40, 64))
    assert logits.shape == (2, 3, 40, 64)
    assert presence.shape == (2, 5)
    assert net.eval()(torch.randn(2, 3, 40, 64)).shape == (2, 3, 40, 64)


@pytest.mark.parametrize(
    ("backbone", "backbone_args", "multiple"),
    [
        ("test_efficientnet", None, 32),
        ("test_convnext", None, 32),  # no map of stride 2
        ("swin_tiny_patch4_window7_224", SWIN, 32),  # channels last inside, a window of 7
        ("test_vit", None, 32),  # one stride
        ("vgg11", SMALL_VGG, 32),  # a map of stride 1
        ("cifar_resnet20", None, 4),
        ("cifar_resnet18", None, 8),
    ],
)
def test_encoders_of_all_kinds(backbone: str, backbone_args: dict[str, Any] | None, multiple: int) -> None:
    others = {"test_convnext": ("manet", "linknet", "fpn", "upernet"), "cifar_resnet20": ("linknet", "deeplabv3")}
    others |= {"cifar_resnet18": ("fpn",)}
    for architecture in ("unet", *others.get(backbone, ("fpn", "segformer"))):
        net = create_segmenter(
            architecture, backbone, 3, in_chans=5, image_size=(64, 64), backbone_args=backbone_args
        ).train()
        assert net.stride_multiple == multiple
        logits = net(torch.randn(2, 5, 37, 25))  # other than the size it was built for
        assert logits.shape == (2, 3, 37, 25)
        logits.square().mean().backward()
        assert [name for name, p in net.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("architecture", ["dpt", "upernet", "fpn", "pspnet"])
def test_plain_vit_is_the_same_at_its_size_whether_or_not_it_takes_others(architecture: str) -> None:
    given = {"image_size": (64, 96), "decoder_args": SMALL.get(architecture)}
    free = create_segmenter(architecture, "test_vit", 2, **given)
    fixed = create_segmenter(architecture, "test_vit", 2, backbone_args={"dynamic_img_size": False}, **given)
    assert free.fixed_size is None
    assert fixed.fixed_size == (64, 96)
    fixed.load_state_dict(free.state_dict())
    image = torch.randn(1, 3, 64, 96)
    assert torch.equal(free.eval()(image), fixed.eval()(image))
    assert free(torch.randn(1, 3, 90, 130)).shape == (1, 2, 90, 130)


def test_a_net_of_fixed_size_pads_smaller_images_and_refuses_larger_ones() -> None:
    net = create_segmenter("unet", "test_vit_relpos", 2, image_size=(60, 90)).eval()
    assert net.fixed_size == (64, 96)
    image = torch.randn(1, 3, 50, 40)
    assert torch.equal(net(image), net(F.pad(image, (0, 56, 0, 14)))[..., :50, :40])
    with pytest.raises(ValueError, match=r"'test_vit_relpos' was built for images of 64 x 96 .* has 65 x 40.*tiles"):
        net(torch.randn(1, 3, 65, 40))


@pytest.mark.parametrize(
    ("architecture", "multiple", "least"),
    [("unet", 32, 32), ("deeplabv3plus", 16, 16), ("pspnet", 8, 8), ("pan", 16, 128)],
)
def test_images_are_padded_with_zeros_below_and_beside(architecture: str, multiple: int, least: int) -> None:
    net = small(architecture).eval()
    assert net.stride_multiple == multiple
    assert net.padded_size(1, 200) == (least, -(-200 // multiple) * multiple)
    image = torch.randn(1, 3, 61, 83)
    height, width = net.padded_size(61, 83)
    padded = F.pad(image, (0, width - 83, 0, height - 61))
    assert torch.equal(net(image), net.net(padded)[..., :61, :83])


# Against SMP itself.


@pytest.mark.parametrize("architecture", SMP)
def test_same_numbers_as_smp_with_its_own_timm_encoder(architecture: str) -> None:
    net = small(architecture).eval()
    backbone, _ = encoder_of(architecture)
    more = {"dynamic_img_size": True, "img_size": 64, "num_classes": 0} if architecture == "dpt" else {}
    other = SMP[architecture](
        f"tu-{backbone}", encoder_weights=None, in_channels=3, classes=3, **(SMALL.get(architecture) or {}), **more
    )
    ours = {
        "encoder.model." + key.removeprefix(net.encoder_prefix).removeprefix("model.")
        if key.startswith(net.encoder_prefix)
        else key.removeprefix("net."): value
        for key, value in net.state_dict().items()
    }
    missing, unexpected = nn.Module.load_state_dict(other, ours, strict=False)
    assert unexpected == []
    assert set(missing) <= {"encoder.model.norm.weight", "encoder.model.norm.bias"}  # unused; ours has none
    image = torch.randn(2, 3, 128, 160)
    assert torch.allclose(net(image), other.eval()(image), atol=1e-5)
    assert "pyramid" not in smp_encoders


# Dilation.


@pytest.mark.parametrize(
    ("backbone", "backbone_args", "offset"),
    [("test_resnet", None, 0), ("mobilenetv2_050", None, 0), ("mobilenetv2_050", {"pad_type": "same"}, 1)],
)
def test_dilated_maps_hold_those_of_the_strided_net(
    backbone: str, backbone_args: dict[str, Any] | None, offset: int
) -> None:
    strided = create_segmenter("unet", backbone, 2, backbone_args=backbone_args).eval()
    dilated = create_segmenter("deeplabv3plus", backbone, 2, backbone_args=backbone_args).eval()
    dilated.net.encoder.load_state_dict(strided.net.encoder.state_dict())
    image = torch.linspace(-1, 1, 3 * 256 * 256).view(1, 3, 256, 256).sin()
    with torch.no_grad():
        coarse, fine = strided.net.encoder(image)[-1], dilated.net.encoder(image)[-1]
    assert fine.shape[-1] == 2 * coarse.shape[-1] == 16
    # Where the strided convolution pads only behind (TensorFlow's "same"), its places are the odd ones.
    inside = (coarse - fine[..., offset::2, offset::2])[..., 2:-2, 2:-2]
    assert inside.abs().max() < 1e-5 * coarse.abs().max()


@pytest.mark.parametrize("backbone", ["test_resnet", "test_convnext", "mobilenetv3_small_050"])
def test_dilation_to_stride_8(backbone: str) -> None:
    net = create_segmenter("deeplabv3plus", backbone, 2, decoder_args={"encoder_output_stride": 8}).eval()
    assert net.stride_multiple == 8
    assert net.net.encoder(torch.randn(1, 3, 64, 64))[-1].shape[-1] == 8
    assert net(torch.randn(1, 3, 45, 60)).shape == (1, 2, 45, 60)


@pytest.mark.parametrize(
    ("architecture", "backbone", "decoder_args", "multiple"),
    [
        ("deeplabv3plus", "vgg11", {"encoder_depth": 4}, 16),
        ("deeplabv3", "test_vit", {"encoder_depth": 3}, 16),
        ("deeplabv3plus", "test_vit", {"encoder_depth": 4}, 16),
        ("pan", "test_vit", {"encoder_depth": 4}, 16),
        ("pan", "test_vit", {"encoder_output_stride": 32}, 32),
        ("pspnet", "test_resnet", {"encoder_depth": 5}, 32),
        ("fpn", "test_resnet", {"encoder_depth": 4}, 16),
    ],
)
def test_what_the_refusals_advise_works(
    architecture: str, backbone: str, decoder_args: dict[str, Any], multiple: int
) -> None:
    backbone_args = SMALL_VGG if backbone == "vgg11" else None
    net = create_segmenter(architecture, backbone, 2, decoder_args=decoder_args, backbone_args=backbone_args).train()
    assert net.stride_multiple == multiple
    logits = net(torch.randn(2, 3, 50, 70))
    assert logits.shape == (2, 2, 50, 70)
    logits.sum().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None] == []


# Weights.


@pytest.mark.parametrize(
    ("architecture", "backbone", "backbone_args"),
    [
        ("unet", "test_resnet", {}),
        ("unet", "test_efficientnet", {"pad_type": "same"}),
        ("deeplabv3plus", "test_efficientnet", {"pad_type": "same"}),
        ("deeplabv3plus", "mobilenetv3_small_050", {}),
        ("fpn", "test_vit", {}),
        ("dpt", "test_vit", {}),
        ("segnet", "vgg11_bn", SMALL_VGG),
    ],
)
def test_every_tensor_of_the_encoder_is_the_files(
    tmp_path: Path, architecture: str, backbone: str, backbone_args: dict[str, Any]
) -> None:
    torch.manual_seed(1)
    given = timm.create_model(backbone, **backbone_args).state_dict()
    given = {key: torch.randn_like(value) if value.is_floating_point() else value for key, value in given.items()}
    save_file(given, tmp_path / "weights.safetensors")
    net = create_segmenter(
        architecture,
        backbone,
        2,
        pretrained=str(tmp_path / "weights.safetensors"),
        decoder_args=SMALL.get(architecture),
        backbone_args=backbone_args,
    )
    found = {
        key.removeprefix(net.encoder_prefix).removeprefix("model."): value
        for key, value in net.state_dict().items()
        if key.startswith(net.encoder_prefix)
    }
    assert [key for key, value in found.items() if not torch.equal(value, given[key])] == []
    # What is left out: the classifier and what comes before it.
    left_out = {key.split(".")[0] for key in given.keys() - found.keys()}
    assert left_out <= {"fc", "head", "classifier", "conv_head", "bn2", "norm_head", "pre_logits", "norm", "fc_norm"}
    same = [type(module).__name__ for module in net.net.encoder.modules() if type(module).__name__ == "Conv2dSame"]
    assert bool(same) == ("pad_type" in backbone_args)


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"model.pretrained: no such file: nowhere.pth"):
        create_segmenter("unet", "test_resnet", 2, pretrained="nowhere.pth")
    state = timm.create_model("test_resnet").state_dict()
    del state["layer2.0.conv1.weight"]
    save_file(state, tmp_path / "bad.safetensors")
    for architecture in ("unet", "deeplabv3plus"):
        with pytest.raises(ValueError, match=r"model.pretrained: .*bad.safetensors does not fit .*layer2.0.conv1"):
            create_segmenter(architecture, "test_resnet", 2, pretrained=str(tmp_path / "bad.safetensors"))


def test_arguments_reach_the_encoder() -> None:
    for architecture, backbone in (("unet", "test_resnet"), ("deeplabv3plus", "test_resnet"), ("dpt", "test_vit")):
        net = small(architecture, drop_path_rate=0.2, grad_checkpointing=True)
        rates = [module.drop_prob for module in net.modules() if type(module).__name__ == "DropPath"]
        assert max(rates) == pytest.approx(0.2), backbone
        assert any(getattr(module, "grad_checkpointing", False) is True for module in net.modules())
        net.train()(torch.randn(2, 3, 64, 64)).mean().backward()
        mean, _ = normalization(net, 3)
        assert mean == [float(value) for value in timm.get_pretrained_cfg(backbone).mean]


@pytest.mark.parametrize(
    ("architecture", "backbone"), [("unet", "test_resnet"), ("fpn", "test_vit"), ("dpt", "test_vit")]
)
def test_frozen_encoder_stays_and_all_else_learns(architecture: str, backbone: str) -> None:
    torch.manual_seed(0)
    net = create_segmenter(architecture, backbone, 3, image_size=(64, 64), decoder_args=SMALL.get(architecture))
    encoder = encoder_parameter_names(net)
    head = {name for name, _ in net.named_parameters()} - encoder
    assert encoder
    assert any("decoder" in name for name in head)
    assert any("segmentation_head" in name for name in head)
    assert any("neck" in name for name in head) == (architecture == "fpn")  # no weights exist for it
    freeze(net, keep=head)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1)
    net.train()
    keep_frozen_in_eval(net, keep=head)
    net(torch.randn(2, 3, 64, 64)).square().sum().backward()
    optimizer.step()
    changed = {key for key, value in net.state_dict().items() if not torch.equal(value, before[key])}
    assert not [key for key in changed if key.startswith(net.encoder_prefix)]
    assert changed >= {name for name, p in net.named_parameters() if name in head and p.grad.abs().max() > 0}


# Refusals.


@pytest.mark.parametrize(
    ("architecture", "backbone", "arguments", "message"),
    [
        ("unett", "resnet18", {}, r"model.architecture: there is none named 'unett'; did you mean unet"),
        ("DeepLab-V3+", "resnet18", {}, r"did you mean deeplabv3plus"),
        ("unet", "resnet81", {}, r"model.backbone: there is no net named 'resnet81'; did you mean resnet18"),
        ("segnet", "test_resnet", {}, r"'segnet' and model.backbone 'test_resnet' do not fit: .* take vgg11_bn"),
        ("dpt", "test_resnet", {}, r"'dpt' and model.backbone 'test_resnet' .* plain ViT .* take vit_small_patch16"),
        ("unetplusplus", "test_convnext", {}, r"stride 2, the second has \[4, 8, 16, 32\]; take unet"),
        ("deeplabv3plus", "vgg11", {}, r"dilated to stride 16.*encoder_depth to 4.* \(resnet18\), or unet"),
        ("deeplabv3", "test_vit", {}, r"dilated to stride 8.*encoder_depth to 3"),
        ("pan", "test_vit", {}, r"dilated to stride 16.*encoder_depth to 4 or encoder_output_stride to 32"),
        ("fpn", "cifar_resnet20", {}, r"needs maps of strides \[4, 8\], the second has \[1, 2, 4\]; take unet"),
        ("unet", "levit_128", {}, r"strides \[4, 8, 16, 32\], the second has \[16, 32, 64\]; take another net"),
        ("unet", "vit_small_patch14_dinov2", {}, r"has \[7, 14, 28\]; set model.backbone_args.patch_size to 16"),
        ("dpt", "vit_small_patch14_dinov2", {}, r"patches of 14 pixels; set model.backbone_args.patch_size to 16"),
        ("unet", "lenet5", {}, r"model.backbone: 'lenet5' gives no feature maps"),
        ("segnet", "vgg11", {"aux_classes": 2}, r"model.aux_weight: segnet has no auxiliary head"),
        ("segnet", "vgg11", {"decoder_args": {"a": 1}}, r"decoder_args.a: 'segnet' has no such argument; it has none"),
        ("unet", "test_resnet", {"decoder_args": {"classes": 4}}, r"decoder_args.classes: 'unet' has no such argument"),
        (
            "unet",
            "test_resnet",
            {"decoder_args": {"decoder_chanels": [8]}},
            r"decoder_args.decoder_chanels: .* mean decoder_channels",
        ),
        ("unet", "test_resnet", {"decoder_args": {"decoder_channels": [8]}}, r"model.decoder_args: .*for 1 blocks"),
        ("unet", "test_resnet", {"decoder_args": {"encoder_depth": 1}}, r"encoder_depth is 1; unet takes 2 to 5"),
        (
            "unet",
            "cifar_resnet20",
            {"decoder_args": {"encoder_depth": 4}},
            r"set model.decoder_args.encoder_depth to 2",
        ),
        ("pan", "test_resnet", {"decoder_args": {"encoder_output_stride": 8}}, r"stride is 8; pan takes 16 or 32"),
        ("unet", "test_resnet", {"backbone_args": {"wings": 2}}, r"model.backbone_args.wings: the net 'test_resnet'"),
        ("unet", "vgg11", {"drop_path_rate": 0.1}, r"model.drop_path_rate: the net 'vgg11' has no such argument"),
    ],
)
def test_what_does_not_fit_is_refused_with_advice(
    architecture: str, backbone: str, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        create_segmenter(architecture, backbone, 2, **arguments)


@pytest.mark.parametrize("architecture", ["deeplabv3", "deeplabv3plus", "pan", "upernet"])
def test_training_on_one_image_says_why_it_fails(architecture: str) -> None:
    net = small(architecture).train()
    with pytest.raises(ValueError, match=rf"'{architecture}' reduces .* one image \(64 x 64.*data.batch_size to 2"):
        net(torch.randn(1, 3, 64, 64))
    net.eval()(torch.randn(1, 3, 64, 64))


# The matrix, and overfitting: minutes.

MATRIX = (
    "resnet18",
    "mobilenetv2_100",
    "efficientnet_b0",
    "regnetx_002",
    "densenet121",
    "convnext_atto",
    "swin_tiny_patch4_window7_224",
    "vit_tiny_patch16_224",
    "vgg11_bn",
    "cifar_resnet20",
)
HEADER = """# Segmentation: which architecture with which encoder

Every architecture with ten encoders of different families, random weights, SMP's default decoder: one training step on
two images of 61 x 64 pixels, after which every parameter has a finite gradient (`yes`), or a refusal before anything
is trained (the number of its message below). The files of the encoders are not needed.

Compared by `python -m pytest -m slow tests/tasks/test_segmentation_networks.py -k matrix`, which gives a new text, too.

"""


def step(architecture: str, backbone: str) -> str:
    """Empty after a training step, or the message of the refusal."""
    backbone_args = SMALL_VGG if backbone.startswith("vgg") else None
    torch.manual_seed(0)
    try:
        net = create_segmenter(architecture, backbone, 3, image_size=(64, 64), backbone_args=backbone_args).train()
    except ValueError as error:
        return str(error)
    logits = net(torch.randn(2, 3, 61, 64))
    assert logits.shape == (2, 3, 61, 64)
    F.cross_entropy(logits, torch.randint(0, 3, (2, 61, 64))).backward()
    torch.optim.AdamW(net.parameters(), 1e-4).step()
    wrong = [name for name, p in net.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
    assert wrong == [], (architecture, backbone)
    return ""


@pytest.mark.slow
def test_matrix_of_architectures_and_encoders_is_that_of_the_docs(tmp_path: Path) -> None:
    messages: list[str] = []
    lines = ["| | " + " | ".join(ARCHITECTURES) + " |", "| --- |" + " --- |" * len(ARCHITECTURES)]
    working = {}
    for backbone in MATRIX:
        cells = []
        for architecture in ARCHITECTURES:
            message = step(architecture, backbone)
            working[architecture, backbone] = not message
            if message:
                assert f"model.architecture '{architecture}' and model.backbone '{backbone}' do not fit" in message
                assert re.search(r"; (take|set) ", message)
                message = message.replace(f"'{backbone}'", "'NAME'")
                if message not in messages:
                    messages.append(message)
            cells.append(f"no ({messages.index(message) + 1})" if message else "yes")
        lines.append(f"| `{backbone}` | " + " | ".join(cells) + " |")
    notes = [f"{number}. {message}" for number, message in enumerate(messages, 1)]
    found = tmp_path / "segmentation_matrix.md"
    found.write_text(HEADER + "\n".join([*lines, "", *notes]) + "\n")
    assert all(working["unet", backbone] for backbone in MATRIX)
    assert all(
        working[architecture, "resnet18"] for architecture in ARCHITECTURES if architecture not in ("dpt", "segnet")
    )
    assert working["dpt", "vit_tiny_patch16_224"]
    assert working["upernet", "vit_tiny_patch16_224"]
    assert working["fpn", "vit_tiny_patch16_224"]
    assert working["segnet", "vgg11_bn"]
    documented = REPOSITORY / "docs" / "segmentation_matrix.md"
    assert documented.read_text() == found.read_text(), f"copy {found} to {documented}"


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_overfits_four_pictures(architecture: str) -> None:
    _, iou = overfit(small(architecture), 40 if architecture == "segnet" else 120, 3e-3)
    print(f"{architecture}: mean IoU {iou:.3f}")
    # A border that is off by one pixel all around gives a square of 21 pixels 0.83; fpn's maps of stride 4, enlarged,
    # come to 0.899.
    assert iou > 0.85


@pytest.mark.slow
@pytest.mark.parametrize("backbone", MATRIX)
def test_every_encoder_overfits_four_pictures_in_a_unet(backbone: str) -> None:
    torch.manual_seed(0)
    backbone_args = SMALL_VGG if backbone.startswith("vgg") else None
    net = create_segmenter("unet", backbone, 3, image_size=(64, 64), backbone_args=backbone_args)
    _, iou = overfit(net, 60, 1e-3)
    print(f"{backbone}: mean IoU {iou:.3f}")
    assert iou > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_compiles_as_one_graph(architecture: str) -> None:
    torch._dynamo.reset()
    net = small(architecture).eval()
    image = torch.randn(2, 3, 61, 64)
    with torch.no_grad():
        assert torch.allclose(torch.compile(net, backend="eager", fullgraph=True)(image), net(image), atol=1e-5)


def test_a_unet_joins_the_maps_of_full_size_where_a_small_net_has_them() -> None:
    net = create_segmenter("unet", "cifar_resnet20", 3, image_size=(32, 32)).eval()
    assert net.net.encoder.out_channels == [3, 16, 32, 64]
    assert net.stride_multiple == 4
    assert net(torch.zeros(1, 3, 31, 33)).shape == (1, 3, 31, 33)
    given = create_segmenter("unet", "cifar_resnet20", 3, image_size=(32, 32), decoder_args={"encoder_depth": 2})
    assert given.net.encoder.out_channels == [3, 32, 64]
    assert create_segmenter("linknet", "cifar_resnet20", 3).net.encoder.out_channels == [3, 32, 64]


def test_a_shallow_decoder_has_the_widths_of_the_finest_maps() -> None:
    """SMP's default, 256 to 16 channels, is for five halvings; of three, the last three are taken."""
    net = create_segmenter("unet", "test_resnet", 1, decoder_args={"encoder_depth": 3})
    assert [block.conv2[0].out_channels for block in net.net.decoder.blocks] == [64, 32, 16]
