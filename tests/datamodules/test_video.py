"""Frames of videos: the right one in any order and in any thread, and messages for files that are none."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest

from datamodules.decoding.files import find_images
from datamodules.decoding.images import read_image
from datamodules.decoding.limits import limit_pixels
from datamodules.decoding.video import VideoError, is_frame, read_frame

FRAMES = 20


@pytest.fixture
def clip(tmp_path):
    """Each frame is a shade of its own, with a red top left corner."""
    path = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 5, (64, 48))
    for i in range(FRAMES):
        frame = np.full((48, 64, 3), 10 * i, np.uint8)
        frame[:16, :16] = (0, 0, 255)  # BGR
        writer.write(frame)
    writer.release()
    return path


def shade(frame):
    return round(float(frame[30:, 30:].mean()) / 10)


def test_frames_stand_where_files_may_stand(clip):
    names = find_images(clip)
    assert names == [f"{clip}#{i:06d}" for i in range(FRAMES)]
    for number in (0, 1, 2, 7, 3, 19, 0):  # also backwards
        frame = read_image(names[number])
        assert frame.shape == (48, 64, 3)
        assert shade(frame) == number
    np.testing.assert_allclose(frame[4:10, 4:10].reshape(-1, 3).mean(0), [255, 0, 0], atol=12)
    assert read_image(names[3], channels=1).shape == (48, 64, 1)
    assert read_image(names[3], dtype="float32").max() <= 1


def test_threads_share_a_reader(clip):
    names = find_images(clip)
    with ThreadPoolExecutor(4) as pool:
        assert [shade(frame) for frame in pool.map(read_image, names)] == list(range(FRAMES))


def test_the_frame_is_the_callers_own(clip):
    name = f"{clip}#000004"
    first = read_frame(name)
    first[:] = 255
    assert shade(read_frame(name)) == 4


def test_what_is_no_video_is_said_so(tmp_path, clip):
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"no video at all" * 100)
    with pytest.raises(VideoError, match=r"bad.mp4: .* convert it"):
        find_images(bad)
    with pytest.raises(VideoError, match="frame 99 cannot be decoded"):
        read_frame(f"{clip}#000099")
    with pytest.raises(ValueError, match="does not exist"):
        read_frame(f"{tmp_path}/gone.mp4#000000")
    assert not is_frame("digits#train/12")
    assert not is_frame(str(clip))


def test_frames_with_too_many_pixels_are_refused_before_decoding(clip):
    limit_pixels(48 * 64 - 1)
    for read in (find_images, lambda path: read_frame(f"{path}#000000")):
        with pytest.raises(VideoError, match=r"clip.avi: its frames of 64 x 48 = 3,072 pixels are more than .* 3,071"):
            read(clip)
