"""What all tests share: an offline, quiet environment, small generated data, and a child process that is forked."""

from __future__ import annotations

import importlib
import os
import signal
import struct
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ["WANDB_MODE"] = "offline"
os.environ["WANDB_SILENT"] = "true"
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
# Set before torch is imported. OpenMP's threads do not survive a fork, and two test processes fill two cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest

# Only a child that hangs is ended. A busy machine may take minutes for what takes seconds.
TIMEOUT_SECONDS = 900
PROCESSES = 2
SHARED = Path(__file__).parents[2] / "shared" / "data"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Two processes for folders of tests, one for single files: each process imports torch and Lightning anew."""
    paths = [Path(argument.partition("::")[0]) for argument in config.args]
    return PROCESSES if any(path.is_dir() for path in paths) else 0


@pytest.fixture(autouse=True)
def _own_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test runs in a directory of its own, so that `runs/` is too, and leaves no limit of pixels behind."""
    monkeypatch.chdir(tmp_path)
    yield
    if limits := sys.modules.get("datamodules.decoding.limits"):
        limits.limit_pixels(limits.MAX_PIXELS)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data sets, or a skip."""
    if not SHARED.is_dir():
        pytest.skip("the real data sets of ../shared are not here")
    return SHARED


def write_images(root: Path, counts: dict[str, int], size: tuple[int, int] = (40, 48), seed: int = 0) -> Path:
    """An image folder: `counts` maps "train/cat" to a number of JPEG files, each class with a color of its own."""
    import cv2

    rng = np.random.default_rng(seed)
    classes = sorted({Path(k).name for k in counts})
    for folder, count in counts.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        hue = classes.index(Path(folder).name) / len(classes)
        for i in range(count):
            color = np.array([hue, 0.5, 1 - hue]) * 200
            image = (rng.normal(color, 30, (*size, 3))).clip(0, 255).astype(np.uint8)
            cv2.imwrite(str(root / folder / f"{i:03d}.jpg"), image)
    return root


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small image folder with train, val and test."""
    counts = {f"{split}/{name}": n for split, n in (("train", 8), ("val", 3), ("test", 3)) for name in ("ant", "bee")}
    return write_images(tmp_path / "pictures", counts)


def import_commands() -> None:
    """What commands import when they begin: imported once, before forking, and not in each child."""
    for name in ("pipelines.cli", "pipelines.noisy_student.loop", "matplotlib.backends.backend_agg"):
        importlib.import_module(name)


def leave_figures_blank() -> None:
    """From here on matplotlib draws a dot, and there are no reports: half of the time of a short command."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from pipelines.callbacks import report

    def draw_a_dot(canvas: FigureCanvasAgg) -> None:
        canvas.renderer = canvas.get_renderer()
        pixels = np.asarray(canvas.renderer.buffer_rgba())
        pixels[:] = 255
        pixels[:8, :8] = 0

    FigureCanvasAgg.draw = draw_a_dot
    Figure.tight_layout = lambda figure, **_: None
    report.write_report = lambda run: run / "report.html"


def in_child(work: Callable[[], object], seconds: int = TIMEOUT_SECONDS, figures: bool = False) -> int:
    """Run `work` in a forked child, which has all imports already; the exit status (negative: the signal).

    Figures are drawn where a test asks for them. They have tests of their own in `test_pictures` and `test_report`.
    The child computes with one thread: OpenMP's threads do not survive a fork, and waiting for them hangs.
    https://github.com/pytorch/pytorch/issues/17199
    """
    import_commands()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        status = 1
        signal.alarm(seconds)
        try:
            import torch

            torch.set_num_threads(1)
            if not figures:
                leave_figures_blank()
            result = work()
            status = result if isinstance(result, int) else 0
        except BaseException:
            traceback.print_exc()
        finally:
            if "wandb" in sys.modules:
                sys.modules["wandb"].teardown()  # done at a process's exit: its service writes on after `finish`
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def offline_records(path: Path, *, of_running: bool = False) -> list[Any]:
    """Read a ``.wandb`` file: LevelDB's log format after a header of 7 bytes, in blocks of 32 KiB.

    Args:
        path: The file.
        of_running: The run is still going on and stays so; its last record may be incomplete, and is left out.
    """
    import wandb
    from wandb.proto import wandb_internal_pb2

    if not of_running:
        wandb.teardown()  # its service writes on for some milliseconds after `finish`
    data, position, parts, records = path.read_bytes(), 7, b"", []
    while position + 7 <= len(data):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        if of_running and position + 7 + length > len(data):
            break
        parts += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a full record, or its last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            records.append(record)
            parts = b""
    return records
