"""The header of a JPEG file: what a decoder does not tell."""

from __future__ import annotations

import struct
from typing import NamedTuple

from datamodules.common.errors import UserError

#: EXIF's tag of an image's orientation.
ORIENTATION_TAG = 0x0112

_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
_EXIF, _ADOBE = 0xE1, 0xEE
_NO_FRAMES = (0xC4, 0xC8, 0xCC)  # among the markers of frames, C0 to CF, these are something else
_LONG = 4  # EXIF's type of 32-bit numbers; orientations are usually 16-bit ones


class JpegHeader(NamedTuple):
    """Size, number of color components, EXIF orientation, and where the first scan starts."""

    width: int
    height: int
    components: int
    orientation: int  # 1 to 8
    adobe: bool  # an Adobe marker: CMYK inks are stored inverted
    scan: int  # offset in bytes


def parse_jpeg(data: bytes) -> JpegHeader:
    """Walk the segments up to the first scan: a few microseconds, where opening with Pillow takes many times that.

    Raises:
        UserError: If the header is damaged or cut off.
    """
    width = height = components = 0
    orientation, adobe, pos = 1, False, 2
    try:
        while True:
            if data[pos] != 0xFF:
                raise UserError(f"the JPEG header is damaged at byte {pos}")
            marker = data[pos + 1]
            if marker == 0xFF:  # a fill byte
                pos += 1
                continue
            if _has_no_body(marker):
                pos += 2
                continue
            (length,) = struct.unpack_from(">H", data, pos + 2)
            body = pos + 4
            if _is_frame(marker):
                height, width, components = struct.unpack_from(">HHB", data, body + 1)
            elif marker == _EXIF and data[body : body + 6] == b"Exif\0\0":
                orientation = _exif_orientation(data[body + 6 : pos + 2 + length])
            elif marker == _ADOBE and data[body : body + 5] == b"Adobe":
                adobe = True
            elif marker == _START_OF_SCAN:
                return JpegHeader(width, height, components, orientation, adobe, pos)
            elif marker == _END_OF_IMAGE:
                raise UserError("the JPEG ends before any pixels")
            pos += 2 + length
    except (IndexError, struct.error):
        raise UserError("the file is truncated, it ends inside the JPEG header") from None


def _has_no_body(marker: int) -> bool:
    """Whether a marker stands alone, without a length and content."""
    return marker == 0x01 or 0xD0 <= marker <= 0xD7


def _is_frame(marker: int) -> bool:
    """Whether a marker starts a frame, which has the size."""
    return 0xC0 <= marker <= 0xCF and marker not in _NO_FRAMES


def _exif_orientation(exif: bytes) -> int:
    """The orientation (1 to 8) of a TIFF-structured EXIF block; 1 where it is missing or damaged."""
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(order + "I", exif, 4)
        (count,) = struct.unpack_from(order + "H", exif, start)
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind = struct.unpack_from(order + "HH", exif, entry)
            if tag == ORIENTATION_TAG:
                (value,) = struct.unpack_from(order + ("I" if kind == _LONG else "H"), exif, entry + 8)
                return int(value) if 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1
