"""What is seen of a command while it runs: a line that is written over on a terminal, one line an epoch elsewhere."""

from __future__ import annotations

import shutil
import sys
import time
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.callbacks import ProgressBar as LightningBar

REFRESH_SECONDS = 0.5  # between two drawings; the loss that they show is a sync with the device
BAR = 16


class ProgressBar(LightningBar):
    """Epoch, loss, metric, images per second and time left.

    Training leaves one line an epoch, on a terminal and in a log file alike. Where the error output is a terminal, the
    line below it is alive: the loss is there from the first steps on, the metric from the first validation on.
    """

    def __init__(self) -> None:
        super().__init__()
        self._enabled = True
        self._drawn_at = 0.0
        self._drawn = False
        self._train = _Clock()  # of the epoch's training, without its validation
        self._whole = _Clock()
        self._first_step = 0
        self._loss: float | None = None
        self._validated = False  # in this epoch

    def disable(self) -> None:
        """Show nothing."""
        self._enabled = False

    def enable(self) -> None:
        """Show it again."""
        self._enabled = True

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print above the line."""
        self._clear()
        print(*args, **kwargs)

    # Training.

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock of the time that is left."""
        self._whole, self._first_step = _Clock(), trainer.global_step

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock of images per second."""
        self._train, self._validated = _Clock(), False

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the images, and draw now and then."""
        self._train.images += _images_in(batch) * trainer.world_size
        if self._is_time():
            self._loss = pl_module.recent_loss()
            part = (batch_idx + 1) / max(1, trainer.num_training_batches)
            self._draw(_epoch_of(trainer), part, [*self._figures(trainer, pl_module.taught), _left(self, trainer)])

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop the clock of training."""
        self._train.stop()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Let it go on."""
        self._train.go_on()
        self._validated = True

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave a line."""
        if not self._enabled:
            return
        self._loss = pl_module.recent_loss()
        figures = [_epoch_of(trainer), *self._figures(trainer, pl_module.taught), _left(self, trainer)]
        self._clear()
        print("  ".join(text for text in figures if text), flush=True)

    def _figures(self, trainer: pl.Trainer, task: Any) -> list[str]:
        loss = "" if self._loss is None else f"loss {self._loss:.4g}"
        return [loss, _metric(trainer, task, self._validated), f"{self._train.rate():,.3g} images/s"]

    # Evaluation.

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draw now and then."""
        if not trainer.sanity_checking:
            self._evaluate(trainer, "validation", batch_idx, trainer.num_val_batches)

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draw now and then."""
        self._evaluate(trainer, "test", batch_idx, trainer.num_test_batches)

    def on_predict_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draw now and then."""
        self._evaluate(trainer, "prediction", batch_idx, trainer.num_predict_batches)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave nothing."""
        self._clear()

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave nothing."""
        self._clear()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Leave nothing."""
        self._clear()

    def _evaluate(self, trainer: pl.Trainer, what: str, batch_idx: int, batches: Any) -> None:
        if not self._is_time():
            return
        total = sum(batches) if isinstance(batches, list) else batches
        what = f"{_epoch_of(trainer)}  {what}" if trainer.state.fn == "fit" else what
        self._draw(what, (batch_idx + 1) / max(1, total), [f"{batch_idx + 1} of {total} batches"])

    # The terminal.

    def _is_time(self) -> bool:
        is_seen = self._enabled and sys.stderr.isatty()
        return is_seen and time.monotonic() - self._drawn_at >= REFRESH_SECONDS

    def _draw(self, what: str, part: float, figures: list[str]) -> None:
        full = round(BAR * min(1.0, part))
        bar = f"[{'=' * full}{' ' * (BAR - full)}] {part:4.0%}"
        line = "  ".join(text for text in (what, bar, *figures) if text)
        sys.stderr.write(f"\r{line[: shutil.get_terminal_size().columns - 1]}\x1b[K")
        sys.stderr.flush()
        self._drawn_at, self._drawn = time.monotonic(), True

    def _clear(self) -> None:
        if self._drawn:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
            self._drawn = False


class _Clock:
    """Seconds that something took, without its breaks, and images in them."""

    def __init__(self) -> None:
        self.images, self._before, self._began = 0, 0.0, time.monotonic()
        self._runs = True

    def seconds(self) -> float:
        return self._before + (time.monotonic() - self._began if self._runs else 0.0)

    def stop(self) -> None:
        self._before, self._runs = self.seconds(), False

    def go_on(self) -> None:
        self._before, self._began, self._runs = self.seconds(), time.monotonic(), True

    def rate(self) -> float:
        return self.images / max(1e-9, self.seconds())


def _images_in(batch: Any) -> int:
    """Images in a batch; those of both halves of a semi-supervised one."""
    return len(batch["image"]) if "image" in batch else sum(map(_images_in, batch.values()))


def _epoch_of(trainer: pl.Trainer) -> str:
    last = trainer.max_epochs
    return f"epoch {trainer.current_epoch + 1}{f'/{last}' if last and last > 0 else ''}"


def _metric(trainer: pl.Trainer, task: Any, is_new: bool) -> str:
    """The last value of the metric that decides, and, where it is new, whether it is the best so far."""
    value = trainer.callback_metrics.get(task.monitor)
    if value is None:
        return ""
    best = next((c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint) and c.monitor), None)
    known = None if best is None else best.best_model_score  # that of the epochs before this one, or of this one
    is_best = known is None or bool(value >= known if task.mode == "max" else value <= known)
    return f"{task.monitor} {float(value):.4f}{' (best)' if is_new and is_best and best is not None else ''}"


def _left(bar: ProgressBar, trainer: pl.Trainer) -> str:
    """The time that is left of the whole training, at its mean pace so far."""
    total, done = trainer.estimated_stepping_batches, trainer.global_step - bar._first_step
    if done < 1 or total == float("inf"):
        return ""
    seconds = bar._whole.seconds() / done * max(0, int(total) - trainer.global_step)
    return f"{duration(seconds)} left" if seconds else f"{duration(bar._whole.seconds())} in all"


def duration(seconds: float) -> str:
    """``1:05`` (minutes and seconds) or ``2:01:05``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
