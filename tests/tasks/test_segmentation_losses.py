"""Segmentation losses against torch's, SMP's and formulas in NumPy, on images whose ignored pixels are cut out."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from torch import Tensor

from tasks.segmentation.losses import LOSSES, check_losses, segmentation_loss

B, K, H, W = 3, 5, 9, 7
KINDS = ("multiclass", "binary", "multilabel")
SOFT = tuple(name for name in LOSSES if name != "lovasz")
OVERLAPS = {"dice": (0.5, 0.5), "jaccard": (1.0, 1.0), "tversky": (0.3, 0.7)}


def make(kind: str, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits and masks; class 4 never occurs, and a fifth of the pixels is ignored."""
    generator = torch.Generator().manual_seed(seed)
    maps = 1 if kind == "binary" else K
    logits = torch.randn(B, maps, H, W, generator=generator) * 2
    size = (B, K, H, W) if kind == "multilabel" else (B, H, W)
    mask = torch.randint(4 if kind == "multiclass" else 2, size, generator=generator).to(torch.uint8)
    mask[torch.rand(size, generator=generator) < 0.2] = 255
    if kind == "multilabel":
        mask[:, 4][mask[:, 4] == 1] = 0
    return logits, mask


def loss_of(logits: Tensor, mask: Tensor, name: str, kind: Any, **options: Any) -> Tensor:
    result = segmentation_loss(logits, mask, kind=kind, losses={name: 1.0}, **options)
    assert list(result) == ["loss"]
    assert result["loss"].dtype == torch.float32
    assert result["loss"].shape == ()
    return result["loss"]


def soft(mask: Tensor, kind: str) -> Tensor:
    """The same targets as probabilities, float16 (B, K, H, W); not zero where they are ignored."""
    if kind == "multiclass":
        return F.one_hot(mask.long().clamp(max=K - 1), K).permute(0, 3, 1, 2).half()
    return (mask.unsqueeze(1) if kind == "binary" else mask).ne(0).half()


def cut_out(logits: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """One image of classes or one map as (1, C, 1, n), (1, 1, n), without its ignored pixels."""
    valid = mask != 255
    return logits[:, valid][None, :, None], mask[valid][None, None].long()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
def test_cross_entropy_is_torchs_on_the_valid_pixels(smoothing: float, weighted: bool) -> None:
    logits, mask = make("multiclass")
    weights = torch.tensor([0.5, 1.0, 2.0, 0.7, 0.8]) if weighted else None
    expected = []
    for image in zip(logits, mask, strict=True):
        x, y = cut_out(*image)
        expected.append(F.cross_entropy(x, y, weights, label_smoothing=smoothing, reduction="sum") / y.numel())
    options = {"class_weights": weights, "label_smoothing": smoothing}
    assert torch.allclose(loss_of(logits, mask, "cross_entropy", "multiclass", **options), torch.stack(expected).mean())
    probabilities = soft(mask, "multiclass")
    value = loss_of(logits, mask, "cross_entropy", "multiclass", soft_mask=probabilities, **options)
    assert torch.allclose(value, torch.stack(expected).mean())


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_binary_cross_entropy_is_that_of_two_classes(smoothing: float) -> None:
    """A sigmoid is a softmax over (0, x), with class weights and label smoothing too."""
    logits, mask = make("binary")
    two = torch.cat([torch.zeros_like(logits), logits], 1)
    for weights in (None, torch.tensor([0.6, 1.4])):
        options: dict[str, Any] = {"label_smoothing": smoothing}
        if weights is None or not smoothing:  # torch weights the terms of a smoothed target, here it is the pixel
            options["class_weights"] = weights
        one = loss_of(logits, mask, "cross_entropy", "binary", **options)
        assert torch.allclose(one, loss_of(two, mask, "cross_entropy", "multiclass", **options))
        soft_two = torch.stack([mask == 0, mask == 1], 1).half()
        for probabilities in (soft(mask, "binary"), soft_two):
            assert torch.allclose(
                one, loss_of(logits, mask, "cross_entropy", "binary", soft_mask=probabilities, **options)
            )


def test_multi_label_cross_entropy_is_torchs_on_the_valid_pixels() -> None:
    logits, mask = make("multilabel")
    weights = torch.tensor([0.5, 1.0, 2.0, 0.7, 0.8])
    expected, weighted = [], []
    for x, y in zip(logits, mask, strict=True):
        valid = y != 255
        terms = F.binary_cross_entropy_with_logits(x[valid], y[valid].float(), reduction="none")
        expected.append(terms.mean())
        weighted.append((terms * weights.view(-1, 1, 1).expand(K, H, W)[valid]).mean())
    assert torch.allclose(loss_of(logits, mask, "cross_entropy", "multilabel"), torch.stack(expected).mean())
    value = loss_of(logits, mask, "cross_entropy", "multilabel", class_weights=weights)
    assert torch.allclose(value, torch.stack(weighted).mean())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["focal", "dice", "jaccard", "tversky", "lovasz"])
def test_an_image_has_the_loss_that_smp_gives_it_alone(name: str, kind: Any) -> None:
    logits, mask = make(kind)
    args: dict[str, Any] = {"ignore_index": 255}
    if name == "tversky":
        args |= {"alpha": 0.3, "beta": 0.7}
    theirs = getattr(smp.losses, f"{name.capitalize()}Loss")(kind, **args)
    expected = []
    for x, y in zip(logits, mask, strict=True):
        if name == "focal" and kind == "multilabel":  # SMP's indexes a map with the pixels of all maps
            one = smp.losses.FocalLoss("binary", **args)
            counts = (y != 255).sum((1, 2)).tolist()
            expected.append(sum(n * one(a[None], b[None]) for n, a, b in zip(counts, x, y, strict=True)) / sum(counts))
            continue
        value = theirs(x[None], y[None].long())
        if kind != "multilabel":  # and with the ignored pixels really gone
            assert torch.allclose(theirs(*cut_out(x, y)), value, atol=1e-6)
        if name in OVERLAPS and kind != "binary":  # SMP divides by all classes, we by those that the image has
            present = (
                (y == 1).flatten(1).any(1).sum() if kind == "multilabel" else len(set(y.unique().tolist()) - {255})
            )
            value = value * K / present
        expected.append(value)
    assert torch.allclose(loss_of(logits, mask, name, kind), torch.stack(expected).mean(), atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_overlap_losses_are_their_formulas(kind: Any) -> None:
    logits, mask = make(kind)
    weights = torch.tensor([0.5, 1.0, 2.0, 0.7, 0.8])
    for name, (alpha, beta) in OVERLAPS.items():
        values, weighted = [], []
        for x, y in zip(logits.double(), mask.numpy(), strict=True):
            probability = (x.softmax(0) if kind == "multiclass" else x.sigmoid()).numpy()
            losses = np.full(len(probability), np.nan)
            for k, p in enumerate(probability):
                label = y[k] if kind == "multilabel" else y
                t = (label == (k if kind == "multiclass" else 1))[label != 255].astype(float)
                p = p[label != 255]
                tp, fp, fn = (p * t).sum(), (p * (1 - t)).sum(), ((1 - p) * t).sum()
                losses[k] = 1 - tp / (tp + alpha * fp + beta * fn) if t.any() else np.nan
            has = ~np.isnan(losses)
            values.append(losses[has].mean())
            weighted.append(np.average(losses[has], weights=weights[has] if kind != "binary" else None))
        assert float(loss_of(logits, mask, name, kind)) == pytest.approx(np.mean(values), abs=1e-6)
        class_weights = weights if kind != "binary" else torch.tensor([0.2, 1.8])
        value = loss_of(logits, mask, name, kind, class_weights=class_weights)
        assert float(value) == pytest.approx(np.mean(weighted), abs=1e-6)


def test_focal_weights_are_of_the_pixels_class() -> None:
    logits, mask = make("multiclass")
    weights = torch.tensor([0.5, 1.0, 2.0, 0.7, 0.8])
    expected = []
    for image in zip(logits, mask, strict=True):
        x, y = cut_out(*image)
        t = F.one_hot(y, K).permute(0, 3, 1, 2).double()
        p = x.double().sigmoid()
        terms = -(t * (1 - p) ** 3 * p.log() + (1 - t) * p**3 * (1 - p).log()).mean(1)
        expected.append((terms * weights[y]).mean())
    value = loss_of(logits, mask, "focal", "multiclass", class_weights=weights, focal_gamma=3.0)
    assert float(value) == pytest.approx(float(torch.stack(expected).mean()), abs=1e-6)
    # Binary: the same with the two classes' weights.
    logits, mask = make("binary")
    value = loss_of(logits, mask, "focal", "binary", class_weights=torch.tensor([1.0, 1.0]))
    assert torch.allclose(value, loss_of(logits, mask, "focal", "binary"))
    parts = [loss_of(logits, mask, "focal", "binary", class_weights=torch.eye(2)[c]) for c in range(2)]
    assert torch.allclose(parts[0] + parts[1], value)
    assert parts[0] > 0
    assert parts[1] > 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SOFT)
def test_soft_targets(name: str, kind: Any) -> None:
    logits, mask = make(kind)
    options: dict[str, Any] = {"class_weights": torch.tensor([0.5, 1.5] if kind == "binary" else [0.5, 1, 2, 0.7, 0.8])}
    hard = loss_of(logits, mask, name, kind, **options)
    assert torch.allclose(hard, loss_of(logits, mask, name, kind, soft_mask=soft(mask, kind), **options), atol=1e-6)
    # Really soft ones: the loss falls towards them (focal loss is least elsewhere, see Li et al. 2020).
    wanted = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1))
    probabilities = (wanted.softmax(1) if kind == "multiclass" else wanted.sigmoid()).half()
    far, close = (loss_of(x, mask, name, kind, soft_mask=probabilities) for x in (logits, wanted))
    assert close < far
    if name in OVERLAPS:
        assert float(close) < 1e-3


def test_lovasz_refuses_soft_targets() -> None:
    logits, mask = make("multiclass")
    losses = {"cross_entropy": 1.0, "lovasz": 1.0}
    with pytest.raises(ValueError, match=r"model\.losses has lovasz.*soft masks.*jaccard"):
        segmentation_loss(logits, mask, kind="multiclass", losses=losses, soft_mask=soft(mask, "multiclass"))
    segmentation_loss(
        logits, mask, kind="multiclass", losses={**losses, "lovasz": 0.0}, soft_mask=soft(mask, "multiclass")
    )


@pytest.mark.parametrize("kind", KINDS)
def test_sum_weights_and_independence_of_the_images(kind: Any) -> None:
    logits, mask = make(kind)
    losses = {name: 0.5 + i for i, name in enumerate(LOSSES)}
    weight = torch.tensor([0.0, 1.0, 2.5])
    result = segmentation_loss(logits, mask, kind=kind, losses=losses, weight=weight)
    assert list(result) == ["loss", *LOSSES]
    for name in LOSSES:
        alone = torch.stack([loss_of(logits[i : i + 1], mask[i : i + 1], name, kind) for i in range(B)])
        assert torch.allclose(result[name], (alone * weight).mean(), atol=1e-6), name
        assert torch.equal(result[name], loss_of(logits, mask, name, kind, weight=weight))
    assert torch.allclose(result["loss"], sum(losses[name] * result[name] for name in LOSSES))  # type: ignore[arg-type]
    some = segmentation_loss(logits, mask, kind=kind, losses={"dice": 2.0, "cross_entropy": 0.0})
    assert list(some) == ["loss"]
    assert torch.allclose(some["loss"], 2 * loss_of(logits, mask, "dice", kind))


@pytest.mark.parametrize("name", LOSSES)
def test_images_of_ignored_pixels_have_no_loss_and_no_gradients(name: str) -> None:
    for kind in KINDS:
        logits, mask = make(kind)
        weights = torch.tensor([0.5, 1.5] if kind == "binary" else [0.5, 1, 2, 0.7, 0.8])
        for soft_mask in (None, soft(mask, kind)):
            if soft_mask is not None and name == "lovasz":
                continue
            options = {"class_weights": weights, "label_smoothing": 0.1, "soft_mask": soft_mask}
            one, all_ = mask.clone(), torch.full_like(mask, 255)
            one[1] = 255
            logits.grad = None
            logits.requires_grad_()
            loss_of(logits, all_, name, kind, **options).backward()
            assert float(loss_of(logits, all_, name, kind, **options)) == 0
            assert torch.equal(logits.grad, torch.zeros_like(logits))
            logits.grad = None
            value = loss_of(logits, one, name, kind, **options)
            value.backward()
            assert torch.isfinite(value)
            assert value > 0
            assert torch.equal(logits.grad[1], torch.zeros_like(logits[1]))
            assert torch.isfinite(logits.grad).all()
            assert logits.grad[0].any()
            # Ignored pixels have no gradients in the other images either.
            ignored = (one[0] == 255).expand_as(logits[0])
            assert not logits.grad[0][ignored].any()


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_finite_at_extreme_logits_and_for_one_class(name: str) -> None:
    for kind in KINDS:
        logits, mask = make(kind)
        for target in (mask, torch.zeros_like(mask), torch.ones_like(mask)):
            for scale in (0.0, 1e4, -1e4):
                extreme = (logits.sign() * scale).requires_grad_()
                value = loss_of(extreme, target, name, kind, label_smoothing=0.1)
                value.backward()
                assert torch.isfinite(value)
                assert torch.isfinite(extreme.grad).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    for kind in KINDS:
        logits, mask = make(kind)
        logits = logits.to(dtype)
        for name in LOSSES:
            expected = loss_of(logits.float(), mask, name, kind)
            assert torch.equal(loss_of(logits, mask, name, kind), expected)
            with torch.autocast("cpu", dtype=dtype):
                assert torch.allclose(loss_of(logits, mask, name, kind), expected, rtol=1e-5)
    # Sums over more pixels than float16 can count.
    half = torch.zeros(1, 2, 300, 300, dtype=torch.float16)
    assert float(loss_of(half, torch.zeros(1, 300, 300), "dice", "multiclass")) == pytest.approx(1 / 3)


def test_int64_masks_and_channels_last_give_the_same() -> None:
    for kind in KINDS:
        logits, mask = make(kind)
        for name in LOSSES:
            expected = loss_of(logits, mask, name, kind)
            assert torch.equal(loss_of(logits, mask.long(), name, kind), expected)
            strided = logits.to(memory_format=torch.channels_last)
            assert torch.allclose(loss_of(strided, mask, name, kind), expected)


def test_losses_are_checked() -> None:
    check_losses({"cross_entropy": 1, "dice": 0.0, "lovasz": 2.5})
    for losses, message in (
        ({"cros_entropy": 1.0}, r"model\.losses has 'cros_entropy'.*Did you mean cross_entropy\?"),
        ({"xyz": 1.0}, r"'xyz', which is no loss\. There are: cross_entropy, focal, dice"),
        ({"dice": -0.5}, r"model\.losses\.dice is -0\.5; .*at least 0"),
        ({"dice": math.nan}, r"model\.losses\.dice is nan"),
        ({"dice": math.inf}, r"model\.losses\.dice is inf"),
        ({"dice": 0.0, "focal": 0}, r"model\.losses has only weights of 0 \(dice, focal\)"),
        ({}, r"model\.losses has no loss"),
    ):
        with pytest.raises(ValueError, match=message):
            check_losses(losses)


def test_no_warnings() -> None:
    logits, mask = make("multiclass")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        segmentation_loss(logits, mask, kind="multiclass", losses=dict.fromkeys(LOSSES, 1.0))


@pytest.mark.gpu
def test_losses_do_not_wait_for_the_gpu_but_for_lovasz() -> None:
    losses = dict.fromkeys(SOFT, 1.0)
    for kind in KINDS:
        logits, mask = make(kind)
        expected = segmentation_loss(logits, mask, kind=kind, losses=losses)["loss"]  # type: ignore[arg-type]
        logits, mask = logits.cuda().requires_grad_(), mask.cuda()
        for mode in ("default", "error"):  # the first call loads kernels
            torch.cuda.set_sync_debug_mode(mode)
            try:
                value = segmentation_loss(logits, mask, kind=kind, losses=losses)["loss"]  # type: ignore[arg-type]
                value.backward()
            finally:
                torch.cuda.set_sync_debug_mode("default")
        assert torch.allclose(value.cpu(), expected, rtol=1e-4)
