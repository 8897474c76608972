"""Mask files of all kinds become the same class indices; what does not fit is named; frequencies are numpy's."""

from __future__ import annotations

import io
import pickle
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from datamodules.annotations import mask_formats
from datamodules.annotations.mask_checks import MaskCheck, check_all_masks, check_records, median_frequency, report
from datamodules.annotations.mask_files import Stored, load_mask
from datamodules.annotations.mask_formats import MaskSettings, Settled, class_palette, guess_kind, settle_format
from datamodules.annotations.mask_records import decode_mask
from datamodules.annotations.masks import (
    MaskError,
    MaskFormat,
    binary_format,
    index_format,
    pack_color,
    ranges,
    read_mask,
    rgb_format,
    unpack_color,
)
from datamodules.annotations.soft_masks import read_soft_mask
from datamodules.decoding.headers import ImageError
from datamodules.decoding.images import read_image
from datamodules.decoding.limits import MAX_PIXELS
from datamodules.decoding.sizes import image_size
from datamodules.readers.samples import read_pixels

NAMES = ["sky", "road", "car", "tree"]
COLORS = {"sky": [[0, 0, 0]], "road": [[128, 64, 128]], "car": [[0, 0, 142], [0, 0, 70]], "tree": [[7, 7, 7]]}
RNG = np.random.default_rng(0)
TRUTH = RNG.integers(0, 4, (11, 13)).astype(np.uint8)
FOUR = index_format(NAMES, None, [255])


def grey_png(path: Path, pixels: np.ndarray, bits: int) -> Path:
    """A grey PNG of 1, 2 or 4 bits, which Pillow does not write."""
    rows = b""
    for row in pixels:
        text = "".join(f"{v:0{bits}b}" for v in row)
        text += "0" * (-len(text) % 8)
        rows += b"\0" + int(text, 2).to_bytes(len(text) // 8, "big")

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], bits, 0, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )
    return path


def palette_png(path: Path, pixels: np.ndarray, bits: int = 8) -> Path:
    image = Image.fromarray(pixels)
    image.putpalette([v for i in range(256) for v in ((i * 67) % 256, (i * 131) % 256, (i * 29 + 5) % 256)])
    image.save(path, bits=bits)
    return path


def write(path: Path, pixels: np.ndarray) -> Path:
    if path.suffix == ".npy":
        np.save(path, pixels)
    elif pixels.dtype == np.uint16:
        cv2.imwrite(str(path), pixels)
    else:
        Image.fromarray(pixels).save(path)
    return path


# Index masks.


def test_index_masks_of_every_depth_hold_the_same_classes(tmp_path):
    files = [
        write(tmp_path / "8.png", TRUTH),
        write(tmp_path / "16.png", TRUTH.astype(np.uint16)),
        grey_png(tmp_path / "2.png", TRUTH, 2),
        grey_png(tmp_path / "4.png", TRUTH, 4),
        palette_png(tmp_path / "p8.png", TRUTH),
        palette_png(tmp_path / "p4.png", TRUTH, 4),
        palette_png(tmp_path / "p2.png", TRUTH, 2),
        write(tmp_path / "three.png", np.repeat(TRUTH[..., None], 3, axis=2)),
        write(tmp_path / "opaque.png", np.dstack([TRUTH] * 3 + [np.full_like(TRUTH, 255)])),
        write(tmp_path / "8.tif", TRUTH),
        write(tmp_path / "16.tif", TRUTH.astype(np.uint16)),
        write(tmp_path / "8.bmp", TRUTH),
        write(tmp_path / "64.npy", TRUTH.astype(np.int64)),
    ]
    for file in files:
        mask = read_mask(file, FOUR)
        assert mask.dtype == np.uint8, file
        assert mask.flags.c_contiguous
        assert np.array_equal(mask, TRUTH), file
    assert [load_mask(f).palette is not None for f in files] == ["p" in f.stem[:1] for f in files]
    one_bit = grey_png(tmp_path / "1.png", TRUTH % 2, 1)
    assert np.array_equal(read_mask(one_bit, FOUR), TRUTH % 2)


def test_values_are_mapped_and_ignored(tmp_path):
    raw = np.array([[7, 26, 27, 300], [7, 7, 0, 40000]], np.uint16)
    values = {"road": [7], "car": [26, 27]}
    fmt = index_format(["road", "car"], values, [0, 300, 40000])
    expected = [[0, 1, 1, 255], [0, 0, 255, 255]]
    assert read_mask(write(tmp_path / "a.png", raw), fmt).tolist() == expected
    assert read_mask(raw, fmt).tolist() == expected
    # Ignored values are left out of the numbering: as in ADE20K, whose class 0 is stored as 1.
    ade = index_format(["wall", "sky"], None, [0])
    assert read_mask(np.array([[0, 1, 2]]), ade).tolist() == [[255, 0, 1]]


def test_an_array_is_never_shared():
    mask = read_mask(TRUTH, FOUR)
    assert np.array_equal(mask, TRUTH)
    assert not np.shares_memory(mask, TRUTH)


def test_values_outside_the_classes_are_named(tmp_path):
    raw = TRUTH.copy()
    raw[0, :12] = np.arange(20, 32)
    file = write(tmp_path / "odd.png", raw)
    with pytest.raises(MaskError) as error:
        read_mask(file, FOUR)
    assert str(file) in error.value.what
    assert "20, 21, 22, 23, 24, 25, 26, 27, 28, 29, ..." in error.value.what
    assert "30" not in error.value.what.split("%")[0].split("value(s)")[1]
    assert "(8.39 % of the pixels) outside the classes (0..3; ignored: 255)" in error.value.what
    assert "data.ignore_values" in error.value.fix
    assert isinstance(pickle.loads(pickle.dumps(error.value)), MaskError)  # it travels from a worker


def test_damaged_files_are_named(tmp_path):
    good = write(tmp_path / "good.png", RNG.integers(0, 4, (64, 64)).astype(np.uint8))
    cut = tmp_path / "cut.png"
    cut.write_bytes(good.read_bytes()[:-500])
    empty = tmp_path / "empty.png"
    empty.touch()
    text = tmp_path / "text.png"
    text.write_text("version https://git-lfs")
    floats = write(tmp_path / "float.npy", np.zeros((3, 3), np.float32))
    for file in (cut, empty, text, floats, write(tmp_path / "deep.npy", np.zeros((3, 3, 5), np.uint8))):
        with pytest.raises(ImageError, match=file.name):
            read_mask(file, FOUR)
    with pytest.raises(FileNotFoundError):
        read_mask(tmp_path / "none.png", FOUR)
    with pytest.raises(ImageError, match=r"lie in \[-1, 0\]"):
        read_mask(np.array([[-1, 0]]), FOUR)


def test_jpeg_index_masks_are_refused(tmp_path):
    with pytest.raises(MaskError, match=r"a.jpg: a JPEG does not keep the exact values .* Store masks as PNG"):
        read_mask(write(tmp_path / "a.jpg", TRUTH), FOUR)


# Colors.


def test_colors_become_classes(tmp_path):
    fmt = rgb_format(NAMES, COLORS, [[1, 2, 3]])
    table = np.array([[0, 0, 0], [128, 64, 128], [0, 0, 142], [7, 7, 7]], np.uint8)
    colors = table[TRUTH]
    colors[0, 0], colors[0, 1] = [0, 0, 70], [1, 2, 3]
    expected = TRUTH.copy()
    expected[0, :2] = 2, 255
    assert np.array_equal(read_mask(write(tmp_path / "rgb.png", colors), fmt), expected)
    assert np.array_equal(read_mask(colors, fmt), expected)
    # Grey pictures and palettes are looked at as colors too.
    assert read_mask(write(tmp_path / "grey.png", np.array([[0, 7]], np.uint8)), fmt).tolist() == [[0, 3]]
    quantized = Image.fromarray(colors).quantize(16, dither=Image.Dither.NONE)
    quantized.save(tmp_path / "palette.png")
    assert load_mask(tmp_path / "palette.png").palette is not None
    assert np.array_equal(read_mask(tmp_path / "palette.png", fmt), expected)


def test_unknown_colors_are_named(tmp_path):
    file = write(tmp_path / "rgb.png", np.array([[[0, 0, 0], [9, 8, 7], [9, 8, 250]]], np.uint8))
    with pytest.raises(MaskError, match=r"2 color\(s\) not in data.colors: \[9, 8, 7\], \[9, 8, 250\] \(66.7 %"):
        read_mask(file, rgb_format(NAMES, COLORS, []))
    with pytest.raises(MaskError, match=r"picture of 3 colors .* data.mask_format: rgb and data.colors"):
        read_mask(file, FOUR)
    with pytest.raises(MaskError, match=r"16-bit indices are no colors"):
        read_mask(np.array([[300]]), rgb_format(NAMES, COLORS, []))


# Binary masks.


def test_binary_masks(tmp_path):
    truth = np.zeros((16, 24), np.uint8)
    truth[4:12, 8:16] = 1
    fmt = binary_format()
    files = [
        write(tmp_path / "255.png", truth * np.uint8(255)),
        write(tmp_path / "1.png", truth),
        write(tmp_path / "65535.png", truth.astype(np.uint16) * np.uint16(65535)),
        grey_png(tmp_path / "bit.png", truth, 1),
        write(tmp_path / "rgb.png", np.repeat(truth[..., None] * np.uint8(255), 3, axis=2)),
        write(tmp_path / "lossy.jpg", truth * np.uint8(255)),
        write(tmp_path / "color.jpg", np.repeat(truth[..., None] * np.uint8(255), 3, axis=2)),
        write(tmp_path / "bool.npy", truth.astype(bool)),
    ]
    inverted = Image.fromarray(1 - truth)  # index 0 is white
    inverted.putpalette([255, 255, 255, 0, 0, 0])
    inverted.save(tmp_path / "inverted.gif")
    for file in [*files, tmp_path / "inverted.gif"]:
        assert np.array_equal(read_mask(file, fmt), truth), file
    assert len(np.unique(load_mask(tmp_path / "lossy.jpg").pixels)) > 2  # the JPEG is lossy indeed
    assert not read_mask(np.zeros((2, 2), np.uint8), fmt).any()
    trimap = np.array([[0, 128, 255]], np.uint8)
    assert read_mask(trimap, binary_format([128])).tolist() == [[0, 255, 1]]
    with pytest.raises(MaskError, match=r"holds 0, 128, 255.*data.ignore_values"):
        read_mask(trimap, fmt)
    with pytest.raises(MaskError, match=r"picture of colors"):
        read_mask(np.array([[[1, 2, 3]]], np.uint8), fmt)


# Records.


def test_a_sample_holds_image_and_mask(tmp_path):
    image = RNG.integers(0, 256, (*TRUTH.shape, 3)).astype(np.uint8)
    path, mask = str(write(tmp_path / "a.png", image)), str(write(tmp_path / "m.png", TRUTH))
    record = {"image": path, "path": path, "mask": mask, "split": "train", "weight": 0.5}
    settings = {"fmt": FOUR, "channels": 3, "dtype": "uint8", "num_classes": 4, "multi_label": False}
    sample = read_pixels(record, **settings)
    assert np.array_equal(sample["image"], image)
    assert np.array_equal(sample["mask"], TRUTH)
    assert (sample["weight"], sample["path"]) == (0.5, path)
    assert record["mask"] == mask  # the record is as it was
    # As from the cache of decoded images; and a picture to predict on, which has no mask.
    assert np.array_equal(read_pixels({**record, "image": image}, **settings)["mask"], TRUTH)
    assert "mask" not in read_pixels({"image": path, "path": path}, **{**settings, "fmt": None})


def test_several_labels_come_from_one_file_a_class(tmp_path):
    layers = RNG.integers(0, 2, (3, 5, 7)).astype(np.uint8)
    paths = [str(write(tmp_path / f"{k}.png", layers[k] * np.uint8(255))) for k in range(3)]
    record = {"path": "a", "mask": [paths[0], None, paths[2]]}
    mask = decode_mask(record, fmt=binary_format(), num_classes=3, multi_label=True)
    assert mask.shape == (5, 7, 3)
    assert np.array_equal(mask.transpose(2, 0, 1), layers * np.array([1, 0, 1], np.uint8)[:, None, None])
    write(tmp_path / "2.png", np.zeros((5, 8), np.uint8))
    with pytest.raises(MaskError, match=r"2.png: the mask is 8 x 5 .*0.png of the same image is 7 x 5"):
        decode_mask(record, fmt=binary_format(), num_classes=3, multi_label=True)


def rotated(path: Path, pixels: np.ndarray, orientation: int = 6) -> str:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(path, exif=exif)
    return str(path)


def test_a_mask_belongs_to_the_picture_as_it_is_shown(tmp_path):
    path = rotated(tmp_path / "a.jpg", np.zeros((10, 20, 3), np.uint8))
    settings = {"fmt": FOUR, "channels": 3, "dtype": "uint8", "num_classes": 4, "multi_label": False}
    shown = np.zeros((20, 10), np.uint8)
    assert read_pixels({"image": path, "path": path, "mask": shown}, **settings)["image"].shape == (20, 10, 3)
    with pytest.raises(MaskError, match=r"the mask is 20 x 10, its image .*a.jpg 10 x 20 .* EXIF orientation"):
        read_pixels({"image": path, "path": path, "mask": shown.T}, **settings)
    with pytest.raises(MaskError, match=r"the mask is 9 x 9, .* not resized here"):
        read_pixels({"image": path, "path": path, "mask": shown[:9, :9]}, **settings)


def test_sizes_from_headers_are_those_of_the_decoder(tmp_path):
    picture = RNG.integers(0, 256, (10, 20, 3)).astype(np.uint8)
    paths = [rotated(tmp_path / f"{i}.jpg", picture, i) for i in range(1, 9)]
    paths += [rotated(tmp_path / "6.png", picture), rotated(tmp_path / "6.webp", picture)]
    paths += [str(write(tmp_path / "plain.png", picture)), str(write(tmp_path / "a.bmp", picture))]
    assert [image_size(p) for p in paths] == [read_image(p).shape[:2] for p in paths]
    assert len({image_size(p) for p in paths}) == 2


# The format, from settings and files.


def test_the_kind_of_mask_is_found(tmp_path):
    grey = str(write(tmp_path / "grey.png", TRUTH))
    black_white = str(write(tmp_path / "bw.png", (TRUTH % 2) * np.uint8(255)))
    rgb = str(write(tmp_path / "rgb.png", np.array([[[1, 2, 3]]], np.uint8)))
    palette = str(palette_png(tmp_path / "p.png", TRUTH))
    lossy = str(write(tmp_path / "l.jpg", TRUTH))

    def kind(*paths: str, colors: dict[str, list[list[int]]] | None = None, two: bool = True) -> str:
        return guess_kind(paths, colors, two_classes=two)

    assert (kind(grey), kind(palette), kind(lossy), kind(rgb)) == ("index", "index", "binary", "rgb")
    assert (kind(black_white), kind(black_white, two=False), kind(black_white, grey)) == ("binary", "index", "index")
    assert kind(str(write(tmp_path / "black.png", np.zeros((2, 2), np.uint8)))) == "index"
    # Colors are the masks' own for palettes and fitting greys; for other greys they only color what is written.
    assert kind(palette, colors=COLORS) == "rgb"
    assert kind(grey, colors=COLORS) == "index"
    assert kind(black_white, colors={"a": [[0, 0, 0]], "b": [[255, 255, 255]]}) == "rgb"


def test_settled_classes_and_colors(tmp_path):
    grey, palette = write(tmp_path / "grey.png", TRUTH), palette_png(tmp_path / "p.png", TRUTH)
    settled = settle_format(MaskSettings(class_names=NAMES), [str(palette)])
    assert settled.class_names == NAMES
    stored = Image.open(palette).getpalette()
    assert class_palette(settled, MaskSettings(), 4) == [stored[3 * k : 3 * k + 3] for k in range(4)]
    swapped = MaskSettings(class_values={"car": [3, 0], "road": [1, 2]})
    colors = class_palette(settle_format(swapped, [str(palette)]), swapped, 2)
    assert colors == [stored[:3], stored[3:6]]  # a class of several values has the color of the least
    settled = settle_format(MaskSettings(colors=COLORS), [str(grey)])
    assert (settled.fmt.kind, settled.class_names) == ("index", NAMES)
    assert class_palette(settled, MaskSettings(colors=COLORS), 4)[2] == [0, 0, 142]
    assert class_palette(settle_format(MaskSettings(), [str(grey)]), MaskSettings(), 4) is None
    binary = settle_format(MaskSettings(mask_format="binary"), [str(grey)])
    assert binary.class_names == ["background", "foreground"]
    single = settle_format(MaskSettings(multi_label=True, class_names=["polyp"]), [str(grey)])
    assert (single.fmt.kind, single.class_names) == ("binary", ["polyp"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"class_names": ["a", "a"]}, r"data.class_names is \['a', 'a'\]; each class is named once"),
        ({"class_names": []}, "one at least"),
        ({"class_names": [str(i) for i in range(255)]}, "at most 254 classes"),
        ({"class_names": ["road", "car"], "colors": {"road": [[1, 2, 3]], "cars": [[2, 2, 3]]}},
         r"data.colors and data.class_names differ: \['car'\] have none. \['cars'\] are no classes. Did you mean"),
        ({"colors": {"a": [[1, 2]]}}, r"data.colors of 'a' is \[1, 2\]; it must be red, green and blue"),
        ({"colors": {"a": [[1, 2, 256]]}}, "0 to 255 each"),
        ({"colors": {"a": [[1, 2, 3]], "b": [[1, 2, 3]]}}, r"gives \[1, 2, 3\] to 'a' and to 'b'"),
        ({"class_values": {"a": [0, 1], "b": [1]}}, "data.class_values gives 1 to 'a' and to 'b'"),
        ({"class_values": {"a": [-1]}}, "must be a whole number, 0 to 65535"),
        ({"class_values": {"a": [1]}, "mask_format": "rgb"}, "only index masks use it, and data.mask_format: rgb"),
        ({"multi_label": True, "mask_format": "index"}, "data.multi_label is true, but data.mask_format: index"),
    ],
)  # fmt: skip
def test_contradicting_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        MaskSettings(**settings)


def test_settings_that_do_not_fit_the_files_are_refused(tmp_path):
    grey = str(write(tmp_path / "grey.png", TRUTH))
    rgb = str(write(tmp_path / "rgb.png", np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8)))
    with pytest.raises(
        ValueError, match=r"data.colors is missing: .*rgb.png is coded by colors, 2 of them \(\[1, 2, 3"
    ):
        settle_format(MaskSettings(), [rgb])
    with pytest.raises(ValueError, match=r"lists 3 classes .* binary masks have 2: background, foreground"):
        settle_format(MaskSettings(class_names=["a", "b", "c"], mask_format="binary"), [grey])
    with pytest.raises(ValueError, match=r"holds 7, but the masks are rgb: give colors"):
        settle_format(MaskSettings(colors=COLORS, ignore_values=[7]), [rgb])
    with pytest.raises(ValueError, match=r"holds \[1, 2, 3\], but the masks are index: give whole numbers"):
        settle_format(MaskSettings(ignore_values=[[1, 2, 3]]), [grey])
    with pytest.raises(ValueError, match=r"data.class_values gives 2 to 'b', and data.ignore_values ignores it"):
        settle_format(MaskSettings(class_values={"a": [0, 1], "b": [2, 3]}, ignore_values=[2]), [grey])
    with pytest.raises(ValueError, match=r"data.colors has no color for \['c'\]"):
        class_palette(Settled(FOUR, ["sky", "c"], None), MaskSettings(colors=COLORS), 2)


# The check of all masks, and frequencies.


def records_of(folder: Path, masks: list[np.ndarray], split: str = "train") -> list[dict]:
    out = []
    for i, mask in enumerate(masks):
        image = write(folder / f"{split}{i}.jpg", np.zeros((*mask.shape[:2], 3), np.uint8))
        path = write(folder / f"{split}{i}.png", mask)
        out.append({"image": str(image), "path": str(image), "mask": str(path), "split": split})
    return out


def test_class_frequencies_are_numpys(tmp_path):
    masks = [RNG.choice([0, 1, 2, 255], (9, 9), p=p).astype(np.uint8) for p in ((0.7, 0.2, 0, 0.1), (0.1, 0, 0.8, 0.1))]
    masks.append(np.full((4, 5), 255, np.uint8))
    checks = check_all_masks(
        records_of(tmp_path, masks), lambda r: decode_mask(r, fmt=FOUR, num_classes=4, multi_label=False), 4
    )
    for mask, check in zip(masks, checks, strict=True):
        assert check.error is None
        assert check.counts.tolist() == [(mask == k).sum() for k in range(4)]
        assert check.pixels.tolist() == [(mask != 255).sum()]
    # The paper's definition, written out class by class; class 3 does not occur.
    frequency = []
    for k in range(3):
        holding = [m for m in masks if (m == k).any()]
        frequency.append(sum((m == k).sum() for m in holding) / sum((m != 255).sum() for m in holding))
    expected = [float(np.median(frequency)) / f for f in frequency]
    np.testing.assert_allclose(median_frequency(checks), [*expected, 1.0], rtol=1e-12)

    layers = np.stack([masks[0] == 0, masks[0] == 1], axis=2).astype(np.uint8)
    layers[0, :3, 1] = 255
    several = check_all_masks([{"image": None, "path": "a"}], lambda r: layers, 2)[0]
    assert several.counts.tolist() == [(layers[..., k] == 1).sum() for k in range(2)]
    assert several.pixels.tolist() == [81, 78]


def test_classes_are_numbered_from_the_training_masks(tmp_path):
    train = records_of(tmp_path, [np.array([[0, 1], [3, 255]], np.uint8)])
    numbered = settle_format(MaskSettings(), [train[0]["mask"]])
    checked = check_records(train, numbered, False, every=True, skip=False)
    assert checked.settled.class_names == ["0", "1", "2", "3"]
    assert checked.absent == ["2"]
    assert checked.checks[train[0]["path"]].counts.tolist() == [1, 1, 0, 1]
    with pytest.raises(MaskError):
        read_mask(np.array([[4]]), checked.settled.fmt)
    more = records_of(tmp_path, [np.array([[5, 9]], np.uint8)], "val")
    with pytest.raises(
        ValueError, match=r"1 of 2 masks cannot be used:\n.*val0.jpg: value\(s\) 5, 9, which no training"
    ):
        check_records(train + more, numbered, False, every=True, skip=False)
    gaps = records_of(tmp_path, [np.array([[0, 85, 170]], np.uint8)])
    with pytest.raises(ValueError, match=r"values 0, 85, 170.*data.class_values: \{name0: 0, name1: 85, name2: 170\}"):
        check_records(gaps, numbered, False, every=True, skip=False)
    with pytest.raises(ValueError, match=r"no training masks to find the classes in: set data.class_names"):
        check_records(more, numbered, False, every=True, skip=False)
    one = records_of(tmp_path, [np.array([[0, 255]], np.uint8)])
    with pytest.raises(ValueError, match=r"hold no class but 'sky' \(read as data.mask_format: index.*0 and 255"):
        check_records(one, Settled(FOUR, NAMES, None), False, every=True, skip=False)


def test_all_bad_masks_are_reported_at_once(tmp_path):
    bad = records_of(tmp_path, [np.full((3, 3), 20 + i, np.uint8) for i in range(12)])
    bad += records_of(tmp_path, [np.zeros((3, 3), np.uint8)], "val")
    Path(bad[-1]["mask"]).write_bytes(b"no image")
    settled = Settled(FOUR, NAMES, None)
    with pytest.raises(ValueError, match=r"13 of 13 masks cannot be used") as error:
        check_records(bad, settled, False, every=True, skip=False)
    lines = str(error.value).split("\n")
    assert all(f"train{i}.png: value(s) {20 + i} (100 %" in line for i, line in enumerate(lines[1:11]))
    assert sum("outside the classes" in line for line in lines) == 10
    assert "  ... and 3 more" in lines
    assert sum("data.ignore_values" in line for line in lines) == 1  # each fix once
    # Unreadable ones may be left out, others not.
    good = records_of(tmp_path, [TRUTH], "test")
    good[0]["split"] = "train"
    checked = check_records([*good, bad[-1]], settled, False, every=True, skip=True)
    assert [r["path"] for r in checked.records] == [good[0]["path"]]
    assert [(path, "no image" in reason) for path, reason in checked.unreadable] == [(bad[-1]["path"], True)]
    with pytest.raises(ValueError, match=r"12 of 13 masks"):
        check_records(bad, settled, False, every=True, skip=True)
    report([], 3)


def test_size_and_turn_are_checked_before_training(tmp_path):
    records = records_of(tmp_path, [TRUTH, TRUTH])
    rotated(Path(records[0]["image"]), np.zeros((*TRUTH.shape, 3), np.uint8))
    write(Path(records[1]["image"]), np.zeros((50, 60, 3), np.uint8))
    with pytest.raises(ValueError, match=r"2 of 2 masks") as error:
        check_records(records, Settled(FOUR, NAMES, None), False, every=True, skip=False)
    assert f"{records[0]['mask']}: the mask is 13 x 11, its image {records[0]['path']} 11 x 13" in str(error.value)
    assert "13 x 11, its image " + records[1]["path"] + " 60 x 50" in str(error.value)
    assert "turned by 90 degrees" in str(error.value)


def test_ranges():
    assert ranges([0, 1, 2, 5, 255]) == "0..2, 5, 255"
    assert ranges([]) == ""
    assert MaskFormat("index") == MaskFormat("index")


# Masks too large to be decoded.


def huge_masks(folder: Path) -> list[Path]:
    """Small files whose headers promise 15,000 x 15,000 pixels."""
    large = struct.pack("<HH", 15000, 15000)
    for suffix in ("png", "bmp", "gif", "tif"):
        write(folder / f"small.{suffix}", TRUTH)
    cv2.imwrite(str(folder / "deep.tif"), TRUTH.astype(np.uint16))
    data = {file.name: file.read_bytes() for file in folder.iterdir()}
    ihdr = b"IHDR" + struct.pack(">IIBBBBB", 15000, 15000, 8, 0, 0, 0, 0)
    png = data["small.png"]
    png = png[:12] + ihdr + struct.pack(">I", zlib.crc32(ihdr)) + png[33:]
    gif = data["small.gif"]
    frame = gif.index(b",")  # the frame's own size, behind its place
    bmp = data["small.bmp"]
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (15000, 15000)})
    bombs = {
        "bomb.png": png,
        "bomb.gif": gif[:6] + large + gif[10 : frame + 5] + large + gif[frame + 9 :],
        "bomb.bmp": bmp[:18] + struct.pack("<ii", 15000, 15000) + bmp[26:],
        "bomb.npy": header.getvalue(),
    }
    for name in ("small.tif", "deep.tif"):
        tags = data[name]
        for tag, size in ((256, TRUTH.shape[1]), (257, TRUTH.shape[0])):
            for kind, code in ((3, "<HHIHH"), (4, "<HHII")):
                old = struct.pack(code, tag, kind, 1, size, *([0] if kind == 3 else []))
                tags = tags.replace(old, struct.pack(code, tag, kind, 1, 15000, *([0] if kind == 3 else [])))
        bombs["bomb_" + name] = tags
    for name, content in bombs.items():
        (folder / name).write_bytes(content)
    return [folder / name for name in bombs]


def test_masks_with_too_many_pixels_are_refused_by_their_header(tmp_path, monkeypatch):
    files = huge_masks(tmp_path)
    monkeypatch.setattr(cv2, "imdecode", None)  # nothing may be decoded
    monkeypatch.setattr(Image.Image, "load", None)
    monkeypatch.setattr(np, "load", None)
    for file in files:
        readers = (load_mask, read_soft_mask) if file.suffix == ".png" else (load_mask,)
        for read in readers:
            with pytest.raises(ImageError, match=rf"{file.name}: .* pixels are more than"):
                read(file)


def test_the_checks_before_training_name_masks_with_too_many_pixels(tmp_path):
    bomb = next(file for file in huge_masks(tmp_path) if file.name == "bomb.png")
    settled = Settled(FOUR, NAMES, None)
    records = records_of(tmp_path, [TRUTH])
    records[0]["mask"] = str(bomb)
    with pytest.raises(ValueError, match=r"1 of 1 masks .*:\n  .*bomb.png: 15000 x 15000 = 225,000,000 pixels are"):
        check_records(records, settled, False, every=True, skip=False)


def test_pillow_keeps_a_limit_of_its_own():
    assert Image.MAX_IMAGE_PIXELS == MAX_PIXELS


# Values at the edges of the rules.


@pytest.mark.parametrize(("grey", "class_"), [(127, 0), (128, 1)])
def test_a_jpeg_is_thresholded_at_half(tmp_path, grey, class_):
    file = tmp_path / "a.jpg"
    edge = np.full((64, 64), 255, np.uint8)
    edge[:, :32], edge[:8, 32] = 0, grey  # a few pixels; a flat part of it would be a class of its own
    Image.fromarray(edge).save(file, quality=100)
    assert (read_mask(file, binary_format())[:6, 32] == class_).all()


def test_half_of_the_values_may_be_missing(tmp_path):
    half = records_of(tmp_path, [np.array([[0, 3]], np.uint8)])
    numbered = settle_format(MaskSettings(), [half[0]["mask"]])
    assert check_records(half, numbered, False, every=True, skip=False).settled.class_names == ["0", "1", "2", "3"]
    more = records_of(tmp_path, [np.array([[0, 4]], np.uint8)])
    with pytest.raises(ValueError, match=r"hold the values 0, 4, and nothing between"):
        check_records(more, numbered, False, every=True, skip=False)


def test_colors_are_packed_red_first():
    assert pack_color([1, 2, 3]) == 0x010203
    assert unpack_color(0x010203) == [1, 2, 3]


def test_masks_are_not_read_where_nothing_asks_for_it(tmp_path):
    train, val = records_of(tmp_path, [TRUTH]), records_of(tmp_path, [TRUTH], "val")
    named = check_records(train + val, Settled(FOUR, NAMES, None), False, every=False, skip=False)
    assert (named.checks, named.absent) == ({}, [])
    numbered = settle_format(MaskSettings(), [train[0]["mask"]])
    unnamed = check_records(train + val, numbered, False, every=False, skip=False)
    assert list(unnamed.checks) == [train[0]["path"]]


def test_twenty_masks_are_looked_at_for_their_kind(tmp_path, monkeypatch):
    looked_at = []
    monkeypatch.setattr(mask_formats, "load_mask", lambda path: looked_at.append(path) or Stored(TRUTH))
    guess_kind([str(i) for i in range(60)], None, two_classes=True)
    assert looked_at == [str(i) for i in range(0, 60, 3)]


def test_median_frequency_of_two_images():
    # Class 0: 30 of 100 pixels; class 1: 10 of 50, as only the second image holds it; class 2: nowhere.
    checks = [MaskCheck(np.array([20, 0, 0]), np.array([50])), MaskCheck(np.array([10, 10, 0]), np.array([50]))]
    assert median_frequency(checks).tolist() == pytest.approx([0.25 / 0.3, 0.25 / 0.2, 1.0])
