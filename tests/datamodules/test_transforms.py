"""Transforms: determinism by seed, boxes and masks that move with the pixels, the way back, refusals, batched forms."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch

from datamodules.common.geometry import boxes_to_canvas, boxes_to_original, mask_to_original
from datamodules.transforms.augment import Augment
from datamodules.transforms.batched import BatchTransform, batch_transform
from datamodules.transforms.pipeline import Transform

SIZES = [(37, 53), (120, 91), (64, 64), (33, 200)]
PRESETS = ["light", "medium", "strong", "trivial", "rand"]


def scene(shape: tuple[int, int] = (120, 91), channels: int = 3, dtype: type = np.uint8) -> dict[str, Any]:
    """A black picture with two rectangles, each in a channel of its own; the class mask, boxes and masks say where."""
    height, width = shape
    image = np.zeros((height, width, channels), np.uint8)
    boxes = np.array([[0.1, 0.15, 0.45, 0.6], [0.5, 0.4, 0.95, 0.9]]) * [width, height, width, height]
    boxes = boxes.round().astype(np.float32)
    mask, masks = np.zeros(shape, np.uint8), np.zeros((1, *shape), np.int16)
    for number, (x1, y1, x2, y2) in enumerate(boxes.astype(int), start=1):
        image[y1:y2, x1:x2, (number - 1) % channels] = 255
        mask[y1:y2, x1:x2] = number
        masks[0, y1:y2, x1:x2] = number
    if dtype == np.float32:
        image = (image / 255).astype(np.float32)
    labels = np.array([5, 7])
    return {"image": image, "mask": mask, "masks": masks, "boxes": boxes, "labels": labels, "path": "a.png"}


def noise(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def extent(where: np.ndarray) -> list[int]:
    rows, columns = np.nonzero(where)
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


# Evaluation and the way back.


@pytest.mark.parametrize("resize", ["crop", "letterbox", "stretch"])
@pytest.mark.parametrize("canvas", [(48, 64), (224, 224), (31, 45)])
@pytest.mark.parametrize("shape", SIZES)
def test_boxes_there_and_back(shape: tuple[int, int], canvas: tuple[int, int], resize: Any) -> None:
    out = Transform(canvas, augment=None, resize=resize)({"image": noise((*shape, 3))})
    assert out["image"].shape == (*canvas, 3)
    geometry = out["geometry"]
    assert geometry.dtype == np.float32
    assert geometry[:2].tolist() == list(shape)
    height, width = shape
    boxes = np.sort(np.random.default_rng(1).random((50, 2, 2)), axis=1) * [width, height]
    boxes = boxes.reshape(50, 4).astype(np.float32)
    np.testing.assert_allclose(boxes_to_original(boxes_to_canvas(boxes, geometry), geometry), boxes, atol=1e-3)
    both, tensor = torch.from_numpy(boxes), torch.from_numpy(geometry)
    back = boxes_to_original(boxes_to_canvas(both, tensor), tensor)
    assert torch.allclose(back, both, atol=1e-3)
    batched = boxes_to_canvas(both[None].repeat(2, 1, 1), tensor[None].repeat(2, 1))
    assert torch.equal(batched[1], boxes_to_canvas(both, tensor))


def test_boxes_to_original_clips_to_the_image() -> None:
    geometry = np.array([10, 20, 2, 2, 0, 5], np.float32)
    boxes = np.array([[-4, 0, 100, 100]], np.float32)
    assert boxes_to_original(boxes, geometry).tolist() == [[0, 0, 20, 10]]
    assert boxes_to_original(np.zeros((0, 4), np.float32), geometry).shape == (0, 4)


@pytest.mark.parametrize("resize", ["letterbox", "stretch", "crop"])
@pytest.mark.parametrize("shape", [(37, 53), (61, 41), (15, 60)])
def test_masks_there_and_back_exactly(shape: tuple[int, int], resize: Any) -> None:
    mask = noise(shape) % 200
    out = Transform((97, 131), augment=None, resize=resize)({"image": noise((*shape, 1)), "mask": mask})
    back = mask_to_original(out["mask"], out["geometry"])
    assert back.shape == shape
    assert back.dtype == np.uint8
    seen = back != 255
    assert np.array_equal(back[seen], mask[seen])
    assert seen.all() if resize != "crop" else 0.1 < seen.mean() < 1
    again = mask_to_original(torch.from_numpy(out["mask"]), torch.from_numpy(out["geometry"]))
    assert np.array_equal(again.numpy(), back)


def test_pixels_that_were_cropped_away_are_ignored() -> None:
    """Of a picture of 4 x 5 the canvas shows all but a border of one pixel."""
    geometry = np.array([4, 5, 1, 1, -1, -1], np.float32)
    back = mask_to_original(np.array([[1, 2, 3], [4, 5, 6]], np.uint8), geometry)
    assert back.tolist() == [[255] * 5, [255, 1, 2, 3, 255], [255, 4, 5, 6, 255], [255] * 5]


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("resize", ["crop", "letterbox", "stretch"])
@pytest.mark.parametrize("shape", SIZES)
def test_evaluation_moves_boxes_and_masks_with_the_pixels(shape: tuple[int, int], resize: Any, dtype: type) -> None:
    sample = scene(shape, dtype=dtype)
    out = Transform((160, 176), augment=None, resize=resize, fill=0, interpolation="bilinear")(sample)
    for label, box in zip(out["labels"], out["boxes"], strict=True):
        number = {5: 1, 7: 2}[int(label)]
        seen = out["image"][..., number - 1] > (127 if dtype == np.uint8 else 0.5)
        np.testing.assert_allclose(extent(seen), box, atol=1)
        np.testing.assert_allclose(extent(out["mask"] == number), box, atol=1)
        index = 1 + out["labels"].tolist().index(label)
        np.testing.assert_allclose(extent(out["masks"][0] == index), box, atol=1)
    assert (out["mask"] == 255).any() == (resize == "letterbox")


def test_own_size_changes_nothing() -> None:
    sample = scene((37, 53))
    out = Transform(None, augment=None)(sample)
    assert np.array_equal(out["image"], sample["image"])
    assert out["geometry"].tolist() == [37, 53, 1, 1, 0, 0]


def test_shrinking_is_antialiased() -> None:
    stripes = np.zeros((400, 400, 1), np.uint8)
    stripes[:, ::2] = 255
    for interpolation in ("bilinear", "bicubic", "area"):
        out = Transform((100, 100), augment=None, resize="stretch", interpolation=interpolation)({"image": stripes})
        assert np.abs(out["image"].astype(int) - 127).max() <= 1
    augment = Augment(crop="random_resized", crop_scale=(1.0, 1.0))
    out = Transform((100, 100), augment=augment)({"image": stripes}, 0)
    assert out["image"].astype(float).std() < 20


# Training.


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("preset", PRESETS)
def test_presets_on_odd_sizes(preset: Any, channels: int) -> None:
    augment = Augment(preset=preset)
    for shape in [(37, 53), (120, 91)]:
        for dtype in (np.uint8, np.float32):
            for size in (None, (33, 47), (81, 96)):
                transform = Transform(size, augment=augment)
                sample = scene(shape, channels, dtype)
                sample["image"].flags.writeable = False  # a transform must never write into a cached image
                for seed in range(4):
                    out = transform(sample, seed)
                    height, width = size or shape
                    assert out["image"].shape == (height, width, channels)
                    assert out["image"].dtype == dtype
                    assert out["image"].flags.c_contiguous
                    assert out["mask"].shape == (height, width)
                    assert out["mask"].dtype == np.uint8
                    assert out["masks"].shape == (1, height, width)
                    assert set(np.unique(out["mask"])) <= {0, 1, 2, 255}
                    assert len(out["boxes"]) == len(out["labels"])
                    assert set(np.unique(out["masks"])) <= set(range(len(out["boxes"]) + 1))
                    assert out["geometry"].shape == (6,)
                    assert (out["boxes"] >= 0).all()
                    assert (out["boxes"] <= [width, height, width, height]).all()


@pytest.mark.parametrize("preset", PRESETS)
def test_seed_decides(preset: Any) -> None:
    transform = Transform((72, 72), augment=Augment(preset=preset))
    sample = {"image": noise((100, 120, 3))}
    first = [transform(sample, seed)["image"] for seed in range(20)]
    other = pickle.loads(pickle.dumps(transform))
    again = [other(sample, seed)["image"] for seed in reversed(range(20))][::-1]
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert len({image.tobytes() for image in first}) == 20


def test_seed_decides_nested_custom_transforms() -> None:
    nested = {"OneOf": {"transforms": [{"Blur": {"p": 1.0}}, {"RandomBrightnessContrast": {"p": 1.0}}], "p": 0.9}}
    augment = Augment(transforms=[nested, {"class_path": "albumentations.HorizontalFlip", "init_args": {"p": 0.5}}])
    sample = {"image": noise((64, 64, 3))}
    run = [Transform((48, 48), augment=augment)(sample, seed)["image"].tobytes() for seed in range(12)]
    transform = Transform((48, 48), augment=augment)
    assert [transform(sample, seed)["image"].tobytes() for seed in range(12)] == run
    assert len(set(run)) > 6


def test_random_parts_are_independent() -> None:
    """albumentations' own set_random_seed gives every transform the same numbers (correlation -0.4 here)."""
    size = 400
    image = np.zeros((size, size, 1), np.uint8)
    image[:, : size // 2] = np.linspace(0, 100, size // 2, dtype=np.uint8)[None, :, None]
    image[:, size // 2 :] = np.linspace(101, 250, size // 2, dtype=np.uint8)[None, :, None]
    transform = Transform((65, 65), augment=Augment(crop="random_resized"))
    flipped, width = [], []
    for seed in range(400):
        row = transform({"image": image}, seed)["image"][32, :, 0].astype(int)
        flipped.append(row[0] > row[-1])
        width.append(abs(row[-1] - row[0]))
    assert 0.4 < np.mean(flipped) < 0.6
    assert abs(np.corrcoef(flipped, width)[0, 1]) < 0.15


@pytest.mark.parametrize(
    "augment",
    [
        Augment(crop="random_resized", crop_scale=(0.6, 1.0), vflip=0.5),
        Augment(crop="pad", crop_padding=9, vflip=0.5),
        Augment(crop="none", vflip=0.5),
        Augment(transforms=[{"Rotate": {"limit": 30, "p": 1.0}}, {"Transpose": {"p": 0.5}}]),
        Augment(transforms=[{"Affine": {"rotate": [-20, 20], "shear": [-10, 10], "scale": [0.7, 1.2], "p": 1.0}}]),
    ],
)
@pytest.mark.parametrize("shape", [(120, 91), (150, 200)])
def test_training_moves_boxes_and_masks_with_the_pixels(augment: Augment, shape: tuple[int, int]) -> None:
    transform = Transform((160, 160), augment=augment, resize="letterbox", fill=0, interpolation="bilinear")
    checked = 0
    for seed in range(25):
        out = transform(scene(shape), seed)
        for index, (label, box) in enumerate(zip(out["labels"], out["boxes"], strict=True), start=1):
            number = {5: 1, 7: 2}[int(label)]
            assert np.mean((out["masks"][0] == index) != (out["mask"] == number)) < 0.002
            moved = extent(out["mask"] == number)
            seen = out["image"][..., number - 1] > 127
            assert np.mean(seen != (out["mask"] == number)) < 0.01
            if "Affine" not in str(augment.transforms) and "Rotate" not in str(augment.transforms):
                np.testing.assert_allclose(moved, box, atol=2)
            else:  # the box around a turned box: never smaller than the object, up to the clipping at the border
                assert (np.array(box[:2]) <= np.array(moved[:2]) + 2).all()
                assert (np.array(box[2:]) >= np.array(moved[2:]) - 2).all()
            checked += 1
    assert checked > 25


def test_invisible_boxes_are_dropped_with_all_that_is_theirs() -> None:
    sample = scene((100, 300))
    sample["boxes"] = np.array([[1, 40, 20, 60], [140, 40, 160, 60]], np.float32)
    sample["masks"] = np.zeros((1, 100, 300), np.int16)
    sample["masks"][0, 40:60, 1:20] = 1
    sample["masks"][0, 40:60, 140:160] = 2
    sample["iscrowd"] = np.array([0, 1], np.uint8)
    for augment in (None, Augment(crop="none", hflip=0.0)):
        out = Transform((100, 100), augment=augment, crop_pct=1.0)(sample, 0)
        np.testing.assert_allclose(out["boxes"], [[40, 40, 60, 60]], atol=1e-4)
        assert out["labels"].tolist() == [7]
        assert out["iscrowd"].tolist() == [1]
        assert extent(out["masks"][0] == 1) == [40, 40, 60, 60]
        assert out["masks"].max() == 1
    assert len(sample["boxes"]) == 2


@pytest.mark.parametrize("augment", [None, Augment(preset="strong"), Augment(preset="rand", rand_magnitude=27)])
def test_images_without_boxes(augment: Augment | None) -> None:
    sample = {"image": noise((80, 90, 3)), "boxes": np.zeros((0, 4), np.float32), "labels": np.zeros(0, np.int64)}
    for seed in range(5):
        out = Transform((70, 70), augment=augment)(sample, seed)
        assert out["boxes"].shape == (0, 4)
        assert out["boxes"].dtype == np.float32
        assert out["labels"].shape == (0,)


def test_masks_outside_are_ignored_and_wide_masks_keep_their_classes() -> None:
    sample = {"image": noise((70, 70, 3)), "mask": np.full((70, 70), 700, np.int64)}
    sample["mask"][:10] = 255
    for augment in (None, Augment(crop="pad", crop_padding=10)):
        out = Transform((70, 90), augment=augment, resize="letterbox")(sample, 3)
        assert out["mask"].dtype == np.int64
        assert set(np.unique(out["mask"])) == {255, 700}


def test_preset_none_is_evaluation() -> None:
    sample = {"image": noise((80, 90, 3))}
    still = Transform((64, 64), augment=Augment(preset="none"))(sample, 3)
    assert np.array_equal(still["image"], Transform((64, 64), augment=None)(sample)["image"])


def test_crop_left_out_follows_the_canvas() -> None:
    assert Augment().crop_for((64, 80)) == "pad"
    assert Augment().crop_for((65, 80)) == "random_resized"
    assert Augment(crop="none").crop_for((32, 32)) == "none"


# Refusals.


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hflip": 1.5}, r"data\.augment\.hflip is 1\.5.*probability"),
        ({"vflip": -0.1}, r"data\.augment\.vflip"),
        ({"crop_scale": (0.0, 1.0)}, r"data\.augment\.crop_scale"),
        ({"crop_scale": (0.9, 0.5)}, r"data\.augment\.crop_scale"),
        ({"crop": "pad", "crop_padding": 0}, r"data\.augment\.crop_padding is 0"),
        ({"preset": "rand", "rand_ops": 0}, r"data\.augment\.rand_ops"),
        ({"preset": "rand", "rand_magnitude": 31}, r"data\.augment\.rand_magnitude is 31.*0 to 30"),
        ({"rand_magnitude": 5}, r"data\.augment\.rand_magnitude is 5: only preset: rand.*light"),
        ({"preset": "trivial", "rand_ops": 3}, r"data\.augment\.rand_ops.*trivial"),
        ({"preset": "none", "hflip": 0.3}, r"data\.augment\.hflip is 0\.3: preset: none"),
        ({"crop": "pad", "crop_scale": (0.5, 1.0)}, r"crop_scale.*only crop: random_resized"),
        ({"crop": "random_resized", "crop_padding": 8}, r"crop_padding.*only crop: pad"),
        ({"transforms": [{"Blur": {}}], "vflip": 0.5}, r"vflip is 0\.5: transforms replaces"),
        ({"transforms": [{"Blur": {}}], "preset": "strong"}, r"preset.*transforms replaces"),
        ({"transforms": [{"HorizontalFlop": {}}]}, r"transforms\[0\].*HorizontalFlop'. Did you mean 'HorizontalFlip'"),
        ({"transforms": [{"HorizontalFlip": {"prob": 1}}]}, r"\[0\] \(HorizontalFlip\) has no argument 'prob'"),
        (
            {"transforms": [{"Blur": {}}, {"HorizontalFlip": {"p": 2}}]},
            r"\[1\] \(HorizontalFlip\): argument 'p'.*got 2",
        ),
        ({"transforms": [{"RandomCrop": {"width": 3}}]}, r"RandomCrop\): argument 'height': Field required"),
        ({"transforms": [{"Normalize": {}}]}, r"Normalize\) is refused: normalization.*in the model"),
        ({"transforms": [{"class_path": "albumentations.pytorch.ToTensorV2"}]}, r"ToTensorV2\) is refused"),
        ({"transforms": [{"OneOf": {"transforms": [{"ToFloat": None}]}}]}, r"OneOf\)\.transforms\[0\] \(ToFloat\)"),
        ({"transforms": [{"OneOf": {}}]}, r"OneOf\) needs 'transforms'"),
        ({"transforms": [{"Mosaic": {}}]}, r"Mosaic\) needs mosaic_metadata"),
        ({"transforms": [{"RandomCrop3D": {"size": [8, 8, 8]}}]}, r"not for single images"),
        ({"transforms": [{"class_path": "Blur", "args": {}}]}, r"unknown key 'args'"),
        ({"transforms": ["Blur"]}, r"transforms\[0\] is 'Blur'; write"),
    ],
)
def test_refused_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Augment(**settings)


def test_refused_for_the_canvas() -> None:
    with pytest.raises(ValueError, match=r"crop_scale.*only crop: random_resized.*chosen for 32 x 32"):
        Transform((32, 32), augment=Augment(crop_scale=(0.5, 1.0)))
    with pytest.raises(ValueError, match=r"crop_padding.*only crop: pad.*chosen for 224 x 224"):
        Transform((224, 224), augment=Augment(crop_padding=8))
    with pytest.raises(ValueError, match="crop_pct is 0"):
        Transform((32, 32), augment=None, crop_pct=0)
    with pytest.raises(ValueError, match="needs a seed"):
        Transform((32, 32), augment=Augment())({"image": noise((40, 40, 3))}, None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"boxes": np.array([[5, 5, 2, 9], [1, 1, 2, 2]], np.float32)}, r"a\.png: box 0"),
        ({"boxes": np.array([[1, 1, 2, 2], [1, np.nan, 2, 9]], np.float32)}, r"a\.png: box 1"),
        ({"mask": np.zeros((5, 5), np.uint8)}, r"a\.png: mask is \(5, 5\)"),
        ({"image": noise((40, 40))}, r"a\.png: image is uint8 \(40, 40\)"),
    ],
)
def test_malformed_samples_name_the_file(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Transform((32, 32), augment=None)({**scene(), **change})


def test_transforms_that_change_the_channels_are_refused() -> None:
    augment = Augment(transforms=[{"ToGray": {"num_output_channels": 1, "p": 1.0}}])
    with pytest.raises(ValueError, match=r"data\.augment\.transforms turn.*channels must stay"):
        Transform((32, 32), augment=augment)({"image": noise((40, 40, 3))}, 0)


# The batched form.


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("augment", [Augment(vflip=0.3, crop_padding=5), Augment(crop="none"), Augment(hflip=0.0)])
def test_batch_equals_one_by_one(augment: Augment, channels: int) -> None:
    batched = batch_transform(augment, (21, 30))
    assert batched is not None
    images = torch.from_numpy(noise((40, 21, 30, channels)))
    before = images.clone()
    out = batched(images, 7)
    assert torch.equal(images, before)
    assert out.shape == images.shape
    assert out.dtype == torch.uint8
    assert out.is_contiguous()
    draws = batched.draw(40, 7)
    pad = batched.padding
    for image, top, left, hflip, vflip, got in zip(images.numpy(), *draws, out.numpy(), strict=True):
        want = np.pad(image, ((pad, pad), (pad, pad), (0, 0)))[top : top + 21, left : left + 30]
        want = want[:, ::-1] if hflip else want
        want = want[::-1] if vflip else want
        assert np.array_equal(got, want)
    assert torch.equal(batched(images, 7), out)
    assert not torch.equal(batched(images, 8), out)
    assert torch.equal(pickle.loads(pickle.dumps(batched))(images, 7), out)


def test_batch_draws_follow_the_settings() -> None:
    batched = batch_transform(Augment(hflip=0.25, vflip=0.0, crop_padding=2), (32, 32))
    assert batched is not None
    draws = batched.draw(20_000, 1)
    assert draws.hflip.float().mean().item() == pytest.approx(0.25, abs=0.02)
    assert not draws.vflip.any()
    assert draws.top.unique().tolist() == draws.left.unique().tolist() == [0, 1, 2, 3, 4]
    assert abs(np.corrcoef(draws.top, draws.left)[0, 1]) < 0.03


def test_batch_draws_are_independent() -> None:
    draws = BatchTransform(hflip=0.5, vflip=0.5, padding=4).draw(400, 0)
    assert {(bool(h), bool(v)) for h, v in zip(draws.hflip, draws.vflip, strict=True)} == {
        (False, False),
        (False, True),
        (True, False),
        (True, True),
    }
    assert {(int(t), int(left)) for t, left in zip(draws.top, draws.left, strict=True)} >= {(0, 8), (8, 0)}


def test_batched_form_exists_only_where_it_can() -> None:
    small, large = (32, 32), (224, 224)
    assert batch_transform(Augment(), small) is not None
    assert batch_transform(Augment(crop="none"), large) is not None
    assert batch_transform(Augment(crop="pad")) is not None
    assert batch_transform(Augment(), large) is None
    assert batch_transform(Augment()) is None
    assert batch_transform(Augment(crop="random_resized"), small) is None
    for preset in ("medium", "strong", "trivial", "rand"):
        assert batch_transform(Augment(preset=preset), small) is None
    assert batch_transform(Augment(transforms=[{"HorizontalFlip": {}}]), small) is None
    nothing = batch_transform(Augment(preset="none"), small)
    images = torch.from_numpy(noise((4, 8, 8, 1)))
    assert nothing is not None
    assert torch.equal(nothing(images, 0), images)
