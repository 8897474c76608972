"""Operations of one image: by hand, and against published figures."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tasks import Classification, Detection, Segmentation
from tasks.flops import count_flops
from tests.tasks.fake_task import FakeTask


def test_a_net_by_hand():
    """3 x 3 x 1 x 4 weights at 6 x 6 places, then 4 x 2 weights; each is a multiplication and an addition."""
    task = FakeTask()
    task.configure_model()
    task.train()
    task.network.head.eval()
    assert count_flops(task) == 2 * (9 * 4 * 36 + 4 * 2)
    assert task.network.backbone.training
    assert not task.network.head.training, "modes are as before"


@pytest.mark.parametrize(
    ("backbone", "gmacs"),
    # Published for 224 x 224: of timm's model cards, and of MobileNetV2's paper (Sandler et al. 2018, table 4).
    [("resnet18", 1.82), ("mobilenetv2_100", 0.300), ("vit_tiny_patch16_224", 1.26)],
)
def test_published_figures_of_backbones(backbone, gmacs):
    with torch.device("meta"):
        task = Classification(backbone, num_classes=1000, in_chans=3, image_size=None, channels_last=False)
        task.configure_model()
    assert count_flops(task) / 2e9 == pytest.approx(gmacs, rel=0.01)


def test_attention_of_torchs_own_layers_counts():
    """Four projections of 8 x 8, two products of attention, and a feed-forward of 8 x 16 twice, for 6 tokens."""

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

        def forward(self, image):
            return self.layer(image[:, 0, :6, :])

    class Attending(FakeTask):
        def build_network(self):
            return Encoder()

        def head_names(self):
            return set()

    task = Attending()
    task.configure_model()
    assert count_flops(task) == 2 * (4 * 6 * 8 * 8 + 2 * 6 * 6 * 8 + 2 * 6 * 8 * 16)


@pytest.mark.parametrize(
    "task",
    [
        lambda: Segmentation("unet", "test_resnet", num_classes=3, in_chans=3, image_size=64),
        lambda: Detection("yolo", "test_resnet", num_classes=3, in_chans=3, image_size=64),
        lambda: Detection("faster_rcnn", "test_resnet", num_classes=3, in_chans=3, image_size=64),
    ],
)
def test_dense_tasks_count_more_than_their_backbone(task):
    """All convolutions' multiplications, added up by hooks; of the two-stage one that of the regions, too."""
    made = task()
    made.configure_model()
    by_hand = []

    def count(module: nn.Module, inputs, output) -> None:
        values = output.numel() if isinstance(output, torch.Tensor) else 0
        if isinstance(module, nn.Conv2d):
            by_hand.append(2 * values * module.weight[0].numel())
        elif isinstance(module, nn.Linear):
            by_hand.append(2 * values * module.in_features)

    for module in made.modules():
        module.register_forward_hook(count)
    assert count_flops(made) == sum(by_hand) > 0
