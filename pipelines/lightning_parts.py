"""What of Lightning does not work here, each part with the reason; docs/lightning.md lists all parts."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback, EarlyStopping, ModelCheckpoint
from pytorch_lightning.utilities.model_helpers import is_overridden

from datamodules.common.errors import UserError

#: By name, subclasses included.
CALLBACKS = {
    "LearningRateFinder": "it trains in front of the run, from a checkpoint of its own. Compare rates by short runs:"
    " --model.optim.lr with --trainer.max_steps",
    "BatchSizeFinder": "it changes the batch size behind the schedule, the rate and the checks, which go by"
    " data.batch_size. Set that, or to auto; out of memory, the message names the next lower one",
    "StochasticWeightAveraging": "it replaces the schedule of model.optim. Take trainer.ema_decay",
    "WeightAveraging": "the run keeps one average of its own. Take trainer.ema_decay",
    "EMAWeightAveraging": "the run keeps one average of its own. Take trainer.ema_decay",
    "BaseFinetuning": "what it unfreezes is not summed over devices. Take model.freeze_backbone with"
    " model.unfreeze_at_epoch",
    "BackboneFinetuning": "what it unfreezes is not summed over devices. Take model.freeze_backbone with"
    " model.unfreeze_at_epoch",
    "GradientAccumulationScheduler": "schedule and resume count on one number of batches a step. Take"
    " trainer.accumulate_grad_batches",
    "ModelPruning": "its checkpoints have other weights than the model that is evaluated. Prune the trained model",
    "SpikeDetection": "it ends a run at one outlier. trainer.max_skipped_steps skips such a step",
}
STRATEGIES = {
    "fsdp": "its checkpoints are in parts, which test, predict and --resume do not read. Take ddp",
    "deepspeed": "its checkpoints are in parts, which test, predict and --resume do not read. Take ddp",
    "xla": "nothing here was made for TPUs",
    "tpu": "nothing here was made for TPUs",
    **dict.fromkeys(
        ("spawn", "fork", "notebook"),
        "signals do not reach the processes that it starts, and their steps are not known at the end. Take ddp",
    ),
    "parallel": "the networks are not cut into parts over devices. Take ddp",
}
#: Settings, and the values that do work.
SETTINGS: dict[str, tuple[tuple[Any, ...], str]] = {
    "reload_dataloaders_every_n_epochs": (
        (None, 0),
        "the order of each epoch comes from its number, and a loader that is made anew begins again",
    ),
    "model_registry": ((None,), "weights are uploaded by trainer.wandb only"),
}


def check_parts(callbacks: Sequence[Callback], strategy: Any, settings: dict[str, Any]) -> None:
    """Refuse what does not work with a run.

    Args:
        callbacks: The user's.
        strategy: A name or an object.
        settings: The Trainer's other arguments.

    Raises:
        UserError: Naming the part, the reason and what to take in its place.
    """
    for callback in callbacks:
        for name in (cls.__name__ for cls in type(callback).__mro__):
            if name in CALLBACKS:
                raise UserError(f"trainer.callbacks: {name} does not work here: {CALLBACKS[name]}.")
        if isinstance(callback, ModelCheckpoint):
            _check_checkpoint(callback)
        if isinstance(callback, EarlyStopping) and callback._check_on_train_epoch_end:
            _check_stopping(settings)
    named = _name_of(strategy)
    for name, reason in STRATEGIES.items():
        if name in named:
            raise UserError(f"trainer.strategy is {named}, which does not work here: {reason}.")
    for name, (working, reason) in SETTINGS.items():
        if name in settings and settings[name] not in working:
            raise UserError(f"trainer.{name} is {settings[name]}, which does not work here: {reason}.")


def wait_for_ranks(strategy: Any, *seconds: float) -> None:
    """Let the process group outwait the watch of ranks over each other, which names the one that hangs.

    Args:
        strategy: Its time-out, half an hour by default, is raised to twice the longest of the watch's.
        seconds: The watch's limits.
    """
    of_group = getattr(strategy, "_timeout", None)  # Lightning's DDPStrategy takes it from its constructor only
    if isinstance(of_group, timedelta):
        strategy._timeout = max(of_group, timedelta(seconds=2 * max(seconds)))


def _name_of(strategy: Any) -> str:
    """The name of a strategy, of an object with the way in which it starts its processes."""
    if isinstance(strategy, str):
        return strategy.lower()
    started = getattr(strategy, "_start_method", "popen")
    return type(strategy).__name__.lower() + ("" if started == "popen" else f" by {started}")


def _check_checkpoint(callback: ModelCheckpoint) -> None:
    """A checkpoint callback of the user's writes beside ``best.ckpt`` and ``last.ckpt``, not over them."""
    if callback.save_last:
        raise UserError(
            "trainer.callbacks: ModelCheckpoint.save_last is set, but last.ckpt is always written: leave it out."
        )
    if callback.filename in ("best", "last"):
        raise UserError(
            f"trainer.callbacks: ModelCheckpoint.filename is '{callback.filename}', but {callback.filename}.ckpt is"
            " always written: take another name, or set trainer.enable_checkpointing: false, which leaves ours out."
        )


def _check_stopping(settings: dict[str, Any]) -> None:
    """A run must not stop where its last weights were not validated: Lightning stops behind the epoch's callbacks."""
    for name, always in (("check_val_every_n_epoch", 1), ("val_check_interval", 1.0)):
        value = settings.get(name, always)
        if value is not None and value != always:
            raise UserError(
                "trainer.callbacks: EarlyStopping.check_on_train_epoch_end is true, but with"
                f" trainer.{name} {value} not every epoch ends with a validation: the last weights would have no"
                " figures. Leave check_on_train_epoch_end out: it then looks behind each validation."
            )


def stopped_early(state: dict[str, Any], callbacks: Sequence[Callback]) -> str | None:
    """Why a run that is to be resumed has nothing left to do; None where it goes on.

    Args:
        state: The checkpoint's states of callbacks.
        callbacks: Those of now: a greater patience lets the run go on.
    """
    for callback in callbacks:
        found = state.get(callback.state_key)
        if not (isinstance(callback, EarlyStopping) and found and found["stopped_epoch"]):
            continue
        if found["wait_count"] >= callback.patience or found["wait_count"] < found["patience"]:
            return (
                f"This run has stopped early, in epoch {found['stopped_epoch']}, by EarlyStopping of"
                f" {callback.monitor} (patience {callback.patience}): nothing is left to do. A greater patience, or"
                " no such callback, lets it train on."
            )
    return None


def keep_patience(callbacks: Sequence[Callback]) -> None:
    """Let a restored EarlyStopping go on with the config's patience: Lightning would take the old run's."""
    for callback in callbacks:
        if isinstance(callback, EarlyStopping):
            patience, load = callback.patience, callback.load_state_dict

            def restore(state: dict[str, Any], load: Any = load, patience: int = patience) -> None:
                load({**state, "patience": patience})

            callback.load_state_dict = restore  # type: ignore[method-assign]


def refuse_batch_hooks(datamodule: pl.LightningDataModule) -> None:
    """Refuse a datamodule that does what the model's own hooks do.

    Raises:
        UserError: Naming the hook.
    """
    for hook in ("on_after_batch_transfer", "on_before_batch_transfer", "transfer_batch_to_device"):
        if is_overridden(hook, datamodule):
            raise UserError(
                f"{type(datamodule).__name__} overrides {hook}; Lightning would then skip the model's, which"
                " seeds and augments the batch. Move that work into the datamodule's transforms."
            )
