"""A checkpoint is complete or not there, and nothing in it is ever executed."""

from __future__ import annotations

import errno
import os
import pickle
import resource
import signal
import subprocess
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
import yaml

from datamodules import ClassificationData, SemiSupervised
from datamodules.common.errors import UserError
from pipelines.run import compatibility
from pipelines.run.checkpoints import AtomicCheckpointIO, newest_good_checkpoint, readable
from pipelines.run.compatibility import check_data
from pipelines.run.temporary import host
from pipelines.stages.manifest import digest_of
from tests.conftest import write_images


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Forked children of a process with OpenMP threads hang in their first parallel operation."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def state(step: int, size: int = 1000) -> dict[str, Any]:
    return {"global_step": step, "state_dict": {"w": torch.full((size,), float(step))}, "text": "config: é"}


def save(path: Path, step: int, seconds: float | None = None) -> Path:
    AtomicCheckpointIO().save_checkpoint(state(step), path)
    if seconds is not None:
        os.utime(path, (seconds, seconds))
    return path


def temporary_files(folder: Path) -> list[Path]:
    return list(folder.glob(".*"))


def test_save_and_load(tmp_path: Path) -> None:
    path = save(tmp_path / "new" / "last.ckpt", 3)
    save(path, 4)
    loaded = AtomicCheckpointIO().load_checkpoint(path)
    assert loaded["global_step"] == 4
    assert torch.equal(loaded["state_dict"]["w"], torch.full((1000,), 4.0))
    assert [p.name for p in path.parent.iterdir()] == ["last.ckpt"]
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()
    AtomicCheckpointIO().remove_checkpoint(path)
    assert not path.exists()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def dies_at(function: str, path: Path) -> int:
    """A child is killed by itself when the save comes to a function of `os`, before it is done."""
    pid = os.fork()
    if pid == 0:
        try:
            setattr(os, function, lambda *args: os.kill(os.getpid(), signal.SIGKILL))
            AtomicCheckpointIO().save_checkpoint(state(1, 100_000), path)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_kill_leaves_no_unreadable_file_and_no_litter(function: str, tmp_path: Path) -> None:
    """Before the bytes are on the disk, and before the file has its name; the next save clears up."""
    path = save(tmp_path / "last.ckpt", 0)
    assert dies_at(function, path) == -signal.SIGKILL
    assert len(temporary_files(tmp_path)) == 1
    assert readable(path)
    assert AtomicCheckpointIO().load_checkpoint(path)["global_step"] == 0
    save(path, 5)
    assert temporary_files(tmp_path) == []


def test_sweeping_spares_the_living(tmp_path: Path) -> None:
    machine = host()
    living = tmp_path / f".best.ckpt.{machine}-{os.getppid()}-0.tmp"
    foreign = tmp_path / ".best.ckpt.elsewhere-1-0.tmp"
    foreign_old = tmp_path / ".best.ckpt.elsewhere-2-0.tmp"
    for path in (living, foreign, foreign_old):
        path.write_bytes(b"x")
    os.utime(foreign_old, (1, 1))
    save(tmp_path / "last.ckpt", 1)
    assert set(temporary_files(tmp_path)) == {living, foreign}


def test_a_process_of_another_machine_is_not_looked_for_on_this_one(tmp_path: Path) -> None:
    """A number that is no process here may be one there, which is still writing."""
    ended = subprocess.Popen(["true"])
    ended.wait()
    own = tmp_path / f".best.ckpt.{host()}-{ended.pid}-0.tmp"
    foreign = tmp_path / f".best.ckpt.elsewhere-{ended.pid}-0.tmp"
    for path in (own, foreign):
        path.write_bytes(b"x")
    save(tmp_path / "last.ckpt", 1)
    assert temporary_files(tmp_path) == [foreign]


def test_a_full_disk_leaves_the_older_file(tmp_path: Path) -> None:
    """A limit on the size of files, in a child, gives a real failure in the middle of a write."""
    path = save(tmp_path / "last.ckpt", 1)
    report = tmp_path / "report.txt"
    pid = os.fork()
    if pid == 0:
        try:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
            try:
                AtomicCheckpointIO().save_checkpoint(state(2, 1_000_000), path)
            except Exception as error:
                report.write_text(f"{type(error).__name__}\n{error}")
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    kind, message = report.read_text().split("\n")
    assert kind == "NotSavedError"
    for word in (str(path), "File too large", "MiB free", "older file of that name is intact"):
        assert word in message
    assert temporary_files(tmp_path) == []
    assert AtomicCheckpointIO().load_checkpoint(path)["global_step"] == 1


def test_a_failing_sync_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"cannot write the checkpoint .*last.ckpt \(No space.*nothing was written"):
        save(tmp_path / "last.ckpt", 1)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_read_back_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds a function.*\(at x\)"):
        AtomicCheckpointIO().save_checkpoint({"x": lambda: 0}, tmp_path / "last.ckpt")
    assert list(tmp_path.iterdir()) == []


class Evil:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("weights_only", [None, False, True])
def test_a_pickle_is_never_executed(tmp_path: Path, weights_only: bool | None) -> None:
    path, marker = tmp_path / "evil.ckpt", tmp_path / "marker"
    torch.save({"global_step": 9, "state_dict": {}, "x": Evil(marker)}, path)
    with pytest.raises(ValueError, match=r"evil.ckpt holds more than tensors and plain values.*mkdir"):
        AtomicCheckpointIO().load_checkpoint(path, weights_only=weights_only)
    assert not readable(path)
    with pytest.warns(UserWarning, match="evil.ckpt cannot be read"):
        assert newest_good_checkpoint(tmp_path) is None
    assert not marker.exists()


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/x.ckpt", "HTTPS://example.org/x.ckpt"])
def test_web_addresses_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match="is a web address: download"):
        AtomicCheckpointIO().load_checkpoint(url)


def test_remote_paths_go_through_fsspec(tmp_path: Path) -> None:
    io = AtomicCheckpointIO()
    io.save_checkpoint(state(7), "memory://bucket/run/last.ckpt")
    assert io.load_checkpoint("memory://bucket/run/last.ckpt")["global_step"] == 7
    with pytest.raises(UserError, match="no checkpoint"):
        io.load_checkpoint("memory://bucket/none.ckpt")
    with fsspec.open("memory://bucket/evil.ckpt", "wb") as file:
        torch.save({"x": Evil(tmp_path / "marker")}, file)
    with pytest.raises(pickle.UnpicklingError):
        io.load_checkpoint("memory://bucket/evil.ckpt", weights_only=False)
    assert not (tmp_path / "marker").exists()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no checkpoint .*none.ckpt"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "none.ckpt")
    assert not readable(tmp_path / "none.ckpt")
    assert newest_good_checkpoint(tmp_path) is None
    assert newest_good_checkpoint(tmp_path / "nowhere") is None


def test_a_cut_file_is_named(tmp_path: Path) -> None:
    path = save(tmp_path / "last.ckpt", 1)
    data = path.read_bytes()
    for length in (0, 1, 100, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:length])
        assert not readable(path)
        with pytest.raises(ValueError, match=r"last.ckpt (is incomplete or damaged|holds more)"):
            AtomicCheckpointIO().load_checkpoint(path)


def test_no_flipped_bit_goes_unnoticed(tmp_path: Path) -> None:
    """Every seventh bit: the file is refused, or gives the very same values (the bit lay in padding)."""
    small = {"global_step": 3, "state_dict": {"w": torch.arange(20.0), "b": torch.arange(4)}, "s": "text" * 9}
    path = tmp_path / "a.ckpt"
    AtomicCheckpointIO().save_checkpoint(small, path)
    data = path.read_bytes()
    refused = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for bit in range(0, 8 * len(data), 7):
            flipped = bytearray(data)
            flipped[bit // 8] ^= 1 << bit % 8
            path.write_bytes(flipped)
            if not readable(path):
                refused += 1
                continue
            loaded = torch.load(path, weights_only=True)
            assert loaded["s"] == small["s"]
            assert loaded["global_step"] == 3
            assert all(torch.equal(loaded["state_dict"][k], v) for k, v in small["state_dict"].items())
    assert refused > 100


def test_a_flipped_bit_in_a_tensor_loads_silently_without_the_check(tmp_path: Path) -> None:
    """Why the checksums are compared: torch does not."""
    path = save(tmp_path / "last.ckpt", 1)
    _flip(path)
    assert torch.load(path, weights_only=True)["global_step"] == 1
    assert not readable(path)
    with pytest.raises(ValueError, match=r"last.ckpt is incomplete or damaged \(checksums differ\)"):
        AtomicCheckpointIO().load_checkpoint(path)


def _flip(path: Path) -> None:
    with zipfile.ZipFile(path) as file:
        info = next(info for info in file.infolist() if "/data/" in info.filename)
    data = bytearray(path.read_bytes())
    data[info.header_offset + 2000] ^= 1
    path.write_bytes(data)


def test_the_newest_good_one_is_chosen(tmp_path: Path) -> None:
    save(tmp_path / "best.ckpt", 40, seconds=1000)
    save(tmp_path / "last.ckpt", 50, seconds=900)  # steps count, not the clock
    assert newest_good_checkpoint(tmp_path) == tmp_path / "last.ckpt"
    save(tmp_path / "best.ckpt", 50, seconds=1000)  # equal steps: written last
    assert newest_good_checkpoint(tmp_path) == tmp_path / "best.ckpt"


def test_bad_ones_are_skipped_and_named(tmp_path: Path) -> None:
    save(tmp_path / "a.ckpt", 10)
    flipped, cut, other = save(tmp_path / "b.ckpt", 20), save(tmp_path / "c.ckpt", 30), tmp_path / "d.ckpt"
    _flip(flipped)
    cut.write_bytes(cut.read_bytes()[:-50])
    torch.save({"weights": torch.zeros(2)}, other)
    with pytest.warns(UserWarning, match="cannot be read and is skipped") as caught:
        assert newest_good_checkpoint(tmp_path) == tmp_path / "a.ckpt"
    said = "\n".join(str(w.message) for w in caught)
    assert f"{flipped} cannot be read and is skipped (checksums differ)" in said
    assert str(cut) in said
    assert f"{other} cannot be read and is skipped (it holds no 'global_step': weights only, or something else)" in said


def test_a_students_data_are_compared_by_their_labeled_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(compatibility, "rank_zero_warn", said.append)
    images = write_images(tmp_path / "images", {"train/ant": 2, "train/bee": 2, "val/ant": 1, "val/bee": 1})
    arguments = {"class_names": ["ant", "bee"], "resize": "crop", "interpolation": "bilinear", "image_size": [32, 32]}
    config = {"data": {"class_path": "SemiSupervised", "init_args": {"labeled": {"init_args": arguments}}}}
    path = tmp_path / "student.ckpt"
    torch.save({**state(1), "config": yaml.safe_dump(config)}, path)

    def check(**changes: Any) -> None:
        labeled = ClassificationData(str(images), batch_size=2, num_workers=0, **{**arguments, **changes})
        for data in (SemiSupervised(labeled), labeled):
            data.setup("validate")
            check_data(path, data)

    check()
    assert said == []
    check(resize="stretch")
    assert [text.split(", but")[0] for text in said] == ["data.resize is stretch"] * 2
    with pytest.raises(ValueError, match="was trained on the classes"):
        check(class_names=["bee", "ant"])


def test_a_digest_is_of_the_weights_names_and_values(tmp_path: Path) -> None:
    def digest(name: str = "w", state_dict: dict[str, torch.Tensor] | None = None, **more: Any) -> str:
        path = tmp_path / "x.ckpt"
        torch.save({"state_dict": state_dict or {name: torch.arange(4.0)}, **more}, path)
        return digest_of(path)

    same = digest()
    assert digest(config="the paths of another run") == same
    assert digest("v") != same
    for other in (
        torch.tensor([0.0, 1.0, 2.0, 4.0]),  # one value
        torch.arange(4.0).flip(0),  # the order of values
        torch.arange(4.0).reshape(2, 2),
        torch.arange(4.0).view(torch.int32),  # the same bits
        torch.arange(5.0),
    ):
        assert digest(state_dict={"w": other}) != same
    a, b = torch.zeros(1), torch.ones(1)
    assert digest(state_dict={"a": a, "b": b}) == digest(state_dict={"b": b, "a": a})
    assert digest(state_dict={"a": a, "b": b}) != digest(state_dict={"a": b, "b": a})
    assert digest(state_dict={"a": torch.zeros(0)}) != digest(state_dict={"b": torch.zeros(0)})
