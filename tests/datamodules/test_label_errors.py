"""Planted label errors are found in boxes and masks, and nothing in right ones; near hashes against brute force."""

from __future__ import annotations

import numpy as np
import pytest

from datamodules.checking.label_boxes import Pair, box_label_findings
from datamodules.checking.label_masks import Confidence, doubtful_regions, label_quality
from datamodules.checking.near import RADIUS, close_pairs

NAMES = ["cat", "dog"]


def pair(path: str, labeled: list[tuple], predicted: list[tuple]) -> Pair:
    """(box, class, crowd) and (box, class, score)."""

    def part(values: list[tuple], i: int, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
        return np.array([value[i] for value in values], dtype).reshape(shape)

    return Pair(
        path,
        part(labeled, 0, "float32", (-1, 4)),
        part(labeled, 1, "int64", (-1,)),
        part(labeled, 2, "uint8", (-1,)),
        part(predicted, 0, "float32", (-1, 4)),
        part(predicted, 1, "int64", (-1,)),
        part(predicted, 2, "float32", (-1,)),
    )


def box(x: float, y: float, side: float = 20) -> list[float]:
    return [x, y, x + side, y + side]


def right_pictures(number: int = 8) -> list[Pair]:
    """Scores around 0.6; a weak prediction of the other class on each, and one on nothing."""
    rng = np.random.default_rng(0)
    pictures = []
    for i in range(number):
        labeled = [(box(10, 10), i % 2, 0), (box(60, 60), 1 - i % 2, 0)]
        found = [(np.add(b, rng.normal(0, 1, 4)), k, 0.6 + 0.05 * rng.normal()) for b, k, _ in labeled]
        found += [(box(10, 10), 1 - i % 2, 0.2), (box(110, 110), 0, 0.1)]
        pictures.append(pair(f"{i}.jpg", labeled, found))
    return pictures


def test_nothing_is_found_in_right_boxes():
    assert box_label_findings(right_pictures(), "train", NAMES) == []
    assert box_label_findings([pair("a", [], [])], "train", NAMES) == []
    assert box_label_findings([pair("a", [], [(box(1, 1), 0, 0.99)])], "train", NAMES) == []  # no class is known


@pytest.mark.parametrize(
    ("kind", "labeled", "predicted", "where", "message"),
    [
        ("label-overlooked", [], [(box(10, 10), 0, 0.9), (box(11, 10), 0, 0.8)], box(10, 10), "predicted cat (90%)"),
        (
            "label",
            [(box(10, 10), 1, 0)],
            [(box(11, 10), 0, 0.9), (box(10, 10), 1, 0.1)],
            box(10, 10),
            "labeled dog (10%)",
        ),
        ("label-place", [(box(10, 10), 0, 0)], [(box(20, 10), 0, 0.9)], box(10, 10), "predicted at 20 10 40 30"),
    ],
)
def test_planted_errors_of_boxes(kind, labeled, predicted, where, message):
    (found,) = box_label_findings([*right_pictures(), pair("bad.jpg", labeled, predicted)], "val", NAMES)
    assert (found.kind, found.path, found.split, list(found.box)) == (kind, "bad.jpg", "val", where)
    assert message in found.message


def test_boxes_that_are_not_blamed():
    crowd = pair("crowd.jpg", [([0, 0, 100, 100], 0, 1)], [(box(10, 10), 0, 0.9)])
    neighbors = pair(
        "near.jpg", [(box(10, 10), 0, 0), (box(25, 10), 0, 0)], [(box(10, 10), 0, 0.9), (box(25, 10), 0, 0.9)]
    )
    unsure = pair("unsure.jpg", [(box(10, 10), 0, 0)], [(box(10, 10), 1, 0.4), (box(90, 90), 1, 0.4)])
    assert box_label_findings([*right_pictures(), crowd, neighbors, unsure], "val", NAMES) == []


def test_the_surest_comes_first():
    pictures = [pair(f"{score}", [], [(box(10, 10), 0, score)]) for score in (0.7, 0.9, 0.8)]
    found = box_label_findings([*right_pictures(), *pictures], "val", NAMES)
    assert [finding.path for finding in found] == ["0.9", "0.8", "0.7"]


# Masks.


def predicted(truth: np.ndarray, classes: int, seed: int) -> np.ndarray:
    """Probabilities (K, H, W) of 0.6 to 0.9 for the truth."""
    sure = np.random.default_rng(seed).uniform(0.6, 0.9, truth.shape).astype(np.float32)
    rest = (1 - sure) / (classes - 1)
    return np.where(np.arange(classes)[:, None, None] == truth, sure, rest).astype(np.float32)


def scene() -> np.ndarray:
    labels = np.zeros((60, 80), np.int64)
    labels[10:40, 10:50] = 1
    labels[45:, 60:] = 2
    labels[:3] = 255
    return labels


def test_a_wrong_region_of_a_mask_is_found_and_nothing_else():
    truth = scene()
    wrong = truth.copy()
    wrong[20:35, 20:45] = 2
    edge = truth.copy()
    edge[10:40, 50:52] = 1  # drawn two pixels too wide
    confidence = Confidence(3)
    pictures = [
        (predicted(np.where(truth == 255, 0, truth), 3, i), labels)
        for i, labels in enumerate([truth] * 6 + [wrong, edge])
    ]
    for probabilities, labels in pictures:
        confidence.add(probabilities, labels)
    usual = confidence.usual()
    np.testing.assert_allclose(usual[0], 0.75, atol=0.01)
    found = [doubtful_regions(probabilities, labels, usual) for probabilities, labels in pictures]
    assert [len(regions) for regions in found] == [0, 0, 0, 0, 0, 0, 1, 0]
    (region,) = found[6]
    assert (region.label, region.other) == (2, 1)
    x1, y1, x2, y2 = region.box
    assert 20 <= x1 < x2 <= 45
    assert 20 <= y1 < y2 <= 35
    assert region.part > 0.02
    quality = [label_quality(probabilities, labels) for probabilities, labels in pictures]
    assert np.argmin(quality) == 6


def test_the_quality_of_a_mask_is_cleanlabs():
    rank = pytest.importorskip("cleanlab.segmentation.rank")
    probabilities, labels = predicted(np.where(scene() == 255, 0, scene()), 3, 1), np.where(scene() == 255, 0, scene())
    labels[20:35, 20:45] = 2
    expected, _ = rank.get_label_quality_scores(labels[None], probabilities[None], verbose=False)
    assert label_quality(probabilities, labels) == pytest.approx(float(expected[0]), abs=1e-4)
    assert label_quality(probabilities, np.full_like(labels, 255)) == 1.0


def test_a_class_without_a_pixel_is_nobodys_fault():
    labels = np.zeros((20, 20), np.int64)
    probabilities = predicted(np.ones((20, 20), np.int64), 3, 0)
    confidence = Confidence(3)
    confidence.add(probabilities, labels)
    assert doubtful_regions(probabilities, labels, confidence.usual()) == []


# Near hashes.


def test_close_hashes_are_those_of_brute_force():
    rng = np.random.default_rng(0)
    base = rng.integers(0, 2**64, 300, dtype=np.uint64)
    changed = base.copy()
    for i in range(len(changed)):
        for bit in rng.choice(64, int(rng.integers(0, 2 * RADIUS)), replace=False):
            changed[i] ^= np.uint64(1) << np.uint64(bit)
    hashes = np.concatenate([base, changed, base[:20], np.zeros(30, np.uint64)])
    found = [
        place for first, second in close_pairs(hashes) for place in zip(first.tolist(), second.tolist(), strict=True)
    ]
    numbers = [int(value) for value in hashes]
    expected = {
        (i, j) for j in range(len(numbers)) for i in range(j) if (numbers[i] ^ numbers[j]).bit_count() <= RADIUS
    }
    assert len(found) == len(set(found))
    assert set(found) == expected
    assert len(expected) > 500
    assert list(close_pairs(hashes[:0])) == [] or all(len(first) == 0 for first, _ in close_pairs(hashes[:0]))
