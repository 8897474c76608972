"""Curves, thresholds, confusions and kinds of errors: cases whose answer is known, COCO's figures, brute force."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from datamodules.common import rle
from tasks.detection.evaluation.curves import (
    ap_dsb,
    best_thresholds,
    confusion_matrix,
    error_kinds,
    f1_over_confidence,
    precision_recall,
)
from tasks.detection.evaluation.matching import Matching, match
from tasks.detection.evaluation.metrics import CocoMetrics
from tasks.detection.evaluation.objects import Objects, predicted_objects, true_objects
from tests.detection_cases import SIDE, expected_values, painted, random_boxes, random_case

CAT, DOG, COW = range(3)


def matching_of(
    found: list[list[tuple[list[float], int, float]]], true: list[list[tuple[list[float], int, int]]], **settings: Any
) -> Matching:
    """From (box, label, score) and (box, label, is crowd) of each image, three classes."""

    def column(rows: list[Any], place: int, dtype: torch.dtype, *shape: int) -> torch.Tensor:
        return torch.tensor([row[place] for row in rows], dtype=dtype).reshape(-1, *shape)

    predictions = {
        "boxes": [column(rows, 0, torch.float32, 4) for rows in found],
        "labels": [column(rows, 1, torch.int64) for rows in found],
        "scores": [column(rows, 2, torch.float32) for rows in found],
    }
    targets = [
        {
            "boxes": column(rows, 0, torch.float32, 4),
            "labels": column(rows, 1, torch.int64),
            "iscrowd": column(rows, 2, torch.uint8),
        }
        for rows in true
    ]
    images = np.arange(len(true))
    objects = predicted_objects(predictions, images, 3, masks=False), true_objects(targets, images, 3, masks=False)
    return match(*objects, 3, len(true), **settings)


def square(x: float, y: float = 0, side: float = 10) -> list[float]:
    return [x, y, x + side, y + side]


@pytest.fixture(scope="module")
def known() -> Matching:
    """One of everything. At an offset of 2 the IoU of the squares is 2/3, at 5 it is 1/3, at 9 it is 1/19."""
    true = [
        [
            (square(0), CAT, 0),
            (square(100), CAT, 0),
            (square(200), DOG, 0),
            (square(300), DOG, 0),
            (square(400), CAT, 1),
        ],
        [],
        [(square(0), COW, 0), (square(50), COW, 0), (square(100), COW, 0)],
    ]
    found = [
        [
            (square(0), CAT, 0.9),  # right
            (square(2), CAT, 0.8),  # duplicate
            (square(105), CAT, 0.7),  # localization, and so the second cat is not missed
            (square(202), CAT, 0.6),  # class: a dog called cat
            (square(305), CAT, 0.5),  # both: beside a dog
            (square(402), CAT, 0.95),  # in a crowd of cats: neither right nor wrong
            (square(400), CAT, 0.55),  # so is another
            (square(600), DOG, 0.4),  # background
            (square(309), DOG, 0.35),  # background, though it touches a dog
        ],
        [(square(0), DOG, 0.3)],  # background
        [(square(1), COW, 0.05), (square(50), COW, 0.2)],  # right, the first below the threshold used
    ]
    return matching_of(found, true)


def test_kinds_of_errors_are_those_that_were_made(known: Matching) -> None:
    kinds = {name: counts.tolist() for name, counts in error_kinds(known, 0.1).items()}
    assert kinds == {
        "correct": [1, 0, 1],
        "localization": [1, 0, 0],
        "class": [1, 0, 0],
        "duplicate": [1, 0, 0],
        "background": [0, 3, 0],
        "both": [1, 0, 0],
        "missed": [0, 1, 2],  # the second dog, the cow below the threshold and the cow of which nothing is known
    }
    strict = error_kinds(known, [0.85, 0.1, 0.01])  # each class at its own threshold
    assert strict["correct"].tolist() == [1, 0, 2]
    assert strict["duplicate"].tolist() == [0, 0, 0]
    assert strict["missed"].tolist() == [1, 2, 1]


def test_confusions_are_those_that_were_made(known: Matching) -> None:
    assert confusion_matrix(known, 0.1).tolist() == [
        [1, 0, 0, 1],  # a cat was found, the other only beside it
        [1, 0, 0, 1],  # a dog called cat
        [0, 0, 1, 2],
        [3, 3, 0, 0],  # duplicate, localization and both are false alarms
    ]


def test_curve_and_f1_of_a_known_ranking(known: Matching) -> None:
    cat, dog, cow = precision_recall(known)
    assert cat.scores.tolist() == pytest.approx([0.9, 0.8, 0.7, 0.6, 0.5])  # those in the crowd are not ranked
    assert cat.precision.tolist() == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4, 1 / 5])
    assert cat.recall.tolist() == [0.5] * 5
    assert cat.average_precision() == pytest.approx(51 / 101)
    assert dog.average_precision() == 0
    assert cow.precision.tolist() == [1, 1]
    best = best_thresholds([cat, dog, cow])
    assert best.f1 == pytest.approx([2 / 3, 0, 4 / 5])
    # All cats but the best are wrong: at 0.9 the mean is 2/9; at 0.2 cats are at 2/7 and cows at 1/2; at 0.05 at 4/5.
    assert best.overall == np.float32(0.05)
    assert best.overall_f1 == pytest.approx((2 / 7 + 0 + 4 / 5) / 3)
    assert best.per_class == [np.float32(0.9), best.overall, np.float32(0.05)]  # dogs were never found
    assert json.loads(json.dumps(asdict(best))) == asdict(best)  # plain, for a checkpoint
    grid = f1_over_confidence([cat, dog, cow], [0, 0.2, 0.85, 0.91])
    np.testing.assert_allclose(grid, [[2 / 7, 2 / 7, 2 / 3, 0], [0, 0, 0, 0], [4 / 5, 1 / 2, 0, 0]])


def test_tp_over_tp_fp_fn_of_a_known_case(known: Matching) -> None:
    # Image 0: one found, 6 wrong, 3 not found. Image 1: one wrong. Image 2: one found, two not.
    assert ap_dsb(known, 0.1) == pytest.approx(2 / (2 + 7 + 5))
    assert ap_dsb(known, 0.1, by_image=True) == pytest.approx((1 / 10 + 0 + 1 / 3) / 3)


def test_nothing_at_all_is_undefined_and_nothing_found_is_zero() -> None:
    empty = matching_of([[]], [[]])
    assert math.isnan(ap_dsb(empty, 0.5))
    assert math.isnan(ap_dsb(empty, 0.5, by_image=True))
    best = best_thresholds(precision_recall(empty))
    assert (best.per_class, best.overall) == ([0.5] * 3, 0.5)
    assert np.isnan([*best.f1, best.overall_f1]).all()
    assert np.isnan(f1_over_confidence(precision_recall(empty), [0, 0.5])).all()
    assert confusion_matrix(empty, 0.5).sum() == sum(v.sum() for v in error_kinds(empty, 0.5).values()) == 0
    blind = matching_of([[]], [[(square(0), DOG, 0)]])
    curves = precision_recall(blind)
    assert [curve.average_precision() for curve in curves] == pytest.approx([math.nan, 0, math.nan], nan_ok=True)
    assert best_thresholds(curves).overall_f1 == 0
    assert ap_dsb(blind, 0.5) == 0
    np.testing.assert_array_equal(f1_over_confidence(curves, [0.5]), [[math.nan], [0], [math.nan]])
    assert confusion_matrix(blind, 0.5)[DOG].tolist() == [0, 0, 0, 1]


def test_a_confusion_takes_the_higher_score_first() -> None:
    true = [[(square(0), CAT, 0), (square(4), DOG, 0)]]
    found = [[(square(1), COW, 0.6), (square(3), COW, 0.7)]]  # each could be either
    assert confusion_matrix(matching_of(found, true), 0)[:, COW].tolist() == [1, 1, 0, 0]
    assert confusion_matrix(matching_of(found, true), 0.65)[:, COW].tolist() == [0, 1, 0, 0]


def counts_at(matching: Matching, label: int, threshold: float) -> tuple[int, int, int]:
    kept = (matching.scores >= threshold) & (matching.labels == label)
    return int((kept & matching.hit).sum()), int((kept & (matching.truth < 0)).sum()), int(matching.num_truths[label])


def f1_at(matching: Matching, label: int, threshold: float) -> float:
    hits, wrong, truths = counts_at(matching, label, threshold)
    return 2 * hits / (hits + wrong + truths)


def test_random_cases_agree_with_coco_and_with_brute_force() -> None:
    checked = 0
    for seed in range(48):
        case = random_case(seed, masks=seed % 4 == 0)
        kind: Any = "segm" if seed % 4 == 0 else "bbox"
        metric = CocoMetrics(**case.settings, iou_type=kind)
        metric.update(*case.part(list(range(len(case.ids)))))
        metric.compute()
        matching = metric.matchings[kind]
        curves = precision_recall(matching)
        _, columns = expected_values(case, kind)
        expected = columns["mask_ap_50" if kind == "segm" else "ap_50"]
        np.testing.assert_allclose([curve.average_precision() for curve in curves], expected, atol=1e-6)

        best = metric.thresholds[kind]
        classes = [k for k in range(case.num_classes) if matching.num_truths[k]]
        scores = sorted({float(score) for score in matching.scores} | {0.5})
        for label in classes:
            by_hand = max(f1_at(matching, label, score) for score in scores)
            assert best.f1[label] == pytest.approx(by_hand)
            if by_hand:
                assert f1_at(matching, label, best.per_class[label]) == pytest.approx(by_hand)
                checked += 1
        if classes:
            means = [float(np.mean([f1_at(matching, label, score) for label in classes])) for score in scores]
            assert best.overall_f1 == pytest.approx(max(means))
            if max(means):
                assert means[scores.index(best.overall)] == pytest.approx(max(means))
        grid = f1_over_confidence(curves, scores)
        for label in classes:
            np.testing.assert_allclose(grid[label], [f1_at(matching, label, score) for score in scores])

        # What is found, wrong and missed is the same in all tables.
        for threshold in (0.0, 0.5):
            table, kinds = confusion_matrix(matching, threshold), error_kinds(matching, threshold)
            counts = np.array([counts_at(matching, label, threshold) for label in range(case.num_classes)])
            hits, wrong, truths = counts.T
            assert table.diagonal()[:-1].tolist() == kinds["correct"].tolist() == hits.tolist()
            assert table.sum(0)[:-1].tolist() == (hits + wrong).tolist()
            assert table.sum(1)[:-1].tolist() == truths.tolist()
            errors = [kinds[name] for name in ("localization", "class", "duplicate", "background", "both")]
            assert np.sum(errors, axis=0).tolist() == wrong.tolist()
            assert (kinds["missed"] <= truths - hits).all()
            total = truths.sum() + wrong.sum()
            value = ap_dsb(matching, threshold)
            assert value == pytest.approx(hits.sum() / total if total else math.nan, nan_ok=True)
    assert checked > 30


def test_as_many_are_found_in_disjoint_masks_as_by_an_optimal_matching() -> None:
    rng = np.random.default_rng(0)
    for _ in range(10):
        truths, count = random_boxes(rng, 12), 25
        found = (truths[rng.integers(0, 12, count)] + rng.normal(0, 4, (count, 4))).clip(0, SIDE).astype(np.float32)
        found = found[(found[:, 2:] > found[:, :2]).all(1)]
        shapes = painted(truths, rng, layers=1), painted(found, rng, layers=len(found))  # detections overlap
        sides = [nuclei(layers, size, rng) for layers, size in zip(shapes, (12, len(found)), strict=True)]
        matching = match(sides[1], sides[0], 1, 1, masks=True, iou_threshold=0.5 + 1e-9)
        numbers = [np.arange(1, len(side) + 1)[:, None, None, None] for side in sides]
        pixels = [(layers.numpy() == n).any(1) for layers, n in zip(shapes, numbers, strict=True)]
        union = (pixels[0][:, None] | pixels[1][None]).sum((2, 3))
        iou = (pixels[0][:, None] & pixels[1][None]).sum((2, 3)) / np.maximum(union, 1)
        rows, columns = linear_sum_assignment(iou > 0.5, maximize=True)
        best = int((iou[rows, columns] > 0.5).sum())
        assert int(matching.hit.sum()) == best > 0
        assert ap_dsb(matching, 0.0) == pytest.approx(best / (12 + len(found) - best))


def nuclei(layers: torch.Tensor, count: int, rng: np.random.Generator) -> Objects:
    masks: NDArray[np.object_] = np.full(count, None, dtype=object)
    masks[:] = rle.of_layers(layers, count)
    return Objects(
        np.zeros(count, np.int64),
        np.zeros((count, 4), np.float32),
        np.zeros(count, np.int32),
        rng.random(count).astype(np.float32),
        np.zeros(count, np.bool_),
        np.full(count, np.nan),
        masks,
    )


def test_an_iou_of_exactly_the_threshold_is_enough() -> None:
    half = [0.0, 0.0, 10.0, 5.0]  # of a square of 10 x 10
    assert matching_of([[(half, CAT, 0.9)]], [[(square(0), CAT, 0)]]).hit.tolist() == [True]
    less = [0.0, 0.0, 10.0, 4.9]
    assert matching_of([[(less, CAT, 0.9)]], [[(square(0), CAT, 0)]]).hit.tolist() == [False]
    same = matching_of([[(square(0), CAT, 0.9)]], [[(square(0), CAT, 0)]], iou_threshold=1.0)
    assert same.hit.tolist() == [True]
    # So it is between classes, and for a second one of the same class.
    confused = matching_of([[(half, DOG, 0.9)]], [[(square(0), CAT, 0)]])
    assert confusion_matrix(confused, 0)[CAT, DOG] == error_kinds(confused, 0)["class"][DOG] == 1
    twice = matching_of([[(square(0), CAT, 0.9), (half, CAT, 0.8)]], [[(square(0), CAT, 0)]])
    assert error_kinds(twice, 0)["duplicate"][CAT] == 1


def test_an_object_is_found_before_a_crowd_and_of_equal_overlaps_the_later_one() -> None:
    """The detection lies whole in the crowd and overlaps the object by 0.8 only."""
    true = [[(square(0, side=100), CAT, 1), ([0.0, 0.0, 10.0, 8.0], CAT, 0), (square(0, side=90), CAT, 1)]]
    matching = matching_of([[(square(0), CAT, 0.9), (square(0), CAT, 0.8)]], true)
    assert matching.truth[0] == 1
    assert matching.hit.tolist() == [True, False]
    assert matching.ignored.tolist() == [False, True]  # the object is taken, the crowds never are
    pairs = {tuple(pair): iou for pair, iou in zip(matching.pairs.T.tolist(), matching.pair_iou.tolist(), strict=True)}
    assert pairs[0, 0] == 1  # over a crowd: the share of the detection
    assert pairs[0, 1] == pytest.approx(0.8)
    twins = [[(square(0), CAT, 0), (square(0), CAT, 0)]]
    assert matching_of([[(square(0), CAT, 0.9), (square(0), CAT, 0.8)]], twins).truth.tolist() == [1, 0]


def test_crowds_are_in_no_kind_of_errors_and_in_no_cell() -> None:
    """Two tenths of a cat, and all of a dog, lie in a crowd of cats; another cat is found in it."""
    true = [[(square(0, side=100), CAT, 1)]]
    found = [[(square(98, 0), CAT, 0.9), (square(30), DOG, 0.8), (square(50), CAT, 0.7)]]
    matching = matching_of(found, true)
    assert matching.pair_iou.tolist() == pytest.approx([0.2, 1, 1])
    kinds = {name: counts.tolist() for name, counts in error_kinds(matching, 0.1).items()}
    assert kinds.pop("background") == [1, 1, 0]
    assert set(map(tuple, kinds.values())) == {(0, 0, 0)}
    table = confusion_matrix(matching, 0.1)
    assert table[-1].tolist() == [1, 1, 0, 0]
    assert table.sum() == 2
    assert ap_dsb(matching, 0.1) == 0  # two false alarms, nothing to be found


def test_the_highest_scores_of_each_image_and_class_are_taken() -> None:
    found = [[(square(20 * k), k % 2, k / 10) for k in range(6)], [(square(0), CAT, 0.05)]]
    matching = matching_of(found, [[(square(0), CAT, 0)], [(square(0), CAT, 0)]], max_detections=2)
    kept = list(zip(matching.image.tolist(), matching.labels.tolist(), matching.scores.tolist(), strict=True))
    expected = [(0, DOG, 0.5), (0, CAT, 0.4), (0, DOG, 0.3), (0, CAT, 0.2), (1, CAT, 0.05)]
    assert kept == [(image, label, float(np.float32(score))) for image, label, score in expected]
    assert matching.hit.tolist() == [False, False, False, False, True]
