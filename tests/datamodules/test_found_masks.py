"""Masks as other programs write them: no class is lost in silence, and damage is found before a run begins."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from datamodules import DetectionData, SegmentationData
from datamodules.annotations.masks import binary_format, read_mask
from datamodules.common import rle
from datamodules.common.errors import UserError
from datamodules.decoding.images import read_image
from pipelines.__main__ import main
from pipelines.commands.convert import convert

HEIGHT, WIDTH = 40, 48


def two_objects() -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[6:22, 4:20], mask[6:22, 26:42] = 1, 2
    return mask


def save(path: Path, pixels: np.ndarray, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def pairs(root: Path, masks: list[Callable[[Path], None]]) -> SegmentationData:
    for i, write in enumerate(masks):
        save(root / f"images/{i}.png", np.full((HEIGHT, WIDTH, 3), 10 * i, np.uint8))
        (root / "masks").mkdir(exist_ok=True)
        write(root / f"masks/{i}")
    return SegmentationData(source=str(root), image_size=64, batch_size=1, num_workers=0, val_fraction=0.25)


COLORS = np.array([[0, 0, 0], [255, 0, 0], [0, 255, 0]], np.uint8)
JPEGS = {
    "0, 127, 255": lambda m: (m * 127.5).astype(np.uint8),
    "0, 85, 170": lambda m: m * 85,
    "0, 20, 40": lambda m: m * 20,
    "colors": lambda m: COLORS[m],
    "one color": lambda m: COLORS[m // 2],
}


@pytest.mark.parametrize("make", JPEGS.values(), ids=JPEGS)
@pytest.mark.parametrize("quality", [60, 95])
def test_jpeg_masks_of_more_than_black_and_white(tmp_path, make, quality):
    data = pairs(tmp_path, [lambda p: save(p.with_suffix(".jpg"), make(two_objects()), quality=quality)] * 4)
    with pytest.raises(
        UserError, match=r"4 of 4 masks cannot be used:\n.*0.jpg: a JPEG .*\n.*\n.*\n.*\nJPEG changes .* PNG"
    ):
        data.setup("fit")


@pytest.mark.parametrize("quality", [30, 75, 95])
@pytest.mark.parametrize("gray", [True, False])
def test_jpeg_masks_of_black_and_white_are_thresholded(tmp_path, quality, gray):
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    disc = (y - 20) ** 2 + (x - 24) ** 2 < 120
    pixels = disc.astype(np.uint8) * 255
    save(tmp_path / "a.jpg", pixels if gray else np.stack([pixels] * 3, 2), quality=quality)
    soft = np.asarray(Image.fromarray(pixels).resize((WIDTH * 3, HEIGHT * 3), Image.BICUBIC))
    save(tmp_path / "b.jpg", soft, quality=quality)
    assert (read_mask(tmp_path / "a.jpg", binary_format()) != disc).mean() < 0.02
    assert abs(float(read_mask(tmp_path / "b.jpg", binary_format()).mean()) - disc.mean()) < 0.01


def palette(color: tuple[int, int, int], first: int = 0) -> Callable[[Path], None]:
    """An object of this color on black, as Pillow reduces it; or with the object's number given."""

    def write(path: Path) -> None:
        image = Image.fromarray((two_objects() > 0).astype(np.uint8) * first)
        image.putpalette([0, 0, 0, *color] if first == 1 else [0, 0, 0, 9, 9, 9, *color])
        if not first:
            image = Image.fromarray(np.where(two_objects()[..., None] > 0, color, 0).astype(np.uint8)).quantize(2)
        image.save(path.with_suffix(".png"))

    return write


RED, GREEN = (200, 0, 0), (0, 200, 0)


def test_palettes_that_disagree(tmp_path):
    data = pairs(tmp_path / "a", [palette(RED), palette(GREEN)] * 2)
    with pytest.raises(
        UserError, match=r"disagree: 0 is the color \[200, 0, 0\] in .*0.png and \[0, 200, 0\] in .*1.png"
    ):
        data.setup("fit")
    for settings in ({"mask_format": "index"}, {"check_masks": False}):
        SegmentationData(source=str(tmp_path / "a"), val_fraction=0.25, **settings).list_records()
    colors = {"ground": [0, 0, 0], "red": [*RED], "green": [*GREEN]}
    rgb = SegmentationData(source=str(tmp_path / "a"), colors=colors, val_fraction=0.25, batch_size=1)
    rgb.setup("fit")
    seen = {r["path"][-5]: rgb.make_reader()(r)["mask"][10, 12] for rs in rgb.records.values() for r in rs}
    assert seen == {"0": 1, "1": 2, "2": 1, "3": 2}


def test_palettes_that_differ_in_what_no_mask_holds(tmp_path):
    data = pairs(tmp_path, [palette(RED, 1), palette(GREEN, 2)] * 2)
    data.setup("fit")
    assert data.class_names == ["0", "1", "2"]


# Masks of objects.


def objects(root: Path, *masks: Any, **arguments: Any) -> DetectionData:
    """Six images with one object each; the last ones have these masks."""
    good = [[8, 6, 28, 6, 28, 22, 8, 22]]
    shapes = [good] * (6 - len(masks)) + list(masks)
    data = {
        "images": [{"id": i, "file_name": f"{i}.png", "width": WIDTH, "height": HEIGHT} for i in range(6)],
        "categories": [{"id": 1, "name": "disc"}],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 1, "bbox": [8, 6, 20, 16], "area": 320, "segmentation": shape}
            for i, shape in enumerate(shapes)
        ],
    }
    for i in range(6):
        save(root / f"{i}.png", np.full((HEIGHT, WIDTH, 3), 10 * i, np.uint8))
    (root / "train.json").write_text(json.dumps(data))
    arguments = {"masks": True, "image_size": 64, "batch_size": 2, "num_workers": 0, "val_fraction": 0.2, **arguments}
    return DetectionData(source=str(root / "train.json"), **arguments)


WRONG = {
    "damaged": ({"size": [40, 48], "counts": "garbage!!"}, "its compressed run lengths are damaged"),
    "letters": ({"size": [40, 48], "counts": "é"}, "its compressed run lengths are damaged"),
    "sum": ({"size": [40, 48], "counts": [0, 5]}, "its run lengths sum to 5"),
    "size": ({"size": [4, 4], "counts": [0, 16]}, r"its mask has the size \[4, 4\]"),
    "no counts": ({"size": [40, 48]}, "its run lengths sum"),
    "all zeros": ({"size": [40, 48], "counts": [1920]}, "its mask has no pixel"),
    "outside": ([[100, 100, 120, 100, 120, 120]], "its mask has no pixel"),
    "sliver": ([[1, 1.1, 40, 1.1, 40, 1.2]], "its mask has no pixel"),
    "odd": ([[1, 2, 3, 4, 5, 6, 7]], "a polygon is .*an even number"),
    "words": ([["a", 2, 3, 4, 5, 6]], "a polygon is"),
    "far": ([[1, 2, 3, 4, 5, 1e300]], "a polygon has a corner at"),
    "no list": ([1, "a", 2, 3, 4, 5], "a polygon is"),
}  # fmt: skip


@pytest.mark.parametrize(("mask", "message"), WRONG.values(), ids=WRONG)
def test_masks_are_verified_before_training(tmp_path, mask, message):
    with pytest.raises(
        UserError, match=rf"1 masks cannot be learned:\n  .*5.png, annotation 5: {message}.*\n.*data.check_boxes"
    ):
        objects(tmp_path, mask).setup("fit")
    data = objects(tmp_path, mask, check_boxes="drop")
    with pytest.warns(UserWarning, match="1 masks dropped"):
        data.setup("fit")
    assert sum(len(r["boxes"]) for rs in data.records.values() for r in rs) == 5


@pytest.mark.parametrize("mask", [[[8, 6, 28, 6, 28, 22, 8, 22], [30, 6, 40, 6, 40, 20]], [[1, 1, 2, 1, 2, 2, 1, 2]]])
def test_right_masks_stay(tmp_path, mask):
    data = objects(tmp_path, mask, {"size": [40, 48], "counts": rle.from_segmentation(mask, 40, 48)["counts"].decode()})
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert (batch["masks"] > 0).any(dim=(1, 2, 3)).all()


def test_no_run_begins_with_a_damaged_mask(tmp_path, capsys):
    objects(tmp_path / "d", WRONG["damaged"][0])
    model = ["--model", "Detection", "--model.backbone", "test_resnet", "--model.detector", "mask_rcnn"]
    data = ["--data", "DetectionData", "--data.source", str(tmp_path / "d/train.json"), "--data.masks", "true"]
    assert main(["fit", *model, *data, "--trainer.accelerator", "cpu", "--trainer.wandb.mode", "off"]) == 1
    assert "annotation 5: its compressed run lengths are damaged" in capsys.readouterr().err
    assert not Path("runs").exists()


@pytest.mark.parametrize("mask", [{"size": [40, 48], "counts": "garbage!!"}, {"size": [40, 48], "counts": "é"}])
def test_damaged_run_lengths_as_semantic_masks(tmp_path, mask):
    objects(tmp_path, mask)
    with pytest.raises(UserError, match="annotation 5: its segmentation cannot be read"):
        SegmentationData(source=str(tmp_path / "train.json")).setup("fit")


@pytest.mark.parametrize("scale", [1, 0.5])
def test_boxes_as_fractions_are_said(tmp_path, scale):
    data = objects(tmp_path, masks=False)
    text = json.loads((tmp_path / "train.json").read_text())
    for a in text["annotations"]:
        a["bbox"] = [v * scale / side for v, side in zip([8, 6, 20, 16], [48, 40, 48, 40], strict=True)]
    (tmp_path / "train.json").write_text(json.dumps(text))
    with pytest.warns(UserWarning, match="All 6 boxes lie between 0 and 1.*fractions of the images' sizes"):
        data.setup("fit")
    box = "<xmin>0.1</xmin><ymin>0.2</ymin><xmax>0.5</xmax><ymax>0.5</ymax>"
    save(tmp_path / "v/0.png", np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    text = f"<annotation><object><name>a</name><bndbox>{box}</bndbox></object></annotation>"
    (tmp_path / "v/0.xml").write_text(text)
    data = DetectionData(source=str(tmp_path / "v"), voc_one_based=False, val_fraction=0, batch_size=1)
    with pytest.warns(UserWarning, match="All 1 boxes lie between 0 and 1"):
        data.setup("fit")


@pytest.mark.parametrize("what", ["text", "profile"])
def test_png_files_with_large_texts_and_profiles(tmp_path, what):
    info = PngImagePlugin.PngInfo()
    if what == "text":
        info.add_text("history", "x" * (3 << 20), zip=True)
    profile = bytes(3 << 20) if what == "profile" else None
    save(tmp_path / "a.png", np.full((4, 5, 3), 7, np.uint8), pnginfo=info, icc_profile=profile)
    assert (read_image(tmp_path / "a.png") == 7).all()
    save(tmp_path / "b.png", np.full((4, 5), 1, np.uint8), pnginfo=info, icc_profile=profile)
    assert (read_mask(tmp_path / "b.png", binary_format()) == 1).all()


def test_convert_says_that_boxes_change(tmp_path):
    objects(tmp_path / "a", [[10, 10, 20, 10, 20, 20]], [[8, 6, 28.5, 6, 28, 22, 8, 22]])
    lines = convert(tmp_path / "a" / "train.json", "yolo", tmp_path / "b")
    assert "1 boxes became the extent of their polygons, which is another by more than a pixel" in lines[-1]
