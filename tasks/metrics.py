"""Classification metrics as sums that stay on the device: `update` never waits for it, `compute` runs once an epoch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics.functional.classification import multilabel_average_precision

from tasks.calibration import TemperatureSums

# Confidences are summed as whole numbers of this unit: exact in any order, so any number of ranks gives the same sum.
UNIT = 2**24


def f1_scores(true_positives: Tensor, predicted: Tensor, actual: Tensor) -> Tensor:
    """F1 of each class, float64 (K,), from counts (K,); NaN for classes neither in the target nor predicted."""
    return 2 * true_positives.double() / (predicted + actual).double()  # 0 / 0 is NaN


class _LossMean(TemperatureSums):
    """Mean of per-image losses, the part that both metrics share."""

    full_state_update = False
    loss_sum: Tensor
    loss_rest: Tensor
    num_losses: Tensor

    def __init__(self) -> None:
        super().__init__()
        # float32 with Kahan's compensation: float64 does not exist on MPS, and whole numbers cannot be NaN.
        self.add_state("loss_sum", torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("loss_rest", torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("num_losses", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def _add_losses(self, loss: Tensor) -> None:
        term = loss.detach().float().sum() + self.loss_rest
        total = self.loss_sum + term
        self.loss_rest = term - (total - self.loss_sum)
        self.loss_sum = total
        self.num_losses = self.num_losses + len(loss)

    def _mean_loss(self) -> dict[str, Tensor]:
        return {"loss": (self.loss_sum + self.loss_rest) / self.num_losses}


class ClassificationMetrics(_LossMean):
    """Metrics of single-label classification from a confusion matrix, top-k counts and calibration bins.

    `compute` gives float32 scalars; all are NaN where no image was seen:
    `accuracy`; `top{k}` for each k of `top_k` with 1 < k < num_classes; `f1`, the mean of F1 over the classes that
    occur in the targets or among the predictions (scikit-learn's `average="macro"` over these); `ece`, the expected
    calibration error with bins of equal width (Naeini et al. 2015; Guo et al. 2017,
    https://arxiv.org/abs/1706.04599); `loss`, NaN where no losses were given.
    """

    confusion_counts: Tensor
    top_k_counts: Tensor
    bin_counts: Tensor
    bin_confidence: Tensor
    bin_correct: Tensor

    def __init__(self, num_classes: int, top_k: Sequence[int] = (1, 5), num_bins: int = 15) -> None:
        """Make the sums; see the class for what is computed."""
        super().__init__()
        self.num_classes = num_classes
        self.top_k = sorted({k for k in top_k if 1 < k < num_classes})
        self.num_bins = num_bins
        self._last_confusion: Tensor | None = None
        self.calibration = torch.zeros(3, num_bins, dtype=torch.float64)
        for name, shape in (
            ("confusion_counts", (num_classes * num_classes,)),
            ("top_k_counts", (len(self.top_k),)),
            ("bin_counts", (num_bins,)),
            ("bin_confidence", (num_bins,)),
            ("bin_correct", (num_bins,)),
        ):
            self.add_state(name, torch.zeros(shape, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, probabilities: Tensor, target: Tensor, loss: Tensor | None = None) -> None:
        """Add a batch; nothing is checked.

        Args:
            probabilities: float (B, K), each row adding up to 1.
            target: int64 (B,), 0 to K - 1.
            loss: float (B,), the images' losses.
        """
        largest = max([1, *self.top_k])
        values, indices = probabilities.float().topk(largest)
        predicted, confidence = indices[:, 0], values[:, 0].nan_to_num()
        hits = indices == target.unsqueeze(1)
        ones = torch.ones_like(target)
        self.confusion_counts.index_add_(0, target * self.num_classes + predicted, ones)
        if self.top_k:
            self.top_k_counts += torch.stack([hits[:, :k].sum() for k in self.top_k])
        bins = (confidence * self.num_bins).ceil().long().sub_(1).clamp_(0, self.num_bins - 1)
        self.bin_counts.index_add_(0, bins, ones)
        self.bin_confidence.index_add_(0, bins, (confidence * UNIT).long())
        self.bin_correct.index_add_(0, bins, hits[:, 0].long())
        if loss is not None:
            self._add_losses(loss)

    def compute(self) -> dict[str, Tensor]:
        """All metrics by name, over all ranks."""
        confusion = self.confusion_counts.view(self.num_classes, self.num_classes).cpu()
        self._last_confusion = confusion.clone()
        hits, total = confusion.diagonal(), confusion.sum().double()
        counts, correct, confidence = (
            state.double().cpu() for state in (self.bin_counts, self.bin_correct, self.bin_confidence)
        )
        # Mean confidence, accuracy and images of each bin, for a reliability diagram; as of the last compute.
        self.calibration = torch.stack([confidence / UNIT / counts, correct / counts, counts]).nan_to_num()
        values = {"accuracy": hits.sum() / total}
        values |= {f"top{k}": count / total for k, count in zip(self.top_k, self.top_k_counts.cpu(), strict=True)}
        values["f1"] = f1_scores(hits, confusion.sum(0), confusion.sum(1)).nanmean()
        self.find_temperature()
        values["ece"] = (correct - confidence / UNIT).abs().sum() / counts.sum()
        device = self.confusion_counts.device
        return {name: value.float().to(device) for name, value in values.items()} | self._mean_loss()

    @property
    def confusion(self) -> Tensor:
        """int64 (K, K) on the CPU, rows are the truth: over all ranks as of the last `compute`; `reset` leaves it."""
        if self._last_confusion is None:
            return self.confusion_counts.view(self.num_classes, self.num_classes).cpu()
        return self._last_confusion

    def per_class(self) -> dict[str, list[Any]]:
        """`precision`, `recall`, `f1` (0 where undefined, as scikit-learn) and `support` of each class, by number."""
        confusion = self.confusion
        hits, predicted, actual = confusion.diagonal(), confusion.sum(0), confusion.sum(1)
        columns = {
            "precision": hits.double() / predicted,
            "recall": hits.double() / actual,
            "f1": f1_scores(hits, predicted, actual),
        }
        result: dict[str, list[Any]] = {name: values.nan_to_num().tolist() for name, values in columns.items()}
        return result | {"support": actual.tolist()}


class MultiLabelMetrics(_LossMean):
    """Metrics of multi-label images: mean average precision, and F1 at a probability of 0.5.

    `compute` gives float32 scalars: `map`, the mean over the labels that occur of average precision (exact, by
    torchmetrics, equal to scikit-learn's `average_precision_score`, so the scores of all images are kept until then,
    8 bytes an image and label); `f1`, the mean of F1 over the labels that occur in targets or predictions;
    `f1_micro`, F1 of all decisions together; `loss`, NaN where no losses were given. All are NaN where no image was
    seen.
    """

    scores: list[Tensor]
    labels: list[Tensor]
    true_positives: Tensor
    predicted: Tensor
    actual: Tensor

    def __init__(self, num_labels: int) -> None:
        """Make the sums; see the class for what is computed."""
        super().__init__()
        self.num_labels = num_labels
        # Flat and float32, as what torchmetrics gathers from a rank without images is an empty tensor of that kind.
        self.add_state("scores", [], dist_reduce_fx="cat")
        self.add_state("labels", [], dist_reduce_fx="cat")
        for name in ("true_positives", "predicted", "actual"):
            self.add_state(name, torch.zeros(num_labels, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, probabilities: Tensor, target: Tensor, loss: Tensor | None = None) -> None:
        """Add a batch; nothing is checked.

        Args:
            probabilities: float (B, K), each in [0, 1].
            target: float or integer (B, K); a label counts from 0.5.
            loss: float (B,), the images' losses.
        """
        predicted, actual = probabilities >= 0.5, target >= 0.5
        self.scores.append(probabilities.float().flatten())
        self.labels.append(actual.float().flatten())
        self.true_positives += (predicted & actual).sum(0)
        self.predicted += predicted.sum(0)
        self.actual += actual.sum(0)
        if loss is not None:
            self._add_losses(loss)

    def compute(self) -> dict[str, Tensor]:
        """All metrics by name, over all ranks."""
        device = self.actual.device
        self.find_temperature()
        tp, predicted, actual = self.true_positives.cpu(), self.predicted.cpu(), self.actual.cpu()
        values = {
            "map": self._average_precision(actual > 0).nanmean(),
            "f1": f1_scores(tp, predicted, actual).nanmean(),
            "f1_micro": f1_scores(tp.sum(), predicted.sum(), actual.sum()),
        }
        return {name: value.float().to(device) for name, value in values.items()} | self._mean_loss()

    def _average_precision(self, occurs: Tensor) -> Tensor:
        """Average precision of the labels that occur, float32; of one NaN if none does."""
        if not bool(occurs.any()):
            return torch.tensor([torch.nan])
        # Lists on one process, tensors after a gather.
        scores, labels = (
            torch.cat(list(state)) if isinstance(state, list) else state for state in (self.scores, self.labels)
        )
        columns = occurs.nonzero()[:, 0].to(scores.device)
        scores = scores.view(-1, self.num_labels)[:, columns]
        labels = labels.view(-1, self.num_labels)[:, columns].long()
        precision: Tensor = multilabel_average_precision(
            scores, labels, len(columns), average="none", validate_args=False
        )
        return precision
