"""What is printed before a training: what was read, the model, what was chosen, where the run lies; and doubts."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelSummary as LightningSummary

from datamodules.summary import held, most_objects, objects_in
from pipelines.hardware import AveragedWeights
from pipelines.outputs.names import short_number
from tasks.flops import count_flops
from tasks.optim import describe

FEW = 50  # validation pictures below which the best epoch may be luck


class Overview(LightningSummary):
    """One block in place of Lightning's table of layers, which says nothing of the data and of what was chosen."""

    def __init__(self) -> None:
        super().__init__()
        self._is_shown = False
        self._flops = 0

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count the operations of one image."""
        self._is_shown = False
        if trainer.is_global_zero:
            self._flops = count_flops(pl_module.taught)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print, once optimizer and schedule are known."""
        if self._is_shown or not trainer.is_global_zero:
            return
        self._is_shown = True
        print(block(_rows(trainer, pl_module, self._flops)), flush=True)

    on_sanity_check_start = on_train_start


def block(rows: list[tuple[str, list[str]]]) -> str:
    """Rows of a title and lines as aligned text; rows without lines are left out."""
    rows = [(title, lines) for title, lines in rows if lines]
    width = max(len(title) for title, _ in rows)
    return "\n".join(
        f"  {title if i == 0 else '':<{width}}  {line}" for title, lines in rows for i, line in enumerate(lines)
    )


def _rows(trainer: Any, module: Any, flops: int) -> list[tuple[str, list[str]]]:
    task, data = module.taught, trainer.datamodule
    found = held(data)
    chosen = {**getattr(task, "chosen", {}), **getattr(getattr(data, "labeled", data), "chosen", {})}
    return [
        ("data", found.lines() if found else []),
        ("model", [_model(task, flops)]),
        ("recipe", _recipe(trainer, module, data)),
        ("chosen", [f"{key}: {value}" for key, value in chosen.items()]),
        ("best", [_best(trainer, task)]),
        ("device", [f"{trainer.world_size} x {_device(trainer)}, {trainer.precision}"]),
        ("run", [str(run)] if (run := getattr(trainer, "run_dir", None)) else []),
    ]


def _model(task: Any, flops: int) -> str:
    sizes = [(p.numel(), p.requires_grad) for p in task.network.parameters()]
    total, trained = sum(size for size, _ in sizes), sum(size for size, is_trained in sizes if is_trained)
    part = "" if trained == total else f" ({short_number(trained)} trained)"
    kind = next((f" {value}," for key in ("architecture", "detector") if (value := getattr(task, key, None))), "")
    height, width = task.image_size or ("?", "?")
    return (
        f"{type(task).__name__},{kind} {task.backbone}: {short_number(total)} parameters{part},"
        f" {short_number(flops / 2)} MACs for an image of {height} x {width} x {task.in_chans}"
    )


def _recipe(trainer: Any, module: Any, data: Any) -> list[str]:
    task, batches = module.taught, trainer.num_training_batches
    length = f"{trainer.max_epochs} epochs" if (trainer.max_epochs or -1) > 0 else f"{trainer.max_steps} steps"
    more = {
        "EMA": next((c.decay for c in trainer.callbacks if isinstance(c, AveragedWeights)), None),
        "gradient clipping": trainer.gradient_clip_val,
        "batches accumulated": trainer.accumulate_grad_batches if trainer.accumulate_grad_batches > 1 else None,
    }
    augment = getattr(getattr(data, "labeled", data), "augment", None)
    lines = [
        f"{length}, {batches} {'batch' if batches == 1 else 'batches'} an epoch"
        + "".join(f", {name} {value}" for name, value in more.items() if value),
        describe(task.optim, module.global_batch()),
    ]
    preset = getattr(augment, "preset", None)
    return [*lines, f"augmentation {preset}"] if preset else lines


def _best(trainer: Any, task: Any) -> str:
    records = getattr(trainer.datamodule, "records", None) or {}
    if not decides_best(trainer.datamodule):
        return "the last checkpoint: no validation picture can decide"
    count, objects = len(records.get("val", ())), objects_in(records.get("val", ()))
    what = f" of {count:,} validation pictures" if count else ""
    return f"by {task.monitor}{what}{f' with {objects:,} objects' if objects else ''}"


def _device(trainer: Any) -> str:
    import torch

    device = trainer.strategy.root_device
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()


def decides_best(data: Any) -> bool:
    """Whether validation can tell which epoch is best: it has pictures, and objects where these are to be found."""
    records = getattr(data, "records", None)
    return records is None or (bool(records.get("val")) and objects_in(records["val"]) != 0)


def doubts(task: Any, data: Any) -> list[str]:
    """What a user should know of the data before training, each a sentence or two."""
    records = getattr(data, "records", None) or {}
    val = records.get("val") or []
    said = []
    if val and not decides_best(data):
        said.append(
            f"None of the {len(val)} validation pictures holds an object, so {task.monitor} is undefined and best.ckpt"
            " is the last checkpoint. Give validation pictures with objects."
        )
    elif 0 < len(val) < FEW:
        said.append(
            f"Only {len(val)} validation pictures decide which epoch is best by {task.monitor}: differences of a few"
            " percent are chance. data.val_fraction holds more out where the source has no split of its own."
        )
    limit = getattr(task, "max_detections", None)
    most = most_objects([record for split in records for record in records[split]])
    if limit is not None and most > limit:
        said.append(
            f"A picture holds {most:,} objects, but model.max_detections is {limit}: no more are ever found. Add"
            f" --model.max_detections {-(-most // 100) * 100}."
        )
    return said
