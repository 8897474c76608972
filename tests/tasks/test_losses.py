"""Classification losses against torch's and torchvision's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import sigmoid_focal_loss

from tasks.losses import classification_loss

B, K = 16, 5


@pytest.fixture
def data() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "logits": torch.randn(B, K, generator=generator) * 3,
        "hard": torch.randint(K, (B,), generator=generator),
        "soft": torch.rand(B, K, generator=generator).softmax(1),
        "multi": (torch.rand(B, K, generator=generator) > 0.6).float(),
        "weights": torch.rand(K, generator=generator) + 0.5,
    }


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("target", ["hard", "soft"])
def test_cross_entropy_is_torchs(data: dict[str, torch.Tensor], target: str, smoothing: float) -> None:
    loss = classification_loss(data["logits"], data[target], label_smoothing=smoothing)
    assert loss.shape == (B,)
    assert torch.allclose(loss.mean(), F.cross_entropy(data["logits"], data[target], label_smoothing=smoothing))


def test_cross_entropy_with_class_weights_is_torchs_but_for_the_divisor(data: dict[str, torch.Tensor]) -> None:
    weights = data["weights"]
    loss = classification_loss(data["logits"], data["hard"], class_weights=weights)
    expected = F.cross_entropy(data["logits"], data["hard"], weights)
    assert torch.allclose(loss.sum() / weights[data["hard"]].sum(), expected)


def test_one_hot_soft_targets_equal_hard_ones(data: dict[str, torch.Tensor]) -> None:
    for kind in ("cross_entropy", "bce", "focal"):
        for extra in ({}, {"label_smoothing": 0.1}, {"class_weights": data["weights"]}):
            hard = classification_loss(data["logits"], data["hard"], kind=kind, **extra)
            soft = classification_loss(data["logits"], F.one_hot(data["hard"], K).float(), kind=kind, **extra)
            assert torch.allclose(hard, soft, atol=1e-6), (kind, extra)


@pytest.mark.parametrize("weighted", [False, True])
def test_bce_is_torchs(data: dict[str, torch.Tensor], weighted: bool) -> None:
    weights = data["weights"] if weighted else None
    loss = classification_loss(data["logits"], data["multi"], kind="bce", class_weights=weights)
    expected = F.binary_cross_entropy_with_logits(data["logits"], data["multi"], pos_weight=weights)
    assert torch.allclose(loss.mean(), expected)


def test_bce_smoothing_is_timms(data: dict[str, torch.Tensor]) -> None:
    from timm.loss import BinaryCrossEntropy

    loss = classification_loss(data["logits"], data["hard"], kind="bce", label_smoothing=0.1)
    assert torch.allclose(loss.mean(), BinaryCrossEntropy(smoothing=0.1)(data["logits"], data["hard"]))


@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("target", ["multi", "soft"])
def test_focal_is_torchvisions(data: dict[str, torch.Tensor], target: str, gamma: float) -> None:
    loss = classification_loss(data["logits"], data[target], kind="focal", focal_gamma=gamma)
    expected = sigmoid_focal_loss(data["logits"], data[target], alpha=-1, gamma=gamma, reduction="mean")
    assert torch.allclose(loss.mean(), expected)


@pytest.mark.parametrize("kind", ["cross_entropy", "bce", "focal"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_loss_is_float32_and_finite_with_gradients_at_extreme_logits(kind: Any, dtype: torch.dtype) -> None:
    logits = torch.tensor([[1000.0, -1000.0], [-1000.0, 1000.0]], dtype=dtype, requires_grad=True)
    loss = classification_loss(logits, torch.tensor([0, 0]), kind=kind, label_smoothing=0.1)
    loss.sum().backward()
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss).all()
    assert torch.isfinite(logits.grad).all()
