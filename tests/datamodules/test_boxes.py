"""Boxes that cannot be right are found, fixed or dropped; objects' masks become layers."""

from __future__ import annotations

import time

import numpy as np
import pytest
from pycocotools import mask as reference

from datamodules.annotations.boxes import REASONS, check_boxes
from datamodules.annotations.instance_masks import masks_of
from datamodules.annotations.objects import repeat_factors, select_classes
from datamodules.annotations.records import PER_OBJECT, Listing
from datamodules.common import rle


def record(boxes, labels=None, segmentation=None, height=40, width=60, file="a.json", name="a.jpg"):
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    count = len(boxes)
    return {
        "image": name,
        "path": name,
        "split": "train",
        "height": height,
        "width": width,
        "boxes": boxes,
        "labels": np.array(labels if labels is not None else [0] * count, np.int64),
        "iscrowd": np.zeros(count, np.uint8),
        "area": np.full(count, 7, np.float32),
        "segmentation": segmentation,
        "annotation_ids": np.arange(count) + 100,
        "annotation_file": file,
    }


NAN, INF = float("nan"), float("inf")
# box, reason, what `fix` makes of it
CASES = [
    ([1, 2, 3, 4], None, [1, 2, 3, 4]),
    ([0, 0, 60, 40], None, [0, 0, 60, 40]),
    ([-1, -0.5, 60.75, 41], None, [0, 0, 60, 40]),  # a pixel is rounding
    ([-1.5, 0, 5, 5], 5, [0, 0, 5, 5]),
    ([50, 30, 99, 99], 5, [50, 30, 60, 40]),
    ([-9, -9, 99, 99], 5, [0, 0, 60, 40]),
    ([61, 0, 70, 5], 4, None),
    ([60, 0, 60.5, 5], 4, None),  # nothing is left of it inside
    ([5, 50, 7, 60], 4, None),
    ([5, 5, 5, 9], 3, None),
    ([5, 5, 5, 5], 3, None),
    ([9, 5, 3, 7], 2, [3, 5, 9, 7]),
    ([9, 50, 3, 20], 2, [3, 20, 9, 40]),
    ([NAN, 1, 2, 3], 0, None),
    ([1, 1, INF, 3], 0, None),
]


@pytest.mark.parametrize("policy", ["fix", "drop"])
def test_what_becomes_of_a_box(policy):
    masks = [None if k % 2 else [[1, 1, 2, 1, 2, 2]] for k in range(len(CASES))]
    before = record([box for box, _, _ in CASES], segmentation=masks)
    copies = {key: np.array(value) for key, value in before.items() if isinstance(value, np.ndarray)}
    (after,), report = check_boxes([before], policy, 1)
    kept = [k for k, (_, reason, fixed) in enumerate(CASES) if fixed and (policy == "fix" or reason is None)]
    assert after["boxes"].tolist() == [CASES[k][2] for k in kept]
    assert after["annotation_ids"].tolist() == [100 + k for k in kept]
    assert [len(after[key]) for key in PER_OBJECT] == [len(kept)] * len(PER_OBJECT)
    assert after["segmentation"] == [masks[k] for k in kept]
    for k, area in zip(kept, after["area"].tolist(), strict=True):
        box = np.array(CASES[k][2])
        changed = CASES[k][0] != CASES[k][2] and masks[k] is None
        assert area == (np.prod(box[2:] - box[:2]) if changed else 7)
    wanted = {text: sum(r == k for _, r, _ in CASES) for k, text in enumerate(REASONS)}
    assert report.counts == {text: count for text, count in wanted.items() if count}
    assert report.dropped == len(CASES) - len(kept)
    assert report.fixed == (5 if policy == "fix" else 0)
    assert f"{len(CASES)} boxes, {report.fixed} fixed and {report.dropped} dropped: " in str(report)
    for key, value in copies.items():  # the caller's record is as it was
        np.testing.assert_array_equal(before[key], value)


def test_error_names_file_annotation_and_setting():
    good, voc = record([[1, 1, 2, 2]]), record([[1, 1, 2, 2], [3, 3, 3, 3]], file="x/b.xml", name="x/b.jpg")
    with pytest.raises(ValueError, match=r"1 of 3 boxes cannot be right:\n  x/b.xml, object 101 \('b.jpg', 60 x 40\)"):
        check_boxes([good, voc], "error", 1)
    yolo = record([[1, 1, 2, 2]] * 14, labels=[0, 1] + [2] * 12, file="b.txt")
    with pytest.raises(
        ValueError, match=r"12 of 14[\s\S]*b.txt, line 102[^\n]*class 2: there is no such class"
    ) as error:
        check_boxes([yolo], "error", 2)
    assert error.value.args[0].count("line 1") == 10
    assert "and 2 more" in error.value.args[0]
    assert "set data.check_boxes to fix" in error.value.args[0]
    with pytest.raises(ValueError, match=r"data.check_boxes is 'mend'; it must be 'error', 'fix' or 'drop'"):
        check_boxes([good], "mend")


def test_images_without_boxes_stay():
    empty, bad = record([]), record([[5, 5, 5, 5]])
    after, report = check_boxes([empty, bad, empty], "drop", 1)
    assert [len(r["boxes"]) for r in after] == [0, 0, 0]
    assert after[1]["boxes"].shape == (0, 4)
    assert after[0] is empty
    assert report.dropped == 1
    after, report = check_boxes([empty], "error")
    assert after == [empty]
    assert "all of them fit" in str(report)


def test_many_boxes_are_quick():
    rng = np.random.default_rng(0)
    records = [record(rng.uniform(0, 40, (7, 4))) for _ in range(5000)]
    start = time.process_time()
    after, report = check_boxes(records, "fix", 1)
    assert time.process_time() - start < 2
    assert report.counts[REASONS[2]] == sum(int((r["boxes"][:, 2:] < r["boxes"][:, :2]).any(1).sum()) for r in records)
    assert all((r["boxes"][:, 2:] > r["boxes"][:, :2]).all() for r in after)


# Masks of objects.


def blob(rng, height, width):
    """A random shape: a polygon of one or two parts, or run lengths of a rectangle or of noise, packed or not."""
    kind = rng.integers(5)
    if kind < 2:
        centre, reach = rng.uniform(0, 1, 2) * (width, height), rng.uniform(1, 25)
        return [
            (centre + rng.uniform(-reach, reach, (rng.integers(3, 9), 2))).round(2).ravel().tolist()
            for _ in range(kind + 1)
        ]
    mask = np.zeros((height, width), np.uint8)
    y, x = rng.integers(height), rng.integers(width)
    mask[y : y + 9, x : x + 14] = rng.random((height, width))[y : y + 9, x : x + 14] < (0.5 if kind == 2 else 1)
    if kind < 4:
        packed = reference.encode(np.asfortranarray(mask))
        return {"size": packed["size"], "counts": packed["counts"].decode() if kind == 3 else packed["counts"]}
    flat = mask.T.ravel()
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flat, [1 - flat[-1]]])))
    return {"size": [height, width], "counts": np.diff(np.concatenate([[0], edges])).tolist()}


def expected(shape, height, width):
    if isinstance(shape, list):
        return reference.decode(reference.merge(reference.frPyObjects(shape, height, width)))
    return reference.decode(reference.frPyObjects(shape, height, width) if isinstance(shape["counts"], list) else shape)


def test_masks_equal_pycocotools_and_layers_do_not_overlap():
    rng = np.random.default_rng(0)
    most = 0
    for _ in range(150):
        height, width = rng.integers(1, 90, 2).tolist()
        shapes = [blob(rng, height, width) for _ in range(rng.integers(0, 12))]
        layers = masks_of(record(np.zeros((len(shapes), 4)), segmentation=shapes or None), height, width)
        assert layers.dtype == np.int16
        assert layers.shape[1:] == (height, width)
        assert layers.flags.c_contiguous
        for number, shape in enumerate(shapes, 1):
            np.testing.assert_array_equal((layers == number).any(0), expected(shape, height, width))
            assert sum((layer == number).any() for layer in layers) <= 1
            assert (
                reference.decode(rle.from_segmentation(shape, height, width)) == expected(shape, height, width)
            ).all()
        most = max(most, len(layers))
        assert len(layers) == 1 or all(layer.any() for layer in layers)
    assert most > 2


def test_layers_are_few_and_masks_are_quick():
    rng = np.random.default_rng(1)
    shapes = []
    for k in range(500):
        y, x = divmod(k, 25)
        corners = np.array([[0, 0], [30, 3], [34, 40], [2, 36]]) + rng.uniform(0, 4, (4, 2)) + (x * 40, y * 50)
        shapes.append([corners.ravel().tolist()])
    cells = record(np.zeros((500, 4)), segmentation=shapes)
    masks_of(cells, 1000, 1000)
    start = time.process_time()
    layers = masks_of(cells, 1000, 1000)
    assert time.process_time() - start < 0.5
    assert layers.shape == (1, 1000, 1000)
    assert len(np.unique(layers)) == 501


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (None, "it has a box but no mask"),
        ("text", "'segmentation' is 'text'; it must be a list of polygons"),
        ([[1, 1, 2, 2, 3]], "a polygon is .* even number"),
        ([["a", 1, 2, 2, 3, 3]], "a polygon is .* even number"),
        ([[1, 1, 2, NAN, 3, 3]], "a polygon has a corner at nan pixels"),  # the library would never return
        ([[1, 1, 2, 1e9, 3, 3]], "a polygon has a corner at 1e.09 pixels"),  # nor from this
        ({"size": [60, 40], "counts": [2400]}, r"size \[60, 40\] \(height, width\), the image 40 x 60"),
        ({"size": [40, 60], "counts": [2399]}, "its run lengths sum to 2399, the image has 2400 pixels"),
        ({"size": [40, 60], "counts": [-5, 2405]}, "its run lengths"),
        ({"size": [40, 60], "counts": None}, "its run lengths"),
        ({"size": [40, 60], "counts": "zzzz"}, "its compressed run lengths are damaged"),
        ({"size": [40, 60], "counts": ""}, "its compressed run lengths are damaged"),
        ({"size": [40, 60], "counts": "ééé"}, "its compressed run lengths are damaged"),
        ({"size": [40, 60], "counts": reference.encode(np.ones((40, 60), np.uint8, "F"))["counts"][:-1]}, "damaged"),
    ],
)
def test_damaged_masks(shape, message):
    good = [[1, 1, 9, 1, 9, 9]]
    with pytest.raises(ValueError, match=rf"a.jpg, annotation 101: .*{message}"):
        masks_of(record(np.zeros((3, 4)), segmentation=[good, shape, good]), 40, 60)


def test_shapes_that_cover_nothing():
    layers = masks_of(record(np.zeros((3, 4)), segmentation=[[[1, 1, 9, 9]], [[5, 5, 5, 5, 5, 5]], []]), 40, 60)
    assert layers.shape == (1, 40, 60)
    assert not layers.any()
    with pytest.raises(ValueError, match="32768 objects; masks hold at most 32767"):
        masks_of(record(np.zeros((32768, 4))), 40, 60)


@pytest.mark.shared_data
def test_masks_of_nuclei(shared):
    from datamodules.readers.coco import read_coco

    for r in read_coco(shared / "nuclei" / "annotations" / "instances_val.json").records:
        masks = masks_of(r, r["height"], r["width"])
        assert len(masks) <= 2
        if r["image_id"] < 200 and r["height"] * r["width"] <= 256 * 256:
            for number, shape in enumerate(r["segmentation"], 1):
                np.testing.assert_array_equal((masks == number).any(0), reference.decode(shape))


def test_factors_of_rare_classes():
    # Class 0 is in all of 4 images, class 1 in one: sqrt(0.5 / 0.25).
    labels = [np.array(own, np.int64) for own in ([0, 0], [0, 1], [0], [0])]
    assert repeat_factors(labels, 3, 0.5) == pytest.approx([1, 2**0.5, 1, 1])
    assert repeat_factors([np.zeros(0, np.int64), np.array([1])], 2, 1.0) == pytest.approx([1, 2**0.5])


def test_chosen_classes_are_numbered_in_their_order():
    first = record([[1, 1, 2, 2], [3, 3, 4, 4], [5, 5, 6, 6]], labels=[0, 1, 2])
    chosen = select_classes(Listing([first, record([])], ["a", "b", "c"], [10, 20, 30]), ["c", "a"])
    assert (chosen.class_names, chosen.class_ids) == (["c", "a"], [30, 10])
    assert chosen.records[0]["labels"].tolist() == [1, 0]
    assert chosen.records[0]["annotation_ids"].tolist() == [100, 102]
    assert len(chosen.records) == 2


def test_a_class_number_equal_to_their_count_is_wrong():
    _, report = check_boxes([record([[1, 1, 2, 2]] * 3, labels=[-1, 1, 2])], "drop", 2)
    assert report.counts == {"there is no such class": 2}
