"""What a library's error in the middle of a run means, and what to set in place of it."""

from __future__ import annotations

import errno
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from datamodules.common.errors import UserError
from datamodules.decoding.headers import ImageError
from datamodules.loaders import AWAITED
from pipelines.config.reasons import reason_of

SHARED = Path("/dev/shm")
PREFETCHED = 4  # batches a loader process
MEMORY = re.compile(r"out of memory|can't allocate memory|not enough memory", re.IGNORECASE)


def shared_memory_doubts(datamodule: Any) -> list[str]:
    """A sentence where the batches that loader processes hold ready would not fit into ``/dev/shm``."""
    workers, batch = getattr(datamodule, "num_workers", None) or 0, getattr(datamodule, "batch_size", None)
    size = getattr(datamodule, "image_size", None)
    if not (workers and isinstance(batch, int) and size and SHARED.is_dir()):
        return []
    height, width = (size, size) if isinstance(size, int) else size
    needed = workers * PREFETCHED * batch * height * width * (getattr(datamodule, "in_chans", None) or 3)
    free = shutil.disk_usage(SHARED).free
    if needed <= free:
        return []
    return [
        f"{SHARED} has {free / 2**20:.0f} MiB free, but {workers} loader processes hold about {needed / 2**20:.0f} MiB"
        " of images ready there: give the container more (docker --shm-size 8g), or lower data.num_workers; 0 needs"
        " none."
    ]


@contextmanager
def with_advice(trainer: Any, datamodule: Any) -> Iterator[None]:
    """Inside, errors that settings can put right say which.

    Raises:
        UserError: In place of the library's error.
    """
    try:
        yield
    except (RuntimeError, ValueError, OSError, EOFError) as error:
        if isinstance(error, ImageError):
            raise UserError(
                f"{reason_of(error)} Its header was good: repair or remove it, or set data.on_corrupt: skip, which"
                " decodes all files before training and leaves bad ones out."
            ) from error
        if isinstance(error, UserError) or (advice := _advice(error, trainer, datamodule)) is None:
            raise
        raise UserError(advice) from error


def _advice(error: Exception, trainer: Any, datamodule: Any) -> str | None:
    text = str(error)
    if isinstance(error, torch.OutOfMemoryError | RuntimeError) and MEMORY.search(text):
        return _out_of_memory(trainer, datamodule)
    if "Expected more than 1 value per channel" in text:
        return (
            f"data.batch_size is {getattr(datamodule, 'batch_size', 1)}, and a batch norm of the net sees one value a"
            " channel of it, which has no spread. Set data.batch_size to 2 or more, a larger data.image_size, or"
            " model.freeze_norm: true."
        )
    if found := re.search(r"`val_check_interval` \((\S+)\) must be less than or equal to .*batches \((\d+)\)", text):
        return (
            f"trainer.val_check_interval is {found[1]}, but an epoch has {found[2]} batches: set it to at most"
            f" {found[2]}, or trainer.check_val_every_n_epoch: null to count over epochs."
        )
    said = _of_workers(error, text, datamodule)
    awaited = next((note.removeprefix(AWAITED) for note in getattr(error, "__notes__", []) if AWAITED in note), None)
    return f"{said} The batch that did not come: {awaited}." if said and awaited else said


def _out_of_memory(trainer: Any, datamodule: Any) -> str:
    batch, size = getattr(datamodule, "batch_size", None), getattr(datamodule, "image_size", None)
    accumulated = getattr(trainer, "accumulate_grad_batches", 1)
    said = f"out of memory with data.batch_size {batch} and data.image_size {size}"
    if isinstance(batch, int) and batch > 1:
        lower = batch // 2
        ways = (
            f"set data.batch_size to {lower} with trainer.accumulate_grad_batches {accumulated * batch // lower}, which"
            " gives the same step"
        )
    else:
        ways = "take a smaller data.image_size or net"
    return f"{said}: {ways}. Checkpoints are intact; --resume auto goes on with the lower setting."


def _of_workers(error: Exception, text: str, datamodule: Any) -> str | None:
    workers = getattr(datamodule, "num_workers", None)
    workers_said = "data.num_workers" + ("" if workers is None else f" ({workers})")
    if "Too many open files" in text or getattr(error, "errno", None) == errno.EMFILE or isinstance(error, EOFError):
        return (
            "a loader process broke off, as it does where too few files may be open: raise the limit"
            f" (`ulimit -n 4096`), or lower {workers_said}."
        )
    if "bus error" in text.lower() or "shared memory" in text.lower():
        return (
            f"a loader process found no room in /dev/shm: give the container more (docker --shm-size 8g), or lower"
            f" {workers_said}; 0 needs none."
        )
    was_handing_over = isinstance(error, ConnectionError) and hasattr(error, "__notes__")
    if was_handing_over or re.search(r"DataLoader worker .*(exited unexpectedly|is killed by signal)", text):
        return (
            f"a loader process was killed, most often by the system for want of memory: lower {workers_said} or"
            " data.batch_size. The checkpoints are intact; --resume auto goes on."
        )
    if found := re.search(r"DataLoader timed out after (\S+) seconds", text):
        return (
            f"no batch came for {found[1]} seconds: a loader process hangs, most often on a slow or lost disk. Look at"
            f" the data's place, or lower {workers_said}."
        )
    return None
