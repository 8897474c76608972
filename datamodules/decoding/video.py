"""Frames of a video file as images: ``clip.mp4#000012`` is its thirteenth frame, wherever an image file may stand."""

from __future__ import annotations

import re
import threading
from collections import deque
from functools import cache
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from datamodules.common.errors import UserError
from datamodules.decoding.limits import max_pixels

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")

_FRAME = re.compile(rf"(.+(?:{'|'.join(re.escape(s) for s in VIDEO_SUFFIXES)}))#(\d+)", re.IGNORECASE | re.DOTALL)
_RECENT = 8  # threads that share a reader ask nearly in order


class VideoError(UserError):
    """A file that is no readable video; the message names the file and the reason."""


def is_video(path: str | Path) -> bool:
    """Whether the name is that of a video."""
    return str(path).lower().endswith(VIDEO_SUFFIXES)


def is_frame(source: object) -> bool:
    """Whether this is the name of a frame."""
    return isinstance(source, str) and "#" in source and _FRAME.fullmatch(source) is not None


def list_frames(path: str | Path) -> list[str]:
    """Names of all frames, in order. The whole file is decoded once: what its header says of their number may be wrong.

    Raises:
        VideoError: If the file cannot be decoded.
    """
    video = _open(str(path))
    count = 0
    while video.grab():
        count += 1
    if not count:
        raise VideoError(f"{path}: no frame of the video can be decoded; convert it, for example to H.264 in .mp4.")
    return [f"{path}#{i:06d}" for i in range(count)]


def read_frame(name: str) -> NDArray[np.uint8]:
    """Decode a frame: uint8 RGB (H, W, 3), turned as the file says.

    Frames are cheap in order: an earlier one than the last is decoded from the start of the file.

    Raises:
        VideoError: If there is no such frame, or frames have more than ``limits.max_pixels``.
    """
    match = _FRAME.fullmatch(name)
    if match is None:
        raise VideoError(f"'{name}' is no frame of a video, like clip.mp4#000012.")
    # The loader and the threads that draw over what it has loaded are at different places.
    return _reader(match[1], threading.current_thread() is threading.main_thread()).read(int(match[2]))


class _Reader:
    """One decoder, for any number of threads."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._recent: deque[tuple[int, NDArray[np.uint8]]] = deque(maxlen=_RECENT)
        self._video, self._next = _open(path), 0

    def read(self, number: int) -> NDArray[np.uint8]:
        """Frame ``number``, from 0; the caller's own."""
        with self._lock:
            for known, frame in self._recent:
                if known == number:
                    return frame.copy()
            if number < self._next:
                # Not by CAP_PROP_POS_FRAMES, which misses the frame in some files:
                # https://github.com/opencv/opencv/issues/9053
                self._video, self._next = _open(self.path), 0
            found = True
            while found and self._next <= number:
                found = self._video.grab()
                self._next += 1
            found, pixels = self._video.retrieve() if found else (False, None)
            if not found or pixels is None:
                raise VideoError(f"{self.path}: frame {number} cannot be decoded.")
            frame = np.asarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB), np.uint8)
            self._recent.append((number, frame))
            return frame.copy()


@cache
def _reader(path: str, loading: bool) -> _Reader:
    return _Reader(path)


def _open(path: str) -> cv2.VideoCapture:
    if not Path(path).is_file():
        raise UserError(f"'{path}' does not exist (looked in {Path.cwd()}); give a video file.")
    video = cv2.VideoCapture(path)
    if not video.isOpened():
        raise VideoError(f"{path}: the video cannot be opened; convert it, for example to H.264 in .mp4.")
    width, height = (int(video.get(side)) for side in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
    if width * height > max_pixels():
        raise VideoError(
            f"{path}: its frames of {width} x {height} = {width * height:,} pixels are more than max_pixels ="
            f" {max_pixels():,}; none was decoded. Scale the video down, or raise data.max_pixels."
        )
    return video
