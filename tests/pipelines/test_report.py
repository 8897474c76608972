"""Reports and comparisons: what is measured against the metrics themselves, kinds of errors, and the commands."""

from __future__ import annotations

import itertools
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from scipy.optimize import minimize_scalar
from sklearn.metrics import average_precision_score, log_loss

from benchmarks import report_coverage
from benchmarks.report_coverage import make_boxes, make_images, make_pixels
from datamodules.common.errors import UserError
from pipelines.__main__ import main
from pipelines.callbacks import report
from pipelines.outputs import page
from pipelines.outputs.svg import Bar, Series, chart, intervals, ticks
from pipelines.report import (
    boxes,
    boxes_page,
    collect,
    document,
    images,
    images_page,
    kinds,
    labels,
    labels_page,
    parts,
    pixels,
    pixels_page,
)
from pipelines.report.comparing import (
    Recipe,
    Run,
    aligned,
    changes,
    differences,
    holm,
    recipes_of,
    sentence,
    swap_test,
)
from pipelines.report.measured import Collector, Measured, digest_of, file_of, read, write
from pipelines.report.regions import errors_of
from pipelines.statistics import with_seeds
from tasks import Classification
from tasks.calibration import AT, lowest, on_grid
from tasks.detection.evaluation.metrics import COCO_SIZES, CocoMetrics
from tasks.metrics import ClassificationMetrics, MultiLabelMetrics
from tasks.segmentation.metrics import SegmentationMetrics
from tests.conftest import in_child, write_images


def ones(measured: Measured) -> np.ndarray:
    return np.ones((1, len(measured)), np.int64)


# Temperature.


def test_the_temperature_has_the_lowest_likelihood():
    torch.manual_seed(0)
    logits = torch.randn(3000, 4) * 2
    truth = torch.distributions.Categorical(logits=logits).sample()
    metrics = ClassificationMetrics(4)
    for part, target in zip((logits * 2.5).split(700), truth.split(700), strict=True):
        metrics.update(part.softmax(1), target)
        metrics.add_logits(part, target)
    metrics.compute()
    loss = torch.nn.functional.cross_entropy
    best = minimize_scalar(lambda t: float(loss(logits * 2.5 / t, truth)), bounds=(0.1, 10), method="bounded")
    assert metrics.temperature == pytest.approx(best.x, rel=0.01)


def test_a_temperature_at_the_end_of_the_range_stays_there():
    assert lowest(np.arange(len(AT), dtype=float)) == AT[0]
    assert lowest(-np.arange(len(AT), dtype=float)) == AT[-1]


def test_without_images_there_is_no_temperature():
    metrics = ClassificationMetrics(3)
    metrics.find_temperature()
    assert metrics.temperature is None


def task(calibrated: bool) -> Classification:
    torch.manual_seed(0)
    made = Classification("test_resnet", num_classes=3, in_chans=3, image_size=32, calibrated=calibrated)
    made.configure_model()
    return made.eval()


@torch.no_grad()
def test_probabilities_are_divided_where_it_is_asked_for():
    plain, calibrated = task(False), task(True)
    calibrated.load_state({"temperature": 2.0})
    plain.load_state({"temperature": 2.0})
    batch = {"image": torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)}
    logits = plain.predict(batch)["logits"]
    torch.testing.assert_close(calibrated.predict(batch)["probabilities"], (logits / 2).softmax(1))
    assert plain.state() == {"temperature": 2.0}


def test_a_checkpoint_without_a_temperature_is_refused_where_it_is_asked_for():
    task(False).load_state({})
    with pytest.raises(UserError, match="calibrated is true, but the checkpoint holds no temperature"):
        task(True).load_state({})


# What is measured.


def in_memory(count: int, height: int, width: int) -> dict:
    """What is measured of images without files."""
    pixels_of = torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8)
    geometry = torch.tensor([[height, width, 1, 1, 0, 0]] * count, dtype=torch.float32)
    batch = {"image": pixels_of, "path": [f"memory#{i:02d}" for i in range(count)], "geometry": geometry}
    return collect.properties(batch, [""] * count)


def test_scores_of_images_are_the_metrics():
    measured = make_images(np.random.default_rng(0), 300)
    metrics = ClassificationMetrics(5)
    probabilities = np.zeros((300, 5), np.float32)
    np.put_along_axis(probabilities, measured.arrays["classes"].astype(int), images.probabilities(measured), 1)
    metrics.update(torch.tensor(probabilities), torch.tensor(images.truth_of(measured)))
    values = metrics.compute()
    score = {name: float(value[0]) for name, value in images.scorer(measured)(ones(measured)).items()}
    assert score["accuracy"] == pytest.approx(float(values["accuracy"]))
    assert score["f1"] == pytest.approx(float(values["f1"]), abs=1e-6)
    assert (images.confusion(measured) == metrics.confusion.numpy()).all()
    bins = parts.bins_of(images.confidences(measured), 300)
    error = parts.calibration_scorer(bins)(ones(measured))["calibration error"][0]
    assert error == pytest.approx(float(values["ece"]), abs=2e-3)


def test_scores_of_pixels_are_the_metrics():
    rng = np.random.default_rng(0)
    metrics = SegmentationMetrics(3)
    truth, mask = (torch.tensor(rng.integers(0, 3, (4, 9, 11)), dtype=torch.uint8) for _ in range(2))
    truth[0, :2], mask[1, :3] = 255, 255
    metrics.update(mask, truth)
    batch = {"id": torch.arange(4), "target": [{"mask": one} for one in truth], "mask": truth}
    outputs = {"mask": list(mask), "sample": torch.randn(4, 3, 256)}
    collector = Collector()
    collector.add([0, 1, 2, 3], {**in_memory(4, 9, 11), **pixels.collect(batch, outputs, 3, 1.0)})
    measured = collector.joined({"class_names": ["a", "b", "c"], "temperature": 1.5})
    values = metrics.compute()
    score = pixels.scorer(measured)(ones(measured))
    for name in ("miou", "accuracy", "mean_accuracy"):
        assert score[name][0] == pytest.approx(float(values[name]))
    assert (pixels.confusion(measured) == metrics.confusion.numpy()).all()
    assert (pixels.maps(measured, 2)[0] == truth[2].numpy()).all()
    assert len(measured.each["sample"]) == 4 * 64
    sections = dict(pixels_page.sections(measured, "Said."))
    assert "after temperature scaling" in sections["Calibration"]
    assert "invented region" in sections["Kinds of errors"]
    assert sections["Mistakes"].count("<img") >= 16  # picture, truth, prediction, errors of each
    assert "mean IoU" in pixels_page.answer(measured, 1)
    assert pixels_page.pictures(measured, measured, 1).count("<img") == 4


def several_labels(count: int, path: list[str] | None = None) -> Measured:
    """Images with three labels, of which the first is often there and the last never."""
    rng = np.random.default_rng(0)
    truth = rng.random((count, 3)) < (0.6, 0.2, 0)
    logits = np.round(2 * truth - 1 + rng.normal(0, 1.5, (count, 3)), 1).astype(np.float32)  # some are equal
    batch = {"label": torch.tensor(truth, dtype=torch.float32)}
    values = labels.collect(batch, {"logits": torch.tensor(logits / 2)}, 3, 2.0)
    collector = Collector()
    collector.add(list(range(count)), {**in_memory(count, 20, 20), **values})
    return collector.joined(
        {"kind": "labels", "split": "test", "class_names": ["a", "b", "<c>"], "temperature": 1.5, "digest": "x"}
    )


def test_scores_of_several_labels_are_the_metrics():
    measured = several_labels(60)
    metrics = MultiLabelMetrics(3)
    logits, truth = (torch.tensor(measured.arrays[name]) for name in ("logits", "truth"))
    metrics.update(logits.sigmoid(), truth.float())
    wanted = metrics.compute()
    counts = np.random.default_rng(1).multinomial(60, np.full(60, 1 / 60), size=4)
    score = labels.scorer(measured)(np.concatenate([ones(measured), counts]))
    for name, own in (("map", labels.MAIN), ("f1", "f1"), ("f1_micro", "f1_micro")):
        assert score[own][0] == pytest.approx(float(wanted[name]), abs=1e-6), name
    loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, truth.float())
    assert score["loss"][0] == pytest.approx(float(loss), rel=1e-5)
    for row, of_row in enumerate(counts):  # an image that is drawn twice counts twice
        own = [average_precision_score(truth[:, k], logits[:, k], sample_weight=of_row) for k in (0, 1)]
        assert score[labels.MAIN][1 + row] == pytest.approx(np.mean(own))


def test_the_page_of_several_labels_and_a_comparison(tmp_path):
    measured = several_labels(40)
    sections = dict(labels_page.sections(measured, "said"))
    assert "&lt;c&gt;" in sections["Labels"]
    assert "after temperature scaling" in sections["Calibration"]
    assert sections["Mistakes"].count("<img") >= 12
    assert "truly" in "".join(labels_page.answer(measured, i) for i in range(10))
    stated, true, image = labels.decisions(measured)
    assert (stated[3 * 7 + 1], true[3 * 7 + 1]) == (
        labels.probabilities(measured)[7, 1],
        measured.arrays["truth"][7, 1],
    )
    assert image[3 * 7 + 1] == 7
    write(measured, file_of(tmp_path, "test"))
    document.write_report(tmp_path)
    text = (tmp_path / "report.html").read_text()
    assert "mean average precision of the labels" in text
    assert "pipeline_tag: image-classification" in (tmp_path / "README.md").read_text()
    worse = replace(measured, arrays={**measured.arrays, "logits": -measured.arrays["logits"]})
    (first, *_) = differences(pair(worse, measured), replicates=200)
    assert first.metric == labels.MAIN
    assert first.is_shown


def test_scores_of_boxes_are_cocos():
    rng = np.random.default_rng(1)
    corners = rng.uniform(0, 60, (12, 5, 2)).astype(np.float32)
    truth = np.concatenate([corners, corners + 30], 2)
    found = truth + rng.normal(0, 3, truth.shape).astype(np.float32)
    metrics = CocoMetrics(2)
    labels = torch.tensor(rng.integers(0, 2, (12, 5)))
    scores = torch.tensor(np.sort(rng.random((12, 5)).astype(np.float32))[:, ::-1].copy())
    outputs = {"boxes": list(torch.tensor(found)), "scores": list(scores), "labels": list(labels)}
    targets = [{"boxes": torch.tensor(b), "labels": k} for b, k in zip(truth, labels.roll(1, 1), strict=True)]
    metrics.update(outputs, targets, torch.arange(12))
    values = metrics.compute()

    class Task:
        eval_metrics = metrics
        thresholds = staticmethod(lambda: torch.tensor([0.5, 0.5]))

    collector = Collector()
    collector.add(list(range(12)), {**in_memory(12, 100, 100), **boxes.collect({"target": targets}, outputs, 2, 1.0)})
    measured = boxes.finished(collector.joined({"class_names": ["a", "b"]}), Task())
    score = boxes.scorer(measured)(ones(measured))
    assert score["map_50"][0] == pytest.approx(float(values["map_50"]), abs=1e-6)
    assert score["map"][0] == pytest.approx(float(values["map"]), abs=1e-6)
    rebuilt, own = boxes.matching_of(measured), metrics.matchings["bbox"]
    assert (rebuilt.truth == own.truth).all()
    half = boxes.matching_of(measured.take(np.arange(6)))
    assert half.num_truths.sum() == 30
    sections = dict(boxes_page.sections(measured, ""))
    assert "localization" in sections["Kinds of errors"]
    assert "small (below 32 x 32)" in sections["Size of the objects"]
    assert "The largest missed objects" in sections["Mistakes"]
    assert boxes_page.pictures(measured, measured, 1).count("<img") == 2


def test_precision_by_size_is_cocos():
    rng = np.random.default_rng(3)
    corners = rng.uniform(0, 200, (30, 6, 2)).astype(np.float32)
    truth = np.concatenate([corners, corners + rng.uniform(15, 130, (30, 6, 2)).astype(np.float32)], 2)
    found = (truth + rng.normal(0, 4, truth.shape).astype(np.float32))[:, rng.integers(0, 6, 8)]  # some twice
    metrics = CocoMetrics(2)
    labels = torch.tensor(rng.integers(0, 2, (30, 6)))
    scores = torch.tensor(np.sort(rng.random((30, 8)).astype(np.float32))[:, ::-1].copy())
    outputs = {"boxes": list(torch.tensor(found)), "scores": list(scores), "labels": list(labels[:, :1].expand(-1, 8))}
    crowd = torch.tensor(rng.random((30, 6)) < 0.1)
    targets = [
        {"boxes": torch.tensor(b), "labels": k, "iscrowd": c} for b, k, c in zip(truth, labels, crowd, strict=True)
    ]
    metrics.update(outputs, targets, torch.arange(30))
    values = metrics.compute()
    collector = Collector()
    collector.add(list(range(30)), {**in_memory(30, 100, 100), **boxes.collect({"target": targets}, outputs, 2, 1.0)})
    task = SimpleNamespace(eval_metrics=metrics, thresholds=lambda: torch.tensor([0.5, 0.5]))
    measured = boxes.finished(collector.joined({"class_names": ["a", "b"]}), task)
    for size, (low, high) in COCO_SIZES.items():
        own = boxes.size_scorer(measured, low, high, boxes.IOUS)(ones(measured))["ap"][0]
        assert 0.05 < own < 0.95
        assert own == pytest.approx(float(values[f"map_{size}"]), abs=1e-6), size


def test_scores_of_boxes_have_a_temperature_of_the_validation():
    made = make_boxes(np.random.default_rng(0), 80)
    facts = {**made.facts, "class_names": made.class_names}
    validation, test = (replace(made.take(np.arange(first, first + 40)), facts=facts) for first in (0, 40))
    scores, right, _ = boxes.confidences(validation)
    best = minimize_scalar(lambda t: boxes.likelihood(scores, right, t), bounds=(0.1, 10), method="bounded").x
    found = kinds.with_validation({"val": validation, "test": test})["test"]
    assert found.facts["score_temperature"] == pytest.approx(best, rel=0.02)
    assert boxes.likelihood(scores, right) == pytest.approx(log_loss(right, scores), rel=1e-5)
    text = boxes_page._calibration(found)
    assert "after temperature scaling" in text
    assert "after temperature scaling" not in boxes_page._calibration(test)


def test_a_file_gives_back_what_was_written(tmp_path):
    collector = Collector()
    collector.add(
        [2, 0], {"path": np.array(["b/2", "b/0"]), "group": np.array(["", ""]), "x": [np.arange(2), np.arange(3)]}
    )
    collector.add([1], {"path": np.array(["b/1"]), "group": np.array([""]), "x": [np.zeros(0, np.int64)]})
    collector.add([1], {"path": np.array(["b/1"]), "group": np.array([""]), "x": [np.ones(9, np.int64)]})  # once more
    measured = collector.joined({"kind": "images", "class_names": []})
    write(measured, tmp_path / "val_images.npz")
    again = read(tmp_path / "val_images.npz")
    assert again.names == ["0", "1", "2"]
    assert again.entries("x", 0).tolist() == [0, 1, 2]
    assert again.entries("x", 1).tolist() == []
    assert again.take([0, 2]).each["x"].tolist() == [0, 1, 2, 0, 1]
    assert again.groups is None
    (tmp_path / "val_images.npz").write_bytes(b"PK")
    with pytest.raises(UserError, match="npz cannot be read"):
        read(tmp_path / "val_images.npz")


def test_the_digest_does_not_depend_on_place_and_order():
    here = digest_of(["/data/a/1.png", "/data/b/2.png"], [b"x", b"y"])
    assert here == digest_of(["/else/b/2.png", "/else/a/1.png"], [b"y", b"x"])
    assert here != digest_of(["/data/a/1.png", "/data/b/2.png"], [b"x", b"z"])


def test_the_grid_covers_an_image_evenly():
    rows = torch.arange(32)[:, None].expand(32, 64)
    assert on_grid(rows).view(16, 16)[:, 0].tolist() == list(range(1, 32, 2))


# Kinds of errors of masks.


def drawn(*boxes_of: tuple[int, int, int, int, int]) -> np.ndarray:
    mask = np.zeros((60, 80), np.uint8)
    for label, y1, x1, y2, x2 in boxes_of:
        mask[y1:y2, x1:x2] = label
    return mask


@pytest.mark.parametrize(
    ("truth", "found", "kind", "number"),
    [
        ([(1, 10, 10, 30, 30)], [(1, 10, 11, 30, 31)], "boundary", 40),
        ([(1, 10, 10, 30, 30)], [], "missed region", 400),
        ([], [(1, 10, 10, 30, 30)], "invented region", 400),
        ([(1, 10, 10, 30, 30)], [(2, 10, 10, 30, 30)], "class", 400),
        ([(1, 10, 10, 30, 30)], [(1, 10, 10, 30, 40)], "extent", 200),
    ],
)
def test_kinds_of_errors_of_masks(truth, found, kind, number):
    errors = errors_of(drawn(*truth), drawn(*found))
    wrong = sum(errors.kinds.values())
    assert wrong == pytest.approx(number / 4800)
    # What lies along an edge is a boundary error of any region.
    assert max(errors.kinds, key=lambda name: errors.kinds[name]) == kind
    assert errors.kinds[kind] >= 0.6 * wrong


def test_ignored_pixels_are_no_errors():
    truth = drawn((255, 0, 0, 60, 80))
    assert sum(errors_of(truth, drawn((1, 0, 0, 60, 80))).kinds.values()) == 0


# Comparisons.


def pair(first: Measured, second: Measured) -> list[Recipe]:
    return [Recipe("a/0", [Run("a/0", {}, first)]), Recipe("b/0", [Run("b/0", {}, second)])]


def with_truth_of(measured: Measured, count: int) -> Measured:
    """The same model, but right in ``count`` of the images that it has wrong."""
    classes, truth = measured.arrays["classes"].copy(), images.truth_of(measured)
    for i in np.flatnonzero(~images.right(measured))[:count]:
        place = int(np.flatnonzero(classes[i] == truth[i])[0])
        classes[i, 0], classes[i, place] = truth[i], classes[i, 0]
    return Measured(measured.facts, {**measured.arrays, "classes": classes}, {}, {})


def test_a_better_model_is_shown_and_a_sentence_says_by_how_much():
    one = make_images(np.random.default_rng(0), 300)
    found = differences(pair(one, with_truth_of(one, 15)))[0]
    assert found.value == pytest.approx(15 / 300)
    assert found.is_shown
    assert re.fullmatch(r"b/0 is better by 5.0 points \[2.\d, 7.\d\] \(of these two trained .*", sentence(found))
    back = differences(pair(with_truth_of(one, 15), one))[0]
    assert sentence(back).startswith("a/0 is better by 5.0 points")


def test_one_image_shows_nothing():
    one = make_images(np.random.default_rng(0), 300)
    found = differences(pair(one, with_truth_of(one, 1)))[0]
    assert not found.is_shown
    assert found.p == 1  # swapped or not, the difference is one image
    assert sentence(found).startswith("not shown: b/0 scores +0.3 points")


def test_masks_and_boxes_are_compared_by_the_same_functions():
    for make in (make_pixels, make_boxes):
        one = make(np.random.default_rng(0), 60)
        found = differences(pair(one, one))[0]
        assert (found.value, found.p, found.is_shown) == (0, 1, False)


def test_p_is_that_of_all_swaps():
    """Of 8 images all 256 swaps can be scored; classes are absent from some of them."""
    rng = np.random.default_rng(3)
    one, other = (make_pixels(np.random.default_rng(5), 8, rng, 0.3) for _ in range(2))
    hits, found, true = (np.stack(both) for both in zip(pixels.tables(one), pixels.tables(other), strict=True))
    gaps = []
    for swap in itertools.product((0, 1), repeat=8):
        of_a, of_b = ((np.array(own), np.arange(8)) for own in (swap, 1 - np.array(swap)))
        right, union = ([part[own].sum(0) for own in (of_a, of_b)] for part in (hits, found + true - hits))
        a, b = ((r[u > 0] / u[u > 0]).mean() for r, u in zip(right, union, strict=True))
        gaps.append(abs(a - b))
    wanted = np.mean(np.array(gaps) >= gaps[0] - 1e-12)
    assert 0.02 < wanted < 0.98
    assert swap_test(*pair(one, other), 20_000, 0)["miou"] == pytest.approx(wanted, abs=0.015)
    assert swap_test(*pair(other, one), 20_000, 1)["miou"] == pytest.approx(wanted, abs=0.015)


@pytest.mark.slow
def test_two_equal_models_are_rarely_told_apart(capsys):
    """Of 600 draws 41 are too many to be one in twenty (binomial, 0.97)."""
    words = ["--only", "aa", "--aa", "miou", "--seeds", "1", "--draws", "600", "--replicates", "400", "--seed", "1"]
    assert report_coverage.main(words) == 0
    said = capsys.readouterr().out
    with capsys.disabled():
        print(f"\n{said}")
    assert 0.01 < float(re.search(r"seeds: ([\d.]+)", said)[1]) < 41 / 600


@pytest.mark.filterwarnings("ignore:All-NaN")
def test_images_without_objects_show_nothing():
    whole = make_boxes(np.random.default_rng(0), 60)
    empty = whole.take(np.flatnonzero(whole.counts["truth_labels"] == 0))
    found = differences(pair(empty, empty))[0]
    assert math.isnan(found.value)
    assert (found.p, found.is_shown) == (1, False)


def test_holm_is_stepwise():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])


def test_seeds_widen_the_interval_by_students_t():
    """Without any spread over images it is Welch's interval of two samples."""
    from scipy import stats

    first, second = np.array([0.6, 0.62, 0.65]), np.array([0.7, 0.69, 0.74])
    low, high, p = with_seeds(float(second.mean() - first.mean()), np.full(50, 0.08), [first, second])
    welch = stats.ttest_ind(second, first, equal_var=False)
    ends = welch.confidence_interval(0.95)
    assert (low, high, p) == pytest.approx((ends.low, ends.high, welch.pvalue))


def test_runs_that_differ_in_the_seed_are_one_recipe():
    one = make_images(np.random.default_rng(0), 20)
    config = {"model": {"init_args": {"lr": 1}}}
    runs = [
        Run("a/0", {**config, "seed_everything": 0}, one),
        Run("b/0", {"model": {"init_args": {"lr": 2}}, "seed_everything": 0}, one),
        Run("a/1", {**config, "seed_everything": 1}, one),
    ]
    recipes = recipes_of(runs)
    assert [recipe.label for recipe in recipes] == ["a (2 seeds)", "b/0"]
    assert changes(recipes) == [("model.lr", ["1", "2"])]


def test_other_images_are_refused():
    one, other = make_images(np.random.default_rng(0), 30), make_images(np.random.default_rng(0), 31)
    runs = [Run("a/0", {}, one), Run("b/0", {}, Measured({**other.facts, "digest": "other"}, other.arrays, {}, {}))]
    with pytest.raises(UserError, match=r"different test sets \(30 and 31 images, 30 of them in both\).*split_file"):
        aligned(runs)


def test_images_in_another_order_are_put_in_order():
    one = make_pixels(np.random.default_rng(0), 12)
    from pipelines.report.measured import ordered

    back = ordered(ordered(one, np.arange(12)[::-1].copy()), np.arange(12)[::-1].copy())
    assert all((back.each[name] == one.each[name]).all() for name in one.each)
    assert back.names == one.names


# Pages.


def test_names_cannot_break_a_page(tmp_path):
    table = page.table(["<b>"], [[page.escaped("<i>")]])
    assert "<b>" not in table
    drawing = chart([Series([0, 1], [1, float("nan")], "<x>")], "<t>", names=["<n>", "b"])
    assert "<x>" not in drawing
    assert "<t>" not in drawing
    assert "<n>" not in drawing
    assert chart([Series([0], [float("nan")])]) == ""
    assert "&lt;" in intervals([Bar("<a>", 0.5, 0.4, 0.6)], "score")
    assert ticks((0, 1)) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])


def test_thresholds_hold_the_accuracy_that_is_wanted():
    confidence = np.array([0.9, 0.8, 0.7, 0.6])
    right = np.array([True, True, False, True])
    assert images_page._least_threshold(confidence, right, 0.75) == 0.6
    assert images_page._least_threshold(confidence, right, 1.0) == 0.8
    assert images_page._least_threshold(confidence[2:], right[2:], 1.0) is None


def test_an_image_of_boxes_scores_its_f1():
    made = make_boxes(np.random.default_rng(0), 12)
    silent = Measured({**made.facts, "thresholds": [2.0] * 5}, made.arrays, made.each, made.counts)
    empty = made.counts["truth_labels"] == 0
    assert (boxes_page.image_scores(silent) == empty).all()  # nothing is found: right where nothing is to be found
    assert 0.3 < boxes_page.image_scores(made).mean() < 0.95


CONFIG = """
model:
  class_path: Classification
  init_args: {{backbone: test_resnet, optim: {{lr: 3.0e-3}}}}
data:
  class_path: ClassificationData
  init_args: {{source: {source}, image_size: 32, batch_size: 4, num_workers: 0}}
trainer:
  max_epochs: 2
  num_sanity_val_steps: 0
  enable_progress_bar: false
  enable_model_summary: false
  wandb: {{mode: "off"}}
"""


@pytest.mark.slow
def test_fit_test_report_and_compare(tmp_path, capfd):
    counts = {f"{split}/{name}": n for split, n in (("train", 8), ("val", 6), ("test", 6)) for name in ("ant", "b&e")}
    source = write_images(tmp_path / "pictures", counts)
    Path("run.yaml").write_text(CONFIG.format(source=source))

    def work() -> None:
        report.write_report = document.write_report
        assert main(["fit", "--config", "run.yaml", "--name", "a"]) == 0
        assert main(["fit", "--config", "run.yaml", "--name", "b", "--model.optim.lr", "1e-5"]) == 0
        for name in ("a", "b"):
            assert main(["test", "--ckpt_path", f"runs/{name}/0/checkpoints/best.ckpt"]) == 0
        assert main(["report", "runs/a/0"]) == 0
        assert main(["compare", "runs/a/0", "runs/b/0", "--output", "page.html"]) == 0

    assert in_child(work) == 0
    run = Path("runs/a/0")
    told = json.loads((run / "test.json").read_text())
    measured = read(file_of(run, "test"))
    assert kinds.scorer(measured)(ones(measured))["accuracy"][0] == pytest.approx(told["test/accuracy"])
    assert (
        measured.temperature
        == torch.load(run / "checkpoints/best.ckpt", weights_only=True)["task_state"]["temperature"]
    )
    text = (run / "report.html").read_text()
    assert "http" not in text
    assert "b&amp;e" in text
    assert "on 12 test images" in text
    header = yaml.safe_load((run / "README.md").read_text().split("---")[1])
    assert header["pipeline_tag"] == "image-classification"
    metrics = {one["type"]: one["value"] for one in header["model-index"][0]["results"][1]["metrics"]}
    assert metrics["accuracy"] == pytest.approx(told["test/accuracy"], abs=1e-6)
    said = capfd.readouterr().out
    assert re.search(r"(better by|not shown: b/0 scores) .* \(of these two trained models", said)
    assert "model.optim.lr: 0.003 / 1e-05" in said
    assert "Differences of the configs" in Path("page.html").read_text()


@pytest.mark.slow
def test_a_detection_leaves_a_report(tmp_path):
    flags = ["--model=Detection", "--model.detector=fcos", "--model.backbone=test_resnet", "--data=DetectionData"]
    flags += ["--data.source=digits", "--data.image_size=64", "--data.num_workers=0", "--data.batch_size=4"]
    flags += ["--data.num_scenes={train: 24, val: 8, test: 12}", "--trainer.max_epochs=2", "--trainer.accelerator=cpu"]
    flags += ["--model.optim.lr=3e-3", "--trainer.enable_progress_bar=false", "--trainer.wandb.mode=off", "--name=d"]

    def work() -> None:
        report.write_report = document.write_report
        assert main(["fit", *flags]) == 0
        assert main(["test", "--ckpt_path", "runs/d/0/checkpoints/best.ckpt"]) == 0

    assert in_child(work) == 0
    run = Path("runs/d/0")
    told = json.loads((run / "test.json").read_text())
    measured = read(file_of(run, "test"))
    score = kinds.scorer(measured)(ones(measured))
    for name in ("map", "map_50"):
        assert score[name][0] == pytest.approx(told[f"test/{name}"], abs=1e-6)
    low, high = COCO_SIZES["small"]
    small = boxes.size_scorer(measured, low, high, boxes.IOUS)(ones(measured))["ap"][0]
    assert small == pytest.approx(told["test/map_small"], abs=1e-6, nan_ok=True)
    text = (run / "report.html").read_text()
    for title in ("Kinds of errors", "Calibration", "Size of the objects", "Mistakes"):
        assert f"<h2>{title}</h2>" in text
    assert "http" not in text
    assert text.count("<img") > 4
    header = yaml.safe_load((run / "README.md").read_text().split("---")[1])
    assert header["pipeline_tag"] == "object-detection"


def test_what_is_missing_is_said(tmp_path, capsys):
    (tmp_path / "runs/a/0").mkdir(parents=True)
    assert main(["report", "runs/a/0"]) == 1
    assert "has no val_images.npz and no test_images.npz" in capsys.readouterr().err
    assert main(["report", "runs/b/0"]) == 1
    assert "There is no folder runs/b/0" in capsys.readouterr().err
    assert main(["compare", "runs/a/0", "runs/a/0/"]) == 1
    assert "(one run, named twice)" in capsys.readouterr().err
    assert main(["compare", "runs/a/0"]) == 1
    assert "compare needs two runs or more" in capsys.readouterr().err
    assert main(["compare", "runs/a/0", "runs/b/0"]) == 1
    assert "test_images.npz: `test` writes it" in capsys.readouterr().err
