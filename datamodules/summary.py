"""What a datamodule holds, counted for people: images, boxes or pixels of each class and split, and sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodules.annotations.records import Record
from datamodules.decoding.headers import ImageError
from datamodules.decoding.sizes import image_sizes
from datamodules.decoding.video import is_frame

SPLITS = ("train", "val", "test")
MAX_CLASSES = 12  # of a table; of more classes the rarest and the most frequent one are named
LOOKED_AT = 500  # files whose headers are read for the sizes
Counts = NDArray[np.float64]


@dataclass(frozen=True)
class Held:
    """What was read.

    Attributes:
        source: As in the config.
        class_names: K names.
        images: Of each split that has some.
        unit: What is counted, ``images``, ``boxes`` or ``pixels``.
        counts: float64 (K,) of each split in which it is known.
        sizes: Of the images, as text.
        pool: Images without labels.
    """

    source: str
    class_names: list[str]
    images: dict[str, int]
    unit: str
    counts: dict[str, Counts]
    sizes: str
    pool: int

    def lines(self) -> list[str]:
        """A few lines: source, sizes, and a table of the classes."""
        sizes = f", images of {self.sizes}" if self.sizes else ""
        pool = f", {self.pool:,} unlabeled images" if self.pool else ""
        images = ", ".join(f"{split} {count:,}" for split, count in self.images.items())
        head = f"{self.source}: {images} images{pool}, {len(self.class_names)} classes{sizes}"
        if not self.counts:
            return [head]
        if len(self.class_names) > MAX_CLASSES:
            return [head, *(self._extremes(split) for split in self.counts)]
        return [head, *self._table()]

    def _extremes(self, split: str) -> str:
        counts = self.counts[split]
        low, high = int(counts.argmin()), int(counts.argmax())
        each = [f"{counts[k]:,.0f} ({self.class_names[k]})" for k in (low, high)]
        return f"{split}: from {each[0]} to {each[1]} {self.unit} a class"

    def _table(self) -> list[str]:
        width = max(len(self.unit), *(len(name) for name in self.class_names))
        rows = [[self.unit, *self.counts]]
        totals = {split: max(1.0, counts.sum()) for split, counts in self.counts.items()}
        for k, name in enumerate(self.class_names):
            shown = [_number(self.unit, counts[k], totals[split]) for split, counts in self.counts.items()]
            rows.append([name, *shown])
        return [f"{row[0]:<{width}}" + "".join(f"{cell:>9}" for cell in row[1:]) for row in rows]


def _number(unit: str, count: float, total: float) -> str:
    """A count; of pixels their part."""
    return f"{count / total:.2%}" if unit == "pixels" else f"{count:,.0f}"


def held(data: Any) -> Held | None:
    """Count what a datamodule holds; None for one without records, of another library.

    Args:
        data: Set up.
    """
    data = getattr(data, "labeled", data)
    records: dict[str, list[Record]] = getattr(data, "records", None) or {}
    if not any(records.values()):
        return None
    names = list(data.class_names or [])
    images = {split: len(records[split]) for split in SPLITS if records.get(split)}
    counts = {split: _counts(data, split, len(names)) for split in images}
    first = next(iter(records[next(iter(images))])) if images else {}
    unit = "images" if "label" in first else "boxes" if "labels" in first else "pixels"
    return Held(
        str(getattr(data, "source", type(data).__name__)),
        names,
        images,
        unit,
        {split: found for split, found in counts.items() if found is not None},
        _sizes([record for split in images for record in records[split]]),
        len(records.get("pool", ())),
    )


def objects_in(records: Sequence[Record]) -> int | None:
    """Boxes that count, of all records; None where records have none."""
    return sum(map(_objects, records)) if records and "labels" in records[0] else None


def most_objects(records: Sequence[Record]) -> int:
    """Boxes that count in the image that has most of them; 0 where records have none."""
    return max(map(_objects, records), default=0)


def _objects(record: Record) -> int:
    return int((record["iscrowd"] == 0).sum()) if "labels" in record else 0


def _counts(data: Any, split: str, classes: int) -> Counts | None:
    """What is counted of each class, float64 (K,); None where it is not known without drawing or reading all."""
    records = data.records[split]
    if "label" in records[0]:
        whole = [record["label"] for record in records if isinstance(record["label"], int)]
        parts = [record["label"] for record in records if not isinstance(record["label"], int)]
        total: Counts = np.bincount(np.asarray(whole, np.int64), minlength=classes).astype(np.float64)
        return total + np.sum(parts, axis=0) if parts else total
    if "labels" in records[0]:
        labels = [record["labels"][record["iscrowd"] == 0] for record in records]
        return np.bincount(np.concatenate(labels), minlength=classes).astype(np.float64)
    pixels: Counts | None = data.pixels_of(split) if hasattr(data, "pixels_of") else None
    return pixels


def _sizes(records: Sequence[Record]) -> str:
    """``640 x 480``, or the smallest and the largest size (width x height) of some files."""
    some = records[:: -(-len(records) // LOOKED_AT)]
    arrays = {r["image"].shape[:2] for r in some if isinstance(r["image"], np.ndarray)}
    paths = [r["image"] for r in some if isinstance(r["image"], str) and not is_frame(r["image"])]
    try:
        found = sorted(arrays | set(image_sizes(paths)), key=lambda size: (size[0] * size[1], size))
    except (ImageError, OSError):  # gone since they were checked
        return ""
    shown = [f"{width} x {height}" for height, width in found]
    return " to ".join(dict.fromkeys(shown[:1] + shown[-1:]))
