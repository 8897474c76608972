"""Every layout of images and masks becomes the same records; COCO's shapes are painted as pycocotools decodes them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules.annotations.shapes import render_shapes
from datamodules.common import rle
from datamodules.readers.coco import read_coco
from datamodules.readers.coco_masks import read_coco_masks
from datamodules.readers.mask_sources import is_coco_source, read_mask_source
from datamodules.readers.pairs import read_pairs
from datamodules.readers.voc_masks import VOC_CLASSES, is_voc, read_voc_masks


def touch(root: Path, *names: str) -> Path:
    """Files that look like images to a reader, which never opens them."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def table(root: Path, records: list[dict]) -> list[tuple[str, str, str | None]]:
    """(image, mask, split), paths below the root."""
    assert all(r["image"] == r["path"] and Path(r["path"]).is_file() and Path(r["mask"]).is_file() for r in records)
    return [
        (str(Path(r["image"]).relative_to(root)), str(Path(r["mask"]).relative_to(root)), r["split"]) for r in records
    ]


# Folders.


@pytest.mark.parametrize(
    ("pairs", "rest"),
    [
        ([("images/a.jpg", "masks/a.png", None), ("images/b/a.jpg", "masks/b/a.png", None)], ["masks/readme.txt"]),
        ([("Images/a.jpg", "Labels/a.png", None)], ["notes/x.png", "Images/.hidden.jpg"]),
        ([("imgs/a.jpg", "gt/a_gt.png", None), ("imgs/a_b.jpg", "gt/a_b_gt.png", None)], []),
        ([("images/train/a.jpg", "annotations/train/a.png", "train"),
          ("images/val/a.jpg", "annotations/val/a.png", "val")], []),
        ([("test/images/a.png", "test/masks/a.png", "test"), ("train/images/d/a.png", "train/masks/d/a.png", "train"),
          ("Valid/images/b.png", "Valid/masks/b.png", "val")], ["README.md"]),
        ([("train/a.jpg", "trainannot/a.png", "train"), ("val/b.jpg", "valannot/b.png", "val")], ["README.md"]),
        ([("train/a.jpg", "train_masks/a_mask.gif", "train")], []),
        ([("train_images/a.tif", "train-labels/a.tif", "train"),
          ("test_images/a.tif", "test-labels/a.tif", "test")], []),
    ],
)  # fmt: skip
def test_known_layouts(tmp_path, pairs, rest):
    touch(tmp_path, *(p for pair in pairs for p in pair[:2]), *rest)
    listing = read_pairs(tmp_path)
    assert sorted(table(tmp_path, listing.records)) == sorted(pairs)
    assert listing.class_names == []


def test_a_mask_of_the_same_name_comes_before_one_with_an_ending(tmp_path):
    touch(tmp_path, "images/a.jpg", "images/a_mask.jpg", "masks/a.png", "masks/a_mask.png")
    records = read_pairs(tmp_path).records
    assert table(tmp_path, records) == [
        ("images/a.jpg", "masks/a.png", None),
        ("images/a_mask.jpg", "masks/a_mask.png", None),
    ]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["a.jpg", "b.png"], r"none of the known layouts of images and masks; it holds no folders. .* data.images and"),
        (["cat/a.jpg", "dog/b.jpg"], "it holds cat, dog"),
        (
            ["images/a.jpg", "images/b.jpg", "masks/a.png"],
            r"2 images: 1 image\(s\) without a mask: .*images/b.jpg. Add",
        ),
        (["images/a.jpg", "masks/a.png", "masks/b.png"], r"1 mask\(s\) without an image: .*masks/b.png"),
        ([f"images/{i}.jpg" for i in range(9)] + ["masks/0.png"], r"8 image\(s\) .*/5.jpg, \.\.\.\. Add"),
        (["images/a.jpg", "images/a.png", "masks/a.png"], "a.jpg' and '.*a.png' have one name"),
        (["images/a.jpg", "masks/a.txt"], "masks' holds no image files"),
        (["images/a.jpg", "masks/a.png", "labels/a.png"], "labels' and '.*masks' could both be meant. Set data.images"),
        (
            ["images/train/a.jpg", "masks/train/a.png", "masks/val/a.png"],
            r"has the splits train, but .* has train, val",
        ),
        (["train/a.jpg", "trainannot/a.png", "val/b.jpg"], "val' has no folder of masks beside it"),
    ],
)
def test_what_does_not_pair_is_refused(tmp_path, files, message):
    with pytest.raises(ValueError, match=message):
        read_pairs(touch(tmp_path, *files))
    with pytest.raises(ValueError, match=r"does not exist"):
        read_pairs(tmp_path / "nowhere")


# Patterns.


@pytest.mark.parametrize(
    ("images", "masks", "files", "pairs"),
    [
        ("{split}/{stem}.png", "{split}annot/{stem}.png",
         ["train/a.png", "trainannot/a.png", "val/b.png", "valannot/b.png", "other/c.png"],
         [("train/a.png", "trainannot/a.png", "train"), ("val/b.png", "valannot/b.png", "val")]),
        ("leftImg8bit/{split}/{stem}_leftImg8bit.png", "gtFine/{split}/{stem}_gtFine_labelIds.png",
         ["leftImg8bit/val/ulm/ulm_0_leftImg8bit.png", "gtFine/val/ulm/ulm_0_gtFine_labelIds.png",
          "gtFine/val/ulm/ulm_0_gtFine_color.png"],
         [("leftImg8bit/val/ulm/ulm_0_leftImg8bit.png", "gtFine/val/ulm/ulm_0_gtFine_labelIds.png", "val")]),
        ("{stem}.*", "{stem}_L.png", ["a.jpg", "a_L.png", "b.png", "b_L.png"],
         [("a.jpg", "a_L.png", None), ("b.png", "b_L.png", None)]),
        ("./{split}/{stem}.jpg", "all/{stem}.png", ["Train/a.jpg", "validation/b.jpg", "all/a.png", "all/b.png"],
         [("Train/a.jpg", "all/a.png", "train"), ("validation/b.jpg", "all/b.png", "val")]),
        ("{stem}/image.jpg", "{stem}/{stem}.png", ["p1/image.jpg", "p1/p1.png", "p1/p2.png"],
         [("p1/image.jpg", "p1/p1.png", None)]),
        ("pics/*/{stem}.jpg", "gt/{stem}.png",  # a star is of one folder
         ["pics/1/x.jpg", "pics/1/y/x.jpg", "gt/x.png", "gt/y/x.png"],
         [("pics/1/x.jpg", "gt/x.png", None), ("pics/1/y/x.jpg", "gt/y/x.png", None)]),
    ],
)  # fmt: skip
def test_patterns(tmp_path, images, masks, files, pairs):
    listing = read_pairs(touch(tmp_path, *files), images, masks)
    assert table(tmp_path, listing.records) == pairs


def test_one_mask_a_class(tmp_path):
    touch(tmp_path, "images/a.jpg", "images/b.jpg", "masks/wheel/a.png", "masks/car/a.png", "masks/car/b.png")
    patterns = ("images/{stem}.jpg", "masks/{class}/{stem}.png")
    listing = read_pairs(tmp_path, *patterns)
    assert listing.class_names == ["car", "wheel"]
    assert [r["mask"] for r in listing.records] == [
        [str(tmp_path / "masks/car/a.png"), str(tmp_path / "masks/wheel/a.png")],
        [str(tmp_path / "masks/car/b.png"), None],
    ]
    chosen = read_mask_source(str(tmp_path), *patterns, ["car"], multi_label=False)
    assert [r["mask"] for r in chosen.records] == [[str(tmp_path / f"masks/car/{n}.png")] for n in "ab"]
    swapped = read_mask_source(str(tmp_path), *patterns, ["wheel", "car"], multi_label=True)
    assert [m is None for m in swapped.records[1]["mask"]] == [True, False]
    with pytest.raises(
        ValueError, match=r"lists \['truck'\], for which data.masks matches no file; it does for \['car'"
    ):
        read_mask_source(str(tmp_path), *patterns, ["car", "truck"], multi_label=False)
    with pytest.raises(ValueError, match=r"1 image\(s\) have a mask of none of data.class_names \['wheel'\]: .*b.jpg"):
        read_mask_source(str(tmp_path), *patterns, ["wheel"], multi_label=False)


@pytest.mark.parametrize(
    ("images", "masks", "message"),
    [
        ("x/{stem}.jpg", None, "data.images and data.masks go together"),
        ("x/{stem}.jpg", "y/a.png", "data.masks is 'y/a.png': {stem}, .* is missing"),
        ("x/{name}.jpg", "y/{stem}.png", "{stem}, the part that image and mask share, is missing"),
        ("x/{stem}.jpg", "y/{stem}{kind}.png", "'{kind}' is unknown; {stem}, {split}, {class} and"),
        ("x/{stem}.jpg", "{split}/{stem}.png", "data.masks has {split}, but data.images .* has not"),
        ("{class}/{stem}.jpg", "y/{stem}.png", "{class} belongs into data.masks only"),
        ("x/{stem}.jpg", "z/{stem}.png", r"data.masks 'z/{stem}.png' matches no file below .* holds x/a.jpg, y/a.png"),
        ("{split}/{stem}.jpg", "y/{stem}.png", "data.images '{split}/{stem}.jpg' matches no file"),
        ("x/{stem}.*", "y/{stem}.*", "matches two files"),
    ],
)
def test_patterns_that_do_not_work_are_refused(tmp_path, images, masks, message):
    touch(tmp_path, "x/a.jpg", "y/a.png", *(["y/a.jpg"] if "*" in images else []))
    with pytest.raises(ValueError, match=message):
        read_pairs(tmp_path, images, masks)


# VOC.


def test_voc(tmp_path):
    touch(tmp_path, *(f"JPEGImages/2007_00000{i}.jpg" for i in range(6)))
    touch(tmp_path, *(f"SegmentationClass/2007_00000{i}.png" for i in range(5)))
    assert is_voc(tmp_path)
    unlisted = read_voc_masks(tmp_path)  # every mask; the image without one is no mistake in VOC
    assert [r["split"] for r in unlisted.records] == [None] * 5
    lists = tmp_path / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (lists / "trainval.txt").write_text("2007_000000\n2007_000001\n")
    assert [r["split"] for r in read_voc_masks(tmp_path).records] == [None, None]
    (lists / "train.txt").write_text("2007_000000 \n\n2007_000003\n")
    (lists / "val.txt").write_text("2007_000001")
    listing = read_mask_source(str(tmp_path), None, None, None, multi_label=False)
    assert table(tmp_path, listing.records) == [
        (f"JPEGImages/2007_00000{i}.jpg", f"SegmentationClass/2007_00000{i}.png", split)
        for i, split in ((0, "train"), (3, "train"), (1, "val"))
    ]
    assert listing.class_names == VOC_CLASSES
    assert (len(VOC_CLASSES), VOC_CLASSES[0], VOC_CLASSES[15]) == (21, "background", "person")
    (lists / "val.txt").write_text("2007_000000")
    with pytest.raises(ValueError, match=r"'2007_000000' is in '.*train.txt' and in '.*val.txt'"):
        read_voc_masks(tmp_path)
    (lists / "val.txt").write_text("2007_000005")
    with pytest.raises(ValueError, match=r"val.txt' lists '2007_000005', but '.*SegmentationClass' has no file"):
        read_voc_masks(tmp_path)


def test_voc_layout_of_other_data_has_no_voc_names(tmp_path):
    touch(tmp_path, "JPEGImages/shot.jpg", "SegmentationClass/shot.png")
    assert read_voc_masks(tmp_path).class_names == []
    (tmp_path / "class_names.txt").write_text("__ignore__\nbackground\n cell \n")
    assert read_mask_source(str(tmp_path), None, None, None, multi_label=False).class_names == ["background", "cell"]


# COCO.

HEIGHT, WIDTH = 37, 53


def random_shapes(rng: np.random.Generator) -> list[dict]:
    """Annotations of every kind: polygons of one or two parts, also across the border, and both forms of RLE."""
    from pycocotools import mask as reference

    annotations = []
    for i in range(9):
        kind = ("polygon", "two polygons", "rle", "compressed")[i % 4]
        if "polygon" in kind:
            centre = rng.uniform(0, [WIDTH, HEIGHT], (1 + (kind == "two polygons"), 1, 2))
            shape = [(c + rng.uniform(-14, 14, (int(rng.integers(3, 8)), 2))).ravel().tolist() for c in centre]
        else:
            pixels = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
            y, x = rng.integers(0, 25, 2)
            pixels[y : y + 12, x : x + 20] = rng.integers(0, 2, pixels[y : y + 12, x : x + 20].shape)
            shape = reference.encode(pixels)
            if kind == "rle":
                runs = np.flatnonzero(np.diff(np.concatenate([[0], pixels.ravel(order="F"), [2]])))
                shape["counts"] = np.diff(np.concatenate([[0], runs])).tolist()
            else:
                shape["counts"] = shape["counts"].decode()
        annotations.append({"segmentation": shape, "category_id": int(rng.choice([3, 7, 90])), "iscrowd": int(i == 6)})
    return annotations


def write_coco(root: Path, annotations: list[dict], split: str = "train", **image: object) -> Path:
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    (root / "images").mkdir(exist_ok=True)
    name = f"{split}.png"
    Image.fromarray(np.zeros((HEIGHT, WIDTH, 3), np.uint8)).save(root / "images" / name)
    data = {
        "images": [{"id": 5, "file_name": name, "height": HEIGHT, "width": WIDTH, **image}],
        "categories": [{"id": 7, "name": "cup"}, {"id": 3, "name": "ant"}, {"id": 90, "name": "pen"}],
        "annotations": [{"id": i, "image_id": 5, "bbox": [0, 0, 9, 9], **a} for i, a in enumerate(annotations)],
    }
    file = root / "annotations" / f"instances_{split}.json"
    file.write_text(json.dumps(data))
    return file


def decoded(annotations: list[dict]) -> np.ndarray:
    """Each annotation's mask by pycocotools, bool (N, H, W)."""
    from pycocotools import mask as reference

    masks = []
    for a in annotations:
        shape = a["segmentation"]
        if isinstance(shape, list):
            shape = reference.merge(reference.frPyObjects(shape, HEIGHT, WIDTH))
        elif isinstance(shape["counts"], list):
            shape = reference.frPyObjects(shape, HEIGHT, WIDTH)
        masks.append(reference.decode(shape).astype(bool))
    return np.stack(masks)


@pytest.mark.parametrize("seed", range(5))
def test_coco_shapes_are_painted_as_pycocotools_decodes_them(tmp_path, seed):
    annotations = random_shapes(np.random.default_rng(seed))
    write_coco(tmp_path, annotations)
    masks = decoded(annotations)
    classes = [{3: 1, 7: 2, 90: 3}[a["category_id"]] for a in annotations]
    crowd = [bool(a["iscrowd"]) for a in annotations]
    assert is_coco_source(str(tmp_path), by_pattern=False)
    listing = read_coco_masks(tmp_path)
    assert listing.class_names == ["background", "ant", "cup", "pen"]
    assert listing.records[0]["split"] == "train"
    # Every pixel has the class of the smallest object over it; a crowd's counts only where there is no object.
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    for y in range(HEIGHT):
        for x in range(WIDTH):
            over = [i for i in range(len(masks)) if masks[i, y, x]]
            objects = sorted((int(masks[i].sum()), i) for i in over if not crowd[i])
            expected[y, x] = classes[objects[0][1]] if objects else 255 if over else 0
    assert np.array_equal(render_shapes(listing.records[0]["mask"], None), expected)
    assert {0, 255} < set(np.unique(expected).tolist())

    several = read_coco_masks(tmp_path / "annotations/instances_train.json", multi_label=True)
    assert several.class_names == ["ant", "cup", "pen"]
    rendered = render_shapes(several.records[0]["mask"], 3)
    assert rendered.shape == (HEIGHT, WIDTH, 3)
    for k in range(3):
        mine = [i for i in range(len(masks)) if classes[i] == k + 1]
        objects = np.any([masks[i] for i in mine if not crowd[i]], axis=0)
        crowds = np.any([masks[i] for i in mine if crowd[i]] or np.zeros_like(masks[:1]), axis=0)
        assert np.array_equal(rendered[..., k], np.where(objects, 1, np.where(crowds, 255, 0)))


def test_chosen_coco_categories(tmp_path):
    square = [[0, 0, 10, 0, 10, 10, 0, 10]]
    far = [[20, 20, 30, 20, 30, 30, 20, 30]]
    annotations = [{"segmentation": square, "category_id": 3}, {"segmentation": far, "category_id": 90}]
    file = write_coco(tmp_path, annotations)
    for names in (["pen"], ["background", "pen"]):
        listing = read_coco_masks(file, names)
        assert listing.class_names == ["background", "pen"]
        mask = render_shapes(listing.records[0]["mask"], None)
        assert (mask[5, 5], mask[25, 25]) == (0, 1)
    with pytest.raises(ValueError, match=r"lists \['bug'\], which .* does not have; it has \['ant', 'cup', 'pen'\]"):
        read_coco_masks(file, ["bug"])
    # A category that is named so is the background.
    data = json.loads(file.read_text())
    data["categories"][1]["name"] = "background"
    file.write_text(json.dumps(data))
    listing = read_coco_masks(file)
    assert listing.class_names == ["background", "cup", "pen"]
    assert render_shapes(listing.records[0]["mask"], None)[25, 25] == 2


def test_shapes_without_area_are_left_out_and_sizes_may_come_from_the_file(tmp_path):
    thin = [
        {"segmentation": [[1, 1, 1, 1, 1, 1]], "category_id": 3},
    ]
    listing = read_coco_masks(write_coco(tmp_path, thin, height=None, width=None))
    assert listing.records[0]["mask"]["size"] == (HEIGHT, WIDTH)
    assert not render_shapes(listing.records[0]["mask"], None).any()


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        ({}, r"train.png', annotation 0: it has a box but no mask"),
        ({"segmentation": {"size": [5, 5], "counts": [0, 25]}}, r"its mask has the size \[5, 5\]"),
        ({"segmentation": {"size": [37, 53]}}, "annotation 0: its segmentation cannot be read"),
    ],
)
def test_coco_annotations_that_are_no_masks_are_refused(tmp_path, annotation, message):
    with pytest.raises(ValueError, match=message):
        read_coco_masks(write_coco(tmp_path, [{"category_id": 3, "area": 1.0, **annotation}]))


# Sources.


def test_sources_that_are_none_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"data.source 'nowhere' does not exist"):
        read_mask_source("nowhere", None, None, None, multi_label=False)
    file = tmp_path / "list.xlsx"
    file.touch()
    with pytest.raises(ValueError, match=r"is neither a folder nor a COCO .json file"):
        read_mask_source(str(file), None, None, None, multi_label=False)


@pytest.mark.parametrize("segmentation", [[], [[0, 0, 9, 0, 9, 9]], {"size": [60000, 60000], "counts": [3600000000]}])
def test_a_coco_mask_with_too_many_pixels_is_refused_before_it_is_drawn(tmp_path, segmentation, monkeypatch):
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    data = {
        "images": [{"id": 1, "file_name": "a.png", "height": 60000, "width": 60000}],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9], "segmentation": segmentation}],
    }
    (tmp_path / "a.json").write_text(json.dumps(data))
    monkeypatch.setattr(rle, "from_segmentation", None)  # nothing may be drawn
    for read in (read_coco_masks, read_coco):
        with pytest.raises(ValueError, match=r"a.json': image 1: 60000 x 60000 = 3,600,000,000 pixels are more than"):
            read(tmp_path / "a.json")
