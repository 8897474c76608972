"""``data.batch_size: auto``: the largest batch whose training step fits into the memory, found by trying."""

from __future__ import annotations

import gc
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.utilities import rank_zero_info

from datamodules.collate import collate
from datamodules.common.errors import UserError
from datamodules.loaders import RecordDataset
from datamodules.samplers import choose_batch
from pipelines.callbacks.progress import duration
from pipelines.hardware import AveragedWeights, memory, most_used, resident
from pipelines.run.checkpoints import read_checkpoint_config
from pipelines.run.directory import newest_config
from pipelines.run_trainer import RunTrainer
from tasks.hooks import TaskHooks

FIRST, MOST = 4, 1024  # images; powers of two between them are tried
DIFFERENT = 4  # images of a tried batch; the others repeat them
#: Parts of the memory that a step may take. A CPU's is also that of the loaders and of other programs.
SHARES = {"cuda": 0.8, "cpu": 0.5}
SLOW_SECONDS = 30.0  # of a step, on a CPU of much memory: larger batches are not tried


def settle_batch(
    trainer: RunTrainer, model: TaskHooks, datamodule: Any, run: Path | None = None, checkpoint: Path | None = None
) -> None:
    """Choose ``data.batch_size`` where it is ``auto``; the run's config holds the number.

    A run that goes on, and one that starts from a checkpoint's full state, keep the number that was found then.

    Args:
        trainer: Where training will be.
        model: The task, with its network; its state is left as it is.
        datamodule: The data, set up; its ``batch_size`` is set.
        run: The run that is continued, if one is.
        checkpoint: What training starts from, if anything.

    Raises:
        UserError: With several devices, or where not even the smallest batch fits.
    """
    if not getattr(datamodule, "tries_batch", False):
        return
    known = _known(run, checkpoint)
    if known is not None:
        _take(datamodule, known, "as when the training began")
        return
    if trainer.world_size > 1:
        raise UserError(
            f"data.batch_size is auto, which tries one device, but the training has {trainer.world_size}: find it with"
            " trainer.devices: 1 (doctor --config says it too), and set that number, or less: gradients that are"
            " exchanged take memory, too."
        )
    size, peak, limit = find_batch(trainer, model, datamodule)
    gib, share = 2**30, _share(trainer.strategy.root_device)
    _take(datamodule, size, f"tried: {peak / gib:.1f} of {limit / gib:.1f} GiB, of which {share:.0%} may be used")


def _take(datamodule: Any, size: int, why: str) -> None:
    datamodule.batch_size = size
    datamodule.chosen["data.batch_size"] = f"{size}, {why}"


def _known(run: Path | None, checkpoint: Path | None) -> int | None:
    """The number in the config of the run that goes on, or of the checkpoint."""
    config: Mapping[str, Any] = {}
    if run is not None:
        config = newest_config(run)
    if not config and checkpoint is not None:
        config = read_checkpoint_config(checkpoint)
    found = (config.get("data") or {}).get("init_args", {}).get("batch_size")
    return found if isinstance(found, int) else None


def find_batch(trainer: RunTrainer, model: TaskHooks, datamodule: Any) -> tuple[int, int, int]:
    """Try steps of growing batches.

    Twice the images take at most twice the memory. So a size is tried only where twice the peak of the last one is
    there; on a CPU too much memory would end the process.

    Returns:
        The batch size; the bytes at the peak of its step; those that there are.

    Raises:
        UserError: If not even the smallest one fits.
    """
    device = trainer.strategy.root_device
    share = _share(device)
    most = choose_batch(MOST, len(datamodule.records["train"]))
    sizes = [size for size in (FIRST * 2**i for i in range(20)) if size < most] + [most]
    batch = _images(datamodule)
    limit, found = _available(device), (0, 0)
    copies = 2 + sum(isinstance(callback, AveragedWeights) for callback in trainer.callbacks)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    began = next(model.parameters()).device
    try:
        model.to(device)
        for size in sizes:
            if found[0] and found[1] * size / found[0] > limit:
                break
            start = time.monotonic()
            peak = _peak(trainer, model, repeated(batch, size), device, copies)
            if peak is None or peak > share * limit:
                break
            found = (size, peak)
            rank_zero_info(f"data.batch_size auto: {size} images fit ({duration(time.monotonic() - start)})")
            if device.type != "cuda" and time.monotonic() - start > SLOW_SECONDS:
                break
    finally:
        model.zero_grad(set_to_none=True)
        model.load_state_dict(state)
        model.to(began)
        _free(device)
    if not found[0]:
        raise UserError(
            f"data.batch_size is auto, but not even {sizes[0]} images fit into {share:.0%} of {limit / 2**30:.1f} GiB:"
            " lower data.image_size, or take a smaller model."
        )
    return *found, limit


def _images(datamodule: Any) -> dict[str, Any]:
    """A batch of different training images, those with most objects, on the largest canvas that is drawn."""
    records = sorted(datamodule.records["train"], key=lambda record: -len(record.get("boxes", ())))[:DIFFERENT]
    canvases: list[tuple[int, int]] = getattr(datamodule.augment, "canvases", list)()
    canvas = max(canvases, key=lambda size: size[0] * size[1], default=None)
    transform = datamodule.make_transform(train=True, **({} if canvas is None else {"canvas": canvas}))
    dataset = RecordDataset(records, datamodule.make_reader(), transform, seed=0, stream="train")
    return collate([dataset[(number, 0, number)] for number in range(len(records))])  # type: ignore[index]


def repeated(batch: Mapping[str, Any], size: int) -> dict[str, Any]:
    """A batch of ``size`` images from one of fewer."""
    count = len(batch["image"])
    places = [number % count for number in range(size)]
    return {
        key: [value[i] for i in places] if isinstance(value, list) else value[torch.tensor(places)]
        for key, value in batch.items()
    }


def _peak(
    trainer: RunTrainer, model: TaskHooks, batch: dict[str, Any], device: torch.device, copies: int
) -> int | None:
    """Bytes at the peak of a training step with an optimizer's state, ``copies`` of the weights; None out of memory."""
    _free(device)
    on_gpu = device.type == "cuda"
    try:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model.train()
            states = [torch.zeros_like(p) for p in model.parameters() if p.requires_grad for _ in range(copies)]
            moved = model.augment(model.transfer_batch_to_device(batch, device, 0))
            with trainer.precision_plugin.train_step_context():
                loss = model.loss(moved)["loss"]
            loss.backward()
            if on_gpu:
                torch.cuda.synchronize(device)
        del states
    except torch.OutOfMemoryError:
        return None
    finally:
        model.zero_grad(set_to_none=True)
    return most_used(device)


def _share(device: torch.device) -> float:
    return SHARES.get(device.type, SHARES["cpu"])


def _available(device: torch.device) -> int:
    """Bytes that this process may have: its own and the free ones."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    return memory()[1] + resident()


def _free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
