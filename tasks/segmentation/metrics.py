"""Segmentation metrics from one confusion matrix that stays on the device; boundary F-scores from sums of their own."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from datamodules.common.batch import IGNORE
from datamodules.common.errors import UserError
from tasks.calibration import TemperatureSums
from tasks.metrics import f1_scores

# Pixels that are counted at once, so that memory does not grow with the image.
STRIP = 1 << 22


class SegmentationMetrics(TemperatureSums):
    """Metrics of class maps, or of maps of overlapping labels, over all pixels of all images together.

    `compute` gives float64 scalars on the CPU, whatever the device has; all are NaN where no pixel was seen:
    `miou`, the mean over the classes of intersection over union; `accuracy`, the fraction of right pixels;
    `mean_accuracy`, the mean over the classes of recall; `dice`, the mean over the classes of F1; `fwiou`, the mean of
    IoU weighted by the classes' true pixels; and `boundary_f` if asked for.

    Absent classes: a class that occurs neither in the truth nor among the predictions is left out of each mean, and its
    own values are NaN. One that occurs among the predictions only counts, with 0. So does torchmetrics' macro average;
    SMP counts an absent class as 1. `mean_accuracy` has the classes of the truth only, as scikit-learn's balanced one.

    Pixels whose truth is 255 take no part. A prediction of 255 (not covered) is wrong: it lowers the recall of the true
    class, and is no other class's false positive.

    Overlapping labels: each label's map asks a question at each pixel. `accuracy` is the fraction of all answers that
    are right; the other metrics do not count what is 0 in truth and prediction.

    Boundaries as DAVIS draws them (Perazzi et al. 2016, https://davischallenge.org): a pixel that differs from its
    neighbor to the right, below, or diagonally below in being of the class; next to ignored pixels there are none. A
    boundary pixel is right if the other boundary has one within the tolerance. `boundary_f` is the mean over the
    classes that have a boundary of F1, from the sums over all images; DAVIS and Csurka et al. 2013
    (https://doi.org/10.5244/C.27.32) take it of each image first.
    """

    full_state_update = False
    counts: Tensor
    boundary_counts: Tensor

    def __init__(
        self,
        num_classes: int,
        multi_label: bool = False,
        boundary: bool = False,
        boundary_tolerance: float = 0.0075,
        *,
        sync: bool = True,
    ) -> None:
        """Make the sums.

        Args:
            num_classes: K, at most 255.
            multi_label: Maps of overlapping labels.
            boundary: Compute `boundary_f`, which takes some passes over the image for each class.
            boundary_tolerance: Below 1 a fraction of the image's diagonal, rounded up to whole pixels (0.0075 is that
                of Csurka et al.); otherwise pixels.
            sync: Whether `compute` sums over ranks; without it for what one rank alone looks at.

        Raises:
            UserError: The tolerance is neither a fraction above 0 nor whole pixels.
        """
        super().__init__(sync_on_compute=sync)
        if not (0 < boundary_tolerance < 1 or (boundary_tolerance >= 1 and boundary_tolerance % 1 == 0)):
            raise UserError(
                f"boundary_tolerance is {boundary_tolerance}; it is a fraction of the image's diagonal, such as 0.0075,"
                " or a whole number of pixels."
            )
        self.num_classes = num_classes
        self.multi_label = multi_label
        self.boundary = boundary
        self.boundary_tolerance = boundary_tolerance
        self._last: tuple[Tensor, Tensor] | None = None
        # Rows are the truth, the last one ignored pixels; columns are predictions, the last one uncovered pixels.
        self._shape = (num_classes, 3, 3) if multi_label else (num_classes + 1, num_classes + 1)
        counts = torch.zeros(math.prod(self._shape), dtype=torch.int64)
        self.add_state("counts", counts, dist_reduce_fx="sum")
        # Boundary pixels: predicted, those of them that are right, true, those of them that were found.
        self.add_state("boundary_counts", torch.zeros(num_classes, 4, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add an image, or a batch of images of one size; their values are not checked.

        Args:
            prediction: uint8 (H, W) or (B, H, W), class numbers, 255 where there is none; for overlapping labels
                (K, H, W) or (B, K, H, W) of 0, 1 and 255. On any device.
            target: The truth in the same form, 255 where it is to be ignored.

        Raises:
            UserError: The shapes differ, or are of another kind.
        """
        wanted = f"([B,] {self.num_classes}, H, W)" if self.multi_label else "([B,] H, W)"
        if prediction.shape != target.shape:
            raise UserError(
                f"The prediction is {tuple(prediction.shape)} and the truth {tuple(target.shape)}; both are {wanted} in"
                " the original pixels of the image."
            )
        allowed = (3, 4) if self.multi_label else (2, 3)
        if target.ndim not in allowed or (self.multi_label and target.shape[-3] != self.num_classes):
            raise UserError(f"Prediction and truth are {tuple(target.shape)}, where {wanted} is wanted.")
        device = self.counts.device
        # Only towards CUDA: what comes from there without waiting can be read before it has arrived.
        prediction, target = (t.to(device, non_blocking=device.type == "cuda") for t in (prediction, target))
        rows = max(1, STRIP * target.shape[-2] // max(1, target.numel()))
        for part in zip(prediction.split(rows, -2), target.split(rows, -2), strict=True):
            self._add_pixels(*part)
        if self.boundary:
            self._add_boundaries(prediction, target)

    def _add_pixels(self, prediction: Tensor, target: Tensor) -> None:
        ignored = 2 if self.multi_label else self.num_classes
        # What is no class goes to the last row or column: to select pixels would mean to wait for the device, and takes
        # ten times as long on a CPU.
        cells = target.clamp(max=ignored).to(torch.int32).mul_(ignored + 1).add_(prediction.clamp(max=ignored))
        if self.multi_label:
            cells += 9 * torch.arange(self.num_classes, device=cells.device, dtype=torch.int32).view(-1, 1, 1)
        # On a CPU as fast as bincount, which waits for a CUDA device; int32 is twice as fast as int64.
        self.counts.index_add_(0, cells.flatten(), self.counts.new_ones(()).expand(cells.numel()))

    def _add_boundaries(self, prediction: Tensor, target: Tensor) -> None:
        height, width = target.shape[-2:]
        tolerance = self.boundary_tolerance
        radius = math.ceil(tolerance * math.hypot(height, width)) if tolerance < 1 else int(tolerance)
        numbers = list(range(self.num_classes))
        if target.device.type == "cpu" and not self.multi_label:  # elsewhere it would have to be waited for
            present = set(torch.cat([prediction.unique(), target.unique()]).tolist())
            numbers = [number for number in numbers if number in present]
        for number in numbers:
            if self.multi_label:
                maps, value = (prediction[..., number, :, :], target[..., number, :, :]), 1
            else:
                maps, value = (prediction, target), number
            valid = maps[1] != IGNORE
            predicted, actual = (boundaries(of_class == value, valid) for of_class in maps)
            right, found = predicted & dilate(actual, radius), actual & dilate(predicted, radius)
            self.boundary_counts[number] += torch.stack([part.sum() for part in (predicted, right, actual, found)])

    def compute(self) -> dict[str, Tensor]:
        """All metrics by name, over all ranks."""
        self._last = self.counts.view(self._shape).cpu().clone(), self.boundary_counts.cpu().clone()
        self.find_temperature()
        hits, predicted, actual, total, right = self._sums()
        iou = hits / (predicted + actual - hits)  # 0 / 0 is NaN
        values = {
            "miou": iou.nanmean(),
            "accuracy": right / total,
            "mean_accuracy": (hits / actual).nanmean(),
            "dice": f1_scores(hits, predicted, actual).nanmean(),
            "fwiou": (iou * actual).nansum() / actual.sum(),
        }
        if self.boundary:
            values["boundary_f"] = self._boundary_f().nanmean()
        return values

    def _sums(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Right, predicted and true pixels of each class, then all and all right pixels; float64, as of `compute`."""
        counts = self._counts().double()
        if self.multi_label:
            counts = counts[:, :2]
            hits, predicted, actual = counts[:, 1, 1], counts[:, :, 1].sum(1), counts[:, 1].sum(1)
            return hits, predicted, actual, counts.sum(), hits.sum() + counts[:, 0, 0].sum()
        counts = counts[:-1]
        hits = counts.diagonal()
        return hits, counts[:, :-1].sum(0), counts.sum(1), counts.sum(), hits.sum()

    def _counts(self) -> Tensor:
        return self.counts.view(self._shape).cpu() if self._last is None else self._last[0]

    def _boundary_f(self) -> Tensor:
        counts = self.boundary_counts.cpu() if self._last is None else self._last[1]
        predicted, right, actual, found = counts.double().unbind(1)
        precision, recall = right / predicted.clamp_min(1), found / actual.clamp_min(1)
        f = (2 * precision * recall / (precision + recall)).nan_to_num()
        return f.where(predicted + actual > 0, torch.nan)

    @property
    def confusion(self) -> Tensor:
        """int64 (K, K) on the CPU, rows are the truth: over all ranks as of the last `compute`; `reset` leaves it.

        Uncovered pixels are in none of its columns. Overlapping labels have no such matrix.

        Raises:
            AttributeError: With overlapping labels.
        """
        if self.multi_label:
            raise AttributeError("Overlapping labels have no confusion matrix; see per_class().")
        return self._counts()[:-1, :-1]

    def per_class(self) -> dict[str, list[float] | list[int]]:
        """`iou`, `dice`, `precision`, `recall` (NaN where undefined) and true `pixels` of each class, by number."""
        hits, predicted, actual, _, _ = self._sums()
        columns = {
            "iou": hits / (predicted + actual - hits),
            "dice": f1_scores(hits, predicted, actual),
            "precision": hits / predicted,
            "recall": hits / actual,
        }
        if self.boundary:
            columns["boundary_f"] = self._boundary_f()
        table: dict[str, list[float] | list[int]] = {name: values.tolist() for name, values in columns.items()}
        return table | {"pixels": actual.long().tolist()}


def boundaries(region: Tensor, valid: Tensor) -> Tensor:
    """Pixels that differ from their neighbor to the right, below or diagonally below, where both are valid.

    Args:
        region: bool (..., H, W).
        valid: bool (..., H, W).

    Returns:
        bool (..., H, W).
    """
    edge = torch.zeros_like(region)
    height, width = region.shape[-2:]
    for dy, dx in ((0, 1), (1, 0), (1, 1)):
        here = (..., slice(height - dy), slice(width - dx))
        there = (..., slice(dy, None), slice(dx, None))
        edge[here] |= (region[here] ^ region[there]) & valid[here] & valid[there]
    return edge


def dilate(pixels: Tensor, radius: int) -> Tensor:
    """Pixels within `radius` (Euclidean) of one that is set; bool (..., H, W), as is the result.

    Row by row of the disk: a run of a row has a pixel if the running sum differs between its ends. As fast as OpenCV
    on a CPU, and runs on any device.
    """
    height, width = pixels.shape[-2:]
    sums = F.pad(pixels.to(torch.int32), (radius + 1, radius)).cumsum(-1, dtype=torch.int32)
    result = torch.zeros_like(pixels)
    for dy in range(min(radius, height - 1) + 1):
        half = math.isqrt(radius * radius - dy * dy)
        first = radius - half
        near = sums[..., first + 2 * half + 1 :][..., :width] != sums[..., first : first + width]
        result[..., dy:, :] |= near[..., : height - dy, :]
        result[..., : height - dy, :] |= near[..., dy:, :]
    return result


def image_scores(mask: Tensor, truth: Tensor, classes: int, multi_label: bool) -> dict[str, float]:
    """``miou`` and ``accuracy`` of one image, whatever other ranks look at now; both on the CPU, see ``update``."""
    metric = SegmentationMetrics(classes, multi_label, sync=False)
    metric.update(mask, truth)
    values = metric.compute()
    return {name: float(values[name]) for name in ("miou", "accuracy")}
