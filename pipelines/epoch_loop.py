"""Lightning's loop over the batches of an epoch, which also validates after the last step of a fit."""

from __future__ import annotations

from typing import Any

from pytorch_lightning.loops.training_epoch_loop import _TrainingEpochLoop


class EpochLoop(_TrainingEpochLoop):
    """Validates where Lightning does, and always behind the last step: then the final weights have figures.

    Lightning leaves them unmeasured where the number of epochs is no multiple of ``check_val_every_n_epoch``, and where
    ``max_steps``, ``max_time`` or ``val_check_interval`` end inside an epoch.
    """

    @classmethod
    def like(cls, loop: _TrainingEpochLoop) -> EpochLoop:
        """The same loop, of the same trainer and limits."""
        return cls(loop.trainer, loop.min_steps, loop.max_steps)

    def _should_check_val_fx(self, data_fetcher: Any) -> bool:
        return super()._should_check_val_fx(data_fetcher) or (self.trainer.enable_validation and self._ends_fit())

    def _ends_fit(self) -> bool:
        """Whether no step follows."""
        if 0 <= self.max_steps <= self.global_step:
            return True
        fit_loop = self.trainer.fit_loop
        if not self._num_ready_batches_reached():
            return bool(self.trainer.should_stop and fit_loop._can_stop_early)
        # Only after the epoch's last validation does Lightning count the epoch.
        epochs = fit_loop.epoch_progress.current.processed + 1
        if fit_loop.max_epochs not in (None, -1) and epochs >= fit_loop.max_epochs:
            return True
        enough = epochs >= (fit_loop.min_epochs or 0) and self.global_step >= (self.min_steps or 0)
        return bool(self.trainer.should_stop and enough)
