"""Temperature scaling: one number by which logits are divided, so that probabilities say how often they are right.

Guo et al. 2017, "On Calibration of Modern Neural Networks", https://arxiv.org/abs/1706.04599: the temperature of the
lowest negative log-likelihood on the validation images. The most likely class stays what it is.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric

from datamodules.common.errors import UserError
from tasks.base import Task

#: The likelihood is summed at these; a parabola through the best three gives the temperature between them.
AT = np.logspace(-1, 1, 25)
#: Likelihoods are summed as whole numbers of 1 / UNIT: exact in any order, so any number of ranks gives the same sum.
UNIT = 2**20
LARGEST = 1e4  # of one sample: what is no number counts as so much
#: Rows and columns of the pixels of an image of masks that are looked at.
GRID = 16


class TemperatureSums(Metric):
    """The negative log-likelihood at each of ``AT``, as sums: no logits are kept, and ranks just add.

    The part that the metrics of several tasks share; a metric calls ``find_temperature`` in its ``compute``.
    """

    likelihood_sums: Tensor
    num_likelihoods: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.temperature: float | None = None  # as of the last compute; None where nothing was seen
        self.add_state("likelihood_sums", torch.zeros(len(AT), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("num_likelihoods", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def add_logits(self, logits: Tensor, target: Tensor) -> None:
        """Add N samples.

        Args:
            logits: float (N, K).
            target: int64 (N,), classes; below 0 what does not count. Or float (N, K), labels of which several hold.
        """
        logits = logits.detach()
        if target.is_floating_point():
            losses = [F.binary_cross_entropy_with_logits(logits / t, target.float(), reduction="none") for t in AT]
            number = target.new_full((), target.numel(), dtype=torch.int64)
        else:
            losses = [F.cross_entropy(logits / t, target, ignore_index=-1, reduction="none") for t in AT]
            number = (target >= 0).sum()
        units = torch.stack([loss.nan_to_num(LARGEST).clamp(max=LARGEST).mul(UNIT).long().sum() for loss in losses])
        self.likelihood_sums = self.likelihood_sums + units
        self.num_likelihoods = self.num_likelihoods + number

    def find_temperature(self) -> None:
        """Set ``temperature`` from the sums of all ranks."""
        known = int(self.num_likelihoods) > 0
        self.temperature = lowest(self.likelihood_sums.cpu().double().numpy()) if known else None


def lowest(sums: np.ndarray[Any, np.dtype[np.float64]]) -> float:
    """The temperature of the lowest value: the vertex of the parabola, over the logarithm, of the best three."""
    best = int(np.argmin(sums))
    if best in (0, len(sums) - 1):
        return float(AT[best])
    left, middle, right = sums[best - 1 : best + 2]
    bend = left - 2 * middle + right
    step = np.log(AT[1] / AT[0])
    shift = 0.5 * (left - right) / bend * step if bend > 0 else 0.0
    return float(AT[best] * np.exp(shift))


def on_grid(values: Tensor) -> Tensor:
    """The values at ``GRID`` x ``GRID`` pixels all over an image: (..., H, W) to (..., GRID * GRID)."""
    rows, columns = (
        ((torch.arange(GRID, device=values.device) + 0.5) * size / GRID).long() for size in values.shape[-2:]
    )
    return values[..., rows[:, None], columns].flatten(-2)


def sampled_pixels(mask: Tensor, sample: Tensor) -> tuple[Tensor, Tensor]:
    """Logits float (N, K) and classes int64 (N,), -1 where ignored, of masks (B, H, W) and logits (B, K, P) there."""
    truth = on_grid(mask).flatten().long()
    return sample.transpose(1, 2).flatten(0, 1), truth.where(truth < sample.shape[1], -1)


class CalibratedTask(Task):
    """A task whose validation finds a temperature, which its checkpoints hold.

    Attributes:
        calibrated: Whether its probabilities are those at that temperature.
        temperature: Of the last validation; 1 before the first.
    """

    calibrated = False
    temperature = 1.0

    @property
    def divisor(self) -> float:
        """What logits are divided by in evaluation and prediction."""
        return self.temperature if self.calibrated else 1.0

    def after_validation(self) -> None:
        """Keep the temperature; what was evaluated had been divided by ``divisor`` already."""
        found = self.eval_metrics.temperature
        if found is not None:
            self.temperature = self.divisor * found

    def state(self) -> dict[str, Any]:
        """The temperature."""
        return {"temperature": self.temperature}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take it back.

        Raises:
            UserError: If it is asked for, and the checkpoint has none.
        """
        if self.calibrated and "temperature" not in state:
            raise UserError(
                "model.calibrated is true, but the checkpoint holds no temperature: it was not written by a training"
                " with validation images, or by an older version. Leave model.calibrated out, or train again."
            )
        self.temperature = float(state.get("temperature", 1.0))
