"""Metrics against scikit-learn's."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from sklearn import metrics as sk
from torch import Tensor
from torchmetrics.functional.classification import multiclass_calibration_error

from tasks.metrics import ClassificationMetrics, MultiLabelMetrics


def batches(*tensors: Tensor, size: int = 7) -> Sequence[tuple[Tensor, ...]]:
    return list(zip(*(tensor.split(size) for tensor in tensors), strict=True))


@pytest.fixture
def single() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    # Eight classes: 6 never occurs in the target, 7 neither there nor among the predictions.
    target = torch.randint(6, (201,), generator=generator)
    logits = torch.randn(201, 8, generator=generator)
    logits[torch.arange(201), target] += 1.0
    logits[:, 7] = -20
    return logits.softmax(1), target, torch.rand(201, generator=generator) * 4


def filled(
    metric: ClassificationMetrics | MultiLabelMetrics, *tensors: Tensor
) -> ClassificationMetrics | MultiLabelMetrics:
    for part in batches(*tensors):
        metric.update(*part)
    return metric


def test_single_label_metrics_are_scikit_learns(single: tuple[Tensor, Tensor, Tensor]) -> None:
    probabilities, target, loss = single
    metric = filled(ClassificationMetrics(8, top_k=(1, 3, 5, 8, 50)), *single)
    values = metric.compute()
    predicted = probabilities.argmax(1)
    present = sorted(set(target.tolist()) | set(predicted.tolist()))
    assert 6 in present
    assert 7 not in present
    labels = range(8)
    expected = {
        "accuracy": sk.accuracy_score(target, predicted),
        "top3": sk.top_k_accuracy_score(target, probabilities, k=3, labels=labels),
        "top5": sk.top_k_accuracy_score(target, probabilities, k=5, labels=labels),
        "f1": sk.f1_score(target, predicted, average="macro", labels=present),
        "ece": float(multiclass_calibration_error(probabilities, target, 8, n_bins=15)),
        "loss": float(loss.double().mean()),
    }
    assert set(values) == set(expected)
    for name, value in expected.items():
        assert float(values[name]) == pytest.approx(value, abs=1e-6), name
        assert values[name].numel() == 1
    assert torch.equal(metric.confusion, torch.from_numpy(sk.confusion_matrix(target, predicted, labels=labels)))
    table = metric.per_class()
    reference = sk.precision_recall_fscore_support(target, predicted, labels=labels, zero_division=0)
    for name, column in zip(("precision", "recall", "f1", "support"), reference, strict=True):
        assert table[name] == pytest.approx(list(column), abs=1e-7)


def test_confusion_stays_after_reset_until_the_next_compute(single: tuple[Tensor, Tensor, Tensor]) -> None:
    metric = filled(ClassificationMetrics(8), *single)
    assert int(metric.confusion.sum()) == 201
    metric.compute()
    metric.reset()
    assert int(metric.confusion.sum()) == 201
    assert torch.isnan(metric.compute()["accuracy"])
    assert int(metric.confusion.sum()) == 0


@pytest.mark.parametrize("num_classes", [1, 2, 5])
def test_no_images_give_nan_and_few_classes_have_no_top_5(num_classes: int) -> None:
    metric = ClassificationMetrics(num_classes)
    values = metric.compute()
    assert set(values) == {"accuracy", "f1", "ece", "loss"}
    assert all(torch.isnan(value) for value in values.values())
    assert metric.per_class()["support"] == [0] * num_classes
    metric.update(torch.ones(3, num_classes) / num_classes, torch.zeros(3, dtype=torch.int64))
    assert 0 <= float(metric.compute()["accuracy"]) <= 1


def test_sums_do_not_depend_on_the_order_or_the_parts(single: tuple[Tensor, Tensor, Tensor]) -> None:
    order = torch.randperm(201, generator=torch.Generator().manual_seed(1))
    one = filled(ClassificationMetrics(8), *single).compute()
    whole = ClassificationMetrics(8)
    whole.update(*(tensor[order] for tensor in single))
    other = whole.compute()
    for name in ("accuracy", "top5", "f1", "ece"):
        assert torch.equal(one[name], other[name])
    assert float(one["loss"]) == pytest.approx(float(other["loss"]), rel=1e-6)


def test_loss_of_many_small_batches_stays_exact_and_nan_is_not_hidden() -> None:
    metric = ClassificationMetrics(2)
    loss = torch.rand(20_000, generator=torch.Generator().manual_seed(0)) + 1e-3
    for value in loss:
        metric._add_losses(value.view(1))
    expected = float(loss.double().mean())
    assert float(metric.loss_sum + metric.loss_rest) / 20_000 == pytest.approx(expected, rel=2e-7)
    metric.update(torch.tensor([[0.5, 0.5]]), torch.tensor([0]), torch.tensor([torch.nan]))
    assert torch.isnan(metric.compute()["loss"])


def test_states_are_sums_and_never_buffers() -> None:
    metric = ClassificationMetrics(4)
    assert list(metric.buffers()) == []
    assert metric.state_dict() == {}
    assert all(reduce is torch.sum or reduce.__name__ == "dim_zero_sum" for reduce in metric._reductions.values())


@pytest.fixture
def multi() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    target = (torch.rand(120, 6, generator=generator) > 0.7).float()
    logits = torch.randn(120, 6, generator=generator) + target
    return (logits.sigmoid() * 50).round() / 50, target, torch.rand(120, generator=generator)  # rounded: ties


def test_multi_label_metrics_are_scikit_learns(multi: tuple[Tensor, Tensor, Tensor]) -> None:
    scores, target, loss = multi
    values = filled(MultiLabelMetrics(6), *multi).compute()
    predicted = scores >= 0.5
    expected = {
        "map": sk.average_precision_score(target, scores, average="macro"),
        "f1": sk.f1_score(target, predicted, average="macro"),
        "f1_micro": sk.f1_score(target, predicted, average="micro"),
        "loss": float(loss.mean()),
    }
    assert set(values) == set(expected)
    for name, value in expected.items():
        assert float(values[name]) == pytest.approx(value, abs=1e-6), name


def test_multi_label_leaves_out_labels_that_never_occur(multi: tuple[Tensor, Tensor, Tensor]) -> None:
    scores, target, _ = multi
    target = target.clone()
    target[:, 1:] = 0
    scores = scores.clone()
    scores[:, 2] = 0.1
    values = filled(MultiLabelMetrics(6), scores, target).compute()
    assert float(values["map"]) == pytest.approx(sk.average_precision_score(target[:, 0], scores[:, 0]), abs=1e-6)
    macro = sk.f1_score(target, scores >= 0.5, average="macro", zero_division=np.nan)
    assert float(values["f1"]) == pytest.approx(macro, abs=1e-6)


def test_multi_label_without_images_is_nan() -> None:
    metric = MultiLabelMetrics(3)
    assert all(torch.isnan(value) for value in metric.compute().values())
    metric.update(torch.zeros(2, 3), torch.zeros(2, 3))
    assert torch.isnan(metric.compute()["map"])


def test_update_is_fast() -> None:
    metric = ClassificationMetrics(1000)
    generator = torch.Generator().manual_seed(0)
    probabilities = torch.randn(256, 1000, generator=generator).softmax(1)
    target = torch.randint(1000, (256,), generator=generator)
    loss = torch.rand(256)
    times = []
    for _ in range(30):
        start = time.process_time()
        metric.update(probabilities, target, loss)
        times.append(time.process_time() - start)
    print(f"update of 256 x 1000: {1000 * float(np.median(times)):.2f} ms")
    assert np.median(times) < 0.02  # 2 ms alone; room for neighbours and several threads


@pytest.mark.gpu
def test_update_does_not_wait_for_the_gpu(single: tuple[Tensor, Tensor, Tensor]) -> None:
    metric = ClassificationMetrics(8).cuda()
    tensors = [tensor.cuda() for tensor in single]
    metric.update(*tensors)
    torch.cuda.set_sync_debug_mode("error")
    try:
        metric.update(*tensors)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    expected = filled(ClassificationMetrics(8), *single, *()).compute()
    assert float(metric.compute()["accuracy"]) == pytest.approx(float(expected["accuracy"]))


def test_calibration_is_the_mean_confidence_accuracy_and_number_of_each_bin() -> None:
    """Confidences of 0.85, 0.75 and 0.75, of which the first and the third are right."""
    metrics = ClassificationMetrics(2, num_bins=10)
    metrics.update(torch.tensor([[0.85, 0.15], [0.25, 0.75], [0.75, 0.25]]), torch.tensor([0, 0, 0]))
    metrics.compute()
    confidence, accuracy, count = metrics.calibration
    assert count.tolist() == [0] * 7 + [2, 1, 0]
    assert confidence[7:9].tolist() == pytest.approx([0.75, 0.85])
    assert accuracy[7:9].tolist() == [0.5, 1]


def test_a_confidence_on_the_edge_of_two_bins_belongs_to_the_lower_one() -> None:
    metrics = ClassificationMetrics(2, num_bins=4)
    metrics.update(torch.tensor([[0.75, 0.25], [0.5, 0.5], [0.0, 1.0], [0.8, 0.2]]), torch.tensor([0, 0, 0, 0]))
    metrics.compute()
    assert metrics.calibration[2].tolist() == [0, 1, 1, 2]
