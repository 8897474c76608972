"""The cache of decoded images: where it lies, who builds it, what makes it stale."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections import Counter
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from datamodules import Augment, ClassificationData, DetectionData, SegmentationData, cache
from datamodules.cache import DecodedCache
from datamodules.common.errors import UserError
from datamodules.common.files import user_folder
from datamodules.common.locks import Watch, only_one_builds, token
from datamodules.loaders import read_record
from datamodules.readers.samples import read_objects
from tests.conftest import write_images

WAIT_SECONDS = 60  # until a test gives up, not what it measures


def write_pictures(folder: Path, count: int = 3, seed: int = 0, size: tuple[int, int] = (5, 7)) -> list[dict]:
    """Bitmaps of one size: other pixels leave the file's size as it is."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(seed)
    paths = [str(folder / f"{i}.bmp") for i in range(count)]
    for path in paths:
        cv2.imwrite(path, rng.integers(0, 256, (*size, 3)).astype(np.uint8))
    return [{"image": path, "path": path} for path in paths]


READ = partial(read_record, channels=3, dtype="uint8")


def test_the_cache_is_the_users_own(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "mine"))
    made = DecodedCache.build(write_pictures(tmp_path / "pictures"), READ)
    assert made.path.parent == tmp_path / "mine" / "pipelines" / "decoded"
    assert made.path.parent.stat().st_mode & 0o777 == 0o700
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    assert user_folder("decoded") == tmp_path / "home" / ".cache" / "pipelines" / "decoded"


def test_a_folder_of_somebody_else_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(UserError, match=r"belongs to another user.*data\.cache_dir"):
        DecodedCache.build(write_pictures(tmp_path / "pictures"), READ)


@pytest.mark.parametrize(("size", "later"), [((5, 7), 1), ((6, 7), 0)])
def test_a_changed_file_is_decoded_again(tmp_path, size, later):
    """Of the same size and another time, or of the same time and another size."""
    records = write_pictures(tmp_path / "pictures")
    first = DecodedCache.build(records, READ, str(tmp_path))
    before = [os.stat(record["path"]) for record in records]
    write_pictures(tmp_path / "pictures", seed=1, size=size)
    for record, old in zip(records, before, strict=True):
        os.utime(record["path"], ns=(old.st_atime_ns, old.st_mtime_ns + later))
        assert (os.path.getsize(record["path"]) == old.st_size) == (size == (5, 7))
    second = DecodedCache.build(records, READ, str(tmp_path))
    assert second.path != first.path
    for record in records:
        assert np.array_equal(second.read(record)["image"], READ(record)["image"])


def test_other_settings_of_the_decoder_have_a_cache_of_their_own(tmp_path):
    records = write_pictures(tmp_path / "pictures")
    readers = [partial(read_record, channels=c, dtype=d) for c, d in ((3, "uint8"), (1, "uint8"), (3, "float32"))]
    made = [DecodedCache.build(records, read, str(tmp_path)) for read in readers]
    assert len({one.path for one in made}) == 3
    for one, read in zip(made, readers, strict=True):
        image = one.read(records[1])["image"]
        assert image.dtype == read(records[1])["image"].dtype
        assert np.array_equal(image, read(records[1])["image"])


def test_a_disk_with_too_little_room_is_refused(tmp_path, monkeypatch):
    """4 images of 5 x 7 x 3 bytes are 420; a tenth of what is free is left alone."""
    records = write_pictures(tmp_path / "pictures", 4)
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda _: SimpleNamespace(free=466))
    with pytest.raises(UserError, match=r"data\.cache needs about"):
        DecodedCache.build(records, READ, str(tmp_path))
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda _: SimpleNamespace(free=467))
    assert DecodedCache.build(records, READ, str(tmp_path)).path.stat().st_size == 420


def test_one_process_decodes_all_images_and_the_others_none(tmp_path):
    records = write_pictures(tmp_path / "pictures", 4)
    reads: Counter[str] = Counter()

    def read(record: dict) -> dict:
        reads[record["path"]] += 1
        return READ(record)

    DecodedCache.build(records, read, str(tmp_path))
    reads.clear()
    threads = [threading.Thread(target=DecodedCache.build, args=(records, read, str(tmp_path))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert reads == {records[0]["path"]: 3}  # the first tells type and channels
    assert not list(tmp_path.glob("*.lock"))


# The lock.


def test_the_others_wait_until_the_builder_is_done(tmp_path):
    """The builder goes on when each of the others has looked twice: nobody else may have started by then."""
    done, all_waiting = threading.Event(), threading.Event()
    looks: Counter[int] = Counter()
    builders = []

    def finished() -> bool:
        looks[threading.get_ident()] += 1
        if sum(count >= 3 for count in looks.values()) == 3:
            all_waiting.set()
        return done.is_set()

    def work() -> None:
        with only_one_builds(tmp_path / "lock", finished, poll=0.01) as mine:
            if mine:
                builders.append(threading.get_ident())
                all_waiting.wait(WAIT_SECONDS)
                done.set()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_SECONDS)
    assert len(builders) == 1
    assert all_waiting.is_set()
    assert not (tmp_path / "lock").exists()


def test_a_builder_that_fails_leaves_the_work_to_the_next(tmp_path):
    def fail() -> None:
        with only_one_builds(tmp_path / "lock", lambda: False) as mine:
            assert mine
            raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        fail()
    with only_one_builds(tmp_path / "lock", lambda: False) as mine:
        assert mine


def test_a_build_that_ends_just_before_the_lock_is_taken_is_not_done_again(tmp_path):
    looks = iter([False])  # the only look before the lock; then the last builder lets go
    with only_one_builds(tmp_path / "lock", lambda: next(looks, True)) as mine:
        assert not mine
        assert not (tmp_path / "lock").exists()


def test_a_builder_shows_that_it_is_alive(tmp_path):
    lock = tmp_path / "lock"
    beaten = threading.Event()
    with only_one_builds(lock, lambda: False, beat=0.01):
        os.utime(lock, (0, 0))
        for _ in range(100 * WAIT_SECONDS):
            if lock.stat().st_mtime > 0:
                beaten.set()
                break
            threading.Event().wait(0.01)
    assert beaten.is_set()


def test_a_lock_is_stale_when_its_stamp_stands_still():
    """By the waiter's own clock, as clocks of several machines differ; a new stamp starts the time anew."""
    watch = Watch(seconds=60)
    assert not watch.stale((1, 500), now=1000)
    assert not watch.stale((1, 500), now=1059)
    assert not watch.stale((1, 501), now=1061)
    assert not watch.stale((1, 501), now=1120)
    assert not watch.stale((2, 501), now=1122)  # another builder's lock
    assert watch.stale((2, 501), now=1183)


def test_the_lock_of_a_silent_builder_elsewhere_is_taken(tmp_path):
    (tmp_path / "lock").write_text("elsewhere 1 0")
    with only_one_builds(tmp_path / "lock", lambda: False, stale=0.05, poll=0.01) as mine:
        assert mine
    assert not (tmp_path / "lock").exists()


def test_the_lock_of_a_dead_process_here_is_taken_at_once(tmp_path):
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    (tmp_path / "lock").write_text(token(int(ended.stdout)))
    looks = iter([False] * 20)  # then the wait ends
    with only_one_builds(tmp_path / "lock", lambda: next(looks, True), stale=1e9, poll=0.01) as mine:
        assert mine


def test_photographs_are_reduced_once_and_boxes_follow(tmp_path):
    (record,) = write_pictures(tmp_path / "pictures", count=1, size=(90, 120))
    read = partial(read_objects, channels=3, dtype="uint8", masks=False)
    boxes = np.array([[12, 9, 60, 45]], np.float32)
    of_boxes = {"labels": np.array([0]), "iscrowd": np.zeros(1, np.uint8), "area": np.float32([48 * 36])}
    record = {**record, "boxes": boxes, "height": 90, "width": 120, **of_boxes}
    reduced = DecodedCache.build([record], read, str(tmp_path), side=30)
    sample = reduced.read(record)
    assert np.array_equal(sample["image"], cv2.resize(read(record)["image"], (40, 30), interpolation=cv2.INTER_AREA))
    assert sample["boxes"].tolist() == [[4, 3, 20, 15]]
    assert sample["area"].tolist() == [16 * 12]
    larger = DecodedCache.build([record], read, str(tmp_path), side=91)
    assert np.array_equal(larger.read(record)["image"], read(record)["image"])
    assert larger.path != reduced.path != DecodedCache.build([record], read, str(tmp_path)).path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SegmentationData("x", cache="resized"), "masks are read from their files"),
        (lambda: DetectionData("x", cache="resized", masks=True), "data.masks is true"),
        (lambda: DetectionData("x", cache="resized", resize="native"), "data.resize is 'native'"),
    ],
)
def test_a_reduced_cache_is_refused_where_pictures_are_needed_whole(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_training_takes_reduced_pictures_and_evaluation_the_files(tmp_path):
    folder = write_images(tmp_path / "pictures", {"train/a": 4, "train/b": 4, "val/a": 2}, size=(80, 100))
    data = ClassificationData(
        str(folder),
        cache="resized",
        cache_dir=str(tmp_path),
        image_size=16,
        num_workers=0,
        augment=Augment(preset="none"),
    )
    data.setup("fit")
    assert data.chosen["data.cache"] == "training images are reduced to a shorter side of 32 pixels, once"
    plain = ClassificationData(str(folder), cache="none", image_size=16, num_workers=0, augment=Augment(preset="none"))
    plain.setup("fit")
    mine, theirs = (next(iter(one.train_dataloader())) for one in (data, plain))
    assert mine["path"] == theirs["path"]
    difference = np.abs(mine["image"].numpy().astype(int) - theirs["image"].numpy()).mean()
    assert 0 < difference < 12  # of noise of 30; the same crops of the same pictures
    assert all(map(np.array_equal, *(next(iter(one.val_dataloader()))["image"] for one in (data, plain))))
    assert len(list(tmp_path.glob("*.bin"))) == 1
