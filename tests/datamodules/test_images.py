"""Golden pixels of the conversion rule (docs/data.md), for each decoder, and every way a file can be bad."""

from __future__ import annotations

import contextlib
import io
import os
import struct
import sys
import zlib
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from datamodules.decoding import images
from datamodules.decoding.files import find_images
from datamodules.decoding.headers import ImageError
from datamodules.decoding.images import check_image, read_image
from datamodules.decoding.limits import limit_pixels
from datamodules.decoding.sizes import image_size

RNG = np.random.default_rng(0)
PHOTO = cv2.resize(RNG.integers(0, 256, (6, 9, 3), dtype=np.uint8), (45, 30), interpolation=cv2.INTER_CUBIC)
DECODERS = ["simplejpeg", "cv2"]


@pytest.fixture(params=DECODERS)
def decoder(request, monkeypatch):
    """The JPEG decoder: simplejpeg, or cv2 as where simplejpeg is not installed."""
    if request.param == "cv2":
        monkeypatch.setattr(images, "simplejpeg", None)
    else:
        pytest.importorskip("simplejpeg")
    return request.param


def encode(pixels: np.ndarray, kind: str, mode: str | None = None, **options) -> bytes:
    image = Image.fromarray(pixels)
    stream = io.BytesIO()
    (image.convert(mode) if mode else image).save(stream, kind, **options)
    return stream.getvalue()


def exif(orientation: int) -> bytes:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags.tobytes()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(rows: np.ndarray, colour: int, bits: int, extra: bytes = b"", size: tuple[int, int] | None = None) -> bytes:
    """A PNG of any colour type and 8 or 16 bits, with extra chunks before the pixels."""
    width, height = size or (rows.shape[1], rows.shape[0])
    raw = b"".join(b"\0" + row.astype(">u2" if bits == 16 else np.uint8).tobytes() for row in rows)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + extra + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")


def tiff(
    pixels: np.ndarray, photometric: int = 1, extra: tuple[int, ...] = (), orientation: int = 1, kind: int | None = None
) -> bytes:
    """An uncompressed little-endian TIFF of any number of channels and depth."""
    height, width = pixels.shape[:2]
    samples = 1 if pixels.ndim == 2 else pixels.shape[2]
    kind = kind or (3 if pixels.dtype.kind == "f" else 1)
    data = pixels.tobytes()
    tags = [(256, "I", [width]), (257, "I", [height]), (258, "H", [pixels.dtype.itemsize * 8] * samples)]
    tags += [(259, "H", [1]), (262, "H", [photometric]), (273, "I", [-1]), (274, "H", [orientation])]
    tags += [(277, "H", [samples]), (278, "I", [height]), (279, "I", [len(data)]), (284, "H", [1])]
    tags += [(338, "H", list(extra))] if extra else []
    tags += [(339, "H", [kind] * samples)]
    start = 8 + 2 + 12 * len(tags) + 4
    blobs_size = sum(n for _, code, v in tags if (n := len(v) * struct.calcsize(code)) > 4)
    entries, blobs = b"", b""
    for tag, code, values in tags:
        values = [start + blobs_size if v == -1 else v for v in values]
        raw = struct.pack(f"<{len(values)}{code}", *values)
        if len(raw) > 4:
            raw, blobs = struct.pack("<I", start + len(blobs)), blobs + raw
        entries += struct.pack("<HHI", tag, {"H": 3, "I": 4}[code], len(values)) + raw.ljust(4, b"\0")
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", 0) + blobs + data


# JPEG.


@pytest.mark.parametrize("options", [{}, {"subsampling": 2, "quality": 80}, {"progressive": True}])
def test_jpeg_pixels_are_the_same_for_every_decoder(decoder, options):
    data = encode(PHOTO, "JPEG", **options)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    out = read_image(data)
    np.testing.assert_array_equal(out, expected)
    assert out.dtype == np.uint8
    assert out.flags.c_contiguous
    assert out.flags.writeable


def test_jpeg_grey_and_colour(decoder):
    grey_file = encode(PHOTO, "JPEG", mode="L")
    grey = np.asarray(Image.open(io.BytesIO(grey_file)))
    np.testing.assert_array_equal(read_image(grey_file, 1)[..., 0], grey)
    np.testing.assert_array_equal(read_image(grey_file, 3), np.repeat(grey[..., None], 3, axis=2))
    colour = read_image(encode(PHOTO, "JPEG"))
    luma = colour @ np.array([0.299, 0.587, 0.114])
    assert np.abs(read_image(encode(PHOTO, "JPEG"), 1)[..., 0] - luma).max() <= 0.51
    np.testing.assert_allclose(read_image(encode(PHOTO, "JPEG"), 3, "float32"), colour / np.float32(255))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation(decoder, kind, orientation):
    options = {"exif": exif(orientation)} | ({"lossless": True} if kind == "WEBP" else {})
    if kind == "TIFF":
        stored, data = PHOTO, tiff(PHOTO, 2, orientation=orientation)
    else:
        data = encode(PHOTO, kind, **options)
        stored = read_image(encode(PHOTO, kind, **(options | {"exif": b""})))
    # What the tag's definition says about row 0 and column 0 of the stored pixels.
    upright = {
        1: stored,
        2: np.fliplr(stored),
        3: np.rot90(stored, 2),
        4: np.flipud(stored),
        5: stored.transpose(1, 0, 2),
        6: np.rot90(stored, -1),
        7: np.rot90(stored, 2).transpose(1, 0, 2),
        8: np.rot90(stored, 1),
    }[orientation]
    out = read_image(data)
    assert out.shape == upright.shape
    np.testing.assert_array_equal(out, upright)
    assert out.flags.c_contiguous


@pytest.mark.parametrize("orientation", [3, 6, 8])
@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_orientation_of_deep_tiff(dtype, orientation):
    grey = (np.arange(6).reshape(2, 3) * 0.1).astype(dtype) if dtype == np.float32 else np.arange(6, dtype=dtype) * 257
    grey = grey.reshape(2, 3)
    expected = np.rot90(grey, {3: 2, 6: -1, 8: 1}[orientation])
    scale = 1 if dtype == np.float32 else 65535
    out = read_image(tiff(grey, orientation=orientation), 1, "float32")[..., 0]
    np.testing.assert_allclose(out, expected / np.float32(scale), atol=1e-6)


def test_exif_damage_and_byte_order_and_png_exif_behind_the_pixels():
    body = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    plain = encode(PHOTO, "JPEG")

    def with_exif(block: bytes) -> bytes:
        return plain[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 8) + b"Exif\0\0" + block + plain[2:]

    assert read_image(with_exif(body)).shape == (45, 30, 3)
    for damaged in (
        body[:12],
        body[:4] + b"\xff\xff\xff\xff" + body[8:],
        body.replace(b"\0\x06\0", b"\0\x63\0"),
        b"no",
    ):
        assert read_image(with_exif(damaged)).shape == (30, 45, 3)
    end = chunk(b"IEND", b"")
    data = png(PHOTO, 2, 8).removesuffix(end) + chunk(b"eXIf", body) + end
    np.testing.assert_array_equal(read_image(data), np.rot90(PHOTO, -1))


def test_cmyk_jpeg_with_and_without_adobe_marker(decoder):
    ink = np.full((16, 16, 4), (255, 0, 0, 51), np.uint8)  # full cyan, a fifth of black
    stream = io.BytesIO()
    Image.frombytes("CMYK", (16, 16), ink.tobytes()).save(stream, "JPEG", quality=100)
    data = stream.getvalue()
    at = data.index(b"\xff\xee")  # APP14
    assert data[at + 4 : at + 9] == b"Adobe"
    np.testing.assert_allclose(read_image(data)[8, 8], (0, 204, 204), atol=1)
    # Without the marker the stored numbers are inks as they are: 255 - ink.
    bare = data[:at] + data[at + 2 + struct.unpack_from(">H", data, at + 2)[0] :]
    np.testing.assert_allclose(read_image(bare)[8, 8], (51, 0, 0), atol=1)
    np.testing.assert_allclose(read_image(tiff(ink, 5))[8, 8], (0, 204, 204), atol=1)
    with pytest.raises(ImageError, match="3 channels, 4 are asked for"):
        read_image(data, 4)


# Depth.


@pytest.mark.parametrize("make", [lambda a: png(a, 0, 16), tiff], ids=["png", "tiff"])
def test_16_bit_grey(make):
    deep = np.array([[0, 128, 129, 257, 385, 386, 32768, 65406, 65407, 65535]], np.uint16)
    assert read_image(make(deep), 1)[0, :, 0].tolist() == [0, 0, 1, 1, 1, 2, 128, 254, 255, 255]
    assert read_image(make(deep), 3).shape == (1, 10, 3)
    np.testing.assert_allclose(read_image(make(deep), 1, "float32")[0, :, 0], deep[0] / 65535, rtol=1e-6)


@pytest.mark.parametrize("make", [lambda a: png(a, 2, 16), lambda a: tiff(a, 2)], ids=["png", "tiff"])
def test_16_bit_colour(make):
    deep = np.array([[[65535, 0, 257], [771, 512, 65406]]], np.uint16)
    assert read_image(make(deep)).tolist() == [[[255, 0, 1], [3, 2, 254]]]
    np.testing.assert_allclose(read_image(make(deep), 3, "float32"), deep / 65535, rtol=1e-6)
    np.testing.assert_allclose(
        read_image(make(deep), 1, "float32")[..., 0], deep @ np.array([0.299, 0.587, 0.114]) / 65535, atol=1e-4
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("channels", [1, 3])
def test_float_tiff(dtype, channels):
    pixels = np.array([0, 0.001, 0.5, 1.0, 0.25, 0.75], dtype).reshape(1, -1, channels)
    data = tiff(pixels[..., 0] if channels == 1 else pixels, 1 if channels == 1 else 2)
    assert read_image(data, channels).ravel().tolist() == [0, 0, 128, 255, 64, 191]
    np.testing.assert_allclose(read_image(data, channels, "float32"), pixels, rtol=1e-6)


@pytest.mark.parametrize(("high", "shown"), [(255.0, r"\[0, 255\]"), (np.nan, r"\[nan, nan\]")])
def test_float_out_of_range_names_file_and_range(tmp_path, high, shown):
    file = tmp_path / "heat map.tif"
    file.write_bytes(tiff(np.array([[0, high]], np.float32)))
    with pytest.raises(ImageError, match=rf"heat map\.tif: its float pixels lie in {shown}"):
        read_image(file)


def test_white_is_zero_and_integers_without_range():
    assert read_image(tiff(np.array([[0, 200]], np.uint8), 0), 1).ravel().tolist() == [255, 55]
    assert read_image(tiff(np.array([[0, 65535]], np.uint16), 0), 1).ravel().tolist() == [255, 0]
    for pixels, kind in (
        (np.ones((2, 2), np.int16), 2),
        (np.ones((2, 2), np.uint32), 1),
        (np.ones((2, 2), np.int32), 2),
    ):
        with pytest.raises(ImageError, match="no known range"):
            read_image(tiff(pixels, kind=kind))


# Palette, alpha, one bit.


def test_palette_with_and_without_transparency():
    palette = chunk(b"PLTE", bytes([10, 20, 30, 200, 100, 0, 0, 0, 0]))
    index = np.array([[0, 1, 2]])
    assert read_image(png(index, 3, 8, palette)).tolist() == [[[10, 20, 30], [200, 100, 0], [0, 0, 0]]]
    clear = palette + chunk(b"tRNS", bytes([255, 0, 51]))
    assert read_image(png(index, 3, 8, clear)).tolist() == [[[10, 20, 30], [255, 255, 255], [204, 204, 204]]]
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    stream = io.BytesIO()
    image.save(stream, "GIF", transparency=1)
    assert read_image(stream.getvalue()).tolist() == [[[255, 0, 0], [255, 255, 255]]]


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_alpha_over_white(kind):
    pixels = np.array([[[100, 0, 200, 255], [100, 0, 200, 0], [100, 0, 200, 51]]], np.uint8)
    data = encode(pixels, kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {}))
    assert read_image(data).tolist() == [[[100, 0, 200], [255, 255, 255], [224, 204, 244]]]
    np.testing.assert_array_equal(read_image(data, 4), pixels)  # exactly so many channels: as they are


def test_alpha_of_deep_and_grey_images():
    rgba = np.array([[[1000, 0, 65535, 65535], [0, 0, 0, 0], [0, 65535, 13107, 13107]]], np.uint16)
    expected = rgba[..., :3] * (rgba[..., 3:] / 65535) + (65535 - rgba[..., 3:])
    for data in (png(rgba, 6, 16), tiff(rgba, 2, (2,))):
        np.testing.assert_allclose(read_image(data, 3, "float32"), np.rint(expected) / 65535, rtol=1e-6)
        np.testing.assert_array_equal(read_image(data), np.rint(expected / 257))
    assert read_image(png(np.array([[[0, 51], [9, 255]]]), 4, 8), 1).ravel().tolist() == [204, 9]
    assert read_image(png(np.array([[[0, 13107], [257, 65535]]]), 4, 16), 1).ravel().tolist() == [204, 1]
    key = chunk(b"tRNS", struct.pack(">H", 7))
    assert read_image(png(np.array([[7, 8]]), 0, 8, key), 1).ravel().tolist() == [255, 8]
    assert read_image(png(np.array([[7, 514]]), 0, 16, key), 1).ravel().tolist() == [255, 2]
    key = chunk(b"tRNS", struct.pack(">HHH", 1, 2, 3))
    assert read_image(png(np.array([[[1, 2, 3], [3, 2, 1]]]), 2, 8, key)).tolist() == [[[255, 255, 255], [3, 2, 1]]]


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM", "BMP"])
def test_one_bit(kind):
    bits = np.array([[True, False, True]])
    data = encode(bits, kind)
    assert read_image(data, 1).ravel().tolist() == [255, 0, 255]
    assert read_image(data, 3)[0, 0].tolist() == [255, 255, 255]


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP", "TIFF", "PPM", "JPEG2000"])
def test_lossless_formats_give_the_same_pixels(kind, tmp_path):
    data = encode(PHOTO, kind, **({"lossless": True} if kind == "WEBP" else {}))
    np.testing.assert_array_equal(read_image(data), PHOTO)
    check_image(data)


# Channels and arrays.


def test_many_channels_from_tiff_and_npy(tmp_path, monkeypatch):
    for dtype in (np.uint8, np.uint16):
        bands = RNG.integers(0, 256, (4, 6, 5)).astype(dtype)
        np.save(tmp_path / "b.npy", bands)
        tifffile_is_here = find_spec("tifffile") is not None
        for source in [tmp_path / "b.npy"] + ([tiff(bands, 1, (0,) * 4)] if tifffile_is_here else []):
            out = read_image(source, 5, "float32")
            np.testing.assert_allclose(out, bands / np.iinfo(dtype).max, rtol=1e-6)
            with pytest.raises(ImageError, match=r"5 channels, 3 are asked for.*set the number of channels to 5"):
                read_image(source, 3)
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, "tifffile", None)
            with pytest.raises(ImageError, match="pip install tifffile"):
                read_image(tiff(bands, 1, (0,) * 4), 5)
    four = RNG.integers(0, 256, (4, 6, 4), dtype=np.uint8)  # a fourth band that is not alpha
    np.testing.assert_array_equal(read_image(tiff(four, 2, (0,)), 4), four)
    with pytest.raises(ImageError, match="4 channels, 3"):
        read_image(tiff(four, 2, (0,)))


def test_npy(tmp_path):
    file = tmp_path / "x.npy"
    for pixels in (PHOTO, PHOTO[..., 0], np.asfortranarray(PHOTO), PHOTO.astype(np.uint16) * 257, PHOTO / 255):
        np.save(file, pixels)
        expected = PHOTO if pixels.ndim == 3 else np.repeat(PHOTO[..., :1], 3, axis=2)
        out = read_image(file)
        np.testing.assert_array_equal(out, expected)
        assert out.flags.writeable
        check_image(file)
    for bad, message in (
        (np.zeros((2, 2), np.int64), "int64 have no known range"),
        (np.zeros(3, np.uint8), r"shape \(3,\) is no image"),
        (np.array([[None]], object), "Python objects"),
    ):
        np.save(file, bad)
        with pytest.raises(ImageError, match=message):
            read_image(file)
    np.save(file, PHOTO)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ImageError, match="truncated"):
        read_image(file)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (10**6, 10**6)})
    with pytest.raises(ImageError, match="max_pixels"):
        read_image(header.getvalue())


def test_arrays_follow_the_same_rule_and_are_not_shared():
    grey = np.array([[0, 100]], np.uint8)
    out = read_image(grey[..., None], 1)
    np.testing.assert_array_equal(out[..., 0], grey)
    out[:] = 7
    assert grey.tolist() == [[0, 100]]
    assert read_image(grey).shape == (1, 2, 3)
    assert read_image(np.array([[True, False]]), 1).ravel().tolist() == [255, 0]
    with pytest.raises(ImageError, match="float pixels lie in"):
        read_image(np.array([[2.0]]))
    with pytest.raises(ValueError, match="dtype is 'int8'"):
        read_image(grey, dtype="int8")


# Bad files.


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "JPEG2000", "PPM"])
@pytest.mark.parametrize("part", [0.4, 0.95])
def test_truncated_files_are_named(decoder, tmp_path, kind, part):
    data = encode(RNG.integers(0, 256, (60, 60, 3), dtype=np.uint8), kind)
    file = tmp_path / f"holiday {kind}.jpg"
    file.write_bytes(data[: int(len(data) * part)])
    with pytest.raises(ImageError, match=f"holiday {kind}.jpg"):
        read_image(file)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html>404</html>", "HTML"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"hello", "no known image format"),
        (b"\xff\xd8\xff", "truncated"),
        (b"\xff\xd8\xff\xe0\0\x10JFIF", "truncated"),
        (b"\x89PNG\r\n\x1a\n", "damaged header"),
        (b"II*\0\x08\0\0\0", "corrupt or truncated"),
        (b"\x93NUMPY", "corrupt or truncated"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no known image format"),
    ],
    ids=["empty", "html", "lfs", "text", "jpeg3", "jpeg", "png", "tiff", "npy", "eps"],
)
def test_files_that_are_no_images(decoder, tmp_path, data, message):
    file = tmp_path / "bad.jpg"
    file.write_bytes(data)
    for read in (read_image, check_image):
        with pytest.raises(ImageError, match=rf"bad\.jpg.*{message}"):
            read(file)


def test_flipped_bytes_never_crash(decoder):
    """Any damage ends in pixels or an ImageError, nothing else."""
    limit_pixels(10**6)
    rng = np.random.default_rng(1)
    for kind in ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM"):
        data = encode(PHOTO, kind)
        for _ in range(30):
            bad = bytearray(data)
            for at in rng.integers(0, len(bad) if rng.random() < 0.5 else min(200, len(bad)), 3):
                bad[at] = int(rng.integers(256))
            with contextlib.suppress(ImageError):
                assert read_image(bytes(bad)).shape[2] == 3


def test_a_jpeg_with_trailing_bytes_or_wrong_suffix_is_fine(decoder, tmp_path):
    file = tmp_path / "really a jpeg.png"
    file.write_bytes(encode(PHOTO, "JPEG") + b"trailing bytes of a camera")
    assert read_image(file).shape == PHOTO.shape


def bombs() -> dict[str, bytes]:
    wide = struct.pack(">HH", 60000, 60000)
    jpeg = encode(PHOTO, "JPEG")
    at = jpeg.index(b"\xff\xc0")
    deep = tiff(np.zeros((2, 2), np.uint8))
    return {
        "png": png(np.zeros((1, 1)), 0, 8, size=(60000, 60000)),
        "jpeg": jpeg[: at + 5] + wide + jpeg[at + 9 :],
        "tiff": deep.replace(struct.pack("<HHII", 256, 4, 1, 2), struct.pack("<HHII", 256, 4, 1, 2**31)),
        "gif": encode(PHOTO, "GIF")[:6] + struct.pack("<HH", 60000, 60000) + encode(PHOTO, "GIF")[10:],
    }


@pytest.mark.parametrize("kind", ["png", "jpeg", "tiff", "gif"])
def test_bombs_are_refused_by_their_header(decoder, tmp_path, monkeypatch, kind):
    file = tmp_path / "bomb"
    file.write_bytes(bombs()[kind])
    monkeypatch.setattr(cv2, "imdecode", None)  # nothing may be decoded
    monkeypatch.setattr(Image.Image, "load", None)
    for read in (read_image, check_image):
        with pytest.raises(ImageError, match=r"bomb: .* pixels are more than max_pixels = 178,956,970"):
            read(file)


def test_the_limit_can_be_set(decoder):
    for kind in ("JPEG", "PNG", "TIFF"):
        data = encode(PHOTO, kind)
        limit_pixels(1349)
        with pytest.raises(ImageError, match="45 x 30 = 1,350 pixels"):
            read_image(data)
        limit_pixels(1350)
        assert read_image(data).shape == (30, 45, 3)


def test_header_check_reads_large_headers(tmp_path):
    profile = bytes(60000)
    data = encode(PHOTO, "JPEG", icc_profile=profile * 3)
    assert data.index(b"\xff\xc0") > 1 << 16
    (tmp_path / "a.jpg").write_bytes(data)
    check_image(tmp_path / "a.jpg")
    assert read_image(tmp_path / "a.jpg").shape == PHOTO.shape


# Folders and names.


def test_names_with_spaces_and_unicode(decoder, tmp_path):
    for name in ("a b.jpg", "größe ✓ 写真.jpg", "quote's%20.jpg"):
        (tmp_path / name).write_bytes(encode(PHOTO, "JPEG"))
        assert read_image(tmp_path / name).shape == PHOTO.shape
    assert len(find_images(tmp_path)) == 3
    with pytest.raises(FileNotFoundError, match=r"no\.jpg"):
        read_image(tmp_path / "no.jpg")


def test_find_images(tmp_path):
    for name in ("b/2.PNG", "b/1.jpg", "a.tif", ".hidden.jpg", ".cache/x.jpg", "b/._1.jpg", "notes.txt", "c/d/e.npy"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = [os.path.relpath(p, tmp_path) for p in find_images(tmp_path)]
    assert found == ["a.tif", "b/1.jpg", "b/2.PNG", "c/d/e.npy"]
    assert find_images(tmp_path / "a.tif") == [str(tmp_path / "a.tif")]


def test_find_images_follows_links_once_and_ends(tmp_path):
    data = tmp_path / "data"
    (data / "real").mkdir(parents=True)
    (data / "real" / "1.jpg").touch()
    (data / "loop").symlink_to(data, target_is_directory=True)
    (data / "real" / "up").symlink_to("..", target_is_directory=True)
    (data / "again").symlink_to(data / "real", target_is_directory=True)
    other = tmp_path / "other"
    other.mkdir()
    (other / "2.jpg").touch()
    (data / "linked").symlink_to(other, target_is_directory=True)
    assert [os.path.relpath(p, data) for p in find_images(data)] == ["linked/2.jpg", "real/1.jpg"]


def test_find_images_without_images(tmp_path):
    (tmp_path / "x.txt").touch()
    with pytest.raises(ValueError, match=rf"'{tmp_path}' holds no image files .*\.jpg.*\.npy"):
        find_images(tmp_path)
    with pytest.raises(ValueError, match="does not exist"):
        find_images(Path("nowhere"))


def test_a_tiff_of_many_channels_has_a_limit_too(monkeypatch):
    bands = np.zeros((6, 8, 33), np.uint8)
    monkeypatch.setattr(images, "read_tiff", None)  # nothing may be decoded
    limit_pixels(95)
    with pytest.raises(ImageError, match=r"8 x 6 = 48 pixels of 33 channels are more than max_pixels = 95"):
        read_image(tiff(bands, 1, (0,) * 32), 33)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", [3, 4])
def test_exif_orientation_of_both_byte_orders_and_sizes_of_numbers(tmp_path, order, kind):
    head = b"II*\0" if order == "<" else b"MM\0*"
    value = struct.pack(order + "I", 8) if kind == 4 else struct.pack(order + "HH", 8, 0)
    block = head + struct.pack(order + "IHHHI", 8, 1, 0x0112, kind, 1) + value + b"\0" * 4
    plain = encode(PHOTO, "JPEG")
    file = tmp_path / "a.jpg"
    file.write_bytes(plain[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 8) + b"Exif\0\0" + block + plain[2:])
    np.testing.assert_array_equal(read_image(file), np.rot90(read_image(plain), 1))
    assert image_size(file) == (45, 30)


def test_sizes_of_tiffs_with_bands_are_turned_as_they_are_read(tmp_path):
    pytest.importorskip("tifffile")
    file = tmp_path / "a.tif"
    file.write_bytes(tiff(np.zeros((4, 6, 5), np.uint8), 1, (0,) * 4, orientation=6))
    assert image_size(file) == read_image(file, 5).shape[:2] == (6, 4)


def test_opacity_is_rounded_to_the_nearest():
    pixels = np.array([[[1, 254, 100, 254]]], np.uint8)  # 1 * 254 + 255 = 509, and 509 / 255 = 1.996
    assert read_image(encode(pixels, "PNG")).tolist() == [[[2, 254, 101]]]
