"""RandAugment and TrivialAugment-Wide: the magnitude table, determinism, boxes and masks that move with the pixels."""

from __future__ import annotations

import random

import albumentations as A
import numpy as np
import pytest

from datamodules.transforms.randaugment import (
    MAGNITUDE_MAX,
    MAGNITUDES,
    RandAugment,
    TrivialAugmentWide,
    magnitude_values,
    operation,
    operation_names,
)

GEOMETRIC = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
WITH_MAGNITUDE = [name for name, scale in MAGNITUDES.items() if scale.rand]


def picture(channels: int = 3, dtype: type = np.uint8) -> np.ndarray:
    """A smooth picture with all grey values, so that every operation shows."""
    rows, columns = np.mgrid[0:48, 0:64]
    image = np.stack([(rows * 5 + columns * (2 + c)) % 256 for c in range(channels)], axis=-1).astype(np.uint8)
    return image if dtype == np.uint8 else (image / 255).astype(np.float32)


def apply(augmentation: A.BaseCompose, image: np.ndarray, seed: int) -> np.ndarray:
    pipeline = A.Compose([augmentation])
    pipeline.set_random_state(np.random.default_rng(seed), random.Random(seed))
    return pipeline(image=image.copy())["image"]


@pytest.mark.parametrize(
    ("name", "at_0", "at_10", "at_27"),
    [
        ("rotate", (0, 0), (-30, 30), (-81, 81)),
        ("shear_x", (0, 0), (-0.3, 0.3), (-0.81, 0.81)),
        ("shear_y", (0, 0), (-0.3, 0.3), (-0.81, 0.81)),
        ("translate_x", (0, 0), (-1 / 6, 1 / 6), (-0.45, 0.45)),
        ("translate_y", (0, 0), (-1 / 6, 1 / 6), (-0.45, 0.45)),
        ("color", (1, 1), (0.7, 1.9), (0.19, 3.43)),
        ("contrast", (1, 1), (0.7, 1.9), (0.19, 3.43)),
        ("brightness", (1, 1), (0.7, 1.9), (0.19, 3.43)),
        ("sharpness", (1, 1), (0.7, 1.9), (0.19, 3.43)),
        ("solarize", (256,), (256 * 2 / 3,), (25.6,)),
        ("posterize", (8,), (6,), (2,)),
    ],
)
def test_table(name: str, at_0: tuple[float, ...], at_10: tuple[float, ...], at_27: tuple[float, ...]) -> None:
    assert magnitude_values(name, 0) == pytest.approx(at_0)
    assert magnitude_values(name, 10) == pytest.approx(at_10)
    assert magnitude_values(name, 27) == pytest.approx(at_27)


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("name", WITH_MAGNITUDE)
def test_values_move_away_from_nothing_monotonically(name: str, wide: bool) -> None:
    zero = MAGNITUDES[name].zero
    distance = [[abs(v - zero) for v in magnitude_values(name, m, wide)] for m in range(MAGNITUDE_MAX + 1)]
    assert all(value == 0 for value in distance[0])
    steps = np.diff(np.array(distance), axis=0)
    assert (steps >= 0).all()
    assert (np.array(distance[27]) > np.array(distance[10])).all()
    if name != "posterize":  # whole bits stay the same for a few magnitudes
        assert (steps > 0).all()


def test_geometric_operations_move_pixels_as_far_as_they_say() -> None:
    """A dot at (x, y) from the center (edges' half: 32, 24 in a picture of 64 x 48) comes out where it is expected."""

    def moved(name: str, value: float, x: int = 12, y: int = 8) -> tuple[float, float]:
        image = np.zeros((48, 64, 1), np.uint8)
        image[24 + y - 1 : 24 + y + 2, 32 + x - 1 : 32 + x + 2] = 255
        out = operation(name, value, 0)(image=image)["image"][..., 0].astype(float)
        rows, columns = np.mgrid[0:48, 0:64]
        return (columns * out).sum() / out.sum() - 32, (rows * out).sum() / out.sum() - 24

    for name, value, expected in [
        ("shear_x", 0.9, (12 + 0.9 * 8, 8)),  # the tangent, not the angle: 45 degrees would be 1
        ("shear_y", 0.9, (12, 8 + 0.9 * 12)),
        ("translate_x", -0.25, (12 - 16, 8)),
        ("translate_y", -0.25, (12, 8 - 12)),
    ]:
        there = moved(name, value)
        other_way = tuple(2 * a - b for a, b in zip((12, 8), expected, strict=True))
        distance = min(np.abs(np.subtract(there, expected)).max(), np.abs(np.subtract(there, other_way)).max())
        assert distance < 1.5, (name, there)
    there = moved("rotate", 90)
    assert sorted(np.abs(there)) == pytest.approx([8, 12], abs=1.5)


def test_solarize_and_posterize_by_hand() -> None:
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    solarized = operation("solarize", 128, 0)(image=ramp)["image"]
    np.testing.assert_array_equal(solarized, np.where(ramp >= 128, 255 - ramp, ramp))
    np.testing.assert_array_equal(operation("posterize", 2, 0)(image=ramp)["image"], ramp & 0b11000000)


def test_wide_column_is_trivialaugment_wide() -> None:
    assert magnitude_values("rotate", 30, wide=True) == (-135, 135)
    assert magnitude_values("shear_x", 30, wide=True) == pytest.approx((-0.99, 0.99))
    assert magnitude_values("color", 30, wide=True) == pytest.approx((0.01, 1.99))
    assert magnitude_values("posterize", 30, wide=True) == (2,)


@pytest.mark.parametrize("name", WITH_MAGNITUDE)
def test_pixels_change_more_above_10(name: str) -> None:
    image = picture()
    changes = []
    for magnitude in (0, 10, 27):
        outputs = [operation(name, value, 0)(image=image)["image"] for value in magnitude_values(name, magnitude)]
        changes.append([np.abs(out.astype(float) - image).mean() for out in outputs])
    assert max(changes[0]) == 0
    for at_10, at_27 in zip(changes[1], changes[2], strict=True):
        assert 0 < at_10 < at_27


def test_posterize_keeps_at_least_one_bit() -> None:
    for magnitude in np.arange(0, 30.5, 0.5):
        (bits,) = magnitude_values("posterize", float(magnitude))
        assert 1 <= bits <= 8
    assert set(np.unique(operation("posterize", 1, 0)(image=picture())["image"])) == {0, 128}


@pytest.mark.parametrize("factor", [0.0, 0.5, 1.9, 3.7])
def test_enhancements_agree_with_pillow(factor: float) -> None:
    from PIL import Image, ImageEnhance

    image = picture()
    peers = {"color": "Color", "contrast": "Contrast", "brightness": "Brightness", "sharpness": "Sharpness"}
    for name, peer in peers.items():
        theirs = np.asarray(getattr(ImageEnhance, peer)(Image.fromarray(image)).enhance(factor)).astype(int)
        ours = operation(name, factor, 0)(image=image)["image"].astype(int)
        assert np.abs(ours - theirs)[1:-1, 1:-1].max() <= 4, name  # Pillow leaves the border as it is


@pytest.mark.parametrize("magnitude", [-1, 30.5, 100])
def test_magnitude_out_of_range_is_refused(magnitude: float) -> None:
    with pytest.raises(ValueError, match=r"0 to 30"):
        RandAugment(2, magnitude)
    with pytest.raises(ValueError, match=r"0 to 30"):
        magnitude_values("rotate", magnitude)
    with pytest.raises(ValueError, match="at least 1"):
        RandAugment(0, 9)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("make", [lambda: RandAugment(2, 27, fill=0.4), lambda: TrivialAugmentWide(fill=0.4)])
def test_shape_and_type_stay_and_the_seed_decides(make, channels: int, dtype: type) -> None:
    image = picture(channels, dtype)
    outputs = [apply(make(), image, seed) for seed in range(30)]
    assert all(out.shape == image.shape and out.dtype == image.dtype for out in outputs)
    assert all(np.array_equal(out, apply(make(), image, seed)) for seed, out in enumerate(outputs))
    assert len({out.tobytes() for out in outputs}) > 15


def test_operations_for_channels() -> None:
    assert len(operation_names(3)) == 14
    assert set(operation_names(3)) - set(operation_names(1)) == {"color"}
    drawn = set()
    augmentation = RandAugment(2, 9)
    for seed in range(200):
        augmentation.set_random_state(np.random.default_rng(seed), random.Random(seed))
        drawn |= {name for name, _ in augmentation.draw(1)}
    assert drawn == set(operation_names(1))


def test_both_ways_and_all_magnitudes_are_drawn() -> None:
    augmentation = TrivialAugmentWide()
    augmentation.set_random_state(np.random.default_rng(0), random.Random(0))
    angles = {value for _ in range(5000) for name, value in augmentation.draw(3) if name == "rotate"}
    assert angles == {sign * 4.5 * m for m in range(31) for sign in (-1, 1)}


@pytest.mark.parametrize("magnitude", [5, 10, 20])
@pytest.mark.parametrize("name", GEOMETRIC)
def test_boxes_and_masks_move_with_the_pixels(name: str, magnitude: float) -> None:
    image = np.zeros((101, 121, 3), np.uint8)
    box = np.array([[45, 40, 70, 58]], np.float32)
    image[40:58, 45:70] = 255
    mask = (image[..., 0] > 0).astype(np.uint8)
    for value in magnitude_values(name, magnitude):
        pipeline = A.Compose([operation(name, value, 0)], bbox_params=A.BboxParams("pascal_voc"))
        out = pipeline(image=image, mask=mask, bboxes=box)
        rows, columns = np.nonzero(out["image"][..., 0] > 127)
        measured = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        np.testing.assert_allclose(out["bboxes"][0], measured, atol=2)
        assert np.mean(out["mask"] != (out["image"][..., 0] > 127)) < 0.005
