"""Every augmentation of boxes moves boxes and masks with the pixels: they are read back off generated pictures.

Picture i is drawn in channel i alone, its object j with a value of its own; pictures are resized by the nearest pixel,
so that each object's pixels can be told, whatever was laid over it.
"""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest

from datamodules.transforms.augment import DetectionAugment
from datamodules.transforms.mixing import MixedDataset, mixup, mosaic, paste_objects
from datamodules.transforms.pipeline import Transform
from tests.datamodules.test_transforms import extent

SHAPES = [(120, 91), (60, 170), (200, 200), (77, 40)]
CANVAS = (96, 128)
OBJECTS = 4


def drawn(index: int, objects: int = OBJECTS) -> dict[str, Any]:
    """Picture `index`: a rectangle in each quarter, annotated as samples are; the last one is a crowd."""
    rng = np.random.default_rng([index, 7])
    height, width = SHAPES[index % 4]
    masks = np.zeros((1, height, width), np.int16)
    rows, columns = np.mgrid[:height, :width] + 0.5
    boxes = []
    for n in range(objects):
        top, left = (n // 2) * (height // 2), (n % 2) * (width // 2)
        y1, x1 = top + rng.integers(0, height // 6), left + rng.integers(0, width // 6)
        y2, x2 = top + rng.integers(height // 3, height // 2), left + rng.integers(width // 3, width // 2)
        inside = (rows > y1) & (rows < y2) & (columns > x1) & (columns < x2)
        masks[0][inside] = n + 1
        boxes.append(extent(inside))
    image = np.zeros((height, width, 4), np.uint8)
    image[..., index % 4] = np.array([0, *(16 << np.arange(OBJECTS))], np.uint8)[masks[0]]
    return {
        "path": str(index),
        "image": image,
        "boxes": np.array(boxes, np.float32).reshape(-1, 4),
        "labels": 10 * (index % 4) + np.arange(objects),
        "iscrowd": (np.arange(objects) == OBJECTS - 1).astype(np.uint8),
        "masks": masks,
    }


def transform(
    augment: DetectionAugment | None, resize: Any = "letterbox", canvas: tuple[int, int] = CANVAS
) -> Transform:
    low = augment.min_visibility if augment else 0.0
    return Transform(
        canvas, augment=augment, resize=resize, interpolation="nearest", fill=0, dense=True, min_visibility=low
    )


def read_back(out: dict[str, Any], unit: int = 16) -> int:
    """Compare each object with its pixels in the picture; how many there were."""
    counts = {len(out[key]) for key in ("boxes", "labels", "iscrowd")}
    assert counts == {len(out["boxes"])}
    numbers = np.unique(out["masks"])
    assert numbers[numbers > 0].tolist() == list(range(1, len(out["boxes"]) + 1))
    assert len(set(out["labels"].tolist())) == len(out["labels"])
    for number, (box, label) in enumerate(zip(out["boxes"], out["labels"].tolist(), strict=True), start=1):
        pixels = out["image"][..., label // 10] == unit << (label % 10)
        np.testing.assert_array_equal((out["masks"] == number).any(0), pixels)
        np.testing.assert_allclose(box, extent(pixels), atol=1.01)
        assert out["iscrowd"][number - 1] == (label % 10 == OBJECTS - 1)
    return len(out["boxes"])


FLIPS = DetectionAugment(hflip=0.5, vflip=0.5, min_visibility=0.0, scale_jitter=(0.6, 1.6))


@pytest.mark.parametrize("resize", ["letterbox", "stretch", "native"])
def test_single_pictures(resize: Any) -> None:
    evaluation, training = transform(None, resize), transform(FLIPS, resize)
    plain = transform(DetectionAugment(crop="none", vflip=0.5), resize)
    random_resized = transform(DetectionAugment(crop="random_resized", min_visibility=0.0), resize)
    seen = 0
    for index in range(4):
        assert read_back(evaluation(drawn(index))) == OBJECTS
        assert read_back(plain(drawn(index), index)) >= (OBJECTS if resize != "native" else 0)
        for seed in range(15):
            seen += read_back(training(drawn(index), seed)) + read_back(random_resized(drawn(index), seed))
    assert seen > 120


def test_mosaic() -> None:
    step, seen, corners = transform(FLIPS), 0, set()
    for seed in range(60):
        rng = np.random.default_rng(seed)
        out = mosaic([drawn(i) for i in range(4)], step, rng)
        assert out["image"].shape == (*CANVAS, 4)
        assert out["masks"].shape == (1, *CANVAS)
        first = out["boxes"][out["labels"] < 10]
        if len(first):  # the first picture is in any of the corners
            corners.add(tuple(first.reshape(-1, 2, 2).mean((0, 1)) // [64, 48]))
        seen += read_back(step.finish(out, seed))
    assert seen > 240
    assert len(corners) == 4


def test_mixup_lays_one_over_the_other() -> None:
    step, seen = transform(FLIPS), 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        one, other = (step.jitter(drawn(i), rng, CANVAS) for i in (seed % 4, (seed + 1) % 4))
        out = mixup(one, other)
        assert len(out["masks"]) == 2
        seen += read_back(step.finish(out, seed), unit=8)
    assert seen > 160
    grey = {**drawn(0), "image": np.full((*SHAPES[0], 1), 0.5, np.float32)}
    assert mixup(grey, grey)["image"].dtype == np.float32
    assert mixup(grey, grey)["image"].shape == (*SHAPES[0], 1)


def test_pasted_objects_cover_what_is_below() -> None:
    step, seen, covered, dropped = transform(FLIPS), 0, 0, 0
    for seed in range(80):
        rng = np.random.default_rng(seed)
        below, above = (step.jitter(drawn(i), rng, CANVAS) for i in (seed % 4, (seed + 1) % 4))
        picture = below["image"].copy()
        out = paste_objects(below, above, rng, 0.6)
        np.testing.assert_array_equal(below["image"], picture)  # what was given is not changed
        pasted = [label for label in out["labels"] if label // 10 == (seed + 1) % 4]
        assert not any(label % 10 == OBJECTS - 1 for label in pasted)  # no crowds
        left = {label: int((picture[..., seed % 4] == 16 << label % 10).sum()) for label in below["labels"]}
        now = {label: int((out["image"][..., seed % 4] == 16 << label % 10).sum()) for label in below["labels"]}
        for label in left:
            assert (label in out["labels"]) == (now[label] >= 0.6 * left[label] and now[label] > 0)
            covered += now[label] < left[label]
            dropped += label not in out["labels"]
        seen += read_back_pasted(step.finish(out, seed))
    assert seen > 250
    assert covered > 40
    assert dropped > 5


def test_a_box_shrinks_to_the_pixels_that_are_left() -> None:
    """By hand: an object of rows 2..5 and columns 3..8, of which the right columns 7 and 8 and row 2 are covered."""
    masks = np.zeros((1, 10, 12), np.int16)
    masks[0, 2:6, 3:9] = 1
    below = {
        "image": np.zeros((10, 12, 3), np.uint8),
        "boxes": np.array([[2.5, 2, 9.5, 6]], np.float32),
        "labels": np.array([4]),
        "iscrowd": np.zeros(1, np.uint8),
        "masks": masks,
    }
    other = np.zeros((1, 10, 12), np.int16)
    other[0, :, 7:9], other[0, 2] = 1, 1
    above = {**below, "image": np.full((10, 12, 3), 9, np.uint8), "labels": np.array([5]), "masks": other}
    above["boxes"] = np.array([[0, 0, 12, 10]], np.float32)
    pasted = next(
        out
        for out in (paste_objects(below, above, np.random.default_rng(seed), 0.1) for seed in range(20))
        if len(out["boxes"]) == 2
    )
    assert pasted["boxes"].tolist() == [[3, 3, 7, 6], [0, 0, 12, 10]]
    assert pasted["labels"].tolist() == [4, 5]
    assert (pasted["masks"] == 1).sum() == 3 * 4
    assert (pasted["image"] == 9).all(-1).sum() == other.sum()


def read_back_pasted(out: dict[str, Any]) -> int:
    """As `read_back`; what is left of an object may be less than a pixel of a side."""
    for number, (box, label) in enumerate(zip(out["boxes"], out["labels"].tolist(), strict=True), start=1):
        pixels = out["image"][..., label // 10] == 16 << (label % 10)
        np.testing.assert_array_equal((out["masks"] == number).any(0), pixels)
        np.testing.assert_allclose(box, extent(pixels), atol=1.01)
    return len(out["boxes"])


def test_boxes_are_dropped_where_too_little_is_left() -> None:
    augment = DetectionAugment(hflip=0, scale_jitter=(1, 1), min_visibility=0.5)
    step, kept, dropped = transform(augment, "native", (48, 48)), 0, 0
    for seed in range(40):
        sample = drawn(seed % 4)
        sample["image"] = np.zeros_like(sample["image"])
        for n, (x1, y1, x2, y2) in enumerate(sample["boxes"].astype(int)):
            sample["image"][y1:y2, x1:x2, seed % 4] = 16 << n
        out = step(sample, seed)
        for n, label in enumerate(sample["labels"]):
            whole = np.prod(sample["boxes"][n, 2:] - sample["boxes"][n, :2])
            part = (out["image"][..., seed % 4] == 16 << n).sum() / whole
            assert (label in out["labels"]) == (part >= 0.5)
            kept, dropped = kept + (part >= 0.5), dropped + (0 < part < 0.5)
    assert kept > 20
    assert dropped > 20


def test_class_crop_cuts_around_rare_objects() -> None:
    sample = {
        "image": np.zeros((400, 400, 3), np.uint8),
        "boxes": np.array([[8, 8, 20, 20]] * 30 + [[370, 370, 390, 390], [190, 10, 210, 30]], np.float32),
        "labels": np.array([0] * 30 + [1, 2]),
        "iscrowd": np.array([0] * 31 + [1], np.uint8),
    }
    step = transform(DetectionAugment(class_crop=1.0, scale_jitter=(1, 1)), "native", (64, 64))
    shown = [set(step(sample, seed)["labels"].tolist()) for seed in range(100)]
    assert set().union(*shown) <= {0, 1}  # a crowd is no object to cut around
    assert 30 < sum(1 in labels for labels in shown) < 70
    empty = {**sample, "boxes": np.zeros((0, 4), np.float32), "labels": np.zeros(0), "iscrowd": np.zeros(0)}
    assert step(empty, 0)["boxes"].shape == (0, 4)


# The data set of mixed samples.


def mixed(augment: DetectionAugment, canvases: list[tuple[int, int]] | None = None, **settings: Any) -> MixedDataset:
    steps = [transform(augment, canvas=canvas) for canvas in canvases or [CANVAS]]
    options: dict[str, Any] = {
        "weights": None, "global_batch": 4, "mixed_passes": None, "seed": 3, "stream": "train", **settings
    }  # fmt: skip
    records = [{"path": str(i), "n": i} for i in range(8)]
    return MixedDataset(records, read, steps, augment, **options)


def read(record: dict[str, Any]) -> dict[str, Any]:
    """Pictures 6 and 7 have nothing on them."""
    return drawn(record["n"], OBJECTS if record["n"] < 6 else 0)


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[key], other[key]) for key in one)


ALL = DetectionAugment(mosaic=0.5, mixup=0.3, copy_paste=0.5)


def test_a_sample_is_a_function_of_its_key() -> None:
    data = mixed(ALL)
    again = pickle.loads(pickle.dumps(mixed(ALL)))
    samples = [data[i % 8, 0, i] for i in range(24)]
    for i in reversed(range(24)):  # whatever came before
        assert same(again[i % 8, 0, i], samples[i])
    assert not same(data[0, 1, 0], samples[0])  # another pass
    assert not same(data[0, 0, 8], samples[0])  # another position
    assert not same(mixed(ALL, seed=4)[0, 0, 0], samples[0])
    assert not same(mixed(ALL, stream="other")[0, 0, 0], samples[0])
    assert {s["image"].shape for s in samples} == {(*CANVAS, 4)}
    assert all(s["geometry"][:2].tolist() == list(SHAPES[i % 4]) for i, s in enumerate(samples))
    assert all(s["id"] == i % 8 and s["path"] == str(i % 8) for i, s in enumerate(samples))


def test_flips_come_behind_the_mixing() -> None:
    chances = {"mosaic": 0.5, "mixup": 0.3, "copy_paste": 0.5}
    plain, flipped = (mixed(DetectionAugment(**chances, hflip=flip)) for flip in (0.0, 1.0))
    for i in range(12):
        before, after = plain[i % 8, 0, i], flipped[i % 8, 0, i]
        np.testing.assert_array_equal(after["image"], before["image"][:, ::-1])
        np.testing.assert_array_equal(after["masks"], before["masks"][..., ::-1])


def test_the_last_passes_see_single_pictures() -> None:
    data, plain = mixed(ALL, mixed_passes=2), transform(ALL)
    for pass_, single in ((0, False), (1, False), (2, True), (9, True)):
        # Each picture has a channel of its own, so that more than one shows.
        channels = [int(data[i % 8, pass_, i]["image"].any((0, 1)).sum()) for i in range(24)]
        assert (max(channels) <= 1) == single
    assert data[2, 2, 5]["boxes"].shape == mixed(DetectionAugment(), mixed_passes=0)[2, 2, 5]["boxes"].shape
    never = mixed(DetectionAugment(mixup=0.001))  # what is not mixed is what it is without mixing
    assert same(never[2, 0, 5], mixed(DetectionAugment())[2, 0, 5])
    assert plain.augment is ALL


def test_pictures_without_objects_are_mixed_too() -> None:
    data = mixed(ALL)
    alone = [s for i in range(40) if (s := data[6 + i % 2, 0, i])["image"].any() == 0]
    assert all(len(s["boxes"]) == 0 and s["boxes"].shape == (0, 4) for s in alone)
    assert any(len(data[6, 0, i]["boxes"]) for i in range(40))


def test_other_pictures_are_drawn_as_the_sampler_draws() -> None:
    augment = DetectionAugment(mixup=1.0, scale_jitter=(1, 1))
    data = mixed(augment, weights=[0, 0, 0, 0, 0, 3, 0, 1])
    other = [bool((data[6, 0, i]["labels"] // 10 == 1).any()) for i in range(80)]
    assert 45 < sum(other) < 75


def test_a_batch_has_one_canvas() -> None:
    sizes = [(64, 64), (96, 96), (64, 128)]
    data = mixed(DetectionAugment(mosaic=0.5, canvas_sizes=[64, 96, (64, 128)]), sizes)
    assert data.augment.canvases() == sizes
    shapes = [[data[i % 8, pass_, i]["image"].shape[:2] for i in range(80)] for pass_ in (0, 1)]
    for order in shapes:
        batches = [set(order[i : i + 4]) for i in range(0, 80, 4)]
        assert all(len(batch) == 1 for batch in batches)
        assert set.union(*batches) == set(sizes)
    assert shapes[0] != shapes[1]
    flips = mixed(FLIPS, sizes)
    assert sum(read_back(flips[i % 6, 0, i]) for i in range(60)) > 100


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mosaic": 1.5}, "data.augment.mosaic is 1.5: it is a probability"),
        ({"min_visibility": -1}, "data.augment.min_visibility is -1: it is a fraction of a box's area"),
        ({"canvas_sizes": []}, r"data.augment.canvas_sizes is \[\]: it is a list of sides"),
        ({"canvas_sizes": [0]}, r"data.augment.canvas_sizes is \[0\]: it is a list of sides"),
        ({"close_mosaic_epochs": 5}, "close_mosaic_epochs is 5: only mosaic, mixup and copy_paste use it"),
        ({"mosaic": 0.5, "close_mosaic_epochs": -1}, "close_mosaic_epochs is -1: it is a number of epochs"),
        ({"mosaic": 0.5, "preset": "none"}, "data.augment.mosaic is 0.5: preset: none does nothing at all"),
        ({"mosaic": 0.5, "crop": "none"}, "data.augment.mosaic is 0.5: it crops pictures by jitter, and crop is none"),
        ({"mixup": 0.5, "transforms": []}, "data.augment.mixup is 0.5: transforms replaces all of the preset"),
    ],
)
def test_settings_are_honoured_or_refused(settings: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DetectionAugment(**settings)
