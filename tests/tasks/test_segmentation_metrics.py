"""Segmentation metrics against scikit-learn's, SMP's and torchmetrics', boundaries against distances by SciPy."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from scipy.ndimage import distance_transform_edt
from sklearn import metrics as sk
from torch import Tensor
from torchmetrics.functional.classification import multiclass_jaccard_index

from tasks.segmentation.metrics import SegmentationMetrics, boundaries, dilate

NAMES = {"miou", "accuracy", "mean_accuracy", "dice", "fwiou"}


def cases() -> Iterator[tuple[int, list[tuple[Tensor, Tensor]]]]:
    """100 cases of some images each, with ignored pixels, and classes absent from truth, predictions or both."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(100):
        k = int(torch.randint(1, 22, (), generator=generator))
        images = []
        # Classes of the truth, and of what is predicted where it is wrong.
        some = [
            torch.randperm(k, generator=generator)[: int(n)] for n in torch.randint(1, k + 1, (2,), generator=generator)
        ]
        for _ in range(3):
            size = torch.randint(1, 40, (2,), generator=generator).tolist()
            target, other = (classes[torch.randint(len(classes), size, generator=generator)] for classes in some)
            prediction = torch.where(torch.rand(size, generator=generator) < 0.7, target, other)
            target[torch.rand(size, generator=generator) < 0.2] = 255
            images.append((prediction.to(torch.uint8), target.to(torch.uint8)))
        yield k, images


def filled(images: list[tuple[Tensor, Tensor]], *args: int, **settings: bool | float) -> SegmentationMetrics:
    metric = SegmentationMetrics(*args, **settings)  # type: ignore[arg-type]
    for prediction, target in images:
        metric.update(prediction, target)
    return metric


def close(value: object, expected: object) -> bool:
    return np.allclose(np.asarray(value, float), np.asarray(expected, float), rtol=0, atol=1e-7, equal_nan=True)


def test_metrics_are_scikit_learns_and_smps_on_100_cases() -> None:
    seen_absent = seen_predicted_only = 0
    for k, images in cases():
        metric = filled(images, k)
        values = metric.compute()
        assert set(values) == NAMES
        prediction = torch.cat([p[t != 255] for p, t in images]).numpy()
        target = torch.cat([t[t != 255] for _, t in images]).numpy()
        if not len(target):
            assert all(torch.isnan(value) for value in values.values())
            continue
        labels = range(k)
        confusion = sk.confusion_matrix(target, prediction, labels=labels)
        assert np.array_equal(metric.confusion, confusion)
        present = sorted(set(target.tolist()) | set(prediction.tolist()))
        seen_absent += len(present) < k
        seen_predicted_only += len(set(prediction.tolist()) - set(target.tolist())) > 0

        iou = np.diag(confusion) / (confusion.sum(0) + confusion.sum(1) - np.diag(confusion)).clip(1)
        precision, recall, f1, actual = sk.precision_recall_fscore_support(
            target, prediction, labels=labels, zero_division=np.nan
        )
        expected = {
            "miou": iou[present].mean(),
            "accuracy": (target == prediction).mean(),
            "mean_accuracy": np.nanmean(recall),
            "dice": f1[present].mean(),
            "fwiou": np.average(iou, weights=actual),
        }
        for name, value in expected.items():
            assert close(values[name], value), name

        table = metric.per_class()
        iou[np.setdiff1d(labels, present)] = np.nan
        for name, column in {"iou": iou, "dice": f1, "precision": precision, "recall": recall}.items():
            assert close(table[name], column), name
        assert table["pixels"] == actual.tolist()

        stats = [
            smp.metrics.get_stats(p[None].long(), t[None].long(), "multiclass", ignore_index=255, num_classes=k)
            for p, t in images
        ]
        sums = [torch.cat(part).sum(0, keepdim=True).double() for part in zip(*stats, strict=True)]
        if k > 1:  # SMP's histogram has no classes 0 to 0
            for name, function in (("iou", smp.metrics.iou_score), ("dice", smp.metrics.f1_score)):
                theirs = function(*sums, reduction="none", zero_division=math.nan)[0]
                assert close(table[name], theirs), name
            theirs = multiclass_jaccard_index(*map(torch.from_numpy, (prediction, target)), k, validate_args=False)
            assert float(values["miou"]) == pytest.approx(float(theirs), abs=1e-6)  # float32
    assert seen_absent > 20
    assert seen_predicted_only > 20


def test_overlapping_labels_are_scikit_learns_binary_scores() -> None:
    generator = torch.Generator().manual_seed(1)
    for k in (1, 3, 10):
        images = []
        for size in ((20, 31), (1, 1), (7, 5)):
            target = (torch.rand(k, *size, generator=generator) < 0.3).to(torch.uint8)
            prediction = target ^ (torch.rand(k, *size, generator=generator) < 0.2)
            target[torch.rand(k, *size, generator=generator) < 0.1] = 255
            target[-1][target[-1] == 1] = 0
            prediction[-1] = 0  # the last label never occurs
            images.append((prediction, target))
        metric = filled(images, k, multi_label=True)
        values, table = metric.compute(), metric.per_class()
        assert set(values) == NAMES
        right = total = 0
        expected: dict[str, list[float]] = {"iou": [], "dice": [], "precision": [], "recall": []}
        pixels = []
        for label in range(k):
            valid = [t[label] != 255 for _, t in images]
            p = torch.cat([p[label][v] for (p, _), v in zip(images, valid, strict=True)]).numpy()
            t = torch.cat([t[label][v] for (_, t), v in zip(images, valid, strict=True)]).numpy()
            right, total = right + int((p == t).sum()), total + len(t)
            pixels.append(int(t.sum()))
            for name, function in (
                ("iou", sk.jaccard_score),
                ("dice", sk.f1_score),
                ("precision", sk.precision_score),
                ("recall", sk.recall_score),
            ):
                occurs = {"iou": p.any() | t.any(), "dice": p.any() | t.any(), "precision": p.any(), "recall": t.any()}
                expected[name].append(function(t, p) if occurs[name] else math.nan)
        assert all(close(table[name], column) for name, column in expected.items())
        assert table["pixels"] == pixels
        assert close(values["accuracy"], right / total)
        if k == 1:
            assert all(torch.isnan(values[name]) for name in NAMES - {"accuracy"})
        else:
            assert close(values["miou"], np.nanmean(expected["iou"]))
            assert close(values["dice"], np.nanmean(expected["dice"]))
            assert close(values["mean_accuracy"], np.nanmean(expected["recall"]))
            assert close(values["fwiou"], np.average(expected["iou"][:-1], weights=pixels[:-1]))
        assert not hasattr(metric, "confusion")  # the picture callback asks


def test_uncovered_pixels_are_wrong_and_nobodys_false_positives() -> None:
    target = torch.tensor([[0, 0, 1, 1, 255]], dtype=torch.uint8)
    prediction = torch.tensor([[0, 255, 1, 1, 255]], dtype=torch.uint8)
    metric = filled([(prediction, target)], 2)
    assert float(metric.compute()["accuracy"]) == 0.75
    table = metric.per_class()
    assert (table["iou"], table["precision"], table["recall"]) == ([0.5, 1], [1, 1], [0.5, 1])
    assert table["pixels"] == [2, 2]
    assert metric.confusion.tolist() == [[1, 0], [0, 2]]
    several = filled([(prediction[None], target[None])], 1, multi_label=True)
    assert float(several.compute()["accuracy"]) == 0.75
    assert several.per_class()["iou"] == [1]


def test_batches_equal_images_and_strips_equal_wholes(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    prediction, target = torch.randint(6, (2, 5, 33, 21), generator=generator).to(torch.uint8)
    whole, parts, strips = SegmentationMetrics(5), SegmentationMetrics(5), SegmentationMetrics(5)
    whole.update(prediction, target)
    for p, t in zip(prediction, target, strict=True):
        parts.update(p, t)
    monkeypatch.setattr("tasks.segmentation.metrics.STRIP", 300)
    strips.update(prediction, target)
    assert torch.equal(whole.counts, parts.counts)
    assert torch.equal(whole.counts, strips.counts)


def test_ranks_add_up_exactly_on_an_odd_number_of_images() -> None:
    for multi_label in (False, True):
        generator = torch.Generator().manual_seed(2)
        shape = (7, 4, 13, 11) if multi_label else (7, 13, 11)
        pair = torch.randint(2 if multi_label else 4, (2, *shape), generator=generator).to(torch.uint8)
        images = list(zip(*pair, strict=True))
        options = {"multi_label": multi_label, "boundary": True}
        one = filled(images, 4, **options)
        ranks = [filled(images[i::2], 4, **options) for i in range(2)] + [filled([], 4, **options)]
        assert len(images[0::2]) != len(images[1::2])
        merged = SegmentationMetrics(4, **options)
        for name, reduce in merged._reductions.items():
            setattr(merged, name, reduce(torch.stack([getattr(rank, name) for rank in ranks])))
            assert getattr(merged, name).dtype == torch.int64
        merged._update_count = 1
        for name, value in one.compute().items():
            assert torch.equal(value, merged.compute()[name]), name
        assert one.per_class() == merged.per_class()


def test_states_are_sums_and_confusion_stays_after_reset_until_the_next_compute() -> None:
    zeros = torch.zeros(3, 4, dtype=torch.uint8)
    metric = filled([(zeros, zeros)], 3)
    assert list(metric.buffers()) == []
    assert metric.state_dict() == {}
    assert all(reduce.__name__ == "dim_zero_sum" for reduce in metric._reductions.values())
    assert int(metric.confusion.sum()) == 12
    metric.compute()
    metric.reset()
    assert int(metric.confusion.sum()) == 12
    assert metric.per_class()["pixels"] == [12, 0, 0]
    assert all(torch.isnan(value) for value in metric.compute().values())
    assert int(metric.confusion.sum()) == 0


def test_compute_is_float64() -> None:
    # A third is not a float32: what is logged equals a reference to 1e-7 and better.
    target = torch.tensor([[0, 0, 1]], dtype=torch.uint8)
    values = filled([(torch.zeros_like(target), target)], 2).compute()
    assert float(values["accuracy"]) == 2 / 3
    assert float(values["miou"]) == 1 / 3


def test_other_shapes_are_refused() -> None:
    metric, several = SegmentationMetrics(3), SegmentationMetrics(3, multi_label=True)
    maps = torch.zeros(3, 4, 5, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"prediction is \(4, 5\) and the truth \(5, 4\).*original"):
        metric.update(maps[0], maps[0].T)
    with pytest.raises(ValueError, match=r"\(1, 3, 4, 5\), where \(\[B,\] H, W\)"):
        metric.update(maps[None], maps[None])
    with pytest.raises(ValueError, match=r"\(2, 4, 5\), where \(\[B,\] 3, H, W\)"):
        several.update(maps[:2], maps[:2])
    for tolerance in (0.0, -1.0, 1.5, math.nan):
        with pytest.raises(ValueError, match="boundary_tolerance is"):
            SegmentationMetrics(3, boundary=True, boundary_tolerance=tolerance)


# Boundaries.


def reference_boundary(region: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Pixel by pixel."""
    height, width = region.shape
    edge = np.zeros_like(region)
    for y in range(height):
        for x in range(width):
            for v, u in ((y, x + 1), (y + 1, x), (y + 1, x + 1)):
                if v < height and u < width and valid[y, x] and valid[v, u] and region[y, x] != region[v, u]:
                    edge[y, x] = True
    return edge


def near(edge: np.ndarray, radius: int) -> np.ndarray:
    return distance_transform_edt(~edge) <= radius if edge.any() else np.zeros_like(edge)


def test_dilation_is_the_euclidean_distance() -> None:
    generator = np.random.default_rng(0)
    for height, width in ((40, 33), (1, 9), (9, 1), (3, 3)):
        for radius in (0, 1, 2, 5, 12, 60):
            pixels = generator.random((height, width)) < 0.02
            assert np.array_equal(dilate(torch.from_numpy(pixels), radius).numpy(), near(pixels, radius))


@pytest.mark.parametrize("tolerance", [0.03, 1.0, 3.0])
def test_boundary_f_is_the_reference_by_distances(tolerance: float) -> None:
    generator = torch.Generator().manual_seed(3)
    images = []
    for size in ((24, 31), (17, 12), (30, 30)):
        coarse = torch.randint(3, (1, 1, 4, 4), generator=generator).float()  # class 3 never occurs
        target = torch.nn.functional.interpolate(coarse, size=size)[0, 0].to(torch.uint8)
        prediction = target.roll((1, 2), (0, 1))
        target[:, :3] = 255
        target[9:12, 8:] = 255
        images.append((prediction, target))
    sums = np.zeros((4, 4))
    for prediction, target in images:
        radius = math.ceil(tolerance * math.hypot(*target.shape)) if tolerance < 1 else int(tolerance)
        valid = target.numpy() != 255
        for k in range(4):
            mine = reference_boundary(prediction.numpy() == k, valid)
            truth = reference_boundary(target.numpy() == k, valid)
            assert np.array_equal(boundaries(target == k, target != 255).numpy(), truth)
            sums[k] += [mine.sum(), (mine & near(truth, radius)).sum(), truth.sum(), (truth & near(mine, radius)).sum()]
    precision, recall = sums[:3, 1] / sums[:3, 0], sums[:3, 3] / sums[:3, 2]
    expected = 2 * precision * recall / (precision + recall)
    metric = filled(images, 4, boundary=True, boundary_tolerance=tolerance)
    values = metric.compute()
    assert set(values) == NAMES | {"boundary_f"}
    assert close(metric.per_class()["boundary_f"], [*expected, math.nan])
    assert close(values["boundary_f"], expected.mean())
    assert 0 < expected.mean() < 1 or tolerance == 3


def test_boundary_f_of_overlapping_labels_is_each_labels_own() -> None:
    generator = torch.Generator().manual_seed(4)
    prediction, target = (torch.rand(2, 3, 15, 14, generator=generator) < 0.5).to(torch.uint8)
    several = filled([(prediction, target)], 3, multi_label=True, boundary=True, boundary_tolerance=1.0)
    for label in range(3):
        one = filled([(prediction[label], target[label])], 2, boundary=True, boundary_tolerance=1.0)
        assert several.per_class()["boundary_f"][label] == one.per_class()["boundary_f"][1]


def test_boundary_f_at_its_limits() -> None:
    square = torch.zeros(20, 20, dtype=torch.uint8)
    square[5:15, 5:15] = 1
    empty = torch.zeros_like(square)
    for prediction, target, expected in ((square, square, 1.0), (empty, square, 0.0), (empty, empty, math.nan)):
        value = filled([(prediction, target)], 2, boundary=True, boundary_tolerance=1.0).compute()["boundary_f"]
        assert close(value, expected)


# Speed.


def test_update_is_fast() -> None:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randint(21, (8, 1, 16, 16), generator=generator).float()
    target = torch.nn.functional.interpolate(coarse, size=(512, 512))[:, 0].to(torch.uint8)
    other = torch.randint(21, target.shape, generator=generator).to(torch.uint8)
    prediction = torch.where(torch.rand(target.shape, generator=generator) < 0.1, other, target)
    target[:, :20] = 255
    metric = SegmentationMetrics(21)
    times = []
    for _ in range(9):
        start = time.process_time()
        metric.update(prediction, target)
        times.append(time.process_time() - start)
    print(
        f"update of 8 x 512 x 512, 21 classes: {1000 * min(times):.1f} ms at best, {1000 * np.median(times):.1f} median"
    )
    assert min(times) < 0.02  # 6 ms alone


@pytest.mark.gpu
def test_update_does_not_wait_for_the_gpu() -> None:
    generator = torch.Generator().manual_seed(0)
    prediction, target = torch.randint(22, (2, 8, 100, 120), generator=generator).to(torch.uint8)
    metric = SegmentationMetrics(21, boundary=True).cuda()
    there = prediction.cuda(), target.cuda()
    metric.update(*there)
    torch.cuda.set_sync_debug_mode("error")
    try:
        metric.update(*there)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    expected = filled([(prediction, target)], 21, boundary=True).compute()
    for name, value in metric.compute().items():
        assert torch.equal(value, expected[name]), name
