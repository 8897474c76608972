"""Classes that are empty, rare, or missing in a split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from datamodules.annotations.records import Record
from datamodules.checking.findings import Finding

_RARE, _PART = 5, 0.01  # of a class in training; of the most frequent class
Counts = npt.NDArray[np.float64]


def label_counts(records: Sequence[Record], num_classes: int) -> Counts:
    """Images or boxes of each class, float64 (K,): labels, or the mass of soft ones, or boxes that are no crowds."""
    total = np.zeros(num_classes)
    for record in records:
        if "labels" in record:
            labels = record["labels"][record["iscrowd"] == 0]
            labels = labels[(labels >= 0) & (labels < num_classes)]
            total += np.bincount(labels, minlength=num_classes)
        elif isinstance(record["label"], int):
            total[record["label"]] += 1
        else:
            total += np.asarray(record["label"])
    return total


def class_findings(counts: Mapping[str, Counts], names: Sequence[str], unit: str) -> list[Finding]:
    """What the classes' frequencies say.

    Args:
        counts: Of each split that has images: float64 (K,).
        names: The K classes.
        unit: ``images``, ``boxes`` or ``pixels``; few pixels are no rare class.
    """
    found = []
    train = counts.get("train", np.zeros(len(names)))
    others = {split: own for split, own in counts.items() if split != "train"}
    for k, name in enumerate(names):
        seen = [split for split, own in others.items() if own[k] > 0]
        unseen = [split for split, own in others.items() if own[k] == 0]
        number = f"'{name}': {train[k]:,.0f} {unit} in train"
        if train[k] == 0 and not seen:
            found.append(Finding("class-empty", f"'{name}': no {unit} in any split"))
        elif train[k] == 0:
            found.append(Finding("class-untrained", f"{number}, {others[seen[0]][k]:,.0f} in {seen[0]}"))
        elif unseen:
            found.append(Finding("class-unseen", f"{number}, none in {' and '.join(unseen)}"))
        if train[k] > 0 and (train[k] < _PART * train.max() or (unit != "pixels" and train[k] < _RARE)):
            found.append(Finding("class-rare", f"{number}, {train.max():,.0f} of '{names[int(train.argmax())]}'"))
    return found
