"""Methods against captum, grad-cam and hand computations; scores of explanations against nets whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from datamodules.common.errors import UserError
from pipelines.explaining import faithfulness, maps, methods
from pipelines.explaining.attribution import Settings, explain_target, methods_of
from pipelines.explaining.pictures import to_original
from pipelines.explaining.relevance import propagate
from pipelines.explaining.targets import Target
from tasks.backbones import create_classifier
from tasks.classification import Classification

LOW, HIGH = torch.full((1, 3, 1, 1), -1.0), torch.ones(1, 3, 1, 1)


class Small(nn.Module):
    """Two convolutions without biases, pooling, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.first_relu = nn.ReLU()
        self.pool = nn.MaxPool2d(2)
        self.second = nn.Conv2d(6, 8, 3, padding=1, bias=False)
        self.second_relu = nn.ReLU()
        self.mean = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(8, 4, bias=False)

    def forward(self, image: Tensor) -> Tensor:
        x = self.pool(self.first_relu(self.first(image)))
        return self.head(self.mean(self.second_relu(self.second(x))).flatten(1))


@pytest.fixture
def net() -> Small:
    torch.manual_seed(0)
    return Small().eval()


@pytest.fixture
def image() -> Tensor:
    return torch.rand(1, 3, 12, 16, generator=torch.Generator().manual_seed(1))


def score_of(net: nn.Module, label: int = 2):
    return lambda images: net(images)[:, label]


# Against captum and grad-cam.


def test_gradients_and_occlusion_are_captums(net: Small, image: Tensor):
    attr = pytest.importorskip("captum.attr")
    score, baseline = score_of(net), torch.full_like(image, 0.3)
    close(methods.gradient(score, image), attr.Saliency(net).attribute(image, target=2, abs=False)[0])
    expected = attr.IntegratedGradients(net).attribute(image, baseline, target=2, n_steps=20, method="gausslegendre")
    close(methods.integrated_gradients(score, image, baseline, 20), expected[0])
    expected = attr.Occlusion(net).attribute(image, (3, 4, 4), (3, 2, 2), baseline, target=2)
    close(methods.occlusion(score, image, baseline, 4, 2), expected[0])
    torch.manual_seed(7)  # captum draws its noise from the global generator
    expected = attr.NoiseTunnel(attr.Saliency(net)).attribute(image, nt_samples=8, stdevs=0.1, target=2, abs=False)
    close(methods.smoothgrad(score, image, 0.1, 8, seed=7), expected[0])


def test_class_activation_maps_are_captums_and_grad_cams(net: Small, image: Tensor):
    attr = pytest.importorskip("captum.attr")
    place = maps.Place("second_relu", net.second_relu)
    found = maps.activations(place, score_of(net), image)
    expected = attr.LayerGradCam(net, net.second_relu).attribute(image, target=2, relu_attributions=True)
    close(maps.grad_cam(*found), expected[0, 0])
    package = pytest.importorskip("pytorch_grad_cam")
    with package.LayerCAM(model=net, target_layers=[net.second_relu]) as cam:
        expected = cam(input_tensor=image, targets=[lambda output: output[2]])[0]
    scaled = package.utils.image.scale_cam_image(maps.layer_cam(*found)[None].numpy(), image.shape[:1:-1])
    np.testing.assert_allclose(package.utils.image.scale_cam_image(scaled)[0], expected, atol=1e-5)  # it scales twice


def test_relevance_is_captums(net: Small, image: Tensor):
    attr = pytest.importorskip("captum.attr")
    from captum.attr._utils.lrp_rules import Alpha1_Beta0_Rule, EpsilonRule

    found = propagate(net, score_of(net), image, LOW, HIGH)
    assert found.conserved == pytest.approx(1, abs=1e-3)
    net.head.rule, net.second.rule, net.first.rule = EpsilonRule(0), Alpha1_Beta0_Rule(), Alpha1_Beta0_Rule()
    layer = attr.LayerLRP(net, net.first).attribute(image, target=2)  # the relevance of its output
    value = net(image)[0, 2]
    # The first layer by hand: z^B.
    x, low, high = (part.expand_as(image).clone().requires_grad_() for part in (image, LOW, HIGH))
    weight = net.first.weight.detach()

    def conv(part: Tensor, values: Tensor) -> Tensor:
        return nn.functional.conv2d(part, values, padding=1)

    parts = conv(x, weight) - conv(low, weight.clamp(min=0)) - conv(high, weight.clamp(max=0))
    (parts * (layer / value / parts).detach()).sum().backward()
    expected = sum(part.detach() * part.grad for part in (x, low, high))
    close(found.pixels, expected[0], 1e-4)


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(found, expected.detach(), rtol=tolerance, atol=tolerance * float(expected.abs().max()))


# By hand.


def test_integrated_gradients_sum_to_the_difference(net: Small, image: Tensor):
    baseline = torch.zeros_like(image)
    total = float(methods.integrated_gradients(score_of(net), image, baseline, 64).sum())
    assert total == pytest.approx(float(score_of(net)(image) - score_of(net)(baseline)), rel=1e-2)


def test_occlusion_by_hand():
    image = torch.zeros(1, 1, 4, 4)
    image[0, 0, 1, 1] = 1.0
    found = methods.occlusion(lambda images: images[:, 0, 1, 1], image, torch.zeros_like(image), 2, 2)
    expected = torch.zeros(1, 4, 4)
    expected[0, :2, :2] = 1.0
    torch.testing.assert_close(found, expected)


def test_maps_of_tokens_and_of_channels_last():
    tokens = torch.arange(2 * 7 * 3, dtype=torch.float32).view(2, 7, 3)
    grid = maps.as_map(tokens, (32, 48), 1)
    assert grid.shape == (2, 3, 2, 3)
    torch.testing.assert_close(grid[0, :, 1, 0], tokens[0, 4])
    assert maps.as_map(torch.zeros(1, 4, 6, 24), (64, 96), 0).shape == (1, 24, 4, 6)
    assert maps.as_map(torch.zeros(1, 24, 4, 6), (64, 96), 0).shape == (1, 24, 4, 6)
    with pytest.raises(UserError, match="7 tokens forms no grid"):
        maps.as_map(torch.zeros(1, 7, 8), (64, 96), 0)


def test_areas_of_a_net_that_counts_what_it_sees():
    """The answer is the fraction of the upper left quarter that is white."""
    image, black = torch.ones(1, 1, 16, 16), torch.zeros(1, 1, 16, 16)
    answer = lambda images: images[:, 0, :8, :8].mean((1, 2))  # noqa: E731
    heat = torch.zeros(16, 16)
    heat[:8, :8] = 1.0
    right = faithfulness.areas(answer, image, black, faithfulness.cells_of(heat))
    # In 16 steps all is gone after four: (1 / 2 + 3/4 + 2/4 + 1/4) / 16.
    assert right.deletion == pytest.approx(2 / 16)
    assert right.insertion == pytest.approx(14 / 16)
    chance = faithfulness.random_areas(answer, image, black, 20, seed=0)
    assert chance.difference == pytest.approx(0, abs=0.05)
    wrong = faithfulness.areas(answer, image, black, faithfulness.cells_of(-heat))
    assert wrong.difference == pytest.approx(-right.difference)


def test_random_weights_are_put_back(net: Small, image: Tensor):
    before, values = net(image), net.second.weight.detach().clone()
    with faithfulness.random_weights(net, 0):
        assert not torch.equal(net.second.weight, values)
        torch.testing.assert_close(net.second.weight.flatten().sort()[0], values.flatten().sort()[0])
    torch.testing.assert_close(net(image), before)
    ramp = np.arange(12.0).reshape(3, 4)
    assert faithfulness.similarity(ramp, ramp**3) == pytest.approx(1)
    assert faithfulness.similarity(ramp, -ramp) == pytest.approx(-1)
    assert faithfulness.similarity(ramp, np.ones((3, 4))) == 0
    first, second = np.zeros((8, 8)), np.zeros((8, 8))
    first[0, :4], second[0, :4] = [1, 2, 3, 4], [4, 3, 2, 1]
    assert faithfulness.similarity(first, second) == pytest.approx(-1)  # over all cells 0.97


def test_a_map_in_original_pixels():
    """A canvas of 4 x 8, with two pixels of padding at the left, of a picture that is twice as large."""
    heat = torch.zeros(4, 8)
    heat[1, 4] = 1.0
    found = to_original(heat, np.array([8, 12, 0.5, 0.5, 2, 0], np.float32))
    assert found.shape == (8, 12)
    assert np.argwhere(found == found.max()).tolist() == [[2, 4], [2, 5], [3, 4], [3, 5]]
    cropped = to_original(torch.ones(4, 4), np.array([4, 8, 1, 1, -2, 0], np.float32))
    np.testing.assert_array_equal(cropped, np.repeat([[0, 0, 1, 1, 1, 1, 0, 0]], 4, 0))


# Networks of timm.


def classifier(backbone: str, size: int = 64) -> Classification:
    """A classifier whose batch norms have seen something, so that no scale is 1 and no shift 0."""
    torch.manual_seed(0)
    task = Classification(backbone, 3, in_chans=3, image_size=size)
    task.configure_model()
    for module in task.network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.normal_(module.weight, 0.7, 0.3)
            nn.init.normal_(module.bias, 0, 0.2)
    return task.eval()


NETS = ["cifar_resnet20", "test_resnet", "test_efficientnet", "test_byobnet", "test_convnext2", "lenet5"]


@pytest.mark.parametrize("backbone", NETS)
def test_relevance_is_conserved(backbone: str):
    task = classifier(backbone)
    low, high = -task.mean / task.std, (1 - task.mean) / task.std
    found = propagate(task.network, lambda images: task(images)[:, 1], torch.rand(1, 3, 64, 64), low, high)
    assert found.pixels.shape == (3, 64, 64)
    assert found.conserved == pytest.approx(1, abs=0.01)
    assert float(found.pixels.abs().sum()) > 0.5


def test_relevance_of_black_is_conserved():
    """What is as black as a pixel can be must get a part, also where all weights that see it are positive."""
    task, target = classifier("cifar_resnet20"), Target(name="", label=1, probability=0.5)
    task.network.conv1.weight.data.abs_()
    heat = explain_target(task, target, torch.zeros(1, 3, 64, 64), "lrp", Settings())
    assert heat.conserved == pytest.approx(1, abs=0.01)


def test_networks_without_rules_are_refused():
    task = classifier("test_vit")
    with pytest.raises(UserError, match=r"lrp has no rule for Attention \(blocks.0.attn\)"):
        explain_target(task, Target(name="", label=1, probability=0.5), torch.rand(1, 3, 64, 64), "lrp", Settings())


@pytest.mark.parametrize("backbone", ["test_vit", pytest.param("test_convnext", marks=pytest.mark.slow)])
def test_every_method_gives_a_map_that_says_something(backbone: str):
    task, target = classifier(backbone), Target(name="", label=1, probability=0.5)
    for method in methods_of(None):
        if method == "lrp" and backbone == "test_vit":
            continue
        heat = explain_target(task, target, torch.rand(1, 3, 64, 64), method, Settings(steps=4, samples=2)).values
        assert heat.shape == (64, 64), method
        assert heat.isfinite().all(), method
        assert heat.std() > 0, method


def test_layers_are_found():
    image = torch.rand(1, 3, 64, 64)
    found = {name: maps.find_place(classifier(name), image).name for name in ("test_vit", "test_resnet")}
    assert found == {"test_vit": "blocks.5.norm1", "test_resnet": "layer4"}
    assert maps.find_place(classifier("test_resnet"), image, "layer2").name == "layer2"
    with pytest.raises(UserError, match=r"--layer layer9: the network has no such layer. Did you mean layer\d"):
        maps.find_place(classifier("test_resnet"), image, "layer9")
    assert create_classifier("test_resnet", 2) is not None


FURTHER = [
    "deeplift",
    "gradcam++",
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("guided_backprop", "scorecam")),
]


@pytest.mark.parametrize("method", FURTHER)
def test_methods_of_packages(method: str):
    pytest.importorskip("captum")
    pytest.importorskip("pytorch_grad_cam")
    task, target = classifier("test_byobnet"), Target(name="", label=1, probability=0.5)
    heat = explain_target(task, target, torch.rand(1, 3, 64, 64), method, Settings()).values
    assert heat.shape == (64, 64)
    assert heat.isfinite().all()


def test_names_of_methods():
    assert methods_of("lrp, gradcam,lrp") == ["lrp", "gradcam"]
    with pytest.raises(UserError, match="'magic' is none of gradient"):
        methods_of("lrp,magic")
    with pytest.raises(UserError, match="--noise is 0"):
        Settings(noise=0)
